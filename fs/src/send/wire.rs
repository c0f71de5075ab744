//! The stream as bytes: commands and their attributes (format: btrfs 19).
//!
//! ```text
//! "btrfs-stream\0" version:u32 | len:u32 cmd:u16 crc:u32 | type:u16 len:u16 bytes | ... | len cmd crc | ...
//! ```
//! From version 2 on the data attribute has no length: it is a command's last, and reaches to its end.

use crate::csum::send_crc;
use crate::format::Uuid;
use crate::format::inode::Time;
use std::io::{self, Read, Write};

pub(crate) const MAGIC: &[u8; 13] = b"btrfs-stream\0";
/// Bytes of a command before its attributes.
const HEAD: usize = 10;
/// What a reader takes at most in one command: an encoded write of 128 KiB, and much room.
const COMMAND_MAX: u32 = 16 << 20;

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident: $($variant:ident = $number:literal,)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum $name { $($variant,)* }

        impl $name {
            pub fn number(self) -> u16 {
                match self { $($name::$variant => $number,)* }
            }

            pub fn from_number(number: u16) -> Option<$name> {
                match number { $($number => Some($name::$variant),)* _ => None }
            }
        }
    };
}

numbered! {
    /// What a receiver is told to do.
    Command:
    Subvol = 1, Snapshot = 2, MkFile = 3, MkDir = 4, MkNod = 5, MkFifo = 6, MkSock = 7, Symlink = 8,
    Rename = 9, Link = 10, Unlink = 11, RmDir = 12, SetXattr = 13, RemoveXattr = 14, Write = 15,
    Clone = 16, Truncate = 17, Chmod = 18, Chown = 19, Utimes = 20, End = 21, UpdateExtent = 22,
    Fallocate = 23, FileAttr = 24, EncodedWrite = 25, EnableVerity = 26,
}

numbered! {
    /// What a command is about.
    Attr:
    Uuid = 1, Ctransid = 2, Ino = 3, Size = 4, Mode = 5, Uid = 6, Gid = 7, Rdev = 8, Ctime = 9,
    Mtime = 10, Atime = 11, Otime = 12, XattrName = 13, XattrData = 14, Path = 15, PathTo = 16,
    PathLink = 17, FileOffset = 18, Data = 19, CloneUuid = 20, CloneCtransid = 21, ClonePath = 22,
    CloneOffset = 23, CloneLen = 24, FallocateMode = 25, FileAttr = 26, UnencodedFileLen = 27,
    UnencodedLen = 28, UnencodedOffset = 29, Compression = 30, Encryption = 31,
    VerityAlgorithm = 32, VerityBlockSize = 33, VeritySalt = 34, VeritySig = 35,
}

/// Writes commands, one after another, each whole.
pub(crate) struct Writer<'a> {
    out: &'a mut dyn Write,
    version: u32,
    command: Vec<u8>,
    written: u64,
}

impl<'a> Writer<'a> {
    pub(crate) fn start(out: &'a mut dyn Write, version: u32) -> io::Result<Writer<'a>> {
        out.write_all(MAGIC)?;
        out.write_all(&version.to_le_bytes())?;
        Ok(Writer { out, version, command: Vec::new(), written: MAGIC.len() as u64 + 4 })
    }

    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Begins a command; [`Building::send`] ends it.
    pub(crate) fn command(&mut self, command: Command) -> Building<'_, 'a> {
        self.command.clear();
        self.command.extend_from_slice(&[0; HEAD]);
        if let Some(field) = self.command.get_mut(4..6) {
            field.copy_from_slice(&command.number().to_le_bytes());
        }
        Building { writer: self, error: None }
    }

    fn finish(&mut self) -> io::Result<()> {
        let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "a command is too long");
        let len = u32::try_from(self.command.len() - HEAD).map_err(|_| too_long())?;
        let (head, _) = self.command.split_at_mut(4);
        head.copy_from_slice(&len.to_le_bytes());
        let crc = send_crc(&self.command);
        if let Some(field) = self.command.get_mut(6..HEAD) {
            field.copy_from_slice(&crc.to_le_bytes());
        }
        self.written += self.command.len() as u64;
        self.out.write_all(&self.command)
    }
}

/// A command being put together.
#[must_use]
pub(crate) struct Building<'w, 'a> {
    writer: &'w mut Writer<'a>,
    error: Option<io::Error>,
}

