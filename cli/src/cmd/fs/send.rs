//! `varve fs send`: a snapshot as a stream for `btrfs receive`; `varve fs send-dump`: a stream for
//! people.

use super::source;
use crate::args::{FsSend, FsSendDump};
use crate::cmd::output;
use crate::config::{StackConfig, image_and_path};
use crate::failure::{Outcome, usage};
use anyhow::Context;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use varve_block::{Dyn, Rt};
use varve_fs::send::{Attr, Command, Reader, Received, SendOptions, Sent, send};
use varve_fs::{Fs, InodeId, OpenOptions};

/// Streams of large writes: one system call for several commands.
const BUFFER: usize = 256 << 10;

pub(super) async fn run(rt: &Rt, args: FsSend) -> anyhow::Result<Outcome> {
    let (image, path) = image_and_path(&args.at, &args.stack, false)?;
    let version = args.proto.unwrap_or(if args.compressed_data { 2 } else { 1 });
    if !(1..=2).contains(&version) {
        return usage(format!("--proto {version}: 1 or 2"));
    }
    if args.compressed_data && version < 2 {
        return usage("--compressed-data needs --proto 2");
    }
    if args.file.is_none() && io::stdout().is_terminal() {
        return usage("a stream is not for a terminal: give --file, or a pipe");
    }
    let config = StackConfig::new(&args.stack, image.as_ref())?;
    let name = config.backing.to_string();
    let devices = source::devices(rt, config, &args.devices).await?;
    // Paths begin at the top level, whatever the default subvolume is.
    let options =
        OpenOptions { subvolume: Some(5), ignore_log: args.nologreplay, ..OpenOptions::default() };
    let fs = Fs::open_devices(devices, options)
        .await
        .with_context(|| format!("no btrfs to read on {name}"))?;
    let id = subvolume(&fs, &path.unwrap_or_default()).await?;
    let mut options =
        SendOptions { version, compressed_data: args.compressed_data, ..SendOptions::default() };
    if let Some(parent) = &args.parent {
        options.parent = Some(subvolume(&fs, parent).await?);
    }
    for source in &args.clone_source {
        options.clone_sources.push(subvolume(&fs, source).await?);
    }
    let sent = match &args.file {
        Some(file) => to_file(&fs, id, &options, file).await?,
        None => {
            let mut out = BufWriter::with_capacity(BUFFER, io::stdout().lock());
            let sent = send(&fs, id, &options, &mut out).await?;
            out.flush()?;
            sent
        }
    };
    tracing::info!(inodes = sent.inodes, bytes = sent.bytes, "sent");
    Ok(Outcome::Fine)
}

/// Beside the file first: a stream that broke off does not look like one.
async fn to_file(
    fs: &Fs<Dyn>,
    id: u64,
    options: &SendOptions,
    path: &Path,
) -> anyhow::Result<Sent> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let file = File::create(&part).with_context(|| part.display().to_string())?;
    let done = async {
        let mut out = BufWriter::with_capacity(BUFFER, file);
        let sent = send(fs, id, options, &mut out).await?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_data()?;
        std::fs::rename(&part, path)?;
        anyhow::Ok(sent)
    };
    let done = done.await;
    if done.is_err() {
        // What went wrong is told; a file left behind would be a second trouble.
        let _ = std::fs::remove_file(&part);
    }
    done.with_context(|| format!("sending to {}", path.display()))
}

async fn subvolume(fs: &Fs<Dyn>, name: &str) -> anyhow::Result<u64> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let id = fs.resolve(name).await?;
    if id != InodeId::root_of(id.root) {
        return usage(format!("{name} is no subvolume"));
    }
    Ok(id.root)
}

pub(super) fn dump(args: &FsSendDump) -> anyhow::Result<Outcome> {
    let name = args.file.display();
    let input: Box<dyn Read> = match args.file.as_os_str() == "-" {
        true => Box::new(io::stdin().lock()),
        false => Box::new(File::open(&args.file).with_context(|| name.to_string())?),
    };
    let broken = || format!("{name}: not a whole stream");
    let mut reader = Reader::start(BufReader::new(input)).with_context(broken)?;
    let mut all = Vec::new();
    let mut out = output::stdout();
    let mut ended = false;
    while let Some(command) = reader.next_command().with_context(broken)? {
        ended = command.command == Command::End;
        match args.json {
            true => all.push(as_json(&command)),
            false => writeln!(out, "{}", line(&command))?,
        }
        if ended {
            break; // another stream may follow
        }
    }
    out.flush()?;
    drop(out);
    if args.json {
        output::json(&json!({ "version": reader.version(), "commands": all, "whole": ended }))?;
    }
    if !ended {
        tracing::warn!("{name}: the stream has no end command");
    }
    Ok(if ended { Outcome::Fine } else { Outcome::Problems })
}

fn line(command: &Received) -> String {
    let mut line = format!("{:?}", command.command);
    for (attr, bytes) in &command.attrs {
        line.push_str(&format!(" {attr:?}={}", shown(*attr, bytes)));
    }
    line
}

fn as_json(command: &Received) -> Value {
    let attrs =
        command.attrs.iter().map(|(attr, bytes)| json!([format!("{attr:?}"), shown(*attr, bytes)]));
    json!({ "command": format!("{:?}", command.command), "attributes": attrs.collect::<Vec<_>>() })
}

/// Numbers as numbers, names as names, data by its length.
fn shown(attr: Attr, bytes: &[u8]) -> String {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
    match attr {
        Attr::Uuid | Attr::CloneUuid => match uuid::Uuid::from_slice(bytes) {
            Ok(uuid) => uuid.to_string(),
            Err(_) => format!("({} bytes)", bytes.len()),
        },
        Attr::Path | Attr::PathTo | Attr::PathLink | Attr::ClonePath | Attr::XattrName => {
            format!("\"{}\"", bytes.escape_ascii())
        }
        Attr::Atime | Attr::Mtime | Attr::Ctime | Attr::Otime if bytes.len() == 12 => {
            let (seconds, nanos) = bytes.split_at(8);
            format!("{}.{:09}", number(seconds), number(nanos))
        }
        Attr::Mode if bytes.len() <= 8 => format!("0{:o}", number(bytes)),
        Attr::Data | Attr::XattrData | Attr::VeritySalt | Attr::VeritySig => {
            format!("({} bytes)", bytes.len())
        }
        _ if bytes.len() <= 8 => number(bytes).to_string(),
        _ => format!("({} bytes)", bytes.len()),
    }
}
