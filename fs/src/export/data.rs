//! Contents for an export: the good sectors of an extent, and which were not.

use super::report::Range;
use crate::error::ErrorKind;
use crate::fs::Fs;
use crate::tree::cursor::Tree;
use crate::units::{Logical, to_usize};
use crate::volume::{Owner, Sums};
use varve_block::{BlockDevice, chain};

/// How much is read at once where files lie one behind the other: small files then cost no request of
/// their own.
const AHEAD: u64 = 1 << 20;
/// Larger reads go by themselves.
const SMALL: usize = 256 << 10;

/// How good the bytes are that were read.
#[derive(Debug, Default)]
pub(crate) struct Quality {
    /// Counted from the start of the read; the bytes there are zero.
    pub(crate) bad: Vec<Range>,
    /// Some sectors have no checksum to compare with, although their file should have them.
    pub(crate) unverified: bool,
}

/// What data is compared with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trust {
    /// It has no checksums.
    Nothing,
    /// Its checksums.
    Today,
    /// The checksums of an older commit, and nothing is right that has none.
    Then(Tree),
}

/// Reads extents, and what follows a small one with it.
#[derive(Debug, Default)]
pub(crate) struct DataReader {
    ahead_at: u64,
    ahead: Vec<u8>,
    /// Where the last read ended.
    last_end: u64,
}

impl DataReader {
    /// Fills `out`, whole sectors, with the best copy of each sector.
    pub(crate) async fn read<D: BlockDevice>(
        &mut self,
        fs: &Fs<D>,
        at: Logical,
        out: &mut [u8],
        trust: Trust,
        owner: &Owner,
    ) -> Quality {
        let len = out.len() as u64;
        let sums = match trust {
            Trust::Nothing => None,
            Trust::Today => Some(fs.sums(at, len).await),
            Trust::Then(tree) => Some(fs.sums_in(&tree, at, len).await),
        };
        let (unverified, sums) = match sums {
            Some(Err(_)) => (true, None),
            sums => (false, sums.and_then(Result::ok)),
        };
        let quality = Quality { unverified, ..Quality::default() };
        let quality = self.read_by(fs, at, out, sums, owner, quality).await;
        if quality.unverified && matches!(trust, Trust::Then(_)) {
            out.fill(0);
            let why = "it was freed since, and has no checksum of then".to_owned();
            return Quality { bad: vec![Range { at: 0, len, why }], unverified: false };
        }
        quality
    }

    async fn read_by<D: BlockDevice>(
        &mut self,
        fs: &Fs<D>,
        at: Logical,
        out: &mut [u8],
        sums: Option<Sums>,
        owner: &Owner,
        mut quality: Quality,
    ) -> Quality {
        let len = out.len() as u64;
        let near = at.0.wrapping_sub(self.last_end) < AHEAD;
        self.last_end = at.0.saturating_add(len);
        if out.len() <= SMALL && self.take_ahead(fs, at, out, near).await {
            let unsure = sums.as_ref().map(|sums| check(fs, out, sums));
            if unsure.is_none_or(|all_good| all_good) {
                return quality;
            }
        }
        if fs.volume.read_data(at, out, sums.as_ref(), owner).await.is_ok() {
            return quality;
        }
        self.by_sector(fs, at, out, sums.as_ref(), owner, &mut quality).await;
        quality
    }

    /// Takes the bytes from what was read ahead, reading on where the last read ended nearby.
    async fn take_ahead<D: BlockDevice>(
        &mut self,
        fs: &Fs<D>,
        at: Logical,
        out: &mut [u8],
        near: bool,
    ) -> bool {
        let held = |ahead: &Vec<u8>, from: u64| {
            let skip = to_usize(at.0.checked_sub(from)?);
            let end = skip.checked_add(out.len())?;
            (end <= ahead.len()).then_some(skip..end)
        };
        let range = match held(&self.ahead, self.ahead_at) {
            Some(range) => range,
            None if near => {
                let room = match fs.volume.chunks().borrow().find(at) {
                    Some((start, chunk)) => start.0.saturating_add(chunk.length) - at.0,
                    None => return false,
                };
                self.ahead.resize(to_usize(room.min(AHEAD)), 0);
                self.ahead_at = at.0;
                if fs.volume.read_mirror(at, 1, &mut self.ahead).await.is_err() {
                    self.ahead.clear();
                    return false;
                }
                match held(&self.ahead, self.ahead_at) {
                    Some(range) => range,
                    None => return false,
                }
            }
            None => return false,
        };
        match self.ahead.get(range) {
            Some(bytes) => {
                out.copy_from_slice(bytes);
                true
            }
            None => false,
        }
    }

    /// Each sector by itself: good, or unverified, or zero and listed.
    async fn by_sector<D: BlockDevice>(
        &self,
        fs: &Fs<D>,
        at: Logical,
        out: &mut [u8],
        sums: Option<&Sums>,
        owner: &Owner,
        quality: &mut Quality,
    ) {
        let sector = fs.volume.rules.sectorsize as usize;
        for (n, bytes) in (0u64..).zip(out.chunks_mut(sector)) {
            let from = n * sector as u64;
            let here = Logical(at.0.saturating_add(from));
            let whose = Owner { offset: owner.offset.wrapping_add(from), ..*owner };
            let one = sums.and_then(|sums| sums.at(n)).map(|digest| {
                let mut one = Sums::new(digest.len(), 1);
                one.put(digest, 0, 0);
                one
            });
            if sums.is_some() && one.is_none() {
                quality.unverified = true;
            }
            let Err(error) = fs.volume.read_data(here, bytes, one.as_ref(), &whose).await else {
                continue;
            };
            bytes.fill(0);
            let why = match error.kind {
                ErrorKind::Corrupt | ErrorKind::Io => error.source.as_deref().map(|s| chain(s)),
                _ => None,
            };
            let why = why.unwrap_or_else(|| chain(&error));
            match quality.bad.last_mut() {
                Some(last) if last.at + last.len == from => last.len += bytes.len() as u64,
                _ => quality.bad.push(Range { at: from, len: bytes.len() as u64, why }),
            }
        }
    }
}

/// Whether every sector has its checksum, and it is right.
fn check<D: BlockDevice>(fs: &Fs<D>, bytes: &[u8], sums: &Sums) -> bool {
    let rules = &fs.volume.rules;
    let sectors = bytes.chunks(rules.sectorsize as usize);
    (0u64..).zip(sectors).all(|(n, sector)| sums.at(n) == Some(rules.csum.digest(sector).bytes()))
}
