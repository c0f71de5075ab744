//! `varve cache`: format, look, check.

use crate::args::{CacheCheck, CacheMake, CacheShow};
use crate::cmd::{output, report};
use crate::failure::{Outcome, usage};
use crate::place::Place;
use crate::signature;
use crate::size::Size;
use crate::stack::{Bottom, mode, open_device};
use anyhow::Context;
use std::io::Write;
use varve_block::{Rt, Sectors};
use varve_cache::MakeOptions;
use varve_cache::check::{self, CheckOptions};
use varve_cache::show::{self, Show};

/// `bucket` and `block` in sectors, or a usage error that says what they may be.
fn sectors(what: &str, size: Size, max: u64) -> anyhow::Result<u32> {
    match Sectors::exact(size.0) {
        Some(n) if n.0.is_power_of_two() && size.0 <= max => Ok(u32::try_from(n.0)?),
        _ => usage(format!("--{what} {size}: a power of two from 512 to {}", Size(max))),
    }
}

async fn open_for_format(rt: &Rt, place: &Place, force: bool) -> anyhow::Result<Bottom> {
    let device = open_device(rt, place, false).await?;
    signature::refuse_known(&device, force).await?;
    Ok(device)
}

pub(crate) async fn make(rt: &Rt, args: CacheMake) -> anyhow::Result<Outcome> {
    if args.backing.is_none() && args.cache.is_none() {
        return usage("what to format? give --cache SSD, --backing DISK, or both");
    }
    let options = MakeOptions {
        bucket_size: sectors("bucket", args.bucket, 1 << 30)?,
        block_size: args.block.map(|b| sectors("block", b, 4096)).transpose()?,
        data_offset: args.data_offset,
        set_uuid: args.cset_uuid,
        mode: mode(args.cache_mode),
        label: args.label,
        ..MakeOptions::default()
    };
    let ssd = match &args.cache {
        Some(path) => Some(open_for_format(rt, path, args.force).await?),
        None => None,
    };
    let hdd = match &args.backing {
        Some(path) => Some(open_for_format(rt, path, args.force).await?),
        None => None,
    };
    let made = varve_cache::make(ssd.as_ref(), hdd.as_ref(), &options).await?;
    let mut out = output::stdout();
    writeln!(out, "cache set  {}", made.set_uuid)?;
    if let (Some(path), Some(sb)) = (&args.cache, &made.cache) {
        writeln!(out, "cache      {}: {} buckets of {}", path, sb.layout.nbuckets, args.bucket)?;
    }
    if let (Some(path), Some(sb)) = (&args.backing, &made.backing) {
        writeln!(out, "volume     {}: {}", path, sb.uuid)?;
    }
    out.flush()?;
    Ok(Outcome::Fine)
}

pub(crate) async fn show(rt: &Rt, args: CacheShow) -> anyhow::Result<Outcome> {
    let named = args.devices.iter().chain(&args.backing).chain(&args.cache);
    let mut all = Show::default();
    // Superblocks say which is which; a pair is shown as one.
    let (mut ssd, mut hdd) = (None, None);
    for path in named {
        let device = open_device(rt, path, true).await?;
        let one = show::show(Some(&device), None::<&Bottom>).await;
        let one = one.with_context(|| format!("nothing to show on {path}"))?;
        let slot = if one.cache.is_some() { &mut ssd } else { &mut hdd };
        if slot.replace(device).is_some() {
            return usage("show one cache device, one disk, or a pair of them");
        }
        all.cache = all.cache.or(one.cache);
        all.backing = all.backing.or(one.backing);
        all.content = all.content.or(one.content);
    }
    if ssd.is_none() && hdd.is_none() {
        return usage("show what? name a cache device, a disk, or both");
    }
    // Damage behind a good superblock is part of the answer, and its exit code.
    let damaged = matches!(all.content, Some(Err(_)));
    if args.json {
        output::json(&report::show_json(&all))?;
    } else {
        let mut out = output::stdout();
        report::show_text(&mut out, &all)?;
        out.flush()?;
    }
    Ok(if damaged { Outcome::Problems } else { Outcome::Fine })
}

async fn open_if(rt: &Rt, place: &Option<Place>) -> anyhow::Result<Option<Bottom>> {
    match place {
        Some(place) => open_device(rt, place, true).await.map(Some),
        None => Ok(None),
    }
}

pub(crate) async fn check(rt: &Rt, args: CacheCheck) -> anyhow::Result<Outcome> {
    let (ssd, hdd) = (open_if(rt, &args.cache).await?, open_if(rt, &args.backing).await?);
    let options = CheckOptions { data: args.data };
    let verdict = check::check(ssd.as_ref(), hdd.as_ref(), options).await;
    if args.json {
        output::json(&report::check_json(&verdict))?;
    } else {
        let mut out = output::stdout();
        report::check_text(&mut out, &verdict)?;
        out.flush()?;
    }
    Ok(if verdict.has_problems() { Outcome::Problems } else { Outcome::Fine })
}
