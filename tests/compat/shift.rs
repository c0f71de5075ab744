//! Re-encryption that moves the payload, in turns with `cryptsetup`: encryption with the header on the disk,
//! and decryption that takes it away. All of it on plain files.

use std::path::Path;
use std::process::Command;

use varve_tests::client::{Server, Stack};
use varve_tests::varve::varve;
use varve_tests::{disk, process, tool};

use crate::reencrypt::{COST, OFFLINE, cryptsetup, fill, is_shown, kill_each};

/// A payload of two and a half shifts.
const PAYLOAD: usize = 10 << 20;
const SHIFT: usize = 4 << 20;

/// One operation, as both programs are told it.
struct Job {
    /// The first call, of either; the key and the files come behind it.
    begin: &'static str,
    /// Behind `--resume-only`.
    resume: &'static str,
    /// Files that the operation changes.
    files: &'static [&'static str],
    /// File with the header, to see how far it is.
    header: &'static str,
}

const ENCRYPT: Job = Job {
    begin: "--encrypt --reduce-device-size 8M",
    resume: "",
    files: &["disk.img"],
    header: "disk.img",
};
const DECRYPT_BY_CHECKSUMS: Job =
    decrypt("--decrypt --header head.img --resilience datashift-checksum");
const DECRYPT_BY_JOURNAL: Job =
    decrypt("--decrypt --header head.img --resilience datashift-journal");
/// cryptsetup 2.6 wants room in the journal for the part that moves first, which is as long as a shift, or as its
/// `--hotzone-size`.
const THEIR_DECRYPT_BY_JOURNAL: Job =
    decrypt("--decrypt --header head.img --resilience datashift-journal --hotzone-size 1M");
const THEIRS: [Job; 3] = [ENCRYPT, DECRYPT_BY_CHECKSUMS, THEIR_DECRYPT_BY_JOURNAL];
const OURS: [Job; 3] = [ENCRYPT, DECRYPT_BY_CHECKSUMS, DECRYPT_BY_JOURNAL];

const fn decrypt(begin: &'static str) -> Job {
    Job { begin, resume: "--header head.img", files: &["disk.img", "head.img"], header: "head.img" }
}

impl Job {
    /// The disk before it, in `before.img`, and the plain data that it holds.
    fn folder(&self) -> (tempfile::TempDir, Vec<u8>) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let at = dir.path();
        std::fs::write(at.join("key"), b"one key").expect("a key");
        let data = disk::noise(u64::from(self.encrypts()), PAYLOAD);
        if self.encrypts() {
            let mut image = data.clone();
            image.resize(PAYLOAD + 2 * SHIFT, 0);
            std::fs::write(at.join("before.img"), image).expect("a disk");
            return (dir, data);
        }
        disk::sparse(&at.join("before.img"), (SHIFT + PAYLOAD) as u64);
        let how = format!("luksFormat -q --type luks2 {COST} --offset 8192 --sector-size 512");
        cryptsetup(at, &format!("{how} --key-file key before.img")).ok();
        fill(at, &data);
        (dir, data)
    }

    fn encrypts(&self) -> bool {
        self.files.len() == 1
    }

    fn reset(&self, dir: &Path) {
        for file in self.files {
            let _ = std::fs::remove_file(dir.join(file));
        }
        std::fs::copy(dir.join("before.img"), dir.join("disk.img")).expect("a copy");
    }

    fn is_under_way(&self, dir: &Path) -> bool {
        let dump = varve(dir, &format!("crypt dump --json {}", self.header));
        dump.code == Some(0) && dump.ok().contains("online-reencrypt-v")
    }

    fn stack(&self) -> Stack {
        let stack = Stack::backing("disk.img");
        if self.encrypts() { stack } else { stack.with("--header", "head.img") }
    }

    /// The header is an ordinary one: it came to its end before the kill.
    fn is_done(&self, dir: &Path) -> bool {
        let dump = varve(dir, &format!("crypt dump --json {}", self.header));
        dump.code == Some(0) && (self.encrypts() || dump.ok().contains("linear"))
    }

    fn is_hot(&self, dir: &Path) -> bool {
        varve(dir, &format!("crypt dump --json {}", self.header)).ok().contains("in-reencryption")
    }

    /// The data are there, and the header is done.
    #[track_caller]
    fn is_whole(&self, dir: &Path, data: &[u8], case: &str) {
        let dump = cryptsetup(dir, &format!("luksDump {}", self.header)).ok();
        assert!(!dump.contains("reencrypt"), "{case}: {dump}");
        if !self.encrypts() {
            let disk = std::fs::read(dir.join("disk.img")).expect("the disk");
            assert!(disk[..PAYLOAD] == *data, "{case}");
            return;
        }
        let server = Server::start(dir, &Stack::backing("disk.img").with("--key-file", "key"));
        let mut nbd = server.connect();
        for (n, piece) in data.chunks(1 << 20).enumerate() {
            let len = u32::try_from(piece.len()).expect("a piece");
            let read = nbd.read((n << 20) as u64, len).expect("the server stays").expect("a read");
            assert!(read == piece, "{case}: piece {n} differs");
        }
        drop(nbd);
        server.stop();
        cryptsetup(dir, "open --test-passphrase --key-file key disk.img").ok();
    }

    fn ours(&self) -> String {
        let line = "crypt reencrypt disk.img --key-file key --hotzone-size 32k";
        format!("{line} {COST} {}", self.begin)
    }
}

