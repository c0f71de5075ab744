//! The kernel and btrfs-progs as judges: what they make we read, what we make they accept.
//!
//! Needs root, loop devices, a kernel with btrfs, and btrfs-progs; without one of them each test says
//! which and passes.

mod bad_data;
mod check_data;
mod check_more;
mod export;
mod inspect;
mod kernel;
mod log;
mod matrix;
mod mkfs;
mod newer;
mod raid;
mod read;
mod sectors;
mod seed;
mod send;
mod shared_refs;
mod walk;
