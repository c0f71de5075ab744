//! `varve fs chunk-recover`: the chunks that could be rebuilt from what lies on the devices.

use super::source;
use crate::args::FsLook;
use crate::cmd::output;
use crate::cmd::progress;
use crate::config::StackConfig;
use crate::failure::Outcome;
use anyhow::Context;
use serde_json::{Value, json};
use std::io::Write;
use varve_block::Rt;
use varve_fs::inspect::{Agreement, ChunkScan, ChunkSource, FoundChunk, scan_chunks};

pub(super) async fn run(rt: &Rt, args: FsLook) -> anyhow::Result<Outcome> {
    let config = StackConfig::new(&args.source.stack, args.image.as_ref())?;
    let name = config.backing.to_string();
    let devices = source::devices(rt, config, &args.source.devices).await?;
    let bar = progress::bytes("reading");
    let mut told = |done, total| progress::show(&bar, done, total);
    let scan = scan_chunks(devices, args.source.super_copy.into(), &mut told)
        .await
        .with_context(|| format!("no btrfs to scan on {name}"))?;
    bar.finish_and_clear();
    match args.json {
        true => output::json(&as_json(&scan))?,
        false => print(&scan)?,
    }
    Ok(if scan.agrees() { Outcome::Fine } else { Outcome::Problems })
}

fn source_word(source: ChunkSource) -> &'static str {
    match source {
        ChunkSource::Item => "chunk item",
        ChunkSource::Superblock => "superblock",
        ChunkSource::Extents => "block group and device extents",
    }
}

fn now_word(now: Agreement) -> &'static str {
    match now {
        Agreement::Same => "as in the chunk tree",
        Agreement::Differs => "NOT as in the chunk tree",
        Agreement::Absent => "NOT in the chunk tree",
        Agreement::Unknown => "the chunk tree cannot be read",
    }
}

fn now_json(now: Agreement) -> &'static str {
    match now {
        Agreement::Same => "same",
        Agreement::Differs => "differs",
        Agreement::Absent => "absent",
        Agreement::Unknown => "unknown",
    }
}

fn print(scan: &ChunkScan) -> anyhow::Result<()> {
    let mut out = output::stdout();
    for found in &scan.chunks {
        let FoundChunk { start, chunk, generation, .. } = found;
        let (length, flags) = (chunk.length, chunk.flags);
        writeln!(
            out,
            "chunk {start} length {length} {flags} generation {generation}: {}",
            now_word(found.now)
        )?;
        for stripe in &chunk.stripes {
            writeln!(out, "  devid {} byte {}", stripe.devid, stripe.offset)?;
        }
        let group = if found.block_group { "a block group" } else { "no block group" };
        write!(
            out,
            "  from a {}; {group}, {} of {} device extents, {} tree blocks",
            source_word(found.source),
            found.extents,
            chunk.stripes.len(),
            found.blocks,
        )?;
        if found.strays > 0 {
            write!(out, ", {} elsewhere", found.strays)?;
        }
        let order = if found.ordered { "" } else { "; the order of its stripes is not known" };
        writeln!(out, "{order}")?;
    }
    for start in &scan.not_found {
        writeln!(out, "chunk {start}: in the chunk tree, and nothing of it was found")?;
    }
    if let Some(why) = &scan.unreadable {
        writeln!(out, "the chunk tree: {why}")?;
    }
    for problem in &scan.problems {
        writeln!(out, "{problem}")?;
    }
    writeln!(out, "{} chunks from {} tree blocks", scan.chunks.len(), scan.blocks)?;
    out.flush()?;
    Ok(())
}

fn as_json(scan: &ChunkScan) -> Value {
    let chunk = |found: &FoundChunk| {
        let stripes = found.chunk.stripes.iter().map(|stripe| {
            json!({
                "devid": stripe.devid,
                "offset": stripe.offset,
                "uuid": stripe.dev_uuid.to_string(),
            })
        });
        json!({
            "logical": found.start.0,
            "length": found.chunk.length,
            "type": found.chunk.flags.to_string(),
            "stripes": stripes.collect::<Vec<_>>(),
            "ordered": found.ordered,
            "generation": found.generation,
            "source": source_word(found.source),
            "now": now_json(found.now),
            "block_group": found.block_group,
            "device_extents": found.extents,
            "tree_blocks": found.blocks,
            "tree_blocks_elsewhere": found.strays,
        })
    };
    json!({
        "chunks": scan.chunks.iter().map(chunk).collect::<Vec<_>>(),
        "not_found": scan.not_found.iter().map(|start| start.0).collect::<Vec<_>>(),
        "chunk_tree_unreadable": scan.unreadable,
        "blocks": scan.blocks,
        "problems": scan.problems,
    })
}
