//! `varve fs inode-resolve|logical-resolve|subvol list`: numbers to paths.

use super::source;
use crate::args::{FsInodeResolve, FsLogicalResolve, FsLook, FsSubvol};
use crate::cmd::{output, text};
use crate::failure::{Outcome, usage};
use anyhow::bail;
use serde_json::json;
use std::io::Write;
use varve_block::Rt;
use varve_fs::owners::{PlaceKind, Used};
use varve_fs::{ErrorKind, InodeId, Logical};

fn number(word: Option<String>) -> anyhow::Result<u64> {
    let word = word.unwrap_or_default();
    match word.parse() {
        Ok(number) => Ok(number),
        Err(_) => usage(format!("{word:?} is no number")),
    }
}

/// Exit code 1 when nothing has that number.
pub(super) async fn inode(rt: &Rt, args: FsInodeResolve) -> anyhow::Result<Outcome> {
    let (fs, word) = source::open(rt, &args.at, &args.source, false).await?;
    let ino = number(word)?;
    let above = fs.subvolume_paths().await?;
    let roots = match args.root {
        Some(root) => vec![root],
        None => fs.subvolumes().await?.into_iter().map(|one| one.id).collect(),
    };
    let mut found = Vec::new();
    for root in roots {
        let id = InodeId { root, ino };
        match fs.inode(id).await {
            Ok(_) => {}
            Err(error) if error.kind == ErrorKind::NotFound && args.root.is_none() => continue,
            Err(error) => return Err(error.into()),
        }
        let above = above.get(&root).cloned();
        for path in fs.paths_in_tree(id).await? {
            let mut whole = Vec::new();
            match &above {
                Some(above) if above.is_empty() => {}
                Some(above) => whole.extend([b"/", above.as_slice()].concat()),
                None => whole.extend(format!("(tree {root})").into_bytes()),
            }
            if !path.is_empty() || whole.is_empty() {
                whole.push(b'/');
            }
            whole.extend(path);
            found.push((root, whole));
        }
    }
    if args.json {
        let all = found
            .iter()
            .map(|(root, path)| json!({ "root": root, "inode": ino, "path": text::json(path) }));
        output::json(&all.collect::<Vec<_>>())?;
    } else {
        let mut out = output::stdout();
        for (_, path) in &found {
            out.write_all(path)?;
            out.write_all(b"\n")?;
        }
        out.flush()?;
    }
    Ok(if found.is_empty() { Outcome::Problems } else { Outcome::Fine })
}

/// Exit code 1 when no file uses the byte.
pub(super) async fn logical(rt: &Rt, args: FsLogicalResolve) -> anyhow::Result<Outcome> {
    let (fs, word) = source::open(rt, &args.at, &args.source, false).await?;
    let at = number(word)?;
    let sector = u64::from(fs.superblock().sectorsize);
    let damage = fs.damage(&[Logical(at - at % sector)]).await?;
    let Some(place) = damage.places.first() else { bail!("nothing is known of {at}") };
    if args.json {
        let user = |used: &Used| {
            json!({
                "root": used.id.root,
                "inode": used.id.ino,
                "offset": used.range.start,
                "paths": used.paths.iter().map(|path| text::json(path)).collect::<Vec<_>>(),
            })
        };
        output::json(&json!({
            "logical": at,
            "kind": place.kind.words(),
            "trees": place.trees,
            "copies": place.copies.iter()
                .map(|copy| json!({ "devid": copy.devid, "physical": copy.byte }))
                .collect::<Vec<_>>(),
            "files": place.used.iter().map(user).collect::<Vec<_>>(),
            "holders": place.holders.iter().map(user).collect::<Vec<_>>(),
            "unread": damage.unread,
        }))?;
    } else {
        let mut out = output::stdout();
        if place.kind != PlaceKind::Data {
            writeln!(out, "logical {at} is {}", place.kind.words())?;
        }
        // Who uses the byte; if nobody does, who keeps it allocated.
        for used in if place.used.is_empty() { &place.holders } else { &place.used } {
            for path in &used.paths {
                out.write_all(b"/")?;
                out.write_all(path)?;
                out.write_all(b"\n")?;
            }
            if used.paths.is_empty() {
                writeln!(out, "{} offset {}: no path", used.id, used.range.start)?;
            }
        }
        out.flush()?;
    }
    for lost in &damage.unread {
        tracing::warn!("cannot be read, so files may be missing here: {lost}");
    }
    Ok(if place.kind == PlaceKind::Data { Outcome::Fine } else { Outcome::Problems })
}

pub(super) async fn subvol(rt: &Rt, verb: FsSubvol) -> anyhow::Result<Outcome> {
    let FsSubvol::List(FsLook { image, source, json }) = verb;
    let fs = source::open_at(rt, image.as_ref(), &source).await?;
    let paths = fs.subvolume_paths().await?;
    let all = fs.subvolumes().await?;
    let default = fs.default_subvolume().await?;
    // The top level hangs nowhere; nor does what is being deleted.
    let listed =
        all.iter().filter_map(|one| Some((one, one.parent.as_ref()?, paths.get(&one.id)?)));
    if json {
        let one = listed.map(|(one, (top, _, _), path)| {
            json!({
                "id": one.id,
                "generation": one.generation,
                "top_level": top,
                "path": text::json(path),
                "uuid": one.uuid.to_string(),
                "parent_uuid": one.parent_uuid.to_string(),
                "received_uuid": one.received_uuid.to_string(),
                "read_only": one.read_only,
                "default": one.id == default,
            })
        });
        output::json(&one.collect::<Vec<_>>())?;
        return Ok(Outcome::Fine);
    }
    let mut out = output::stdout();
    for (one, (top, _, _), path) in listed {
        write!(out, "ID {} gen {} top level {top} path ", one.id, one.generation)?;
        out.write_all(path)?;
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(Outcome::Fine)
}
