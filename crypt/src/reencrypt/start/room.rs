//! What is free in a header: ids, and gaps between the keyslot areas.

use crate::create::AREA_ALIGN;
use crate::error::{Error, Result};
use crate::format::luks2::Luks2;
use crate::format::metadata::Metadata;

pub(super) fn free(limit: u32, is_taken: impl Fn(u32) -> bool, what: &str) -> Result<u32> {
    (0..limit)
        .find(|&id| !is_taken(id))
        .ok_or_else(|| Error::Options(format!("all {what} are in use; remove one first")))
}

/// Offset and length of every keyslot area.
pub(super) fn areas(m: &Metadata) -> Vec<(u64, u64)> {
    m.keyslots.values().map(|s| (s.area_offset, s.area_size)).collect()
}

/// The gaps between the areas, in order.
pub(super) fn gaps(h: &Luks2, taken: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut taken = taken.to_vec();
    taken.sort_unstable();
    let end = h.metadata.areas_end(h.hdr_size);
    let mut at = (2 * h.hdr_size).next_multiple_of(AREA_ALIGN);
    let mut gaps = Vec::new();
    for (start, len) in taken.into_iter().chain([(end, 0)]) {
        if start > at {
            gaps.push((at, start - at));
        }
        at = at.max((start + len).next_multiple_of(AREA_ALIGN));
    }
    gaps
}

pub(super) fn gap(h: &Luks2, taken: &[(u64, u64)], len: u64) -> Result<u64> {
    let fits = gaps(h, taken).into_iter().find(|(_, room)| *room >= len);
    fits.map(|(at, _)| at).ok_or_else(|| {
        Error::Options(format!(
            "the keyslot region has no gap of {len} bytes left; remove a key first"
        ))
    })
}
