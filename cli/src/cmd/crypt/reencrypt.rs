//! `varve crypt reencrypt`: another key for data in place, resumable at any moment.

use super::{header_device, pbkdf, sector_size};
use crate::args::{CryptReencrypt, DirectionArg, LuksType, ResilienceArg};
use crate::cmd::output;
use crate::config::{CryptConfig, SecretSource, StackConfig};
use crate::failure::{Outcome, usage};
use crate::stack;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::cell::Cell;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use varve_block::{Dyn, Rt};
use varve_crypt::reencrypt::{
    Devices, Direction, Ended, Mode, Progress, Protect, Reencryption, Start, start, status,
};
use varve_crypt::{CipherSpec, Hash, Key, LuksVersion, UnlockOptions};

pub(super) async fn run(rt: &Rt, args: CryptReencrypt) -> anyhow::Result<Outcome> {
    if args.stack.read_only {
        return usage("--read-only: this command writes to the disk");
    }
    let config = StackConfig::new(&args.stack, args.image.as_deref())?;
    let (secret, header, slot) = match &config.crypt {
        CryptConfig::Luks { secret, header, key_slot } => {
            (secret.clone(), header.clone(), *key_slot)
        }
        CryptConfig::Plain { .. } => {
            return usage("a plain mapping has no header to keep the state in");
        }
        CryptConfig::None => (SecretSource::Prompt, None, None),
    };
    if (args.encrypt || args.decrypt) && header.is_none() {
        return usage(
            "--encrypt and --decrypt keep the header in a file of its own, as the data stay where they \
             are: name it with --header",
        );
    }
    // Before anything is opened: a Ctrl-C must find a state that can be resumed.
    let mut signals = rt.signals()?;
    let stop = Rc::new(Cell::new(false));
    let raised = Rc::clone(&stop);
    let watching = rt.spawn(async move {
        let _ = signals.next().await;
        raised.set(true);
    });
    let stack = stack::open(rt, &config.below_crypt()).await?;
    let done = async {
        let devices = devices(rt, &args, header, stack.top.clone()).await?;
        let options = config.allowed.options(slot);
        work(rt, &args, &devices, &options, &secret, &stop).await
    }
    .await;
    watching.cancel().await;
    let stopped = stack.stop().await;
    let (ended, progress) = done?;
    stopped?;
    say(&args, ended, progress)
}

async fn devices(
    rt: &Rt,
    args: &CryptReencrypt,
    header: Option<PathBuf>,
    data: Dyn,
) -> anyhow::Result<Devices<Dyn>> {
    let Some(path) = header else {
        return Ok(Devices { header: data.clone(), data, detached: false });
    };
    let there = path.exists();
    let header = match args.encrypt {
        // What is there may be an encryption that was interrupted.
        true => header_device(rt, &path, LuksType::Luks2, there).await?,
        false => Dyn::new(stack::open_device(rt, &path, false).await?),
    };
    let devices = Devices { header, data, detached: true };
    if args.encrypt && there && !is_under_way(&devices).await? {
        return usage(format!(
            "{} is there already; --encrypt makes the header file itself",
            path.display()
        ));
    }
    Ok(devices)
}

async fn is_under_way(devices: &Devices<Dyn>) -> anyhow::Result<bool> {
    match status(&devices.header, &UnlockOptions::default()).await {
        Ok(state) => Ok(state.is_some()),
        Err(varve_crypt::Error::NotLuks(_)) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

async fn work(
    rt: &Rt,
    args: &CryptReencrypt,
    devices: &Devices<Dyn>,
    options: &UnlockOptions,
    secret: &SecretSource,
    stop: &Rc<Cell<bool>>,
) -> anyhow::Result<(Ended, Progress)> {
    let under_way = is_under_way(devices).await?;
    if !under_way && args.resume_only {
        return usage("no re-encryption of this volume is under way");
    }
    if under_way && chooses(args) {
        return usage(
            "a re-encryption is under way and has its choices in the header: give --resume-only and \
             the secret",
        );
    }
    let secrets = secrets(args, secret, args.encrypt && !under_way)?;
    let work = match under_way {
        true => Reencryption::resume(rt, devices, options, &secrets).await?,
        false => start(rt, devices, options, &plan(args, secrets)?).await?,
    };
    let work = work.accepting_damage(args.accept_damage);
    let work = match args.hotzone_size {
        Some(size) => work.with_zone(size.0)?,
        None => work,
    };
    let progress = work.progress();
    if args.init_only {
        return Ok((Ended::Interrupted(progress), progress));
    }
    let bar = bar(progress, args.json);
    let mut watch = |now: Progress| {
        bar.set_position(now.done);
        if stop.get() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
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

/// A choice that belongs to a beginning.
fn chooses(args: &CryptReencrypt) -> bool {
    args.cipher.is_some()
        || args.key_size.is_some()
        || args.sector_size.is_some()
        || args.resilience.is_some()
        || args.direction.is_some()
        || args.init_only
}

fn secrets(
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

fn plan(args: &CryptReencrypt, secrets: Vec<Arc<Key>>) -> anyhow::Result<Start> {
    let mut plan = Start::new(secrets, pbkdf::protection(&args.pbkdf, LuksVersion::Luks2)?);
    plan.mode = match (args.encrypt, args.decrypt) {
        (true, _) => Mode::Encrypt,
        (_, true) => Mode::Decrypt,
        _ => Mode::Reencrypt,
    };
    if args.direction == Some(DirectionArg::Backward) {
        plan.direction = Direction::Backward;
    }
    plan.protect = match args.resilience {
        Some(ResilienceArg::None) => Protect::None,
        Some(ResilienceArg::Journal) => Protect::Journal,
        Some(ResilienceArg::Checksum) | None => Protect::Checksum(Hash::Sha256),
    };
    if let Some(cipher) = &args.cipher {
        plan.cipher = CipherSpec::parse(cipher)?;
    }
    plan.key_bits = args.key_size.unwrap_or(plan.key_bits);
    plan.sector_size = args.sector_size.map(sector_size).transpose()?;
    plan.drop_other_keys = args.drop_other_keys;
    Ok(plan)
}

fn bar(progress: Progress, quiet: bool) -> ProgressBar {
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

fn say(args: &CryptReencrypt, ended: Ended, progress: Progress) -> anyhow::Result<Outcome> {
    let finished = ended == Ended::Finished;
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
