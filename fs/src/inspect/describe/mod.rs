//! Every item as named fields: one list that is printed for people and for programs.

mod files;
mod space;

use crate::csum::CsumType;
use crate::format::key::{ItemType as T, Key};

/// A field's value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    Num(u64),
    /// Where the sign matters.
    Int(i64),
    Text(String),
    /// A name, or anything else that is bytes.
    Bytes(Vec<u8>),
    /// Structures inside the item.
    List(Vec<Fields>),
}

/// Named values, in the order of the disk.
pub type Fields = Vec<(&'static str, Value)>;

/// What an item holds. An item that does not parse has one field, `malformed`, that says why; one of
/// unknown type has its bytes.
pub fn describe(key: Key, data: &[u8], csum: CsumType, sectorsize: u32) -> Fields {
    let described = match key.kind {
        T::INODE_ITEM
        | T::INODE_REF
        | T::INODE_EXTREF
        | T::XATTR_ITEM
        | T::DIR_ITEM
        | T::DIR_INDEX
        | T::EXTENT_DATA
        | T::ROOT_ITEM
        | T::ROOT_REF
        | T::ROOT_BACKREF
        | T::VERITY_DESC_ITEM
        | T::VERITY_MERKLE_ITEM
        | T::DIR_LOG_ITEM
        | T::DIR_LOG_INDEX => files::describe(key, data),
        T::EXTENT_CSUM => Ok(csums(key, data, csum, sectorsize)),
        _ => space::describe(key, data),
    };
    described.unwrap_or_else(|why| vec![("malformed", Value::Text(why))])
}

fn csums(key: Key, data: &[u8], csum: CsumType, sectorsize: u32) -> Fields {
    let sectors = (data.len() / csum.size()) as u64;
    let length = sectors * u64::from(sectorsize);
    vec![
        num("range_start", key.offset),
        num("range_end", key.offset.saturating_add(length)),
        num("range_length", length),
    ]
}

fn num(name: &'static str, value: impl Into<u64>) -> (&'static str, Value) {
    (name, Value::Num(value.into()))
}

fn text(name: &'static str, value: impl ToString) -> (&'static str, Value) {
    (name, Value::Text(value.to_string()))
}

fn bytes(name: &'static str, value: &[u8]) -> (&'static str, Value) {
    (name, Value::Bytes(value.to_vec()))
}

/// `data` as consecutive numbers under these names; more or fewer bytes are malformed.
fn numbers(data: &[u8], names: &[&'static str]) -> Result<Fields, String> {
    if data.len() != names.len() * 8 {
        return Err(format!("{} bytes where {} belong", data.len(), names.len() * 8));
    }
    let values = data.chunks_exact(8).map(le64);
    Ok(names.iter().zip(values).map(|(name, value)| (*name, Value::Num(value))).collect())
}

/// Up to eight bytes as a little-endian number.
fn le64(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
