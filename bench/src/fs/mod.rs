//! The file system: check, check of data, export, and reading files, beside btrfs-progs and the kernel.
//!
//! One image on tmpfs, made and filled by the kernel. Each row is run several times, the candidates of a
//! load in turn, and the fastest run counts: what disturbs only ever adds time. Page caches begin empty:
//! everything is opened or mounted anew for each run.

mod disk;
mod measure;
mod read;
mod report;

pub(crate) use read::by_library;

use anyhow::{Context, bail};
use clap::Args;
use disk::{Disk, Mounted};
use measure::{Run, run};
use report::Row;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Where the image and the copies go: tmpfs by default
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
    /// Small files, besides 64 of 4 MiB
    #[arg(long, default_value_t = 40_960)]
    files: u32,
    /// Runs of each row
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Only loads whose name contains this
    #[arg(long, default_value = "")]
    load: String,
    /// Also write the figures there, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Also draw the ratios there, as SVG
    #[arg(long)]
    plot: Option<PathBuf>,
}

/// One way to do what a load is.
struct Candidate {
    load: &'static str,
    name: &'static str,
    ours: bool,
    /// Does it once.
    work: fn(&Place) -> anyhow::Result<Run>,
}

/// Where everything is.
struct Place {
    varve: PathBuf,
    me: PathBuf,
    disk: Disk,
    /// What an export writes, and where a file system is mounted.
    out: PathBuf,
    mount: PathBuf,
}

pub(crate) fn bench(varve: &Path, options: &Options) -> anyhow::Result<()> {
    let varve = varve.canonicalize().context("no varve binary; use bench/run")?;
    let dir = options.dir.join(format!("varve-bench-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("mount"))?;
    let done = in_folder(&dir, varve, options);
    std::fs::remove_dir_all(&dir)?;
    done
}

fn in_folder(dir: &Path, varve: PathBuf, options: &Options) -> anyhow::Result<()> {
    let (out, mount) = (dir.join("out"), dir.join("mount"));
    eprintln!("making a file system of {} files", options.files + disk::LARGE);
    let disk = Disk::make(&dir.join("disk.img"), &mount, options.files)?;
    let uname = rustix::system::uname();
    println!(
        "kernel {}, {} cores, {} files of {} MB on {}, the best of {} runs",
        uname.release().to_string_lossy(),
        std::thread::available_parallelism().map_or(1, usize::from),
        disk.files,
        disk.bytes / 1_000_000,
        options.dir.display(),
        options.rounds,
    );
    let place = Place { varve, me: std::env::current_exe()?, disk, out, mount };
    let candidates: Vec<_> =
        candidates().into_iter().filter(|c| c.load.contains(&options.load)).collect();
    let mut rows: Vec<Row> = candidates.iter().map(Row::of).collect();
    for round in 1..=options.rounds {
        for (candidate, row) in candidates.iter().zip(&mut rows) {
            eprintln!("round {round}: {} by {}", candidate.load, candidate.name);
            row.add((candidate.work)(&place).map_err(|error| format!("{error:#}")));
        }
    }
    print!("{}", report::text(&rows));
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_string_pretty(&report::json(&rows))?)?;
    }
    if let Some(path) = &options.plot {
        std::fs::write(path, report::plot(&rows))?;
    }
    Ok(())
}

fn candidates() -> Vec<Candidate> {
    let of = |load, name, work: fn(&Place) -> anyhow::Result<Run>| Candidate {
        load,
        name,
        ours: name.starts_with("varve"),
        work,
    };
    vec![
        of("check", "btrfs check", |p| run(Command::new("btrfs").arg("check").arg(&p.disk.image))),
        of("check", "varve", |p| run(p.varve(&["fs", "check"]).arg(&p.disk.image))),
        of("check with data", "btrfs check", |p| {
            run(Command::new("btrfs").args(["check", "--check-data-csum"]).arg(&p.disk.image))
        }),
        of("check with data", "varve", |p| {
            run(p.varve(&["fs", "check", "--data"]).arg(&p.disk.image))
        }),
        of("export", "btrfs restore", |p| {
            let mut restore = Command::new("btrfs");
            restore.args(["restore", "-m", "-S", "-x"]).arg(&p.disk.image);
            exported(p, restore)
        }),
        of("export", "varve", |p| {
            let mut export = p.varve(&["fs", "export"]);
            export.arg(&p.disk.image);
            exported(p, export)
        }),
        of("read all files", "kernel", |p| mounted(p, by_kernel, read::all)),
        of("read all files", "varve, FUSE", |p| mounted(p, by_fuse, read::all)),
        of("read all files", "varve, library", |p| library(p, "all")),
        of("read 1 MiB at a time", "kernel", |p| mounted(p, by_kernel, read::large)),
        of("read 1 MiB at a time", "varve, FUSE", |p| mounted(p, by_fuse, read::large)),
        of("read 1 MiB at a time", "varve, library", |p| library(p, "large")),
        of("read 4 KiB at random", "kernel", |p| mounted(p, by_kernel, read::random)),
        of("read 4 KiB at random", "varve, FUSE", |p| mounted(p, by_fuse, read::random)),
        of("read 4 KiB at random", "varve, library", |p| library(p, "random")),
    ]
}

impl Place {
    fn varve(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.varve);
        command.args(words);
        command
    }
}

/// Into an empty folder, and what came is what there is.
fn exported(place: &Place, mut command: Command) -> anyhow::Result<Run> {
    if place.out.exists() {
        std::fs::remove_dir_all(&place.out)?;
    }
    std::fs::create_dir(&place.out)?;
    let run = run(command.arg(&place.out))?;
    let came = disk::count(&place.out)?;
    std::fs::remove_dir_all(&place.out)?;
    if came != (place.disk.files, place.disk.bytes) {
        bail!("{came:?} files and bytes came, of {:?}", (place.disk.files, place.disk.bytes));
    }
    Ok(run)
}

fn by_kernel(place: &Place) -> anyhow::Result<Mounted> {
    Mounted::by_kernel(&place.disk.image, &place.mount, "loop,ro")
}

fn by_fuse(place: &Place) -> anyhow::Result<Mounted> {
    Mounted::by(
        place.varve(&["fs", "mount"]).arg(&place.disk.image).arg(&place.mount),
        &place.mount,
    )
}

/// The time of reading alone; memory of the process behind the mount.
fn mounted(
    place: &Place,
    mount: fn(&Place) -> anyhow::Result<Mounted>,
    read: fn(&Path, &Disk) -> anyhow::Result<u64>,
) -> anyhow::Result<Run> {
    let mounted = mount(place)?;
    let (done, seconds) = measure::timed(|| read(&place.mount, &place.disk));
    let peak_kib = mounted.peak_kib();
    mounted.end()?;
    done?;
    Ok(Run { seconds, peak_kib })
}

/// This program once more, so that its memory is that of the library.
fn library(place: &Place, what: &str) -> anyhow::Result<Run> {
    run(Command::new(&place.me)
        .args(["library", what])
        .arg(&place.disk.image)
        .arg(place.disk.files.to_string()))
}
