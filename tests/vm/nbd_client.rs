//! The kernel's own NBD client, over TCP, with btrfs on the device it makes.

use varve_tests::client::Server;
use varve_tests::varve::make_stack;

use crate::{LIMIT, vm};

#[test]
fn the_kernels_nbd_client_carries_a_btrfs() {
    let Some(vm) = vm() else { return };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let stack = make_stack(dir.path(), 160 << 20, 40 << 20, "writeback", Some("key"));
    let (server, port) = Server::start_tcp(dir.path(), &stack);
    let out = vm.guest_script("nbd-client.sh", &[("PORT", &port.to_string())]).network().run(LIMIT);
    out.ok();
    assert!(out.stdout.contains("all sums right"), "{out}");
    drop(server);
}
