//! varve.
