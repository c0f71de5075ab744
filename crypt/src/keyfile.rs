//! Secrets from files, descriptors and terminals, byte for byte as cryptsetup takes them.
//!
//! A key file is read to its end, and a newline at its end is part of the secret. A passphrase that was
//! typed or piped ends at the first newline. Nothing is ever normalised or converted.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::key::Key;

/// Longest key file (check 50).
pub const KEY_FILE_MAX: u64 = 8 << 20;
/// Longest passphrase that is typed or piped.
pub const PASSPHRASE_MAX: usize = 512;

/// Which part of a key file is the secret.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KeyFilePart {
    /// Bytes to skip.
    pub offset: u64,
    /// Bytes to take; all that follow when `None`.
    pub size: Option<u64>,
}

/// Reads a key file: a regular file, a device (with a size), a pipe.
pub fn read_key_file(path: &Path, part: KeyFilePart) -> Result<Key> {
    let named = |source| Error::Io { what: format!("key file {}", path.display()), source };
    let file = File::open(path).map_err(named)?;
    let kind = file.metadata().map_err(named)?.file_type();
    let endless = kind.is_block_device() || kind.is_char_device();
    if endless && part.size.is_none() {
        let what = format!("key file {} is a device: say how many bytes to take", path.display());
        return Err(Error::Options(what));
    }
    read_key(file, part, &path.display().to_string())
}

/// Reads a key from an open file or a descriptor. `name` is for messages.
pub fn read_key(mut from: impl Read, part: KeyFilePart, name: &str) -> Result<Key> {
    let named = |source| Error::Io { what: format!("key file {name}"), source };
    if part.offset > KEY_FILE_MAX || part.size.is_some_and(|n| n > KEY_FILE_MAX) {
        return Err(Error::Options(format!(
            "key file {name}: more than 8 MiB asked for (check 50)"
        )));
    }
    // Read rather than seek: a pipe has an offset, too.
    let skipped = skip(&mut from, part.offset).map_err(named)?;
    if skipped < part.offset {
        return Err(Error::Options(format!("key file {name}: it ends before the offset")));
    }
    let limit = part.size.unwrap_or(KEY_FILE_MAX + 1);
    // The buffer never grows, so no copy of the secret is left behind.
    let room = usize::try_from(limit).expect("at most 8 MiB");
    let mut bytes = Zeroizing::new(vec![0; room]);
    let len = fill(&mut from, &mut bytes).map_err(named)?;
    if part.size.is_some_and(|n| n != len as u64) {
        return Err(Error::Options(format!("key file {name}: it ends before the size asked for")));
    }
    if len as u64 > KEY_FILE_MAX {
        return Err(Error::Options(format!("key file {name}: longer than 8 MiB (check 50)")));
    }
    not_empty(Key::copy_from(&bytes[..len]), name)
}

/// Reads a passphrase up to the first newline, from a terminal or a pipe. Byte by byte, so that nothing
/// behind the newline is taken from whoever reads next.
pub fn read_passphrase(mut from: impl Read, name: &str) -> Result<Key> {
    let mut bytes = Zeroizing::new([0; PASSPHRASE_MAX]);
    for len in 0..=PASSPHRASE_MAX {
        let mut byte = Zeroizing::new([0; 1]);
        let got = fill(&mut from, &mut *byte)
            .map_err(|source| Error::Io { what: format!("passphrase from {name}"), source })?;
        if got == 0 || byte[0] == b'\n' {
            return not_empty(Key::copy_from(&bytes[..len]), name);
        }
        if let Some(place) = bytes.get_mut(len) {
            *place = byte[0];
        }
    }
    Err(Error::Options(format!("passphrase from {name}: longer than {PASSPHRASE_MAX} bytes")))
}

fn not_empty(key: Key, name: &str) -> Result<Key> {
    if key.is_empty() {
        Err(Error::Options(format!("the secret in {name} is empty")))
    } else {
        Ok(key)
    }
}

fn skip(from: &mut impl Read, n: u64) -> std::io::Result<u64> {
    let mut left = n;
    let mut scratch = Zeroizing::new([0; 4096]);
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(scratch.len());
        let got = fill(from, &mut scratch[..want])?;
        left -= got as u64;
        if got < want {
            break;
        }
    }
    Ok(n - left)
}

/// Reads until the buffer is full or the source ends.
fn fill(from: &mut impl Read, buf: &mut [u8]) -> std::io::Result<usize> {
    let mut len = 0;
    while len < buf.len() {
        match from.read(&mut buf[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(offset: u64, size: Option<u64>) -> KeyFilePart {
        KeyFilePart { offset, size }
    }

    #[test]
    fn every_byte_of_a_key_file_counts() {
        let key = read_key(&b"secret\n"[..], KeyFilePart::default(), "x").unwrap();
        assert_eq!(key.bytes(), b"secret\n");
        let key = read_key(&b"0123456789"[..], part(2, Some(3)), "x").unwrap();
        assert_eq!(key.bytes(), b"234");
        let key = read_key(&b"0123456789"[..], part(8, None), "x").unwrap();
        assert_eq!(key.bytes(), b"89");
    }

    #[test]
    fn bounds_are_kept() {
        assert!(read_key(&b"01"[..], part(3, None), "x").is_err(), "offset behind the end");
        assert!(read_key(&b"01"[..], part(0, Some(3)), "x").is_err(), "size behind the end");
        assert!(read_key(&b"01"[..], part(2, None), "x").is_err(), "empty");
        assert!(read_key(&b""[..], KeyFilePart::default(), "x").is_err(), "empty");
        let all = vec![1; 8 << 20];
        assert_eq!(read_key(&all[..], KeyFilePart::default(), "x").unwrap().len(), 8 << 20);
        let more = vec![1; (8 << 20) + 1];
        assert!(read_key(&more[..], KeyFilePart::default(), "x").is_err());
        assert!(read_key(std::io::repeat(1), KeyFilePart::default(), "x").is_err());
        assert!(read_key(&all[..], part(0, Some(u64::MAX)), "x").is_err());
        assert!(read_key_file(Path::new("/dev/zero"), KeyFilePart::default()).is_err());
        assert_eq!(read_key_file(Path::new("/dev/zero"), part(5, Some(64))).unwrap().len(), 64);
        let missing = read_key_file(Path::new("/nowhere/key"), KeyFilePart::default());
        assert!(missing.unwrap_err().to_string().contains("/nowhere/key"));
    }

    #[test]
    fn a_passphrase_ends_at_the_newline_and_leaves_the_rest() {
        let mut from = &b"first\nsecond\n"[..];
        assert_eq!(read_passphrase(&mut from, "x").unwrap().bytes(), b"first");
        assert_eq!(read_passphrase(&mut from, "x").unwrap().bytes(), b"second");
        assert!(read_passphrase(&mut from, "x").is_err());
        assert_eq!(read_passphrase(&b"no newline"[..], "x").unwrap().len(), 10);
        assert_eq!(read_passphrase(&[b'a'; 512][..], "x").unwrap().len(), 512);
        assert!(read_passphrase(&[b'a'; 513][..], "x").is_err());
    }
}
