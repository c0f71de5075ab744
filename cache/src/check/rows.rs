//! The numbered rules.

use std::fmt;

/// What a finding means to the owner of the data.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// Worth knowing, harmless.
    Note,
    /// Can be put right without loss.
    Repairable,
    /// The set cannot be used, or data is lost.
    Fatal,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Note => "note",
            Severity::Repairable => "repairable",
            Severity::Fatal => "fatal",
        })
    }
}

/// One rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    pub number: u8,
    pub severity: Severity,
    pub title: &'static str,
}

use Severity::{Fatal, Note, Repairable};

const fn row(number: u8, severity: Severity, title: &'static str) -> Row {
    Row { number, severity, title }
}

/// All rules, in the order in which they are checked within each structure.
pub const ROWS: [Row; 54] = [
    row(1, Fatal, "superblock is readable, in its place, and has the magic"),
    row(2, Fatal, "superblock checksum"),
    row(3, Fatal, "version and feature bits are known"),
    row(4, Fatal, "device and set uuid are not zero"),
    row(5, Fatal, "block size"),
    row(6, Fatal, "bucket size"),
    row(7, Fatal, "buckets: at least 513, and inside the device"),
    row(8, Fatal, "first bucket lies behind the superblock"),
    row(9, Fatal, "the only device of its set"),
    row(10, Fatal, "journal buckets"),
    row(11, Note, "flags, replacement policy and cache mode are known"),
    row(12, Note, "the set was started once"),
    row(13, Fatal, "data offset of the backing device"),
    row(14, Fatal, "the journal has an entry"),
    row(15, Repairable, "journal entry is whole"),
    row(16, Fatal, "one journal entry for each sequence number"),
    row(17, Fatal, "last_seq of journal entries"),
    row(18, Fatal, "no journal entry is missing"),
    row(19, Fatal, "keys of journal entries parse and have a size"),
    row(20, Fatal, "pointers and volumes of journal keys"),
    row(21, Fatal, "root of the index"),
    row(22, Fatal, "pointer to the uuid table"),
    row(23, Fatal, "prio chain"),
    row(24, Repairable, "one sequence number for the prio chain"),
    row(25, Fatal, "every metadata bucket has one role"),
    row(26, Repairable, "uuid table makes sense"),
    row(27, Fatal, "the backing device has one slot in the set"),
    row(28, Fatal, "pointer to a btree node"),
    row(29, Fatal, "first set of a node"),
    row(30, Fatal, "later sets of a node"),
    row(31, Fatal, "no set of a node is lost in its middle"),
    row(32, Fatal, "keys of a set parse to its end"),
    row(33, Note, "reserved bits of keys"),
    row(34, Note, "number and device of pointers"),
    row(35, Fatal, "extent lies inside the key space and the device"),
    row(36, Fatal, "child pointer can be used"),
    row(37, Fatal, "order of a leaf's set"),
    row(38, Fatal, "order of an interior node's set"),
    row(39, Fatal, "order of a leaf after its sets were merged"),
    row(40, Fatal, "one live child for each bound"),
    row(41, Fatal, "keys within the node's bound"),
    row(42, Fatal, "keys behind the previous node's bound"),
    row(43, Fatal, "children reach up to their parent's bound"),
    row(44, Fatal, "every node has one parent"),
    row(45, Fatal, "pointers at most 96 generations old"),
    row(46, Fatal, "dirty data are still in their bucket"),
    row(47, Fatal, "dirty data belong to a volume"),
    row(48, Fatal, "extents lie inside their volume"),
    row(49, Note, "extents are whole blocks"),
    row(50, Fatal, "no cache sector belongs to two extents"),
    row(51, Fatal, "data and metadata in different buckets"),
    row(52, Repairable, "the backing device knows that it is dirty"),
    row(53, Fatal, "both devices belong to the same set"),
    row(54, Fatal, "data can be read, and clean data equal the backing device"),
];

/// The severity of a rule.
pub(super) fn severity(number: u8) -> Severity {
    let row = usize::from(number).checked_sub(1).and_then(|at| ROWS.get(at));
    row.map_or(Fatal, |row| row.severity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_numbered_in_order() {
        for (index, row) in ROWS.iter().enumerate() {
            assert_eq!(usize::from(row.number), index + 1);
            assert_eq!(severity(row.number), row.severity);
        }
    }
}
