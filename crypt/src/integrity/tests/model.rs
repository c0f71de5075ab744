//! What a volume may hold after a cut, and disks to cut.

use super::*;
use varve_block::dev::sim::Image;
use varve_block::{DevId, Geometry, Prng};

/// Length of the disks that are cut.
pub(super) const DEVICE: Sectors = Sectors(2048);

/// Per block, the versions that may be found: the last one that is durable, and each since.
pub(super) struct Model(pub(super) Vec<Vec<u64>>);

impl Model {
    pub(super) fn new(blocks: usize) -> Model {
        Model(vec![vec![0]; blocks])
    }
    pub(super) fn write(&mut self, block: usize, version: u64) {
        self.0[block].push(version);
    }
    pub(super) fn flush(&mut self) {
        for v in &mut self.0 {
            v.drain(..v.len() - 1);
        }
    }
    pub(super) fn settle(&mut self, block: usize) {
        let v = &mut self.0[block];
        v.drain(..v.len() - 1);
    }
}

/// A block's bytes: zeroes, or its version and number all over.
pub(super) fn bytes(block: usize, version: u64, len: usize) -> Vec<u8> {
    match version {
        0 => vec![0; len],
        v => (v << 16 | block as u64).to_le_bytes().repeat(len / 8),
    }
}

/// Every block is one of those that the model allows; it is the only one from now on.
pub(super) async fn check<D: BlockDevice>(s: &D, model: &mut Model, unit: usize, what: &str) {
    let sectors = unit as u64 / 512;
    for (block, allowed) in model.0.iter_mut().enumerate() {
        let found = match try_read(s, block as u64 * sectors, sectors).await {
            Ok(found) => found,
            Err(e) => panic!("{what}: block {block}: {}", varve_block::chain(&e)),
        };
        let Some(v) = allowed.iter().rev().find(|v| bytes(block, **v, unit) == found) else {
            panic!("{what}: block {block} is none of {allowed:?}: {:?}", &found[..8]);
        };
        *allowed = vec![*v];
    }
}

pub(super) fn disk_geometry(block: u64) -> Geometry {
    Geometry { block: Sectors(block), ..Geometry::new(DevId::new("sim"), DEVICE) }
}

pub(super) fn image_of(disk: &Mem, unit: u64) -> Image {
    let mut image = Image::with_unit(DEVICE, Sectors(unit));
    image.poke(Sector(0), &disk.to_vec());
    image
}

/// A time until a cut, as likely within one operation of the disk as within a hundred.
pub(super) fn moment(chance: &Prng) -> std::time::Duration {
    std::time::Duration::from_nanos(chance.below(1 << (8 + chance.below(11))))
}

/// What is seen is the state after some whole number of flushes, or between two of them per block.
pub(super) fn check_prefix(seen: &[u64], marks: &[(usize, u64)]) {
    let state = |flushes: usize| {
        let mut state = vec![0; seen.len()];
        for (block, version) in &marks[..flushes * 3] {
            state[*block] = *version;
        }
        state
    };
    let rounds = marks.len() / 3;
    let fits = (0..=rounds).any(|n| {
        let (low, high) = (state(n), state((n + 1).min(rounds)));
        seen.iter().enumerate().all(|(i, v)| *v == low[i] || *v == high[i])
    });
    assert!(fits, "{seen:?} is between no two flushes");
}
