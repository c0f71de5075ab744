//! What the first transaction holds: every tree, its items, and the superblock over them
//! (format: btrfs 23).
//!
//! The extent tree records every block, its own too, and so its size depends on itself. Only the
//! *number* of blocks matters for that: it is found first, by trying; then addresses are given out,
//! then items are made with them.

use super::layout::{Layout, Place};
use super::{GENERATION, Identity, MkfsOptions};
use crate::csum::{CsumType, name_hash};
use crate::format::Uuid;
use crate::format::chunk::{BlockGroup, DevExtent, DevItem, DevStats};
use crate::format::dir::DirItem;
use crate::format::extent::{Extent, ExtentFlags, Reference};
use crate::format::free_space::FreeSpaceInfo;
use crate::format::inode::{Inode, InodeFlags, InodeRef, Time};
use crate::format::key::{ItemType as T, Key, objectid as id};
use crate::format::root::Root;
use crate::format::superblock::{
    Backup, CompatRo, Incompat, Label, MAGIC, Reserved, RootPointer, SuperFlags, Superblock,
};
use crate::tree::build::{self, NewItem, Shape, Stamp, TreeBlocks};
use crate::units::Logical;
use crate::verify::{self, Expect, Rules};
use std::collections::BTreeMap;

const DEVID: u64 = 1;

struct Maker<'a> {
    options: &'a MkfsOptions,
    identity: &'a Identity,
    layout: &'a Layout,
    total: u64,
    /// The blocks of each tree, leaves first, its root last.
    blocks: BTreeMap<u64, Vec<Logical>>,
    shapes: BTreeMap<u64, Shape>,
}

/// The superblock, and every tree block sealed and checked.
pub(super) fn make(
    options: &MkfsOptions,
    identity: &Identity,
    label: Label,
    layout: &Layout,
    total: u64,
) -> (Superblock, TreeBlocks) {
    let mut maker = Maker {
        options,
        identity,
        layout,
        total,
        blocks: BTreeMap::new(),
        shapes: BTreeMap::new(),
    };
    maker.allocate();
    let sb = maker.superblock(label);
    let blocks = maker.build(&sb);
    (sb, blocks)
}

