//! varve-nbd-server.

pub mod nbd;
