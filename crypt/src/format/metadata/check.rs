//! The rules between objects: who names whom, what may not overlap, what must fit.

use std::collections::BTreeMap;

use super::{KEYSLOTS_SIZE_MAX, KeyslotKind, Metadata, Segment, SegmentKind};
use crate::error::Corrupt;
use crate::format::fields::Field;
use crate::format::luks2::BINARY_LEN;

type Checked = Result<(), Corrupt>;

impl Metadata {
    pub(super) fn check(&self, root: &Field<'_>, hdr_size: u64) -> Checked {
        self.check_config(root, hdr_size)?;
        self.check_references(root)?;
        self.check_areas(root, hdr_size)?;
        self.check_segment_ids(root)?;
        self.check_segment_places(root)?;
        self.check_reencryption(root)
    }

    fn check_config(&self, root: &Field<'_>, hdr_size: u64) -> Checked {
        let config = root.get("config");
        if self.config.json_size.checked_add(BINARY_LEN) != Some(hdr_size) {
            let expected = hdr_size.saturating_sub(BINARY_LEN);
            return Err(config.get("json_size").wrong(11, format!("\"{expected}\"")));
        }
        let size = self.config.keyslots_size;
        if !size.is_multiple_of(4096) || size > KEYSLOTS_SIZE_MAX {
            let expected = "a multiple of 4096, at most 128 MiB";
            return Err(config.get("keyslots_size").wrong(11, expected));
        }
        // Backup segments may start at 0: they remember where plain data lay.
        let first = self.regular_segments().map(|(_, s)| s.offset).min().unwrap_or(0);
        if first != 0 && self.areas_end(hdr_size) > first {
            let expected = format!("to end before the first segment at byte {first}");
            return Err(config.get("keyslots_size").wrong(11, expected));
        }
        Ok(())
    }

    /// First byte behind the keyslot region. The terms are bounded: 8 MiB and 128 MiB.
    pub(crate) fn areas_end(&self, hdr_size: u64) -> u64 {
        hdr_size.saturating_mul(2).saturating_add(self.config.keyslots_size)
    }

    fn check_references(&self, root: &Field<'_>) -> Checked {
        let unknown = |object: &str, id: u32, list: &str, missing: u32| {
            let field = root.get(object).get(&id.to_string()).get(list);
            field.wrong(16, format!("only {list} that exist; {missing} does not"))
        };
        let mut named: BTreeMap<u32, u32> = BTreeMap::new();
        for (&id, digest) in &self.digests {
            for &slot in &digest.keyslots {
                if !self.keyslots.contains_key(&slot) {
                    return Err(unknown("digests", id, "keyslots", slot));
                }
                if named.insert(slot, id).is_some() {
                    let field = root.get("keyslots").get(&slot.to_string());
                    return Err(field.wrong(16, "to be named by one digest, not by two"));
                }
            }
            if let Some(&gone) = digest.segments.iter().find(|s| !self.segments.contains_key(s)) {
                return Err(unknown("digests", id, "segments", gone));
            }
        }
        if let Some(slot) = self.keyslots.keys().find(|slot| !named.contains_key(slot)) {
            let field = root.get("keyslots").get(&slot.to_string());
            return Err(field.wrong(16, "to be named by a digest"));
        }
        for (&id, token) in &self.tokens {
            if let Some(&gone) = token.keyslots.iter().find(|s| !self.keyslots.contains_key(s)) {
                return Err(unknown("tokens", id, "keyslots", gone));
            }
        }
        Ok(())
    }

