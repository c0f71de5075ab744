//! The NBD protocol as bytes: every number and every fixed layout, nothing that decides.
//!
//! All integers are big-endian. The structs *are* the tables of the protocol text (public domain,
//! `proto.md` of the NBD project); each has a size assert, so a field that slips is a build error.
//! Lengths are in bytes.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First word of the greeting, `NBDMAGIC`.
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second word of the greeting and head of every option request, `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Second word of the greeting of the negotiation that came before the newstyle.
pub const OLD_STYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// Head of every option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Head of a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Head of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Head of a structured reply chunk.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// The only bit of a structured chunk's flags: no further chunk for this cookie.
pub const CHUNK_DONE: u16 = 1;

/// Longest string (export name, description, query, error text) the protocol allows.
pub const STRING_MAX: usize = 4096;
/// What follows the facts of `EXPORT_NAME` unless the client said `C_NO_ZEROES`.
pub const EXPORT_NAME_PADDING: usize = 124;

bitflags::bitflags! {
    /// What the server says of itself in the greeting.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct HandshakeFlags: u16 {
        const FIXED_NEWSTYLE = 1 << 0;
        const NO_ZEROES = 1 << 1;
    }

    /// The client's answer to the greeting.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct ClientFlags: u32 {
        const FIXED_NEWSTYLE = 1 << 0;
        const NO_ZEROES = 1 << 1;
    }

    /// What an export can do, told at the end of the negotiation.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct TransmissionFlags: u16 {
        const HAS_FLAGS = 1 << 0;
        const READ_ONLY = 1 << 1;
        const SEND_FLUSH = 1 << 2;
        const SEND_FUA = 1 << 3;
        const ROTATIONAL = 1 << 4;
        const SEND_TRIM = 1 << 5;
        const SEND_WRITE_ZEROES = 1 << 6;
        const SEND_DF = 1 << 7;
        const CAN_MULTI_CONN = 1 << 8;
        const SEND_CACHE = 1 << 10;
        const SEND_FAST_ZERO = 1 << 11;
    }

    /// Modifiers of one request.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct CommandFlags: u16 {
        const FUA = 1 << 0;
        const NO_HOLE = 1 << 1;
        const DF = 1 << 2;
        const REQ_ONE = 1 << 3;
        const FAST_ZERO = 1 << 4;
        /// Means something with extended headers only; with compact ones it is an error.
        const PAYLOAD_LEN = 1 << 5;
    }

    /// Flags of one `base:allocation` extent.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct AllocationFlags: u32 {
        /// Not provisioned: a write here may find no space.
        const HOLE = 1 << 0;
        /// Reads as zeroes.
        const ZERO = 1 << 1;
    }
}

/// Options of the handshake, by number.
pub mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Answers to an option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Rep {
    Ack = 1,
    Server = 2,
    Info = 3,
    MetaContext = 4,
    ErrUnsup = (1 << 31) + 1,
    ErrPolicy = (1 << 31) + 2,
    ErrInvalid = (1 << 31) + 3,
    ErrPlatform = (1 << 31) + 4,
    ErrTlsReqd = (1 << 31) + 5,
    ErrUnknown = (1 << 31) + 6,
    ErrShutdown = (1 << 31) + 7,
    ErrBlockSizeReqd = (1 << 31) + 8,
    ErrTooBig = (1 << 31) + 9,
    ErrExtHeaderReqd = (1 << 31) + 10,
}

impl Rep {
    /// The bit of every answer that refuses.
    pub const ERROR: u32 = 1 << 31;
}

/// Kinds of information that `INFO` and `GO` give.
pub mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Requests of the transmission phase, by number.
pub mod command {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Structured reply chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Chunk {
    None = 0,
    OffsetData = 1,
    OffsetHole = 2,
    BlockStatus = 5,
    Error = (1 << 15) + 1,
    ErrorOffset = (1 << 15) + 2,
}

/// The error numbers that may appear on the wire; there are no others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Errno {
    Perm = 1,
    Io = 5,
    NoMem = 12,
    Inval = 22,
    NoSpc = 28,
    Overflow = 75,
    NotSup = 95,
    Shutdown = 108,
}

/// The first bytes of a connection, server to client.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct Greeting {
    pub magic: U64,
    pub option_magic: U64,
    pub flags: U16,
}
const _: () = assert!(size_of::<Greeting>() == 18);

/// Head of an option request; `length` bytes of data follow.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct OptionRequest {
    pub magic: U64,
    pub option: U32,
    pub length: U32,
}
const _: () = assert!(size_of::<OptionRequest>() == 16);

/// Head of an option reply; `length` bytes of data follow.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct OptionReply {
    pub magic: U64,
    pub option: U32,
    pub kind: U32,
    pub length: U32,
}
const _: () = assert!(size_of::<OptionReply>() == 20);

/// The whole success answer to `EXPORT_NAME`, before its padding.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct ExportNameReply {
    pub size: U64,
    pub flags: U16,
}
const _: () = assert!(size_of::<ExportNameReply>() == 10);

/// `EXPORT` information.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct InfoExport {
    pub kind: U16,
    pub size: U64,
    pub flags: U16,
}
const _: () = assert!(size_of::<InfoExport>() == 12);

/// `BLOCK_SIZE` information.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct InfoBlockSize {
    pub kind: U16,
    pub minimum: U32,
    pub preferred: U32,
    pub payload_max: U32,
}
const _: () = assert!(size_of::<InfoBlockSize>() == 14);

/// A compact request. A `WRITE` is followed by `length` bytes of payload.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct CompactRequest {
    pub magic: U32,
    pub flags: U16,
    pub kind: U16,
    pub cookie: U64,
    pub offset: U64,
    pub length: U32,
}
const _: () = assert!(size_of::<CompactRequest>() == 28);

/// A simple reply. A successful `READ` is followed by its data.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct SimpleReply {
    pub magic: U32,
    pub error: U32,
    pub cookie: U64,
}
const _: () = assert!(size_of::<SimpleReply>() == 16);

/// Head of a structured reply chunk; `length` bytes of payload follow.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct ChunkHead {
    pub magic: U32,
    pub flags: U16,
    pub kind: U16,
    pub cookie: U64,
    pub length: U32,
}
const _: () = assert!(size_of::<ChunkHead>() == 20);

/// Payload of an `OFFSET_HOLE` chunk.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct HoleBody {
    pub offset: U64,
    pub size: U32,
}
const _: () = assert!(size_of::<HoleBody>() == 12);

/// Bit of every chunk type that tells of an error.
pub const CHUNK_ERROR: u16 = 1 << 15;

/// Head of the payload of `ERROR` and `ERROR_OFFSET`: the text follows, then (for the latter) the
/// offset as `u64`.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct ErrorBody {
    pub error: U32,
    pub text_length: U16,
}
const _: () = assert!(size_of::<ErrorBody>() == 6);

/// One extent of a `BLOCK_STATUS` chunk.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct StatusExtent {
    pub length: U32,
    pub flags: U32,
}
const _: () = assert!(size_of::<StatusExtent>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magics_spell_what_the_protocol_says() {
        assert_eq!(&GREETING_MAGIC.to_be_bytes(), b"NBDMAGIC");
        assert_eq!(&OPTION_MAGIC.to_be_bytes(), b"IHAVEOPT");
    }

    #[test]
    fn a_request_has_its_fields_where_the_table_puts_them() {
        let raw = CompactRequest {
            magic: REQUEST_MAGIC.into(),
            flags: 0x0102.into(),
            kind: 0x0304.into(),
            cookie: 0x0506_0708_090a_0b0c.into(),
            offset: 0x1112_1314_1516_1718.into(),
            length: 0x2122_2324.into(),
        };
        let bytes = [
            0x25, 0x60, 0x95, 0x13, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x11, 0x12, 0x13, 0x14,
            0x15, 0x16, 0x17, 0x18, 0x21, 0x22, 0x23, 0x24,
        ];
        assert_eq!(raw.as_bytes(), bytes);
    }

    #[test]
    fn error_replies_and_chunks_have_their_high_bits() {
        assert_eq!(Rep::ErrUnsup as u32, 0x8000_0001);
        assert_eq!(Rep::ErrTooBig as u32, 0x8000_0009);
        assert_eq!(Chunk::Error as u16, 0x8001);
        assert_eq!(Chunk::ErrorOffset as u16, 0x8002);
    }
}
