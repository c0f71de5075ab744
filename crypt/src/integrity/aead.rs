//! Authenticated encryption of one sector as dm-crypt does it (luks.md 5.5).
//!
//! ```text
//! tuple       tag || stored IV, if the IV is random
//! associated  sector number, 64 bits, little-endian, without the segment's IV offset || IV
//! authenc     encrypt, then HMAC over associated data and ciphertext; key: encryption key || MAC key
//! ```
//!
//! A sector that was changed, or moved with its tuple, is noticed. A sector that was put back to an old
//! state together with its old tuple is not: nothing on the device says which is newer.

use aes_gcm::aead::{AeadInOut, inout::InOutBuf};
use aes_gcm::{Aes128Gcm, Aes256Gcm, Nonce};
use chacha20poly1305::ChaCha20Poly1305;
use hmac::{Hmac, KeyInit, Mac as _};
use sha1::Sha1;
use sha2::{Sha256, Sha512};

use crate::cipher::{Chain, CipherSpec, IvMode};
use crate::error::{Error, Result, printable};
use crate::hash::Hash;
use crate::key::{Key, fill_random};
use crate::xts::{Engine, LooseXts, SectorSize, Xts, XtsParams};

/// Bytes of an IV that authenticated modes of one key and nonce take.
const NONCE: usize = 12;
const AEAD_TAG: usize = 16;
const XTS_IV: usize = 16;

/// How a segment is authenticated: its cipher text together with the type of its integrity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AeadSpec {
    kind: Kind,
    random_iv: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// AES-XTS, then HMAC with this hash.
    Authenc(Hash),
    Gcm,
    ChaCha,
}

impl AeadSpec {
    /// From the texts of a LUKS2 segment, as `aes-xts-plain64` and `hmac(sha256)`.
    ///
    /// # Errors
    /// With what is not implemented, by name.
    pub fn parse(cipher: &CipherSpec, integrity: &str) -> Result<AeadSpec> {
        let no = |why: &str| {
            Err(Error::unsupported(format!(
                "cipher \"{}\" with integrity \"{}\": {why}",
                printable(cipher.text()),
                printable(integrity)
            )))
        };
        let random_iv = cipher.iv == IvMode::Other("random".into());
        if cipher.is_null() || cipher.key_count != 1 {
            return no("not a cipher for this");
        }
        let kind = match (cipher.cipher.as_str(), &cipher.chain, integrity) {
            ("aes", Chain::Xts, "hmac(sha1)") => Kind::Authenc(Hash::Sha1),
            ("aes", Chain::Xts, "hmac(sha256)") => Kind::Authenc(Hash::Sha256),
            ("aes", Chain::Xts, "hmac(sha512)") => Kind::Authenc(Hash::Sha512),
            ("aes", Chain::Other(mode), "aead") if mode == "gcm" => Kind::Gcm,
            ("chacha20", _, "poly1305") => Kind::ChaCha,
            (_, _, "none") => return no("stored IVs without a tag detect nothing"),
            _ => {
                return no(
                    "only aes-xts with hmac-sha1, hmac-sha256 or hmac-sha512, aes-gcm-random and \
                     chacha20-random are implemented",
                );
            }
        };
        match (kind, &cipher.iv) {
            _ if random_iv => {}
            (Kind::Authenc(_), IvMode::Plain64) => {}
            (Kind::Authenc(_), _) => return no("its IV is plain64 or random"),
            _ => return no("its IV must be random"),
        }
        Ok(AeadSpec { kind, random_iv })
    }

    /// From what an operator writes: `hmac-sha256`, `aead`, `poly1305`. Gives the text that the header
    /// keeps, too.
    pub fn named(cipher: &CipherSpec, name: &str) -> Result<(AeadSpec, String)> {
        let text = match name.strip_prefix("hmac-") {
            Some(hash) => format!("hmac({hash})"),
            None => name.to_owned(),
        };
        Ok((AeadSpec::parse(cipher, &text)?, text))
    }

    fn tag_len(&self) -> usize {
        match self.kind {
            Kind::Authenc(hash) => hash.size(),
            Kind::Gcm | Kind::ChaCha => AEAD_TAG,
        }
    }

    fn iv_len(&self) -> usize {
        match self.kind {
            Kind::Authenc(_) => XTS_IV,
            Kind::Gcm | Kind::ChaCha => NONCE,
        }
    }

    /// Bytes that the device below keeps for each sector.
    pub fn tuple_len(&self) -> usize {
        self.tag_len() + if self.random_iv { self.iv_len() } else { 0 }
    }

    /// Bytes of the volume key that authenticate; the ones before them encrypt.
    pub fn mac_key_len(&self) -> usize {
        match self.kind {
            Kind::Authenc(hash) => hash.size(),
            Kind::Gcm | Kind::ChaCha => 0,
        }
    }

