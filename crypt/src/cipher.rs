//! The text that names a cipher, as in `aes-xts-plain64`, and what it means for one sector.
//!
//! ```text
//! old form   cipher[:keycount]-chainmode-ivmode[:ivopts]     aes-xts-plain64, aes-cbc-essiv:sha256
//! new form   capi:kernel_name-ivmode[:ivopts]                capi:xts(aes)-plain64
//! ```
//!
//! A bare `aes`, and `aes-plain`, mean `aes-cbc-plain`; nothing else is guessed. Every mode except ECB
//! needs an IV mode. What parses here is *well-formed*; whether it can be served is asked separately,
//! so that an exotic cipher is reported as unsupported and never as corruption.

use std::fmt;

use crate::error::{Error, Result, printable};
use crate::hash::Hash;

/// Longest cipher text that is looked at; the kernel's own limit is about this.
const TEXT_MAX: usize = 128;

/// A parsed cipher text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CipherSpec {
    text: String,
    /// `aes`, `serpent`, ... as written.
    pub cipher: String,
    /// How many keys a sector's number chooses from; a power of two up to 64.
    pub key_count: u32,
    /// How blocks of one sector are chained.
    pub chain: Chain,
    /// How a sector's number becomes its IV.
    pub iv: IvMode,
}

/// Chaining mode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Chain {
    Xts,
    Cbc,
    Ecb,
    /// Well-formed, and nothing we know.
    Other(String),
}

/// How a sector number becomes an initialisation vector.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IvMode {
    /// ECB has none.
    None,
    /// The low 32 bits, little-endian: repeats every 2 TiB. Opened with a warning, never created.
    Plain,
    /// 64 bits, little-endian; what everybody uses.
    Plain64,
    /// 64 bits, big-endian, at the end of the block.
    Plain64Be,
    /// Zeroes for every sector: opened with a warning, never created.
    Null,
    /// The sector number encrypted under a hash of the key.
    Essiv(String),
    /// The number of the sector's first cipher block, counted from 1, big-endian.
    Benbi,
    /// The sector's first byte, encrypted under the key itself.
    Eboiv,
    /// Well-formed, and nothing we know.
    Other(String),
}

impl CipherSpec {
    /// Parses the text of a header, a table line or a command line.
    pub fn parse(text: &str) -> Result<CipherSpec> {
        let bad = |why: &str| {
            Err(Error::unsupported(format!("cipher \"{}\": {why} (check 39)", printable(text))))
        };
        if text.is_empty() || text.len() > TEXT_MAX {
            return bad("empty or too long");
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return bad("not plain text");
        }
        if is_null(text) {
            return Ok(CipherSpec {
                text: "cipher_null-ecb".into(),
                cipher: "cipher_null".into(),
                key_count: 1,
                chain: Chain::Ecb,
                iv: IvMode::None,
            });
        }
        let parts = match text.strip_prefix("capi:") {
            Some(name) => split_capi(name),
            None => split_classic(text),
        };
        let Some((cipher, chain, iv)) = parts else {
            return bad("not of a known form");
        };
        let Some((cipher, key_count)) = split_key_count(cipher) else {
            return bad("the key count must be a power of two up to 64");
        };
        let iv = IvMode::parse(iv);
        if chain != Chain::Ecb && iv == IvMode::None {
            return bad("this mode needs an IV mode");
        }
        if chain == Chain::Ecb && iv != IvMode::None {
            return bad("ECB takes no IV mode");
        }
        Ok(CipherSpec { text: text.into(), cipher: cipher.into(), key_count, chain, iv })
    }

    /// The text it was parsed from (the null cipher's spellings become one).
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The "cipher" that leaves data as it is. Refused wherever data or keys could be meant to be
    /// secret (check 41).
    pub fn is_null(&self) -> bool {
        self.cipher == "cipher_null"
    }

    /// Two parts of a LUKS1 header: `aes` and `xts-plain64`.
    pub fn luks1_fields(&self) -> Option<(&str, &str)> {
        self.text.split_once('-').filter(|(c, _)| !c.contains(':'))
    }

