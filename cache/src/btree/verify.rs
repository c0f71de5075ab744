//! The order checks of the index, one function each. They name the node, the set and the key.
//!
//! | when | check | rows |
//! |---|---|---|
//! | O1, a node was read | [`keys`], [`set_order`], then [`merged_order`]; [`duplicates`] once generations are known | 35 to 42 |
//! | O2, before an insertion | [`search_position`] | |
//! | O3, an iteration starts | [`seek`] | |
//! | O4, after an insertion, last set | [`neighbours`] | |
//! | O5, after an insertion, other sets | [`disjoint`], [`trimmed`] | |
//! | O6, after an insertion | [`sectors`] | |
//! | O7, before a set is written | [`set_order`], [`dirty_pointers`], and the bytes parsed again | 37, 38, 41 |
//! | O8, after a merge | [`same_sectors`] | |
//!
//! No kernel in production checks any of this. The order of keys is not covered by any checksum: a
//! set in disorder, written with a perfect sum, makes lookups miss acknowledged writes or return
//! older data, and the first symptom is a broken file system.

use super::{Generations, usable_interior};
use crate::error::{Corrupt, Place};
use crate::format::{Key, Layout, NodeFrame, Pos};

pub(crate) const SKIPPED_BACKWARDS: &str = "Key skipped backwards";
pub(crate) const OUT_OF_ORDER: &str = "Keys out of order";
pub(crate) const OVERLAPPING: &str = "Overlapping keys";
pub(crate) const DUPLICATE: &str = "Duplicate keys";
pub(crate) const SHORT_BTREE_KEY: &str = "short btree key";

/// Rows 35 and 36: what a single key may be.
pub(crate) fn keys<'a>(
    frame: &'a NodeFrame,
    place: Place,
    layout: &'a Layout,
    keys: &'a [Key],
) -> impl Iterator<Item = Corrupt> + 'a {
    keys.iter().enumerate().filter_map(move |(index, key)| {
        let (field, expected) = self::key(frame, layout, key)?;
        let row = if frame.level == 0 { 35 } else { 36 };
        Some(Corrupt::row(row, frame.what(), place.key(index, *key), field, key, expected))
    })
}

/// What is wrong with a key by itself, if anything: field and expectation.
pub(crate) fn key(
    frame: &NodeFrame,
    layout: &Layout,
    key: &Key,
) -> Option<(&'static str, &'static str)> {
    if frame.level == 0 { leaf_key(key, layout) } else { interior_key(key, layout) }
}

fn leaf_key(key: &Key, layout: &Layout) -> Option<(&'static str, &'static str)> {
    if key.end() > Key::OFFSET_MAX {
        return Some(("offset", "at most 2^63 - 1"));
    }
    if key.size() == 0 {
        return None;
    }
    if u64::from(key.size()) > key.end() {
        return Some(("size", "an extent that starts at 0 or later"));
    }
    match key.ptr() {
        Some(ptr) if ptr.available() && !layout.in_bounds(ptr.offset(), key.size()) => {
            Some(("ptr", "an extent inside one bucket of the device"))
        }
        Some(ptr) if key.dirty() && !ptr.available() => Some(("ptr", "dirty data on device 0")),
        None if key.dirty() => Some(("ptrs", "one pointer to the dirty data")),
        _ => None,
    }
}

fn interior_key(key: &Key, layout: &Layout) -> Option<(&'static str, &'static str)> {
    let Some(ptr) = key.ptr() else { return Some(("ptrs", "one pointer")) };
    if key.end() > Key::OFFSET_MAX {
        Some(("offset", "at most 2^63 - 1"))
    } else if !ptr.available() {
        Some(("ptr", "a pointer to device 0"))
    } else if key.size() == 0 || key.dirty() {
        Some(("size", "a clean key with the size of a node"))
    } else if !layout.in_bounds(ptr.offset(), key.size()) {
        Some(("ptr", "a node inside one bucket of the device"))
    } else {
        None
    }
}

/// Row 28 for a pointer that is about to be followed.
pub(crate) fn child(frame: &NodeFrame, layout: &Layout, key: &Key) -> Option<Corrupt> {
    let place = Place { key: Some(*key), ..frame.place(0) };
    if layout.remainder(key.pointer().offset()) != 0 {
        return Some(Corrupt::row(28, frame.what(), place, "ptr", key, "the start of a bucket"));
    }
    (key.size().checked_rem(layout.block_size) != Some(0))
        .then(|| Corrupt::row(28, frame.what(), place, "size", key.size(), "whole blocks"))
}