impl Maker<'_> {
    fn trees(&self) -> Vec<u64> {
        let mut trees = vec![
            id::ROOT_TREE,
            id::EXTENT_TREE,
            id::CHUNK_TREE,
            id::DEV_TREE,
            id::FS_TREE,
            id::CSUM_TREE,
            id::UUID_TREE,
            id::FREE_SPACE_TREE,
            id::DATA_RELOC_TREE,
        ];
        if self.options.block_group_tree {
            trees.push(id::BLOCK_GROUP_TREE);
        }
        trees
    }

    /// Gives every tree as many blocks as its items need.
    fn allocate(&mut self) {
        let nodesize = self.options.nodesize;
        // Addresses do not change sizes, so any will do while counting.
        let count = |shape: &Shape| vec![Logical(0); shape.blocks()];
        loop {
            let mut stable = true;
            for tree in self.trees() {
                let shape = Shape::of(nodesize, &self.items(tree));
                stable &= self.shapes.get(&tree) == Some(&shape);
                self.blocks.insert(tree, count(&shape));
                self.shapes.insert(tree, shape);
            }
            if stable {
                break;
            }
        }
        let system = self.blocks[&id::CHUNK_TREE].len();
        let system = self.layout.system.allocate(nodesize, system);
        let others: usize = self.blocks.values().map(Vec::len).sum::<usize>() - system.len();
        let mut metadata = self.layout.metadata.allocate(nodesize, others).into_iter();
        for (tree, blocks) in &mut self.blocks {
            *blocks = match *tree {
                id::CHUNK_TREE => system.clone(),
                _ => metadata.by_ref().take(blocks.len()).collect(),
            };
        }
    }

    fn build(&self, sb: &Superblock) -> TreeBlocks {
        let rules = Rules::of(sb).expect("our own checksum type is known");
        let mut all = TreeBlocks::new();
        for tree in self.trees() {
            let stamp = Stamp {
                fsid: self.identity.fsid,
                chunk_tree_uuid: self.identity.chunk_tree,
                bytenr: Logical(0),
                generation: GENERATION,
                owner: tree,
            };
            let blocks = &self.blocks[&tree];
            let built = build::tree(&stamp, self.options.nodesize, &self.items(tree), blocks);
            all.extend(built);
        }
        for (at, block) in &mut all {
            build::seal(block, CsumType::Crc32c);
            check(&rules, *at, block);
        }
        all
    }

    fn root_of(&self, tree: u64) -> RootPointer {
        let shape = self.shapes.get(&tree);
        let last = self.blocks.get(&tree).and_then(|blocks| blocks.last());
        RootPointer {
            block: last.copied().unwrap_or_default(),
            generation: GENERATION,
            level: shape.map_or(0, Shape::level),
        }
    }

    /// Every block of the file system, in order, with its level and tree.
    fn all_blocks(&self) -> Vec<(Logical, u8, u64)> {
        let mut all: Vec<_> = self
            .blocks
            .iter()
            .flat_map(|(tree, blocks)| {
                let levels = self.shapes.get(tree).map(Shape::levels).unwrap_or_default();
                blocks.iter().zip(levels).map(|(at, level)| (*at, level, *tree))
            })
            .collect();
        all.sort();
        all
    }

    /// The blocks inside one chunk.
    fn blocks_in(&self, place: &Place) -> Vec<Logical> {
        let range = place.start..place.start + place.length;
        let all = self.all_blocks().into_iter().map(|(at, ..)| at);
        all.filter(|at| range.contains(&at.0)).collect()
    }

    /// The items of one tree, in order.
    fn items(&self, tree: u64) -> Vec<NewItem> {
        let mut items = match tree {
            id::ROOT_TREE => self.root_tree(),
            id::EXTENT_TREE => self.extent_tree(),
            id::CHUNK_TREE => self.chunk_tree(),
            id::DEV_TREE => self.dev_tree(),
            id::FS_TREE | id::DATA_RELOC_TREE => self.file_tree(tree),
            id::UUID_TREE => self.uuid_tree(),
            id::FREE_SPACE_TREE => self.free_space_tree(),
            id::BLOCK_GROUP_TREE => self.block_groups(),
            _ => Vec::new(),
        };
        items.sort_by_key(|(key, _)| *key);
        items
    }

    fn directory(&self, nbytes: u64) -> Inode {
        let now = self.identity.now;
        Inode {
            generation: GENERATION,
            transid: GENERATION,
            nbytes,
            nlink: 1,
            mode: 0o40755,
            atime: now,
            ctime: now,
            mtime: now,
            otime: now,
            ..Inode::default()
        }
    }

    fn root_tree(&self) -> Vec<NewItem> {
        let top = id::ROOT_TREE_DIR;
        let name = b"default";
        let default = DirItem {
            location: Key::new(id::FS_TREE, T::ROOT_ITEM, u64::MAX),
            transid: 0,
            kind: 2,
            name,
            data: b"",
        };
        let to_default = InodeRef { parent: top, index: 0, name };
        let dotdot = InodeRef { parent: top, index: 0, name: b".." };
        let nodesize = self.options.nodesize.into();
        let mut items = vec![
            (Key::new(id::FS_TREE, T::INODE_REF, top), to_default.encode()),
            (Key::new(top, T::INODE_ITEM, 0), self.directory(nodesize).encode().to_vec()),
            (Key::new(top, T::INODE_REF, top), dotdot.encode()),
            (Key::new(top, T::DIR_ITEM, name_hash(name)), default.encode()),
        ];
        for tree in self.trees() {
            if [id::ROOT_TREE, id::CHUNK_TREE].contains(&tree) {
                continue; // the superblock leads to these
            }
            let root = self.root_item(tree).encode().to_vec();
            items.push((Key::new(tree, T::ROOT_ITEM, 0), root));
        }
        items
    }

    fn root_item(&self, tree: u64) -> Root {
        let nodesize = u64::from(self.options.nodesize);
        let RootPointer { block, generation, level } = self.root_of(tree);
        let top = tree == id::FS_TREE;
        let files = top || tree == id::DATA_RELOC_TREE;
        let born = if top { self.identity.now } else { Time::default() };
        let transid = if top { GENERATION } else { 0 };
        let flags = if top { InodeFlags::ROOT_ITEM_INIT } else { InodeFlags::empty() };
        let blocks = self.blocks.get(&tree).map_or(0, Vec::len) as u64;
        Root {
            inode: Inode {
                generation: 1,
                size: 3,
                nbytes: nodesize,
                nlink: 1,
                mode: 0o40755,
                flags,
                ..Inode::default()
            },
            generation,
            root_dirid: if files { id::FIRST_FREE } else { 0 },
            bytenr: block,
            byte_limit: 0,
            bytes_used: blocks * nodesize,
            last_snapshot: 0,
            flags: 0,
            refs: 1,
            drop_progress: Key::MIN,
            drop_level: 0,
            level,
            generation_v2: generation,
            uuid: if top { self.identity.top_level } else { Uuid::nil() },
            parent_uuid: Uuid::nil(),
            received_uuid: Uuid::nil(),
            ctransid: transid,
            otransid: transid,
            stransid: 0,
            rtransid: 0,
            ctime: born,
            otime: born,
            stime: Time::default(),
            rtime: Time::default(),
            reserved: [0; 64],
        }
    }

    fn extent_tree(&self) -> Vec<NewItem> {
        let record = |(at, level, tree): (Logical, u8, u64)| {
            let extent = Extent {
                refs: 1,
                generation: GENERATION,
                flags: ExtentFlags::TREE_BLOCK,
                tree_block: None,
                inline: vec![Reference::TreeBlock { root: tree }],
            };
            (Key::new(at.0, T::METADATA_ITEM, level.into()), extent.encode())
        };
        let mut items: Vec<_> = self.all_blocks().into_iter().map(record).collect();
        if !self.options.block_group_tree {
            items.extend(self.block_groups());
        }
        items
    }

    fn block_groups(&self) -> Vec<NewItem> {
        let nodesize = u64::from(self.options.nodesize);
        let item = |place: &Place| {
            let group = BlockGroup {
                used: self.blocks_in(place).len() as u64 * nodesize,
                chunk_objectid: id::FIRST_CHUNK_TREE,
                flags: place.flags,
            };
            let key = Key::new(place.start, T::BLOCK_GROUP_ITEM, place.length);
            (key, group.encode().to_vec())
        };
        self.layout.places_in_order().map(item).to_vec()
    }

    fn chunk_of(&self, place: &Place) -> (Logical, crate::format::chunk::Chunk) {
        let chunk = place.chunk(DEVID, self.identity.device, self.options.sectorsize);
        (Logical(place.start), chunk)
    }

    fn dev_item(&self) -> DevItem {
        let sector = self.options.sectorsize;
        let places = self.layout.places_in_order();
        DevItem {
            devid: DEVID,
            total_bytes: self.total,
            bytes_used: places.map(|p| p.length * p.copies.len() as u64).iter().sum(),
            io_align: sector,
            io_width: sector,
            sector_size: sector,
            uuid: self.identity.device,
            fsid: self.identity.fsid,
            ..DevItem::default()
        }
    }

    fn chunk_tree(&self) -> Vec<NewItem> {
        let device = Key::new(id::DEV_ITEMS, T::DEV_ITEM, DEVID);
        let mut items = vec![(device, self.dev_item().encode().to_vec())];
        for place in self.layout.places_in_order() {
            let (start, chunk) = self.chunk_of(place);
            let key = Key::new(id::FIRST_CHUNK_TREE, T::CHUNK_ITEM, start.0);
            items.push((key, chunk.encode()));
        }
        items
    }

    fn dev_tree(&self) -> Vec<NewItem> {
        let stats = DevStats::default().encode().to_vec();
        let mut items = vec![(Key::new(0, T::PERSISTENT_ITEM, DEVID), stats)];
        for place in self.layout.places_in_order() {
            let extent = DevExtent {
                chunk_tree: id::CHUNK_TREE,
                chunk_objectid: id::FIRST_CHUNK_TREE,
                chunk_offset: Logical(place.start),
                length: place.length,
                chunk_tree_uuid: self.identity.chunk_tree,
            };
            for at in &place.copies {
                let key = Key::new(DEVID, T::DEV_EXTENT, *at);
                items.push((key, extent.encode().to_vec()));
            }
        }
        items
    }

    /// A file tree with an empty root directory.
    fn file_tree(&self, tree: u64) -> Vec<NewItem> {
        let top = id::FIRST_FREE;
        // A quirk of the reference tool, which its checker tolerates for this one directory only.
        let nbytes = if tree == id::FS_TREE { self.options.nodesize.into() } else { 0 };
        let dotdot = InodeRef { parent: top, index: 0, name: b".." };
        vec![
            (Key::new(top, T::INODE_ITEM, 0), self.directory(nbytes).encode().to_vec()),
            (Key::new(top, T::INODE_REF, top), dotdot.encode()),
        ]
    }

    fn uuid_tree(&self) -> Vec<NewItem> {
        let uuid = self.identity.top_level.into_bytes();
        let (low, high) = uuid.split_at(8);
        let number = |half: &[u8]| u64::from_le_bytes(half.try_into().expect("half a uuid"));
        let key = Key::new(number(low), T::UUID_KEY_SUBVOL, number(high));
        vec![(key, id::FS_TREE.to_le_bytes().to_vec())]
    }

    fn free_space_tree(&self) -> Vec<NewItem> {
        let mut items = Vec::new();
        for place in self.layout.places_in_order() {
            let free = place.free(&self.blocks_in(place), self.options.nodesize);
            let extent_count = u32::try_from(free.len()).expect("a handful of runs");
            let info = FreeSpaceInfo { extent_count, flags: 0 };
            let key = Key::new(place.start, T::FREE_SPACE_INFO, place.length);
            items.push((key, info.encode().to_vec()));
            for run in free {
                let key = Key::new(run.start, T::FREE_SPACE_EXTENT, run.end - run.start);
                items.push((key, Vec::new()));
            }
        }
        items
    }

    fn superblock(&self, label: Label) -> Superblock {
        let MkfsOptions { nodesize, sectorsize, .. } = *self.options;
        let bytes_used = self.all_blocks().len() as u64 * u64::from(nodesize);
        let (root, chunk_root) = (self.root_of(id::ROOT_TREE), self.root_of(id::CHUNK_TREE));
        let mut sb = Superblock {
            fsid: self.identity.fsid,
            bytenr: 0,
            flags: SuperFlags::WRITTEN,
            magic: MAGIC,
            generation: GENERATION,
            root: root.block,
            chunk_root: chunk_root.block,
            log_root: Logical(0),
            total_bytes: self.total,
            bytes_used,
            root_dir_objectid: id::ROOT_TREE_DIR,
            num_devices: 1,
            sectorsize,
            nodesize,
            leafsize: nodesize,
            stripesize: sectorsize,
            sys_chunk_array_size: 0,
            chunk_root_generation: GENERATION,
            compat: 0,
            compat_ro: self.compat_ro(),
            incompat: self.incompat(),
            csum_type: CsumType::Crc32c.to_disk(),
            root_level: root.level,
            chunk_root_level: chunk_root.level,
            log_root_level: 0,
            dev_item: self.dev_item(),
            label,
            cache_generation: 0,
            uuid_tree_generation: GENERATION,
            metadata_uuid: Uuid::nil(),
            sys_chunk_array: Box::new([0; 2048]),
            backups: [Backup::default(); 4],
            reserved: Reserved::default(),
        };
        sb.set_sys_chunks(&[self.chunk_of(&self.layout.system)]);
        if let Some(first) = sb.backups.first_mut() {
            *first = self.backup(bytes_used);
        }
        sb
    }

    fn compat_ro(&self) -> CompatRo {
        let tree = CompatRo::FREE_SPACE_TREE | CompatRo::FREE_SPACE_TREE_VALID;
        match self.options.block_group_tree {
            true => tree | CompatRo::BLOCK_GROUP_TREE,
            false => tree,
        }
    }

    fn incompat(&self) -> Incompat {
        let base = Incompat::MIXED_BACKREF
            | Incompat::EXTENDED_IREF
            | Incompat::SKINNY_METADATA
            | Incompat::NO_HOLES;
        if self.options.nodesize > 4096 { base | Incompat::BIG_METADATA } else { base }
    }

    fn backup(&self, bytes_used: u64) -> Backup {
        Backup {
            tree_root: self.root_of(id::ROOT_TREE),
            chunk_root: self.root_of(id::CHUNK_TREE),
            extent_root: self.root_of(id::EXTENT_TREE),
            fs_root: self.root_of(id::FS_TREE),
            dev_root: self.root_of(id::DEV_TREE),
            csum_root: self.root_of(id::CSUM_TREE),
            total_bytes: self.total,
            bytes_used,
            num_devices: 1,
        }
    }
}

/// What goes to disk passes the same door as what comes from it.
fn check(rules: &Rules, at: Logical, block: &[u8]) {
    let header = crate::format::block::Header::parse(block).expect("a built block has a header");
    let expect = Expect {
        logical: at,
        level: header.level,
        generation: Some(GENERATION),
        first_key: None,
        owner: Some(header.owner),
    };
    let verdict = verify::read_block(rules, block, &expect, 1);
    assert!(verdict.is_ok(), "mkfs made a bad block: {verdict:?}");
}