    /// What this text asks for and this program does not do, as an error that says so.
    pub fn check_supported(&self) -> Result<()> {
        let no = |what: String| {
            Err(Error::unsupported(format!("cipher \"{}\": {what}", printable(&self.text))))
        };
        if self.is_null() {
            return Err(Error::refused(41, "the null cipher encrypts nothing"));
        }
        if !matches!(self.cipher.as_str(), "aes" | "serpent" | "twofish" | "camellia") {
            return no(format!(
                "{} is not implemented, only aes, serpent, twofish and camellia",
                printable(&self.cipher)
            ));
        }
        if let Chain::Other(mode) = &self.chain {
            return no(format!("mode {} is not implemented", printable(mode)));
        }
        match &self.iv {
            IvMode::Essiv(hash) if essiv_hash(hash).is_none() => no(format!(
                "ESSIV with hash {} is not implemented: its output must be a key of the cipher",
                printable(hash)
            )),
            IvMode::Eboiv if self.chain != Chain::Cbc => no("IV mode eboiv belongs to CBC".into()),
            IvMode::Eboiv if self.key_count != 1 => {
                no("IV mode eboiv with several keys is not implemented".into())
            }
            IvMode::Other(mode) => no(format!("IV mode {} is not implemented", printable(mode))),
            _ => Ok(()),
        }
    }

    /// Whether the cipher takes keys of that many bytes (check 39).
    pub fn takes_key(&self, len: usize) -> bool {
        let count = self.key_count as usize;
        match self.chain {
            _ if !len.is_multiple_of(count) => false,
            // 48 would be two keys of 192 bits, which nobody makes.
            Chain::Xts => matches!(len / count, 32 | 64),
            _ => matches!(len / count, 16 | 24 | 32),
        }
    }

    /// The cipher of one of several keys.
    pub(crate) fn of_one_key(&self) -> CipherSpec {
        CipherSpec { key_count: 1, ..self.clone() }
    }

    /// The same question for a volume that is about to be made: IV modes that repeat are out.
    pub fn check_creatable(&self) -> Result<()> {
        self.check_supported()?;
        if self.chain != Chain::Xts || self.cipher != "aes" || self.key_count != 1 {
            return Err(Error::unsupported(format!(
                "making a volume with {self}: new volumes have AES-XTS, others are only opened"
            )));
        }
        match self.iv {
            IvMode::Plain => {
                Err(Error::refused(38, "IV mode plain repeats every 2 TiB; use plain64"))
            }
            IvMode::Null => Err(Error::refused(41, "IV mode null is the same for every sector")),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for CipherSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.text))
    }
}

impl IvMode {
    fn parse(text: Option<&str>) -> IvMode {
        match text {
            None => IvMode::None,
            Some("plain") => IvMode::Plain,
            Some("plain64") => IvMode::Plain64,
            Some("plain64be") => IvMode::Plain64Be,
            Some("null") => IvMode::Null,
            Some("benbi") => IvMode::Benbi,
            Some("eboiv") => IvMode::Eboiv,
            Some(other) => match other.strip_prefix("essiv:") {
                Some(hash) => IvMode::Essiv(hash.into()),
                None => IvMode::Other(other.into()),
            },
        }
    }

    /// For sector number `n`: the IV, or what a key makes the IV from. As a number whose low byte comes first, so
    /// that no IV passes through memory on its way to where many of them are collected.
    #[inline]
    pub(crate) fn number(&self, n: u64, sector_size: usize) -> u128 {
        match self {
            IvMode::Plain => u128::from(n & u64::from(u32::MAX)),
            IvMode::Plain64 | IvMode::Essiv(_) => u128::from(n),
            IvMode::Plain64Be => u128::from(n).swap_bytes(),
            // 32 cipher blocks to 512 bytes, whatever the size of the encryption sector.
            IvMode::Benbi => u128::from((n << 5).wrapping_add(1)).swap_bytes(),
            // As the kernel has it: the factor is the encryption sector also where `n` counts 512.
            IvMode::Eboiv => u128::from(n.wrapping_mul(sector_size as u64)),
            IvMode::None | IvMode::Null | IvMode::Other(_) => 0,
        }
    }

