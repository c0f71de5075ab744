//! Tags that dm-integrity computes by itself: an *internal hash* over place and content of a block.
//!
//! ```text
//! tag = hash( salt, if the superblock has one || sector, 64 bits, little-endian || data )
//! ```
//!
//! The salt goes in with and without a key. A hash that is longer than the tag is cut, a shorter one is
//! followed by zeroes. A hash without a key finds what rots; whoever can write to the device can make
//! tags, too. (luks.md 5.4; `crc32` is Linux's own: see [`varve_block::sum::linux_crc32_of`].)

use std::fmt;

use hmac::digest::Digest as _;
use hmac::{Hmac, KeyInit, Mac as _};
use sha1::Sha1;
use sha2::{Sha256, Sha512};
use varve_block::sum;

use crate::error::{Error, Result, printable};
use crate::hash::Hash;
use crate::key::Key;

/// Longest salt and sector number.
const SALT: usize = 16;

/// An internal hash by name, as integritysetup spells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HashSpec(Kind);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Crc32c,
    Crc32,
    Xxhash64,
    Plain(Hash),
    Hmac(Hash),
}

impl HashSpec {
    /// `crc32c`, `crc32`, `xxhash64`, `sha1`, `sha256`, `sha512`, and `hmac-` before the last three (also
    /// as the kernel writes it, `hmac(sha256)`).
    ///
    /// # Errors
    /// For any other name.
    pub fn named(name: &str) -> Result<HashSpec> {
        let sha = |name: &str| match name {
            "sha1" => Some(Hash::Sha1),
            "sha256" => Some(Hash::Sha256),
            "sha512" => Some(Hash::Sha512),
            _ => None,
        };
        let inner = name.strip_prefix("hmac(").and_then(|n| n.strip_suffix(')'));
        let kind = match (name, inner.or(name.strip_prefix("hmac-"))) {
            (_, Some(inner)) => sha(inner).map(Kind::Hmac),
            ("crc32c", _) => Some(Kind::Crc32c),
            ("crc32", _) => Some(Kind::Crc32),
            ("xxhash64", _) => Some(Kind::Xxhash64),
            (name, _) => sha(name).map(Kind::Plain),
        };
        kind.map(HashSpec).ok_or_else(|| {
            Error::unsupported(format!(
                "the internal hash \"{}\": crc32c, crc32, xxhash64, sha1, sha256, sha512, hmac-sha1, \
                 hmac-sha256 or hmac-sha512",
                printable(name)
            ))
        })
    }

    /// Bytes of the hash, which are those of a tag unless something else is asked for.
    pub fn size(self) -> usize {
        match self.0 {
            Kind::Crc32c | Kind::Crc32 => 4,
            Kind::Xxhash64 => 8,
            Kind::Plain(hash) | Kind::Hmac(hash) => hash.size(),
        }
    }

    /// Tags need a key, and prove who wrote them.
    pub fn is_keyed(self) -> bool {
        matches!(self.0, Kind::Hmac(_))
    }
}

impl fmt::Display for HashSpec {
    /// As [`HashSpec::named`] takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Kind::Crc32c => f.write_str("crc32c"),
            Kind::Crc32 => f.write_str("crc32"),
            Kind::Xxhash64 => f.write_str("xxhash64"),
            Kind::Plain(hash) => f.write_str(hash.name()),
            Kind::Hmac(hash) => write!(f, "hmac-{}", hash.name()),
        }
    }
}

/// An internal hash at work: its salt and key are in it.
pub(super) struct Tagger {
    state: State,
    salt: Option<[u8; SALT]>,
    /// Bytes of a tag.
    tag: usize,
}

/// What does not change from block to block is in there already: salt and key.
enum State {
    Crc32c,
    Crc32,
    Xxhash64,
    Sha1(Sha1),
    Sha256(Sha256),
    Sha512(Sha512),
    HmacSha1(Hmac<Sha1>),
    HmacSha256(Hmac<Sha256>),
    HmacSha512(Hmac<Sha512>),
}

impl Tagger {
    /// # Errors
    /// When the hash needs a key and has none, or has one that it does not need.
    pub(super) fn new(
        spec: HashSpec,
        key: Option<&Key>,
        salt: Option<[u8; SALT]>,
        tag: usize,
    ) -> Result<Tagger> {
        let bad = |why: &str| Err(Error::Options(why.into()));
        let salted = salt.as_ref().map_or(&[][..], |salt| &salt[..]);
        let state = match (spec.0, key) {
            (Kind::Hmac(_), None) => return bad("this internal hash needs a key"),
            (Kind::Hmac(hash), Some(key)) => {
                let key = key.bytes();
                let long = "HMAC takes keys of any length";
                match hash {
                    Hash::Sha1 => {
                        State::HmacSha1(Hmac::new_from_slice(key).expect(long).chain_update(salted))
                    }
                    Hash::Sha256 => State::HmacSha256(
                        Hmac::new_from_slice(key).expect(long).chain_update(salted),
                    ),
                    _ => State::HmacSha512(
                        Hmac::new_from_slice(key).expect(long).chain_update(salted),
                    ),
                }
            }
            (_, Some(_)) => return bad("this internal hash has no key"),
            (Kind::Crc32c, None) => State::Crc32c,
            (Kind::Crc32, None) => State::Crc32,
            (Kind::Xxhash64, None) => State::Xxhash64,
            (Kind::Plain(Hash::Sha1), None) => State::Sha1(Sha1::new_with_prefix(salted)),
            (Kind::Plain(Hash::Sha256), None) => State::Sha256(Sha256::new_with_prefix(salted)),
            (Kind::Plain(_), None) => State::Sha512(Sha512::new_with_prefix(salted)),
        };
        Ok(Tagger { state, salt, tag })
    }

