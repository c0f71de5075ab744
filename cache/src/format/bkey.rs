//! Keys: "this stretch of that volume lies there on the cache device".
//!
//! ```text
//! word 0   63 | 62..60 | 57..56 | 36    | 35..20 | 19..0        (all other bits 0)
//!           1   PTRS     CSUM     DIRTY   SIZE     INODE
//! word 1   OFFSET: the END of the extent, in sectors of the volume's key space
//! word 2.. one word per pointer:  62..51 DEV | 50..8 sector on the cache device | 7..0 GEN
//! ```
//!
//! A key stores where it *ends*; [`Key::start`] is computed. In an interior node the position is the
//! inclusive upper bound of the child and the size is the child's, so `start` means nothing there.

use std::fmt;

use super::Layout;

/// A place in the key space: keys compare by where they end, as (inode, offset).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Pos {
    pub inode: u32,
    pub offset: u64,
}

impl Pos {
    pub const ZERO: Pos = Pos { inode: 0, offset: 0 };
    /// The bound of the root: no key lies behind it.
    pub const MAX: Pos = Pos { inode: Key::INODE_MAX, offset: Key::OFFSET_MAX };

    pub fn new(inode: u32, offset: u64) -> Pos {
        Pos { inode, offset }
    }

    /// The position just before this one; none before the first.
    pub fn before(self) -> Option<Pos> {
        match (self.offset.checked_sub(1), self.inode.checked_sub(1)) {
            (Some(offset), _) => Some(Pos { inode: self.inode, offset }),
            (None, Some(inode)) => Some(Pos { inode, offset: Key::OFFSET_MAX }),
            (None, None) => None,
        }
    }
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Pos::MAX {
            f.write_str("max")
        } else {
            write!(f, "{}:{}", self.inode, self.offset)
        }
    }
}

/// Where data lie on the cache device, and in which life of their bucket.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ptr(u64);

impl Ptr {
    const OFFSET_MASK: u64 = (1 << 43) - 1;
    /// The device number of a check pointer: no device at all.
    pub const CHECK_DEV: u16 = 4095;

    /// A pointer to `sector` of the one cache device there is.
    pub fn new(sector: u64, generation: u8) -> Ptr {
        Ptr(((sector & Self::OFFSET_MASK) << 8) | u64::from(generation))
    }

    pub fn from_word(word: u64) -> Ptr {
        Ptr(word)
    }

    /// All 64 bits: also the checksum seed of the node it points to.
    pub fn word(self) -> u64 {
        self.0
    }

    pub fn generation(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    /// Sector on the cache device.
    pub fn offset(self) -> u64 {
        (self.0 >> 8) & Self::OFFSET_MASK
    }

    pub fn dev(self) -> u16 {
        u16::try_from((self.0 >> 51) & 0xFFF).unwrap_or(Self::CHECK_DEV)
    }

    /// Device 0 is the only one that exists.
    pub fn available(self) -> bool {
        self.dev() == 0
    }

    /// A placeholder of a cache miss in flight.
    pub fn is_check(self) -> bool {
        self.dev() == Self::CHECK_DEV
    }

    /// The pointer `sectors` further on, everything but the offset kept.
    #[must_use]
    pub fn advanced(self, sectors: u64) -> Ptr {
        let offset = self.offset().wrapping_add(sectors) & Self::OFFSET_MASK;
        Ptr((self.0 & !(Self::OFFSET_MASK << 8)) | (offset << 8))
    }

    #[must_use]
    pub fn with_generation(self, generation: u8) -> Ptr {
        Ptr((self.0 & !0xFF) | u64::from(generation))
    }
}

impl fmt::Display for Ptr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_check() {
            write!(f, "check {:#x}", self.0)
        } else if self.available() {
            write!(f, "{} gen {}", self.offset(), self.generation())
        } else {
            write!(f, "dev {} {} gen {}", self.dev(), self.offset(), self.generation())
        }
    }
}

impl fmt::Debug for Ptr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ptr({self})")
    }
}

/// One key: the header's two words and at most one pointer.
///
/// The format has room for more pointers; no kernel ever wrote them, and it ignores such keys when
/// it meets one. We read them as what they are to it, a key that covers its range and yields
/// nothing: an invalidation ([`Key::read`]).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    high: u64,
    low: u64,
    ptr: u64,
}