    /// Whether two sectors of a volume that ends before sector number `end` share an IV.
    pub fn repeats_before(&self, end: u64) -> bool {
        match self {
            IvMode::Plain => end > 1 << 32,
            IvMode::Null | IvMode::None => end > 1,
            _ => false,
        }
    }
}

/// The hash that ESSIV makes a key with, and how many bytes of it. The kernel's short names of a cut
/// Whirlpool are not hashes of a header.
pub(crate) fn essiv_hash(name: &str) -> Option<(Hash, usize)> {
    let hash = match name {
        "wp256" => return Some((Hash::Whirlpool, 32)),
        other => Hash::named(other)?,
    };
    matches!(hash.size(), 16 | 24 | 32).then(|| (hash, hash.size()))
}

/// The spellings of "no encryption" that the reference accepts.
fn is_null(text: &str) -> bool {
    let name = text.split(['-', ':']).next().unwrap_or(text);
    matches!(name, "null" | "cipher_null") || text.starts_with("capi:ecb(cipher_null)")
}

type Parts<'a> = (&'a str, Chain, Option<&'a str>);

fn split_classic(text: &str) -> Option<Parts<'_>> {
    let (cipher, rest) = match text.split_once('-') {
        None => (text, "cbc-plain"),
        Some((cipher, "plain")) => (cipher, "cbc-plain"),
        // A stream cipher with a stored IV; the segment's integrity says which mode it is.
        Some((cipher, "random")) => {
            return Some((cipher, Chain::Other("authenticated stream".into()), Some("random")));
        }
        Some(both) => both,
    };
    let (mode, iv) = match rest.split_once('-') {
        None => (rest, None),
        Some((mode, iv)) => (mode, Some(iv)),
    };
    let simple = |s: &str| !s.is_empty() && !s.contains(['(', ')', ',']);
    let named = simple(cipher) && simple(mode) && iv.is_none_or(simple);
    named.then(|| (cipher, Chain::named(mode), iv))
}

/// `xts(aes)-plain64`. Kernel templates that are more than one mode around one cipher are passed on
/// as an unknown mode.
fn split_capi(name: &str) -> Option<Parts<'_>> {
    let end = name.rfind(')')? + 1;
    let (kernel, iv) = name.split_at_checked(end)?;
    let iv = if iv.is_empty() { None } else { Some(iv.strip_prefix('-')?) };
    let (mode, inner) = kernel.strip_suffix(')')?.split_once('(')?;
    if mode.is_empty() || inner.is_empty() {
        return None;
    }
    if inner.contains(['(', ')', ',']) {
        return Some((inner, Chain::Other(mode.into()), iv));
    }
    Some((inner, Chain::named(mode), iv))
}

impl Chain {
    fn named(mode: &str) -> Chain {
        match mode {
            "xts" => Chain::Xts,
            "cbc" => Chain::Cbc,
            "ecb" => Chain::Ecb,
            other => Chain::Other(other.into()),
        }
    }
}