    /// Whether the cipher takes a volume key of that many bytes.
    pub fn takes_key(&self, len: usize) -> bool {
        match (self.kind, len.checked_sub(self.mac_key_len())) {
            (Kind::Authenc(_), Some(len)) => matches!(len, 32 | 64),
            (Kind::Gcm, Some(len)) => matches!(len, 16 | 32),
            (Kind::ChaCha, Some(len)) => len == 32,
            (_, None) => false,
        }
    }
}

/// A key that seals and opens sectors.
pub(crate) struct Aead {
    spec: AeadSpec,
    suite: Suite,
    /// Added to a sector's number before the IV is made of it.
    iv_offset: u64,
}

enum Suite {
    Xts(Box<Xts>, Mac),
    RandomXts(Box<LooseXts>, Mac),
    Gcm128(Box<Aes128Gcm>),
    Gcm256(Box<Aes256Gcm>),
    ChaCha(Box<ChaCha20Poly1305>),
}

impl std::fmt::Debug for Aead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Aead({:?})", self.spec)
    }
}

impl Aead {
    pub(crate) fn new(
        spec: &AeadSpec,
        key: &Key,
        sector_size: SectorSize,
        iv_offset: u64,
        engine: Engine,
        allow_weak_key: bool,
    ) -> Result<Aead> {
        if !spec.takes_key(key.len()) {
            return Err(Error::unsupported(format!(
                "a key of {} bits for this cipher and integrity",
                key.len() * 8
            )));
        }
        let (encrypt, mac) = key.bytes().split_at(key.len() - spec.mac_key_len());
        let took = "the length was checked";
        let suite = match spec.kind {
            Kind::Authenc(hash) => {
                let cipher = CipherSpec::parse("aes-xts-plain64").expect("a well-formed cipher");
                let params =
                    XtsParams { engine, allow_weak_key, ..XtsParams::new(cipher, sector_size) };
                let encrypt = Key::copy_from(encrypt);
                // Also for random IVs: it looks at the key.
                let xts = Xts::new(&params, &encrypt)?;
                match spec.random_iv {
                    true => Suite::RandomXts(
                        Box::new(LooseXts::new(&encrypt).expect(took)),
                        Mac::new(hash, mac),
                    ),
                    false => Suite::Xts(Box::new(xts), Mac::new(hash, mac)),
                }
            }
            Kind::Gcm if encrypt.len() == 16 => {
                Suite::Gcm128(Box::new(Aes128Gcm::new_from_slice(encrypt).expect(took)))
            }
            Kind::Gcm => Suite::Gcm256(Box::new(Aes256Gcm::new_from_slice(encrypt).expect(took))),
            Kind::ChaCha => {
                Suite::ChaCha(Box::new(ChaCha20Poly1305::new_from_slice(encrypt).expect(took)))
            }
        };
        Ok(Aead { spec: spec.clone(), suite, iv_offset })
    }

    /// Bytes of a tuple.
    pub(crate) fn tuple_len(&self) -> usize {
        self.spec.tuple_len()
    }

    /// Puts fresh IVs into the tuples of a request. Nothing where IVs follow from the sector.
    pub(crate) fn draw_ivs(&self, tuples: &mut [u8]) -> Result<()> {
        if !self.spec.random_iv {
            return Ok(());
        }
        let (tag, iv) = (self.spec.tag_len(), self.spec.iv_len());
        let mut drawn = vec![0; tuples.len() / (tag + iv) * iv];
        fill_random(&mut drawn)?;
        for (tuple, iv) in tuples.chunks_exact_mut(tag + iv).zip(drawn.chunks_exact(iv)) {
            tuple[tag..].copy_from_slice(iv);
        }
        Ok(())
    }

    /// Encrypts the sector number `n`, counted in 512 bytes from the segment's start, in place, and puts
    /// its tag before the IV that stands in the tuple already.
    pub(crate) fn seal(&self, n: u64, data: &mut [u8], tuple: &mut [u8]) {
        let (tag, stored) = tuple.split_at_mut(self.spec.tag_len());
        let iv = self.iv(n, stored);
        let associated = Associated::new(n, &iv[..self.spec.iv_len()]);
        match &self.suite {
            Suite::Xts(xts, mac) => {
                xts.encrypt(n.wrapping_add(self.iv_offset), data);
                mac.sign(&associated, data, tag);
            }
            Suite::RandomXts(xts, mac) => {
                xts.encrypt(iv, data);
                mac.sign(&associated, data, tag);
            }
            Suite::Gcm128(c) => seal(&**c, &iv, &associated, data, tag),
            Suite::Gcm256(c) => seal(&**c, &iv, &associated, data, tag),
            Suite::ChaCha(c) => seal(&**c, &iv, &associated, data, tag),
        }
    }

