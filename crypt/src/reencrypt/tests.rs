use std::ops::ControlFlow;
use std::sync::Arc;

use varve_block::dev::Mem;
use varve_block::{BlockDevice, Rt, Sim};

use super::*;
use crate::create::{FormatOptions, LuksVersion};
use crate::error::{Error, Result};
use crate::format::luks2::{HeaderCopy, Luks2, OtherCopy};
use crate::format::metadata::Metadata;
use crate::hash::Hash;
use crate::header::Header;
use crate::kdf::{Cost, Pbkdf};
use crate::key::Key;
use crate::manage::{MetadataEditor, Protection};
use crate::testing::recorder::Recorder;
use crate::unlock::{UnlockOptions, unlock};
use crate::xts::SectorSize;

mod crash;
mod forged;
mod online;
mod plain;
mod shift;
mod small;
mod two;
mod whole;

/// Where the payload of the test volumes starts: two keyslots and 12 KiB of state before it.
const BASE: usize = 576 << 10;
const SECRET: &str = "one secret";

pub(super) fn header_of(metadata: Metadata) -> Luks2 {
    Luks2 {
        hdr_size: 16384,
        seqid: 1,
        label: String::new(),
        subsystem: String::new(),
        uuid: "00000000-0000-0000-0000-000000000000".into(),
        checksum_algorithm: "sha256".into(),
        copy: HeaderCopy::Primary,
        other: OtherCopy::Same,
        notes: Vec::new(),
        metadata,
    }
}

fn key(text: &str) -> Arc<Key> {
    Arc::new(Key::copy_from(text.as_bytes()))
}

fn cheap() -> Protection {
    Protection {
        pbkdf: Pbkdf::Pbkdf2(Hash::Sha256),
        cost: Cost::Forced { iterations: 1000, memory_kib: 32, lanes: 1 },
        hash: Hash::Sha256,
    }
}

fn options() -> UnlockOptions {
    UnlockOptions::default()
}

fn on<D: BlockDevice + Clone>(device: &D) -> Devices<D> {
    Devices { header: device.clone(), data: device.clone(), detached: false }
}

fn noise(len: usize) -> Vec<u8> {
    let mut at = 1u64;
    std::iter::repeat_with(|| {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        at.to_be_bytes()[0]
    })
    .take(len)
    .collect()
}

/// An image of a volume with these plain data.
fn volume(plain: &[u8], sector_size: u64) -> Vec<u8> {
    let disk = Mem::from_bytes(&vec![0; BASE + plain.len()]);
    let held = disk.clone();
    let plain = plain.to_vec();
    Sim::new(1).run(|rt| async move {
        let how = FormatOptions {
            sector_size: SectorSize::new(sector_size),
            pbkdf: cheap().pbkdf,
            cost: cheap().cost,
            keyslots_size: Some(2 * 258_048 + 12_288),
            data_offset: Some(BASE as u64),
            ..FormatOptions::new(LuksVersion::Luks2)
        };
        crate::create::format(&rt, &held, &how, &key(SECRET)).await.unwrap();
        let volume = unlock(&rt, &held, &options(), &key(SECRET)).await.unwrap();
        let mut data = plain;
        volume.segments[0].xts.encrypt(0, &mut data);
        held.poke(BASE as u64, &data);
    });
    disk.to_vec()
}

/// What is in a volume that opens with the secret, and its encryption sector.
fn contents(image: &[u8], secret: &str) -> Result<(Vec<u8>, usize)> {
    let disk = Mem::from_bytes(image);
    let secret = key(secret);
    let volume =
        Sim::new(1).run(|rt| async move { unlock(&rt, &disk, &options(), &secret).await })?;
    let mut data = image[BASE..].to_vec();
    volume.segments[0].xts.decrypt(0, &mut data);
    Ok((data, volume.sector_size.bytes()))
}

fn header(image: &[u8]) -> Luks2 {
    match Header::parse(image, image.len() as u64, None).unwrap() {
        Header::Luks2(h) => *h,
        Header::Luks1(_) => panic!("LUKS2"),
    }
}

/// The plan of the tests: cheap slots.
fn plan() -> Start {
    Start::new(vec![key(SECRET)], cheap())
}

/// Begins on the image and stops before the first zone.
fn begun(image: &[u8], plan: &Start) -> Vec<u8> {
    let disk = Mem::from_bytes(image);
    let (held, plan) = (disk.clone(), plan.clone());
    Sim::new(2)
        .run(|rt| async move { start(&rt, &on(&held), &options(), &plan).await.map(drop) })
        .unwrap();
    disk.to_vec()
}

/// Resumes with zones of `zone` bytes and works to the end.
async fn resumed<D: BlockDevice + Clone>(rt: &Rt, disk: &D, zone: u64) -> Result<Ended> {
    let work = Reencryption::resume(rt, &on(disk), &options(), &[key(SECRET)]).await?;
    work.with_zone(zone)?.run(&mut |_| ControlFlow::Continue(())).await
}

/// The same on an image, with what it became and what was written.
fn resume(image: &[u8], zone: u64) -> (Result<Ended>, Recorder) {
    let disk = Recorder::new(image);
    let held = disk.clone();
    let ended = Sim::new(3).run(|rt| async move { resumed(&rt, &held, zone).await });
    (ended, disk)
}

/// The two volume keys of an image under way, for runs that need not derive them again.
fn keys_of(image: &[u8]) -> [Vec<u8>; 2] {
    let disk = Mem::from_bytes(image);
    let len = image.len() as u64;
    Sim::new(4).run(|rt| async move {
        let editor = MetadataEditor::open(disk.clone(), None).await.unwrap();
        let op = state::Operation::parse(editor.header(), len).unwrap();
        let (h, secrets) = (editor.header(), [key(SECRET)]);
        let keys = keys::of_operation(&rt, &disk, h, &op, &options(), &secrets).await.unwrap();
        [keys[0].bytes().to_vec(), keys[1].bytes().to_vec()]
    })
}
