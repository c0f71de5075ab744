//! `varve fs rescue`: the one repair that touches superblocks alone, and the way back.

use super::log::logged;
use super::target::{Fresh, name};
use crate::args::{FsRescue, FsTarget, FsUndo, FsZeroLog};
use crate::cmd::{output, text};
use crate::config::StackConfig;
use crate::failure::{Outcome, usage};
use crate::place::Place;
use crate::stack::{self, Stack};
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use varve_block::Rt;
use varve_fs::inspect::{SuperWrite, ZeroLog};

/// What an undo file says of itself.
const UNDO: &str = "varve undo 1";

pub(super) async fn run(rt: &Rt, verb: FsRescue) -> anyhow::Result<Outcome> {
    match verb {
        FsRescue::ZeroLog(args) => zero_log(rt, args).await,
        FsRescue::Undo(args) => undo(rt, args).await,
    }
}

/// The old and the new bytes of each place, in the order of the writes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UndoFile {
    format: String,
    what: String,
    fsid: String,
    writes: Vec<UndoWrite>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UndoWrite {
    byte: u64,
    before: String,
    after: String,
}

async fn writing(rt: &Rt, target: &FsTarget) -> anyhow::Result<Stack> {
    let config = StackConfig::new(&target.stack, target.image.as_ref())?;
    if config.read_only {
        return usage("--read-only and a repair contradict each other");
    }
    stack::open(rt, &config).await
}

async fn zero_log(rt: &Rt, args: FsZeroLog) -> anyhow::Result<Outcome> {
    let disk = name(&args.target)?;
    let undo = match &args.undo {
        Some(undo) => undo.clone(),
        None => beside(&disk)?,
    };
    let stack = writing(rt, &args.target).await?;
    let done = forget(&stack, &args, &disk, &undo).await;
    // Also after a failure: a stack that was opened is stopped.
    let stopped = stack.stop().await;
    let outcome = done?;
    stopped?;
    Ok(outcome)
}

async fn forget(
    stack: &Stack,
    args: &FsZeroLog,
    disk: &Place,
    undo: &Path,
) -> anyhow::Result<Outcome> {
    let Some(plan) = ZeroLog::plan(&stack.top).await? else {
        writeln!(output::stdout(), "there is no log on {}: nothing to do", disk)?;
        return Ok(Outcome::Fine);
    };
    let mut out = output::stdout();
    writeln!(
        out,
        "file system {} generation {}, log at {}",
        plan.fsid, plan.generation, plan.log_root
    )?;
    for skipped in &plan.skipped {
        writeln!(out, "left alone: superblock {skipped}")?;
    }
    // Whatever of the log can be read is told; a log that cannot be is why people come here.
    match logged(std::slice::from_ref(&stack.top)).await {
        Ok(lost) if lost.is_empty() => {
            writeln!(out, "lost: nothing that can be read from the log")?
        }
        Ok(lost) => {
            for entry in lost {
                writeln!(out, "lost: {}", entry.line())?;
            }
        }
        Err(error) => writeln!(out, "lost: unknown, the log cannot be read: {error:#}")?,
    }
    out.flush()?;
    drop(out);
    if !args.yes && !confirmed()? {
        bail!("nothing was written");
    }
    keep(undo, &plan)?;
    plan.run(&stack.top).await.with_context(|| {
        format!("the log may be half forgotten; the old bytes are in {}", undo.display())
    })?;
    let mut out = output::stdout();
    writeln!(
        out,
        "the log is forgotten; `varve fs rescue undo {}` brings it back",
        undo.display()
    )?;
    out.flush()?;
    Ok(Outcome::Fine)
}

/// `IMAGE.undo`: beside a file, and for a device, whose folder is no place for files, in the current one.
fn beside(disk: &Place) -> anyhow::Result<PathBuf> {
    let Place::Path(disk) = disk else {
        return usage(format!(
            "{disk} is no file that an undo file could lie beside: name --undo FILE"
        ));
    };
    let mut name = disk.file_name().unwrap_or_default().to_owned();
    name.push(".undo");
    Ok(match disk.is_file() {
        true => disk.with_file_name(name),
        false => PathBuf::from(name),
    })
}

fn confirmed() -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        return usage("what is listed above will be lost: say --yes, or answer on a terminal");
    }
    eprint!("Forget the log? What is listed above is lost. [y/N] ");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

/// The undo file is durable before the first byte changes.
fn keep(path: &Path, plan: &ZeroLog) -> anyhow::Result<()> {
    let file = UndoFile {
        format: UNDO.into(),
        what: "zero-log".into(),
        fsid: plan.fsid.to_string(),
        writes: plan
            .writes
            .iter()
            .map(|w| UndoWrite {
                byte: w.at,
                before: text::hex(&w.before),
                after: text::hex(&w.after),
            })
            .collect(),
    };
    let mut fresh = Fresh::create(path, false).map_err(|error| {
        anyhow::anyhow!("the undo file must be new, name another with --undo: {error:#}")
    })?;
    serde_json::to_writer_pretty(fresh.file(), &file)
        .with_context(|| format!("{} cannot be written", path.display()))?;
    fresh.finish()
}

async fn undo(rt: &Rt, args: FsUndo) -> anyhow::Result<Outcome> {
    let shown = args.file.display();
    let bytes = std::fs::read(&args.file).with_context(|| format!("{shown} cannot be read"))?;
    let file: UndoFile =
        serde_json::from_slice(&bytes).with_context(|| format!("{shown} is no undo file"))?;
    if file.format != UNDO {
        bail!("{shown} is no undo file of a version known here: {:?}", file.format);
    }
    let mut writes = Vec::new();
    for write in &file.writes {
        let (Some(before), Some(after)) = (unhex(&write.before), unhex(&write.after)) else {
            bail!("{shown} is damaged: the bytes at {} are no superblock", write.byte);
        };
        let sane = [&before, &after].iter().all(|bytes| bytes.len() == 4096);
        if !sane || !varve_fs::format::superblock::SUPER_OFFSETS.contains(&write.byte) {
            bail!("{shown} is damaged: the bytes at {} are no superblock", write.byte);
        }
        writes.push(SuperWrite { at: write.byte, before, after });
    }
    let stack = writing(rt, &args.target).await?;
    let done = ZeroLog::undo(&stack.top, &writes).await;
    let stopped = stack.stop().await;
    done?;
    stopped?;
    let mut out = output::stdout();
    writeln!(out, "{} is as it was", name(&args.target)?)?;
    out.flush()?;
    Ok(Outcome::Fine)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}
