//! `varve crypt add-key`, `change-key`, `remove-key`, `kill-slot`, `erase`.

use super::pbkdf::protection;
use super::target::Target;
use crate::args::{
    CryptAddKey, CryptChangeKey, CryptErase, CryptKillSlot, CryptRemoveKey, NewKeyArgs, PbkdfArgs,
    StackArgs,
};
use crate::cmd::output;
use crate::config::SecretSource;
use crate::failure::{Outcome, usage};
use crate::place::Place;
use crate::{secret, stack};
use serde_json::json;
use std::io::Write;
use std::sync::Arc;
use varve_block::{BlockDevice, Rt};
use varve_crypt::{Header, LuksVersion, NewKey, Proof};

pub(super) async fn add(rt: &Rt, args: CryptAddKey) -> anyhow::Result<Outcome> {
    let target = Target::to_change(rt, &args.stack, args.image.as_ref()).await?;
    let done = add_to(rt, &target, &args).await;
    let slot = target.close(done).await?;
    said(args.json, &json!({ "slot": slot }), &format!("the new key is in slot {slot}"))
}

async fn add_to(rt: &Rt, target: &Target, args: &CryptAddKey) -> anyhow::Result<u32> {
    let (device, options) = (&target.device, target.options());
    let version = version_of(target).await?;
    if args.unbound {
        let Some(bytes) = args.key_size.checked_div(8).filter(|_| args.key_size.is_multiple_of(8))
        else {
            return usage(format!("--key-size {}: whole bytes", args.key_size));
        };
        let new = new_key(&args.new, &args.pbkdf, version)?;
        return Ok(varve_crypt::add_unbound_key(rt, device, &options, bytes, &new).await?);
    }
    let proof = match &args.volume_key_file {
        None => Proof::Secret(target.secret()?),
        Some(_) if target.has_secret() => {
            return usage(
                "--volume-key-file takes the place of an existing secret: give one of them",
            );
        }
        Some(path) => {
            let source = SecretSource::KeyFile { path: path.clone(), offset: 0, size: None };
            Proof::VolumeKey(stack::read_key(&source)?)
        }
    };
    if let (Proof::Secret(secret), true) = (&proof, asks(&args.new)) {
        // Before somebody types a new one in vain.
        varve_crypt::test(rt, device, &options, secret).await?;
    }
    let new = new_key(&args.new, &args.pbkdf, version)?;
    Ok(varve_crypt::add_key(rt, device, &options, &proof, &new).await?)
}

pub(super) async fn change(rt: &Rt, args: CryptChangeKey) -> anyhow::Result<Outcome> {
    let target = Target::to_change(rt, &args.stack, args.image.as_ref()).await?;
    let done = async {
        let (old, options) = (target.secret()?, target.options());
        let version = version_of(&target).await?;
        if asks(&args.new) {
            varve_crypt::test(rt, &target.device, &options, &old).await?;
        }
        let new = new_key(&args.new, &args.pbkdf, version)?;
        anyhow::Ok(varve_crypt::change_key(rt, &target.device, &options, &old, &new).await?)
    }
    .await;
    let changed = target.close(done).await?;
    let text = match changed.old == changed.new {
        true => format!("the key of slot {} was changed", changed.new),
        false => format!("the new key is in slot {}, slot {} is gone", changed.new, changed.old),
    };
    said(args.json, &json!(changed), &text)
}

pub(super) async fn remove(rt: &Rt, args: CryptRemoveKey) -> anyhow::Result<Outcome> {
    let target = Target::to_change(rt, &args.stack, args.image.as_ref()).await?;
    let done = async {
        let (secret, options) = (target.secret()?, target.options());
        let device = &target.device;
        anyhow::Ok(varve_crypt::remove_key(rt, device, &options, &secret, args.force).await?)
    }
    .await;
    let slot = target.close(done).await?;
    said(args.json, &json!({ "slot": slot }), &format!("slot {slot} was removed"))
}

