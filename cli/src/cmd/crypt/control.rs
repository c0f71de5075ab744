//! `varve crypt suspend|resume`: what a running server is told through its control socket.

use crate::args::{CryptResume, CryptSuspend};
use crate::config::secret_of;
use crate::failure::{Outcome, usage};
use crate::{config::SecretSource, secret};
use anyhow::{Context, bail};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use varve_nbd_server::Listen;

/// Longest answer: an error in one line.
const ANSWER_MAX: u64 = 64 << 10;

pub(super) fn suspend(args: &CryptSuspend) -> anyhow::Result<Outcome> {
    ask(&args.control, "suspend\n", &[])
}

pub(super) fn resume(args: &CryptResume) -> anyhow::Result<Outcome> {
    let source = secret_of(&args.secret, false)?.unwrap_or(SecretSource::Prompt);
    let secret = secret::read(&source)?;
    ask(&args.control, &format!("resume {}\n", secret.len()), &[secret.bytes()])
}

fn ask(control: &Listen, line: &str, secrets: &[&[u8]]) -> anyhow::Result<Outcome> {
    let Listen::Unix(path) = control else {
        return usage("--control is a Unix socket: unix:PATH");
    };
    say(path, line, secrets).map(|_| Outcome::Fine)
}

/// Says it, and gives what is answered.
pub(super) fn say(path: &Path, line: &str, secrets: &[&[u8]]) -> anyhow::Result<String> {
    let what = || format!("no server answers at {}", path.display());
    let mut stream = UnixStream::connect(path).with_context(what)?;
    stream.write_all(line.as_bytes()).with_context(what)?;
    for secret in secrets {
        stream.write_all(secret).with_context(what)?;
    }
    let mut answer = String::new();
    BufReader::new((&stream).take(ANSWER_MAX)).read_line(&mut answer).with_context(what)?;
    match answer.trim_end().split_once(' ') {
        Some(("ok", said)) => Ok(said.to_owned()),
        Some(("error", why)) => bail!("{}: {why}", path.display()),
        _ => bail!("{}: the server hung up without an answer", path.display()),
    }
}
