//! `varve crypt`: make, show and try encrypted volumes, and manage their keys and headers.

mod bench;
mod control;
mod header;
mod integrity;
mod keys;
mod online;
mod pbkdf;
mod reencrypt;
mod reproduce;
mod target;
mod token;

use crate::args::{CryptDump, CryptFormat, CryptTest, CryptVerb, LuksType};
use crate::cmd::output;
use crate::config::{CryptConfig, StackConfig};
use crate::failure::{Outcome, usage};
use crate::place::Place;
use crate::signature;
use crate::size::Size;
use crate::{secret, stack};
pub(crate) use online::{Order, Report, State};
pub(crate) use reencrypt::take_up;

use anyhow::Context;
use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use target::Target;
use varve_block::{BlockDevice, Dyn, Rt};
use varve_crypt::{CipherSpec, FormatOptions, Header, LuksVersion, Protection, SectorSize};

/// Room that a header file gets when it has to be made: LUKS2's default header, and LUKS1's.
const HEADER_FILE: [(LuksType, u64); 2] = [(LuksType::Luks2, 16 << 20), (LuksType::Luks1, 2 << 20)];

pub(crate) async fn run(rt: &Rt, verb: CryptVerb) -> anyhow::Result<Outcome> {
    match verb {
        CryptVerb::Format(args) => format(rt, args).await,
        CryptVerb::Dump(args) => dump(rt, args).await,
        CryptVerb::Test(args) => test(rt, args).await,
        CryptVerb::AddKey(args) => keys::add(rt, args).await,
        CryptVerb::ChangeKey(args) => keys::change(rt, args).await,
        CryptVerb::RemoveKey(args) => keys::remove(rt, args).await,
        CryptVerb::KillSlot(args) => keys::kill(rt, args).await,
        CryptVerb::Erase(args) => keys::erase(rt, args).await,
        CryptVerb::HeaderBackup(args) => header::backup(rt, args).await,
        CryptVerb::HeaderRestore(args) => header::restore(rt, args).await,
        CryptVerb::Convert(args) => header::convert(rt, args).await,
        CryptVerb::Reencrypt(args) if args.online => online::run(rt, args).await,
        CryptVerb::Reencrypt(args) => reencrypt::run(rt, args).await,
        CryptVerb::Repair(args) => header::repair(rt, args).await,
        CryptVerb::Uuid(args) => header::uuid(rt, args).await,
        CryptVerb::IsLuks(args) => header::is_luks(rt, args).await,
        CryptVerb::Config(args) => header::configure(rt, args).await,
        CryptVerb::Suspend(args) => control::suspend(&args),
        CryptVerb::Resume(args) => control::resume(&args),
        CryptVerb::Reproduce(args) => reproduce::run(&args),
        CryptVerb::Bench(args) => bench::run(rt, &args),
        CryptVerb::Token(verb) => token::run(rt, verb).await,
    }
}

async fn format(rt: &Rt, args: CryptFormat) -> anyhow::Result<Outcome> {
    let config = StackConfig::new(&args.stack, args.image.as_ref())?;
    let (source, header) = match &config.crypt {
        CryptConfig::Luks { secret, header, key_slot: None } => (secret, header.clone()),
        CryptConfig::Luks { .. } => return usage("a new volume has its key in slot 0"),
        CryptConfig::Plain { .. } => return usage("a plain mapping has nothing to format"),
        CryptConfig::None => {
            return usage("a new volume needs a key: --key-file, --passphrase-file or --unlock");
        }
    };
    let options = options(&args, header.is_some())?;
    let secret = Arc::new(secret::read_new(source)?);
    let stack = match &header {
        None => stack::open_to_format(rt, &config.below_crypt(), args.force).await?,
        // The disk itself is not touched.
        Some(_) => stack::open(rt, &config.below_crypt()).await?,
    };
    let made = async {
        let target = match &header {
            None => stack.top.clone(),
            Some(path) => header_device(rt, path, args.luks_type, args.force).await?,
        };
        match options.integrity {
            None => anyhow::Ok(varve_crypt::format(rt, &target, &options, &secret).await?),
            Some(_) => integrity::format(rt, &args, &target, &options, &secret).await,
        }
    }
    .await;
    // Also after a failure: a stack that was opened is stopped.
    let stopped = stack.stop().await;
    let header = made?;
    stopped?;
    let mut out = output::stdout();
    writeln!(out, "LUKS{} volume {} on {}", header.version(), header.uuid(), config.backing)?;
    out.flush()?;
    Ok(Outcome::Fine)
}