impl Building<'_, '_> {
    pub(crate) fn bytes(mut self, attr: Attr, bytes: &[u8]) -> Self {
        let command = &mut self.writer.command;
        command.extend_from_slice(&attr.number().to_le_bytes());
        let endless = attr == Attr::Data && self.writer.version >= 2;
        if !endless {
            match u16::try_from(bytes.len()) {
                Ok(len) => command.extend_from_slice(&len.to_le_bytes()),
                Err(_) => {
                    let message = format!("an attribute of {} bytes", bytes.len());
                    self.error = Some(io::Error::new(io::ErrorKind::InvalidInput, message));
                }
            }
        }
        command.extend_from_slice(bytes);
        self
    }

    pub(crate) fn path(self, path: &[u8]) -> Self {
        self.bytes(Attr::Path, path)
    }

    pub(crate) fn u64(self, attr: Attr, value: u64) -> Self {
        self.bytes(attr, &value.to_le_bytes())
    }

    pub(crate) fn u32(self, attr: Attr, value: u32) -> Self {
        self.bytes(attr, &value.to_le_bytes())
    }

    pub(crate) fn uuid(self, attr: Attr, uuid: Uuid) -> Self {
        self.bytes(attr, uuid.as_bytes())
    }

    pub(crate) fn time(self, attr: Attr, time: Time) -> Self {
        let mut bytes = [0; 12];
        let (seconds, nanos) = bytes.split_at_mut(8);
        seconds.copy_from_slice(&time.seconds.to_le_bytes());
        nanos.copy_from_slice(&time.nanos.to_le_bytes());
        self.bytes(attr, &bytes)
    }

    pub(crate) fn send(self) -> io::Result<()> {
        match self.error {
            Some(error) => Err(error),
            None => self.writer.finish(),
        }
    }
}

/// One command of a stream that was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Received {
    pub command: Command,
    pub attrs: Vec<(Attr, Vec<u8>)>,
}

impl Received {
    pub fn get(&self, attr: Attr) -> Option<&[u8]> {
        self.attrs.iter().find(|(found, _)| *found == attr).map(|(_, bytes)| bytes.as_slice())
    }

    pub fn number(&self, attr: Attr) -> Option<u64> {
        let bytes = self.get(attr)?;
        let mut wide = [0; 8];
        wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(u64::from_le_bytes(wide))
    }
}

/// What is wrong with a stream, and at which byte.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("the stream cannot be read")]
    Io(#[from] io::Error),
    #[error("byte {at}: {what}")]
    Bad { at: u64, what: String },
}

/// Reads a stream command by command. Any bytes make a value or an error.
pub struct Reader<R> {
    input: R,
    version: u32,
    at: u64,
}

impl<R: Read> Reader<R> {
    pub fn start(mut input: R) -> Result<Reader<R>, StreamError> {
        let mut head = [0; 17];
        input.read_exact(&mut head)?;
        let (magic, version) = head.split_at(13);
        if magic != MAGIC {
            return Err(StreamError::Bad { at: 0, what: "this is no btrfs stream".into() });
        }
        let version = version.iter().rev().fold(0, |n, byte| n << 8 | u32::from(*byte));
        if !(1..=3).contains(&version) {
            let what = format!("stream version {version}, known are 1 to 3");
            return Err(StreamError::Bad { at: 13, what });
        }
        Ok(Reader { input, version, at: 17 })
    }

    pub fn version(&self) -> u32 {
        self.version
    }

    fn bad<T>(&self, what: impl Into<String>) -> Result<T, StreamError> {
        Err(StreamError::Bad { at: self.at, what: what.into() })
    }

    /// The next command; `None` after the last. A stream may be followed by another one, header and
    /// all: that is the caller's business.
    pub fn next_command(&mut self) -> Result<Option<Received>, StreamError> {
        let mut command = vec![0; HEAD];
        match self.input.read(&mut command)? {
            0 => return Ok(None),
            n => {
                let rest = command.get_mut(n..).unwrap_or(&mut []);
                self.input.read_exact(rest)?;
            }
        }
        let number = |range: std::ops::Range<usize>| {
            let bytes = command.get(range).unwrap_or(&[]);
            bytes.iter().rev().fold(0u32, |n, byte| n << 8 | u32::from(*byte))
        };
        let (len, kind, crc) = (number(0..4), number(4..6), number(6..10));
        if len > COMMAND_MAX {
            return self.bad(format!("a command of {len} bytes"));
        }
        let kind = u16::try_from(kind).ok().and_then(Command::from_number);
        let Some(kind) = kind else { return self.bad("an unknown command") };
        // Grows as bytes arrive: a short stream may claim any length.
        let mut body = Vec::new();
        let got = (&mut self.input).take(u64::from(len)).read_to_end(&mut body)?;
        if got as u64 != u64::from(len) {
            return self.bad("the stream ends within a command");
        }
        command.extend_from_slice(&body);
        if let Some(field) = command.get_mut(6..HEAD) {
            field.fill(0);
        }
        if send_crc(&command) != crc {
            return self.bad(format!("{kind:?}: its checksum is wrong"));
        }
        let attrs = self.attributes(kind, &body)?;
        self.at += command.len() as u64;
        Ok(Some(Received { command: kind, attrs }))
    }

