//! The NBD protocol without a socket: bytes in, decisions and bytes out.
//!
//! ```text
//!   bytes --> Handshake --Negotiated--> Transmission --Event--> (the block core)
//!                 |                                                   |
//!                 +--> option replies          reply::Encoder <-------+
//! ```
//!
//! and the same from the other side, for the client:
//!
//! ```text
//!   bytes --> offer::Offered --Terms--> answer::Claim, one for each request in flight
//! ```
//!
//! The phases are types that consume each other: there is no request before a negotiation has
//! ended. Nothing in here reads a clock, waits, or allocates by a number that a peer sent.

pub mod answer;
pub mod breach;
pub mod facts;
pub mod handshake;
pub mod offer;
pub mod option;
pub mod reply;
pub mod transmit;
pub mod wire;

#[cfg(test)]
pub(crate) mod testing;
