//! QEMU's programs: `qemu-img`, `qemu-io`.

use std::process::Command;

use varve_tests::client::Server;
use varve_tests::varve::make_stack;
use varve_tests::{disk, process, tool};

#[track_caller]
fn tool_says(program: &str, args: &[&str]) -> String {
    process::run(Command::new(program).args(args)).ok()
}

#[test]
fn qemu_img_reports_converts_compares_and_benches() {
    if !tool::have(&["qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let stack = make_stack(dir.path(), 96 << 20, 36 << 20, "writeback", Some("key"));
    let server = Server::start(dir.path(), &stack);
    let uri = server.uri();
    let size = server.connect().size();
    let info: serde_json::Value =
        serde_json::from_str(&tool_says("qemu-img", &["info", "--output=json", &uri]))
            .expect("qemu-img's own JSON");
    assert_eq!(info["virtual-size"], size, "{info}");

    let image = dir.path().join("image");
    let image = image.to_str().expect("a plain path");
    let mut bytes = disk::noise(6, usize::try_from(size).expect("a small disk"));
    bytes[5 << 20..20 << 20].fill(0);
    std::fs::write(image, bytes).expect("an image");
    tool_says(
        "qemu-img",
        &["convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw", image, &uri],
    );
    let same = ["compare", "-f", "raw", "-F", "raw", image, &uri];
    assert!(tool_says("qemu-img", &same).contains("identical"));
    let qcow = dir.path().join("image.qcow2");
    let qcow = qcow.to_str().expect("a plain path");
    tool_says("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, qcow]);
    assert!(tool_says("qemu-img", &["compare", "-F", "raw", qcow, &uri]).contains("identical"));
    tool_says("qemu-img", &["bench", "-f", "raw", "-c", "2000", "-d", "16", "-s", "4k", &uri]);
    assert!(tool_says("qemu-img", &same).contains("identical"), "a read benchmark has written");
    tool_says(
        "qemu-img",
        &["bench", "-w", "-f", "raw", "-c", "1000", "-d", "8", "-s", "64k", &uri],
    );
    server.stop();
}

#[test]
fn qemu_io_writes_patterns_zeroes_and_discards() {
    if !tool::have(&["qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let stack = make_stack(dir.path(), 96 << 20, 36 << 20, "writeback", None);
    let server = Server::start(dir.path(), &stack);
    let script = [
        "write -P 0x5a 0 1M",
        "write -f -P 0xa5 300k 70k",
        "read -P 0x5a 0 300k",
        "read -P 0xa5 300k 70k",
        "read -P 0x5a 370k 200k",
        "write -z 64k 128k",
        "read -P 0 64k 128k",
        "write -z -u 512k 64k",
        "read -P 0 512k 64k",
        "discard 2M 4M",
        "write -P 0x11 513 1023",
        "read -P 0x11 513 1023",
        "aio_write -P 0x22 8M 1M",
        "aio_write -P 0x33 9M 1M",
        "aio_flush",
        "read -P 0x22 8M 1M",
        "read -P 0x33 9M 1M",
        "flush",
    ];
    let mut args = vec!["-f", "raw"];
    args.extend(script.iter().flat_map(|line| ["-c", line]));
    let uri = server.uri();
    args.push(&uri);
    let out = tool_says("qemu-io", &args);
    // It reports a mismatch in words and still exits with 0.
    assert!(!out.contains("verification failed") && !out.contains("failed:"), "{out}");
    server.stop();
}