/// Rows 37 and 38, and 41 for the last key: the order of one set.
pub(crate) fn set_order<'a>(
    frame: &'a NodeFrame,
    place: Place,
    keys: &'a [Key],
) -> impl Iterator<Item = Corrupt> + 'a {
    let steps = keys.windows(2).enumerate().filter_map(move |(index, pair)| {
        let [a, b] = pair else { return None };
        let (row, fine) = if frame.level == 0 {
            (37, a.pos() <= b.start_pos())
        } else {
            (38, a.pos() < b.pos() || (a.is_freeing() && b.is_freeing()))
        };
        let expected = || format!("nothing before the end of {a}");
        let place = place.key(index + 1, *b);
        (!fine).then(|| Corrupt::row(row, frame.what(), place, SKIPPED_BACKWARDS, b, expected()))
    });
    steps.chain(within_bound(frame, place, keys))
}

/// Row 41: no key lies behind the node's bound.
fn within_bound<'a>(
    frame: &'a NodeFrame,
    place: Place,
    keys: &'a [Key],
) -> impl Iterator<Item = Corrupt> + 'a {
    keys.iter().enumerate().filter(|(_, key)| key.pos() > frame.bound()).map(move |(index, key)| {
        let expected = format!("keys up to {}", frame.bound());
        Corrupt::row(41, frame.what(), place.key(index, *key), SHORT_BTREE_KEY, key, expected)
    })
}

/// Row 39: the keys of a leaf after all its sets were merged.
pub(crate) fn merged_order<'a>(
    frame: &'a NodeFrame,
    keys: &'a [Key],
) -> impl Iterator<Item = Corrupt> + 'a {
    keys.windows(2).enumerate().filter_map(|(index, pair)| {
        let [a, b] = pair else { return None };
        let place = frame.place(0).key(index + 1, *b);
        if frame.level > 0 {
            let fine = a.pos() <= b.pos();
            return (!fine).then(|| {
                Corrupt::row(40, frame.what(), place, OUT_OF_ORDER, b, "ascending bounds")
            });
        }
        let field = if a.start_pos() > b.start_pos() {
            OUT_OF_ORDER
        } else if a.pos() > b.start_pos() {
            OVERLAPPING
        } else {
            return None;
        };
        let expected = format!("nothing before the end of {a}");
        Some(Corrupt::row(39, frame.what(), place, field, b, expected))
    })
}

/// Row 40: two live children never have the same bound. `keys` in merged order.
pub(crate) fn duplicates(
    frame: &NodeFrame,
    keys: &[Key],
    layout: &Layout,
    gens: &(impl Generations + ?Sized),
) -> Option<Corrupt> {
    let mut last: Option<&Key> = None;
    for (index, key) in keys.iter().enumerate() {
        if !usable_interior(key, layout, gens) {
            continue;
        }
        if let Some(last) = last.filter(|last| last.pos() == key.pos()) {
            let place = frame.place(0).key(index, *key);
            let expected = format!("one child, there is {last}");
            return Some(Corrupt::row(40, frame.what(), place, DUPLICATE, key, expected));
        }
        last = Some(key);
    }
    None
}

/// Row 42: no key lies before the bound of the previous sibling. `lower` is that bound.
pub(crate) fn above<'a>(
    frame: &'a NodeFrame,
    keys: &'a [Key],
    lower: Pos,
) -> impl Iterator<Item = Corrupt> + 'a {
    keys.iter().enumerate().filter_map(move |(index, key)| {
        let fine = if frame.level == 0 {
            key.size() == 0 || key.start_pos() >= lower
        } else {
            key.is_freeing() || key.pos() > lower
        };
        let expected = || format!("keys behind the previous node's bound {lower}");
        let place = || frame.place(0).key(index, *key);
        (!fine).then(|| Corrupt::row(42, frame.what(), place(), "start", key, expected()))
    })
}

/// O2: the search position of an insertion is the position just before its start, and nothing
/// else. The formula is not the one that made it.
pub(crate) fn search_position(frame: &NodeFrame, key: &Key, p: Option<Pos>) -> Result<(), Corrupt> {
    let start = if frame.level == 0 { key.start_pos() } else { key.pos() };
    let fine = match p {
        None => start == Pos::ZERO,
        Some(p) if p.inode == start.inode => p.offset + 1 == start.offset,
        Some(p) => start.offset == 0 && p.inode + 1 == start.inode && p.offset == Key::OFFSET_MAX,
    };
    if fine {
        return Ok(());
    }
    let found = p.map_or_else(|| "none".to_owned(), |p| p.to_string());
    let place = Place { key: Some(*key), ..frame.place(0) };
    let expected = format!("the position just before {start}");
    Err(Corrupt::online(2, frame.what(), place, "search position", found, expected))
}

