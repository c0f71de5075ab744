//! `varve fs export`: files out of a file system, whole or damaged, into a folder.

use super::source;
use crate::args::FsExport;
use crate::cmd::{output, progress};
use crate::config::{StackConfig, image_and_path};
use crate::failure::{Outcome, usage};
use anyhow::Context;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use indicatif::{ProgressBar, ProgressStyle};
use regex::bytes::{Regex, RegexSet};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use varve_block::{Dyn, Rt};
use varve_fs::export::{
    Filter, Options, Problem, ProblemKind, Report, RescueOptions, Rescued, export, open_rescue,
};
use varve_fs::{Fs, InodeId, Logical};

pub(super) async fn run(rt: &Rt, mut args: FsExport) -> anyhow::Result<Outcome> {
    let Some(dest) = args.at.pop().map(PathBuf::from) else {
        return usage("where to? give a folder to write to");
    };
    let (image, path) = image_and_path(&args.at, &args.stack, true)?;
    let filter = filter(&args)?;
    let config = StackConfig::new(&args.stack, image.as_ref())?;
    let name = config.backing.to_string();
    let devices = source::devices(rt, config, &args.devices).await?;
    let (rescued, start) = open(devices, &args, path.as_deref())
        .await
        .with_context(|| format!("no btrfs to export on {name}"))?;
    let Rescued { fs, notes } = rescued;
    for note in &notes {
        tracing::error!(dev = %name, "{note}");
    }
    let options = Options {
        // All that a mount shows, unless it was said otherwise.
        snapshots: !args.no_snapshots,
        overwrite: args.overwrite,
        dry_run: args.dry_run,
        no_older_roots: args.no_older_roots,
        filter,
    };
    let bar = bar(&fs, args.json);
    let mut show = |report: &Report| {
        bar.set_position(report.bytes);
        bar.set_message(format!("{} files, {} problems", report.files, report.problems.len()));
    };
    let done = export(rt, &fs, start, &dest, &options, &mut show).await;
    bar.finish_and_clear();
    let report = done.with_context(|| format!("exporting to {}", dest.display()))?;
    match args.json {
        true => output::json(&as_json(&report, &notes))?,
        false => print(&report, args.dry_run)?,
    }
    // Another superblock or root than the last commit's: complete, but perhaps old.
    Ok(if report.is_whole() && notes.is_empty() { Outcome::Fine } else { Outcome::Problems })
}

/// The file system, and the folder in it where the export begins.
async fn open(
    devices: Vec<Dyn>,
    args: &FsExport,
    path: Option<&str>,
) -> anyhow::Result<(Rescued<Dyn>, InodeId)> {
    let mut options = RescueOptions {
        super_copy: args.super_copy,
        root_block: args.root_block.map(Logical),
        subvolume: args.subvolume.as_ref().and_then(|id| id.parse().ok()),
        ignore_data_csums: args.ignore_checksums,
        ignore_log: args.nologreplay,
        scan_chunks: args.chunk_recover,
    };
    let bar = progress::bytes("reading for chunks");
    let mut told = |done, total| progress::show(&bar, done, total);
    if let Some(subvolume) = args.subvolume.as_ref().filter(|_| options.subvolume.is_none()) {
        // By path, from the top level.
        options.subvolume = Some(5);
        let all = open_rescue(devices.clone(), &options, &mut told).await?;
        let id = all.fs.resolve(subvolume).await?;
        if id != InodeId::root_of(id.root) {
            return usage(format!("{subvolume} is no subvolume"));
        }
        options.subvolume = Some(id.root);
    }
    let rescued = open_rescue(devices, &options, &mut told).await?;
    bar.finish_and_clear();
    let start = match path {
        None => rescued.fs.top(),
        Some(path) => rescued.fs.resolve(path).await?,
    };
    Ok((rescued, start))
}

fn filter(args: &FsExport) -> anyhow::Result<Option<Filter>> {
    if args.include.is_empty() && args.exclude.is_empty() && args.path_regex.is_empty() {
        return Ok(None);
    }
    let (include, exclude) = (globs(&args.include)?, globs(&args.exclude)?);
    let regex = regexes(&args.path_regex)?;
    let any = args.include.is_empty();
    Ok(Some(Box::new(move |path| {
        let matches = regex.is_empty() || regex.is_match(&[b"/", path].concat());
        let path = OsStr::from_bytes(path);
        matches && (any || include.is_match(path)) && !exclude.is_match(path)
    })))
}

/// Paths are any bytes, so the expressions are over bytes, too.
fn regexes(patterns: &[String]) -> anyhow::Result<RegexSet> {
    for pattern in patterns {
        if let Err(error) = Regex::new(pattern) {
            let text = error.to_string();
            // Of several lines, which draw the place, the last says what is wrong.
            let why = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
            return usage(format!("{pattern}: {why}"));
        }
    }
    Ok(RegexSet::new(patterns)?)
}

