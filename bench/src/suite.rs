//! Which servers, over what, under which loads.

use crate::fio::{self, LOADS, Target};
use crate::server::Server;
use crate::table::{self, Row};
use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Where the images go: tmpfs by default; name a folder on the disk to measure that
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
    /// Seconds per load
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Size of the exports
    #[arg(long, default_value_t = 512)]
    mib: u64,
    /// Only classes or servers whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Only loads whose name contains this
    #[arg(long, default_value = "")]
    load: String,
    /// Also write the figures there, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// A server to measure: how it is named, and how it is started.
struct Candidate {
    class: &'static str,
    name: &'static str,
    ours: bool,
    /// None: no server, fio on the raw file.
    command: Option<StartServer>,
}

type StartServer = Box<dyn Fn(&Place) -> Command>;

impl Candidate {
    fn takes_part(&self, select: Select) -> bool {
        let crypt = self.class.contains("LUKS");
        match select {
            Select::Nbd => self.class != LUKS2,
            Select::Crypt => crypt || (self.class == "file" && self.ours),
        }
    }
}

/// The name of the row that no server stands behind.
pub(crate) const MEDIUM: &str = "fio O_DIRECT";

/// The class of our own volume with large sectors, which no rival opens.
pub(crate) const LUKS2: &str = "file + LUKS2 (4096)";

/// Files of one run.
struct Place {
    dir: PathBuf,
    socket: PathBuf,
    varve: PathBuf,
    mib: u64,
    tmpfs: bool,
}

impl Place {
    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Options {
    pub(crate) fn json(&self) -> Option<&Path> {
        self.json.as_deref()
    }
}

/// Which candidates take part.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Select {
    Nbd,
    /// Those that encrypt, and the same file without encryption to compare.
    Crypt,
}

pub(crate) fn nbd(varve: &Path, options: &Options) -> anyhow::Result<()> {
    let rows = run(varve, options, Select::Nbd)?;
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_string_pretty(&rows)?)?;
    }
    Ok(())
}

