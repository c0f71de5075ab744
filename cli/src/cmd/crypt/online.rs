//! `varve crypt reencrypt --online`: what a running server is told, and how far it is.

use super::control::say;
use super::reencrypt::{bar, report, secrets};
use crate::args::CryptReencrypt;
use crate::cmd::interrupt::Interrupt;
use crate::config::{SecretSource, secret_of};
use crate::failure::{Outcome, usage};
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;
use varve_block::Rt;
use varve_crypt::reencrypt::Progress;
use varve_nbd_server::Listen;

/// How often the server is asked.
const LOOK: Duration = Duration::from_millis(300);

/// What the server is told: the words of the command, which hold no secret, and how long the secrets are
/// that follow.
#[derive(Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) words: Vec<String>,
    pub(crate) secrets: Vec<u64>,
}

/// What the server says about it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) state: State,
    pub(crate) done: u64,
    pub(crate) total: u64,
    pub(crate) error: Option<String>,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    None,
    Running,
    Stopped,
    Finished,
    Failed,
}

pub(super) async fn run(rt: &Rt, args: CryptReencrypt) -> anyhow::Result<Outcome> {
    let Some(Listen::Unix(path)) = args.control.clone() else {
        return usage("--control is a Unix socket: unix:PATH");
    };
    if args.image.is_some() || args.stack.backing.is_some() || args.stack.header.is_some() {
        return usage(
            "--online is about the volume that the server has: name no disk and no header",
        );
    }
    let source = secret_of(&args.stack.secret, args.stack.unlock)?.unwrap_or(SecretSource::Prompt);
    let secrets = secrets(&args, &source, false)?;
    let order = Order {
        words: std::env::args().skip_while(|w| w != "reencrypt").skip(1).collect(),
        secrets: secrets.iter().map(|s| s.len() as u64).collect(),
    };
    let order = serde_json::to_string(&order)?;
    let bytes: Vec<&[u8]> = secrets.iter().map(|s| s.bytes()).collect();
    // From here on the server works, also without us; a Ctrl-C asks it to stop.
    let interrupt = Interrupt::watch(rt)?;
    say(&path, &format!("reencrypt {order}\n"), &bytes)?;
    let ended = follow(rt, &path, &args, &interrupt).await;
    interrupt.end().await;
    let last = ended?;
    let progress = Progress { done: last.done, total: last.total };
    match last.state {
        State::Failed => bail!("{}", last.error.unwrap_or_default()),
        state => report(&args, state == State::Finished, progress),
    }
}

async fn follow(
    rt: &Rt,
    path: &Path,
    args: &CryptReencrypt,
    interrupt: &Interrupt,
) -> anyhow::Result<Report> {
    let mut shown = None;
    let mut told = false;
    loop {
        let text = say(path, "progress\n", &[])?;
        let report: Report = serde_json::from_str(&text).context("an answer without sense")?;
        let progress = Progress { done: report.done, total: report.total };
        let bar = shown.get_or_insert_with(|| bar(progress, args.json));
        bar.set_position(report.done);
        if report.state != State::Running {
            bar.finish_and_clear();
            return Ok(report);
        }
        if interrupt.is_raised() && !told {
            say(path, "halt\n", &[])?;
            told = true;
        }
        rt.sleep(LOOK).await;
    }
}
