//! A small NBD client, written against the protocol's text and sharing nothing with the server: the
//! crash tests must know exactly which requests were answered when the server died.
//!
//! Fixed newstyle with `GO`, simple replies only. Requests may be pipelined: [`Nbd::send`], then as
//! many [`Nbd::receive`].

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;

/// `NBD_CMD_FLAG_FUA`.
pub const FUA: u16 = 1;

/// Nothing the server says may stall a test for longer.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// No option reply is longer; a length beyond it is the server's error, not a reason to allocate.
const OPTION_REPLY_MAX: u32 = 64 << 10;

/// An error number as it goes over the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub u32);

impl Errno {
    pub const EPERM: Errno = Errno(1);
    pub const EIO: Errno = Errno(5);
    pub const EINVAL: Errno = Errno(22);
    pub const ENOSPC: Errno = Errno(28);
}

/// A request, as the test sees it. Offsets and lengths are in bytes.
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    Read { at: u64, len: u32 },
    Write { at: u64, data: &'a [u8], flags: u16 },
    Flush,
    Trim { at: u64, len: u32 },
    WriteZeroes { at: u64, len: u32 },
}

/// A connection in its transmission phase.
#[derive(Debug)]
pub struct Nbd {
    stream: UnixStream,
    size: u64,
    /// Transmission flags, as the server sent them.
    flags: u16,
}

impl Nbd {
    /// Connects and asks for the default export.
    ///
    /// # Errors
    /// When the server cannot be reached, refuses, or breaks the protocol.
    pub fn connect(socket: &Path) -> io::Result<Nbd> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        let mut nbd = Nbd { stream, size: 0, flags: 0 };
        expect(nbd.u64()?, NBD_MAGIC, "greeting")?;
        expect(nbd.u64()?, OPTION_MAGIC, "greeting")?;
        let handshake_flags = nbd.u16()?;
        nbd.stream.write_all(&u32::from(handshake_flags & 3).to_be_bytes())?;
        nbd.go()?;
        Ok(nbd)
    }

    /// `NBD_OPT_GO` for the export with the empty name, without asking for any information.
    fn go(&mut self) -> io::Result<()> {
        let mut option = OPTION_MAGIC.to_be_bytes().to_vec();
        option.extend(OPTION_GO.to_be_bytes());
        option.extend(6_u32.to_be_bytes()); // name length, no name, number of information requests
        option.extend([0; 6]);
        self.stream.write_all(&option)?;
        loop {
            expect(self.u64()?, OPTION_REPLY_MAGIC, "option reply")?;
            expect(u64::from(self.u32()?), u64::from(OPTION_GO), "option echoed")?;
            let kind = self.u32()?;
            let len = self.u32()?;
            if len > OPTION_REPLY_MAX {
                return Err(wrong(format!("option reply of {len} bytes")));
            }
            let mut body = vec![0; len as usize];
            self.stream.read_exact(&mut body)?;
            match kind {
                REPLY_ACK => return Ok(()),
                REPLY_INFO => self.info(&body)?,
                kind if kind & REPLY_ERROR != 0 => {
                    let text = String::from_utf8_lossy(&body).into_owned();
                    return Err(wrong(format!("GO refused: {:#x} {text}", kind & !REPLY_ERROR)));
                }
                kind => return Err(wrong(format!("option reply of type {kind}"))),
            }
        }
    }

    fn info(&mut self, mut body: &[u8]) -> io::Result<()> {
        if read_array(&mut body).map(u16::from_be_bytes)? == INFO_EXPORT {
            self.size = u64::from_be_bytes(read_array(&mut body)?);
            self.flags = u16::from_be_bytes(read_array(&mut body)?);
        }
        Ok(())
    }

    /// The export's length in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether the server said that nothing may be written.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.flags & 2 != 0
    }

    /// Sends a request under `cookie` without waiting for its answer.
    ///
    /// # Errors
    /// When the server has gone.
    pub fn send(&mut self, cookie: u64, request: Request<'_>) -> io::Result<()> {
        let (command, flags, at, len, data): (u16, u16, u64, u32, &[u8]) = match request {
            Request::Read { at, len } => (0, 0, at, len, &[]),
            Request::Write { at, data, flags } => {
                let len = u32::try_from(data.len()).map_err(|_| wrong("a request over 4 GiB"))?;
                (1, flags, at, len, data)
            }
            Request::Flush => (3, 0, 0, 0, &[]),
            Request::Trim { at, len } => (4, 0, at, len, &[]),
            Request::WriteZeroes { at, len } => (6, 0, at, len, &[]),
        };
        let mut head = REQUEST_MAGIC.to_be_bytes().to_vec();
        head.extend(flags.to_be_bytes());
        head.extend(command.to_be_bytes());
        head.extend(cookie.to_be_bytes());
        head.extend(at.to_be_bytes());
        head.extend(len.to_be_bytes());
        self.stream.write_all(&head)?;
        self.stream.write_all(data)
    }

    /// Takes the next answer: whose it is, and how it went. The payload of a read is not taken here,
    /// so reads are not pipelined: use [`Nbd::read`].
    ///
    /// # Errors
    /// When the server has gone or breaks the protocol.
    pub fn receive(&mut self) -> io::Result<(u64, Result<(), Errno>)> {
        expect(u64::from(self.u32()?), u64::from(SIMPLE_REPLY_MAGIC), "simple reply")?;
        let errno = self.u32()?;
        let cookie = self.u64()?;
        Ok((cookie, if errno == 0 { Ok(()) } else { Err(Errno(errno)) }))
    }

    /// One request that has no payload in its answer, start to end.
    ///
    /// # Errors
    /// As [`Nbd::receive`]; the inner result is the server's answer.
    pub fn ask(&mut self, request: Request<'_>) -> io::Result<Result<(), Errno>> {
        assert!(!matches!(request, Request::Read { .. }), "a read has a payload: use `read`");
        self.send(1, request)?;
        let (cookie, answer) = self.receive()?;
        expect(cookie, 1, "cookie")?;
        Ok(answer)
    }

    /// Reads `len` bytes at `at`.
    ///
    /// # Errors
    /// As [`Nbd::ask`].
    pub fn read(&mut self, at: u64, len: u32) -> io::Result<Result<Vec<u8>, Errno>> {
        self.send(2, Request::Read { at, len })?;
        let (cookie, answer) = self.receive()?;
        expect(cookie, 2, "cookie")?;
        Ok(match answer {
            Ok(()) => {
                let mut data = vec![0; len as usize];
                self.stream.read_exact(&mut data)?;
                Ok(data)
            }
            Err(errno) => Err(errno),
        })
    }

    fn u16(&mut self) -> io::Result<u16> {
        read_array(&mut self.stream).map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> io::Result<u32> {
        read_array(&mut self.stream).map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> io::Result<u64> {
        read_array(&mut self.stream).map(u64::from_be_bytes)
    }
}

fn read_array<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn expect(found: u64, expected: u64, what: &str) -> io::Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(wrong(format!("{what}: found {found:#x}, expected {expected:#x}")))
}