fn globs(patterns: &[String]) -> anyhow::Result<GlobSet> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        // Paths are shown with and without their first slash; both ways match.
        let glob = GlobBuilder::new(pattern.trim_start_matches('/')).build();
        match glob {
            Ok(glob) => set.add(glob),
            Err(error) => return usage(format!("{pattern}: {}", error.kind())),
        };
    }
    Ok(set.build()?)
}

/// Bytes of content against what the file system says is used: near enough for a bar.
fn bar(fs: &Fs<Dyn>, quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(fs.superblock().bytes_used);
    let style = ProgressStyle::with_template("{bar:30} {bytes} {binary_bytes_per_sec} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

fn print(report: &Report, dry_run: bool) -> anyhow::Result<()> {
    let mut out = output::stdout();
    for problem in &report.problems {
        write!(out, "{:<12}{}", problem.kind.word(), problem.path.escape_ascii())?;
        if problem.ranges.is_empty() {
            writeln!(out, ": {}", problem.why)?;
            continue;
        }
        for (n, range) in problem.ranges.iter().enumerate() {
            let before = if n == 0 { ": " } else { "; " };
            write!(out, "{before}bytes {}+{}: {}", range.at, range.len, range.why)?;
        }
        writeln!(out)?;
    }
    for gap in &report.lost_blocks {
        let (tree, block) = (gap.tree, gap.block);
        write!(out, "lost block  tree {tree} block {block} keys {} to {}", gap.from, gap.to)?;
        if !gap.older.is_empty() {
            let how_much = if gap.filled { "" } else { "in part " };
            let from: Vec<String> = gap.older.iter().map(u64::to_string).collect();
            write!(out, ": {how_much}from generation {}", from.join(", "))?;
        }
        writeln!(out)?;
    }
    for what in &report.suspicious {
        writeln!(out, "suspicious  {what}")?;
    }
    for path in &report.snapshots_left_out {
        writeln!(out, "snapshot    {}: left out, as was asked", path.escape_ascii())?;
    }
    let verb = if dry_run { "would export" } else { "exported" };
    write!(
        out,
        "{verb} {} files, {} bytes, {} folders, {} symbolic links, {} hard links, {} special files",
        report.files,
        report.bytes,
        report.directories,
        report.symlinks,
        report.links,
        report.special
    )?;
    for (n, what) in [
        (report.already_there, "already there"),
        (report.left_out, "left out by filters"),
        (report.reattached, "put back where their folder was lost"),
        (report.attributes_not_set, "attributes not taken by the destination"),
        (report.damaged() as u64, "damaged"),
        (report.count(ProblemKind::Unverified) as u64, "unverified"),
        (report.count(ProblemKind::Older) as u64, "from older roots"),
        (report.count(ProblemKind::Bare) as u64, "without mode, owner and times"),
        (report.removed_since, "of older roots left out, as they were removed since"),
        (report.count(ProblemKind::Directory) as u64, "folders incomplete"),
        (report.count(ProblemKind::NotWritten) as u64, "not written"),
        (report.lost_blocks.len() as u64, "tree blocks lost"),
    ] {
        if n > 0 {
            write!(out, ", {n} {what}")?;
        }
    }
    writeln!(out)?;
    out.flush()?;
    Ok(())
}

fn as_json(report: &Report, notes: &[String]) -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let problem = |problem: &Problem| {
        let ranges: Vec<Value> = problem
            .ranges
            .iter()
            .map(|range| json!({ "offset": range.at, "length": range.len, "reason": range.why }))
            .collect();
        json!({
            "path": text(&problem.path),
            "kind": problem.kind.word(),
            "reason": problem.why,
            "ranges": ranges,
        })
    };
    let gaps = report.lost_blocks.iter().map(|gap| {
        json!({
            "tree": gap.tree,
            "block": gap.block.0,
            "from": gap.from.to_string(),
            "to": gap.to.to_string(),
            "reason": gap.why,
            "older": gap.older,
            "filled": gap.filled,
        })
    });
    json!({
        "files": report.files,
        "bytes": report.bytes,
        "directories": report.directories,
        "symlinks": report.symlinks,
        "hard_links": report.links,
        "special": report.special,
        "already_there": report.already_there,
        "left_out": report.left_out,
        "reattached": report.reattached,
        "removed_since": report.removed_since,
        "attributes_not_set": report.attributes_not_set,
        "snapshots_left_out":
            report.snapshots_left_out.iter().map(|path| text(path)).collect::<Vec<_>>(),
        "problems": report.problems.iter().map(problem).collect::<Vec<_>>(),
        "lost_blocks": gaps.collect::<Vec<_>>(),
        "suspicious": report.suspicious,
        "notes": notes,
    })
}