    /// Bytes of a tag.
    pub(super) fn len(&self) -> usize {
        self.tag
    }

    /// The tag of the block at a sector.
    pub(super) fn tag(&self, sector: u64, data: &[u8], out: &mut [u8]) {
        assert_eq!(out.len(), self.tag, "one tag");
        let number = sector.to_le_bytes();
        let salt = self.salt.as_ref().map_or(&[][..], |salt| &salt[..]);
        let parts = [salt, &number[..], data];
        macro_rules! digest {
            ($state:expr) => {
                put(&$state.clone().chain_update(number).chain_update(data).finalize(), out)
            };
        }
        macro_rules! mac {
            ($state:expr) => {
                put(
                    &$state.clone().chain_update(number).chain_update(data).finalize().into_bytes(),
                    out,
                )
            };
        }
        match &self.state {
            State::Crc32c => put(&sum::crc32c_of(&parts).to_le_bytes(), out),
            State::Crc32 => put(&sum::linux_crc32_of(&parts).to_le_bytes(), out),
            State::Xxhash64 => put(&sum::xxhash64_of(&parts).to_le_bytes(), out),
            State::Sha1(state) => digest!(state),
            State::Sha256(state) => digest!(state),
            State::Sha512(state) => digest!(state),
            State::HmacSha1(state) => mac!(state),
            State::HmacSha256(state) => mac!(state),
            State::HmacSha512(state) => mac!(state),
        }
    }

    /// Whether a tag is that of the block.
    pub(super) fn fits(&self, sector: u64, data: &[u8], tag: &[u8]) -> bool {
        let mut expected = [0; crate::format::integrity::TAG_MAX as usize];
        let expected = &mut expected[..self.tag];
        self.tag(sector, data, expected);
        crate::key::same(expected, tag)
    }
}

fn put(hash: &[u8], out: &mut [u8]) {
    let n = hash.len().min(out.len());
    out[..n].copy_from_slice(&hash[..n]);
    out[n..].fill(0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{hex, pattern};

    /// Hash, key, salt, block, sector, tag.
    type Vector = (&'static str, &'static [u8], &'static str, usize, u64, &'static str);

    /// Tags that kernel 6.12 wrote (luks.md 11.9).
    const KERNEL: &[Vector] = &[
        ("crc32c", b"", "39c1e724890e9cc2d97ea860435b03f0", 512, 0, "0fd71784"),
        ("crc32c", b"", "39c1e724890e9cc2d97ea860435b03f0", 512, 8, "b66aea6b"),
        (
            "sha256",
            b"",
            "a0c00f18971d14dec08b34b1cc78ff33",
            4096,
            8,
            "bfeeab8affc9c289ef228e194e64b952a58f81cb56f80f7d94400a5fa97cb2d8",
        ),
        (
            "hmac-sha256",
            b"varve hmac key varve hmac key 32",
            "6ea4931a90bf15a880663563dbf0e38f",
            512,
            8,
            "932bae2acd6d4390ff8e91d853ec36d52ebba5669a39b2e565180394b6943b84",
        ),
    ];

    #[test]
    fn tags_are_the_kernels() {
        for &(name, key, salt, block, sector, tag) in KERNEL {
            let spec = HashSpec::named(name).unwrap();
            let key = (!key.is_empty()).then(|| Key::copy_from(key));
            let salt = Some(hex(salt).try_into().unwrap());
            let tagger = Tagger::new(spec, key.as_ref(), salt, spec.size()).unwrap();
            let data = pattern(sector * 512, block);
            assert!(tagger.fits(sector, &data, &hex(tag)), "{name} {sector}");
            assert!(!tagger.fits(sector + 1, &data, &hex(tag)), "{name}: moved");
            assert!(!tagger.fits(sector, &pattern(1, block), &hex(tag)), "{name}: changed");
            // Cut to what the superblock says, or padded.
            for len in [1, 3, 80] {
                let tagger = Tagger::new(spec, key.as_ref(), salt, len).unwrap();
                let mut cut = hex(tag);
                cut.resize(len, 0);
                assert!(tagger.fits(sector, &data, &cut), "{name} {len}");
            }
        }
    }

    #[test]
    fn every_name_has_its_size_and_what_has_no_name_is_refused() {
        for (name, size, keyed) in [
            ("crc32c", 4, false),
            ("crc32", 4, false),
            ("xxhash64", 8, false),
            ("sha1", 20, false),
            ("sha512", 64, false),
            ("hmac(sha1)", 20, true),
            ("hmac-sha512", 64, true),
        ] {
            let spec = HashSpec::named(name).unwrap();
            assert_eq!((spec.size(), spec.is_keyed()), (size, keyed), "{name}");
            assert_eq!(HashSpec::named(&spec.to_string()).unwrap(), spec);
            let key = Key::copy_from(b"k");
            assert!(Tagger::new(spec, keyed.then_some(&key), None, size).is_ok());
            assert!(Tagger::new(spec, (!keyed).then_some(&key), None, size).is_err());
        }
        for name in ["md5", "hmac-crc32c", "hmac(sha256", "CRC32C", ""] {
            assert!(matches!(HashSpec::named(name), Err(Error::Unsupported(_))), "{name}");
        }
    }
}