/// A header file is made when it is not there.
async fn header_device(
    rt: &Rt,
    place: &Place,
    luks_type: LuksType,
    force: bool,
) -> anyhow::Result<Dyn> {
    if let Place::Path(path) = place
        && !path.exists()
    {
        let len = HEADER_FILE.iter().find(|(t, _)| *t == luks_type).map_or(0, |(_, len)| *len);
        let file = File::create_new(path)
            .with_context(|| format!("cannot make header file {}", path.display()))?;
        file.set_len(len)?;
        file.sync_all()?;
    }
    let device = stack::open_device(rt, place, false).await?;
    signature::refuse_known(&device, force).await?;
    Ok(Dyn::new(device))
}

fn options(args: &CryptFormat, detached: bool) -> anyhow::Result<FormatOptions> {
    let version = match args.luks_type {
        LuksType::Luks1 => LuksVersion::Luks1,
        LuksType::Luks2 => LuksVersion::Luks2,
    };
    let Protection { pbkdf, cost, hash } = pbkdf::protection(&args.pbkdf, version)?;
    let cipher = CipherSpec::parse(&args.cipher)?;
    let halves = cipher.chain == varve_crypt::Chain::Xts;
    Ok(FormatOptions {
        key_bits: args.key_size.unwrap_or(if halves { 512 } else { 256 }),
        cipher,
        integrity: args.integrity.clone(),
        flags: match args.integrity_no_journal {
            true => vec!["no-journal".into()],
            false => Vec::new(),
        },
        hash,
        pbkdf,
        cost,
        sector_size: args.sector_size.map(sector_size).transpose()?,
        label: args.label.clone().unwrap_or_default(),
        subsystem: args.subsystem.clone().unwrap_or_default(),
        uuid: args.uuid,
        detached,
        ..FormatOptions::new(version)
    })
}

fn sector_size(size: Size) -> anyhow::Result<SectorSize> {
    match SectorSize::new(size.0) {
        Some(sector) => Ok(sector),
        None => usage(format!("--sector-size {size}: 512, 1024, 2048 or 4096")),
    }
}

async fn dump(rt: &Rt, args: CryptDump) -> anyhow::Result<Outcome> {
    let target = Target::to_look(rt, &args.stack, args.image.as_ref()).await?;
    let device = &target.device;
    let header = Header::read(device, None)
        .await
        .with_context(|| format!("no LUKS header to show on {}", device.geometry().dev))?;
    for note in header.notes() {
        eprintln!("varve: warning: {}: {note}", device.geometry().dev);
    }
    let superblock = target.superblock(&header).await;
    if args.json {
        let mut json = header.to_json();
        if let (Some(found), Some(json)) = (&superblock, json.as_object_mut()) {
            json.insert("dm_integrity".into(), integrity::json(found)?);
        }
        output::json(&json)?;
        return Ok(Outcome::Fine);
    }
    let mut out = output::stdout();
    write!(out, "{header}")?;
    if let Some(found) = &superblock {
        integrity::show(&mut out, found)?;
    }
    out.flush()?;
    Ok(Outcome::Fine)
}

async fn test(rt: &Rt, args: CryptTest) -> anyhow::Result<Outcome> {
    let target = Target::to_look(rt, &args.stack, args.image.as_ref()).await?;
    let secret = target.secret()?;
    let report = varve_crypt::test(rt, &target.device, &target.options(), &secret).await?;
    if args.json {
        output::json(&report)?;
        return Ok(Outcome::Fine);
    }
    let mut out = output::stdout();
    let unbound = if report.unbound { ", which belongs to no volume" } else { "" };
    writeln!(out, "the key opens slot {}{unbound}", report.slot)?;
    out.flush()?;
    Ok(Outcome::Fine)
}
