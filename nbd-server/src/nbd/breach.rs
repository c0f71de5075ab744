//! What a server may do that the protocol forbids, as a client says it.

/// A rule that the server has broken. Nothing it says after that can be trusted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Breach {
    #[error("the greeting begins with {0:#018x}: no NBD server")]
    Greeting(u64),
    #[error("the server speaks the old-style negotiation, which cannot name an export")]
    OldStyle,
    #[error("the greeting goes on with {0:#018x}, which is no negotiation there is")]
    GreetingMagic(u64),
    #[error("the server does not speak the fixed newstyle negotiation")]
    NotFixedNewstyle,
    #[error("an option reply begins with {0:#018x}")]
    OptionMagic(u64),
    #[error("option {asked} is answered as option {answered}")]
    OptionEcho { asked: u32, answered: u32 },
    #[error("option {option} is answered by {length} bytes")]
    OptionTooLong { option: u32, length: u32 },
    #[error("option {0} is answered without end")]
    OptionEndless(u32),
    #[error("option {option} is answered by type {kind}")]
    OptionKind { option: u32, kind: u32 },
    #[error("{what} information of {length} bytes")]
    Info { what: &'static str, length: usize },
    #[error("{0} information comes twice")]
    InfoTwice(&'static str),
    #[error("the export is granted without its size")]
    NoExportInfo,
    #[error("an export of {0} bytes")]
    Size(u64),
    #[error("the export's flags {0:#06x} do not say that they are flags")]
    NoFlags(u16),
    #[error("block sizes {minimum}, {preferred}, {payload_max} cannot be")]
    BlockSizes { minimum: u32, preferred: u32, payload_max: u32 },
    #[error("a metadata context is granted that nobody asked for")]
    ContextNotAsked,
    #[error("a reply begins with {0:#010x}")]
    Magic(u32),
    #[error("a reply is for cookie {0}, which nobody waits for")]
    Cookie(u64),
    #[error("a structured reply, although none were agreed on")]
    NotStructured,
    #[error("a read is answered by a simple reply, although structured ones were agreed on")]
    NotSimple,
    #[error("a chunk has unknown flags {0:#06x}")]
    ChunkFlags(u16),
    #[error("a chunk of type {kind} answers {what}")]
    ChunkKind { kind: u16, what: &'static str },
    #[error("a chunk of type {kind} with {length} bytes")]
    ChunkLength { kind: u16, length: u32 },
    #[error("a chunk with bytes {offset}+{length} answers a read of {asked}+{asked_length}")]
    Outside { offset: u64, length: u64, asked: u64, asked_length: u32 },
    #[error("byte {0} comes twice in one reply")]
    Overlap(u64),
    #[error("a reply in too many pieces")]
    Pieces,
    #[error("a reply ends without byte {0}")]
    Missing(u64),
    #[error("an error chunk without an error")]
    NoError,
    #[error("an answer about metadata context {0}, which was not agreed on")]
    Context(u32),
    #[error("a block status reply without any extent, or with two lists of them")]
    StatusLists,
    #[error("an extent of no length, or behind what was asked about")]
    StatusExtent,
}
