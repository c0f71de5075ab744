//! Bad data on two devices: every copy is looked at, and every file that shares it is named; the kernel's
//! own checker sees the same sectors.

use crate::kernel::{Mount, run, shell, try_run, workshop};
use crate::walk::load;
use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use varve_block::Sim;
use varve_block::dev::Mem;
use varve_fs::check::{CheckOptions, Checked, Code, Finding, Severity, check};

fn check_data(devices: Vec<Mem>) -> Checked {
    Sim::new(3).run(|rt| async move {
        let options = CheckOptions { data: true, rt: Some(&rt), ..CheckOptions::default() };
        check(devices, &options).await.expect("it opens")
    })
}

fn made(dir: &Path, data: &str) -> Vec<PathBuf> {
    let disks: Vec<PathBuf> = (1..=2).map(|n| dir.join(format!("disk{n}"))).collect();
    for disk in &disks {
        run("truncate", ["-s", "300M", &disk.to_string_lossy()]);
    }
    shell(dir, &format!("mkfs.btrfs -q -f -d {data} -m raid1 disk1 disk2"));
    let mount = Mount::several(&disks, "");
    // The marker lies in the third sector of a file that a clone, a snapshot and a hard link share, in
    // a compressed one, and in a part that was overwritten since. Each file is one write, and so one extent,
    // whatever another test syncs meanwhile.
    let work = "mark() { printf \"$1%.0s\" $(seq 1024); }; \
        file() { { head -c 8192 /dev/urandom; mark $1; head -c 8192 /dev/urandom; } > ../whole; \
            dd if=../whole of=$2 bs=20480 status=none; sync; }; \
        file SHAR shared; cp --reflink=always shared clone; ln shared link; mkdir sub; \
        file GONE gone; \
        dd if=/dev/urandom of=gone bs=4096 seek=2 count=1 conv=notrunc status=none; sync; \
        head -c 3000000 /dev/urandom > other; btrfs -q subvolume snapshot . snap; sync";
    shell(mount.path(), work);
    drop(mount);
    disks
}

/// Where a marker lies in an image.
fn find(disk: &Path, marker: &[u8; 4]) -> u64 {
    let bytes = std::fs::read(disk).expect("an image");
    let sector = marker.repeat(1024);
    let at = (0..bytes.len()).step_by(4096).find(|at| bytes[*at..].starts_with(&sector));
    at.expect("the marker is there") as u64
}

fn spoil(disk: &Path, at: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(disk).expect("an image");
    file.write_all_at(b"spoilt", at + 100).expect("a write");
}

/// mkfs leaves traces in the free space tree, which are warnings.
fn errors(checked: &Checked) -> Vec<&Finding> {
    checked.findings.iter().filter(|f| f.severity == Severity::Error).collect()
}

fn codes(checked: &Checked) -> Vec<(Code, Option<usize>, Option<u64>)> {
    let copy = |f: &Finding| f.copy.map(|copy| copy.mirror);
    let devid = |f: &Finding| f.copy.and_then(|c| c.place).map(|p| p.devid);
    checked.findings.iter().map(|f| (f.code, copy(f), devid(f))).collect()
}

#[test]
fn every_copy_is_looked_at_and_every_file_that_shares_it_is_named() {
    let test = "every_copy_is_looked_at_and_every_file_that_shares_it_is_named";
    let Some(dir) = workshop(test) else { return };
    let disks = made(dir.path(), "raid1");
    let load_all = || disks.iter().map(|disk| load(disk)).collect::<Vec<_>>();
    let clean = check_data(load_all());
    assert!(clean.is_clean(), "{:#?}", clean.findings);
    let verified = clean.data.expect("asked for").verified;
    let at = find(&disks[1], b"SHAR");
    spoil(&disks[1], at);
    let hurt = check_data(load_all());
    let [finding] = errors(&hurt)[..] else { panic!("{:#?}", hurt.findings) };
    assert_eq!(finding.code, Code::DataCsum);
    let place = finding.copy.and_then(|copy| copy.place).expect("a place");
    assert_eq!((place.devid, place.byte), (2, at));
    let paths: BTreeSet<&str> = finding.paths.iter().map(String::as_str).collect();
    let all = ["/shared", "/clone", "/link", "/snap/shared", "/snap/clone", "/snap/link"];
    assert_eq!(paths, all.into_iter().collect());
    assert!(finding.files.iter().all(|file| file.offset == 8192));
    assert_eq!(hurt.data.map(|data| (data.verified, data.bad)), Some((verified, 4096)));
    // A part of an extent that nobody reads still has its checksum.
    let at = find(&disks[0], b"GONE");
    spoil(&disks[0], at);
    let hurt = check_data(load_all());
    let gone = hurt.findings.iter().find(|f| f.message.contains("no file reads it any more"));
    let gone = gone.unwrap_or_else(|| panic!("{:#?}", hurt.findings));
    assert!(gone.paths.iter().any(|path| path == "/gone"), "{gone:#?}");
    // One device away: told, and the other copy is enough.
    let alone = check_data(vec![load(&disks[0])]);
    let told = codes(&alone);
    assert!(told.contains(&(Code::DeviceState, None, None)), "{told:?}");
    assert_eq!(told.iter().filter(|(code, ..)| *code == Code::DataCsum).count(), 1, "{told:?}");
    assert!(!told.iter().any(|(code, ..)| *code == Code::DataUnreadable), "{told:?}");
    assert!(reference_mismatches(&disks) >= 2, "the reference tool sees them, too");
}

/// The complaints of `btrfs check --check-data-csum`.
fn reference_mismatches(disks: &[PathBuf]) -> usize {
    let attach = |disk: &PathBuf| {
        let disk = disk.to_string_lossy();
        run("losetup", ["-f", "--show", &*disk]).trim().to_owned()
    };
    let devices: Vec<String> = disks.iter().map(attach).collect();
    run("btrfs", ["device", "scan"].into_iter().chain(devices.iter().map(String::as_str)));
    let out = try_run("btrfs", ["check", "--check-data-csum", &devices[0]]);
    for device in &devices {
        run("losetup", ["-d", device]);
    }
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success(), "{text}");
    text.lines().filter(|line| line.contains("csum")).count()
}

#[test]
fn a_striped_file_system_without_one_device_names_what_is_lost() {
    let test = "a_striped_file_system_without_one_device_names_what_is_lost";
    let Some(dir) = workshop(test) else { return };
    let disks = made(dir.path(), "raid0");
    let whole: Vec<Mem> = disks.iter().map(|disk| load(disk)).collect();
    let checked = check_data(whole.clone());
    assert!(checked.is_clean(), "{:#?}", checked.findings);
    let checked = check_data(vec![whole[0].clone()]);
    let lost = checked.findings.iter().filter(|f| f.code == Code::DataUnreadable);
    let paths: BTreeSet<String> = lost.flat_map(|f| f.paths.clone()).collect();
    assert!(paths.contains("/other") && paths.contains("/snap/other"), "{paths:?}");
    let bad = checked.data.expect("asked for").bad;
    assert!(bad > 1_000_000 && bad < 2_500_000, "about half: {bad}");
}
