use std::rc::Rc;
use std::sync::Arc;

use super::*;
use crate::cipher::CipherSpec;
use crate::device::VolumeHandle;
use crate::key::Key;
use crate::testing::pattern;
use crate::volume::{Volume, VolumeKind};
use crate::xts::{Engine, SectorSize};
use varve_block::dev::Mem;
use varve_block::{
    BufPool, Data, Durability, Error as BlockError, ErrorKind, Extent, Rt, Sectors, Sim, Zero,
};

mod crash;
mod hashed;
mod hashed_crash;
mod life;
mod model;
mod scenarios;

/// Where the superblock lies on the devices here.
const START: Sector = Sector(16);

/// A shape of volume: cipher, integrity, encryption sector, bytes of the key.
type Shape = (&'static str, &'static str, u64, usize);

const SHAPES: [Shape; 6] = [
    ("aes-xts-plain64", "hmac(sha256)", 4096, 96),
    ("aes-xts-plain64", "hmac(sha256)", 512, 96),
    ("aes-xts-random", "hmac(sha1)", 512, 84),
    ("aes-xts-plain64", "hmac(sha512)", 1024, 96),
    ("aes-gcm-random", "aead", 512, 32),
    ("chacha20-random", "poly1305", 4096, 32),
];

fn volume(shape: Shape, journaling: Journaling) -> Volume {
    let (cipher, integrity, sector, key) = shape;
    let cipher = CipherSpec::parse(cipher).unwrap();
    let key = Key::copy_from(&pattern(3, key));
    let sector_size = SectorSize::new(sector).unwrap();
    let spec = AeadSpec::parse(&cipher, integrity).unwrap();
    let aead = Aead::new(&spec, &key, sector_size, 0, Engine::Auto, false).unwrap();
    let seal = Seal { aead: Arc::new(aead), start: START, sector_size, journaling };
    Volume {
        kind: VolumeKind::Luks2,
        uuid: String::new(),
        label: String::new(),
        cipher,
        sector_size,
        segments: Vec::new(),
        seal: Some(seal),
        flags: Vec::new(),
        slot: None,
        key,
        notes: Vec::new(),
    }
}

async fn open<D: BlockDevice>(
    rt: &Rt,
    below: D,
    shape: Shape,
    journaling: Journaling,
) -> Result<Sealed<D>> {
    let handle = VolumeHandle::new(volume(shape, journaling));
    Sealed::open(rt, below, handle, BufPool::new(8 << 20)).await
}

/// A journal of so many sectors.
fn journal(sectors: u64) -> Wishes {
    Wishes { journal: Some(sectors), ..Wishes::default() }
}

/// A superblock for a device of that length, with a journal of about so many sections.
fn superblock(shape: Shape, device: Sectors, sections: u32) -> Superblock {
    let seal = volume(shape, Journaling::Journal).seal.unwrap();
    let tag = u16::try_from(seal.aead.tuple_len()).unwrap();
    let log2 = u8::try_from(seal.sector_size.sectors().trailing_zeros()).unwrap();
    let large = Sectors(1 << 20);
    let one = Layout::design(tag, log2, &journal(0), START, large).unwrap();
    let section = Layout::new(&one, START, large).unwrap().section.0;
    let wishes = journal(section * u64::from(sections));
    let sb = Layout::design(tag, log2, &wishes, START, large).unwrap();
    Layout::interleaved(sb, 7, START, device)
}

/// A device with an empty journal, every sector of it written with zeroes.
async fn made(rt: &Rt, shape: Shape, device: Sectors, sections: u32) -> Mem {
    let disk = Mem::new(device);
    let mut noise = vec![0; device.byte_len()];
    rt.prng().fill(&mut noise);
    disk.poke(0, &noise);
    lay_out(&disk, &superblock(shape, device, sections), START).await.unwrap();
    let s = open(rt, disk.clone(), shape, Journaling::Direct).await.unwrap();
    let all = Extent::new(Sector(0), s.geometry().len);
    s.write_zeroes(all, Zero::default()).await.unwrap();
    s.close().await.unwrap();
    disk
}

