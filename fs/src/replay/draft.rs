//! A tree, and what is to become of it: items that are new or different, and items that are gone.

use crate::error::Result;
use crate::format::key::{ItemType, Key};
use crate::tree::cursor::{Cursor, Tree, find, find_last};
use crate::volume::Volume;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use varve_block::BlockDevice;

/// An item that may be of the tree or of the draft.
pub(super) type Owned = (Key, Vec<u8>);

pub(super) struct Draft<'a, D: BlockDevice> {
    volume: &'a Volume<D>,
    pub(super) tree: Tree,
    /// `None`: removed.
    pub(super) changes: BTreeMap<Key, Option<Vec<u8>>>,
}

impl<'a, D: BlockDevice> Draft<'a, D> {
    pub(super) fn new(volume: &'a Volume<D>, tree: Tree) -> Draft<'a, D> {
        Draft { volume, tree, changes: BTreeMap::new() }
    }

    pub(super) fn is_changed(&self) -> bool {
        !self.changes.is_empty()
    }

    pub(super) fn put(&mut self, key: Key, data: Vec<u8>) {
        self.changes.insert(key, Some(data));
    }

    pub(super) fn remove(&mut self, key: Key) {
        self.changes.insert(key, None);
    }

    /// `data`, or nothing where there is none left: an item without entries does not exist.
    pub(super) fn put_or_remove(&mut self, key: Key, data: Vec<u8>) {
        match data.is_empty() {
            true => self.remove(key),
            false => self.put(key, data),
        }
    }

    pub(super) async fn get(&self, key: Key) -> Result<Option<Vec<u8>>> {
        if let Some(change) = self.changes.get(&key) {
            return Ok(change.clone());
        }
        let item = find(self.volume, &self.tree, key).await?;
        Ok(item.map(|item| item.data().to_vec()))
    }

    /// The first item whose key is in `keys`.
    pub(super) async fn first(&self, keys: RangeInclusive<Key>) -> Result<Option<Owned>> {
        if keys.is_empty() {
            return Ok(None);
        }
        let changed = self.changes.range(keys.clone());
        let new = changed
            .filter_map(|(key, data)| Some((*key, data.as_ref()?)))
            .map(|(key, data)| (key, data.clone()))
            .next();
        let mut cursor = Cursor::seek(self.volume, &self.tree, *keys.start()).await?;
        while let Some(item) = cursor.next_to(*keys.end()).await? {
            let key = item.key();
            if new.as_ref().is_some_and(|(new, _)| *new < key) {
                return Ok(new);
            }
            if !self.changes.contains_key(&key) {
                return Ok(Some((key, item.data().to_vec())));
            }
        }
        Ok(new)
    }

    /// The last item whose key is not above `key`.
    pub(super) async fn last(&self, key: Key) -> Result<Option<Owned>> {
        let changed = self.changes.range(..=key).rev();
        let new = changed
            .filter_map(|(key, data)| Some((*key, data.as_ref()?)))
            .map(|(key, data)| (key, data.clone()))
            .next();
        let mut at = key;
        while let Some(item) = find_last(self.volume, &self.tree, at).await? {
            if new.as_ref().is_some_and(|(new, _)| *new >= item.key()) {
                return Ok(new);
            }
            if !self.changes.contains_key(&item.key()) {
                return Ok(Some((item.key(), item.data().to_vec())));
            }
            let Some(before) = before(item.key()) else { break };
            at = before;
        }
        Ok(new)
    }

    /// Every item of one kind of one object, in order.
    pub(super) async fn all(&self, objectid: u64, kind: ItemType) -> Result<Vec<Owned>> {
        let last = Key::new(objectid, kind, u64::MAX);
        let mut from = Key::new(objectid, kind, 0);
        let mut all = Vec::new();
        while let Some(item) = self.first(from..=last).await? {
            from = item.0.next();
            all.push(item);
        }
        Ok(all)
    }
}

/// The greatest key below this one.
fn before(key: Key) -> Option<Key> {
    let Key { objectid, kind, offset } = key;
    if let Some(offset) = offset.checked_sub(1) {
        return Some(Key { objectid, kind, offset });
    }
    if let Some(kind) = kind.0.checked_sub(1) {
        return Some(Key::new(objectid, ItemType(kind), u64::MAX));
    }
    objectid.checked_sub(1).map(|objectid| Key { objectid, ..Key::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_before_the_next_is_the_key() {
        let keys = [Key::new(1, ItemType(2), 3), Key::new(1, ItemType(2), u64::MAX)];
        let last_kind = Key::new(7, ItemType(u8::MAX), u64::MAX);
        for key in keys.into_iter().chain([last_kind]) {
            assert_eq!(before(key.next()), Some(key));
        }
        assert_eq!(before(Key::MIN), None);
    }
}
