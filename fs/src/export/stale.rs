//! Extents that an older state of a tree names: their place may have been used again since.
//!
//! Today's checksums cannot be asked, as they are of what lies there today. What tells:
//!
//! * the extent tree has a record of the extent, of the same generation and length: it is still the same,
//!   and so are its checksums;
//! * or the data has the checksum that it had in that state's commit, if the tree of those can be read.

use super::data::Trust;
use super::older::Age;
use super::report::ProblemKind;
use super::scan::Found;
use super::walk::Walk;
use crate::format::extent::{Extent, ExtentFlags};
use crate::format::file_extent::Place;
use crate::format::key::{ItemType, Key, objectid};
use crate::fs::root_of;
use crate::tree::cursor::find;
use varve_block::BlockDevice;

impl<D: BlockDevice> Walk<'_, D> {
    /// How an extent of `item` is to be verified, or why it cannot be.
    pub(crate) async fn trust(
        &mut self,
        has_sums: bool,
        item: &Found,
        generation: u64,
        place: &Place,
    ) -> Result<Trust, String> {
        if self.fs.options.ignore_data_csums {
            return Ok(Trust::Nothing);
        }
        let today = if has_sums { Trust::Today } else { Trust::Nothing };
        let Some(age) = item.age else { return Ok(today) };
        if self.is_still_there(generation, place).await {
            return Ok(today);
        }
        match age.csums.filter(|_| has_sums) {
            Some(tree) => Ok(Trust::Then(tree)),
            None => Err(format!(
                "an extent of generation {} that was freed since, and nothing tells whether it was \
                 written over",
                age.generation
            )),
        }
    }

    async fn is_still_there(&mut self, generation: u64, place: &Place) -> bool {
        let volume = &self.fs.volume;
        let tree = match self.extents {
            Some(tree) => tree,
            None => {
                let root = root_of(volume, objectid::EXTENT_TREE).await;
                let tree = root.ok().flatten().map(|(tree, _)| tree);
                *self.extents.insert(tree)
            }
        };
        let Some(tree) = tree else { return false };
        let key = Key::new(place.disk_bytenr.0, ItemType::EXTENT_ITEM, place.disk_num_bytes);
        let Ok(Some(item)) = find(volume, &tree, key).await else { return false };
        Extent::parse_head(key.kind, item.data()).is_ok_and(|(extent, _)| {
            extent.generation == generation && extent.flags.contains(ExtentFlags::DATA)
        })
    }

    /// Tells that something was taken from an older state.
    pub(crate) fn older(&mut self, path: Vec<u8>, generation: u64) {
        let why =
            format!("as it was in generation {generation}: the tree block that had it is lost");
        self.problem(path, ProblemKind::Older, why);
    }
}

/// The older of two generations, of which each may be today's.
pub(crate) fn oldest(a: Option<u64>, b: Option<Age>) -> Option<u64> {
    let b = b.map(|age| age.generation);
    a.into_iter().chain(b).min()
}