/// Measures and prints; the figures come back as JSON.
pub(crate) fn run(varve: &Path, options: &Options, select: Select) -> anyhow::Result<Value> {
    let dir = options.dir.join(format!("varve-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let tmpfs = rustix::fs::statfs(&dir)?.f_type == 0x0102_1994;
    let varve = varve.canonicalize().context("no varve binary; use bench/run")?;
    let socket = dir.join("sock");
    let place = Place { socket, varve, mib: options.mib, tmpfs, dir };
    let outcome = measure(&place, options, select);
    std::fs::remove_dir_all(&place.dir)?;
    outcome
}

fn measure(place: &Place, options: &Options, select: Select) -> anyhow::Result<Value> {
    prepare(place)?;
    let uname = rustix::system::uname();
    println!(
        "kernel {}, {} cores, images on {} ({}), {} MiB, {} s per load",
        uname.release().to_string_lossy(),
        std::thread::available_parallelism().map_or(1, usize::from),
        options.dir.display(),
        if place.tmpfs { "tmpfs" } else { "disk" },
        place.mib,
        options.seconds,
    );
    let mut rows = Vec::new();
    for candidate in candidates() {
        let shown = format!("{} {}", candidate.class, candidate.name);
        if !shown.contains(&options.only) || !candidate.takes_part(select) {
            continue;
        }
        eprintln!("measuring {shown}");
        rows.push(measure_one(place, options, &candidate));
    }
    print!("{}", table::text(&rows));
    Ok(table::json(&rows))
}

fn measure_one(place: &Place, options: &Options, candidate: &Candidate) -> Row {
    let mut row = Row {
        class: candidate.class,
        server: candidate.name.to_owned(),
        ours: candidate.ours,
        figures: Vec::new(),
    };
    let loads = LOADS.into_iter().filter(|l| l.name.contains(&options.load));
    let started =
        candidate.command.as_ref().map(|command| Server::start(command(place), &place.socket));
    let server = match started.transpose() {
        Ok(server) => server,
        Err(e) => {
            row.figures = loads.map(|l| (l, Err(format!("{e:#}")))).collect();
            return row;
        }
    };
    let raw = place.file("raw");
    let target = match server {
        Some(_) => Target::Socket(&place.socket),
        None => Target::Direct(&raw),
    };
    let cpu_s = || server.as_ref().map_or(Ok(0.0), Server::cpu_s);
    for load in loads {
        // Each load meets the same disk: what the one before left behind (an index in small pieces) is
        // not what it measures.
        let figures = fio::fill(target, place.mib)
            .and_then(|()| fio::run(target, place.mib, load, options.seconds, cpu_s));
        row.figures.push((load, figures.map_err(|e| format!("{e:#}"))));
    }
    row
}

/// Makes the images: a raw file, a LUKS1 file (the one version all rivals open), a cached LUKS2 set.
fn prepare(place: &Place) -> anyhow::Result<()> {
    std::fs::write(place.file("key"), b"benchmark key")?;
    let make = |name: &str, mib: u64| -> anyhow::Result<()> {
        Ok(File::create(place.file(name))?.set_len(mib << 20)?)
    };
    make("raw", place.mib)?;
    make("luks", place.mib + 4)?;
    make("luks2", place.mib + 16)?;
    make("hdd", place.mib + 32)?;
    make("ssd", (place.mib * 2).max(1024))?;
    let run = |args: &[&str]| -> anyhow::Result<()> {
        let out = Command::new(&place.varve).current_dir(&place.dir).args(args).output()?;
        if !out.status.success() {
            bail!("varve {args:?}: {}", String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(())
    };
    let quick = ["--key-file", "key", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
    run(&[&["crypt", "format", "luks", "--type", "luks1"], &quick[..]].concat())?;
    run(&[&["crypt", "format", "luks2", "--sector-size", "4096"], &quick[..]].concat())?;
    run(&["cache", "make", "--backing", "hdd", "--cache", "ssd"])?;
    run(&[
        &["crypt", "format", "--backing", "hdd", "--cache", "ssd", "--cache-mode", "writeback"],
        &quick[..],
        &["--force"],
    ]
    .concat())
}

fn nbdkit(p: &Place) -> Command {
    let mut c = Command::new("nbdkit");
    c.args(["-f", "-U"]).arg(&p.socket);
    c
}

fn qemu_nbd(p: &Place) -> Command {
    let mut c = Command::new("qemu-nbd");
    c.arg("-t").args(["-e", "16", "-k"]).arg(&p.socket);
    if p.tmpfs {
        c.arg("--cache=writeback");
    } else {
        c.args(["--cache=none", "--aio=io_uring"]);
    }
    c
}

fn serve(p: &Place, stack: &[&str]) -> Command {
    let mut c = Command::new(&p.varve);
    c.current_dir(&p.dir).arg("serve").args(stack).arg("--quiet");
    c.arg("--listen").arg(format!("unix:{}", p.socket.display()));
    c
}

fn candidates() -> Vec<Candidate> {
    let rival = |class, name, command: fn(&Place) -> Command| Candidate {
        class,
        name,
        ours: false,
        command: Some(Box::new(command)),
    };
    let own = |class, name, command: fn(&Place) -> Command| Candidate {
        class,
        name,
        ours: true,
        command: Some(Box::new(command)),
    };
    vec![
        rival("memory", "nbdkit null", |p| with(nbdkit(p), &["null", &format!("{}M", p.mib)])),
        rival("memory", "nbdkit memory", |p| with(nbdkit(p), &["memory", &format!("{}M", p.mib)])),
        own("memory", "varve (RAM)", |p| {
            let me = std::env::current_exe().unwrap_or_else(|_| "varve-bench".into());
            let mut c = Command::new(me);
            c.arg("ram").arg(&p.socket).arg(p.mib.to_string());
            c
        }),
        Candidate { class: "file", name: MEDIUM, ours: false, command: None },
        rival("file", "nbdkit file", |p| with(nbdkit(p), &["file", &path(p, "raw")])),
        rival("file", "qemu-nbd raw", |p| with(qemu_nbd(p), &["-f", "raw", &path(p, "raw")])),
        own("file", "varve", |p| serve(p, &["--backing", "raw"])),
        rival("file + LUKS", "nbdkit luks", |p| {
            let key = format!("passphrase=+{}", path(p, "key"));
            with(nbdkit(p), &["--filter=luks", "file", &path(p, "luks"), &key])
        }),
        rival("file + LUKS", "qemu-nbd luks", |p| {
            let mut c = qemu_nbd(p);
            c.arg("--object").arg(format!("secret,id=k,file={}", path(p, "key")));
            c.arg("--image-opts").arg(format!(
                "driver=luks,key-secret=k,file.driver=file,file.filename={}",
                path(p, "luks")
            ));
            c
        }),
        own("file + LUKS", "varve", |p| serve(p, &["--backing", "luks", "--key-file", "key"])),
        own(LUKS2, "varve", |p| serve(p, &["--backing", "luks2", "--key-file", "key"])),
        own("full stack", "varve", |p| {
            serve(p, &["--backing", "hdd", "--cache", "ssd", "--key-file", "key"])
        }),
    ]
}

fn with(mut c: Command, args: &[&str]) -> Command {
    c.args(args);
    c
}

fn path(p: &Place, name: &str) -> String {
    p.file(name).display().to_string()
}
