//! The NBD protocol without a socket: bytes in, decisions and bytes out.
//!
//! ```text
//!   bytes --> Handshake --Negotiated--> Transmission --Event--> (the block core)
//!                 |                                                   |
//!                 +--> option replies          reply::Encoder <-------+
//! ```
//!
//! The phases are types that consume each other: there is no request before a negotiation has
//! ended. Nothing in here reads a clock, waits, or allocates by a number that a peer sent.

pub mod facts;
pub mod handshake;
pub mod option;
pub mod reply;
pub mod transmit;
pub mod wire;

#[cfg(test)]
pub(crate) mod testing;