const ALWAYS: u64 = 1 << 63;
const PTRS_SHIFT: u32 = 60;
const CSUM_MASK: u64 = 3 << 56;
const DIRTY: u64 = 1 << 36;
const SIZE_SHIFT: u32 = 20;
const SIZE_MASK: u64 = 0xFFFF << SIZE_SHIFT;
const INODE_MASK: u64 = 0xF_FFFF;
/// Bits 37..=55 and 58..=59.
const RESERVED: u64 = (((1 << 19) - 1) << 37) | (3 << 58);

impl Key {
    pub const INODE_MAX: u32 = 0xF_FFFF;
    pub const OFFSET_MAX: u64 = (1 << 63) - 1;
    pub const SIZE_MAX: u32 = 0xFFFF;
    pub const ZERO: Key = Key { high: ALWAYS, low: 0, ptr: 0 };

    /// A live extent: `[start, end)` of `inode` lies at `ptr`.
    ///
    /// # Panics
    /// When the range is empty, longer than 65535 sectors, or outside the key space.
    pub fn extent(inode: u32, start: u64, end: u64, dirty: bool, ptr: Ptr) -> Key {
        let bare = Key::invalidation(inode, start, end);
        let dirty = if dirty { DIRTY } else { 0 };
        Key { high: bare.high | dirty | (1 << PTRS_SHIFT), low: bare.low, ptr: ptr.word() }
    }

    /// "Nothing is cached here": a key without pointers.
    ///
    /// # Panics
    /// As [`Key::extent`].
    pub fn invalidation(inode: u32, start: u64, end: u64) -> Key {
        assert!(inode <= Key::INODE_MAX, "inode {inode} does not fit a key");
        assert!(start < end, "a key of no sectors: {start}..{end}");
        assert!(end <= Key::OFFSET_MAX, "a key beyond the key space: {end}");
        let size = end.saturating_sub(start);
        assert!(size <= u64::from(Key::SIZE_MAX), "a key of {size} sectors");
        Key { high: ALWAYS | (size << SIZE_SHIFT) | u64::from(inode), low: end, ptr: 0 }
    }

    /// The placeholder of a cache miss in flight: an impossible pointer made of `random` bits, so
    /// that the later compare-and-swap can tell this miss from every other.
    ///
    /// # Panics
    /// As [`Key::extent`].
    pub fn check(inode: u32, start: u64, end: u64, random: u64) -> Key {
        // The top bit of the offset stays clear: advancing the pointer can then never carry into DEV.
        let word = (random & !(1 << 50)) | (u64::from(Ptr::CHECK_DEV) << 51);
        Key::extent(inode, start, end, false, Ptr::from_word(word))
    }

    /// The key under which a parent (or the journal) knows a node.
    ///
    /// # Panics
    /// When `node_sectors` does not fit a key.
    pub fn node(bound: Pos, node_sectors: u32, ptr: Ptr) -> Key {
        assert!(node_sectors <= Key::SIZE_MAX, "a node of {node_sectors} sectors");
        Key {
            high: ALWAYS
                | (1 << PTRS_SHIFT)
                | (u64::from(node_sectors) << SIZE_SHIFT)
                | u64::from(bound.inode),
            low: bound.offset,
            ptr: ptr.word(),
        }
    }

    /// The key that a parent gets when node `freed` goes: position zero, the freed bucket with its
    /// new generation. It serves generation recovery only.
    pub fn freeing(freed: Key, new_generation: u8) -> Key {
        let size = freed.size();
        Key::node(Pos::ZERO, size, freed.pointer().with_generation(new_generation))
    }

    /// Volume number.
    pub fn inode(&self) -> u32 {
        u32::try_from(self.high & INODE_MASK).unwrap_or(0)
    }

    /// Sectors covered.
    pub fn size(&self) -> u32 {
        u32::try_from((self.high & SIZE_MASK) >> SIZE_SHIFT).unwrap_or(0)
    }

    pub fn dirty(&self) -> bool {
        self.high & DIRTY != 0
    }

