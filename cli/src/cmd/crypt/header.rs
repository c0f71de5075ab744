//! `varve crypt header-backup`, `header-restore`, `repair`, `uuid`, `is-luks`, `config`.

use super::target::Target;
use crate::args::{
    CryptConfigure, CryptConvert, CryptHeaderBackup, CryptHeaderRestore, CryptIsLuks, CryptRepair,
    CryptUuid, HeaderCopyArg, LuksType, PriorityArg,
};
use crate::cmd::output;
use crate::failure::{Outcome, usage};
use crate::secret;
use anyhow::{Context, bail};
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use varve_block::{BlockDevice, Rt};
use varve_crypt::{Backup, Error, Header, HeaderCopy, Priority, Settings};
use zeroize::Zeroizing;

/// Longest backup: two copies of 4 MiB and 128 MiB of keyslots.
const BACKUP_MAX: u64 = 136 << 20;

pub(super) async fn backup(rt: &Rt, args: CryptHeaderBackup) -> anyhow::Result<Outcome> {
    let target = Target::to_look(rt, &args.stack, args.image.as_ref()).await?;
    let (bytes, header) = varve_crypt::backup(&target.device, None).await?;
    for note in header.notes() {
        eprintln!("varve: warning: {}: {note}", target.device.geometry().dev);
    }
    save(&args.file, &bytes)?;
    let mut out = output::stdout();
    writeln!(
        out,
        "header and key slots of volume {} are in {}; keep it as safe as the keys: it opens the volume \
         with the passphrases of today for ever",
        header.uuid(),
        args.file.display()
    )?;
    out.flush()?;
    Ok(Outcome::Fine)
}

/// A new file that only its owner reads, durable with its name.
fn save(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let what = || format!("cannot make {}", path.display());
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(path)
        .with_context(what)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if let Err(error) = written {
        // Half a backup must not be taken for one.
        let _ = std::fs::remove_file(path);
        return Err(error).with_context(|| format!("cannot write {}", path.display()));
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|f| f.sync_all()).with_context(what)?;
    Ok(())
}

pub(super) async fn restore(rt: &Rt, args: CryptHeaderRestore) -> anyhow::Result<Outcome> {
    let what = || format!("cannot read the backup {}", args.file.display());
    let mut bytes = Zeroizing::new(Vec::new());
    let file = File::open(&args.file).with_context(what)?;
    file.take(BACKUP_MAX + 1).read_to_end(&mut bytes).with_context(what)?;
    let backup =
        Backup::parse(bytes).with_context(|| format!("no backup in {}", args.file.display()))?;
    let target = Target::to_change(rt, &args.stack, args.image.as_ref()).await?;
    let done = restore_to(&target, &backup, &args).await;
    target.close(done).await?;
    let mut out = output::stdout();
    writeln!(out, "the header of volume {} was restored", backup.header().uuid())?;
    out.flush()?;
    Ok(Outcome::Fine)
}

async fn restore_to(
    target: &Target,
    backup: &Backup,
    args: &CryptHeaderRestore,
) -> anyhow::Result<()> {
    let device = &target.device;
    let dev = device.geometry().dev;
    let present = match Header::read(device, None).await {
        Ok(header) => Some(header),
        // A header that is damaged or gone is what backups are for.
        Err(Error::NotLuks(_) | Error::Corrupt(_) | Error::Refused { .. }) => None,
        Err(e) => return Err(e.into()),
    };
    let concerns = backup.concerns(present.as_ref());
    if !args.force {
        if !concerns.is_empty() {
            bail!("{dev}: the backup does not match, --force restores it: {}", concerns.join("; "));
        }
        let question = match present {
            Some(_) => format!(
                "{dev} has a LUKS header: keys that were added or changed since the backup will be lost."
            ),
            None => format!("{dev} has no LUKS header: what is at its start will be overwritten."),
        };
        secret::confirm(&question, "--force does it without asking")?;
    }
    if let Some(path) = &args.save_old {
        let old = match present {
            Some(_) => varve_crypt::backup(device, None).await?.0,
            None => varve_crypt::before_repair(device).await?,
        };
        save(path, &old)?;
    }
    backup.restore(device).await?;
    Ok(())
}

pub(super) async fn convert(rt: &Rt, args: CryptConvert) -> anyhow::Result<Outcome> {
    let target = Target::to_change(rt, &args.stack, args.image.as_ref()).await?;
    let done = async {
        let device = &target.device;
        let dev = device.geometry().dev;
        let header = Header::read(device, None).await?;
        let to = match args.to {
            LuksType::Luks1 => 1,
            LuksType::Luks2 => 2,
        };
        if header.version() == to {
            bail!("{dev} is LUKS{to} already");
        }
        varve_crypt::can_convert(device).await?;
        if !args.force {
            let question =
                format!("The header of {dev} will become LUKS{to}; its data stays as it is.");
            secret::confirm(&question, "--force does it without asking")?;
        }
        save(&args.save_old, &varve_crypt::backup(device, None).await?.0)?;
        match args.to {
            LuksType::Luks1 => varve_crypt::convert_to_luks1(device).await?,
            LuksType::Luks2 => varve_crypt::convert_to_luks2(device).await?,
        }
        anyhow::Ok(format!("{dev} is LUKS{to} now"))
    }
    .await;
    let said = target.close(done).await?;
    let mut out = output::stdout();
    writeln!(out, "{said}")?;
    out.flush()?;
    Ok(Outcome::Fine)
}

