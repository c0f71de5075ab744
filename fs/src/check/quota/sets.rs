//! Sets of subvolumes, each kept once and known by its number.

use std::collections::HashMap;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct SetId(u32);

#[derive(Default, Debug)]
pub(super) struct Sets {
    sets: Vec<Box<[usize]>>,
    ids: HashMap<Box<[usize]>, SetId>,
    unions: HashMap<(SetId, SetId), SetId>,
}

impl Sets {
    pub(super) fn one(&mut self, member: usize) -> SetId {
        self.id(Box::new([member]))
    }

    fn id(&mut self, members: Box<[usize]>) -> SetId {
        if let Some(id) = self.ids.get(&members) {
            return *id;
        }
        let id = SetId(u32::try_from(self.sets.len()).unwrap_or(u32::MAX));
        self.sets.push(members.clone());
        self.ids.insert(members, id);
        id
    }

    /// Adds what is in `more` to `set`.
    pub(super) fn merge(&mut self, set: &mut SetId, more: SetId) {
        if *set == more {
            return;
        }
        let pair = (*set, more);
        let known = self.unions.get(&pair).copied();
        *set = known.unwrap_or_else(|| {
            let mut all: Vec<usize> = [self.members(pair.0), self.members(pair.1)].concat();
            all.sort_unstable();
            all.dedup();
            let id = self.id(all.into());
            self.unions.insert(pair, id);
            id
        });
    }

    pub(super) fn members(&self, set: SetId) -> &[usize] {
        usize::try_from(set.0).ok().and_then(|n| self.sets.get(n)).map_or(&[], |set| set)
    }

    /// The set's member, if there is only one.
    pub(super) fn only(&self, set: SetId) -> Option<usize> {
        match self.members(set) {
            [one] => Some(*one),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_sets_are_one_however_they_came_about() {
        let mut sets = Sets::default();
        let (a, b, c) = (sets.one(1), sets.one(2), sets.one(3));
        let (mut left, mut right) = (a, c);
        sets.merge(&mut left, b);
        assert_eq!(sets.only(a), Some(1));
        assert_eq!(sets.only(left), None);
        sets.merge(&mut left, c);
        sets.merge(&mut right, a);
        sets.merge(&mut right, b);
        assert_eq!(left, right);
        assert_eq!(sets.members(left), [1, 2, 3]);
        let before = left;
        sets.merge(&mut left, a);
        assert_eq!(left, before, "what is in it already adds nothing");
    }
}