async fn write<D: BlockDevice>(device: &D, at: u64, bytes: &[u8]) {
    let buf = BufPool::new(8 << 20).take_copy(bytes).await;
    device.write(Sector(at), Data::Owned(buf), Durability::Cached).await.unwrap();
}

async fn try_read<D: BlockDevice>(
    device: &D,
    at: u64,
    sectors: u64,
) -> std::result::Result<Vec<u8>, BlockError> {
    let buf = BufPool::new(8 << 20).take(Sectors(sectors)).await;
    Ok(device.read(Sector(at), buf).await?.to_vec())
}

async fn read<D: BlockDevice>(device: &D, at: u64, sectors: u64) -> Vec<u8> {
    try_read(device, at, sectors).await.unwrap()
}

#[test]
fn what_is_written_reads_back_before_and_after_a_flush_a_close_and_a_start() {
    for shape in SHAPES {
        for journaling in [Journaling::Journal, Journaling::Direct] {
            Sim::new(5).run(move |rt| async move {
                let disk = made(&rt, shape, Sectors(8192), 3).await;
                let s = open(&rt, disk.clone(), shape, journaling).await.unwrap();
                assert_eq!(read(&s, 0, 64).await, vec![0; 64 * 512]);
                let clear = pattern(7, 300 << 10);
                write(&s, 8, &clear).await;
                assert_eq!(read(&s, 8, 600).await, clear, "from memory");
                s.flush().await.unwrap();
                write(&s, 16, &clear[..8192]).await;
                assert_eq!(read(&s, 16, 16).await, clear[..8192]);
                let mut now = clear.clone();
                now[4096..4096 + 8192].copy_from_slice(&clear[..8192]);
                assert_eq!(read(&s, 8, 600).await, now, "a part of it newer");
                s.close().await.unwrap();
                assert_eq!(read(&s, 8, 600).await, now, "from its place");
                write(&s, 0, &clear[..4096]).await;
                s.flush().await.unwrap();
                // Not closed: the journal has it.
                drop(s);
                let s = open(&rt, disk, shape, journaling).await.unwrap();
                assert_eq!(s.replayed().blocks > 0, journaling == Journaling::Journal);
                assert_eq!(read(&s, 0, 8).await, clear[..4096]);
                assert_eq!(read(&s, 8, 600).await, now);
            });
        }
    }
}

#[test]
fn a_read_only_start_replays_in_memory_and_writes_nothing() {
    Sim::new(6).run(|rt| async move {
        let shape = SHAPES[0];
        let disk = made(&rt, shape, Sectors(4096), 4).await;
        let s = open(&rt, disk.clone(), shape, Journaling::Journal).await.unwrap();
        write(&s, 24, &pattern(1, 8192)).await;
        s.flush().await.unwrap();
        let before = disk.to_vec();
        let geometry = varve_block::Geometry { read_only: true, ..disk.geometry() };
        let frozen = Mem::with_geometry(geometry);
        frozen.poke(0, &before);
        let r = open(&rt, frozen.clone(), shape, Journaling::Journal).await.unwrap();
        assert_eq!(read(&r, 24, 16).await, pattern(1, 8192));
        assert_eq!(read(&r, 0, 8).await, vec![0; 4096]);
        r.flush().await.unwrap();
        r.close().await.unwrap();
        assert_eq!(frozen.to_vec(), before);
    });
}

#[test]
fn many_laps_of_a_small_journal_and_clean_ends_keep_everything() {
    for sections in [1, 2, 5] {
        Sim::new(7).run(move |rt| async move {
            let shape = SHAPES[1];
            let disk = made(&rt, shape, Sectors(4096), sections).await;
            let mut model = vec![0; 256 * 512];
            for round in 0..40u64 {
                let s = open(&rt, disk.clone(), shape, Journaling::Journal).await.unwrap();
                for i in 0..6 {
                    let at = (round * 37 + i * 61) % 200;
                    let bytes = pattern(round * 1000 + i, 40 * 512);
                    write(&s, at, &bytes).await;
                    let from = usize::try_from(at * 512).unwrap();
                    model[from..from + bytes.len()].copy_from_slice(&bytes);
                    if i % 2 == 0 {
                        s.flush().await.unwrap();
                    }
                }
                assert_eq!(read(&s, 0, 256).await, model);
                if round % 3 == 0 {
                    s.close().await.unwrap();
                } else {
                    s.flush().await.unwrap();
                }
            }
        });
    }
}