pub(super) async fn kill(rt: &Rt, args: CryptKillSlot) -> anyhow::Result<Outcome> {
    let (image, slot) = image_and_slot(&args.words, &args.stack)?;
    let target = Target::to_change(rt, &args.stack, image.as_ref()).await?;
    let done = async {
        if !target.has_secret() && !args.force {
            return usage(
                "give the secret of a slot that stays (--key-file, --passphrase-file, \
                 --passphrase-fd, --unlock), or --force to kill the slot without one",
            );
        }
        let witness = target.has_secret().then(|| target.secret()).transpose()?;
        let (device, options) = (&target.device, target.options());
        let witness = witness.as_ref();
        varve_crypt::kill_slot(rt, device, &options, slot, witness, args.force).await?;
        Ok(())
    }
    .await;
    target.close(done).await?;
    said(false, &json!(null), &format!("slot {slot} was removed"))
}

/// `[IMAGE] SLOT`: with a disk or a header named by flags there is no image.
fn image_and_slot(words: &[String], stack: &StackArgs) -> anyhow::Result<(Option<Place>, u32)> {
    let by_flags = stack.backing.is_some() || stack.stack.is_some() || stack.header.is_some();
    let (image, slot) = match words {
        [slot] if by_flags => (None, slot),
        [_] => return usage("which disk? give an image and the slot, or --backing DEV"),
        [image, slot] => (Some(crate::config::place(image)?), slot),
        _ => return usage("give an image and the number of a slot"),
    };
    match slot.parse() {
        Ok(slot) => Ok((image, slot)),
        Err(_) => usage(format!("{slot:?} is no slot number")),
    }
}

pub(super) async fn erase(rt: &Rt, args: CryptErase) -> anyhow::Result<Outcome> {
    let target = Target::to_change(rt, &args.stack, args.image.as_ref()).await?;
    let done = async {
        let header = Header::read(&target.device, None).await?;
        if !args.force {
            secret::confirm(
                &format!(
                    "All keys of volume {} on {} will be destroyed: its data cannot be read any \
                     more without a backup of the header.",
                    header.uuid(),
                    target.device.geometry().dev
                ),
                "--force does it without asking",
            )?;
        }
        anyhow::Ok(varve_crypt::erase(&target.device, &target.options()).await?)
    }
    .await;
    let slots = target.close(done).await?;
    said(false, &json!(null), &format!("{} key slots were destroyed", slots.len()))
}

async fn version_of(target: &Target) -> anyhow::Result<LuksVersion> {
    Ok(match Header::read(&target.device, None).await? {
        Header::Luks1(_) => LuksVersion::Luks1,
        Header::Luks2(_) => LuksVersion::Luks2,
    })
}

/// The new secret will be asked for on the terminal.
fn asks(new: &NewKeyArgs) -> bool {
    new.new_key_file.is_none()
        && new.new_passphrase_file.is_none()
        && new.new_passphrase_fd.is_none()
}

fn new_key(args: &NewKeyArgs, pbkdf: &PbkdfArgs, version: LuksVersion) -> anyhow::Result<NewKey> {
    let mut found = Vec::new();
    if let Some(path) = &args.new_key_file {
        found.push(SecretSource::KeyFile {
            path: path.clone(),
            offset: args.new_keyfile_offset.map_or(0, |s| s.0),
            size: args.new_keyfile_size.map(|s| s.0),
        });
    }
    found.extend(args.new_passphrase_file.clone().map(SecretSource::PassphraseFile));
    found.extend(args.new_passphrase_fd.map(SecretSource::PassphraseFd));
    if found.len() > 1 {
        return usage(
            "give one of --new-key-file, --new-passphrase-file and --new-passphrase-fd, not several",
        );
    }
    let protection = protection(pbkdf, version)?;
    let source = found.pop().unwrap_or(SecretSource::Prompt);
    let secret = Arc::new(secret::read_new(&source)?);
    Ok(NewKey { secret, slot: args.new_key_slot, protection })
}

fn said(as_json: bool, value: &serde_json::Value, text: &str) -> anyhow::Result<Outcome> {
    if as_json {
        output::json(value)?;
        return Ok(Outcome::Fine);
    }
    let mut out = output::stdout();
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(Outcome::Fine)
}