fn split_key_count(cipher: &str) -> Option<(&str, u32)> {
    let Some((name, count)) = cipher.split_once(':') else {
        return Some((cipher, 1));
    };
    if count.is_empty() || !count.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u32 = count.parse().ok()?;
    (count.is_power_of_two() && count <= 64).then_some((name, count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(text: &str) -> CipherSpec {
        CipherSpec::parse(text).expect(text)
    }

    #[test]
    fn both_forms_name_the_same_cipher() {
        for text in ["aes-xts-plain64", "capi:xts(aes)-plain64"] {
            let s = spec(text);
            assert_eq!(
                (s.cipher.as_str(), &s.chain, &s.iv),
                ("aes", &Chain::Xts, &IvMode::Plain64)
            );
            s.check_supported().unwrap();
            s.check_creatable().unwrap();
        }
        assert_eq!(spec("aes").iv, IvMode::Plain);
        assert_eq!(spec("aes").chain, Chain::Cbc);
        assert_eq!(spec("aes-plain").chain, Chain::Cbc);
        assert_eq!(spec("aes-cbc-essiv:sha256").iv, IvMode::Essiv("sha256".into()));
        assert_eq!(spec("capi:cbc(aes)-essiv:sha256").iv, IvMode::Essiv("sha256".into()));
        assert_eq!(spec("aes:2-xts-plain64").key_count, 2);
        assert_eq!(spec("aes-xts-plain64").luks1_fields(), Some(("aes", "xts-plain64")));
    }

    #[test]
    fn a_mode_without_its_iv_is_refused_but_ecb_has_none() {
        assert!(CipherSpec::parse("aes-xts").is_err());
        assert!(CipherSpec::parse("aes-ecb").is_ok());
        assert!(CipherSpec::parse("aes-ecb-plain64").is_err());
        assert!(CipherSpec::parse("aes:3-xts-plain64").is_err());
        assert!(CipherSpec::parse("aes:128-xts-plain64").is_err());
        assert!(CipherSpec::parse("").is_err());
    }

    #[test]
    fn every_spelling_of_the_null_cipher_is_refused() {
        for text in [
            "null",
            "cipher_null",
            "cipher_null-ecb",
            "cipher_null-cbc-plain64",
            "null:1-xts-plain64",
            "capi:ecb(cipher_null)",
        ] {
            let s = spec(text);
            assert!(s.is_null(), "{text}");
            assert!(matches!(s.check_supported(), Err(Error::Refused { check: 41, .. })), "{text}");
        }
    }

    #[test]
    fn what_is_not_implemented_is_unsupported_and_not_corrupt() {
        for text in [
            "cast5-xts-plain64",
            "aes-cbc-essiv:sha512",
            "aes-cbc-lmk",
            "aes-cbc-tcw",
            "aes-cbc-elephant",
            "aes-xts-eboiv",
            "aes:2-cbc-eboiv",
            "aes-lrw-benbi",
            "aes-xts-random",
            "capi:authenc(hmac(sha256),xts(aes))-random",
            "capi:essiv(cbc(aes),sha256)-plain64",
        ] {
            assert!(matches!(spec(text).check_supported(), Err(Error::Unsupported(_))), "{text}");
        }
    }

    #[test]
    fn old_ciphers_open_but_are_never_made() {
        for text in [
            "serpent-xts-plain64",
            "twofish-xts-plain64",
            "camellia-cbc-essiv:sha256",
            "aes-cbc-plain",
            "aes-cbc-benbi",
            "aes-cbc-eboiv",
            "aes-ecb",
            "aes:2-xts-plain64",
            "aes:64-cbc-essiv:sha256",
        ] {
            spec(text).check_supported().unwrap();
            assert!(matches!(spec(text).check_creatable(), Err(Error::Unsupported(_))), "{text}");
        }
    }

    #[test]
    fn repeating_ivs_open_but_are_never_made() {
        for text in ["aes-xts-plain", "aes-xts-null"] {
            spec(text).check_supported().unwrap();
            assert!(matches!(spec(text).check_creatable(), Err(Error::Refused { .. })), "{text}");
        }
        assert!(IvMode::Plain.repeats_before((1 << 32) + 1));
        assert!(!IvMode::Plain.repeats_before(1 << 32));
        assert!(!IvMode::Plain64.repeats_before(u64::MAX));
    }

    proptest! {
        #[test]
        fn any_text_gives_a_value(text in "\\PC{0,140}") {
            if let Ok(s) = CipherSpec::parse(&text) {
                let _ = s.check_supported();
                let _ = s.iv.number(u64::MAX, 4096);
            }
        }
    }
}
