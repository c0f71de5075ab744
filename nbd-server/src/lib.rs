//! NBD, the network block device protocol, from both sides: fixed newstyle, structured replies, block
//! status, over Unix sockets and TCP. The server makes a stack visible to other programs, with
//! requests of up to 64 MiB; the [client](NbdDevice) lets a stack stand on another program's export.
//!
//! ```text
//!   nbdcopy, qemu, fio, the kernel ...
//!        | Unix socket, TCP
//!   serve     accept, lanes, the end            Server::start .. Server::stop
//!   conn      one connection: reader, writer    bounded in requests and in bytes
//!   execute   one request                       the only file that calls the device
//!   nbd/      the protocol, without a socket    bytes in, events and bytes out
//!        |
//!   Export    order, flush groups, any byte     (varve-block)
//!        |
//!   the stack
//!        |
//!   client/   an export as a device             NbdDevice::open
//!        | Unix socket, TCP
//!   nbdkit, qemu-nbd, another varve ...
//! ```
//!
//! # The life of a write
//!
//! One receive brings as many requests as have come. A head is parsed and judged
//! ([`nbd::transmit`]); a valid request waits for its place, then for its payload, which is received
//! into the buffer that travels down the stack; a payload that never comes whole never reaches the
//! device. Each request is a task of its own and holds its place until its reply has left. Replies
//! gather in the outbox and leave many at a time.
//!
//! # What a client may rely on
//!
//! A reply to a write means that every later read, on any connection, sees it. A reply to a flush
//! means that every write answered before it was sent, on any connection, is durable: that is what
//! `CAN_MULTI_CONN` promises, and [`varve_block::Export`] keeps. A connection that breaks takes back
//! nothing: what was begun ends, in its place in the order, so a write sent again elsewhere cannot
//! be overtaken by its own first copy.
//!
//! # What a client cannot do
//!
//! Hold more than its share: 256 requests and 64 MiB per connection, a budget of bytes per lane, 15
//! seconds for the handshake, 60 seconds without progress inside a frame or with replies waiting.
//! Nothing is allocated by a number that has not been checked, and a flood meets a full socket.

mod admit;
mod client;
mod conn;
mod execute;
mod hall;
mod inbox;
mod listen;
pub mod nbd;
mod outbox;
mod serve;
mod stats;

pub use client::{NbdDevice, NbdOptions, NbdUri, NotAnExport};
pub use hall::Look;
pub use listen::{Address, Listen, NotAPlace};
pub use serve::{Exported, Options, Server, StartError, serve_stream};
pub use stats::{Snapshot, Stats};
