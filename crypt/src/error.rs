//! What can be wrong with a volume, with the person who opens it, or with the world below.

use std::fmt;

/// Result of everything that reads, checks or writes a volume's metadata.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a volume was not opened, made or changed.
///
/// The variants are what a caller acts on: ask again ([`Error::WrongKey`]), look elsewhere
/// ([`Error::NotLuks`]), repair ([`Error::Corrupt`]), use another tool ([`Error::Unsupported`]), or ask
/// the operator to spell out a risk ([`Error::Refused`]).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a LUKS1 nor a LUKS2 header is there.
    #[error("not a LUKS volume: {0}")]
    NotLuks(String),

    /// Nothing that could be tried accepted the secret. A damaged keyslot looks the same, by design.
    #[error("no usable keyslot accepted this passphrase or key file{}", list_skipped(.skipped))]
    WrongKey {
        /// Keyslots that were not tried, and why.
        skipped: Vec<Skipped>,
    },

    /// The header is there and breaks a rule of the format. It may be damaged, it may be hostile.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),

    /// The header is fine and asks for something this program does not do.
    #[error("unsupported: {0}")]
    Unsupported(String),

    /// Possible, but dangerous or expensive enough that the operator must ask for it by name.
    #[error("refused (check {check}): {why}")]
    Refused {
        /// Number of the check in the list that the crate documentation gives.
        check: u8,
        /// What was asked for, and which option allows it.
        why: String,
    },

    /// A re-encryption was cut inside of a zone. The secret and the metadata were proven: recovering it
    /// ([`Reencryption::settle`](crate::reencrypt::Reencryption::settle)) makes a volume of it.
    #[error(
        "the re-encryption was interrupted inside of a zone: serving the volume recovers it, and so does: \
         varve crypt reencrypt --resume-only"
    )]
    HotZone,

    /// The caller's own options contradict each other, the device or the format.
    #[error("{0}")]
    Options(String),

    /// What was written did not come back. One header copy may be lost; nothing was written after it.
    #[error(
        "{dev}: the {what} reads back differently from what was written: nothing more was written"
    )]
    NotStored {
        /// The device that holds the header.
        dev: varve_block::DevId,
        /// Which structure.
        what: &'static str,
    },

    /// The work was cancelled by its caller.
    #[error("interrupted")]
    Interrupted,

    /// The system's random number generator failed; without it no key may be made.
    #[error("no random numbers: {0}")]
    Random(String),

    /// A key file or a header file could not be read.
    #[error("{what}: {source}")]
    Io {
        /// The file or the action.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },

    /// The device below failed.
    #[error("{0}")]
    Device(#[from] varve_block::Error),
}

/// A rule of the format that the bytes break: which one, where, what was found and what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("corrupt {what} (check {check}): {field}: found {found}, expected {expected}")]
pub struct Corrupt {
    /// `LUKS1 header`, `LUKS2 primary header`, ...
    pub what: &'static str,
    /// Number of the check.
    pub check: u8,
    /// Path of the field, as in `keyslots.2.area.offset`.
    pub field: String,
    /// The value that was there, shortened and made printable.
    pub found: String,
    /// The rule.
    pub expected: String,
}

/// A keyslot that was not tried.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Skipped {
    /// Number of the keyslot.
    pub slot: u32,
    /// Why it cannot be used, in words for the operator.
    pub why: String,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {}: {}", self.slot, self.why)
    }
}

impl Error {
    /// The operator has to allow this by name.
    pub(crate) fn refused(check: u8, why: impl Into<String>) -> Error {
        Error::Refused { check, why: why.into() }
    }

    /// The header is legal, we are not able.
    pub(crate) fn unsupported(what: impl Into<String>) -> Error {
        Error::Unsupported(what.into())
    }
}

/// Makes text from a device safe for a terminal: printable ASCII stays, the rest is escaped, and the
/// whole is cut at 80 characters (check 2).
pub fn printable(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars() {
        if shown.len() >= 80 {
            shown.push_str("...");
            break;
        }
        if c.is_ascii_graphic() || c == ' ' {
            shown.push(c);
        } else {
            shown.extend(c.escape_default());
        }
    }
    shown
}

fn list_skipped(skipped: &[Skipped]) -> String {
    if skipped.is_empty() {
        return String::new();
    }
    let list: Vec<String> = skipped.iter().map(Skipped::to_string).collect();
    format!(" (not tried: {})", list.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_escape_in_a_label_is_shown_escaped() {
        assert_eq!(printable("a\x1b[31mb"), "a\\u{1b}[31mb");
        assert!(printable(&"x".repeat(500)).len() < 100);
    }

    #[test]
    fn skipped_slots_are_named_in_the_line() {
        let e = Error::WrongKey { skipped: vec![Skipped { slot: 3, why: "unknown kdf".into() }] };
        assert!(e.to_string().ends_with("(not tried: slot 3: unknown kdf)"), "{e}");
    }
}
