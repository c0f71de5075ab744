//! The first promise: a pair that the kernel wrote reads through Varve as it read through the kernel.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::client::{Server, Stack};
use crate::disk::{self, Pair};
use crate::{process, varve};

/// Serves the pair read-only below encryption and above it, reads every file, and compares all of it
/// with what the kernel said. The images must not have moved a byte.
///
/// # Panics
/// At the first difference, naming it.
#[track_caller]
pub fn reads_as_the_kernel_says(pair: &Pair) {
    let name = &pair.name;
    let before = pair.sums();
    let stack = Stack::backing("hdd.img").cache("ssd.img").flag("--read-only");

    let server = Server::start(pair.dir(), &stack.clone().flag("--no-crypt"));
    let mut nbd = server.connect();
    assert!(nbd.read_only(), "{name}: a read-only export does not say so");
    assert_eq!(disk::sum_export(&mut nbd), pair.expect.device, "{name}: the cached device");
    drop(nbd);
    server.stop();

    let stack = match pair.expect.plain {
        Some(_) => stack.with("--key-file", "key"),
        None => stack.flag("--no-crypt"),
    };
    let server = Server::start(pair.dir(), &stack);
    let plain = pair.dir().join("plain.img");
    server.copy_to(&plain);
    server.stop();
    let expected = pair.expect.plain.as_ref().unwrap_or(&pair.expect.device);
    assert_eq!(&disk::sum_file(&plain), expected, "{name}: the decrypted device");

    let mut different = BTreeMap::new();
    for (path, sum) in &pair.expect.files {
        let found = cat(pair.dir(), &["plain.img".into()], path);
        if found.as_ref() != Ok(sum) {
            different.insert(path, found);
        }
    }
    assert!(different.is_empty(), "{name}: {} files differ: {different:#?}", different.len());

    if let Some((path, sum)) = pair.expect.files.iter().next() {
        let stack: Vec<String> =
            stack.args().iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
        assert_eq!(
            cat(pair.dir(), &stack, path).as_ref(),
            Ok(sum),
            "{name}: {path} over the stack"
        );
    }
    assert_eq!(pair.sums(), before, "{name}: reading has changed the images");
}

/// The sum of `varve fs cat ... PATH`, or what it complained about.
fn cat(dir: &Path, stack: &[String], path: &str) -> Result<String, String> {
    let absolute = path.strip_prefix('.').expect("paths in expect.txt begin with ./");
    let out = dir.join("cat.out");
    // The content may be anything, so it goes to a file rather than through a string.
    let words = stack.iter().map(String::as_str);
    let finished = process::run(
        Command::new("sh")
            .current_dir(dir)
            .args(["-c", "out=$1; shift; exec \"$@\" >\"$out\"", "sh"])
            .arg(&out)
            .arg(varve::binary())
            .args(["fs", "cat"])
            .args(words)
            .arg(absolute),
    );
    match finished.code {
        Some(0) => Ok(disk::sum_file(&out)),
        _ => Err(finished.to_string()),
    }
}
