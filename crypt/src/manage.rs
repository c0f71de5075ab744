//! Changing what is there: metadata, keyslots, headers as a whole.

mod editor;

pub use editor::{Draft, MetadataEditor};