/// O3: `at` really is the first key of the set behind `p`.
pub(crate) fn seek(
    frame: &NodeFrame,
    bset: usize,
    keys: &[Key],
    p: Option<Pos>,
    at: usize,
) -> Result<(), Corrupt> {
    let Some(p) = p else { return Ok(()) };
    let before = at.checked_sub(1).and_then(|i| keys.get(i));
    let wrong = match (before, keys.get(at)) {
        (Some(key), _) if key.pos() > p => key,
        (_, Some(key)) if key.pos() <= p => key,
        _ => return Ok(()),
    };
    let place = frame.place(0).bset(bset).key(at, *wrong);
    let expected = format!("the first key behind {p} in a sorted set");
    Err(Corrupt::online(3, frame.what(), place, "iterator start", wrong, expected))
}

/// O4: what stands at `index` fits between its neighbours.
pub(crate) fn neighbours(
    frame: &NodeFrame,
    bset: usize,
    keys: &[Key],
    index: usize,
) -> Result<(), Corrupt> {
    let from = index.saturating_sub(1);
    let around = keys.get(from..keys.len().min(index + 2)).unwrap_or(&[]);
    let place = frame.place(0).bset(bset);
    match set_order(frame, place, around).next() {
        None => Ok(()),
        Some(broken) => {
            let key = broken.place.key.unwrap_or(Key::ZERO);
            let place = place.key(index, key);
            let expected = broken.expected;
            Err(Corrupt::online(4, frame.what(), place, broken.field, broken.found, expected))
        }
    }
}

/// O5: no live key of a set covers any sector of `key`.
pub(crate) fn disjoint(
    frame: &NodeFrame,
    bset: usize,
    keys: &[Key],
    key: &Key,
) -> Result<(), Corrupt> {
    let first = keys.partition_point(|x| x.pos() <= key.start_pos());
    let rest = keys.get(first..).unwrap_or(&[]);
    let live = rest.iter().enumerate().find(|(_, x)| x.size() > 0);
    match live {
        Some((index, x)) if x.start_pos() < key.pos() => {
            let place = frame.place(0).bset(bset).key(first + index, *x);
            let expected = format!("nothing within {key}");
            Err(Corrupt::online(5, frame.what(), place, OVERLAPPING, x, expected))
        }
        _ => Ok(()),
    }
}

/// O5: a trimmed key still names the same data.
pub(crate) fn trimmed(frame: &NodeFrame, before: &Key, after: &Key) -> Result<(), Corrupt> {
    let inside = before.start() <= after.start() && after.end() <= before.end();
    let same_data = match (before.ptr(), after.ptr()) {
        (Some(b), Some(a)) => a == b.advanced(after.start().wrapping_sub(before.start())),
        (None, None) => true,
        _ => false,
    };
    if after.size() == 0 || (inside && same_data) {
        return Ok(());
    }
    let place = Place { key: Some(*after), ..frame.place(0) };
    let expected = format!("a part of {before}");
    Err(Corrupt::online(5, frame.what(), place, "trimmed key", after, expected))
}

/// O6: an insertion moved a sector count from `before` to `after`, and it had to add `added` and
/// lose `lost`.
pub(crate) fn sectors(
    frame: &NodeFrame,
    key: &Key,
    field: &'static str,
    (before, after): (u64, u64),
    (added, lost): (u64, u64),
) -> Result<(), Corrupt> {
    if u128::from(after) + u128::from(lost) == u128::from(before) + u128::from(added) {
        return Ok(());
    }
    let place = Place { key: Some(*key), ..frame.place(0) };
    let expected = format!("{before} - {lost} + {added}");
    Err(Corrupt::online(6, frame.what(), place, field, after, expected))
}

/// O7: dirty data that a set is about to name are where it says. `inherited` tells of keys that say
/// nothing new.
pub(crate) fn dirty_pointers(
    frame: &NodeFrame,
    place: Place,
    keys: &[Key],
    layout: &Layout,
    gens: &(impl Generations + ?Sized),
    inherited: impl Fn(&Key) -> bool,
) -> Result<(), Corrupt> {
    for (index, key) in keys.iter().enumerate().filter(|(_, k)| k.dirty() && k.size() > 0) {
        let ptr = key.pointer();
        if super::staleness(ptr, layout, gens) > 0 && !inherited(key) {
            let expected = "the bucket's current generation";
            let place = place.key(index, *key);
            return Err(Corrupt::online(7, frame.what(), place, "gen", ptr, expected));
        }
    }
    Ok(())
}

/// O8, and the end of O1: a merge neither loses nor invents sectors.
pub(crate) fn same_sectors(
    number: u8,
    frame: &NodeFrame,
    before: u64,
    after: u64,
) -> Result<(), Corrupt> {
    if before == after {
        return Ok(());
    }
    let place = frame.place(0);
    Err(Corrupt::online(number, frame.what(), place, "live sectors after a merge", after, before))
}