    fn attributes(&self, kind: Command, body: &[u8]) -> Result<Vec<(Attr, Vec<u8>)>, StreamError> {
        let mut attrs = Vec::new();
        let mut rest = body;
        while !rest.is_empty() {
            let Some((number, after)) = rest.split_first_chunk::<2>() else {
                return self.bad(format!("{kind:?}: an attribute without a type"));
            };
            let number = u16::from_le_bytes(*number);
            let Some(attr) = Attr::from_number(number) else {
                return self.bad(format!("{kind:?}: attribute {number} is unknown"));
            };
            if attr == Attr::Data && self.version >= 2 {
                attrs.push((attr, after.to_vec()));
                break;
            }
            let split = after.split_first_chunk::<2>();
            let split = split.and_then(|(len, bytes)| {
                bytes.split_at_checked(usize::from(u16::from_le_bytes(*len)))
            });
            let Some((bytes, after)) = split else {
                return self.bad(format!("{kind:?}: {attr:?} reaches behind the command"));
            };
            attrs.push((attr, bytes.to_vec()));
            rest = after;
        }
        Ok(attrs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(bytes: &[u8]) -> Result<Vec<Received>, StreamError> {
        let mut reader = Reader::start(bytes)?;
        let mut commands = Vec::new();
        while let Some(command) = reader.next_command()? {
            commands.push(command);
        }
        Ok(commands)
    }

    fn stream(version: u32) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = Writer::start(&mut out, version).unwrap();
        writer.command(Command::MkFile).path(b"a").u64(Attr::Ino, 257).send().unwrap();
        let write = writer.command(Command::Write).path(b"a").u64(Attr::FileOffset, 4096);
        write.bytes(Attr::Data, b"some bytes").send().unwrap();
        writer.command(Command::End).send().unwrap();
        out
    }

    #[test]
    fn what_is_written_is_read_again_in_every_version() {
        for version in [1, 2] {
            let read = all(&stream(version)).unwrap();
            assert_eq!(read.len(), 3);
            assert_eq!(read[0].number(Attr::Ino), Some(257));
            assert_eq!(read[1].get(Attr::Data), Some(&b"some bytes"[..]));
            assert_eq!(read[2].command, Command::End);
        }
    }

    #[test]
    fn the_data_attribute_has_no_length_from_version_2_on() {
        assert_eq!(stream(1).len(), stream(2).len() + 2);
    }

    #[test]
    fn every_changed_byte_of_a_command_is_noticed() {
        let good = stream(1);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x20;
            assert!(all(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn every_cut_inside_a_command_is_noticed() {
        let good = stream(2);
        let whole = |len: usize| all(&good[..len]).is_ok();
        assert_eq!((0..good.len()).filter(|len| whole(*len)).count(), 3, "only between commands");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(body in proptest::collection::vec(any::<u8>(), 0..300),
                                          version in 0u32..5) {
            let mut bytes = [&MAGIC[..], &version.to_le_bytes()].concat();
            bytes.extend_from_slice(&body);
            let _ = all(&bytes);
            let _ = all(&body);
        }

        #[test]
        fn no_sealed_command_makes_the_reader_panic(
            body in proptest::collection::vec(any::<u8>(), 0..300), kind in 0u16..30
        ) {
            let len = u32::try_from(body.len()).unwrap();
            let mut command = [&len.to_le_bytes()[..], &kind.to_le_bytes(), &[0; 4], &body].concat();
            let crc = send_crc(&command);
            command[6..10].copy_from_slice(&crc.to_le_bytes());
            let _ = all(&[&MAGIC[..], &2u32.to_le_bytes(), &command].concat());
        }
    }
}
