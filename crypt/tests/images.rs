//! The images of LUKS headers that the repository carries, each with the verdict beside it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use varve_block::dev::Mem;
use varve_block::{BlockDevice, Sectors, Sim};
use varve_crypt::{
    Error, Header, Key, KeyFilePart, UnlockOptions, Volume, read_key_file, unlock,
    unlock_with_volume_key,
};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/images").join(name)
}

fn lines(folder: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(folder.join("expect.txt")).expect("expect.txt");
    text.lines().filter(|l| !l.starts_with('#')).map(str::to_owned).collect()
}

/// The image at the start of a device of at least `sectors`.
fn load(folder: &Path, name: &str, sectors: u64) -> Mem {
    let packed = std::fs::read(folder.join(format!("{name}.img.zst"))).expect(name);
    let image = zstd::decode_all(&packed[..]).expect("a zstd file");
    let disk = Mem::new(Sectors(sectors.max(image.len() as u64 / 512)));
    disk.poke(0, &image);
    disk
}

/// The volume key of the hand-made headers.
fn volume_key(name: &str) -> Key {
    use sha2::{Digest, Sha512};
    let key = Sha512::digest(b"varve luks vector volume key 1");
    match name {
        "14-equal-key-halves" => Key::copy_from(&[&key[..32], &key[..32]].concat()),
        _ => Key::copy_from(&key),
    }
}

fn check_of(e: &Error) -> u8 {
    match e {
        Error::Corrupt(c) => c.check,
        Error::Refused { check, .. } => *check,
        other => panic!("{other}"),
    }
}

fn open(disk: &Mem, name: &str) -> Result<Volume, Error> {
    let (disk, key) = (disk.clone(), volume_key(name));
    Sim::new(1)
        .run(|_| async move { unlock_with_volume_key(&disk, &UnlockOptions::default(), key).await })
}

#[test]
fn headers_that_others_accept_are_refused_or_bounded() {
    let folder = folder("020-luks2-headers-the-reference-accepts");
    let lines = lines(&folder);
    assert_eq!(lines.len(), 14);
    for line in lines {
        let mut words = line.splitn(3, ' ');
        let (name, verdict, rest) = (
            words.next().expect("a name"),
            words.next().expect("a verdict"),
            words.next().expect("a check or a remark"),
        );
        let disk = load(&folder, name, 2048 + 64);
        let header = Header::parse(&disk.to_vec(), disk.geometry().len.bytes(), None);
        match verdict {
            "refuse" => {
                let e = header.expect_err(name);
                assert_eq!(check_of(&e).to_string(), rest, "{name}: {e}");
            }
            "map" => {
                header.expect(name);
                let e = open(&disk, name).expect_err(name);
                assert_eq!(check_of(&e).to_string(), rest, "{name}: {e}");
            }
            "note" => {
                let header = header.expect(name);
                assert!(header.notes().iter().any(|n| n.contains(rest)), "{:?}", header.notes());
                open(&disk, name).expect(name);
            }
            "skip" => {
                header.expect(name);
                let e = unlock_in(&disk, Key::copy_from(b"any")).expect_err(name);
                let Error::WrongKey { skipped } = e else { panic!("{name}: {e}") };
                let check = format!("check {rest}");
                assert!(skipped[0].why.contains(&check), "{name}: {skipped:?}");
            }
            other => panic!("{name}: unknown verdict {other}"),
        }
    }
}

fn unlock_in(disk: &Mem, secret: Key) -> Result<Volume, Error> {
    let (disk, secret) = (disk.clone(), Arc::new(secret));
    Sim::new(1)
        .run(|rt| async move { unlock(&rt, &disk, &UnlockOptions::default(), &secret).await })
}

#[test]
fn volumes_that_cryptsetup_made_open() {
    let folder = folder("021-cryptsetup-made-volumes");
    let key = || read_key_file(&folder.join("key"), KeyFilePart::default()).expect("the key");
    let lines = lines(&folder);
    assert_eq!(lines.len(), 3);
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        let [name, slot, start, sector_size, label] = words[..] else { panic!("{line}") };
        let disk = load(&folder, name, 0);
        let before = disk.to_vec();
        let v = unlock_in(&disk, key()).expect(name);
        assert_eq!(v.slot.map(|s| s.to_string()).as_deref(), Some(slot), "{name}");
        assert_eq!(v.segments[0].below.byte().to_string(), start, "{name}");
        assert_eq!(v.sector_size.bytes().to_string(), sector_size, "{name}");
        assert_eq!(if v.label.is_empty() { "-" } else { &v.label }, label, "{name}");
        let lost = name.contains("lost");
        assert_eq!(
            v.notes.iter().any(|n| n.contains("primary header is unusable")),
            lost,
            "{name}"
        );
        assert!(matches!(unlock_in(&disk, Key::copy_from(b"no")), Err(Error::WrongKey { .. })));
        assert_eq!(disk.to_vec(), before, "{name}: opening must not write");
    }
}
