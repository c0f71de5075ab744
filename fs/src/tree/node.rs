//! A tree block in memory: checked once, then never changed. Whoever holds one may keep it across any
//! await; a writer makes a new one.

use crate::format::block::{self, Header, Pointer};
use crate::format::key::Key;
use crate::units::Logical;
use crate::verify::{Expect, Rules, Verdict, expected, read_block};

/// A block that has passed the tree checker.
#[derive(Debug)]
pub struct TreeBlock {
    header: Header,
    bytes: Box<[u8]>,
}

impl TreeBlock {
    /// The only way to own one: every field has been looked at.
    pub(crate) fn check(
        rules: &Rules,
        bytes: Vec<u8>,
        expect: &Expect,
        mirror: usize,
    ) -> Result<TreeBlock, Box<crate::verify::Corrupt>> {
        read_block(rules, &bytes, expect, mirror)?;
        let header = Header::parse(&bytes).expect("a checked block has a header");
        Ok(TreeBlock { header, bytes: bytes.into() })
    }

    /// A block that broke a rule, for a rescue: its checksum is right and its header was compared with
    /// its address, but items may be out of order, out of range, or fewer than it says. Whoever reads
    /// it must take each item as it comes.
    pub(crate) fn understood(mut header: Header, bytes: Vec<u8>) -> TreeBlock {
        // No more slots than a block has room for: what lies behind is no item.
        let slot = if header.level == 0 { block::ITEM_HEAD_SIZE } else { block::POINTER_SIZE };
        let room = bytes.len().saturating_sub(block::HEADER_SIZE) / slot;
        header.nritems = header.nritems.min(u32::try_from(room).unwrap_or(u32::MAX));
        TreeBlock { header, bytes: bytes.into() }
    }

    /// Whether it is also what *this* reader expects: another parent may have led to it before.
    pub(crate) fn is_expected(&self, expect: &Expect) -> Verdict {
        expected(&self.bytes, &self.header, expect, 0)
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// All of it, as it was read.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn bytenr(&self) -> Logical {
        self.header.bytenr
    }

    pub fn level(&self) -> u8 {
        self.header.level
    }

    /// Items or pointers.
    #[allow(clippy::len_without_is_empty, reason = "an empty block is nothing special")]
    pub fn len(&self) -> usize {
        self.header.nritems as usize
    }

    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }

    pub fn key(&self, slot: usize) -> Option<Key> {
        if slot >= self.len() {
            return None;
        }
        match self.level() {
            0 => block::item_head(&self.bytes, slot).map(|item| item.key),
            _ => block::pointer(&self.bytes, slot).map(|pointer| pointer.key),
        }
    }

    /// Child `slot` of a node.
    pub fn pointer(&self, slot: usize) -> Option<Pointer> {
        let inside = self.level() > 0 && slot < self.len();
        inside.then(|| block::pointer(&self.bytes, slot))?
    }

    /// What child `slot` of a node, being part of `tree`, must be.
    pub fn expect_child(&self, slot: usize, tree: u64) -> Option<Expect> {
        let pointer = self.pointer(slot)?;
        Some(Expect {
            logical: pointer.block,
            level: self.level().saturating_sub(1),
            generation: Some(pointer.generation),
            first_key: Some(pointer.key),
            owner: Some(tree),
        })
    }

    /// Item `slot` of a leaf.
    pub fn item(&self, slot: usize) -> Option<(Key, &[u8])> {
        if self.level() > 0 || slot >= self.len() {
            return None;
        }
        let head = block::item_head(&self.bytes, slot)?;
        Some((head.key, block::item_data(&self.bytes, &head)?))
    }

    /// How many keys are below `key`: the slot where it is, or would be.
    pub(crate) fn lower_bound(&self, key: Key) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let mid = low.midpoint(high);
            if self.key(mid).is_some_and(|at| at < key) {
                low = mid + 1;
            } else {
                high = mid;
            }
        }
        low
    }

    /// The slot of the last key that is not above `key`.
    pub(crate) fn last_not_above(&self, key: Key) -> Option<usize> {
        let at = self.lower_bound(key);
        if self.key(at) == Some(key) { Some(at) } else { at.checked_sub(1) }
    }
}
