//! varve-crypt.
