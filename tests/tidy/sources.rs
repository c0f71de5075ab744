//! The shape of the source tree.

use std::collections::BTreeSet;
use std::process::Command;

use varve_tests::{process, repository};

use crate::{below, none, texts};

/// Past this a file needs a line among its first ones that says why it is one file.
const LONG: usize = 700;
/// Past this no reason helps.
const TOO_LONG: usize = 1500;
/// How that line begins, after the comment's slashes.
const REASON: &str = "Long because ";
const REASON_WITHIN: usize = 40;

#[test]
fn files_are_short_or_say_why_they_are_not() {
    let mut complaints = Vec::new();
    for file in texts().iter().filter(|file| file.is("rs")) {
        let lines = file.text.lines().count();
        let reason = file.text.lines().take(REASON_WITHIN).any(|line| line.contains(REASON));
        if lines > TOO_LONG {
            complaints.push(format!("{}: {lines} lines, over {TOO_LONG}", file.name()));
        } else if lines > LONG && !reason {
            let what = format!("over {LONG} without a \"{REASON}...\" at its top");
            complaints.push(format!("{}: {lines} lines, {what}", file.name()));
        }
    }
    none(&complaints);
}

/// Roots of crates, test binaries and benches: nobody declares them as modules.
const ROOTS: &[&str] = &["main.rs", "lib.rs", "mod.rs", "build.rs"];

#[test]
fn every_source_file_belongs_to_a_module() {
    let texts = texts();
    let sources: Vec<_> = texts.iter().filter(|file| file.is("rs")).collect();
    let mut declared = BTreeSet::new();
    for file in &sources {
        let krate = file.path.components().next();
        for line in file.text.lines().map(str::trim) {
            if let Some((_, named)) = line.split_once("path = \"") {
                let name = named.split('"').next().unwrap_or_default();
                let name = name.rsplit('/').next().unwrap_or_default().trim_end_matches(".rs");
                declared.insert((krate, name.to_owned()));
            }
            let Some((before, after)) = line.split_once("mod ") else { continue };
            let item = before.is_empty() || before.starts_with("pub");
            if let (true, Some(name)) = (item, after.strip_suffix(';')) {
                declared.insert((krate, name.to_owned()));
            }
        }
    }
    let mut complaints = Vec::new();
    for file in &sources {
        let name = file.path.file_name().expect("a file").to_string_lossy();
        let standalone = ["benches", "fuzz", "examples", "bin", "micro", "macro"]
            .iter()
            .any(|folder| below(&file.path, folder));
        // A crate's own `tests/x.rs` is a binary; the folders of the package `tests` are not that.
        let parts: Vec<_> = file.path.components().collect();
        let integration = parts.len() == 3 && parts[1].as_os_str() == "tests";
        if ROOTS.contains(&&*name) || standalone || integration {
            continue;
        }
        let stem = name.trim_end_matches(".rs").to_owned();
        if !declared.contains(&(file.path.components().next(), stem)) {
            complaints.push(format!("{}: no `mod` declares it", file.name()));
        }
    }
    none(&complaints);
}

#[test]
fn every_crate_takes_the_workspaces_lints() {
    let mut complaints = Vec::new();
    for file in texts() {
        let manifest = file.path.file_name().is_some_and(|name| name == "Cargo.toml");
        let package = file.text.contains("[package]");
        let own_workspace = below(&file.path, "fuzz");
        if manifest && package && !own_workspace && !file.text.contains("[lints]\nworkspace = true")
        {
            complaints.push(format!("{}: no `[lints] workspace = true`", file.name()));
        }
    }
    none(&complaints);
}

/// Where `unsafe` may live; STYLE says who keeps each promise until when.
const UNSAFE: &[&str] = &[
    "block/src/buf.rs",
    "block/src/rt/uring",
    "block/src/dev/sys.rs",
    "nbd-server/src/ublk",
    "crypt/src/xts",
    "crypt/src/key.rs",
];

#[test]
fn unsafe_code_lives_only_where_it_is_announced() {
    let mut complaints = Vec::new();
    for file in texts().iter().filter(|file| file.is("rs")) {
        let name = file.name();
        if UNSAFE.iter().any(|place| name.starts_with(place)) {
            continue;
        }
        for (n, line) in file.text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|word| code.contains(word)) {
                complaints.push(format!("{name}:{}: {}", n + 1, line.trim()));
            }
        }
    }
    // This file names what it looks for.
    complaints.retain(|line| !line.starts_with("tests/tidy/"));
    for root in ["cache/src/lib.rs", "fs/src/lib.rs"] {
        let text = std::fs::read_to_string(repository().join(root)).expect("a crate's root");
        if !text.contains("#![forbid(unsafe_code)]") {
            complaints.push(format!("{root}: no `#![forbid(unsafe_code)]`"));
        }
    }
    none(&complaints);
}

#[test]
fn shell_scripts_parse() {
    let mut complaints = Vec::new();
    for file in texts() {
        let script = file.is("sh") || file.text.starts_with("#!/usr/bin/env bash");
        if script {
            let path = repository().join(&file.path);
            let out = process::run(Command::new("bash").arg("-n").arg(path));
            if out.code != Some(0) {
                complaints.push(out.stderr);
            }
        }
    }
    none(&complaints);
}
