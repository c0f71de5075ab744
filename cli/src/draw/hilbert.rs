//! The Hilbert curve: a line of `4^order` cells folded into a square of `2^order` by `2^order`, so that
//! what is near on the line is near in the square.

/// An aligned part of the square: side in cells, a power of two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Square {
    pub x: u64,
    pub y: u64,
    pub side: u64,
}

/// Where cell `at` of the line lies. `at` is below `4^order`.
pub(crate) fn place(order: u32, at: u64) -> (u64, u64) {
    let (mut x, mut y) = (0, 0);
    let mut rest = at;
    for level in 0..order {
        let side = 1 << level;
        let (right, down) = (rest >> 1 & 1, (rest ^ (rest >> 1)) & 1);
        // The curve of each quadrant is that of the whole, turned so that its ends meet the next one's.
        if down == 0 {
            if right == 1 {
                (x, y) = (side - 1 - x, side - 1 - y);
            }
            (x, y) = (y, x);
        }
        x += side * right;
        y += side * down;
        rest >>= 2;
    }
    (x, y)
}

/// The squares that cells `[from, to)` of the line fill, in order: as few as there can be.
pub(crate) fn squares(order: u32, from: u64, to: u64) -> Vec<Square> {
    let mut squares = Vec::new();
    let mut at = from;
    while at < to {
        let mut level = 0;
        // A run of 4^n cells that begins at a multiple of it is a square of side 2^n.
        while level < order {
            let cells = 4u64 << (2 * level);
            if !at.is_multiple_of(cells) || cells > to - at {
                break;
            }
            level += 1;
        }
        let side = 1 << level;
        let (x, y) = place(order, at);
        squares.push(Square { x: x / side * side, y: y / side * side, side });
        at += side * side;
    }
    squares
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_cell_is_visited_once_and_each_step_goes_to_a_neighbour() {
        for order in 1..=6 {
            let cells = 4u64 << (2 * (order - 1));
            let places: Vec<_> = (0..cells).map(|at| place(order, at)).collect();
            let unique: BTreeSet<_> = places.iter().collect();
            assert_eq!(unique.len() as u64, cells);
            assert!(places.iter().all(|(x, y)| x.max(y) >> order == 0));
            assert!(
                places.windows(2).all(|w| w[0].0.abs_diff(w[1].0) + w[0].1.abs_diff(w[1].1) == 1)
            );
        }
    }

    #[test]
    fn squares_of_a_range_are_its_cells() {
        let order = 4;
        for (from, to) in [(0, 256), (0, 0), (3, 200), (1, 2), (16, 64), (63, 255)] {
            let mut filled = BTreeSet::new();
            for square in squares(order, from, to) {
                for x in square.x..square.x + square.side {
                    for y in square.y..square.y + square.side {
                        assert!(filled.insert((x, y)), "twice");
                    }
                }
            }
            let wanted: BTreeSet<_> = (from..to).map(|at| place(order, at)).collect();
            assert_eq!(filled, wanted, "{from}..{to}");
        }
        assert_eq!(squares(order, 0, 256).len(), 1);
    }
}
