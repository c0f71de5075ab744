//! `varve crypt reencrypt`: another key for data in place, resumable at any moment.

use super::{header_device, pbkdf, sector_size};
use crate::args::{CryptReencrypt, DirectionArg, LuksType, ResilienceArg};
use crate::cmd::interrupt::Interrupt;
use crate::cmd::output;
use crate::config::{CryptConfig, SecretSource, StackConfig};
use crate::failure::{Outcome, usage};
use crate::place::Place;
use crate::stack;
use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use varve_block::{Dyn, Rt};
use varve_crypt::reencrypt::{
    Devices, Direction, Ended, Mode, Progress, Protect, Reencryption, Start, export_header,
    is_export, start, status,
};
use varve_crypt::{CipherSpec, Hash, Header, Key, LuksVersion, UnlockOptions};

/// Hot at once while clients are served.
const ONLINE_ZONE: u64 = 4 << 20;

pub(super) async fn run(rt: &Rt, args: CryptReencrypt) -> anyhow::Result<Outcome> {
    if args.stack.read_only {
        return usage("--read-only: this command writes to the disk");
    }
    let config = StackConfig::new(&args.stack, args.image.as_ref())?;
    let (secret, header, slot) = match &config.crypt {
        CryptConfig::Luks { secret, header, key_slot } => {
            (secret.clone(), header.clone(), *key_slot)
        }
        CryptConfig::Plain { .. } => {
            return usage("a plain mapping has no header to keep the state in");
        }
        CryptConfig::None => (SecretSource::Prompt, None, None),
    };
    if args.encrypt && header.is_none() && args.reduce_device_size.is_none() {
        return usage(
            "--encrypt needs a place for the header: a file of its own (--header), or room that the disk \
             gives up (--reduce-device-size)",
        );
    }
    if args.decrypt && header.is_none() {
        return usage(
            "--decrypt needs --header: the file of the detached header, or a new file to which the \
             header on the disk is exported",
        );
    }
    // Before anything is opened: a Ctrl-C must find a state that can be resumed.
    let interrupt = Interrupt::watch(rt)?;
    let stack = stack::open(rt, &config.below_crypt()).await?;
    let done = async {
        let (devices, moves) = devices(rt, &args, header, stack.top.clone()).await?;
        let options = config.allowed.options(slot);
        work(rt, &args, (&devices, moves), &options, &secret, &interrupt).await
    }
    .await;
    interrupt.end().await;
    let stopped = stack.stop().await;
    let (ended, progress) = done?;
    stopped?;
    report(&args, ended == Ended::Finished, progress)
}

/// Header and data, and whether a beginning would move the data.
async fn devices(
    rt: &Rt,
    args: &CryptReencrypt,
    header: Option<Place>,
    data: Dyn,
) -> anyhow::Result<(Devices<Dyn>, bool)> {
    let Some(place) = header else {
        let moves = args.reduce_device_size.is_some();
        return Ok((Devices { header: data.clone(), data, detached: false }, moves));
    };
    let there = place.exists();
    if let (Place::Path(path), true) = (&place, args.decrypt && !there) {
        let bytes = export_header(&data).await?;
        save_header(path, &bytes)?;
    }
    let header = match args.encrypt {
        // What is there may be an encryption that was interrupted.
        true => header_device(rt, &place, LuksType::Luks2, there).await?,
        false => Dyn::new(stack::open_device(rt, &place, false).await?),
    };
    let devices = Devices { header, data, detached: true };
    if args.encrypt && there && !is_under_way(args, &devices).await? {
        return usage(format!("{place} is there already; --encrypt makes the header file itself"));
    }
    let moves = args.decrypt
        && matches!(Header::read(&devices.header, None).await?,
            Header::Luks2(h) if is_export(&h.metadata));
    Ok((devices, moves))
}

/// A file that is there whole or not at all: from now on it is the only header.
fn save_header(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let what = || format!("cannot make header file {}", path.display());
    let name = path.file_name().with_context(what)?.to_string_lossy();
    let part = path.with_file_name(format!(".{name}.part"));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&part)
        .with_context(what)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).with_context(what)?;
    std::fs::rename(&part, path).with_context(what)?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|f| f.sync_all()).with_context(what)
}

async fn is_under_way(args: &CryptReencrypt, devices: &Devices<Dyn>) -> anyhow::Result<bool> {
    match status(&devices.header, &UnlockOptions::default()).await {
        Ok(state) => Ok(state.is_some()),
        // A header that a cut kept from being whole; the beginning finds what was left for it.
        Err(_) if args.encrypt => Ok(false),
        Err(e) => Err(e.into()),
    }
}

async fn work(
    rt: &Rt,
    args: &CryptReencrypt,
    (devices, moves): (&Devices<Dyn>, bool),
    options: &UnlockOptions,
    secret: &SecretSource,
    interrupt: &Interrupt,
) -> anyhow::Result<(Ended, Progress)> {
    let secrets = |new| secrets(args, secret, new);
    let work = take_up(rt, args, (devices, moves), options, secrets).await?;
    let progress = work.progress();
    if args.init_only {
        return Ok((Ended::Interrupted(progress), progress));
    }
    let bar = bar(progress, args.json);
    let mut watch = |now: Progress| {
        bar.set_position(now.done);
        interrupt.flow()
    };
    let ended = work.run(&mut watch).await;
    bar.finish_and_clear();
    let ended = ended?;
    let now = match ended {
        Ended::Finished => Progress { done: progress.total, ..progress },
        Ended::Interrupted(now) => now,
    };
    Ok((ended, now))
}

