//! `varve integrity`: volumes of dm-integrity by itself.

use crate::args::{IntegrityFormat, IntegrityLook, IntegrityRecalculate, IntegrityVerb, StackArgs};
use crate::cmd::interrupt::Interrupt;
use crate::cmd::{output, progress};
use crate::config::{IntegrityConfig, StackConfig};
use crate::failure::{Outcome, usage};
use crate::place::Place;
use crate::stack::{self, LiveHashed, Stack};
use serde_json::json;
use std::io::Write;
use std::time::Duration;
use varve_block::{BlockDevice, Extent, Rt, Sector, Sectors};
use varve_crypt::{
    Error, FirstTags, HashedFormat, SectorSize, Verified, Wiped, format_hashed, integrity_info,
};

/// Sectors that are checked between two looks at the bar.
const STEP: Sectors = Sectors(16384);
/// How often it is asked how far a recalculation is.
const LOOK: Duration = Duration::from_millis(200);

pub(super) async fn run(rt: &Rt, verb: IntegrityVerb) -> anyhow::Result<Outcome> {
    match verb {
        IntegrityVerb::Format(args) => format(rt, args).await,
        IntegrityVerb::Dump(args) => dump(rt, args).await,
        IntegrityVerb::Check(args) => check(rt, args).await,
        IntegrityVerb::Recalculate(args) => recalculate(rt, args).await,
    }
}

/// The stack up to the integrity layer, and the layer; what the hash is, is crc32c unless something is said.
fn layer(
    flags: &StackArgs,
    image: Option<&Place>,
) -> anyhow::Result<(StackConfig, IntegrityConfig)> {
    let mut flags = flags.clone();
    flags.dm_integrity.dm_integrity.get_or_insert_with(|| "crc32c".into());
    let config = StackConfig::new(&flags, image)?.below_crypt();
    let Some(layer) = config.integrity.clone() else { unreachable!("just said") };
    Ok((config, layer))
}

async fn format(rt: &Rt, args: IntegrityFormat) -> anyhow::Result<Outcome> {
    let (config, layer) = layer(&args.stack, args.image.as_ref())?;
    let Some(sector_size) = SectorSize::new(args.sector_size.0) else {
        return usage(format!("--sector-size {}: 512, 1024, 2048 or 4096", args.sector_size));
    };
    let tags = match (args.no_wipe, args.recalculate) {
        (true, _) => FirstTags::Nothing,
        (false, true) => FirstTags::Recalculate,
        (false, false) => FirstTags::Wipe,
    };
    let options = HashedFormat {
        key: layer.key.as_ref().map(stack::read_key).transpose()?,
        tag_size: args.tag_size,
        sector_size,
        journal: args.journal_size.map(|size| size.0 / 512),
        interleave: args.interleave_sectors,
        sectors_per_bit: args.bitmap_sectors_per_bit,
        tags,
        ..HashedFormat::new(layer.hash)
    };
    let stack = stack::open_to_format(rt, &config.below_integrity(), args.force).await?;
    let interrupt = Interrupt::watch(rt)?;
    let bar = progress::bytes("wiping");
    let mut watch = |now: Wiped| {
        progress::show(&bar, now.done, now.total);
        interrupt.flow()
    };
    let made = format_hashed(rt, &stack.top, &options, &mut watch).await;
    interrupt.end().await;
    bar.finish_and_clear();
    let stopped = stack.stop().await;
    let info = made?;
    stopped?;
    let mut out = output::stdout();
    writeln!(
        out,
        "dm-integrity volume of {} sectors with {} on {}",
        info.provided_sectors, layer.hash, config.backing
    )?;
    out.flush()?;
    Ok(Outcome::Fine)
}

async fn dump(rt: &Rt, args: IntegrityLook) -> anyhow::Result<Outcome> {
    let (config, _) = layer(&args.stack, args.image.as_ref())?;
    let stack = stack::open(rt, &config.below_integrity().reading()).await?;
    let info = integrity_info(&stack.top, Sector(0)).await?;
    if args.json {
        output::json(&info)?;
        return Ok(Outcome::Fine);
    }
    let mut out = output::stdout();
    write!(out, "{info}")?;
    out.flush()?;
    Ok(Outcome::Fine)
}

