//! Aligned buffers cut into what the device takes in one request, and put together again.

use crate::buf::IoBuf;
use crate::units::{Sector, Sectors};

/// Cuts each buffer into pieces of at most `max`, with the place of each.
pub(super) fn cut<T: std::ops::Deref<Target = [u8]>>(
    start: Sector,
    list: Vec<T>,
    max: Sectors,
    split: impl Fn(T, Sectors) -> (T, T),
) -> impl Iterator<Item = (Sector, T)> {
    let mut at = start;
    let mut rest: Option<T> = None;
    let mut list = list.into_iter();
    std::iter::from_fn(move || {
        let whole = rest.take().or_else(|| list.next())?;
        let len = Sectors::of_slice(&whole);
        let place = at;
        at += len.min(max);
        if len <= max {
            return Some((place, whole));
        }
        let (piece, more) = split(whole, max);
        rest = Some(more);
        Some((place, piece))
    })
}

/// The inverse of [`cut`] for one buffer of `len` bytes.
pub(super) fn rejoin(pieces: &mut impl Iterator<Item = IoBuf>, len: usize) -> IoBuf {
    let mut whole = pieces.next().expect("a buffer has a piece");
    while whole.len() < len {
        whole = IoBuf::join(whole, pieces.next().expect("the pieces make up the buffer"));
    }
    whole
}
