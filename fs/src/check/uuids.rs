//! The UUID tree: an index from uuids to subvolumes, which the kernel corrects by itself when it does
//! not trust it. So what is wrong with it is a warning (format: btrfs 12.7).

use super::finding::Code;
use super::roots::Roots;
use super::run::Run;
use super::walk::{Step, Walk};
use crate::error::Place;
use crate::format::Uuid;
use crate::format::key::{ItemType, Key, objectid};
use std::collections::BTreeSet;
use varve_block::BlockDevice;

pub(super) async fn check<D: BlockDevice>(run: &Run<'_, '_, D>, roots: &Roots) {
    let Some(tree) = roots.tree(objectid::UUID_TREE) else { return };
    let mut seen: BTreeSet<(ItemType, Uuid, u64)> = BTreeSet::new();
    let mut walk = Walk::new(run.reader, tree, None);
    while let Some(step) = walk.next().await {
        let Step::Block(block) = step else { return };
        for slot in 0..block.len() {
            let Some((key, data)) = block.item(slot) else { continue };
            if !is_entry(key) {
                tell(run, format!("unknown key {key} in the uuid tree"));
                continue;
            }
            if data.is_empty() || data.len() % 8 != 0 {
                tell(run, format!("uuid item {key} has illegal size {}", data.len()));
            }
            for id in data.chunks_exact(8) {
                let id = u64::from_le_bytes(id.try_into().unwrap_or_default());
                seen.insert((key.kind, uuid_of(key), id));
            }
        }
    }
    run.reader.forget();
    // The kernel looks through it once more if it was not kept up to date.
    if run.sb().uuid_tree_generation != run.sb().generation {
        return;
    }
    let mut expected: BTreeSet<(ItemType, Uuid, u64)> = BTreeSet::new();
    for (key, root) in &roots.items {
        if !objectid::is_file_tree(key.objectid) || root.refs == 0 || !root.is_v2() {
            continue;
        }
        for (kind, uuid) in [
            (ItemType::UUID_KEY_SUBVOL, root.uuid),
            (ItemType::UUID_KEY_RECEIVED_SUBVOL, root.received_uuid),
        ] {
            if uuid != Uuid::nil() {
                expected.insert((kind, uuid, key.objectid));
            }
        }
    }
    for (kind, uuid, id) in seen.difference(&expected) {
        tell(run, format!("uuid tree: {} {uuid} leads to {id}, which has another", word(*kind)));
    }
    for (kind, uuid, id) in expected.difference(&seen) {
        tell(run, format!("uuid tree: {} {uuid} of {id} is missing", word(*kind)));
    }
}

fn is_entry(key: Key) -> bool {
    [ItemType::UUID_KEY_SUBVOL, ItemType::UUID_KEY_RECEIVED_SUBVOL].contains(&key.kind)
}

fn word(kind: ItemType) -> &'static str {
    if kind == ItemType::UUID_KEY_SUBVOL { "uuid" } else { "received uuid" }
}

fn uuid_of(key: Key) -> Uuid {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&key.objectid.to_le_bytes());
    bytes[8..].copy_from_slice(&key.offset.to_le_bytes());
    Uuid::from_bytes(bytes)
}

fn tell<D: BlockDevice>(run: &Run<'_, '_, D>, text: String) {
    let place = Place { root: Some(objectid::UUID_TREE), ..Place::default() };
    run.findings.warn(Code::UuidTree, place, text);
}
