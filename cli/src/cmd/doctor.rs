//! `varve doctor`: what this machine allows, and what to do about what it does not.

use crate::args::Doctor;
use crate::cmd::output;
use crate::failure::Outcome;
use serde::Serialize;
use std::io::Write;
use std::path::Path;

#[derive(Serialize)]
struct Finding {
    what: &'static str,
    ok: bool,
    /// What was seen.
    found: String,
    /// What to do when it is not there.
    advice: &'static str,
}

pub(crate) fn run(args: &Doctor) -> anyhow::Result<Outcome> {
    let findings = [io_uring(), kernel(), nbd(), fuse(), loop_devices(), memlock(), tools()];
    if args.json {
        output::json(&findings)?;
        return Ok(Outcome::Fine);
    }
    let mut out = output::stdout();
    for f in &findings {
        writeln!(out, "{} {:<12} {}", if f.ok { "ok     " } else { "missing" }, f.what, f.found)?;
        if !f.ok {
            writeln!(out, "                     {}", f.advice)?;
        }
    }
    Ok(Outcome::Fine)
}

fn io_uring() -> Finding {
    let found = varve_block::rt::probe_ring();
    Finding {
        what: "io_uring",
        ok: found.is_ok(),
        found: match found {
            Ok(()) => "the ring engine is used".to_owned(),
            Err(why) => format!("the thread engine is used instead: {why}"),
        },
        advice: "nothing breaks, but it is slower: kernel 6.1 or later with \
                 kernel.io_uring_disabled=0, and a container profile that allows io_uring_setup",
    }
}

fn kernel() -> Finding {
    let uname = rustix::system::uname();
    Finding {
        what: "kernel",
        ok: true,
        found: uname.release().to_string_lossy().into_owned(),
        advice: "",
    }
}

fn nbd() -> Finding {
    let there = Path::new("/dev/nbd0").exists();
    Finding {
        what: "nbd",
        ok: there,
        found: if there { "/dev/nbd0 is there" } else { "no /dev/nbd0" }.to_owned(),
        advice: "for `nbd-client`: modprobe nbd; without it use nbdfuse and losetup, or qemu",
    }
}

fn fuse() -> Finding {
    let there = Path::new("/dev/fuse").exists();
    Finding {
        what: "fuse",
        ok: there,
        found: if there { "/dev/fuse is there" } else { "no /dev/fuse" }.to_owned(),
        advice: "for `nbdfuse`: modprobe fuse, or start the container with --device /dev/fuse",
    }
}

fn loop_devices() -> Finding {
    let there = Path::new("/dev/loop-control").exists();
    Finding {
        what: "loop",
        ok: there,
        found: if there { "/dev/loop-control is there" } else { "no /dev/loop-control" }.to_owned(),
        advice: "to mount an export over nbdfuse: modprobe loop",
    }
}

fn memlock() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    let enough = limit.is_none_or(|bytes| bytes >= 1 << 20);
    Finding {
        what: "memlock",
        ok: enough,
        found: match limit {
            None => "unlimited".to_owned(),
            Some(bytes) => format!("{} may be locked", crate::size::Size(bytes)),
        },
        advice: "keys could be swapped out: raise `ulimit -l` to 1 MiB or more",
    }
}

fn tools() -> Finding {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has = |tool: &&str| std::env::split_paths(&path).any(|dir| dir.join(tool).exists());
    let found: Vec<_> =
        ["nbdfuse", "nbd-client", "nbdinfo", "qemu-img", "fio"].into_iter().filter(has).collect();
    Finding {
        what: "clients",
        ok: !found.is_empty(),
        found: if found.is_empty() { "none found".to_owned() } else { found.join(" ") },
        advice: "apt-get install nbdfuse nbd-client libnbd-bin qemu-utils fio",
    }
}
