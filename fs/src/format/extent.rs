//! Extent records: what is allocated, and who refers to it (format: btrfs 7).

use super::key::{ItemType, Key, RawKey};
use super::{Result, Wrong, exactly, head, wrong};
use crate::csum::extent_data_ref_hash;
use crate::units::Logical;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

bitflags::bitflags! {
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct ExtentFlags: u64 {
        const DATA = 1 << 0;
        const TREE_BLOCK = 1 << 1;
        /// The block's own references are keyed by its address, not by its owner.
        const FULL_BACKREF = 1 << 8;
        const _ = !0;
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub(crate) struct RawExtent {
    refs: U64,
    generation: U64,
    flags: U64,
}
const _: () = assert!(size_of::<RawExtent>() == EXTENT_SIZE);
pub(crate) const EXTENT_SIZE: usize = 24;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub(crate) struct RawTreeInfo {
    key: RawKey,
    level: u8,
}
const _: () = assert!(size_of::<RawTreeInfo>() == 18);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub(crate) struct RawDataRef {
    root: U64,
    inode: U64,
    offset: U64,
    count: U32,
}
const _: () = assert!(size_of::<RawDataRef>() == DATA_REF_SIZE);
pub(crate) const DATA_REF_SIZE: usize = 28;

/// Smallest inline reference: a type and a number.
pub(crate) const INLINE_REF_SIZE: usize = 9;

/// EXTENT_ITEM or METADATA_ITEM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Sum of the counts of all references, inline and keyed.
    pub refs: u64,
    /// Transaction that allocated it.
    pub generation: u64,
    pub flags: ExtentFlags,
    /// First key and level: only in the long form of a tree block's record.
    pub tree_block: Option<(Key, u8)>,
    pub inline: Vec<Reference>,
}

/// Data referred to by the file extents of one inode.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DataRef {
    pub root: u64,
    pub inode: u64,
    /// File position of the EXTENT_DATA key minus its offset into the extent, wrapping: a split of
    /// the file extent does not change it.
    pub offset: u64,
    pub count: u32,
}

impl DataRef {
    pub fn hash(&self) -> u64 {
        extent_data_ref_hash(self.root, self.inode, self.offset)
    }

    /// A keyed EXTENT_DATA_REF.
    pub fn parse(bytes: &[u8]) -> Result<DataRef> {
        Ok(DataRef::from(exactly::<RawDataRef>(bytes, "28")?))
    }

    pub fn encode(&self) -> [u8; DATA_REF_SIZE] {
        zerocopy::transmute!(RawDataRef {
            root: self.root.into(),
            inode: self.inode.into(),
            offset: self.offset.into(),
            count: self.count.into(),
        })
    }
}

impl From<&RawDataRef> for DataRef {
    fn from(raw: &RawDataRef) -> DataRef {
        DataRef {
            root: raw.root.get(),
            inode: raw.inode.get(),
            offset: raw.offset.get(),
            count: raw.count.get(),
        }
    }
}

/// One back reference of an extent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reference {
    /// Simple quotas: who pays for it. Not counted in `refs`.
    Owner {
        root: u64,
    },
    /// A tree holds the block.
    TreeBlock {
        root: u64,
    },
    Data(DataRef),
    /// The node at `parent` holds the block.
    SharedBlock {
        parent: Logical,
    },
    /// The leaf at `parent` holds `count` file extents of it.
    SharedData {
        parent: Logical,
        count: u32,
    },
}

impl Reference {
    pub fn kind(&self) -> ItemType {
        match self {
            Reference::Owner { .. } => ItemType::EXTENT_OWNER_REF,
            Reference::TreeBlock { .. } => ItemType::TREE_BLOCK_REF,
            Reference::Data(_) => ItemType::EXTENT_DATA_REF,
            Reference::SharedBlock { .. } => ItemType::SHARED_BLOCK_REF,
            Reference::SharedData { .. } => ItemType::SHARED_DATA_REF,
        }
    }

    /// Order within one kind, descending.
    pub fn sequence(&self) -> u64 {
        match self {
            Reference::Owner { root } | Reference::TreeBlock { root } => *root,
            Reference::Data(data) => data.hash(),
            Reference::SharedBlock { parent } | Reference::SharedData { parent, .. } => parent.0,
        }
    }

    /// What it adds to `refs`.
    pub fn count(&self) -> u64 {
        match self {
            Reference::Owner { .. } => 0,
            Reference::TreeBlock { .. } | Reference::SharedBlock { .. } => 1,
            Reference::Data(data) => data.count.into(),
            Reference::SharedData { count, .. } => (*count).into(),
        }
    }

