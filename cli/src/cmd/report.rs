//! What `varve cache show` and `check` print, for people and as JSON.

use crate::cmd::text;
use crate::size::Size;
use serde_json::{Value, json};
use std::io::{self, Write};
use varve_cache::check::Report;
use varve_cache::format::{BackingSuper, CacheSuper};
use varve_cache::show::{Content, Show, label_text};

fn sectors(n: u64) -> Size {
    Size(n.saturating_mul(512))
}

fn lower(what: impl std::fmt::Debug) -> String {
    format!("{what:?}").to_lowercase()
}

pub(crate) fn show_text(out: &mut impl Write, show: &Show) -> io::Result<()> {
    if let Some((dev, sb)) = &show.cache {
        writeln!(out, "cache device   {dev}")?;
        writeln!(out, "  set          {}", sb.set_uuid)?;
        writeln!(out, "  uuid         {}", sb.uuid)?;
        writeln!(out, "  version      {}, seq {}", sb.version, sb.seq)?;
        writeln!(
            out,
            "  buckets      {} of {}, blocks of {}, the first is {}",
            sb.layout.nbuckets,
            sectors(u64::from(sb.layout.bucket_size)),
            sectors(u64::from(sb.layout.block_size)),
            sb.layout.first_bucket,
        )?;
        writeln!(out, "  replacement  {}", lower(sb.replacement()))?;
        if !sb.sync() {
            writeln!(out, "  content      none: formatted, not started yet")?;
        }
        writeln!(out, "  last start   {}", text::time(i64::from(sb.last_mount)))?;
    }
    if let Some((dev, sb)) = &show.backing {
        writeln!(out, "disk           {dev}")?;
        writeln!(out, "  set          {}", sb.set_uuid)?;
        writeln!(out, "  uuid         {}", sb.uuid)?;
        writeln!(out, "  label        {}", label_text(&sb.label))?;
        writeln!(out, "  version      {}", sb.version)?;
        writeln!(out, "  data         from sector {}", sb.data_offset)?;
        writeln!(out, "  mode         {}", lower(sb.mode()))?;
        writeln!(out, "  state        {}", lower(sb.state()))?;
    }
    match &show.content {
        Some(Ok(content)) => content_text(out, content),
        Some(Err(error)) => writeln!(out, "content        damaged: {}", varve_block::chain(error)),
        None => Ok(()),
    }
}

fn content_text(out: &mut impl Write, c: &Content) -> io::Result<()> {
    writeln!(
        out,
        "journal        {} entries from {} to {}, {} keys, {} buckets",
        c.journal.entries, c.journal.last_seq, c.journal.seq, c.journal.keys, c.journal.buckets
    )?;
    writeln!(
        out,
        "index          {} levels, {} nodes, {} keys",
        c.tree.depth, c.tree.nodes, c.tree.keys
    )?;
    writeln!(
        out,
        "buckets        {} metadata, {} dirty, {} clean, {} unused",
        c.buckets.metadata, c.buckets.dirty, c.buckets.clean, c.buckets.unused
    )?;
    for v in &c.volumes {
        let uuid = v.uuid.map_or_else(|| "without a slot".to_owned(), |u| u.to_string());
        writeln!(
            out,
            "volume {:<7} {uuid}: {} cached in {} extents, {} dirty in {}",
            v.inode,
            sectors(v.cached_sectors),
            v.cached_extents,
            sectors(v.dirty_sectors),
            v.dirty_extents,
        )?;
        if v.lost_sectors > 0 {
            writeln!(out, "               LOST: {} of dirty data", sectors(v.lost_sectors))?;
        }
    }
    Ok(())
}

pub(crate) fn show_json(show: &Show) -> Value {
    let content = match &show.content {
        None => Value::Null,
        Some(Ok(content)) => content_json(content),
        Some(Err(error)) => json!({ "damaged": varve_block::chain(error) }),
    };
    json!({
        "cache": show.cache.as_ref().map(|(dev, sb)| cache_json(dev.as_str(), sb)),
        "backing": show.backing.as_ref().map(|(dev, sb)| backing_json(dev.as_str(), sb)),
        "content": content,
    })
}

fn cache_json(dev: &str, sb: &CacheSuper) -> Value {
    json!({
        "device": dev,
        "set_uuid": sb.set_uuid.to_string(),
        "uuid": sb.uuid.to_string(),
        "label": label_text(&sb.label),
        "version": sb.version,
        "seq": sb.seq,
        "buckets": sb.layout.nbuckets,
        "bucket_sectors": sb.layout.bucket_size,
        "block_sectors": sb.layout.block_size,
        "first_bucket": sb.layout.first_bucket,
        "journal_buckets": sb.journal_buckets,
        "replacement": lower(sb.replacement()),
        "discard": sb.discard(),
        "started": sb.sync(),
        "last_start": sb.last_mount,
    })
}

fn backing_json(dev: &str, sb: &BackingSuper) -> Value {
    json!({
        "device": dev,
        "set_uuid": sb.set_uuid.to_string(),
        "uuid": sb.uuid.to_string(),
        "label": label_text(&sb.label),
        "version": sb.version,
        "data_offset_sectors": sb.data_offset,
        "block_sectors": sb.block_size,
        "mode": lower(sb.mode()),
        "state": lower(sb.state()),
    })
}

fn content_json(c: &Content) -> Value {
    let volumes: Vec<Value> = c
        .volumes
        .iter()
        .map(|v| {
            json!({
                "inode": v.inode,
                "uuid": v.uuid.map(|u| u.to_string()),
                "label": v.label,
                "flash_only": v.flash_only,
                "cached_sectors": v.cached_sectors,
                "cached_extents": v.cached_extents,
                "dirty_sectors": v.dirty_sectors,
                "dirty_extents": v.dirty_extents,
                "lost_sectors": v.lost_sectors,
            })
        })
        .collect();
    json!({
        "journal": {
            "buckets": c.journal.buckets,
            "seq": c.journal.seq,
            "last_seq": c.journal.last_seq,
            "entries": c.journal.entries,
            "keys": c.journal.keys,
        },
        "index": { "depth": c.tree.depth, "nodes": c.tree.nodes, "keys": c.tree.keys },
        "buckets": {
            "total": c.buckets.total,
            "metadata": c.buckets.metadata,
            "dirty": c.buckets.dirty,
            "clean": c.buckets.clean,
            "unused": c.buckets.unused,
        },
        "volumes": volumes,
    })
}

pub(crate) fn check_text(out: &mut impl Write, report: &Report) -> io::Result<()> {
    for finding in &report.findings {
        writeln!(out, "{finding}")?;
    }
    if report.suppressed > 0 {
        writeln!(out, "... and {} more", report.suppressed)?;
    }
    match report.worst() {
        None => writeln!(out, "clean: every rule of the format holds"),
        Some(worst) => writeln!(
            out,
            "{} findings, the worst is {worst}",
            report.findings.len() as u64 + report.suppressed
        ),
    }
}

pub(crate) fn check_json(report: &Report) -> Value {
    let findings: Vec<Value> = report
        .findings
        .iter()
        .map(|f| {
            json!({
                "code": f.code(),
                "severity": f.severity.to_string(),
                "device": f.dev.as_str(),
                "message": f.message(),
            })
        })
        .collect();
    json!({
        "problems": report.has_problems(),
        "findings": findings,
        "suppressed": report.suppressed,
        "content": report.content.as_ref().map(content_json),
    })
}
