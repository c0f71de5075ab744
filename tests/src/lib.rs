//! varve-tests.
