//! Changing what is there: metadata, keyslots, headers as a whole.

mod area;
mod backup;
mod convert;
mod editor;
mod keys;
mod luks1;
mod put;
mod repair;
mod settings;
pub(crate) mod tree;

pub use area::Protection;
pub(crate) use area::{AreaCipher, Fresh, destroy};
pub use backup::{Backup, backup};
pub use convert::{can_convert, convert_to_luks1, convert_to_luks2};
pub use editor::{Draft, MetadataEditor};
pub use keys::{
    Changed, NewKey, Proof, add_key, add_unbound_key, change_key, erase, kill_slot, remove_key,
};
pub(crate) use put::{draw, fresh_digest};
pub use repair::{Damage, before_repair, damage, repair};
pub use settings::{PERSISTENT_FLAGS, Settings, configure, import_token, remove_token, set_uuid};

#[cfg(test)]
mod tests;
