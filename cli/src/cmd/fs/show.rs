//! `varve fs show|df|usage`: what a file system consists of, and how full it is.

use super::source;
use crate::args::FsLook;
use crate::cmd::{output, text};
use crate::failure::Outcome;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use varve_block::{Dyn, Rt};
use varve_fs::Fs;
use varve_fs::format::chunk::{GroupFlags, Profile};
use varve_fs::usage::{Device, Group};

/// As btrfs-progs writes sizes: two decimals, and a unit.
pub(super) fn pretty(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (63 - bytes.max(1).leading_zeros()) / 10;
    let hundredths = u128::from(bytes) * 100 + (1u128 << (unit * 10)) / 2;
    let hundredths = hundredths >> (unit * 10);
    let name = UNITS.get(unit as usize).unwrap_or(&"B");
    format!("{}.{:02}{name}", hundredths / 100, hundredths % 100)
}

pub(super) async fn show(rt: &Rt, args: FsLook) -> anyhow::Result<Outcome> {
    let fs = source::open_at(rt, args.image.as_ref(), &args.source).await?;
    let sb = fs.superblock();
    let devices = fs.devices().await?;
    if args.json {
        output::json(&json!({
            "label": text::json(sb.label.as_bytes()),
            "uuid": sb.fsid.to_string(),
            "total_devices": sb.num_devices,
            "bytes_used": sb.bytes_used,
            "devices": devices.iter().map(device_json).collect::<Vec<_>>(),
        }))?;
        return Ok(Outcome::Fine);
    }
    let mut out = output::stdout();
    match sb.label.as_bytes() {
        [] => write!(out, "Label: none ")?,
        label => write!(out, "Label: '{}' ", label.escape_ascii())?,
    }
    writeln!(out, " uuid: {}", sb.fsid)?;
    writeln!(out, "\tTotal devices {} FS bytes used {}", sb.num_devices, pretty(sb.bytes_used))?;
    for device in &devices {
        let Device { item, name } = device;
        let (size, used) = (pretty(item.total_bytes), pretty(item.bytes_used));
        let name = name.as_deref().unwrap_or("<missing disk>");
        writeln!(out, "\tdevid {:>4} size {size} used {used} path {name}", item.devid)?;
    }
    writeln!(out)?;
    out.flush()?;
    Ok(Outcome::Fine)
}

fn device_json(device: &Device) -> Value {
    let Device { item, name } = device;
    json!({
        "devid": item.devid,
        "uuid": item.uuid.to_string(),
        "size": item.total_bytes,
        "allocated": item.bytes_used,
        "path": name,
    })
}

/// Chunks of one kind and profile.
#[derive(Clone, Default)]
struct Kind {
    total: u64,
    used: u64,
    /// Bytes on each device.
    devices: BTreeMap<u64, u64>,
}

