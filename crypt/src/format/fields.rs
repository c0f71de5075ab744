//! Taking a JSON tree apart with errors that name the path: `keyslots.2.area.offset: found "-42", ...`.

use serde_json::{Map, Value};

use crate::error::{Corrupt, printable};

/// A place in the tree.
#[derive(Clone)]
pub(crate) struct Field<'a> {
    what: &'static str,
    path: String,
    value: Option<&'a Value>,
}

type Got<T> = Result<T, Corrupt>;

impl<'a> Field<'a> {
    pub(crate) fn root(what: &'static str, value: &'a Value) -> Field<'a> {
        Field { what, path: String::new(), value: Some(value) }
    }

    /// A member of this object; missing ones are reported when their value is asked for.
    pub(crate) fn get(&self, name: &str) -> Field<'a> {
        let path =
            if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        let value = self.value.and_then(Value::as_object).and_then(|o| o.get(name));
        Field { what: self.what, path: printable(&path), value }
    }

    pub(crate) fn is_present(&self) -> bool {
        self.value.is_some()
    }

    pub(crate) fn wrong(&self, check: u8, expected: impl Into<String>) -> Corrupt {
        let found = match self.value {
            None => "nothing".to_owned(),
            Some(Value::Object(_)) => "an object".to_owned(),
            Some(Value::Array(_)) => "an array".to_owned(),
            Some(other) => printable(&other.to_string()),
        };
        Corrupt {
            what: self.what,
            check,
            field: if self.path.is_empty() { "JSON".into() } else { self.path.clone() },
            found,
            expected: expected.into(),
        }
    }

    pub(crate) fn object(&self, check: u8) -> Got<&'a Map<String, Value>> {
        self.value.and_then(Value::as_object).ok_or_else(|| self.wrong(check, "an object"))
    }

    pub(crate) fn text(&self, check: u8) -> Got<&'a str> {
        self.value.and_then(Value::as_str).ok_or_else(|| self.wrong(check, "a string"))
    }

    pub(crate) fn text_not_empty(&self, check: u8) -> Got<&'a str> {
        match self.text(check)? {
            "" => Err(self.wrong(check, "a string that is not empty")),
            text => Ok(text),
        }
    }

    /// A JSON integer that is not negative (check 9).
    pub(crate) fn integer(&self) -> Got<u64> {
        self.value
            .and_then(Value::as_u64)
            .ok_or_else(|| self.wrong(9, "an integer that is not negative"))
    }

    pub(crate) fn integer_not_zero(&self) -> Got<u64> {
        match self.integer()? {
            0 => Err(self.wrong(9, "an integer above zero")),
            n => Ok(n),
        }
    }

    /// A 64-bit number, written as a string of decimal digits (check 9).
    pub(crate) fn number_text(&self) -> Got<u64> {
        let wrong = || self.wrong(9, "a string of decimal digits, at most 2^64 - 1");
        let text = self.value.and_then(Value::as_str).ok_or_else(wrong)?;
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        text.parse().map_err(|_| wrong())
    }

    /// The members of an object whose names are ids below `limit`, in order of the ids (check 8).
    pub(crate) fn by_id(&self, check: u8, limit: u32) -> Got<Vec<(u32, Field<'a>)>> {
        let mut members = Vec::new();
        for name in self.object(check)?.keys() {
            let field = self.get(name);
            let Some(id) = id(name, limit) else {
                return Err(Corrupt {
                    found: printable(name),
                    ..self
                        .wrong(8, format!("ids 0 to {} in canonical form", limit.saturating_sub(1)))
                });
            };
            members.push((id, field));
        }
        members.sort_by_key(|(id, _)| *id);
        Ok(members)
    }

    /// An array of ids, as digests and tokens have them.
    pub(crate) fn ids(&self, check: u8, limit: u32) -> Got<Vec<u32>> {
        let wrong = || self.wrong(check, "an array of ids as strings");
        let array = self.value.and_then(Value::as_array).ok_or_else(wrong)?;
        let mut ids = Vec::new();
        for item in array {
            ids.push(item.as_str().and_then(|t| id(t, limit)).ok_or_else(wrong)?);
        }
        Ok(ids)
    }

    /// An optional array of strings.
    pub(crate) fn texts(&self, check: u8) -> Got<Vec<String>> {
        let Some(value) = self.value else { return Ok(Vec::new()) };
        let wrong = || self.wrong(check, "an array of strings");
        let array = value.as_array().ok_or_else(wrong)?;
        array.iter().map(|item| Ok(item.as_str().ok_or_else(wrong)?.to_owned())).collect()
    }
}

/// `"0"`, `"1"`, ... without sign, blank or leading zero.
fn id(text: &str, limit: u32) -> Option<u32> {
    let canonical = text == "0" || !text.starts_with('0');
    if !canonical || text.len() > 4 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|&n| n < limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_path_and_what_was_there() {
        let v: Value = serde_json::from_str(r#"{"a":{"b":"-42","c":1.5,"d":"007"}}"#).unwrap();
        let f = Field::root("LUKS2 header", &v);
        let e = f.get("a").get("b").number_text().unwrap_err();
        assert_eq!(
            e.to_string(),
            "corrupt LUKS2 header (check 9): a.b: found \"-42\", expected a string of decimal digits, \
             at most 2^64 - 1"
        );
        assert_eq!(f.get("x").get("y").text(7).unwrap_err().found, "nothing");
        assert!(f.get("a").get("c").integer().is_err());
        assert_eq!(f.get("a").get("d").number_text().unwrap(), 7);
    }

    #[test]
    fn ids_are_canonical() {
        for bad in ["", "00", "01", "+1", " 1", "-1", "32", "4294967296", "x"] {
            assert_eq!(id(bad, 32), None, "{bad}");
        }
        assert_eq!(id("0", 32), Some(0));
        assert_eq!(id("31", 32), Some(31));
    }
}
