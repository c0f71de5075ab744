//! Headers as stored, and nothing else: bytes in, checked values out, and back.
//!
//! What leaves these modules has been looked at field by field, with the numbered checks of the
//! crate documentation; what breaks a rule is a [`Corrupt`](crate::Corrupt) value that names the field.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

pub(crate) mod fields;
pub(crate) mod foreign;
#[cfg(test)]
mod generators;
pub(crate) mod integrity;
pub(crate) mod json;
pub(crate) mod luks1;
pub(crate) mod luks2;
pub(crate) mod metadata;

use crate::error::{Corrupt, printable};

/// First six bytes of LUKS1, and of a LUKS2 header's primary copy.
pub(crate) const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
/// First six bytes of a LUKS2 header's secondary copy.
pub(crate) const MAGIC_SECONDARY: [u8; 6] = *b"SKUL\xba\xbe";

/// A NUL-terminated text field, cut at the field's end, printable or refused (check 2).
fn text(bytes: &[u8], wrong: impl Fn(String) -> Corrupt) -> Result<&str, Corrupt> {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    let text = bytes.get(..end).unwrap_or_default();
    match std::str::from_utf8(text) {
        Ok(t) => Ok(t),
        Err(_) => Err(wrong(printable(&String::from_utf8_lossy(text)))),
    }
}

/// Puts text into a field and zeroes its rest. What is too long was refused where it came in.
fn set_text(field: &mut [u8], text: &str) {
    field.fill(0);
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = from;
    }
}
