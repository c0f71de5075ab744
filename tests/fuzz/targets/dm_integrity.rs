//! dm-integrity: a superblock, then what should be a journal or a bitmap, with commit ids that fit their
//! places for the most part. Whatever is taken up is read, written, closed, and taken up again.
//!
//! Input: a byte of wishes, a byte for each section's sequence, 64 bytes of superblock, the journal's bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::time::Duration;
use varve_block::dev::Mem;
use varve_block::{
    BlockDevice, BufPool, Data, Durability, Extent, Geometry, Rt, Sector, Sectors, Sim,
};
use varve_crypt::{HashSpec, Hashed, HashedOptions, IntegrityInfo, Journaling, integrity_info};

/// Length of the device.
const DEVICE: Sectors = Sectors(2048);
const MODES: [Journaling; 3] = [Journaling::Journal, Journaling::Bitmap, Journaling::Direct];
const BASES: [u64; 4] =
    [0x1111_1111_1111_1111, 0x2222_2222_2222_2222, 0x3333_3333_3333_3333, 0x4444_4444_4444_4444];

fuzz_target!(|data: &[u8]| {
    let Some((&[wishes, sequences], rest)) = data.split_first_chunk() else { return };
    let mut bytes = vec![0; DEVICE.byte_len()];
    let (superblock, journal) = rest.split_at(rest.len().min(64));
    bytes[..superblock.len()].copy_from_slice(superblock);
    bytes[..8].copy_from_slice(b"integrt\0");
    let n = journal.len().min(bytes.len() - 4096);
    bytes[4096..4096 + n].copy_from_slice(&journal[..n]);
    Sim::new(1).max_steps(200_000).run(move |rt| async move {
        let disk = Mem::from_bytes(&bytes);
        let Ok(info) = integrity_info(&disk, Sector(0)).await else { return };
        assert!(info.to_string().is_ascii());
        if wishes & 0x80 == 0 {
            stamp(&disk, &info, sequences);
        }
        let mode = MODES[usize::from(wishes % 3)];
        let hash = if wishes & 4 == 0 { "crc32c" } else { "sha256" };
        let mut how = HashedOptions {
            journaling: mode,
            ..HashedOptions::new(HashSpec::named(hash).expect("a hash"))
        };
        // To look writes nothing: a device that is read-only refuses it.
        let frozen = Mem::with_geometry(Geometry { read_only: true, ..disk.geometry() });
        frozen.poke(0, &disk.to_vec());
        if let Ok(device) = open(&rt, frozen, &how).await {
            let all = Extent::new(Sector(0), device.geometry().len);
            let _ = device.verify(all).await;
        }
        how.recalculate = wishes & 8 != 0;
        let Ok(device) = open(&rt, disk.clone(), &how).await else { return };
        let block = device.geometry().block;
        let some = BufPool::new(0).take_zeroed(block).await;
        device.write(Sector(0), Data::Owned(some), Durability::Fua).await.expect("a write");
        rt.sleep(Duration::from_secs(if wishes & 16 == 0 { 60 } else { 0 })).await;
        device.close().await.expect("a close");
        how.recalculate = false;
        how.journaling = MODES[usize::from(wishes >> 5) % 3];
        let device = open(&rt, disk, &how).await.expect("what we closed");
        let first = device.read(Sector(0), BufPool::new(0).take(block).await).await;
        assert!(first.expect("what we wrote").iter().all(|byte| *byte == 0));
    });
});

async fn open<D: BlockDevice>(
    rt: &Rt,
    below: D,
    how: &HashedOptions,
) -> varve_crypt::Result<Hashed<D>> {
    Hashed::open(rt, below, how, BufPool::new(4 << 20)).await
}

/// Commit ids that fit, two bits of `sequences` for each section in turn.
fn stamp(disk: &Mem, info: &IntegrityInfo, sequences: u8) {
    let section = info.journal_sectors / u64::from(info.journal_sections);
    for nth in 0..u64::from(info.journal_sections) {
        let base = BASES[usize::from(sequences >> (nth % 4 * 2) & 3)];
        for sector in 0..section {
            let id = base ^ (nth << 32) ^ sector;
            disk.poke(4096 + (nth * section + sector) * 512 + 504, &id.to_le_bytes());
        }
    }
}
