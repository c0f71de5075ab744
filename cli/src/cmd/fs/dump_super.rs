//! `varve fs dump-super`: every copy, as it is.

use super::target::{name, reading};
use crate::args::FsDumpSuper;
use crate::cmd::output;
use crate::failure::Outcome;
use anyhow::bail;
use serde_json::{Map, Value, json};
use std::io::Write;
use varve_block::Rt;
use varve_fs::format::superblock::{Backup, RootPointer, Superblock};
use varve_fs::inspect::{SuperCopy, super_copies};

pub(super) async fn run(rt: &Rt, args: FsDumpSuper) -> anyhow::Result<Outcome> {
    let stack = reading(rt, &args.target).await?;
    let copies = super_copies(&stack.top).await?;
    if copies.iter().all(|copy| copy.superblock.is_none()) {
        bail!("no btrfs superblock on {}", name(&args.target)?);
    }
    let described: Vec<Value> = copies.iter().map(described).collect();
    if args.json {
        output::json(&described)?;
    } else {
        let mut out = output::stdout();
        for copy in &described {
            print(&mut out, copy, 0)?;
            writeln!(out)?;
        }
        out.flush()?;
    }
    // A copy that is not there at all was never written; one that is and is wrong is a problem.
    let wrong = copies.iter().any(|copy| copy.superblock.is_some() && copy.problem.is_some());
    let first = copies.first().is_some_and(|copy| copy.problem.is_some());
    Ok(if wrong || first { Outcome::Problems } else { Outcome::Fine })
}

/// `name value` lines, structures indented below their name.
fn print(out: &mut impl Write, value: &Value, depth: usize) -> anyhow::Result<()> {
    let Value::Object(fields) = value else { return Ok(()) };
    let indent = "    ".repeat(depth);
    for (name, value) in fields {
        match value {
            Value::Array(list) => {
                for (n, entry) in list.iter().enumerate() {
                    writeln!(out, "{indent}{name} {n}")?;
                    print(out, entry, depth + 1)?;
                }
            }
            Value::Object(_) => {
                writeln!(out, "{indent}{name}")?;
                print(out, value, depth + 1)?;
            }
            Value::Null => writeln!(out, "{indent}{name:<24}-")?,
            Value::String(text) => writeln!(out, "{indent}{name:<24}{text}")?,
            other => writeln!(out, "{indent}{name:<24}{other}")?,
        }
    }
    Ok(())
}

fn described(copy: &SuperCopy) -> Value {
    let mut all = Map::new();
    all.insert("copy".into(), copy.copy.into());
    all.insert("byte".into(), copy.at.into());
    all.insert("problem".into(), copy.problem.clone().into());
    if let Some(sb) = &copy.superblock
        && let Value::Object(fields) = fields(sb)
    {
        all.extend(fields);
    }
    Value::Object(all)
}

fn fields(sb: &Superblock) -> Value {
    let sb_flags: Vec<_> = sb.flags.iter_names().map(|(name, _)| name).collect();
    let incompat: Vec<_> = sb.incompat.iter_names().map(|(name, _)| name).collect();
    let compat_ro: Vec<_> = sb.compat_ro.iter_names().map(|(name, _)| name).collect();
    let system = sb.sys_chunks().unwrap_or_default();
    json!({
        "fsid": sb.fsid.to_string(),
        "metadata_uuid": sb.metadata_uuid.to_string(),
        "label": String::from_utf8_lossy(sb.label.as_bytes()),
        "bytenr": sb.bytenr,
        "flags": format!("{:#x} {}", sb.flags.bits(), sb_flags.join("|")),
        "generation": sb.generation,
        "root": sb.root.0,
        "root_level": sb.root_level,
        "chunk_root": sb.chunk_root.0,
        "chunk_root_generation": sb.chunk_root_generation,
        "chunk_root_level": sb.chunk_root_level,
        "log_root": sb.log_root.0,
        "log_root_level": sb.log_root_level,
        "total_bytes": sb.total_bytes,
        "bytes_used": sb.bytes_used,
        "num_devices": sb.num_devices,
        "sectorsize": sb.sectorsize,
        "nodesize": sb.nodesize,
        "stripesize": sb.stripesize,
        "compat_flags": format!("{:#x}", sb.compat),
        "compat_ro_flags": format!("{:#x} {}", sb.compat_ro.bits(), compat_ro.join("|")),
        "incompat_flags": format!("{:#x} {}", sb.incompat.bits(), incompat.join("|")),
        "csum_type": sb.csum().map_or_else(|| sb.csum_type.to_string(), |csum| csum.to_string()),
        "cache_generation": sb.cache_generation,
        "uuid_tree_generation": sb.uuid_tree_generation,
        "dev_item": {
            "devid": sb.dev_item.devid,
            "uuid": sb.dev_item.uuid.to_string(),
            "fsid": sb.dev_item.fsid.to_string(),
            "total_bytes": sb.dev_item.total_bytes,
            "bytes_used": sb.dev_item.bytes_used,
        },
        "system_chunks": system.iter().map(|(start, chunk)| json!({
            "start": start.0,
            "length": chunk.length,
            "type": chunk.flags.to_string(),
            "stripes": chunk.stripes.iter().map(|stripe| json!({
                "devid": stripe.devid,
                "offset": stripe.offset,
                "dev_uuid": stripe.dev_uuid.to_string(),
            })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "backups": sb.backups.iter().map(backup).collect::<Vec<_>>(),
    })
}

fn backup(backup: &Backup) -> Value {
    let root = |root: &RootPointer| {
        format!("{} generation {} level {}", root.block, root.generation, root.level)
    };
    json!({
        "tree_root": root(&backup.tree_root),
        "chunk_root": root(&backup.chunk_root),
        "extent_root": root(&backup.extent_root),
        "fs_root": root(&backup.fs_root),
        "dev_root": root(&backup.dev_root),
        "csum_root": root(&backup.csum_root),
        "total_bytes": backup.total_bytes,
        "bytes_used": backup.bytes_used,
        "num_devices": backup.num_devices,
    })
}
