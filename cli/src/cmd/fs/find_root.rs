//! `varve fs find-root`: older roots of a tree, to start a rescue from.

use super::source;
use crate::args::FsFindRoot;
use crate::cmd::output;
use crate::cmd::progress;
use crate::config::StackConfig;
use crate::failure::Outcome;
use serde_json::json;
use std::io::Write;
use varve_block::Rt;
use varve_fs::format::key::objectid;
use varve_fs::inspect::Inspector;

pub(super) async fn run(rt: &Rt, args: FsFindRoot) -> anyhow::Result<Outcome> {
    let config = StackConfig::new(&args.source.stack, args.image.as_ref())?;
    let devices = source::devices(rt, config, &args.source.devices).await?;
    let inspector = Inspector::open_devices(devices, args.source.super_copy.into()).await?;
    let sb = inspector.superblock();
    // What the superblock or, for other trees, the root tree names.
    let current = inspector.roots().await.into_iter().find(|root| root.id == args.tree);
    let bar = progress::bytes("reading");
    let mut progress = |done, total| progress::show(&bar, done, total);
    let found = inspector.find_roots(args.tree, &mut progress).await;
    bar.finish_and_clear();
    let is_current = |at| current.as_ref().is_some_and(|root| root.root.block == at);
    if args.json {
        let one = |one: &varve_fs::inspect::Candidate| {
            json!({
                "logical": one.at.0,
                "generation": one.generation,
                "level": one.level,
                "current": is_current(one.at),
            })
        };
        output::json(&json!({
            "tree": args.tree,
            "generation": sb.generation,
            "current": current.as_ref().map(|root| root.root.block.0),
            "found": found.iter().map(one).collect::<Vec<_>>(),
        }))?;
    } else {
        let mut out = output::stdout();
        writeln!(out, "the superblock is of generation {}", sb.generation)?;
        for one in &found {
            let what = if is_current(one.at) { "the tree's root" } else { "was one, perhaps" };
            let (at, generation, level) = (one.at, one.generation, one.level);
            writeln!(out, "block {at} generation {generation} level {level}: {what}")?;
        }
        if args.tree == objectid::ROOT_TREE && !found.is_empty() {
            writeln!(out, "varve fs export --root-block BLOCK starts from one of them")?;
        }
        out.flush()?;
    }
    Ok(if found.iter().any(|one| is_current(one.at)) { Outcome::Fine } else { Outcome::Problems })
}
