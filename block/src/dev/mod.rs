//! Devices at the bottom of a stack, and the smallest layers.

mod mem;
mod window;

pub use mem::Mem;
pub use window::Window;