    fn check_areas(&self, root: &Field<'_>, hdr_size: u64) -> Checked {
        let (first, end) = (hdr_size.saturating_mul(2), self.areas_end(hdr_size));
        let mut areas = Vec::new();
        for (&id, slot) in &self.keyslots {
            let field = root.get("keyslots").get(&id.to_string()).get("area");
            if slot.area_offset < first {
                let expected = format!("at least {first}, behind both headers");
                return Err(field.get("offset").wrong(33, expected));
            }
            let area_end = slot.area_offset.checked_add(slot.area_size);
            let Some(area_end) = area_end.filter(|&e| slot.area_size > 0 && e <= end) else {
                let expected = format!("above zero, and the area to end before byte {end}");
                return Err(field.get("size").wrong(33, expected));
            };
            areas.push((slot.area_offset, area_end, id));
        }
        areas.sort_unstable();
        for (one, two) in areas.iter().zip(areas.iter().skip(1)) {
            if one.1 > two.0 {
                let field = root.get("keyslots").get(&two.2.to_string()).get("area");
                let expected = format!("not to overlap the area of keyslot {}", one.2);
                return Err(field.get("offset").wrong(33, expected));
            }
        }
        Ok(())
    }

    /// Regular segments are 0..k, backup segments follow, neither with a gap.
    fn check_segment_ids(&self, root: &Field<'_>) -> Checked {
        let mut behind_backup = false;
        for (expected, (&id, segment)) in (0u32..).zip(&self.segments) {
            let field = root.get("segments").get(&id.to_string());
            if id != expected {
                return Err(field.wrong(34, format!("segment {expected} first, without a gap")));
            }
            if behind_backup && !segment.is_backup() {
                return Err(field.wrong(34, "no regular segment behind a backup segment"));
            }
            behind_backup |= segment.is_backup();
        }
        if behind_backup && self.regular_segments().next().is_none() {
            return Err(root.get("segments").wrong(34, "a regular segment beside the backup ones"));
        }
        Ok(())
    }

    /// Only the last regular segment may be dynamic; none overlaps another; every key is known.
    fn check_segment_places(&self, root: &Field<'_>) -> Checked {
        let regular: Vec<(u32, &Segment)> = self.regular_segments().collect();
        let last = regular.last().map(|(id, _)| *id);
        let mut places = Vec::new();
        for (id, segment) in regular {
            let field = root.get("segments").get(&id.to_string());
            if segment.size.is_none() && Some(id) != last {
                return Err(field.get("size").wrong(34, "a number: only the last is dynamic"));
            }
            // A single end beyond 2^64 passes, as in the reference: it fails against the device.
            let end = segment.size.map_or(u64::MAX, |n| segment.offset.saturating_add(n));
            places.push((segment.offset, end, id));
        }
        places.sort_unstable();
        for (one, two) in places.iter().zip(places.iter().skip(1)) {
            if one.1 > two.0 {
                let field = root.get("segments").get(&two.2.to_string());
                let expected = format!("not to overlap segment {}", one.2);
                return Err(field.get("offset").wrong(34, expected));
            }
        }
        for (&id, segment) in &self.segments {
            let named = self.digests.values().any(|d| d.segments.contains(&id));
            if matches!(segment.kind, SegmentKind::Crypt { .. }) && !named {
                let field = root.get("segments").get(&id.to_string());
                return Err(field.wrong(16, "to be named by a digest"));
            }
        }
        Ok(())
    }

    /// A re-encryption slot and its requirement come together, once each (check 42).
    fn check_reencryption(&self, root: &Field<'_>) -> Checked {
        let slots: Vec<u32> = self
            .keyslots
            .iter()
            .filter(|(_, s)| matches!(s.kind, KeyslotKind::Reencrypt { .. }))
            .map(|(id, _)| *id)
            .collect();
        let required = self.config.requirements.iter().filter(|r| is_online_reencrypt(r)).count();
        if slots.len() != required || required > 1 {
            let expected = format!(
                "one online-reencrypt for one reencrypt keyslot; there are {} keyslots",
                slots.len()
            );
            return Err(root.get("config").get("requirements").wrong(42, expected));
        }
        for id in slots {
            let slot = self.keyslots.get(&id).map(|s| s.key_size);
            if slot != Some(1) {
                let field = root.get("keyslots").get(&id.to_string()).get("key_size");
                return Err(field.wrong(42, "1"));
            }
        }
        Ok(())
    }
}

/// The three names of one requirement.
fn is_online_reencrypt(requirement: &str) -> bool {
    matches!(requirement, "online-reencrypt" | "online-reencrypt-v2" | "online-reencrypt-v3")
}
