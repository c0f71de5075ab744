//! `varve fs image`: metadata dumps, out and in.

use super::target::{Fresh, name, reading, reading_all};
use crate::args::{FsImage, FsImageDump, FsImageRestore, FsTarget, StackArgs};
use crate::cmd::output;
use crate::cmd::progress;
use crate::failure::Outcome;
use anyhow::{Context, bail};
use serde_json::json;
use std::io::Write;
use std::os::unix::fs::FileExt;
use varve_block::{BlockDevice, BufPool, Extent, Geometry, Rt, Sector};
use varve_fs::DumpOptions;

/// What a restore skips when it is all zeroes.
const HOLE: usize = 4096;

pub(super) async fn run(rt: &Rt, verb: FsImage) -> anyhow::Result<Outcome> {
    match verb {
        FsImage::Dump(args) => dump(rt, *args).await,
        FsImage::Restore(args) => restore(rt, args).await,
    }
}

async fn dump(rt: &Rt, args: FsImageDump) -> anyhow::Result<Outcome> {
    let disk = name(&args.target)?;
    let devices = reading_all(rt, &args.target, &args.devices).await?;
    let mut out = Fresh::create(&args.output, args.force)?;
    let options = DumpOptions { level: args.compress, sanitise: args.sanitise };
    let file = out.file();
    let bar = progress::bytes("dumping");
    let told = |done, total| progress::show(&bar, done, total);
    let report = varve_fs::dump(devices, options, |bytes| file.write_all(bytes), told)
        .await
        .with_context(|| format!("{disk} was not dumped"))?;
    bar.finish_and_clear();
    out.finish()?;
    for problem in &report.problems {
        eprintln!("varve: {problem}");
    }
    if args.json {
        output::json(&json!({
            "blocks": report.blocks,
            "payload_bytes": report.payload_bytes,
            "stream_bytes": report.stream_bytes,
            "problems": report.problems,
        }))?;
    } else {
        let mut out = output::stdout();
        writeln!(out, "{} blocks in {} bytes", report.blocks, report.stream_bytes)?;
        out.flush()?;
    }
    Ok(if report.problems.is_empty() { Outcome::Fine } else { Outcome::Problems })
}

/// What the dump's device holds, written to a sparse file of its size.
async fn restore(rt: &Rt, args: FsImageRestore) -> anyhow::Result<Outcome> {
    let target = FsTarget { image: Some(args.dump.clone()), stack: StackArgs::default() };
    let file = crate::stack::open_device(rt, &args.dump, true).await?;
    if !varve_fs::is_dump(&file).await? {
        bail!("{} is no metadata dump", args.dump);
    }
    drop(file);
    let device = reading(rt, &target).await?.top;
    let geometry = device.geometry();
    let mut out = Fresh::create(&args.output, args.force)?;
    let failed = || format!("{} cannot be written", args.output.display());
    out.file().set_len(geometry.len.bytes()).with_context(failed)?;
    let pool = BufPool::new(0);
    let (mut at, end) = (Sector(0), Sector(geometry.len.0));
    while at < end {
        for run in device.extents(Extent::between(at, end), 64).await? {
            at = run.range.end();
            if run.hole {
                continue;
            }
            for piece in run.range.pieces(Geometry::MAX_REQUEST) {
                let bytes = device.read(piece.start, pool.take(piece.len).await).await?;
                for (n, part) in (0u64..).zip(bytes.chunks(HOLE)) {
                    if part.iter().any(|byte| *byte != 0) {
                        let byte = piece.start.byte() + n * HOLE as u64;
                        out.file().write_all_at(part, byte).with_context(failed)?;
                    }
                }
            }
        }
    }
    out.finish()?;
    Ok(Outcome::Fine)
}
