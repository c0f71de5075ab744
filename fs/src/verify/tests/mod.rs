//! One broken block per rule, with the rule and the words that the kernel would use; and the largest
//! and smallest legal values, which must pass: a checker that is too strict loses data too.

#![allow(clippy::too_many_lines, reason = "one table of broken blocks per kind of item")]

pub(super) mod audit;
mod blocks;
mod edges;
mod extents;
mod files;
mod roots;
mod space;

use super::*;
use crate::csum::name_hash;
use crate::format::block::{FLAG_RELOC, Pointer};
use crate::format::chunk::{BlockGroup, Chunk, DevExtent, DevItem, GroupFlags, Stripe};
use crate::format::dir::DirItem;
use crate::format::extent::{DataRef, Extent, ExtentFlags, Reference};
use crate::format::file_extent::{Body, Compression, FileExtent, Place};
use crate::format::inode::{Inode, InodeFlags, InodeRef};
use crate::format::root::{Root, RootRef};
use crate::tree::build::{self, NewItem, Stamp};
use ItemType as T;
use objectid as id;

const NODE: u32 = 16384;
const AT: Logical = Logical(30_408_704);

fn rules() -> Rules {
    Rules {
        sectorsize: 4096,
        nodesize: NODE,
        csum: CsumType::Crc32c,
        incompat: Incompat::SKINNY_METADATA,
        generation_max: 10,
        fsids: vec![Uuid::from_u128(7)],
        writable: true,
        changing_csums: false,
    }
}

fn stamp(owner: u64) -> Stamp {
    Stamp {
        fsid: Uuid::from_u128(7),
        chunk_tree_uuid: Uuid::from_u128(8),
        bytenr: AT,
        generation: 9,
        owner,
    }
}

fn leaf_of(owner: u64, items: &[NewItem]) -> Vec<u8> {
    build::leaf(&stamp(owner), NODE, items)
}

/// The first broken rule of a leaf of `items`.
fn judge(owner: u64, items: &[NewItem]) -> Option<(u8, String)> {
    leaf(&rules(), &leaf_of(owner, items)).err().map(|c| (c.rule, c.message))
}

#[track_caller]
fn broken(rule: u8, owner: u64, items: &[NewItem], words: &str) {
    let (found, message) = judge(owner, items).expect("a broken rule");
    assert_eq!((found, message.ends_with(words)), (rule, true), "{message}\nexpected: {words}");
}

#[track_caller]
fn fine(owner: u64, items: &[NewItem]) {
    assert_eq!(judge(owner, items), None);
}

fn item(objectid: u64, kind: ItemType, offset: u64, data: impl AsRef<[u8]>) -> NewItem {
    (Key::new(objectid, kind, offset), data.as_ref().to_vec())
}

/// `data` with some bytes overwritten.
fn patch(data: impl AsRef<[u8]>, at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut data = data.as_ref().to_vec();
    data[at..at + bytes.len()].copy_from_slice(bytes);
    data
}

fn place(at: u64, len: u64) -> Place {
    Place { disk_bytenr: Logical(at), disk_num_bytes: len, offset: 0, num_bytes: len }
}

fn regular(place: Place) -> Vec<u8> {
    FileExtent {
        generation: 9,
        ram_bytes: place.disk_num_bytes,
        compression: Compression::None,
        body: Body::Regular(place),
    }
    .encode()
}

fn inline(data: &[u8]) -> Vec<u8> {
    FileExtent {
        generation: 9,
        ram_bytes: data.len() as u64,
        compression: Compression::None,
        body: Body::Inline(data),
    }
    .encode()
}

/// A run of a device that a chunk has.
fn dev_extent() -> DevExtent {
    DevExtent {
        chunk_tree: 3,
        chunk_objectid: 256,
        chunk_offset: Logical(1 << 20),
        length: 8192,
        chunk_tree_uuid: Uuid::nil(),
    }
}

fn dev_extent_at(offset: u64, extent: DevExtent) -> NewItem {
    item(1, T::DEV_EXTENT, offset, extent.encode())
}
