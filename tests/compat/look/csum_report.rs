//! `varve fs csum-report` against what is known of the damage, and against every path there is.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use varve_tests::loop_mount::{self, LoopMount};
use varve_tests::{disk, process, tool, varve};

/// Two files of noise, shared and cut up in every way: hard links, reflinks, a range overwritten so that
/// the middle of an extent is nobody's, snapshots, a packed file.
const FILL: &str = r#"
cd "$1"
btrfs -q subvolume create vol; cd vol; mkdir d
head -c 262144 /dev/urandom > noise
ln noise d/link
cp --reflink=always noise d/clone
seq 100000 > packed
head -c 262144 /dev/urandom > cut
sync
btrfs -q subvolume snapshot -r . ../s1
btrfs -q subvolume snapshot -r . ../s2
head -c 131072 /dev/zero | tr '\0' z | dd of=cut bs=65536 seek=1 conv=notrunc status=none
head -c 262144 /dev/urandom > book; sync
head -c 131072 /dev/zero | tr '\0' z | dd of=book bs=65536 seek=1 conv=notrunc status=none
sync
"#;

/// The byte of an image where a sector of this content is.
#[track_caller]
fn find(image: &[u8], sector: &[u8]) -> u64 {
    let at = image.chunks(4096).position(|here| here == sector).expect("the sector on the disk");
    (at * 4096) as u64
}

