//! The frame around the LUKS2 JSON text, and a reader that refuses what is ambiguous.
//!
//! ```text
//! | { ... one object ... } | NUL | zeroes to the end of the area |
//! ```
//!
//! Two readers of one text must see one thing, so a key that occurs twice is an error (the reference
//! keeps the last), nesting ends at [`DEPTH_MAX`], and bytes behind the text must be zero: something
//! could hide there and come to life when a shorter text is written (checks 7, 8).

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::error::{Corrupt, printable};

/// Deepest nesting; the format itself uses five levels.
const DEPTH_MAX: u32 = 16;

/// Takes the text out of its area and parses it.
pub(crate) fn read(what: &'static str, area: &[u8]) -> Result<Value, Corrupt> {
    let wrong = |check, found: String, expected: &str| Corrupt {
        what,
        check,
        field: "JSON".into(),
        found,
        expected: expected.into(),
    };
    if area.first() != Some(&b'{') {
        let found = area.first().map_or("nothing".into(), |b| format!("byte {b:#04x}"));
        return Err(wrong(7, found, "'{' as the first byte"));
    }
    let Some(end) = area.iter().position(|&b| b == 0) else {
        return Err(wrong(7, "text to the last byte".into(), "a NUL inside the area"));
    };
    let (text, tail) = area.split_at_checked(end).unwrap_or((area, &[]));
    if tail.iter().any(|&b| b != 0) {
        return Err(wrong(7, "bytes behind the text".into(), "zeroes to the end of the area"));
    }
    read_text(what, text)
}

/// Parses a text without the frame: one object, as strictly.
pub(crate) fn read_text(what: &'static str, text: &[u8]) -> Result<Value, Corrupt> {
    let wrong = |check, found: String, expected: &str| Corrupt {
        what,
        check,
        field: "JSON".into(),
        found,
        expected: expected.into(),
    };
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = Strict { depth: 1 }
        .deserialize(&mut reader)
        .and_then(|value| reader.end().map(|()| value))
        .map_err(|e| wrong(8, printable(&e.to_string()), "one well-formed JSON object"))?;
    if value.is_object() { Ok(value) } else { Err(wrong(7, "no object".into(), "one object")) }
}

/// The area of `len` bytes that holds this text. `None`: it does not fit with its NUL.
pub(crate) fn write(value: &Value, len: usize) -> Option<Vec<u8>> {
    let mut text = serde_json::to_vec(value).ok()?;
    if text.len() >= len {
        return None;
    }
    text.resize(len, 0);
    Some(text)
}

/// Builds a `Value` and refuses duplicate keys and deep nesting on the way.
#[derive(Clone, Copy)]
struct Strict {
    depth: u32,
}

impl Strict {
    fn deeper<E: serde::de::Error>(self) -> Result<Strict, E> {
        match self.depth.checked_add(1) {
            Some(depth) if depth <= DEPTH_MAX => Ok(Strict { depth }),
            _ => Err(E::custom("nested too deep")),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(inner)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut members = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            if members.contains_key(&name) {
                let text = format!("key \"{}\" occurs twice", printable(&name));
                return Err(serde::de::Error::custom(text));
            }
            let value = map.next_value_seed(inner)?;
            members.insert(name, value);
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn area(text: &str) -> Vec<u8> {
        let mut area = text.as_bytes().to_vec();
        area.resize(text.len() + 100, 0);
        area
    }

    fn refused(bytes: &[u8]) -> Corrupt {
        read("LUKS2 header", bytes).expect_err("must be refused")
    }

    #[test]
    fn the_frame_is_strict() {
        assert!(read("h", &area("{}")).is_ok());
        assert!(read("h", &area("{ \"a\" : [ 1 , \"x\" ] }")).is_ok());
        assert_eq!(refused(b"").check, 7);
        assert_eq!(refused(&area(" {}")).check, 7);
        assert_eq!(refused(&area("[]")).check, 7);
        assert_eq!(refused(b"{}").check, 7, "no NUL");
        let mut hidden = area("{}");
        hidden[50] = 1;
        assert_eq!(refused(&hidden).check, 7);
        for bad in ["{} {}", "{}x", "{\"a\":}", "{\"a\":1,}", "{'a':1}", "{/**/}", "{\"a\":01}"] {
            assert_eq!(refused(&area(bad)).check, 8, "{bad}");
        }
    }

    #[test]
    fn a_key_that_occurs_twice_is_refused_at_every_level() {
        let e = refused(&area(r#"{"x":{"y":1,"y":2}}"#));
        assert!(e.found.contains("\"y\" occurs twice"), "{e}");
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |n: usize| area(&format!("{{\"a\":{}{}}}", "[".repeat(n), "]".repeat(n)));
        assert!(read("h", &nested(14)).is_ok());
        assert_eq!(refused(&nested(15)).check, 8);
        assert_eq!(refused(&nested(1_000_000)).check, 8);
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_value(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut framed = b"{".to_vec();
            framed.extend_from_slice(&bytes);
            let _ = read("h", &bytes);
            let _ = read("h", &framed);
        }

        #[test]
        fn what_is_written_is_read_back(text in "[a-z\"\\\\/\u{e9}]{0,20}", n in any::<u64>()) {
            let value = serde_json::json!({"a": {"b": [text, n, null, true]}, "c": -5});
            let area = write(&value, 300).unwrap();
            prop_assert_eq!(area.len(), 300);
            prop_assert_eq!(read("h", &area).unwrap(), value.clone());
            prop_assert!(write(&value, 10).is_none());
        }
    }
}
