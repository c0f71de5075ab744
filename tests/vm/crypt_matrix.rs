//! Every cipher, mode, sector size and kind of header that both know: dm-crypt and we read and write the same
//! bytes, in turns.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::Duration;

use varve_tests::client::{Server, Stack};
use varve_tests::disk;
use varve_tests::nbd::{FUA, Request};
use varve_tests::varve::varve;
use varve_tests::vm::{Job, Vm};

use crate::vm;

/// Payload of each volume.
const PAYLOAD: usize = 512 << 10;
/// Written by the second hand at this place, in KiB, and by the third behind it.
const SECOND_KIB: usize = 128;
const THIRD: usize = 192 << 10;
const PART: usize = 128 << 10;
/// Two emulated boots, and ciphers without instructions of the processor.
const LIMIT: Duration = Duration::from_secs(600);

/// What is before the payload, and who makes it.
#[derive(Clone, Copy)]
enum Head {
    /// `cryptsetup luksFormat` in the guest, with these words.
    Theirs(&'static str),
    /// `varve crypt format` on the host, with these words.
    Ours(&'static str),
    /// Nothing; our words for what [`Volume::open`] says in theirs.
    Plain(&'static str),
}

struct Volume {
    name: &'static str,
    key_bytes: usize,
    head: Head,
    /// Bytes before the payload.
    offset: usize,
    /// Where a header lies that is not before the payload: the slice of this name, or the host's file.
    detached: bool,
    /// What `cryptsetup open` needs to know.
    open: &'static str,
}

const LUKS2: usize = 16 << 20;
const LUKS1: usize = 2 << 20;
const PBKDF: &str = "--pbkdf-force-iterations 1000";

const fn luks1(name: &'static str, words: &'static str) -> Volume {
    Volume {
        name,
        key_bytes: 20,
        head: Head::Theirs(words),
        offset: LUKS1,
        detached: false,
        open: "--type luks1",
    }
}

const fn luks2(name: &'static str, words: &'static str) -> Volume {
    Volume { offset: LUKS2, open: "--type luks2", ..luks1(name, words) }
}

const fn ours(
    name: &'static str,
    words: &'static str,
    offset: usize,
    open: &'static str,
) -> Volume {
    Volume { name, key_bytes: 20, head: Head::Ours(words), offset, detached: false, open }
}

/// `spec` are our words, `open` theirs for the same.
const fn plain(
    name: &'static str,
    key_bytes: usize,
    spec: &'static str,
    open: &'static str,
) -> Volume {
    Volume { name, key_bytes, head: Head::Plain(spec), offset: 0, detached: false, open }
}

/// Headers cost an emulated machine seconds each, so most ciphers are met without one.
const VOLUMES: &[Volume] = &[
    luks1("l1-cbc-essiv", "--type luks1 --cipher aes-cbc-essiv:sha256 --key-size 256"),
    luks1("l1-two-keys", "--type luks1 --cipher aes:2-cbc-essiv:sha256 --key-size 512"),
    luks2("l2-two-keys", "--type luks2 --cipher aes:2-xts-plain64 --key-size 1024"),
    luks2(
        "l2-serpent-4k",
        "--type luks2 --cipher serpent-xts-plain64 --key-size 512 --sector-size 4096",
    ),
    Volume {
        detached: true,
        offset: 0,
        ..luks2("l2-detached", "--type luks2 --cipher aes-xts-plain64 --sector-size 1024")
    },
    ours("o1-xts", "--type luks1 --key-size 256", LUKS1, "--type luks1"),
    ours("o2-2k", "--type luks2 --pbkdf pbkdf2 --sector-size 2048", LUKS2, "--type luks2"),
    Volume {
        detached: true,
        ..ours("o2-detached", "--type luks2 --pbkdf pbkdf2 --sector-size 4096", 0, "--type luks2")
    },
    Volume {
        offset: 16 * 512,
        open: "--type plain --cipher aes-xts-plain64 --key-size 512 --sector-size 4096 --offset 16 --skip 8 \
               --iv-large-sectors",
        ..plain("p-large", 64, "aes-xts-plain64,sector=4096,offset=16,skip=8,iv-large-sectors", "")
    },
    plain(
        "p-small-iv",
        64,
        "aes-xts-plain64,sector=4096,skip=8",
        "--type plain --cipher aes-xts-plain64 --key-size 512 --sector-size 4096 --skip 8",
    ),
    plain("p-xts-plain", 32, "aes-xts-plain", "--type plain --cipher aes-xts-plain --key-size 256"),
    plain(
        "p-xts-be",
        32,
        "aes-xts-plain64be",
        "--type plain --cipher aes-xts-plain64be --key-size 256",
    ),
    plain(
        "p-twofish",
        64,
        "twofish-xts-plain64",
        "--type plain --cipher twofish-xts-plain64 --key-size 512",
    ),
    plain(
        "p-camellia",
        32,
        "camellia-xts-plain64",
        "--type plain --cipher camellia-xts-plain64 --key-size 256",
    ),
    plain("p-cbc-plain", 32, "aes-cbc-plain", "--type plain --cipher aes-cbc-plain --key-size 256"),
    plain("p-benbi", 16, "aes-cbc-benbi", "--type plain --cipher aes-cbc-benbi --key-size 128"),
    plain("p-eboiv", 32, "aes-cbc-eboiv", "--type plain --cipher aes-cbc-eboiv --key-size 256"),
    plain(
        "p-essiv-192",
        24,
        "twofish-cbc-essiv:sha256",
        "--type plain --cipher twofish-cbc-essiv:sha256 --key-size 192",
    ),
    plain(
        "p-null-iv",
        32,
        "camellia-cbc-null",
        "--type plain --cipher camellia-cbc-null --key-size 256",
    ),
    plain(
        "p-serpent",
        32,
        "serpent-cbc-plain64",
        "--type plain --cipher serpent-cbc-plain64 --key-size 256",
    ),
    plain(
        "p-four-keys",
        64,
        "aes:4-cbc-plain64,skip=3",
        "--type plain --cipher aes:4-cbc-plain64 --key-size 512 --skip 3",
    ),
    plain(
        "p-many-keys-4k",
        256,
        "aes:16-cbc-benbi,sector=4096,iv-large-sectors",
        "--type plain --cipher aes:16-cbc-benbi --key-size 2048 --sector-size 4096 --iv-large-sectors",
    ),
    plain("p-ecb", 16, "aes-ecb", "--type plain --cipher aes-ecb --key-size 128"),
];

impl Volume {
    fn bytes(&self) -> usize {
        self.offset + PAYLOAD
    }

    fn key(&self) -> Vec<u8> {
        disk::noise(self.name.len() as u64 * 31 + self.key_bytes as u64, self.key_bytes)
    }

    fn image(&self) -> String {
        format!("{}.img", self.name)
    }

    fn head_file(&self) -> String {
        format!("{}-head.img", self.name)
    }

    /// How the guest names the header.
    fn their_header(&self) -> String {
        if self.detached {
            format!(" --header /dev/mapper/slice-{}-head", self.name)
        } else {
            String::new()
        }
    }

    fn stack(&self) -> Stack {
        let mut stack =
            Stack::backing(self.image()).with("--key-file", format!("key-{}", self.name));
        if let Head::Plain(spec) = self.head {
            stack = stack.with("--plain", spec);
        }
        if self.detached {
            stack = stack.with("--header", self.head_file());
        }
        stack
    }

    /// The files that lie side by side on the guest's disk.
    fn files(&self) -> Vec<(String, String, usize)> {
        let mut files = vec![(self.name.to_owned(), self.image(), self.bytes())];
        if self.detached {
            files.push((format!("{}-head", self.name), self.head_file(), LUKS2));
        }
        files
    }
}

/// Puts all images on one disk, or takes them back from it.
fn carry(dir: &Path, onto_disk: bool) -> String {
    let mut how = File::options();
    let mut all = how.read(true).write(true).create(true).truncate(false).open(dir.join("all.img"));
    let all = all.as_mut().expect("the disk");
    let (mut at, mut calls) = (0, String::new());
    for (slice, file, bytes) in VOLUMES.iter().flat_map(Volume::files) {
        calls.push_str(&format!("slice {slice} {at} {bytes}\n"));
        all.seek(SeekFrom::Start(at as u64)).expect("a seek");
        let path = dir.join(file);
        if onto_disk {
            all.write_all(&std::fs::read(path).expect("an image")).expect("room");
        } else {
            let mut image = vec![0; bytes];
            all.read_exact(&mut image).expect("the slice");
            std::fs::write(path, image).expect("room");
        }
        at += bytes;
    }
    calls
}

fn guest(vm: &Vm, dir: &Path, calls: &str) -> String {
    let job = vm.guest_script("crypt-matrix.sh", &[("CALLS", calls)]).disk(&dir.join("all.img"));
    let with = |job: Job, name: &str| job.file(name, &dir.join(name));
    let job = VOLUMES.iter().fold(job, |job, v| with(job, &format!("key-{}", v.name)));
    let out = ["first", "second", "third"].iter().fold(job, |job, name| with(job, name)).run(LIMIT);
    out.ok().to_owned()
}

#[test]
fn every_cipher_and_header_is_read_and_written_in_turns() {
    let Some(vm) = vm() else { return };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    let [first, second, third] =
        [(1, PAYLOAD), (2, PART), (3, PART)].map(|(seed, len)| disk::noise(seed, len));
    for (name, data) in [("first", &first), ("second", &second), ("third", &third)] {
        std::fs::write(dir.join(name), data).expect("a file");
    }
    for v in VOLUMES {
        std::fs::write(dir.join(format!("key-{}", v.name)), v.key()).expect("a key");
        for (_, file, bytes) in v.files() {
            disk::sparse(&dir.join(file), bytes as u64);
        }
        if let Head::Ours(words) = v.head {
            let header =
                if v.detached { format!(" --header {}", v.head_file()) } else { String::new() };
            let line = format!(
                "crypt format {} --key-file key-{} {PBKDF} {words}{header}",
                v.image(),
                v.name
            );
            varve(dir, &line).ok();
        }
    }

    // They make theirs and fill everything, ours too.
    let slices = carry(dir, true);
    let mut calls = slices.clone();
    for v in VOLUMES {
        let header = v.their_header();
        if let Head::Theirs(words) = v.head {
            let pbkdf = if words.contains("luks2") { "--pbkdf pbkdf2 " } else { "" };
            calls.push_str(&format!("format {} {pbkdf}{PBKDF} {words}{header}\n", v.name));
        }
        calls.push_str(&format!("fill {} first 0 {}{header}\n", v.name, v.open));
    }
    guest(&vm, dir, &calls);
    carry(dir, false);

    // We read that and write a part.
    let mut model = first.clone();
    for v in VOLUMES {
        let server = Server::start(dir, &v.stack());
        let mut nbd = server.connect();
        assert_eq!(nbd.size(), PAYLOAD as u64, "{}", v.name);
        let len = u32::try_from(PAYLOAD).expect("small");
        let read = nbd.read(0, len).expect("the server stays").expect("a read");
        assert!(read == first, "{}: not what dm-crypt wrote", v.name);
        let write = Request::Write { at: (SECOND_KIB << 10) as u64, data: &second, flags: FUA };
        nbd.ask(write).expect("the server stays").expect("a write");
        drop(nbd);
        server.stop();
    }
    model[SECOND_KIB << 10..][..PART].copy_from_slice(&second);

    // They write another part over it and say what they see; so do we.
    let mut calls = carry(dir, true);
    for v in VOLUMES {
        let (name, words) = (v.name, format!("{}{}", v.open, v.their_header()));
        calls
            .push_str(&format!("show {name} {words}\nfill {name} third {} {words}\n", THIRD >> 10));
    }
    let told = guest(&vm, dir, &calls);
    carry(dir, false);
    let expected = disk::sum(&model[..]).expect("memory");
    for v in VOLUMES {
        let line = format!("sum {} {expected}", v.name);
        assert!(told.lines().any(|l| l == line), "{}: not what we wrote: {told}", v.name);
    }
    model[THIRD..][..PART].copy_from_slice(&third);
    let expected = disk::sum(&model[..]).expect("memory");
    for v in VOLUMES {
        let server = Server::start(dir, &v.stack().flag("--read-only"));
        assert_eq!(disk::sum_export(&mut server.connect()), expected, "{}", v.name);
        server.stop();
    }
}
