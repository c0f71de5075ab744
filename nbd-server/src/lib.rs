//! varve-nbd-server.