    fn parse_prefix(bytes: &[u8]) -> Result<(Reference, &[u8])> {
        let Some((&kind, rest)) = bytes.split_first() else {
            return wrong("inline reference", 0, "9 bytes or more");
        };
        if ItemType(kind) == ItemType::EXTENT_DATA_REF {
            let (raw, rest) = head::<RawDataRef>(rest, "an inline reference of 29 bytes")?;
            return Ok((Reference::Data(DataRef::from(raw)), rest));
        }
        let (number, rest) = head::<U64>(rest, "an inline reference of 9 bytes")?;
        let number = number.get();
        let reference = match ItemType(kind) {
            ItemType::EXTENT_OWNER_REF => Reference::Owner { root: number },
            ItemType::TREE_BLOCK_REF => Reference::TreeBlock { root: number },
            ItemType::SHARED_BLOCK_REF => Reference::SharedBlock { parent: Logical(number) },
            ItemType::SHARED_DATA_REF => {
                let (count, rest) = head::<U32>(rest, "an inline reference of 13 bytes")?;
                let parent = Logical(number);
                return Ok((Reference::SharedData { parent, count: count.get() }, rest));
            }
            _ => return wrong("inline reference type", kind.into(), "172, 176, 178, 182 or 184"),
        };
        Ok((reference, rest))
    }

    fn encode_into(&self, bytes: &mut Vec<u8>) {
        bytes.push(self.kind().0);
        match self {
            Reference::Owner { root } | Reference::TreeBlock { root } => {
                bytes.extend_from_slice(&root.to_le_bytes());
            }
            Reference::Data(data) => bytes.extend_from_slice(&data.encode()),
            Reference::SharedBlock { parent } => {
                bytes.extend_from_slice(&parent.0.to_le_bytes());
            }
            Reference::SharedData { parent, count } => {
                bytes.extend_from_slice(&parent.0.to_le_bytes());
                bytes.extend_from_slice(&count.to_le_bytes());
            }
        }
    }
}

impl Extent {
    /// A record under a key of type `kind`.
    pub fn parse(kind: ItemType, bytes: &[u8]) -> Result<Extent> {
        let (mut extent, rest) = Extent::parse_head(kind, bytes)?;
        for step in InlineRefs::new(rest) {
            extent.inline.push(step.map_err(|stop| stop.wrong)?);
        }
        Ok(extent)
    }

    /// Everything before the inline references, and those still in bytes.
    pub(crate) fn parse_head(kind: ItemType, bytes: &[u8]) -> Result<(Extent, &[u8])> {
        let (raw, rest) = head::<RawExtent>(bytes, "at least 24")?;
        let flags = ExtentFlags::from_bits_retain(raw.flags.get());
        let long = flags.contains(ExtentFlags::TREE_BLOCK) && kind == ItemType::EXTENT_ITEM;
        let (tree_block, rest) = if long {
            let (info, rest) = head::<RawTreeInfo>(rest, "at least 42")?;
            (Some((Key::from(&info.key), info.level)), rest)
        } else {
            (None, rest)
        };
        let extent = Extent {
            refs: raw.refs.get(),
            generation: raw.generation.get(),
            flags,
            tree_block,
            inline: Vec::new(),
        };
        Ok((extent, rest))
    }

    pub fn encode(&self) -> Vec<u8> {
        let raw = RawExtent {
            refs: self.refs.into(),
            generation: self.generation.into(),
            flags: self.flags.bits().into(),
        };
        let mut bytes = raw.as_bytes().to_vec();
        if let Some((key, level)) = self.tree_block {
            bytes.extend_from_slice(RawTreeInfo { key: key.into(), level }.as_bytes());
        }
        for reference in &self.inline {
            reference.encode_into(&mut bytes);
        }
        bytes
    }
}

/// Walks inline references, remembering where it is: a checker must name the place.
pub(crate) struct InlineRefs<'a> {
    rest: &'a [u8],
    len: usize,
}

/// Where the walk ended early, and why.
#[derive(Debug)]
pub(crate) struct Stop {
    /// First byte of the bad reference, counted from the first reference.
    pub(crate) at: usize,
    /// The type byte found there.
    pub(crate) kind: u8,
    pub(crate) left: usize,
    pub(crate) wrong: Wrong,
}

impl<'a> InlineRefs<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> InlineRefs<'a> {
        InlineRefs { rest: bytes, len: bytes.len() }
    }
}

impl Iterator for InlineRefs<'_> {
    type Item = Result<Reference, Stop>;

    fn next(&mut self) -> Option<Result<Reference, Stop>> {
        let &kind = self.rest.first()?;
        let at = self.len.saturating_sub(self.rest.len());
        match Reference::parse_prefix(self.rest) {
            Ok((reference, rest)) => {
                self.rest = rest;
                Some(Ok(reference))
            }
            Err(wrong) => {
                let left = self.rest.len();
                self.rest = &[];
                Some(Err(Stop { at, kind, left, wrong }))
            }
        }
    }
}

/// Body of a keyed SHARED_DATA_REF.
pub fn parse_shared_count(bytes: &[u8]) -> Result<u32> {
    Ok(exactly::<U32>(bytes, "4")?.get())
}
