//! Sizes as people write them: `64k`, `512M`, `4G`.

use std::fmt;
use std::str::FromStr;

/// A count of bytes. Suffixes are powers of 1024: k, M, G, T; a trailing `B` or `iB` is allowed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Size(pub u64);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a size: {0:?} (bytes, or a number with k, M, G or T)")]
pub struct NotASize(String);

impl FromStr for Size {
    type Err = NotASize;

    fn from_str(text: &str) -> Result<Size, NotASize> {
        let wrong = || NotASize(text.to_owned());
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let unit = unit.strip_suffix("iB").or(unit.strip_suffix('B')).unwrap_or(unit);
        let shift = match unit {
            "" => 0,
            "k" | "K" => 10,
            "m" | "M" => 20,
            "g" | "G" => 30,
            "t" | "T" => 40,
            _ => return Err(wrong()),
        };
        number.checked_mul(1 << shift).map(Size).ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    /// Exact where a unit divides it, else one decimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u32, &str); 4] = [(40, "T"), (30, "G"), (20, "M"), (10, "k")];
        for (shift, unit) in UNITS {
            let whole = 1u64 << shift;
            if self.0 >= whole {
                if self.0.is_multiple_of(whole) {
                    return write!(f, "{}{unit}", self.0 >> shift);
                }
                let tenths = u128::from(self.0) * 10 / u128::from(whole);
                return write!(f, "{}.{}{unit}", tenths / 10, tenths % 10);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl serde::Serialize for Size {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Size {
    /// A number of bytes or a string with a unit.
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Size, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
        }
        match Either::deserialize(d)? {
            Either::Number(n) => Ok(Size(n)),
            Either::Text(t) => t.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024_and_nonsense_is_refused() {
        assert_eq!("64k".parse(), Ok(Size(65536)));
        assert_eq!("4G".parse(), Ok(Size(4 << 30)));
        assert_eq!("512MiB".parse(), Ok(Size(512 << 20)));
        assert_eq!("17".parse(), Ok(Size(17)));
        for bad in ["", "k", "-1", "4X", "1.5G", "99999999999999T"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_size_prints_as_it_is_written() {
        for text in ["64k", "4G", "512M", "17", "1T"] {
            assert_eq!(text.parse::<Size>().map(|s| s.to_string()), Ok(text.to_owned()));
        }
        assert_eq!(Size(1536).to_string(), "1.5k");
    }
}
