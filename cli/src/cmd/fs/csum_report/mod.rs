//! `varve fs csum-report`: which files the bad checksums are in, in every subvolume and snapshot.

mod messages;

use super::source;
use crate::args::FsCsumReport;
use crate::cmd::{output, text};
use crate::failure::{Outcome, usage};
use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use messages::Seen;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Read, Write};
use varve_block::{Dyn, Rt};
use varve_fs::owners::{BadCopy, Damage, Place, Used};
use varve_fs::{Fs, InodeId, Logical};

/// Kernel messages that are read at most: a ring buffer is far smaller.
const MESSAGES_MAX: u64 = 256 << 20;

pub(super) async fn run(rt: &Rt, args: FsCsumReport) -> anyhow::Result<Outcome> {
    let seen = read_messages(&args)?;
    let fs = source::open_at(rt, args.image.as_ref(), &args.source).await?;
    let mut report = Report::default();
    for (seen, times) in seen {
        report.message(&fs, seen, times).await?;
    }
    if args.scan {
        let bar = bar(&fs);
        let scanned = fs.scan_data(&mut |done| bar.set_position(done)).await;
        bar.finish_and_clear();
        let scanned = scanned.context("the checksums cannot be read")?;
        report.scanned = Some(scanned.bytes);
        for bad in scanned.bad {
            report.bad.entry(bad.at).or_default().copies.push(bad);
        }
    }
    let bad: Vec<Logical> = report.bad.keys().copied().collect();
    let damage = fs.damage(&bad).await?;
    let found = !report.bad.is_empty() || !report.files.is_empty();
    match (args.json, args.paths) {
        (true, _) => output::json(&report.json(&damage))?,
        (_, true) => report.print_paths(&damage)?,
        _ => report.print(&damage)?,
    }
    Ok(if found || !damage.unread.is_empty() { Outcome::Problems } else { Outcome::Fine })
}

fn read_messages(args: &FsCsumReport) -> anyhow::Result<BTreeMap<Seen, usize>> {
    let mut bytes = Vec::new();
    match &args.messages {
        Some(path) => {
            let file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
            file.take(MESSAGES_MAX).read_to_end(&mut bytes)?;
        }
        None if args.scan => {}
        None if std::io::stdin().is_terminal() => {
            return usage("give kernel messages on standard input (dmesg | varve ...), or --scan");
        }
        None => {
            std::io::stdin().lock().take(MESSAGES_MAX).read_to_end(&mut bytes)?;
        }
    }
    Ok(messages::parse(&String::from_utf8_lossy(&bytes)))
}

/// Shown on a terminal only.
fn bar(fs: &Fs<Dyn>) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("reading [{wide_bar}] {bytes} {binary_bytes_per_sec}");
    let bar = ProgressBar::new(fs.superblock().bytes_used);
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// What is known of a bad sector before files are looked for.
#[derive(Default)]
struct Bad {
    messages: usize,
    copies: Vec<BadCopy>,
}

/// A file that a message names, of which no address can be told.
struct File {
    id: InodeId,
    offset: u64,
    messages: usize,
    paths: Vec<Vec<u8>>,
    why: String,
}

#[derive(Default)]
struct Report {
    bad: BTreeMap<Logical, Bad>,
    files: Vec<File>,
    scanned: Option<u64>,
}

impl Report {
    async fn message(&mut self, fs: &Fs<Dyn>, seen: Seen, times: usize) -> anyhow::Result<()> {
        let sector = u64::from(fs.superblock().sectorsize);
        let (root, inode, offset) = match seen {
            Seen::Logical(at) => {
                let at = Logical(at - at % sector);
                self.bad.entry(at).or_default().messages += times;
                return Ok(());
            }
            Seen::File { root, inode, offset } => (root, inode, offset),
        };
        let roots = match root {
            Some(root) => vec![root],
            None => fs.subvolumes().await?.into_iter().map(|one| one.id).collect(),
        };
        let mut anywhere = false;
        for root in roots {
            let id = InodeId { root, ino: inode };
            let why = match fs.logical_of(id, offset).await {
                Ok(Some(at)) => {
                    self.bad.entry(Logical(at.0 - at.0 % sector)).or_default().messages += times;
                    anywhere = true;
                    continue;
                }
                Ok(None) => "the file has no data there any more".to_owned(),
                Err(_) if seen_without_root(seen) => continue,
                Err(error) => varve_block::chain(&error),
            };
            anywhere = true;
            let paths = fs.paths_in_tree(id).await.unwrap_or_default();
            self.files.push(File { id, offset, messages: times, paths, why });
        }
        if !anywhere {
            let why = "no subvolume has such an inode any more".to_owned();
            let id = InodeId { root: 0, ino: inode };
            self.files.push(File { id, offset, messages: times, paths: Vec::new(), why });
        }
        Ok(())
    }

