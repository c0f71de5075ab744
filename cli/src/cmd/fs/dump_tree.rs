//! `varve fs dump-tree`: blocks and items, damaged or not.

use super::target::reading_all;
use crate::args::FsDumpTree;
use crate::cmd::{output, progress, text};
use crate::failure::{Outcome, usage};
use serde_json::{Map, json};
use std::io::Write;
use varve_block::{BlockDevice, Rt};
use varve_fs::Logical;
use varve_fs::format::block::{self, ItemHead};
use varve_fs::format::key::{Key, objectid};
use varve_fs::format::superblock::RootPointer;
use varve_fs::inspect::{
    Block, Fields, Inspector, RootEntry, Step, Value, Walk, describe, scan_chunks,
};

pub(super) async fn run(rt: &Rt, args: FsDumpTree) -> anyhow::Result<Outcome> {
    let devices = reading_all(rt, &args.target, &args.devices).await?;
    let mut fs = Inspector::open_devices(devices.clone(), args.copy).await?;
    if args.chunk_recover {
        let bar = progress::bytes("reading for chunks");
        let mut told = |done, total| progress::show(&bar, done, total);
        fs.take_chunks(&scan_chunks(devices, args.copy, &mut told).await?);
        bar.finish_and_clear();
    }
    for warning in fs.warnings() {
        eprintln!("varve: {warning}");
    }
    let mut out = Printer { out: output::stdout(), json: args.json, count: 0, problems: false };
    out.problems = fs.warnings().iter().any(|warning| warning.contains("cannot be read"));
    if let Some(at) = args.block {
        let block = fs.block(Logical(at)).await?;
        let root = RootPointer { block: Logical(at), generation: 0, level: block.header.level };
        match args.follow {
            true => out.tree(&fs, &block.header.owner.to_string(), root).await?,
            false => out.block(&fs, "", &block)?,
        }
        return out.finish();
    }
    let wanted = args.tree.as_deref().map(tree_id).transpose()?;
    let mut roots = fs.roots().await;
    if wanted.is_none() || wanted == Some(objectid::TREE_LOG) {
        roots.extend(fs.log_roots().await);
    }
    roots.retain(|entry| wanted.is_none_or(|id| entry.id == id));
    if let (Some(name), true) = (&args.tree, roots.is_empty()) {
        anyhow::bail!("there is no tree {name}");
    }
    for RootEntry { id, offset, root, .. } in roots {
        let offset = if offset == 0 { String::new() } else { format!(" ({offset})") };
        let name = format!("{}{offset}", objectid::tree_name(id));
        out.tree(&fs, &name, root).await?;
    }
    out.finish()
}

fn tree_id(name: &str) -> anyhow::Result<u64> {
    Ok(match name.to_lowercase().replace('_', "-").trim_end_matches("-tree") {
        "root" => objectid::ROOT_TREE,
        "extent" => objectid::EXTENT_TREE,
        "chunk" => objectid::CHUNK_TREE,
        "dev" | "device" => objectid::DEV_TREE,
        "fs" => objectid::FS_TREE,
        "csum" | "checksum" => objectid::CSUM_TREE,
        "quota" => objectid::QUOTA_TREE,
        "uuid" => objectid::UUID_TREE,
        "free-space" => objectid::FREE_SPACE_TREE,
        "block-group" => objectid::BLOCK_GROUP_TREE,
        "raid-stripe" => objectid::RAID_STRIPE_TREE,
        "data-reloc" => objectid::DATA_RELOC_TREE,
        "log" => objectid::TREE_LOG,
        other => match other.parse() {
            Ok(id) => id,
            Err(_) => {
                return usage(format!("{name:?} is no tree: a number, or a name as in --help"));
            }
        },
    })
}

struct Printer<W> {
    out: W,
    json: bool,
    count: u64,
    problems: bool,
}

impl<W: Write> Printer<W> {
    async fn tree<D: BlockDevice>(
        &mut self,
        fs: &Inspector<D>,
        name: &str,
        root: RootPointer,
    ) -> anyhow::Result<()> {
        if !self.json {
            writeln!(self.out, "tree {name}")?;
        }
        let mut walk = Walk::new(root);
        while let Some(step) = walk.next(fs).await {
            match step {
                Step::Block(block) => self.block(fs, name, &block)?,
                Step::Lost { at, why } => {
                    self.problems = true;
                    match self.json {
                        true => {
                            self.record(&json!({ "tree": name, "block": at.0, "problem": why }))?
                        }
                        false => writeln!(self.out, "block {at}: {why}")?,
                    }
                }
            }
        }
        Ok(())
    }

    /// One element of the list that the JSON form is.
    fn record(&mut self, value: &serde_json::Value) -> anyhow::Result<()> {
        let before = if self.count == 0 { "[\n" } else { ",\n" };
        self.count += 1;
        write!(self.out, "{before}{value}")?;
        Ok(())
    }

