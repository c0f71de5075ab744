//! The client: an export of any NBD server, as a device.
//!
//! ```text
//!   NbdDevice ──call──> Link ──> outbox ──> writer ──> socket
//!       ^                |  cookie: Claim, buffer                 |
//!       +----- done -----+<──────────── receiver <────────────────+
//! ```
//!
//! A request gets a cookie and a place among those in flight, and its head and data go to the
//! outbox; the writer sends what has gathered. The receiver takes replies off the stream, in
//! whatever order they come, and receives the data of a read into the buffer that its caller gave.
//! A request whose future is dropped stays in the table until its reply has come, with its buffer.
//!
//! # A server that lies
//! What comes is judged before it is believed ([`crate::nbd::offer`], [`crate::nbd::answer`]). One
//! broken rule ends the connection: nothing that follows could be trusted. So does silence: a
//! server that owes something and says nothing for [`NbdOptions::silence_max`].
//!
//! # A connection that is lost
//! Every request fails from then on, with the reason of the first. There is no second connection:
//! what the server was told and had not flushed may be gone, and a new one would not know. So the
//! device is poisoned then, as after a failed flush; it has to be opened again.

mod device;
mod intake;
mod link;
mod negotiate;
mod open;
mod says;
mod status;
#[cfg(test)]
mod tests;
mod uri;

pub use device::NbdDevice;
pub use open::NbdOptions;
pub(crate) use uri::Encoded;
pub use uri::{NbdUri, NotAnExport};
