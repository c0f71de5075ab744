use super::*;
use crate::format::luks2::tests::reseal;
use crate::testing::images;
use crate::xts::SectorSize;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use varve_block::dev::sim::{Image, Plan};
use varve_block::dev::{Mem, SimDisk};
use varve_block::{
    Data, DevId, Durability, Extent, Geometry, IoBuf, Result as BlockResult, Sector, Sim, Zero,
};

const AREA: usize = 32768;
const SLOT: usize = 258_048;

fn secret() -> Arc<Key> {
    Arc::new(Key::copy_from(images::SECRETS[1].as_bytes()))
}

/// The vector's volume with other metadata, in both copies.
fn edited(edit: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut image = images::luks2_a();
    let mut tree: Value = serde_json::from_str(images::LUKS2_A_JSON).unwrap();
    edit(&mut tree);
    let text = tree.to_string();
    let end = tree["segments"]["0"]["offset"].as_str().unwrap().parse::<usize>().unwrap();
    if end > 1 << 20 {
        image.resize(end + 64 * 512, 0);
    }
    for at in [0, 16384] {
        image[at + 4096..at + 16384].fill(0);
        image[at + 4096..at + 4096 + text.len()].copy_from_slice(text.as_bytes());
        reseal(&mut image, at);
    }
    image
}

fn opened(image: &[u8], limits: Limits) -> Result<Volume> {
    let disk = Mem::from_bytes(image);
    let options = UnlockOptions { limits, ..UnlockOptions::default() };
    Sim::new(1).run(|rt| async move { unlock(&rt, &disk, &options, &secret()).await })
}

/// A device that answers from another image after so many reads, and knows what was read.
struct Shifty {
    images: [Mem; 2],
    change_at: u32,
    reads: Cell<u32>,
    seen: RefCell<Vec<Extent>>,
}

impl BlockDevice for Shifty {
    fn geometry(&self) -> Geometry {
        self.images[0].geometry()
    }

    async fn read(&self, at: Sector, buf: IoBuf) -> BlockResult<IoBuf> {
        let now = self.reads.replace(self.reads.get() + 1) >= self.change_at;
        self.seen.borrow_mut().push(Extent::new(at, buf.sectors()));
        self.images[usize::from(now)].read(at, buf).await
    }

    async fn write(&self, _at: Sector, _data: Data, _how: Durability) -> BlockResult<Data> {
        panic!("opening writes nothing")
    }

    async fn flush(&self) -> BlockResult<()> {
        Ok(())
    }

    async fn discard(&self, _range: Extent) -> BlockResult<()> {
        panic!("opening writes nothing")
    }

    async fn write_zeroes(&self, _range: Extent, _how: Zero) -> BlockResult<()> {
        panic!("opening writes nothing")
    }
}

/// C21: a device may show another valid header at any read. What is decided comes from one of them, and no
/// byte of the header is asked for twice.
#[test]
fn c21_a_header_that_changes_while_it_is_read_is_taken_once() {
    let good = images::luks2_a();
    let null = edited(|t| t["segments"]["0"]["encryption"] = json!("cipher_null-ecb"));
    let moved = edited(|t| t["segments"]["0"]["iv_tweak"] = json!("8"));
    let mut answers = [0; 3];
    for (other, change_at) in [&null, &moved].into_iter().flat_map(|o| (0..8).map(move |n| (o, n)))
    {
        let device = Rc::new(Shifty {
            images: [Mem::from_bytes(&good), Mem::from_bytes(other)],
            change_at,
            reads: Cell::new(0),
            seen: RefCell::default(),
        });
        let asked = Rc::clone(&device);
        let done = Sim::new(1).run(|rt| async move {
            unlock(&rt, &*asked, &UnlockOptions::default(), &secret()).await
        });
        match done {
            Ok(v) => {
                assert_eq!(v.cipher.text(), "aes-xts-plain64");
                answers[usize::from(v.segments[0].iv_offset == 8)] += 1;
            }
            Err(Error::Refused { check: 41, .. } | Error::Corrupt(_)) => answers[2] += 1,
            Err(e) => panic!("{e}"),
        }
        let seen = device.seen.borrow();
        let header = Extent::new(Sector(0), Sectors(2 * 16384 / 512));
        let head: Vec<_> = seen.iter().filter_map(|e| e.intersect(header)).collect();
        for (n, one) in head.iter().enumerate() {
            assert!(head[..n].iter().all(|e| e.intersect(*one).is_none()), "{head:?}");
        }
    }
    assert!(answers.iter().all(|&n| n > 0), "each outcome was met: {answers:?}");
}