fn report(image: &Path, args: &[&str], input: Option<&str>) -> Value {
    let mut command = Command::new(varve::binary());
    command.args(["fs", "csum-report", "--json"]).arg(image).args(args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("varve starts");
    let mut stdin = child.stdin.take().expect("its standard input");
    std::io::Write::write_all(&mut stdin, input.unwrap_or_default().as_bytes()).expect("a pipe");
    drop(stdin);
    let out = child.wait_with_output().expect("its end");
    assert_eq!(out.status.code(), Some(1), "something is found");
    serde_json::from_slice(&out.stdout).expect("JSON")
}

/// Path and byte of every loss that a place of the report names.
fn losses(place: &Value) -> BTreeSet<(String, u64)> {
    named(place, "files")
}

fn named(place: &Value, list: &str) -> BTreeSet<(String, u64)> {
    let files = place[list].as_array().expect("a list");
    files
        .iter()
        .flat_map(|file| {
            let offset = file["offset"].as_u64().expect("an offset");
            let paths = file["paths"].as_array().expect("paths").clone();
            paths.into_iter().map(move |path| (path.as_str().expect("text").to_owned(), offset))
        })
        .collect()
}

fn at(paths: &[&str], offset: u64) -> BTreeSet<(String, u64)> {
    paths.iter().map(|path| ((*path).to_owned(), offset)).collect()
}

#[test]
fn bad_sectors_are_traced_to_every_file_and_snapshot() {
    if !loop_mount::available() || !tool::have(&["seq", "dd"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let image = dir.path().join("disk.img");
    disk::sparse(&image, 256 << 20);
    process::run(Command::new("mkfs.btrfs").args(["-q", "-m", "single"]).arg(&image)).ok();
    let mounted = LoopMount::open(&image, "compress=no");
    let mut bash = Command::new("bash");
    process::run(bash.args(["-euc", FILL, "fill"]).arg(mounted.path())).ok();
    let read = |path: &str| std::fs::read(mounted.path().join(path)).expect("a file");
    let (noise, cut) = (read("vol/noise"), read("s1/cut"));
    let ino = std::os::unix::fs::MetadataExt::ino(
        &std::fs::metadata(mounted.path().join("vol/noise")).expect("its status"),
    );
    mounted.unmount();

    // Whole: nothing to report.
    let whole = varve::varve(dir.path(), "fs csum-report disk.img --scan").ok();
    assert!(whole.contains("0 bad sectors"), "{whole}");

    let bytes = std::fs::read(&image).expect("the image");
    let sector = |file: &[u8], n: usize| find(&bytes, &file[n * 4096..(n + 1) * 4096]);
    let (in_noise, in_cut) = (sector(&noise, 3), sector(&cut, 20));
    disk::damage(&image, in_noise + 100, b"damage");
    disk::damage(&image, in_cut + 100, b"damage");

    let found = report(&image, &["--scan"], None);
    let places = found["places"].as_array().expect("places");
    assert_eq!(places.len(), 2, "{found:#}");
    let with = |physical: u64| {
        let here = |place: &&Value| place["copies"][0]["physical"] == physical;
        places.iter().find(here).unwrap_or_else(|| panic!("no place at {physical}: {found:#}"))
    };
    let everywhere = [
        "vol/noise",
        "vol/d/link",
        "vol/d/clone",
        "s1/noise",
        "s1/d/link",
        "s1/d/clone",
        "s2/noise",
        "s2/d/link",
        "s2/d/clone",
    ];
    assert_eq!(losses(with(in_noise)), at(&everywhere, 3 * 4096));
    // The file itself was overwritten there; its snapshots were not.
    assert_eq!(losses(with(in_cut)), at(&["s1/cut", "s2/cut"], 20 * 4096));
    // It loses nothing, but while it is there the bad sector stays, without the snapshots too.
    assert_eq!(named(with(in_cut), "holders"), at(&["vol/cut"], 0));
    assert_eq!(named(with(in_noise), "holders"), at(&[], 0));

    // The same from what the kernel says, in an old and in a new kernel's words.
    let logical = with(in_noise)["logical"].as_u64().expect("an address");
    for message in [
        format!("btrfs csum failed ino {ino} off 12288 csum 4151547339 private 259191981\n"),
        format!(
            "BTRFS warning (device loop0): csum failed root 256 ino {ino} off 12288 csum 0x1 expected csum 0x2 mirror 1\n"
        ),
        format!(
            "BTRFS warning (device sdb): checksum error at logical {logical} on dev /dev/sdb, physical 1, root 5, inode 9, offset 0\n"
        ),
    ] {
        let told = report(&image, &[], Some(&message));
        assert_eq!(told["places"].as_array().map(Vec::len), Some(1), "{message}{told:#}");
        assert_eq!(losses(&told["places"][0]), at(&everywhere, 3 * 4096), "{message}");
    }
}

#[test]
fn the_part_of_an_extent_that_nobody_uses_is_called_so() {
    if !loop_mount::available() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let image = dir.path().join("disk.img");
    disk::sparse(&image, 256 << 20);
    process::run(Command::new("mkfs.btrfs").args(["-q", "-m", "single"]).arg(&image)).ok();
    let mounted = LoopMount::open(&image, "compress=no");
    let book = mounted.path().join("book");
    std::fs::write(&book, disk::noise(7, 262_144)).expect("a file");
    process::run(Command::new("sync").arg("-f").arg(&book)).ok();
    let file = std::fs::File::options().write(true).open(&book).expect("the file");
    std::os::unix::fs::FileExt::write_all_at(&file, &[b'z'; 131_072], 65_536).expect("a write");
    file.sync_all().expect("on disk");
    drop(file);
    mounted.unmount();
    let bytes = std::fs::read(&image).expect("the image");
    let lost = find(&bytes, &disk::noise(7, 262_144)[20 * 4096..21 * 4096]);
    disk::damage(&image, lost, b"damage");
    let found = report(&image, &["--scan"], None);
    let places = found["places"].as_array().expect("places");
    assert_eq!(places.len(), 1, "{found:#}");
    assert_eq!(places[0]["kind"], "a part of an extent that no file uses");
    assert_eq!(losses(&places[0]), at(&[], 0));
    assert_eq!(named(&places[0], "holders"), at(&["book"], 0), "who keeps it allocated");
    assert_eq!(found["paths"].as_array().map(Vec::len), Some(0), "no file is damaged");
}