#[test]
fn what_cryptsetup_was_killed_in_we_finish_when_data_move() {
    if !tool::have(&["cryptsetup", "strace"]) {
        return;
    }
    for job in THEIRS {
        let (dir, data) = job.folder();
        let dir = dir.path();
        job.reset(dir);
        let begin = format!("{OFFLINE} --type luks2 {COST} --init-only {} disk.img", job.begin);
        cryptsetup(dir, &begin).ok();
        for file in job.files {
            std::fs::copy(dir.join(file), dir.join(format!("begun-{file}"))).expect("a copy");
        }
        let (mut taken, mut hot) = (0, 0);
        for (call, step) in [("fdatasync", 1), ("fsync", 3), ("pwrite64", 5), ("write", 9)] {
            for n in (1..60).step_by(step) {
                let case = format!("{}, {call} {n}", job.begin);
                for file in job.files {
                    std::fs::copy(dir.join(format!("begun-{file}")), dir.join(file))
                        .expect("a copy");
                }
                let line = format!("cryptsetup {OFFLINE} --resume-only {} disk.img", job.resume);
                let mut command = Command::new(tool::find("strace").expect("asked for before"));
                command.current_dir(dir).args(["-f", "-o", "/dev/null", "-e"]);
                command.arg(format!("trace={call}")).arg("-e");
                command.arg(format!("inject={call}:signal=KILL:when={n}"));
                command.args(line.split_whitespace());
                if process::run(&mut command).code == Some(0) {
                    break;
                }
                if job.is_under_way(dir) {
                    hot += u32::from(job.is_hot(dir));
                    // Behind its last zone no key is left that could prove a decryption.
                    if job.encrypts() || job.is_hot(dir) {
                        is_shown(dir, job.files, &job.stack(), &data, &case);
                    }
                    let line = format!("crypt reencrypt --resume-only disk.img {}", job.resume);
                    let done = varve(dir, &format!("{line} --key-file key"));
                    assert_eq!(done.code, Some(0), "{case}: {done}");
                    taken += 1;
                }
                job.is_whole(dir, &data, &case);
            }
        }
        assert!(taken >= 5 && hot >= 3, "{}: {taken} taken up, {hot} of them hot", job.begin);
    }
}

#[test]
fn what_we_were_killed_in_cryptsetup_finishes_when_data_move() {
    if !tool::have(&["cryptsetup"]) {
        return;
    }
    for job in OURS {
        let (dir, data) = job.folder();
        let dir = dir.path();
        let places = [job.header, "disk.img"].map(|name| dir.join(name));
        kill_each(
            &job.ours(),
            (&places[0], &places[1]),
            || job.reset(dir),
            |case, ended| {
                let case = format!("{}, {case}", job.begin);
                if job.is_under_way(dir) {
                    if job.is_hot(dir) {
                        let line = format!("repair -q --disable-locks {}", job.resume);
                        cryptsetup(dir, &format!("{line} --key-file key disk.img")).ok();
                    }
                    // Its repair of the last zone is the end of the work.
                    if job.is_under_way(dir) {
                        let line = format!("{OFFLINE} --resume-only {} disk.img", job.resume);
                        cryptsetup(dir, &line).ok();
                    }
                } else if !ended && !job.is_done(dir) {
                    // Before its first header: the same command again.
                    varve(dir, &job.ours()).ok();
                }
                job.is_whole(dir, &data, &case);
            },
        );
    }
}