pub(super) async fn repair(rt: &Rt, args: CryptRepair) -> anyhow::Result<Outcome> {
    let copy = args.header_copy.map(|c| match c {
        HeaderCopyArg::Primary => HeaderCopy::Primary,
        HeaderCopyArg::Secondary => HeaderCopy::Secondary,
    });
    let image = args.image.as_ref();
    if args.dry_run {
        let target = Target::to_look(rt, &args.stack, image).await?;
        let found = varve_crypt::damage(&target.device, copy).await?;
        report(&found, args.json, "would be")?;
        return Ok(if found.is_none() { Outcome::Fine } else { Outcome::Problems });
    }
    let target = Target::to_change(rt, &args.stack, image).await?;
    let done = async {
        let found = varve_crypt::damage(&target.device, copy).await?;
        if found.is_none() {
            return anyhow::Ok(found);
        }
        let path = args.save_old.as_ref().expect("the command line asks for it");
        save(path, &varve_crypt::before_repair(&target.device).await?)?;
        Ok(varve_crypt::repair(&target.device, copy).await?)
    }
    .await;
    let found = target.close(done).await?;
    report(&found, args.json, "was")?;
    Ok(Outcome::Fine)
}

fn report(found: &varve_crypt::Damage, as_json: bool, was: &str) -> anyhow::Result<()> {
    if as_json {
        return output::json(found);
    }
    let mut out = output::stdout();
    for note in &found.notes {
        writeln!(out, "{note}")?;
    }
    match found.rewrites {
        Some(HeaderCopy::Primary) => writeln!(out, "the primary header {was} rewritten")?,
        Some(HeaderCopy::Secondary) => writeln!(out, "the secondary header {was} rewritten")?,
        None if found.cleans => {
            writeln!(out, "the metadata {was} rewritten without what is left over")?
        }
        None => writeln!(out, "nothing to repair")?,
    }
    out.flush()?;
    Ok(())
}

pub(super) async fn uuid(rt: &Rt, args: CryptUuid) -> anyhow::Result<Outcome> {
    let image = args.image.as_ref();
    let Some(new) = args.set else {
        let target = Target::to_look(rt, &args.stack, image).await?;
        let header = Header::read(&target.device, None).await?;
        let mut out = output::stdout();
        writeln!(out, "{}", varve_crypt::printable(header.uuid()))?;
        out.flush()?;
        return Ok(Outcome::Fine);
    };
    let target = Target::to_change(rt, &args.stack, image).await?;
    let done = async {
        let header = Header::read(&target.device, None).await?;
        if !args.force {
            let old = varve_crypt::printable(header.uuid());
            let question =
                format!("Whoever looks for volume {old} by its UUID will not find it any more.");
            secret::confirm(&question, "--force does it without asking")?;
        }
        anyhow::Ok(varve_crypt::set_uuid(&target.device, None, new).await?)
    }
    .await;
    target.close(done).await?;
    Ok(Outcome::Fine)
}

pub(super) async fn is_luks(rt: &Rt, args: CryptIsLuks) -> anyhow::Result<Outcome> {
    let target = Target::to_look(rt, &args.stack, args.image.as_ref()).await?;
    let found = match Header::read(&target.device, None).await {
        Ok(Header::Luks1(_)) => Some(LuksType::Luks1),
        Ok(Header::Luks2(_)) => Some(LuksType::Luks2),
        Err(e @ Error::Device(_)) => return Err(e.into()),
        Err(_) => None,
    };
    let asked = found.is_some_and(|f| args.luks_type.is_none_or(|t| t == f));
    Ok(if asked { Outcome::Fine } else { Outcome::Problems })
}

pub(super) async fn configure(rt: &Rt, args: CryptConfigure) -> anyhow::Result<Outcome> {
    let priority = args.priority.map(|p| match p {
        PriorityArg::Prefer => Priority::Prefer,
        PriorityArg::Normal => Priority::Normal,
        PriorityArg::Ignore => Priority::Ignore,
    });
    let flags = args.flags.as_ref().map(|list| {
        list.split(',').map(str::trim).filter(|f| !f.is_empty()).map(str::to_owned).collect()
    });
    let settings = Settings {
        label: args.label,
        subsystem: args.subsystem,
        priority: args.stack.key_slot.zip(priority),
        flags,
    };
    if json!([settings.label, settings.subsystem, settings.flags]) == json!([null, null, null])
        && settings.priority.is_none()
    {
        return usage(
            "change what? give --label, --subsystem, --flags, or --key-slot and --priority",
        );
    }
    let target = Target::to_change(rt, &args.stack, args.image.as_ref()).await?;
    let done = varve_crypt::configure(target.device.clone(), None, settings).await;
    target.close(done.map_err(Into::into)).await?;
    Ok(Outcome::Fine)
}
