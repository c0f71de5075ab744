//! What a negotiation needs to know of the exports: their names and their facts.

use super::wire::TransmissionFlags;

/// What a client is told of one export, and later held to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Canonical name: two names with the same canonical name are the same export.
    pub name: String,
    /// A line for people, told when asked.
    pub description: Option<String>,
    /// Bytes.
    pub size: u64,
    /// Everything but `SEND_DF`, which depends on the negotiation.
    pub flags: TransmissionFlags,
    /// Smallest unit the device moves by itself, in bytes; a power of two up to 64 KiB.
    pub block_minimum: u32,
    /// Unit that avoids read-modify-write, in bytes.
    pub block_preferred: u32,
    /// Longest payload of one request or reply, in bytes.
    pub payload_max: u32,
    /// Refuse requests off `block_minimum` from clients that asked for the block sizes. Everybody
    /// else, and everybody when this is off, may address single bytes.
    pub strict_block_size: bool,
}

impl Facts {
    /// The transmission flags as this negotiation sends them.
    pub fn advertised(&self, structured: bool) -> TransmissionFlags {
        let mut flags = self.flags | TransmissionFlags::HAS_FLAGS;
        flags.set(TransmissionFlags::SEND_DF, structured);
        flags
    }
}

/// The exports as one connection sees them.
pub trait Catalog {
    /// The facts behind a name or an alias; the empty name is the default export.
    fn find(&self, name: &str) -> Option<Facts>;
    /// Canonical names and descriptions for `LIST`; `None` where listing is not allowed.
    fn list(&self) -> Option<Vec<(String, Option<String>)>>;
    /// The server is going down: no new negotiation may succeed.
    fn stopping(&self) -> bool;
}

/// A metadata context that `BLOCK_STATUS` can be asked about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Context {
    /// `base:allocation`: provisioned or not, zero or not.
    BaseAllocation,
}

impl Context {
    /// Every context there is.
    pub const ALL: &[Context] = &[Context::BaseAllocation];

    /// `namespace:leaf`.
    pub fn name(self) -> &'static str {
        match self {
            Context::BaseAllocation => "base:allocation",
        }
    }

    /// The id that names it in replies, the same in every connection.
    pub fn id(self) -> u32 {
        match self {
            Context::BaseAllocation => 1,
        }
    }

    /// Does a `LIST` query mean this one? `base:` is a wildcard for its namespace.
    pub fn listed_by(self, query: &str) -> bool {
        let namespace = query.ends_with(':') && self.name().starts_with(query);
        namespace || self.selected_by(query)
    }

    /// Does a `SET` query mean this one? Wildcards select nothing.
    pub fn selected_by(self, query: &str) -> bool {
        self.name() == query
    }
}