/// C25: every slot but the last asks for the impossible. All of them are named, none is paid for.
#[test]
fn c25_thirty_one_bombs_cost_nothing() {
    let salt = BASE64_STANDARD.encode([7; 32]);
    let argon2 = |time: u64, memory: u64, cpus: u64| json!({"type": "argon2id", "time": time, "memory": memory, "cpus": cpus, "salt": salt});
    let pbkdf2 =
        |n: u64| json!({"type": "pbkdf2", "hash": "sha512", "iterations": n, "salt": salt});
    let mut image = edited(|t| {
        let honest = t["keyslots"]["0"].clone();
        for n in 0..32usize {
            let mut slot = honest.clone();
            slot["area"]["offset"] = json!((AREA + n * SLOT).to_string());
            match n {
                31 => {}
                n if n % 6 == 0 => slot["kdf"] = argon2(4, 4 << 20, 4),
                n if n % 6 == 1 => slot["kdf"] = argon2(1 << 24, 1 << 20, 4),
                n if n % 6 == 2 => slot["kdf"] = argon2(4, (4 << 20) + 1, 4),
                n if n % 6 == 3 => slot["kdf"] = pbkdf2(1 << 31),
                n if n % 6 == 4 => slot["key_size"] = json!(u32::MAX),
                _ => slot["area"]["key_size"] = json!(u32::MAX),
            }
            t["keyslots"][n.to_string()] = slot;
        }
        let all: Vec<String> = (0..32).map(|n: u32| n.to_string()).collect();
        t["digests"]["0"]["keyslots"] = json!(all);
        t["config"]["keyslots_size"] = json!("16744448");
        t["segments"]["0"]["offset"] = json!("16777216");
    });
    let area = image[AREA..AREA + images::AREA_LEN].to_vec();
    image[AREA..AREA + SLOT].fill(0);
    let last = AREA + 31 * SLOT;
    image[last..last + area.len()].copy_from_slice(&area);

    let disk = Mem::from_bytes(&image);
    let report = Sim::new(1)
        .run(|rt| async move { test(&rt, &disk, &UnlockOptions::default(), &secret()).await })
        .unwrap();
    assert_eq!((report.slot, report.skipped.len()), (31, 31));
    assert!(report.skipped.iter().all(|s| !s.why.is_empty()));
    assert_eq!(opened(&image, Limits::default()).unwrap().slot, Some(31));
}

/// Slots that are each affordable, and too many of them (check 28).
#[test]
fn c25_all_slots_together_have_a_limit() {
    let mut image = edited(|t| {
        let mut second = t["keyslots"]["0"].clone();
        second["area"]["offset"] = json!((AREA + SLOT).to_string());
        t["keyslots"]["1"] = second;
        t["digests"]["0"]["keyslots"] = json!(["0", "1"]);
        t["config"]["keyslots_size"] = json!("1044480");
        t["segments"]["0"]["offset"] = json!("2097152");
    });
    image.copy_within(AREA..AREA + SLOT, AREA + SLOT);
    image[AREA + 5] ^= 1;
    assert_eq!(opened(&image, Limits::default()).unwrap().slot, Some(1));
    // Reading the first slot's area takes its time, which is all there is.
    let limits = Limits { total: Duration::ZERO, ..Limits::default() };
    let done = Sim::new(1).run(|rt| async move {
        let len = Sectors(image.len() as u64 / 512);
        let mut medium = Image::new(len);
        medium.poke(Sector(0), &image);
        let disk =
            SimDisk::new(&rt, Geometry::new(DevId::new("disk"), len), medium, Plan::default());
        let options = UnlockOptions { limits, ..UnlockOptions::default() };
        unlock(&rt, &disk, &options, &secret()).await
    });
    let Err(Error::WrongKey { skipped }) = done else { panic!("{done:?}") };
    assert!(skipped.len() == 1 && skipped[0].slot == 1, "{skipped:?}");
    assert!(skipped[0].why.contains("check 28"), "{skipped:?}");
}

/// C32: nothing in the format ties a detached header to a device; whoever opens the two is told so.
#[test]
fn c32_a_detached_header_says_that_any_device_would_do() {
    let header = edited(|_| {});
    let disk = Mem::from_bytes(&header);
    let volume = Sim::new(1).run(|rt| async move {
        let len = Sectors(1 << 20);
        unlock_detached(&rt, &disk, len, &UnlockOptions::default(), &secret()).await
    });
    let volume = volume.unwrap();
    assert!(volume.notes.iter().any(|n| n.contains("detached")), "{:?}", volume.notes);
    assert!(opened(&header, Limits::default()).unwrap().notes.is_empty());
}

/// C31: what a device does not write whole is said when the volume is opened.
#[test]
fn c31_sectors_larger_than_what_the_device_writes_whole_are_named() {
    let volume = opened(&images::luks2_a(), Limits::default()).unwrap();
    assert_eq!(volume.sector_size, SectorSize::S4096);
    let mut disk = Geometry::new(DevId::new("old-disk"), Sectors(1 << 20));
    assert!(volume.notes_over(&disk).is_empty());
    disk.preferred = disk.block;
    let notes = volume.notes_over(&disk);
    assert!(notes.len() == 1 && notes[0].contains("old-disk"), "{notes:?}");
}