/// The order in which btrfs-progs shows it, name and profile.
pub(super) type KindName = (u8, &'static str, String);

pub(super) fn kind_of(flags: GroupFlags) -> KindName {
    let types = flags.intersection(GroupFlags::TYPES);
    let (order, name) = if types == GroupFlags::DATA {
        (0, "Data")
    } else if types == GroupFlags::SYSTEM {
        (2, "System")
    } else if types == GroupFlags::METADATA {
        (1, "Metadata")
    } else {
        (0, "Data+Metadata")
    };
    (order, name, flags.profile().unwrap_or(Profile::Single).to_string())
}

async fn kinds(fs: &Fs<Dyn>) -> anyhow::Result<BTreeMap<KindName, Kind>> {
    let mut kinds: BTreeMap<_, Kind> = BTreeMap::new();
    for Group { chunk, used, .. } in fs.groups().await? {
        let kind = kinds.entry(kind_of(chunk.flags)).or_default();
        kind.total += chunk.length;
        kind.used += used.unwrap_or(0);
        for stripe in &chunk.stripes {
            *kind.devices.entry(stripe.devid).or_default() += chunk.stripe_size().unwrap_or(0);
        }
    }
    Ok(kinds)
}

pub(super) async fn df(rt: &Rt, args: FsLook) -> anyhow::Result<Outcome> {
    let fs = source::open_at(rt, args.image.as_ref(), &args.source).await?;
    let kinds = kinds(&fs).await?;
    if args.json {
        let kind = |((_, name, profile), kind): (&KindName, &Kind)| json!({ "type": name, "profile": profile, "total": kind.total, "used": kind.used });
        output::json(&kinds.iter().map(kind).collect::<Vec<_>>())?;
        return Ok(Outcome::Fine);
    }
    let mut out = output::stdout();
    for ((_, name, profile), kind) in &kinds {
        let (total, used) = (pretty(kind.total), pretty(kind.used));
        writeln!(out, "{name}, {profile}: total={total}, used={used}")?;
    }
    out.flush()?;
    Ok(Outcome::Fine)
}

pub(super) async fn usage(rt: &Rt, args: FsLook) -> anyhow::Result<Outcome> {
    let fs = source::open_at(rt, args.image.as_ref(), &args.source).await?;
    let kinds = kinds(&fs).await?;
    let devices = fs.devices().await?;
    let size: u64 = devices.iter().map(|device| device.item.total_bytes).sum();
    let allocated: u64 = devices.iter().map(|device| device.item.bytes_used).sum();
    let missing: u64 =
        devices.iter().filter(|d| d.name.is_none()).map(|d| d.item.total_bytes).sum();
    let raw = |kind: &Kind| {
        let raw: u64 = kind.devices.values().sum();
        let used = u128::from(kind.used) * u128::from(raw) / u128::from(kind.total.max(1));
        u64::try_from(used).unwrap_or(u64::MAX)
    };
    let used: u64 = kinds.values().map(raw).sum();
    if args.json {
        let kind = |((_, name, profile), kind): (&KindName, &Kind)| {
            let on = |(devid, bytes): (&u64, &u64)| json!({ "devid": devid, "bytes": bytes });
            json!({
                "type": name,
                "profile": profile,
                "total": kind.total,
                "used": kind.used,
                "devices": kind.devices.iter().map(on).collect::<Vec<_>>(),
            })
        };
        output::json(&json!({
            "device_size": size,
            "device_allocated": allocated,
            "device_unallocated": size.saturating_sub(allocated),
            "device_missing": missing,
            "used": used,
            "groups": kinds.iter().map(kind).collect::<Vec<_>>(),
            "devices": devices.iter().map(device_json).collect::<Vec<_>>(),
        }))?;
        return Ok(Outcome::Fine);
    }
    let mut out = output::stdout();
    writeln!(out, "Overall:")?;
    for (what, bytes) in [
        ("Device size:", size),
        ("Device allocated:", allocated),
        ("Device unallocated:", size.saturating_sub(allocated)),
        ("Device missing:", missing),
        ("Used:", used),
    ] {
        writeln!(out, "    {what:<20} {:>16}", pretty(bytes))?;
    }
    for ((_, name, profile), kind) in &kinds {
        let (total, used) = (pretty(kind.total), pretty(kind.used));
        let percent = (u128::from(kind.used) * 20_000 / u128::from(kind.total.max(1))).div_ceil(2);
        let (whole, rest) = (percent / 100, percent % 100);
        writeln!(out, "\n{name},{profile}: Size:{total}, Used:{used} ({whole}.{rest:02}%)")?;
        for (devid, bytes) in &kind.devices {
            writeln!(out, "   {}\t{:>16}", name_of(&devices, *devid), pretty(*bytes))?;
        }
    }
    writeln!(out, "\nUnallocated:")?;
    for Device { item, .. } in &devices {
        let free = item.total_bytes.saturating_sub(item.bytes_used);
        writeln!(out, "   {}\t{:>16}", name_of(&devices, item.devid), pretty(free))?;
    }
    out.flush()?;
    Ok(Outcome::Fine)
}

fn name_of(devices: &[Device], devid: u64) -> String {
    let device = devices.iter().find(|device| device.item.devid == devid);
    device.and_then(|device| device.name.clone()).unwrap_or_else(|| format!("missing {devid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_btrfs_progs_prints_them() {
        assert_eq!(pretty(0), "0.00B");
        assert_eq!(pretty(1023), "1023.00B");
        assert_eq!(pretty(16384), "16.00KiB");
        assert_eq!(pretty(1_288_490_188), "1.20GiB");
        assert_eq!(pretty(u64::MAX), "16.00EiB");
    }
}
