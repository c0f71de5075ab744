//! What the bytes did wrong, and where, precisely enough to find the byte by hand.

use std::fmt;

use uuid::Uuid;

use crate::format::{Bucket, Key, Pos};

/// The rule that was broken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Rule {
    /// A row of the table of offline checks (1..=54), see [`crate::check`].
    Row(u8),
    /// An online check, O1..O16: our own work on its way to the disk was wrong, or a node on its
    /// way in, and no row of the table says it better.
    Online(u8),
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rule::Row(row) => write!(f, "{row}"),
            Rule::Online(number) => write!(f, "O{number}"),
        }
    }
}

/// Where on the device, and in which structure. Whatever is known is filled in.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Place {
    /// The cache set, by its uuid.
    pub set: Option<Uuid>,
    /// Bucket of the cache device.
    pub bucket: Option<Bucket>,
    /// Sector of the device, 512 bytes each.
    pub sector: Option<u64>,
    /// Journal sequence number.
    pub seq: Option<u64>,
    /// Level of the node, 0 = leaf.
    pub level: Option<u8>,
    /// The node, by its inclusive upper bound.
    pub node: Option<Pos>,
    /// Number of the bset inside the node, counted from 0.
    pub bset: Option<usize>,
    /// Number of the key inside the bset or journal entry, counted from 0.
    pub index: Option<usize>,
    pub key: Option<Key>,
}

impl Place {
    pub(crate) fn sector(sector: u64) -> Place {
        Place { sector: Some(sector), ..Place::default() }
    }

    pub(crate) fn bucket(bucket: Bucket) -> Place {
        Place { bucket: Some(bucket), ..Place::default() }
    }

    pub(crate) fn bset(self, number: usize) -> Place {
        Place { bset: Some(number), ..self }
    }

    pub(crate) fn key(self, index: usize, key: Key) -> Place {
        Place { index: Some(index), key: Some(key), ..self }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut gap = "";
        let mut part = |f: &mut fmt::Formatter<'_>, name: &str, value: &dyn fmt::Display| {
            write!(f, "{gap}{name}={value}")?;
            gap = " ";
            Ok(())
        };
        if let Some(set) = &self.set {
            part(f, "set", set)?;
        }
        if let Some(bucket) = self.bucket {
            part(f, "bucket", &bucket.0)?;
        }
        if let Some(sector) = &self.sector {
            part(f, "sector", sector)?;
        }
        if let Some(seq) = &self.seq {
            part(f, "seq", seq)?;
        }
        if let Some(level) = &self.level {
            part(f, "level", level)?;
        }
        if let Some(node) = &self.node {
            part(f, "node", node)?;
        }
        if let Some(bset) = &self.bset {
            part(f, "bset", bset)?;
        }
        if let Some(index) = &self.index {
            part(f, "index", index)?;
        }
        if let Some(key) = &self.key {
            part(f, "key", key)?;
        }
        Ok(())
    }
}

/// One broken rule: what, where, what was seen, what was wanted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("corrupt {what}: {place}, {field}: found {found}, expected {expected}")]
pub struct Corrupt {
    pub rule: Rule,
    /// The structure: "superblock", "journal entry", "leaf", ...
    pub what: &'static str,
    pub place: Box<Place>,
    pub field: &'static str,
    pub found: String,
    pub expected: String,
}

impl Corrupt {
    pub(crate) fn row(
        row: u8,
        what: &'static str,
        place: Place,
        field: &'static str,
        found: impl fmt::Display,
        expected: impl fmt::Display,
    ) -> Corrupt {
        Corrupt {
            rule: Rule::Row(row),
            what,
            place: Box::new(place),
            field,
            found: found.to_string(),
            expected: expected.to_string(),
        }
    }

    pub(crate) fn online(
        number: u8,
        what: &'static str,
        place: Place,
        field: &'static str,
        found: impl fmt::Display,
        expected: impl fmt::Display,
    ) -> Corrupt {
        Corrupt {
            rule: Rule::Online(number),
            ..Corrupt::row(0, what, place, field, found, expected)
        }
    }

    /// The same complaint with the cache set named.
    #[must_use]
    pub(crate) fn in_set(mut self, set: Uuid) -> Corrupt {
        self.place.set = Some(set);
        self
    }
}

/// A number shown in hexadecimal in an error.
pub(crate) struct Hex(pub u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

/// Why a structure could not be read: the device failed, or its bytes are wrong.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Device(#[from] varve_block::Error),
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
}
