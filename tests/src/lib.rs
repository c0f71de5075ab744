//! The harness of the tests that span crates: real clients, a real kernel, disks that a kernel wrote.
//!
//! Each folder beside this one is one test binary:
//!
//! | binary | what it holds to account |
//! |---|---|
//! | `tidy` | the sources and documents themselves |
//! | `cli` | the command line's promises: exit codes, one-line errors, bad input, failing media |
//! | `compat` | disks the kernel wrote, real NBD clients, kernel file systems on an export |
//! | `crash` | `kill -9` in the middle of writes |
//! | `sim` | whole stacks in seeded worlds: power cuts, faults, and bugs switched on to be caught |
//! | `vm` | the kernel's own bcache, dm-crypt, btrfs and nbd, in a guest that loses power |
//!
//! `tests/run` installs what they need and runs them in that order. A test whose tool, privilege or
//! image is absent says so on standard error and passes: see [`tool`].

pub mod client;
pub mod clock;
pub mod disk;
pub mod fault;
pub mod fio;
pub mod golden;
pub mod ledger;
pub mod loop_mount;
pub mod model;
pub mod mount;
pub mod nbd;
pub mod process;
pub mod reencryption;
pub mod stack;
pub mod tool;
pub mod varve;
pub mod vm;
pub mod world;

/// The root of the repository: where the workspace's `Cargo.toml` is.
#[must_use]
pub fn repository() -> &'static std::path::Path {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests' package stands in the repository's root")
}
