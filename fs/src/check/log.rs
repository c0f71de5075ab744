//! The log tree: what was fsynced since the last commit, and is replayed at the next mount (format:
//! btrfs 15). Nothing else knows its blocks and data, so its faults show nowhere but here.

use super::finding::Code;
use super::roots::{Roots, pointer};
use super::run::Run;
use super::runs::Runs;
use super::walk::{Step, Walk};
use crate::error::Place;
use crate::format::file_extent::{Body, FileExtent};
use crate::format::inode::{Inode, InodeFlags};
use crate::format::key::{ItemType, objectid};
use crate::format::root::Root;
use crate::format::superblock::RootPointer;
use crate::tree::cursor::Tree;
use crate::units::Logical;
use varve_block::BlockDevice;

pub(super) async fn check<D: BlockDevice>(run: &Run<'_, '_, D>, roots: &Roots, csums: &Runs) {
    let sb = run.sb();
    if sb.log_root.0 == 0 {
        return;
    }
    let generation = sb.generation.saturating_add(1);
    let root = RootPointer { block: sb.log_root, generation, level: sb.log_root_level };
    let mut logs = Vec::new();
    let mut walk = Walk::new(run.reader, Tree::new(objectid::TREE_LOG, root), None);
    while let Some(step) = walk.next().await {
        let Step::Block(block) = step else { continue };
        for slot in 0..block.len() {
            let Some((key, data)) = block.item(slot) else { continue };
            let root = Root::parse(data).ok();
            match root
                .filter(|_| (key.objectid, key.kind) == (objectid::TREE_LOG, ItemType::ROOT_ITEM))
            {
                Some(root) => logs.push((key.offset, pointer(&root))),
                None => tell(run, None, format!("unknown key {key} in the log root tree")),
            }
        }
    }
    run.reader.forget();
    for (subvolume, root) in logs {
        if roots.alive(subvolume).is_none() {
            let text =
                format!("the log of subvolume {subvolume}, which does not exist, is ignored");
            let place = Place { root: Some(subvolume), ..Place::default() };
            run.findings.warn(Code::LogTree, place, text);
        }
        one(run, subvolume, Tree::new(objectid::TREE_LOG, root), csums).await;
    }
}

fn tell<D: BlockDevice>(run: &Run<'_, '_, D>, root: Option<u64>, text: String) {
    run.findings.add(Code::LogTree, Place { root, ..Place::default() }, text);
}

/// Data of a log: where it is, and whose.
struct Logged {
    at: u64,
    len: u64,
    inode: u64,
}

async fn one<D: BlockDevice>(run: &Run<'_, '_, D>, subvolume: u64, tree: Tree, csums: &Runs) {
    let sector = u64::from(run.sb().sectorsize);
    let each = run.reader.volume.rules.csum.size() as u64;
    let (mut logged, mut own) = (Vec::new(), Runs::new(run.sb().sectorsize));
    let mut unsummed = None;
    let mut walk = Walk::new(run.reader, tree, None);
    while let Some(step) = walk.next().await {
        let Step::Block(block) = step else { continue };
        for slot in 0..block.len() {
            let Some((key, data)) = block.item(slot) else { continue };
            let inode = key.objectid;
            match key.kind {
                ItemType::INODE_ITEM => {
                    let flags = Inode::parse(data).ok().map(|inode| inode.flags);
                    if flags.is_some_and(|flags| flags.contains(InodeFlags::NODATASUM)) {
                        unsummed = Some(inode);
                    }
                }
                ItemType::EXTENT_CSUM => own.add(key.offset, data.len() as u64 / each * sector),
                ItemType::EXTENT_DATA => {
                    let Ok(extent) = FileExtent::parse(data) else { continue };
                    let summed = unsummed != Some(inode);
                    if let (true, Body::Regular(_)) = (summed, &extent.body)
                        && let Some((read, _)) = extent.covered()
                    {
                        let (at, len) = (read.start, read.end - read.start);
                        logged.push(Logged { at, len, inode });
                    }
                }
                ItemType::INODE_REF
                | ItemType::INODE_EXTREF
                | ItemType::XATTR_ITEM
                | ItemType::DIR_ITEM
                | ItemType::DIR_INDEX
                | ItemType::DIR_LOG_ITEM
                | ItemType::DIR_LOG_INDEX
                | ItemType::ORPHAN_ITEM => {}
                _ => tell(run, Some(subvolume), format!("unknown key {key} in a log tree")),
            }
        }
    }
    run.reader.forget();
    for Logged { at, len, inode } in logged {
        let have: u64 = csums
            .gaps_in(at..at.saturating_add(len))
            .into_iter()
            .map(|gap| (gap.end - gap.start) - own.bytes_in(gap))
            .sum();
        if have > 0 {
            let text = format!(
                "csum missing in log (root {subvolume}, inode {inode}, extent [{at} {len}]): {have} \
                 bytes have none"
            );
            let place = Place {
                root: Some(subvolume),
                inode: Some(inode),
                logical: Some(Logical(at)),
                ..Place::default()
            };
            run.findings.add(Code::LogTree, place, text);
        }
    }
}
