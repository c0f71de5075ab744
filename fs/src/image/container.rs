//! A dump's table of contents: which logical address is where in the stream.
//!
//! Only heads are read to make it. Payloads are unpacked when they are asked for, and the last few
//! kept: neighbours in a tree are neighbours in a payload.

use super::format::{Cluster, HEAD_SIZE, PAYLOAD_MAX, SUPER_ITEM};
use crate::error::{Error, Result};
use crate::inspect::bytes::read_bytes;
use crate::units::{Logical, to_usize};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io::Read;
use std::rc::Rc;
use varve_block::BlockDevice;

/// Payloads kept unpacked.
const KEPT: usize = 8;
/// Items a dump may have: four terabytes of metadata at the writer's 256 KiB apiece.
const ITEMS_TOTAL_MAX: usize = 1 << 24;

/// Where one payload is in the stream.
#[derive(Clone, Copy, Debug)]
struct Item {
    at: u64,
    size: u32,
    packed: bool,
}

impl Item {
    /// The most bytes that it can unpack to: no zlib stream grows by more than 1032.
    fn reach(&self) -> u64 {
        let size = u64::from(self.size);
        if self.packed { (size * 1032).min(PAYLOAD_MAX) } else { size }
    }
}

/// An opened dump.
pub(crate) struct Container<D> {
    below: D,
    items: BTreeMap<u64, Item>,
    superblock: Item,
    kept: RefCell<VecDeque<(u64, Rc<[u8]>)>>,
}

impl<D: BlockDevice> Container<D> {
    /// Reads every head.
    pub(crate) async fn open(below: D) -> Result<Container<D>> {
        let geometry = below.geometry();
        let (dev, end) = (&geometry.dev, geometry.len.bytes());
        let mut items = BTreeMap::new();
        let mut superblock = None;
        let mut at = 0;
        while at < end {
            let mut head = [0; HEAD_SIZE];
            let Some(mut payload) = at.checked_add(HEAD_SIZE as u64).filter(|at| *at <= end) else {
                return Err(truncated(dev, at, end));
            };
            read_bytes(&below, at, &mut head).await?;
            let cluster = Cluster::parse(&head, at).map_err(|wrong| {
                Error::corrupt(format!("{dev}: metadata dump, cluster at byte {at}")).because(wrong)
            })?;
            if cluster.items.is_empty() {
                break;
            }
            for (logical, size) in cluster.items {
                let item = Item { at: payload, size, packed: cluster.packed };
                payload += u64::from(size);
                if payload > end {
                    return Err(truncated(dev, at, end));
                }
                if logical == SUPER_ITEM && superblock.is_none() {
                    superblock = Some(item);
                } else {
                    items.insert(logical.0, item);
                }
            }
            if items.len() > ITEMS_TOTAL_MAX {
                let message =
                    format!("{dev}: a metadata dump of more than {ITEMS_TOTAL_MAX} items");
                return Err(Error::unsupported(message));
            }
            at = payload.next_multiple_of(HEAD_SIZE as u64);
        }
        let Some(superblock) = superblock else {
            return Err(Error::corrupt(format!("{dev}: a metadata dump without a superblock")));
        };
        Ok(Container { below, items, superblock, kept: RefCell::default() })
    }

    pub(crate) fn below(&self) -> &D {
        &self.below
    }

    /// Whether the dump has nothing at `at`, and for how many bytes of `most` that is so. How long a
    /// packed run is, is known only once it was unpacked: up to where it could reach counts as data.
    pub(crate) fn hole_at(&self, at: Logical, most: u64) -> (bool, u64) {
        let next = self.items.range(at.0.saturating_add(1)..).next();
        let next = next.map_or(u64::MAX, |(start, _)| *start) - at.0;
        let reach = self
            .items
            .range(..=at.0)
            .next_back()
            .map_or(0, |(start, item)| start.saturating_add(item.reach()).saturating_sub(at.0));
        match reach {
            0 => (true, next.min(most)),
            reach => (false, reach.min(next).min(most)),
        }
    }

    pub(crate) async fn superblock(&self) -> Result<Rc<[u8]>> {
        self.unpack(SUPER_ITEM.0, self.superblock).await
    }

    /// Fills `out` with what the dump has from `at` on; zeroes where it has nothing.
    pub(crate) async fn read(&self, at: Logical, out: &mut [u8]) -> Result<()> {
        out.fill(0);
        let end = at.0.saturating_add(out.len() as u64);
        // A run that begins before `at` may reach into it; of those only the last can, for runs
        // do not overlap. Where they do, the later one counts.
        let before = self.items.range(..=at.0).next_back();
        let next = at.0.saturating_add(1);
        let inside = self.items.range(next..end.max(next));
        let runs: Vec<(u64, Item)> =
            before.into_iter().chain(inside).map(|(at, item)| (*at, *item)).collect();
        for (start, item) in runs {
            if start.saturating_add(item.reach()) <= at.0 {
                continue;
            }
            let bytes = self.kept(start, item).await?;
            let from = at.0.max(start);
            let Some(bytes) = bytes.get(to_usize(from - start)..) else { continue };
            let room = &mut out[to_usize(from - at.0)..];
            let len = bytes.len().min(room.len());
            room[..len].copy_from_slice(&bytes[..len]);
        }
        Ok(())
    }

    /// From memory, or unpacked.
    async fn kept(&self, logical: u64, item: Item) -> Result<Rc<[u8]>> {
        let known = self.kept.borrow().iter().find(|(at, _)| *at == logical).cloned();
        if let Some((_, bytes)) = known {
            return Ok(bytes);
        }
        let bytes = self.unpack(logical, item).await?;
        let mut kept = self.kept.borrow_mut();
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back((logical, Rc::clone(&bytes)));
        Ok(bytes)
    }

    async fn unpack(&self, logical: u64, item: Item) -> Result<Rc<[u8]>> {
        let mut stored = vec![0; item.size as usize];
        read_bytes(&self.below, item.at, &mut stored).await?;
        if !item.packed {
            return Ok(stored.into());
        }
        let mut bytes = Vec::new();
        let mut stream = flate2::read::ZlibDecoder::new(&*stored).take(PAYLOAD_MAX + 1);
        let damaged = |why: &str| {
            let dev = self.below.geometry().dev;
            let at = item.at;
            Error::corrupt(format!("{dev}: metadata dump, item {logical} at byte {at}: {why}"))
        };
        match stream.read_to_end(&mut bytes) {
            Ok(_) if bytes.len() as u64 > PAYLOAD_MAX => Err(damaged("unpacks to above 16 MiB")),
            Ok(_) => Ok(bytes.into()),
            Err(error) => Err(damaged("not a whole zlib stream").because(error)),
        }
    }
}

fn truncated(dev: &varve_block::DevId, cluster: u64, end: u64) -> Error {
    Error::corrupt(format!(
        "{dev}: metadata dump, cluster at byte {cluster}: its items reach behind the end of the file \
         at byte {end}: truncated"
    ))
}
