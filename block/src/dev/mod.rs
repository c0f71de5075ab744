//! Devices at the bottom of a stack, and the smallest layers.

mod file;
mod mem;
mod overlay;
mod remote;
pub mod sim;
pub(crate) mod sys;
mod window;

pub use file::{FileDevice, FileHandle, FileOptions};
pub use mem::Mem;
pub use overlay::Overlay;
pub use remote::{Remote, RemoteHandle};
pub use sim::SimDisk;
pub use window::Window;
