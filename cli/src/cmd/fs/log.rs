//! `varve fs log list`: what was fsynced since the last commit.

use super::target::reading_all;
use crate::args::{FsLog, FsLogList};
use crate::cmd::{output, text};
use crate::failure::Outcome;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;
use varve_block::{Dyn, Rt};
use varve_fs::inspect::{Inspector, LogEntry};
use varve_fs::{Fs, InodeId, OpenOptions};

/// Folders that a path is followed up through.
const DEPTH_MAX: usize = 4096;

pub(super) async fn run(rt: &Rt, verb: FsLog) -> anyhow::Result<Outcome> {
    let FsLog::List(FsLogList { target, devices, json }) = verb;
    let devices = reading_all(rt, &target, &devices).await?;
    let entries = logged(&devices).await?;
    if json {
        let list: Vec<_> = entries.iter().map(Logged::json).collect();
        output::json(&list)?;
        return Ok(Outcome::Fine);
    }
    let mut out = output::stdout();
    for entry in &entries {
        writeln!(out, "{}", entry.line())?;
    }
    if entries.is_empty() {
        writeln!(out, "the log is empty")?;
    }
    out.flush()?;
    Ok(Outcome::Fine)
}

/// An inode of a log, with the best paths that the log and the last commit give together.
pub(super) struct Logged {
    subvolume: u64,
    entry: LogEntry,
    paths: Vec<Vec<u8>>,
}

impl Logged {
    pub(super) fn line(&self) -> String {
        let size =
            self.entry.inode.map_or(String::from("size unknown"), |i| format!("{} bytes", i.size));
        let paths: Vec<_> = self.paths.iter().map(|path| path.escape_ascii().to_string()).collect();
        let paths = if paths.is_empty() { "(no name in the log)".into() } else { paths.join(", ") };
        format!("subvolume {} inode {} {size} {paths}", self.subvolume, self.entry.ino)
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "subvolume": self.subvolume,
            "inode": self.entry.ino,
            "size": self.entry.inode.map(|inode| inode.size),
            "extents": self.entry.extents,
            "data": self.entry.has_data(),
            "paths": self.paths.iter().map(|p| text_of(p)).collect::<Vec<_>>(),
        })
    }
}

fn text_of(path: &[u8]) -> serde_json::Value {
    match std::str::from_utf8(path) {
        Ok(path) => path.into(),
        Err(_) => json!({ "hex": text::hex(path) }),
    }
}

/// The inodes of all logs that carry something. Trees other than the log may be broken: then paths
/// begin where they can be read from.
pub(super) async fn logged(devices: &[Dyn]) -> anyhow::Result<Vec<Logged>> {
    let inspector = Inspector::open_devices(devices.to_vec(), 0).await?;
    let trees = inspector.log().await;
    let fs = match trees.is_empty() {
        true => None,
        false => {
            // The log may be what is broken.
            let options = OpenOptions { ignore_log: true, ..OpenOptions::default() };
            Fs::open_devices(devices.to_vec(), options).await.ok()
        }
    };
    let mut all = Vec::new();
    for tree in trees {
        let names: BTreeMap<u64, (u64, Vec<u8>)> = tree
            .inodes
            .iter()
            .filter_map(|entry| Some((entry.ino, entry.names.first()?.clone())))
            .collect();
        for entry in tree.inodes {
            if !entry.has_data() {
                continue;
            }
            let mut paths = Vec::new();
            for (parent, name) in &entry.names {
                let folder = folder(fs.as_ref(), tree.subvolume, *parent, &names).await;
                paths.push([folder, name.clone()].join(&b'/'));
            }
            if paths.is_empty()
                && let Some(fs) = &fs
                && let Ok(old) = fs.names(InodeId { root: tree.subvolume, ino: entry.ino }).await
            {
                for (parent, _, name) in old {
                    let folder = folder(Some(fs), tree.subvolume, parent, &names).await;
                    paths.push([folder, name].join(&b'/'));
                }
            }
            all.push(Logged { subvolume: tree.subvolume, entry, paths });
        }
    }
    Ok(all)
}

/// The path of a directory inside its tree; empty for the top.
async fn folder(
    fs: Option<&Fs<Dyn>>,
    root: u64,
    ino: u64,
    logged: &BTreeMap<u64, (u64, Vec<u8>)>,
) -> Vec<u8> {
    let mut parts: Vec<Vec<u8>> = Vec::new();
    let mut at = ino;
    for _ in 0..DEPTH_MAX {
        if at == varve_fs::format::key::objectid::FIRST_FREE {
            parts.push(Vec::new());
            parts.reverse();
            return parts.join(&b'/');
        }
        let up = match (logged.get(&at), fs) {
            (Some((parent, name)), _) => Some((*parent, name.clone())),
            (None, Some(fs)) => {
                let names = fs.names(InodeId { root, ino: at }).await.unwrap_or_default();
                names.into_iter().next().map(|(parent, _, name)| (parent, name))
            }
            (None, None) => None,
        };
        let Some((parent, name)) = up else { break };
        parts.push(name);
        at = parent;
    }
    parts.push(format!("inode {at}").into_bytes());
    parts.reverse();
    parts.join(&b'/')
}
