//! The handshake from the client's side: options as they are sent, and what their answers say.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use super::breach::Breach;
use super::facts::Context;
use super::wire::*;
use zerocopy::{FromBytes, IntoBytes};

/// Longest data of one option reply. Names and texts have at most 4096 bytes.
pub const REPLY_MAX: u32 = 64 << 10;
/// Most replies to one option. `GO` has a handful of kinds of information.
pub const REPLIES_MAX: u32 = 64;

/// What a server that says nothing of block sizes takes.
const DEFAULT_SIZES: BlockSizes = BlockSizes { minimum: 1, preferred: 4096, payload_max: 32 << 20 };
/// Longest minimum block that the protocol allows.
const MINIMUM_MAX: u32 = 64 << 10;

/// The units of an export, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockSizes {
    /// Requests start and end on multiples of it; a power of two.
    pub minimum: u32,
    /// The unit that the server likes; a power of two.
    pub preferred: u32,
    /// Longest payload of a request or of its answer.
    pub payload_max: u32,
}

/// What was agreed on, for the whole of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Terms {
    /// Bytes.
    pub size: u64,
    pub flags: TransmissionFlags,
    pub sizes: BlockSizes,
    /// Reads are answered in chunks, errors carry a text.
    pub structured: bool,
    /// The id of `base:allocation`, where block status can be asked for.
    pub allocation: Option<u32>,
}

/// What the server says of itself.
pub fn greeting(bytes: [u8; size_of::<Greeting>()]) -> Result<HandshakeFlags, Breach> {
    let raw = zerocopy::transmute_ref!(&bytes);
    let Greeting { magic, option_magic, flags } = *raw;
    if magic.get() != GREETING_MAGIC {
        return Err(Breach::Greeting(magic.get()));
    }
    match option_magic.get() {
        OPTION_MAGIC => {}
        OLD_STYLE_MAGIC => return Err(Breach::OldStyle),
        other => return Err(Breach::GreetingMagic(other)),
    }
    let flags = HandshakeFlags::from_bits_truncate(flags.get());
    if !flags.contains(HandshakeFlags::FIXED_NEWSTYLE) {
        return Err(Breach::NotFixedNewstyle);
    }
    Ok(flags)
}

/// Our answer to the greeting.
pub fn client_flags(server: HandshakeFlags) -> [u8; 4] {
    let mut flags = ClientFlags::FIXED_NEWSTYLE;
    flags.set(ClientFlags::NO_ZEROES, server.contains(HandshakeFlags::NO_ZEROES));
    flags.bits().to_be_bytes()
}

/// One option with its data.
pub fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let length = short(data);
    let head = OptionRequest { magic: OPTION_MAGIC.into(), option: option.into(), length };
    [head.as_bytes(), data].concat()
}

/// Data of `GO`: the export, and that its block sizes are wanted.
pub fn go(name: &str) -> Vec<u8> {
    let mut data = string(name);
    data.extend(1_u16.to_be_bytes());
    data.extend(info::BLOCK_SIZE.to_be_bytes());
    data
}

/// Data of `SET_META_CONTEXT`: one context of the export.
pub fn context(name: &str, context: Context) -> Vec<u8> {
    let mut data = string(name);
    data.extend(1_u32.to_be_bytes());
    data.extend(string(context.name()));
    data
}

fn string(text: &str) -> Vec<u8> {
    [short(text.as_bytes()).as_bytes(), text.as_bytes()].concat()
}

fn short(bytes: &[u8]) -> zerocopy::byteorder::big_endian::U32 {
    u32::try_from(bytes.len()).expect("names are short").into()
}

/// Head of an answer to `asked`: its kind, and the length of the data that follows.
pub fn reply(bytes: [u8; size_of::<OptionReply>()], asked: u32) -> Result<(u32, u32), Breach> {
    let raw = zerocopy::transmute_ref!(&bytes);
    let OptionReply { magic, option, kind, length } = *raw;
    if magic.get() != OPTION_REPLY_MAGIC {
        return Err(Breach::OptionMagic(magic.get()));
    }
    if option.get() != asked {
        return Err(Breach::OptionEcho { asked, answered: option.get() });
    }
    if length.get() > REPLY_MAX {
        return Err(Breach::OptionTooLong { option: asked, length: length.get() });
    }
    Ok((kind.get(), length.get()))
}

/// The id of the context that was asked for.
pub fn granted(data: &[u8], asked: Context) -> Result<u32, Breach> {
    match data.split_first_chunk() {
        Some((id, name)) if name == asked.name().as_bytes() => Ok(u32::from_be_bytes(*id)),
        _ => Err(Breach::ContextNotAsked),
    }
}

/// What the answers to `GO` have said so far.
#[derive(Default, Debug)]
pub struct Offered {
    export: Option<(u64, u16)>,
    sizes: Option<BlockSizes>,
}

impl Offered {
    /// The success answer to `EXPORT_NAME`.
    pub fn by_name(bytes: [u8; size_of::<ExportNameReply>()]) -> Offered {
        let raw: &ExportNameReply = zerocopy::transmute_ref!(&bytes);
        Offered { export: Some((raw.size.get(), raw.flags.get())), sizes: None }
    }

    /// One piece of information. Kinds that we do not know are passed over.
    pub fn info(&mut self, data: &[u8]) -> Result<(), Breach> {
        let Some((kind, _)) = data.split_first_chunk() else {
            return Err(Breach::Info { what: "nameless", length: data.len() });
        };
        let twice = match u16::from_be_bytes(*kind) {
            info::EXPORT => {
                let raw = whole::<InfoExport>("export", data)?;
                self.export.replace((raw.size.get(), raw.flags.get())).map(|_| "export")
            }
            info::BLOCK_SIZE => {
                let raw = whole::<InfoBlockSize>("block size", data)?;
                let sizes = BlockSizes {
                    minimum: raw.minimum.get(),
                    preferred: raw.preferred.get(),
                    payload_max: raw.payload_max.get(),
                };
                self.sizes.replace(sizes.judged()?).map(|_| "block size")
            }
            _ => None,
        };
        twice.map_or(Ok(()), |what| Err(Breach::InfoTwice(what)))
    }

    /// The export was granted: on these terms.
    pub fn terms(self, structured: bool, allocation: Option<u32>) -> Result<Terms, Breach> {
        let (size, flags) = self.export.ok_or(Breach::NoExportInfo)?;
        if i64::try_from(size).is_err() {
            return Err(Breach::Size(size));
        }
        let bits = TransmissionFlags::from_bits_truncate(flags);
        if !bits.contains(TransmissionFlags::HAS_FLAGS) {
            return Err(Breach::NoFlags(flags));
        }
        let sizes = self.sizes.unwrap_or(DEFAULT_SIZES);
        Ok(Terms { size, flags: bits, sizes, structured, allocation })
    }
}

fn whole<T: FromBytes>(what: &'static str, data: &[u8]) -> Result<T, Breach> {
    T::read_from_bytes(data).map_err(|_| Breach::Info { what, length: data.len() })
}

impl BlockSizes {
    fn judged(self) -> Result<BlockSizes, Breach> {
        let BlockSizes { minimum, preferred, payload_max } = self;
        let fair = minimum.is_power_of_two()
            && minimum <= MINIMUM_MAX
            && preferred.is_power_of_two()
            && preferred >= minimum
            && payload_max >= preferred;
        if fair { Ok(self) } else { Err(Breach::BlockSizes { minimum, preferred, payload_max }) }
    }
}
