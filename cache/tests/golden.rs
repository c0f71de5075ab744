//! Disks that Linux 6.12 wrote before a power cut: what we read through the cache is byte for byte
//! what the kernel served, and neither image is touched.
//!
//! Pairs are folders of `tests/images`, and of the folder that `VARVE_GOLDEN` names: `hdd.img` and
//! `ssd.img`, perhaps with `.zst`, and `expect.txt`, whose line `device` is the sha256 of
//! `/dev/bcache0` as the kernel saw it.

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use varve_block::dev::Mem;
use varve_block::{BlockDevice, BufPool, Sector, Sectors, Sim};
use varve_cache::check::{CheckOptions, check};
use varve_cache::show::show;
use varve_cache::{CacheView, format::BackingState};

/// The image `name` in `dir`, packed or not.
fn image(dir: &Path, name: &str) -> Option<Vec<u8>> {
    if let Ok(bytes) = fs::read(dir.join(name)) {
        return Some(bytes);
    }
    let packed = fs::File::open(dir.join(format!("{name}.zst"))).ok()?;
    let mut bytes = Vec::new();
    let mut unpacked = zstd::Decoder::new(packed).expect("an image packed with zstd");
    unpacked.read_to_end(&mut bytes).expect("a whole image");
    Some(bytes)
}

/// Folders with a pair of disks.
fn golden() -> Vec<PathBuf> {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/images");
    let mut found = Vec::new();
    for dir in std::env::var_os("VARVE_GOLDEN").map(PathBuf::from).into_iter().chain([ours]) {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        found.extend(entries.map(|entry| entry.expect("a readable folder").path()).filter(
            |path| {
                let pair = ["hdd.img", "ssd.img"];
                let there = |name: &&str| {
                    path.join(name).exists() || path.join(format!("{name}.zst")).exists()
                };
                pair.iter().all(there) && path.join("expect.txt").is_file()
            },
        ));
    }
    if found.is_empty() {
        eprintln!("skipped: there are no pairs of disks written by the kernel");
    }
    found.sort();
    found
}

/// A device with the image; what is zero there stays a hole.
fn load(bytes: &[u8]) -> Mem {
    let mem = Mem::new(Sectors(bytes.len() as u64 / 512));
    let mut at = 0;
    for part in bytes.chunks(1 << 16) {
        if part.iter().any(|byte| *byte != 0) {
            mem.poke(at, part);
        }
        at += part.len() as u64;
    }
    mem
}

/// The sum of what a device of RAM holds now.
fn sum(mem: &Mem) -> String {
    hex(Sha256::digest(mem.to_vec()))
}

fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

async fn sum_of(dev: &impl BlockDevice) -> String {
    let pool = BufPool::new(4 << 20);
    let len = dev.geometry().len;
    let mut sha = Sha256::new();
    let mut at = 0;
    while at < len.0 {
        let part = Sectors((len.0 - at).min(2048));
        let buf = dev.read(Sector(at), pool.take(part).await).await.expect("a readable device");
        sha.update(&buf[..]);
        at += part.0;
    }
    hex(sha.finalize())
}

#[test]
fn the_view_is_what_the_kernel_served() {
    for dir in golden() {
        let expect = fs::read_to_string(dir.join("expect.txt")).unwrap();
        let want = expect.lines().find_map(|line| line.strip_prefix("device ")).unwrap();
        let want = want.split_whitespace().next().unwrap().to_owned();
        let [hdd, ssd] = ["hdd.img", "ssd.img"].map(|name| load(&image(&dir, name).unwrap()));
        let before = [sum(&hdd), sum(&ssd)];
        let devices = (hdd.clone(), ssd.clone());
        let seen = Sim::new(1).run(move |_| async move {
            let view = CacheView::open(devices.1, devices.0).await.expect("a golden set opens");
            eprintln!("{:?} {} extents", view.seen(), view.cached_extents().count());
            assert!(view.cached() && view.lost_extents().is_empty());
            sum_of(&view).await
        });
        assert_eq!(seen, want, "{}", dir.display());
        assert_eq!([sum(&hdd), sum(&ssd)], before, "reading has changed an image");
    }
}

/// What a kernel left behind at a power cut is a sound set: the checker must not cry wolf.
#[test]
fn the_checker_is_silent_on_what_the_kernel_wrote() {
    for dir in golden() {
        let expect = fs::read_to_string(dir.join("expect.txt")).unwrap();
        let dirty = expect.lines().next() == Some("dirty");
        let [hdd, ssd] = ["hdd.img", "ssd.img"].map(|name| load(&image(&dir, name).unwrap()));
        let before = [sum(&hdd), sum(&ssd)];
        let devices = (hdd.clone(), ssd.clone());
        let (report, shown) = Sim::new(1).run(move |_| async move {
            let (hdd, ssd) = devices;
            let report = check(Some(&ssd), Some(&hdd), CheckOptions { data: true }).await;
            (report, show(Some(&ssd), Some(&hdd)).await.unwrap())
        });
        // A write-through write that the cut interrupted is on one device and not on the other: the
        // comparison of clean data (54) may say so, and nothing else may.
        let wolf = report.findings.iter().filter(|finding| finding.row != 54);
        let lines: Vec<String> = wolf.take(20).map(ToString::to_string).collect();
        let differing = report.findings.len();
        assert!(differing <= 2, "{}: {differing} clean extents differ", dir.display());
        assert!(lines.is_empty(), "{}: {lines:#?}", dir.display());
        let state = report.backing.unwrap().state();
        assert_eq!(state == BackingState::Dirty, dirty);
        let content = report.content.unwrap();
        let volume = &content.volumes[0];
        assert_eq!(volume.dirty_sectors > 0, dirty, "{volume:?}");
        assert!(volume.cached_sectors > 0 && volume.lost_sectors == 0);
        let shown = shown.content.unwrap().unwrap();
        assert_eq!(shown.volumes, content.volumes);
        assert_eq!(shown.buckets, content.buckets);
        assert_eq!([sum(&hdd), sum(&ssd)], before, "checking has changed an image");
    }
}
