//! Plain dm-crypt mappings: no header, everything comes from the command line and nothing on the device
//! confirms it. A wrong key gives noise, silently, so no field is ever guessed but offset and skip.

use crate::cipher::CipherSpec;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::volume::{MapOptions, Volume, Wanted, lay};

/// A plain mapping, as in `aes-xts-plain64,sector=512,offset=0,skip=0,size=2048`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlainSpec {
    pub cipher: CipherSpec,
    /// Encryption sector in bytes.
    pub sector_size: u64,
    /// First sector on the device. Does not enter the IV.
    pub offset: u64,
    /// Sectors added before the IV is made.
    pub skip: u64,
    /// Sectors, or to the end of the device.
    pub size: Option<u64>,
    /// The IV counts encryption sectors.
    pub iv_large_sectors: bool,
}

impl PlainSpec {
    /// Parses `CIPHER[,sector=BYTES][,offset=SECTORS][,skip=SECTORS][,size=SECTORS][,iv-large-sectors]`.
    /// Offset, skip and size count 512-byte sectors, as dm-crypt's table does.
    pub fn parse(text: &str) -> Result<PlainSpec> {
        let bad = |part: &str, why: &str| {
            Err(Error::Options(format!(
                "plain mapping: \"{}\" {why}",
                crate::error::printable(part)
            )))
        };
        let mut parts = text.split(',');
        let cipher = CipherSpec::parse(parts.next().unwrap_or_default())?;
        let mut spec = PlainSpec {
            cipher,
            sector_size: 512,
            offset: 0,
            skip: 0,
            size: None,
            iv_large_sectors: false,
        };
        for part in parts {
            if part == "iv-large-sectors" || part == "iv_large_sectors" {
                spec.iv_large_sectors = true;
                continue;
            }
            let Some((name, value)) = part.split_once('=') else {
                return bad(part, "is not known");
            };
            if name == "size" && value.is_empty() {
                continue;
            }
            if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
                return bad(part, "is not a number");
            }
            let Ok(number) = value.parse::<u64>() else { return bad(part, "is too large") };
            match name {
                "sector" => spec.sector_size = number,
                "offset" => spec.offset = number,
                "skip" => spec.skip = number,
                "size" => spec.size = Some(number),
                _ => return bad(name, "is not known"),
            }
        }
        Ok(spec)
    }

    /// Opens the mapping. The key is the volume key as it is.
    pub fn open(&self, key: Key, options: &MapOptions) -> Result<Volume> {
        let wanted = Wanted {
            name: "plain".into(),
            below: self.offset,
            len: self.size,
            iv_offset: self.skip,
            sector_size: self.sector_size,
            iv_large_sectors: self.iv_large_sectors,
            spec: self.cipher.clone(),
        };
        lay(vec![wanted], key, options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Engine;
    use varve_block::Sectors;

    fn options(len: u64) -> MapOptions {
        MapOptions {
            data_len: Sectors(len),
            detached: true,
            allow_weak_key: false,
            engine: Engine::Auto,
        }
    }

    fn key() -> Key {
        Key::copy_from(&crate::testing::vk1())
    }

    #[test]
    fn a_full_line_parses_and_unknown_words_do_not() {
        let s = PlainSpec::parse("aes-xts-plain64,sector=4096,offset=16,skip=8,size=64").unwrap();
        assert_eq!((s.sector_size, s.offset, s.skip, s.size), (4096, 16, 8, Some(64)));
        let s = PlainSpec::parse("aes-xts-plain64,sector=512,offset=0,skip=0,size=").unwrap();
        assert_eq!(s.size, None);
        for bad in [
            "aes-xts-plain64,colour=1",
            "aes-xts-plain64,sector=x",
            "aes-xts-plain64,x",
            "aes-xts-plain64,offset=-1",
            "aes-xts-plain64,size=99999999999999999999",
            "",
        ] {
            assert!(PlainSpec::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn geometry_is_checked_against_the_device() {
        let open = |text: &str, len| PlainSpec::parse(text)?.open(key(), &options(len));
        let v = open("aes-xts-plain64,sector=4096,offset=16", 16 + 83).unwrap();
        assert_eq!(v.len(), Sectors(80), "rounded down to whole encryption sectors");
        assert_eq!(v.segments[0].below, varve_block::Sector(16));
        for bad in [
            "aes-xts-plain64,sector=4096,skip=1",
            "aes-xts-plain64,sector=1536",
            "aes-xts-plain64,size=101",
            "aes-xts-plain64,offset=100",
            "aes-xts-plain64,offset=18446744073709551615,size=2",
            "aes-xts-plain64,skip=18446744073709551615",
            "aes-xts-plain64,sector=4096,size=12",
        ] {
            assert!(matches!(open(bad, 100), Err(Error::Corrupt(_))), "{bad}");
        }
        // The kernel lets the sector number wrap; with 32 bits it wraps anyway, and repeats.
        let v = open("aes-xts-plain,skip=18446744073709551615", 100).unwrap();
        assert_eq!(v.notes.len(), 1);
    }

    #[test]
    fn the_null_cipher_and_wrong_keys_do_not_open() {
        let open = |text: &str, key| PlainSpec::parse(text)?.open(key, &options(100));
        assert!(matches!(open("null", key()), Err(Error::Refused { check: 41, .. })));
        assert!(open("aes-xts-plain64", Key::copy_from(&[1; 48])).is_err());
        assert!(matches!(
            open("aes-xts-plain64", Key::copy_from(&[1; 64])),
            Err(Error::Refused { check: 22, .. })
        ));
    }
}