/// Begins what was asked for, or goes on with what is under way. `secrets` is told whether the first one is
/// new.
pub(crate) async fn take_up(
    rt: &Rt,
    args: &CryptReencrypt,
    (devices, moves): (&Devices<Dyn>, bool),
    options: &UnlockOptions,
    secrets: impl FnOnce(bool) -> anyhow::Result<Vec<Arc<Key>>>,
) -> anyhow::Result<Reencryption<Dyn>> {
    let under_way = is_under_way(args, devices).await?;
    if !under_way && args.resume_only {
        return usage("no re-encryption of this volume is under way");
    }
    if under_way && chooses(args) {
        return usage(
            "a re-encryption is under way and has its choices in the header: give --resume-only and \
             the secret",
        );
    }
    if args.online && args.resilience == Some(ResilienceArg::None) {
        return usage("--resilience none is for volumes that nobody uses meanwhile");
    }
    let secrets = secrets(args.encrypt && !under_way)?;
    let work = match under_way {
        true => Reencryption::resume(rt, devices, options, &secrets).await?,
        false => start(rt, devices, options, &plan(args, secrets, moves)?).await?,
    };
    let work = work.accepting_damage(args.accept_damage);
    match args.hotzone_size {
        Some(size) => Ok(work.with_zone(size.0)?),
        // Requests to a zone wait for all of it.
        None if args.online => Ok(work.with_zone(ONLINE_ZONE)?),
        None => Ok(work),
    }
}

/// A choice that belongs to a beginning.
fn chooses(args: &CryptReencrypt) -> bool {
    args.cipher.cipher.is_some()
        || args.cipher.key_size.is_some()
        || args.cipher.sector_size.is_some()
        || args.resilience.is_some()
        || args.direction.is_some()
        || args.init_only
}

pub(super) fn secrets(
    args: &CryptReencrypt,
    first: &SecretSource,
    new: bool,
) -> anyhow::Result<Vec<Arc<Key>>> {
    let mut secrets = vec![match new {
        true => Arc::new(crate::secret::read_new(first)?),
        false => stack::read_key(first)?,
    }];
    let files = args.also_key_file.iter().map(|path| SecretSource::KeyFile {
        path: path.clone(),
        offset: 0,
        size: None,
    });
    let lines = args.also_passphrase_file.iter().cloned().map(SecretSource::PassphraseFile);
    for source in files.chain(lines) {
        secrets.push(stack::read_key(&source)?);
    }
    Ok(secrets)
}

fn plan(args: &CryptReencrypt, secrets: Vec<Arc<Key>>, moves: bool) -> anyhow::Result<Start> {
    let mut plan = Start::new(secrets, pbkdf::protection(&args.pbkdf, LuksVersion::Luks2)?);
    plan.mode = match (args.encrypt, args.decrypt) {
        (true, _) => Mode::Encrypt,
        (_, true) => Mode::Decrypt,
        _ => Mode::Reencrypt,
    };
    if moves && args.direction.is_some() {
        return usage("data that move can be done from one end only: leave --direction out");
    }
    if args.direction == Some(DirectionArg::Backward) {
        plan.direction = Direction::Backward;
    }
    plan.protect = protect(args, moves)?;
    plan.reduce = args.reduce_device_size.map(|size| size.0);
    if let Some(cipher) = &args.cipher.cipher {
        plan.cipher = CipherSpec::parse(cipher)?;
    }
    plan.key_bits = args.cipher.key_size.unwrap_or(plan.key_bits);
    plan.sector_size = args.cipher.sector_size.map(sector_size).transpose()?;
    plan.drop_other_keys = args.drop_other_keys;
    Ok(plan)
}

/// What is said must fit what is done: a resilience that does nothing would be a promise not kept.
fn protect(args: &CryptReencrypt, moves: bool) -> anyhow::Result<Protect> {
    use ResilienceArg::{Checksum, Datashift, DatashiftChecksum, DatashiftJournal, Journal, None};
    let checksum = Protect::Checksum(Hash::Sha256);
    let Some(said) = args.resilience else { return Ok(checksum) };
    match (said, moves, args.encrypt) {
        (Datashift, true, true) => Ok(Protect::None),
        (DatashiftChecksum, true, false) | (Checksum, false, _) => Ok(checksum),
        (DatashiftJournal, true, false) | (Journal, false, _) => Ok(Protect::Journal),
        (None, false, _) => Ok(Protect::None),
        (_, true, true) => usage("data that move to make room have --resilience datashift"),
        (_, true, false) => usage(
            "data that move to where the header was have --resilience datashift-checksum or \
             datashift-journal",
        ),
        (_, false, _) => usage("--resilience datashift is for data that move"),
    }
}

pub(super) fn bar(progress: Progress, quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(progress.total).with_position(progress.done);
    let template = "{bar:30} {bytes} of {total_bytes}, {binary_bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.reset_eta();
    bar
}

/// How it ended.
pub(super) fn report(
    args: &CryptReencrypt,
    finished: bool,
    progress: Progress,
) -> anyhow::Result<Outcome> {
    let outcome = if finished || args.init_only { Outcome::Fine } else { Outcome::Problems };
    if args.json {
        output::json(&json!({
            "finished": finished,
            "done": progress.done,
            "total": progress.total,
        }))?;
        return Ok(outcome);
    }
    let mut out = output::stdout();
    match finished {
        true => writeln!(out, "{} bytes are converted", progress.total)?,
        false => writeln!(
            out,
            "{} of {} bytes are converted; varve crypt reencrypt --resume-only goes on",
            progress.done, progress.total
        )?,
    }
    out.flush()?;
    Ok(outcome)
}