/// The stack with the layer on top.
async fn opened(rt: &Rt, config: &StackConfig) -> anyhow::Result<(Stack, LiveHashed)> {
    let stack = stack::open(rt, config).await?;
    let Some(hashed) = stack.hashed.clone() else { unreachable!("asked for") };
    Ok((stack, hashed))
}

async fn check(rt: &Rt, args: IntegrityLook) -> anyhow::Result<Outcome> {
    let (config, _) = layer(&args.stack, args.image.as_ref())?;
    let (stack, hashed) = opened(rt, &config.reading()).await?;
    let all = Extent::new(Sector(0), hashed.geometry().len);
    let interrupt = Interrupt::watch(rt)?;
    let bar = progress::bytes("checking");
    let mut found = Verified::default();
    let mut checked = Ok(());
    for piece in all.pieces(STEP) {
        if interrupt.is_raised() {
            checked = Err(Error::Interrupted.into());
            break;
        }
        match hashed.verify(piece).await {
            Ok(more) => found.add(more),
            Err(e) => {
                checked = Err(anyhow::Error::from(e));
                break;
            }
        }
        progress::show(&bar, piece.end().byte(), all.len.bytes());
    }
    interrupt.end().await;
    bar.finish_and_clear();
    drop(hashed);
    stack.stop().await?;
    checked?;
    report(&found, all.len, args.json)?;
    Ok(if found.bad_blocks == 0 { Outcome::Fine } else { Outcome::Problems })
}

fn report(found: &Verified, sectors: Sectors, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        let list: Vec<_> =
            found.bad.iter().map(|(sector, why)| json!({ "sector": sector, "why": why })).collect();
        return output::json(&json!({
            "sectors": sectors.0,
            "bad_blocks": found.bad_blocks,
            "bad": list,
            "blocks_without_tags": found.unknown,
        }));
    }
    let mut out = output::stdout();
    for (sector, why) in &found.bad {
        writeln!(out, "sector {sector}: {why}")?;
    }
    let more = found.bad_blocks - found.bad.len() as u64;
    if more > 0 {
        writeln!(out, "... and {more} more")?;
    }
    if found.unknown > 0 {
        writeln!(out, "{} blocks have no tags yet and were not checked", found.unknown)?;
    }
    match found.bad_blocks {
        0 => writeln!(out, "clean: {sectors} sectors, every tag that is there fits")?,
        n => writeln!(out, "{n} bad blocks in {sectors} sectors")?,
    }
    out.flush()?;
    Ok(())
}

async fn recalculate(rt: &Rt, args: IntegrityRecalculate) -> anyhow::Result<Outcome> {
    if args.stack.read_only {
        return usage("--read-only: this command writes tags");
    }
    let (mut config, mut layer) = layer(&args.stack, args.image.as_ref())?;
    layer.from_start = args.from_start;
    config.integrity = Some(layer);
    // Before anything is opened: a Ctrl-C ends it cleanly at any moment.
    let interrupt = Interrupt::watch(rt)?;
    let (stack, hashed) = opened(rt, &config).await?;
    let total = hashed.geometry().len.bytes();
    let bar = progress::bytes("computing tags");
    while let Some(from) = hashed.recalculating_from()
        && !interrupt.is_raised()
        && hashed.is_working()
    {
        progress::show(&bar, from.byte(), total);
        rt.sleep(LOOK).await;
    }
    bar.finish_and_clear();
    let left = hashed.recalculating_from();
    drop(hashed);
    stack.stop().await?;
    let stopped = interrupt.is_raised();
    interrupt.end().await;
    let mut out = output::stdout();
    let ended = match left {
        None => {
            writeln!(out, "every sector has its tag")?;
            Outcome::Fine
        }
        Some(from) => {
            let why = if stopped { "interrupted" } else { "the disk failed" };
            writeln!(out, "{why}: sectors from {from} on have no tags yet")?;
            Outcome::Problems
        }
    };
    out.flush()?;
    Ok(ended)
}
