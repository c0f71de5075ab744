//! One fio job against one socket, or one file.

use anyhow::{Context, bail};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// A load: what DESIGN's table has as a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) name: &'static str,
    rw: &'static str,
    block: &'static str,
    depth: u32,
    pub(crate) writes: bool,
    pub(crate) large: bool,
}

pub(crate) const LOADS: [Load; 5] = [
    Load::new("randread 4k qd32", "randread", "4k", 32),
    Load::new("randwrite 4k qd32", "randwrite", "4k", 32),
    Load::new("randread 4k qd1", "randread", "4k", 1),
    Load::new("read 1M qd8", "read", "1M", 8),
    Load::new("write 1M qd8", "write", "1M", 8),
];

impl Load {
    const fn new(name: &'static str, rw: &'static str, block: &'static str, depth: u32) -> Load {
        let rwb = rw.as_bytes();
        let writes = rwb[rwb.len() - 1] == b'e';
        Load {
            name,
            rw,
            block,
            depth,
            writes,
            large: block.len() == 2 && block.as_bytes()[1] == b'M',
        }
    }
}

/// What fio and the kernel's accounting said of one job.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) iops: f64,
    pub(crate) bytes_per_s: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    /// Server CPU time per operation, user and system.
    pub(crate) cpu_us: f64,
}

/// What fio reads and writes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    /// A server's Unix socket.
    Socket(&'a Path),
    /// A file, without the page cache and without a server: what the medium gives.
    Direct(&'a Path),
}

impl Target<'_> {
    fn args(self) -> Vec<String> {
        match self {
            Target::Socket(path) => vec![
                "--ioengine=nbd".to_owned(),
                format!("--uri=nbd+unix:///?socket={}", path.display()),
            ],
            Target::Direct(path) => vec![
                "--ioengine=io_uring".to_owned(),
                "--direct=1".to_owned(),
                format!("--filename={}", path.display()),
            ],
        }
    }
}

/// Fills the whole export with data that does not compress, so that reads are of something.
pub(crate) fn fill(target: Target<'_>, mib: u64) -> anyhow::Result<()> {
    fio(target, mib, &["--rw=write", "--bs=1M", "--iodepth=8", "--end_fsync=1"]).map(|_| ())
}

/// Runs one load for `seconds` after a second of warm-up.
pub(crate) fn run(
    target: Target<'_>,
    mib: u64,
    load: Load,
    seconds: u32,
    cpu_s: impl Fn() -> anyhow::Result<f64>,
) -> anyhow::Result<Figures> {
    let timed = [
        format!("--rw={}", load.rw),
        format!("--bs={}", load.block),
        format!("--iodepth={}", load.depth),
        "--time_based=1".to_owned(),
        format!("--runtime={seconds}"),
    ];
    let before = cpu_s()?;
    let out = fio(target, mib, &timed.iter().map(String::as_str).collect::<Vec<_>>())?;
    let cpu = cpu_s()? - before;
    let side = &out["jobs"][0][if load.writes { "write" } else { "read" }];
    let number = |v: &Value| v.as_f64().unwrap_or(0.0);
    let percentile = |p: &str| number(&side["clat_ns"]["percentile"][p]) / 1000.0;
    let ops = number(&side["total_ios"]);
    if ops == 0.0 {
        bail!("fio did nothing in {}", load.name);
    }
    Ok(Figures {
        iops: number(&side["iops"]),
        bytes_per_s: number(&side["bw_bytes"]),
        p50_us: percentile("50.000000"),
        p99_us: percentile("99.000000"),
        p999_us: percentile("99.900000"),
        cpu_us: cpu * 1e6 / ops,
    })
}

fn fio(target: Target<'_>, mib: u64, args: &[&str]) -> anyhow::Result<Value> {
    let out = Command::new("fio")
        .args(["--name=bench", "--output-format=json", "--thread=1"])
        .args(["--randrepeat=0", "--norandommap=1", "--refill_buffers=0"])
        .args(target.args())
        .arg(format!("--size={mib}M"))
        .args(args)
        .output()
        .context("cannot start fio")?;
    if !out.status.success() {
        bail!("fio failed: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    let text = String::from_utf8_lossy(&out.stdout);
    let json = text.find('{').map_or("", |at| &text[at..]);
    serde_json::from_str(json).context("fio printed no JSON")
}
