//! One random damage to an image: to a field, an item, a block, the superblock or the length; most of it sealed.

use crate::disk::{Disk, le32};

/// xorshift64*.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.roll() % (n.max(1) as u64)).expect("it fits")
    }
}

/// Values that are near an edge.
fn odd(dice: &mut Dice, old: u64) -> u64 {
    match dice.below(9) {
        0 => 0,
        1 => u64::MAX,
        2 => old.wrapping_add(1),
        3 => old.wrapping_sub(1),
        4 => old.wrapping_add(4096),
        5 => old.wrapping_sub(4096),
        6 => old ^ (1 << dice.below(64)),
        7 => old.wrapping_shl(8),
        _ => dice.roll(),
    }
}

/// One word of one, two, four or eight bytes becomes another.
fn change(bytes: &mut [u8], dice: &mut Dice) {
    let width = [1, 2, 4, 8][dice.below(4)].min(bytes.len());
    if width == 0 {
        return;
    }
    let at = dice.below(bytes.len() - width + 1);
    let mut word = [0; 8];
    word[..width].copy_from_slice(&bytes[at..at + width]);
    let new = odd(dice, u64::from_le_bytes(word)).to_le_bytes();
    bytes[at..at + width].copy_from_slice(&new[..width]);
}

/// What was done, for a failure's message.
#[allow(clippy::too_many_lines, reason = "one arm for each kind of damage")]
pub(crate) fn mutate(disk: &mut Disk, dice: &mut Dice) -> String {
    let blocks: Vec<u64> = disk.blocks.keys().copied().collect();
    let at = blocks[dice.below(blocks.len())];
    let mut block = disk.block(at);
    // Damage before this one may have left any count there.
    let room = (block.len() - 101) / if block[100] > 0 { 33 } else { 25 };
    let count = le32(&block, 96).min(room);
    let slot = dice.below(count);
    match dice.below(12) {
        0 => {
            for place in disk.blocks[&at].clone() {
                let byte = disk.bytes(place + 200, 1)[0];
                disk.write(place + 200, &[byte ^ 4]);
            }
            format!("unsealed flip in {at}")
        }
        1 => {
            let size = disk.size() / 16 * (dice.below(16) as u64 + 1);
            disk.truncate(size - size % 4096);
            format!("cut at {size}")
        }
        2 => {
            let at = 0x20 + dice.below(0x32b + 300 - 0x20);
            let new = odd(dice, 0);
            disk.edit_super(|sb| sb[at..at + 4].copy_from_slice(&new.to_le_bytes()[..4]));
            format!("superblock byte {at}")
        }
        3 => {
            change(&mut block[32..101], dice);
            disk.put(at, block);
            format!("header of {at}")
        }
        4 | 5 if count > 0 => {
            let (from, len) =
                if block[100] > 0 { (101 + 33 * slot, 33) } else { (101 + 25 * slot, 25) };
            if let Some(head) = block.get_mut(from..from + len) {
                change(head, dice);
            }
            disk.put(at, block);
            format!("key or pointer {slot} of {at}")
        }
        6 if count > 1 && block[100] == 0 => {
            let other = dice.below(count);
            let (a, b) = (101 + 25 * slot, 101 + 25 * other);
            for n in 0..17 {
                block.swap(a + n, b + n);
            }
            disk.put(at, block);
            format!("keys {slot} and {other} of {at} swapped")
        }
        7 => {
            let other = blocks[dice.below(blocks.len())];
            let mut twin = disk.block(other);
            twin[48..56].copy_from_slice(&at.to_le_bytes());
            disk.put(at, twin);
            format!("{other} in place of {at}")
        }
        _ if block[100] == 0 && count > 0 => {
            let head = 101 + 25 * slot;
            let from = 101 + le32(&block, head + 17);
            let to = from + le32(&block, head + 21);
            if let Some(data) = block.get_mut(from..to) {
                change(data, dice);
            }
            disk.put(at, block);
            format!("item {slot} of {at}")
        }
        _ => {
            let len = block.len();
            change(&mut block[101..len], dice);
            disk.put(at, block);
            format!("somewhere in {at}")
        }
    }
}