    /// Number of pointers, 0 or 1.
    pub fn ptrs(&self) -> u32 {
        u32::try_from((self.high >> PTRS_SHIFT) & 7).unwrap_or(0)
    }

    pub fn ptr(&self) -> Option<Ptr> {
        (self.ptrs() != 0).then_some(Ptr(self.ptr))
    }

    /// The pointer word, zero when there is none.
    pub(crate) fn pointer(&self) -> Ptr {
        if self.ptrs() == 0 { Ptr(0) } else { Ptr(self.ptr) }
    }

    /// One past the last sector: the OFFSET field.
    pub fn end(&self) -> u64 {
        self.low
    }

    /// First sector. Meaningless in interior nodes; 0 when the key is damaged (size > end).
    pub fn start(&self) -> u64 {
        self.low.saturating_sub(u64::from(self.size()))
    }

    /// Where the key sorts: its end.
    pub fn pos(&self) -> Pos {
        Pos { inode: self.inode(), offset: self.low }
    }

    pub fn start_pos(&self) -> Pos {
        Pos { inode: self.inode(), offset: self.start() }
    }

    pub fn is_check(&self) -> bool {
        self.ptr().is_some_and(Ptr::is_check)
    }

    /// An interior key that only records the generation of a freed node.
    pub fn is_freeing(&self) -> bool {
        self.pos() == Pos::ZERO
    }

    /// Whether bit 63 is set and every reserved and checksum bit is clear.
    pub fn reserved_bits_clean(&self) -> bool {
        self.high & ALWAYS != 0 && self.high & (RESERVED | CSUM_MASK) == 0
    }

    /// `high`, `low`: for dumps.
    pub fn header_words(&self) -> (u64, u64) {
        (self.high, self.low)
    }

    /// u64 words on disk.
    pub fn words(&self) -> usize {
        if self.ptrs() == 0 { 2 } else { 3 }
    }

    #[cfg(test)]
    #[must_use]
    pub(crate) fn with_dirty(self, dirty: bool) -> Key {
        let high = if dirty { self.high | DIRTY } else { self.high & !DIRTY };
        Key { high, ..self }
    }

    /// The same node key with another bound.
    #[cfg(test)]
    #[must_use]
    pub(crate) fn with_pos(self, pos: Pos) -> Key {
        Key { high: (self.high & !INODE_MASK) | u64::from(pos.inode), low: pos.offset, ..self }
    }

    #[must_use]
    fn with_size(self, size: u64) -> Key {
        Key { high: (self.high & !SIZE_MASK) | ((size << SIZE_SHIFT) & SIZE_MASK), ..self }
    }

    /// Everything but the place: dirty, pointer count and checksum type.
    pub(crate) fn same_kind(&self, other: &Key) -> bool {
        const KIND: u64 = DIRTY | CSUM_MASK | (7 << PTRS_SHIFT);
        self.high & KIND == other.high & KIND
    }

    /// Drops what lies before `pos`; nothing is left (size 0, at `pos`) when the key ends there.
    pub(crate) fn trim_front(&mut self, pos: u64) {
        let size = u64::from(self.size());
        let cut = if pos >= self.end() {
            self.low = self.low.max(pos);
            size
        } else {
            pos.saturating_sub(self.start())
        };
        if self.ptrs() != 0 {
            self.ptr = Ptr(self.ptr).advanced(cut).word();
        }
        *self = self.with_size(size.saturating_sub(cut));
    }

    /// Drops what lies from `pos` on; the key then ends at `pos`, possibly empty.
    pub(crate) fn trim_back(&mut self, pos: u64) {
        let size = pos.saturating_sub(self.start()).min(u64::from(self.size()));
        self.low = pos;
        *self = self.with_size(size);
    }

    /// Empties a key without moving its end: it stays where its set's order wants it.
    pub(crate) fn empty_in_place(&mut self) {
        let end = self.end();
        self.trim_front(end);
    }

