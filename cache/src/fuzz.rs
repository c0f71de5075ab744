//! Ways in for the fuzz targets: journal entries and nodes whose checksum and magic are right and whose
//! content is whatever it is. What only a wrong checksum would stop is met here without one.

use varve_block::sum;

use crate::btree::{Guards, Node};
use crate::error::Place;
use crate::format::bset::BSET_HEADER;
use crate::format::journal::{AtBlock, JSET_HEADER};
use crate::format::{Bucket, JournalEntry, Key, Layout, NodeFrame, PageModel, Pos, Ptr, SetMagic};

const BLOCK_BYTES: usize = 4096;
const NODE_BLOCKS: usize = 16;
const SUM_BYTES: usize = 8;

fn layout() -> Layout {
    let pages = PageModel::default();
    Layout { block_size: 8, bucket_size: 128, nbuckets: 1 << 16, first_bucket: 1, pages }
}

fn magic() -> SetMagic {
    SetMagic::of(uuid::Uuid::from_u128(7))
}

/// Parses a journal entry with this header and these keys, and checks what it points to.
pub fn journal_entry(data: &[u8]) {
    let mut bytes = data.to_vec();
    bytes.truncate(32 << 10);
    bytes.resize(bytes.len().max(JSET_HEADER).next_multiple_of(8), 0);
    let words = u32::try_from((bytes.len() - JSET_HEADER) / 8).expect("at most 32 KiB");
    bytes[8..16].copy_from_slice(&magic().jset().to_le_bytes());
    bytes[24] &= 1;
    bytes[25..28].fill(0);
    bytes[28..32].copy_from_slice(&words.to_le_bytes());
    let sum = sum::bcache_crc64(&bytes[SUM_BYTES..]);
    bytes[..SUM_BYTES].copy_from_slice(&sum.to_le_bytes());
    let place = Place { bucket: Some(Bucket(9)), ..Place::default() };
    match JournalEntry::parse(&bytes, magic(), &layout(), place) {
        AtBlock::Entry(entry, blocks) => {
            assert!(blocks > 0);
            let _ = entry.check(&layout());
        }
        AtBlock::Broken(why) => assert!(!why.to_string().is_empty()),
        AtBlock::Nothing => panic!("the magic is right"),
    }
}

/// Parses a node of the sets that `data` describes, as a leaf and above the leaves, with every check and
/// with none but those that keep the merge safe: each set is a length in words and then its keys.
pub fn node(data: &[u8]) {
    let key = Key::node(Pos::MAX, 128, Ptr::new(1024, 0));
    for level in [0, 1] {
        let frame = NodeFrame::new(key, level, magic(), &layout());
        let bytes = node_of(data);
        for guards in [Guards::all(), Guards::empty()] {
            match Node::parse(frame, &bytes, &layout(), guards) {
                Ok(node) => {
                    let generations: &[u8] = &[];
                    let _ = node.verify_live(&layout(), generations);
                    assert_eq!(node.level(), level);
                }
                Err(why) => assert!(!why.to_string().is_empty()),
            }
        }
    }
}

fn node_of(mut data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; NODE_BLOCKS * BLOCK_BYTES];
    let mut block = 0;
    while let [low, high, rest @ ..] = data {
        let room = (bytes.len() - block * BLOCK_BYTES).saturating_sub(BSET_HEADER) / 8;
        let words = (usize::from(*low) | usize::from(*high) << 8).min(room).min(rest.len() / 8);
        if block == NODE_BLOCKS {
            break;
        }
        let (keys, behind) = rest.split_at(words * 8);
        let at = block * BLOCK_BYTES;
        let set = &mut bytes[at..at + BSET_HEADER + keys.len()];
        set[8..16].copy_from_slice(&magic().bset().to_le_bytes());
        set[16..24].copy_from_slice(&77u64.to_le_bytes());
        set[28..32].copy_from_slice(&u32::try_from(words).expect("a node").to_le_bytes());
        set[BSET_HEADER..].copy_from_slice(keys);
        let sum = sum::bcache_crc64(&set[SUM_BYTES..]);
        set[..SUM_BYTES].copy_from_slice(&sum.to_le_bytes());
        block += (BSET_HEADER + keys.len()).div_ceil(BLOCK_BYTES);
        data = behind;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::BsetWriter;
    use crate::format::bkey::write_keys;

    /// What the ways in make of a good set is what the writer makes of it.
    #[test]
    fn a_good_set_gets_in() {
        let keys = [Key::extent(1, 8, 16, true, Ptr::new(2048, 0))];
        let words = write_keys(&keys);
        let mut data = u16::try_from(words.len()).unwrap().to_le_bytes().to_vec();
        data.extend(words.iter().flat_map(|w| w.to_le_bytes()));
        let key = Key::node(Pos::MAX, 128, Ptr::new(1024, 0));
        let frame = NodeFrame::new(key, 0, magic(), &layout());
        let bytes = node_of(&data);
        let parsed = frame.parse(&bytes).unwrap();
        assert_eq!(parsed[0].keys, keys);
        let written = BsetWriter { frame: &frame, seq: 77 }.encode(&keys);
        assert_eq!(bytes[BSET_HEADER..4096], written[BSET_HEADER..4096]);
        node(&data);
        node(&[]);
        journal_entry(&[]);
    }
}
