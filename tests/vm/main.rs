//! The kernel's own stack, in a guest that can lose its power: pairs it writes, pairs it must read.
//!
//! Every test here boots at least one guest. Without an emulator, or without a network to fetch the
//! guest's packages from, each prints the reason and passes.

mod crypt_matrix;
mod dm_integrity;
mod golden;
mod import;
mod integrity;
mod nbd_client;
mod power_cut;
mod reencrypt;

use std::time::Duration;

use varve_tests::tool;
use varve_tests::vm::Vm;

/// A guest that does some work: emulation is slow, and the machine may be busy.
const LIMIT: Duration = Duration::from_secs(300);

/// The guest, or a printed reason why there is none.
fn vm() -> Option<Vm> {
    Vm::available().map_err(|reason| tool::skip(&reason)).ok()
}