    fn block<D: BlockDevice>(
        &mut self,
        fs: &Inspector<D>,
        tree: &str,
        block: &Block,
    ) -> anyhow::Result<()> {
        self.problems |= block.problem.is_some();
        let sb = fs.superblock();
        let csum = sb.csum().unwrap_or_default();
        let header = &block.header;
        let heads = heads(block);
        let item = |head: &ItemHead| {
            let data = block::item_data(&block.bytes, head).unwrap_or(&[]);
            describe(head.key, data, csum, sb.sectorsize)
        };
        if self.json {
            let items: Vec<_> = heads
                .iter()
                .map(|head| {
                    let mut fields = Map::new();
                    fields.insert("key".into(), key_json(head.key));
                    fields.insert("offset".into(), head.offset.into());
                    fields.insert("size".into(), head.size.into());
                    fields.extend(fields_json(&item(head)));
                    serde_json::Value::Object(fields)
                })
                .collect();
            let pointers: Vec<_> = pointers(block)
                .map(|p| json!({ "key": key_json(p.key), "block": p.block.0, "generation": p.generation }))
                .collect();
            return self.record(&json!({
                "tree": tree,
                "block": block.at.0,
                "level": header.level,
                "generation": header.generation,
                "owner": header.owner,
                "flags": header.flags,
                "problem": block.problem,
                "items": items,
                "pointers": pointers,
            }));
        }
        let kind = if header.level == 0 { "leaf" } else { "node" };
        writeln!(
            self.out,
            "{kind} {} level {} items {} generation {} owner {} flags {:#x}",
            block.at,
            header.level,
            header.nritems,
            header.generation,
            objectid::tree_name(header.owner),
            header.flags,
        )?;
        if let Some(problem) = &block.problem {
            writeln!(self.out, "    PROBLEM {problem}")?;
        }
        for (slot, head) in heads.iter().enumerate() {
            let (key, size) = (head.key, head.size);
            writeln!(
                self.out,
                "    item {slot} key ({} {} {}) size {size}",
                key.objectid, key.kind, key.offset
            )?;
            self.fields(&item(head), 2)?;
        }
        for (slot, p) in pointers(block).enumerate() {
            let key = p.key;
            writeln!(
                self.out,
                "    pointer {slot} key ({} {} {}) block {} generation {}",
                key.objectid, key.kind, key.offset, p.block, p.generation
            )?;
        }
        Ok(())
    }

    /// Plain values on one line, structures below.
    fn fields(&mut self, fields: &Fields, depth: usize) -> anyhow::Result<()> {
        let indent = "    ".repeat(depth);
        let plain: Vec<String> = fields
            .iter()
            .filter_map(|(name, value)| match value {
                Value::Num(n) => Some(format!("{name} {n}")),
                Value::Int(n) => Some(format!("{name} {n}")),
                Value::Text(text) => Some(format!("{name} {text}")),
                Value::Bytes(bytes) => Some(format!("{name} {}", bytes.escape_ascii())),
                Value::List(_) => None,
            })
            .collect();
        if !plain.is_empty() {
            writeln!(self.out, "{indent}{}", plain.join(" "))?;
        }
        for (_, value) in fields {
            if let Value::List(list) = value {
                for entry in list {
                    self.fields(entry, depth)?;
                }
            }
        }
        Ok(())
    }

    fn finish(mut self) -> anyhow::Result<Outcome> {
        if self.json {
            writeln!(self.out, "{}", if self.count == 0 { "[]" } else { "\n]" })?;
        }
        self.out.flush()?;
        Ok(if self.problems { Outcome::Problems } else { Outcome::Fine })
    }
}

fn heads(block: &Block) -> Vec<ItemHead> {
    let count = if block.header.level == 0 { block.header.nritems as usize } else { 0 };
    (0..count).map_while(|slot| block::item_head(&block.bytes, slot)).collect()
}

fn pointers(block: &Block) -> impl Iterator<Item = block::Pointer> {
    let count = if block.header.level == 0 { 0 } else { block.header.nritems as usize };
    (0..count).map_while(|slot| block::pointer(&block.bytes, slot))
}

fn key_json(key: Key) -> serde_json::Value {
    json!({ "objectid": key.objectid, "type": key.kind.0, "name": key.kind.to_string(), "offset": key.offset })
}

fn fields_json(fields: &Fields) -> Map<String, serde_json::Value> {
    let value = |value: &Value| match value {
        Value::Num(n) => (*n).into(),
        Value::Int(n) => (*n).into(),
        Value::Text(text) => text.as_str().into(),
        Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => text.into(),
            Err(_) => json!({ "hex": text::hex(bytes) }),
        },
        Value::List(list) => {
            list.iter().map(|entry| serde_json::Value::Object(fields_json(entry))).collect()
        }
    };
    fields.iter().map(|(name, v)| ((*name).to_owned(), value(v))).collect()
}
