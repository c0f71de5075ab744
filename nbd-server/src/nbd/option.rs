//! The data of options: lengths inside lengths, all chosen by the peer.
//!
//! Every length is checked by taking it off what is left, never by adding it to where we are, so
//! no sum can wrap. What does not add up exactly is refused as a whole, before anything is answered.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use super::wire::STRING_MAX;
use zerocopy::FromBytes;
use zerocopy::byteorder::big_endian::{U16, U32};

/// Most queries one `LIST_META_CONTEXT` or `SET_META_CONTEXT` may carry.
pub const QUERIES_MAX: u32 = 256;

/// Why the data of an option was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Wrong {
    #[error("the data ends inside {0}")]
    Short(&'static str),
    #[error("the data goes on behind its last field")]
    Long,
    #[error("{0} is longer than {STRING_MAX} bytes")]
    StringTooLong(&'static str),
    #[error("{0} is not UTF-8")]
    NotUtf8(&'static str),
    #[error("{0} contains a NUL byte")]
    Nul(&'static str),
    #[error("more than {QUERIES_MAX} queries")]
    TooManyQueries,
}

/// What is left of the data.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn bytes(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], Wrong> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(Wrong::Short(what))?;
        self.0 = tail;
        Ok(head)
    }

    fn u16(&mut self, what: &'static str) -> Result<u16, Wrong> {
        let (value, tail) = U16::read_from_prefix(self.0).map_err(|_| Wrong::Short(what))?;
        self.0 = tail;
        Ok(value.get())
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, Wrong> {
        let (value, tail) = U32::read_from_prefix(self.0).map_err(|_| Wrong::Short(what))?;
        self.0 = tail;
        Ok(value.get())
    }

    /// A string behind its `u32` length.
    fn string(&mut self, what: &'static str) -> Result<&'a str, Wrong> {
        let len = self.u32(what)?;
        let len = usize::try_from(len).map_err(|_| Wrong::Short(what))?;
        text(self.bytes(len, what)?, what)
    }

    fn end(&self) -> Result<(), Wrong> {
        if self.0.is_empty() { Ok(()) } else { Err(Wrong::Long) }
    }
}

/// A string as the protocol allows them: at most 4096 bytes of UTF-8 without NUL.
pub fn text<'a>(bytes: &'a [u8], what: &'static str) -> Result<&'a str, Wrong> {
    if bytes.len() > STRING_MAX {
        return Err(Wrong::StringTooLong(what));
    }
    if bytes.contains(&0) {
        return Err(Wrong::Nul(what));
    }
    str::from_utf8(bytes).map_err(|_| Wrong::NotUtf8(what))
}

/// The data of `INFO` and `GO`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Go<'a> {
    pub name: &'a str,
    /// As sent: may repeat, may be unknown.
    pub asked: Vec<u16>,
}

impl<'a> Go<'a> {
    /// `u32` name length, name, `u16` n, n × `u16`, and nothing behind.
    pub fn parse(data: &'a [u8]) -> Result<Go<'a>, Wrong> {
        let mut rest = Rest(data);
        let name = rest.string("the export name")?;
        let count = rest.u16("the count of information requests")?;
        let mut asked = Vec::new(); // grows with what is there, not with what is promised
        for _ in 0..count {
            asked.push(rest.u16("the information requests")?);
        }
        rest.end()?;
        Ok(Go { name, asked })
    }

    /// Was this type of information asked for?
    pub fn asks(&self, kind: u16) -> bool {
        self.asked.contains(&kind)
    }
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Meta<'a> {
    pub name: &'a str,
    pub queries: Vec<&'a str>,
}

impl<'a> Meta<'a> {
    /// `u32` name length, name, `u32` n, n × (`u32` length, query), and nothing behind.
    pub fn parse(data: &'a [u8]) -> Result<Meta<'a>, Wrong> {
        let mut rest = Rest(data);
        let name = rest.string("the export name")?;
        let count = rest.u32("the count of queries")?;
        let mut queries = Vec::new();
        for done in 0..count {
            let query = rest.string("a query")?;
            if done >= QUERIES_MAX {
                return Err(Wrong::TooManyQueries);
            }
            queries.push(query);
        }
        rest.end()?;
        Ok(Meta { name, queries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn go(name: &str, asked: &[u16]) -> Vec<u8> {
        let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
        data.extend(name.as_bytes());
        data.extend(u16::try_from(asked.len()).unwrap().to_be_bytes());
        asked.iter().for_each(|a| data.extend(a.to_be_bytes()));
        data
    }

    fn meta(name: &str, queries: &[String]) -> Vec<u8> {
        let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
        data.extend(name.as_bytes());
        data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
        for query in queries {
            data.extend(u32::try_from(query.len()).unwrap().to_be_bytes());
            data.extend(query.as_bytes());
        }
        data
    }

    #[test]
    fn too_many_queries_is_its_own_answer() {
        let queries = vec![String::new(); 257];
        assert_eq!(Meta::parse(&meta("x", &queries)), Err(Wrong::TooManyQueries));
        assert!(Meta::parse(&meta("x", &queries[..256])).is_ok());
    }

    #[test]
    fn a_huge_count_without_data_costs_nothing() {
        let mut data = meta("x", &[]);
        data.truncate(data.len() - 4);
        data.extend(u32::MAX.to_be_bytes());
        assert_eq!(Meta::parse(&data), Err(Wrong::Short("a query")));
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(parsed) = Go::parse(&data) {
                prop_assert_eq!(go(parsed.name, &parsed.asked), data.clone());
            }
            if let Ok(parsed) = Meta::parse(&data) {
                let queries: Vec<_> = parsed.queries.iter().map(|q| (*q).to_owned()).collect();
                prop_assert_eq!(meta(parsed.name, &queries), data);
            }
        }

        #[test]
        fn what_is_written_is_read(name in "[^\0]{0,20}", asked in any::<Vec<u16>>(),
                                   queries in proptest::collection::vec("[^\0]{0,9}", 0..9)) {
            let data = go(&name, &asked);
            let parsed = Go::parse(&data);
            prop_assert_eq!(parsed, Ok(Go { name: &name, asked }));
            let data = meta(&name, &queries);
            let parsed = Meta::parse(&data);
            let queries = queries.iter().map(String::as_str).collect();
            prop_assert_eq!(parsed, Ok(Meta { name: &name, queries }));
        }

        #[test]
        fn every_truncation_and_every_extra_byte_is_refused(
            name in "[a-z]{0,8}", queries in proptest::collection::vec("[a-z:]{0,9}", 0..5),
        ) {
            let mut data = meta(&name, &queries);
            for len in 0..data.len() {
                let refused = matches!(Meta::parse(&data[..len]), Err(Wrong::Short(_)));
                prop_assert!(refused, "{} of {}", len, data.len());
            }
            data.push(0);
            prop_assert_eq!(Meta::parse(&data), Err(Wrong::Long));
        }
    }
}