    /// Joins `self` and the key right behind it where format and layout allow it.
    pub(crate) fn merge(&self, right: &Key, layout: &Layout) -> Merge {
        if self.pos() != right.start_pos() || !self.same_kind(right) {
            return Merge::No;
        }
        if self.size() == 0 || right.size() == 0 {
            return Merge::No;
        }
        if let (Some(l), Some(r)) = (self.ptr(), right.ptr()) {
            let next = l.word().wrapping_add(u64::from(self.size()) << 8);
            if next != r.word() || layout.bucket_of(l.offset()) != layout.bucket_of(r.offset()) {
                return Merge::No;
            }
        }
        let sum = u64::from(self.size()).saturating_add(u64::from(right.size()));
        let max = u64::from(Key::SIZE_MAX);
        if sum > max {
            let mut left = *self;
            let grown = max.saturating_sub(u64::from(self.size()));
            left.low = left.low.saturating_add(grown);
            left = left.with_size(max);
            let mut rest = *right;
            rest.trim_front(left.end());
            return Merge::Partly(left, rest);
        }
        let mut whole = *self;
        whole.low = right.low;
        Merge::Whole(whole.with_size(sum))
    }

    /// The first key of `words`, and how many words it takes. None when it is cut short.
    /// Keys with several pointers come out as invalidations, see [`Key`].
    pub(crate) fn read(words: &[u64]) -> Option<(Key, usize)> {
        let [high, low, rest @ ..] = words else {
            return None;
        };
        let ptrs = usize::try_from((high >> PTRS_SHIFT) & 7).ok()?;
        let pointers = rest.get(..ptrs)?;
        let key = match pointers {
            [] => Key { high: *high, low: *low, ptr: 0 },
            [ptr] => Key { high: *high, low: *low, ptr: *ptr },
            _ => Key { high: high & !(7 << PTRS_SHIFT), low: *low, ptr: 0 },
        };
        Some((key, pointers.len().saturating_add(2)))
    }

    /// Appends the key's words.
    pub(crate) fn write(&self, out: &mut Vec<u64>) {
        out.push(self.high);
        out.push(self.low);
        if self.ptrs() != 0 {
            out.push(self.ptr);
        }
    }
}

/// What [`Key::merge`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Merge {
    No,
    /// One key for both.
    Whole(Key),
    /// Together they are too long for one key: the left one was filled up, the rest remains.
    Partly(Key, Key),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pos() == Pos::MAX {
            f.write_str("max")?;
        } else {
            write!(f, "{}:{}..{}", self.inode(), self.start(), self.end())?;
        }
        match self.ptr() {
            Some(ptr) => write!(f, " -> {ptr}")?,
            None => f.write_str(" -> nothing")?,
        }
        if self.dirty() { f.write_str(" dirty") } else { Ok(()) }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self}; {:#x} {:#x})", self.high, self.low)
    }
}

/// A list of keys that broke off: the number of the key that does not fit.
#[derive(Debug)]
pub(crate) struct Truncated {
    pub index: usize,
}

/// Keys as counted words of a bset or a journal entry.
pub(crate) fn read_keys(words: &[u64]) -> Result<Vec<Key>, Truncated> {
    let mut keys = Vec::with_capacity(words.len() >> 1);
    let mut rest = words;
    while !rest.is_empty() {
        let Some((key, used)) = Key::read(rest) else {
            return Err(Truncated { index: keys.len() });
        };
        keys.push(key);
        rest = rest.get(used..).unwrap_or(&[]);
    }
    Ok(keys)
}

/// Indices of the keys in `words` that have more than one pointer (34).
pub(crate) fn keys_with_many_pointers(words: &[u64]) -> Vec<usize> {
    let mut found = Vec::new();
    let mut rest = words;
    let mut index: usize = 0;
    while let Some((_, used)) = Key::read(rest) {
        if used > 3 {
            found.push(index);
        }
        rest = rest.get(used..).unwrap_or(&[]);
        index = index.saturating_add(1);
    }
    found
}

pub(crate) fn write_keys(keys: &[Key]) -> Vec<u64> {
    let mut words = Vec::with_capacity(keys.len().saturating_mul(3));
    for key in keys {
        key.write(&mut words);
    }
    words
}

/// u64 words that `keys` take on disk.
pub(crate) fn words_of(keys: &[Key]) -> usize {
    keys.iter().map(Key::words).fold(0, usize::saturating_add)
}

#[cfg(test)]
#[path = "bkey_tests.rs"]
mod tests;
