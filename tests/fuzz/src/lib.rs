//! What several targets share.

pub mod luks;
