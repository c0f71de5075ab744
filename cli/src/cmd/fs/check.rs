//! `varve fs check`: what is wrong with a file system. Reads, and never writes.

use crate::args::FsCheck;
use crate::cmd::output;
use crate::config::StackConfig;
use crate::failure::{Outcome, usage};
use crate::stack;
use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use varve_block::{Dyn, Rt};
use varve_fs::check::{CheckOptions, Checked, DataCopy, FileAt, Finding, Severity, check};

pub(crate) async fn run(rt: &Rt, args: FsCheck) -> anyhow::Result<Outcome> {
    let (devices, name) = open(rt, &args).await?;
    let bar = bar();
    let tell = |phase: &'static str, done: u64, expected: u64| {
        bar.set_message(if phase == "data" { "data (MiB)" } else { phase });
        bar.set_length(expected.max(done));
        bar.set_position(done);
    };
    let options = CheckOptions {
        all_copies: args.all_copies,
        data: args.data,
        rt: Some(rt),
        progress: Some(&tell),
    };
    let checked = check(devices, &options).await;
    bar.finish_and_clear();
    let checked = checked.with_context(|| format!("{name}: cannot be opened for a check"))?;
    if args.json {
        output::json(&document(&name, &checked))?;
    } else {
        print(&name, &checked)?;
    }
    Ok(if checked.is_clean() { Outcome::Fine } else { Outcome::Problems })
}

/// The devices of the file system, opened for reading, and what to call them.
async fn open(rt: &Rt, args: &FsCheck) -> anyhow::Result<(Vec<Dyn>, String)> {
    let mut images = args.images.iter();
    let Some(first) = images.next() else {
        let config = StackConfig::new(&args.stack, None)?.reading();
        let name = config.backing.to_string();
        return Ok((vec![stack::open(rt, &config).await?.top], name));
    };
    let config = StackConfig::new(&args.stack, Some(first))?.reading();
    let mut devices = vec![stack::open(rt, &config).await?.top];
    for image in images {
        if args.stack.cache.is_some() {
            return usage("a stack has one disk: give one image with --cache");
        }
        devices.push(Dyn::new(stack::open_device(rt, image, true).await?));
    }
    Ok((devices, first.to_string()))
}

/// Shown on a terminal only.
fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg:12} [{wide_bar}] {pos}/{len}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}

fn severity(finding: &Finding) -> &'static str {
    match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

fn file(at: &FileAt) -> Value {
    json!({ "root": at.root, "inode": at.inode, "offset": at.offset })
}

fn copy(copy: DataCopy) -> Value {
    json!({
        "mirror": copy.mirror,
        "devid": copy.place.map(|place| place.devid),
        "byte": copy.place.map(|place| place.byte),
    })
}

fn document(name: &str, checked: &Checked) -> Value {
    let findings: Vec<Value> = checked
        .findings
        .iter()
        .map(|finding| {
            let place = &finding.place;
            json!({
                "code": finding.code.text(),
                "severity": severity(finding),
                "rule": finding.rule,
                "root": place.root,
                "inode": place.inode,
                "offset": place.offset,
                "logical": place.logical.map(|at| at.0),
                "message": finding.message,
                "paths": finding.paths,
                "files": finding.files.iter().map(file).collect::<Vec<_>>(),
                "copy": finding.copy.map(copy),
            })
        })
        .collect();
    json!({
        "name": name,
        "fsid": checked.fsid.to_string(),
        "clean": checked.is_clean(),
        "errors": checked.counts.errors,
        "warnings": checked.counts.warnings,
        "bytes_used": checked.bytes_used,
        "tree_blocks": checked.tree_blocks,
        "inodes": checked.inodes,
        "data": checked.data.map(|data| json!({ "verified": data.verified, "bad": data.bad })),
        "findings": findings,
    })
}

fn print(name: &str, checked: &Checked) -> anyhow::Result<()> {
    let mut out = output::stdout();
    for finding in &checked.findings {
        write!(out, "{}: {}: {}", severity(finding), finding.code, finding.message)?;
        for path in &finding.paths {
            write!(out, " [{path}]")?;
        }
        writeln!(out)?;
    }
    if let Some(data) = checked.data {
        let (good, bad) = (data.verified, data.bad);
        writeln!(out, "{name}: {good} bytes of data compared with checksums, {bad} bytes bad")?;
    }
    let counts = checked.counts;
    let more = (counts.errors + counts.warnings).saturating_sub(checked.findings.len() as u64);
    if more > 0 {
        writeln!(out, "... and {more} more")?;
    }
    writeln!(
        out,
        "{name}: file system {}, {} bytes used, {} tree blocks, {} inodes: {} errors, {} warnings",
        checked.fsid,
        checked.bytes_used,
        checked.tree_blocks,
        checked.inodes,
        counts.errors,
        counts.warnings
    )?;
    out.flush()?;
    Ok(())
}