    fn print(&self, damage: &Damage) -> anyhow::Result<()> {
        let mut out = output::stdout();
        for place in &damage.places {
            let bad = self.bad.get(&place.at);
            write!(out, "logical {}: {}", place.at, place.kind.words())?;
            if !place.trees.is_empty() {
                let trees: Vec<_> = place.trees.iter().map(u64::to_string).collect();
                write!(out, " of tree {}", trees.join(", "))?;
            }
            for copy in &place.copies {
                write!(out, "; {copy}")?;
            }
            match bad.map_or(0, |bad| bad.messages) {
                0 => {}
                1 => write!(out, "; 1 message")?,
                n => write!(out, "; {n} messages")?,
            }
            writeln!(out)?;
            for copy in bad.iter().flat_map(|bad| &bad.copies) {
                let BadCopy { mirror, copies, physical, why, .. } = copy;
                writeln!(out, "  copy {mirror} of {copies}, {physical}: {why}")?;
            }
            for used in &place.used {
                writeln!(out, "  {}", line(used))?;
            }
            for holder in &place.holders {
                writeln!(out, "  {}: loses nothing, but holds the extent", line(holder))?;
            }
        }
        for file in &self.files {
            let File { id, offset, why, .. } = file;
            let paths: Vec<_> = file.paths.iter().map(|path| shown(path)).collect();
            writeln!(out, "{id} offset {offset} {}: {why}", paths.join(", "))?;
        }
        for lost in &damage.unread {
            writeln!(out, "cannot be read, so files may be missing here: {lost}")?;
        }
        let files = paths(damage);
        let (places, n) = (damage.places.len(), files.len());
        if let Some(bytes) = self.scanned {
            write!(out, "{bytes} bytes of data read; ")?;
        }
        writeln!(out, "{places} bad sectors, {n} paths concerned")?;
        out.flush()?;
        Ok(())
    }

    /// For scripts: as they are, one a line.
    fn print_paths(&self, damage: &Damage) -> anyhow::Result<()> {
        let mut out = output::stdout();
        for path in paths(damage) {
            out.write_all(b"/")?;
            out.write_all(path)?;
            out.write_all(b"\n")?;
        }
        out.flush()?;
        Ok(())
    }

    fn json(&self, damage: &Damage) -> Value {
        let place = |place: &Place| {
            let bad = self.bad.get(&place.at);
            let copies = bad.iter().flat_map(|bad| &bad.copies).map(|copy| {
                json!({
                    "mirror": copy.mirror,
                    "devid": copy.physical.devid,
                    "physical": copy.physical.byte,
                    "reason": copy.why,
                })
            });
            json!({
                "logical": place.at.0,
                "length": place.len,
                "kind": place.kind.words(),
                "trees": place.trees,
                "messages": bad.map_or(0, |bad| bad.messages),
                "copies": place.copies.iter()
                    .map(|copy| json!({ "devid": copy.devid, "physical": copy.byte }))
                    .collect::<Vec<_>>(),
                "bad_copies": copies.collect::<Vec<_>>(),
                "files": place.used.iter().map(used).collect::<Vec<_>>(),
                "holders": place.holders.iter().map(used).collect::<Vec<_>>(),
            })
        };
        let file = |file: &File| {
            json!({
                "root": file.id.root,
                "inode": file.id.ino,
                "offset": file.offset,
                "messages": file.messages,
                "paths": file.paths.iter().map(|path| text::json(path)).collect::<Vec<_>>(),
                "reason": file.why,
            })
        };
        json!({
            "scanned_bytes": self.scanned,
            "places": damage.places.iter().map(place).collect::<Vec<_>>(),
            "without_address": self.files.iter().map(file).collect::<Vec<_>>(),
            "paths": paths(damage).into_iter().map(text::json).collect::<Vec<_>>(),
            "unread": damage.unread,
        })
    }
}

fn seen_without_root(seen: Seen) -> bool {
    matches!(seen, Seen::File { root: None, .. })
}

/// Those that lose something, each once, in order.
fn paths(damage: &Damage) -> BTreeSet<&[u8]> {
    let losing = damage.places.iter().flat_map(|place| &place.used);
    losing.flat_map(|used| &used.paths).map(Vec::as_slice).collect()
}

fn line(used: &Used) -> String {
    let Used { id, range, paths } = used;
    let len = range.end - range.start;
    let paths: Vec<_> = paths.iter().map(|path| shown(path)).collect();
    let paths = match paths.is_empty() {
        true => "(no path: deleted while it was open, or not a file of users)".to_owned(),
        false => paths.join(", "),
    };
    format!("{paths}: bytes {}+{len} ({id})", range.start)
}

fn shown(path: &[u8]) -> String {
    format!("/{}", path.escape_ascii())
}

fn used(used: &Used) -> Value {
    json!({
        "root": used.id.root,
        "inode": used.id.ino,
        "offset": used.range.start,
        "length": used.range.end - used.range.start,
        "paths": used.paths.iter().map(|path| text::json(path)).collect::<Vec<_>>(),
    })
}