#[test]
fn a_superblock_that_is_not_the_headers_is_refused() {
    Sim::new(8).run(|rt| async move {
        let shape = SHAPES[0];
        let disk = made(&rt, shape, Sectors(4096), 2).await;
        for other in [SHAPES[1], SHAPES[4], SHAPES[5]] {
            let got = open(&rt, disk.clone(), other, Journaling::Journal).await;
            assert!(matches!(got.map(drop), Err(Error::Corrupt(c)) if c.check == 44));
        }
        let mut flags = vec![0; 1];
        disk.peek(START.byte() + 24, &mut flags);
        disk.poke(START.byte() + 24, &[flags[0] | 2]);
        let got = open(&rt, disk.clone(), shape, Journaling::Journal).await;
        assert!(matches!(got.map(drop), Err(Error::Unsupported(_))));
        disk.poke(START.byte(), &[0; 8]);
        let got = open(&rt, disk, shape, Journaling::Journal).await.map(drop).unwrap_err();
        assert!(got.to_string().contains("magic at sector 16 of mem"), "{got}");
    });
}

#[test]
fn what_the_device_cannot_do_is_refused_and_named() {
    Sim::new(9).run(|rt| async move {
        let shape = SHAPES[0];
        let disk = made(&rt, shape, Sectors(4096), 2).await;
        let s = open(&rt, disk, shape, Journaling::Journal).await.unwrap();
        let e = s.discard(Extent::new(Sector(0), Sectors(8))).await.unwrap_err();
        assert_eq!(e.kind, ErrorKind::Unsupported);
        let e = try_read(&s, 1, 8).await.unwrap_err();
        assert_eq!(e.kind, ErrorKind::Misaligned);
        let end = s.geometry().len.0;
        let e = try_read(&s, end, 8).await.unwrap_err();
        assert_eq!(e.kind, ErrorKind::OutOfRange);
    });
}

/// Suspended, the key is gone and requests are errors; the journal goes on, as it needs none.
#[test]
fn a_suspended_volume_keeps_what_was_written_and_takes_only_its_own_key_back() {
    Sim::new(10).run(|rt| async move {
        let shape = SHAPES[0];
        let disk = made(&rt, shape, Sectors(4096), 2).await;
        let s = open(&rt, disk, shape, Journaling::Journal).await.unwrap();
        write(&s, 8, &pattern(2, 8192)).await;
        let suspended = s.volume().suspend(&rt).await.unwrap();
        assert_eq!(try_read(&s, 8, 8).await.unwrap_err().kind, ErrorKind::Stopped);
        let buf = BufPool::new(0).take_zeroed(Sectors(8)).await;
        let e = s.write(Sector(8), Data::Owned(buf), Durability::Cached).await.unwrap_err();
        assert_eq!(e.kind, ErrorKind::Stopped);
        s.flush().await.unwrap();
        let mut other = volume(shape, Journaling::Journal);
        let spec = AeadSpec::parse(&other.cipher, shape.1).unwrap();
        let (key, size) = (Key::copy_from(&pattern(9, 96)), other.sector_size);
        let aead = Aead::new(&spec, &key, size, 0, Engine::Auto, false).unwrap();
        other.seal.as_mut().unwrap().aead = Arc::new(aead);
        assert!(s.volume().resume(&suspended, other).is_err());
        s.volume().resume(&suspended, volume(shape, Journaling::Journal)).unwrap();
        assert_eq!(read(&s, 8, 16).await, pattern(2, 8192));
    });
}