    /// Checks a sector and decrypts it in place. `false`: it is not what was sealed there, and the bytes
    /// are worthless.
    #[must_use]
    pub(crate) fn open(&self, n: u64, data: &mut [u8], tuple: &[u8]) -> bool {
        let (tag, stored) = tuple.split_at(self.spec.tag_len());
        let iv = self.iv(n, stored);
        let associated = Associated::new(n, &iv[..self.spec.iv_len()]);
        match &self.suite {
            Suite::Xts(xts, mac) => {
                let good = mac.verify(&associated, data, tag);
                if good {
                    xts.decrypt(n.wrapping_add(self.iv_offset), data);
                }
                good
            }
            Suite::RandomXts(xts, mac) => {
                let good = mac.verify(&associated, data, tag);
                if good {
                    xts.decrypt(iv, data);
                }
                good
            }
            Suite::Gcm128(c) => open(&**c, &iv, &associated, data, tag),
            Suite::Gcm256(c) => open(&**c, &iv, &associated, data, tag),
            Suite::ChaCha(c) => open(&**c, &iv, &associated, data, tag),
        }
    }

    /// What the key makes of zeroes: tells one key from another.
    pub(crate) fn fingerprint(&self) -> Vec<u8> {
        let (mut data, mut tuple) = (vec![0; 4096], vec![0; self.tuple_len()]);
        self.seal(0, &mut data, &mut tuple);
        data.extend(tuple);
        data
    }

    fn iv(&self, n: u64, stored: &[u8]) -> [u8; XTS_IV] {
        let mut iv = [0; XTS_IV];
        match self.spec.random_iv {
            true => iv[..stored.len()].copy_from_slice(stored),
            false => iv[..8].copy_from_slice(&n.wrapping_add(self.iv_offset).to_le_bytes()),
        }
        iv
    }
}

/// What a tag covers besides the data.
struct Associated {
    bytes: [u8; 8 + XTS_IV],
    len: usize,
}

impl Associated {
    fn new(n: u64, iv: &[u8]) -> Associated {
        let mut bytes = [0; 8 + XTS_IV];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        bytes[8..8 + iv.len()].copy_from_slice(iv);
        Associated { bytes, len: 8 + iv.len() }
    }

    fn get(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

type Sizes = aes_gcm::aead::consts::U12;

fn seal<C>(cipher: &C, iv: &[u8; XTS_IV], associated: &Associated, data: &mut [u8], tag: &mut [u8])
where
    C: AeadInOut<NonceSize = Sizes>,
{
    let nonce = Nonce::<Sizes>::try_from(&iv[..NONCE]).expect("twelve bytes");
    let made = cipher
        .encrypt_inout_detached(&nonce, associated.get(), InOutBuf::from(data))
        .expect("a sector is shorter than the mode's limit");
    tag.copy_from_slice(&made);
}

fn open<C>(
    cipher: &C,
    iv: &[u8; XTS_IV],
    associated: &Associated,
    data: &mut [u8],
    tag: &[u8],
) -> bool
where
    C: AeadInOut<NonceSize = Sizes>,
{
    let nonce = Nonce::<Sizes>::try_from(&iv[..NONCE]).expect("twelve bytes");
    let tag = tag.try_into().expect("a tag of the mode's length");
    cipher.decrypt_inout_detached(&nonce, associated.get(), InOutBuf::from(data), tag).is_ok()
}

/// An HMAC key, expanded.
#[derive(Clone)]
pub(crate) enum Mac {
    Sha1(Hmac<Sha1>),
    Sha256(Hmac<Sha256>),
    Sha512(Hmac<Sha512>),
}

macro_rules! with_mac {
    ($mac:expr, $m:ident => $body:expr) => {
        match $mac {
            Mac::Sha1($m) => $body,
            Mac::Sha256($m) => $body,
            Mac::Sha512($m) => $body,
        }
    };
}

impl Mac {
    fn new(hash: Hash, key: &[u8]) -> Mac {
        let any = "HMAC takes keys of any length";
        match hash {
            Hash::Sha1 => Mac::Sha1(Hmac::new_from_slice(key).expect(any)),
            Hash::Sha512 => Mac::Sha512(Hmac::new_from_slice(key).expect(any)),
            _ => Mac::Sha256(Hmac::new_from_slice(key).expect(any)),
        }
    }

    fn sign(&self, associated: &Associated, data: &[u8], tag: &mut [u8]) {
        with_mac!(self, m => {
            let mut m = m.clone();
            m.update(associated.get());
            m.update(data);
            tag.copy_from_slice(&m.finalize().into_bytes());
        });
    }

    /// In a time that does not depend on where they differ.
    fn verify(&self, associated: &Associated, data: &[u8], tag: &[u8]) -> bool {
        with_mac!(self, m => {
            let mut m = m.clone();
            m.update(associated.get());
            m.update(data);
            m.verify_slice(tag).is_ok()
        })
    }
}

#[cfg(test)]
mod tests;
