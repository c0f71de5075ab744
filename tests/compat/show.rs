//! The kernel's own tools look at what `varve cache make` wrote, and we at what they write.

use std::process::Command;

use varve_tests::varve::{varve, varve_in};
use varve_tests::{disk, process, tool};

/// A field of `bcache-super-show`'s output.
#[track_caller]
fn field<'a>(shown: &'a str, name: &str) -> &'a str {
    let line = shown.lines().find(|line| line.split_whitespace().next() == Some(name));
    line.unwrap_or_else(|| panic!("no {name} in:\n{shown}"))
        .split_once(char::is_whitespace)
        .expect("a value")
        .1
        .trim()
}

#[test]
fn bcache_super_show_accepts_every_shape_we_make() {
    if !tool::have(&["bcache-super-show"]) {
        return;
    }
    for (bucket, block, buckets) in [
        ("64k", "4k", 544),
        ("64k", "512", 640),
        ("128k", "4k", 600),
        ("512k", "4k", 520),
        ("1M", "512", 513),
    ] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let dir = dir.path();
        let bucket_sectors: u64 = match bucket {
            "1M" => 2048,
            kib => 2 * kib.trim_end_matches('k').parse::<u64>().expect("a number of KiB"),
        };
        disk::sparse(&dir.join("hdd"), 64 << 20);
        disk::sparse(&dir.join("ssd"), buckets * bucket_sectors * 512);
        varve(
            dir,
            &format!("cache make --backing hdd --cache ssd --bucket {bucket} --block {block}"),
        )
        .ok();
        let show =
            |image: &str| process::run(Command::new("bcache-super-show").arg(dir.join(image))).ok();
        let (hdd, ssd) = (show("hdd"), show("ssd"));
        for shown in [&hdd, &ssd] {
            assert_eq!(field(shown, "sb.magic"), "ok");
            assert!(field(shown, "sb.first_sector").ends_with("[match]"), "{shown}");
            assert!(field(shown, "sb.csum").ends_with("[match]"), "{shown}");
            let block_sectors = if block == "4k" { "8" } else { "1" };
            assert_eq!(field(shown, "dev.sectors_per_block"), block_sectors);
        }
        assert!(field(&hdd, "sb.version").ends_with("[backing device]"), "{hdd}");
        assert!(field(&ssd, "sb.version").ends_with("[cache device]"), "{ssd}");
        assert_eq!(field(&hdd, "dev.data.first_sector"), "16");
        assert_eq!(field(&ssd, "dev.sectors_per_bucket"), bucket_sectors.to_string());
        assert_eq!(field(&ssd, "dev.cache.total_sectors"), (buckets * bucket_sectors).to_string());
        assert_eq!(field(&hdd, "cset.uuid"), field(&ssd, "cset.uuid"));
        assert_ne!(field(&hdd, "dev.uuid"), field(&ssd, "dev.uuid"));
    }
}

#[test]
fn cache_show_tells_what_bcache_super_show_tells() {
    if !tool::have(&["make-bcache", "bcache-super-show"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    disk::sparse(&dir.join("hdd"), 64 << 20);
    disk::sparse(&dir.join("ssd"), 300 << 20);
    // One device per call: given both, make-bcache 1.0.8 may trip over its own exclusive open.
    let set = "--cset-uuid=0a0b0c0d-1111-4222-8333-444455556666";
    for kind in ["-B", "-C"] {
        let image = if kind == "-B" { "hdd" } else { "ssd" };
        process::run(Command::new("make-bcache").arg(set).arg(kind).arg(dir.join(image))).ok();
    }
    for image in ["hdd", "ssd"] {
        let theirs = process::run(Command::new("bcache-super-show").arg(dir.join(image))).ok();
        let flag = if image == "hdd" { "--backing" } else { "--cache" };
        let ours = varve_in(dir, ["cache", "show", flag, image]).ok();
        for name in ["dev.uuid", "cset.uuid"] {
            assert!(ours.contains(field(&theirs, name)), "{name} is not in:\n{ours}\n{theirs}");
        }
    }
}
