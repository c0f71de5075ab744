//! Reading the unlocking secret: never from the command line, never into a log.

use crate::config::SecretSource;
use anyhow::{Context, bail};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use zeroize::Zeroizing;

/// The unlocking secret; wiped when dropped.
pub(crate) type Secret = Zeroizing<Vec<u8>>;

/// cryptsetup's limit for key files (8 MiB); a larger one is a mistake.
const KEY_FILE_MAX: u64 = 8 << 20;
/// cryptsetup's limit for passphrases.
const PASSPHRASE_MAX: u64 = 512;

/// Reads the secret from where the user said it is.
///
/// # Errors
/// When the source cannot be read, is empty, or is longer than a key can be.
pub(crate) fn read(source: &SecretSource) -> anyhow::Result<Secret> {
    match source {
        SecretSource::KeyFile { path, offset, size } => key_file(path, *offset, *size),
        SecretSource::PassphraseFile(path) => {
            let what = || format!("cannot read passphrase file {}", path.display());
            first_line(File::open(path).with_context(what)?, &path.display().to_string())
        }
        SecretSource::PassphraseFd(fd) => from_fd(*fd),
        SecretSource::Prompt => prompt("Passphrase: "),
    }
}

fn key_file(path: &Path, offset: u64, size: Option<u64>) -> anyhow::Result<Secret> {
    let what = || format!("cannot read key file {}", path.display());
    let mut file = File::open(path).with_context(what)?;
    file.seek(SeekFrom::Start(offset)).with_context(what)?;
    // Room for all of it at once: a growing vector would leave copies behind.
    let limit = size.unwrap_or(KEY_FILE_MAX + 1).min(KEY_FILE_MAX + 1);
    let room = file.metadata().map_or(0, |m| m.len().saturating_sub(offset)).min(limit);
    let mut secret = Zeroizing::new(Vec::with_capacity(usize::try_from(room)?.max(4096)));
    file.take(limit).read_to_end(&mut secret).with_context(what)?;
    let len = secret.len() as u64;
    if len > KEY_FILE_MAX {
        bail!("key file {} is larger than 8 MiB", path.display());
    }
    if len == 0 {
        bail!("key file {} has no bytes at offset {offset}", path.display());
    }
    if let Some(size) = size
        && len < size
    {
        bail!("key file {} has only {len} of {size} bytes at offset {offset}", path.display());
    }
    Ok(secret)
}

fn first_line(from: impl Read, name: &str) -> anyhow::Result<Secret> {
    let room = usize::try_from(PASSPHRASE_MAX + 2)?;
    let mut line = Zeroizing::new(Vec::with_capacity(room));
    let mut from = BufReader::with_capacity(64, from).take(PASSPHRASE_MAX + 2);
    from.read_until(b'\n', &mut line).with_context(|| format!("cannot read {name}"))?;
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    if line.is_empty() {
        bail!("the passphrase in {name} is empty");
    }
    if line.len() as u64 > PASSPHRASE_MAX {
        bail!("the passphrase in {name} is longer than {PASSPHRASE_MAX} bytes");
    }
    Ok(line)
}

/// Reopened through /proc, so that the caller's descriptor is neither closed nor moved under it.
fn from_fd(fd: i32) -> anyhow::Result<Secret> {
    let file = File::open(format!("/proc/self/fd/{fd}"))
        .with_context(|| format!("cannot read from file descriptor {fd}"))?;
    first_line(file, &format!("file descriptor {fd}"))
}

/// Asks on the terminal without echo.
///
/// # Errors
/// When there is no terminal.
pub(crate) fn prompt(text: &str) -> anyhow::Result<Secret> {
    let mut tty = File::options()
        .read(true)
        .write(true)
        .open("/dev/tty")
        .context("no terminal to ask for the passphrase on")?;
    let before = tcgetattr(&tty).context("the terminal does not answer")?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    silent.local_modes.insert(LocalModes::ECHONL);
    tty.write_all(text.as_bytes())?;
    tty.flush()?;
    tcsetattr(&tty, OptionalActions::Flush, &silent)?;
    let line = first_line(&tty, "the answer");
    tcsetattr(&tty, OptionalActions::Flush, &before)?;
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_is_raw_and_a_passphrase_file_is_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, b"secret\nmore").unwrap();
        let whole = SecretSource::KeyFile { path: path.clone(), offset: 0, size: None };
        assert_eq!(read(&whole).unwrap().as_slice(), b"secret\nmore");
        let part = SecretSource::KeyFile { path: path.clone(), offset: 2, size: Some(3) };
        assert_eq!(read(&part).unwrap().as_slice(), b"cre");
        let short = SecretSource::KeyFile { path: path.clone(), offset: 9, size: Some(3) };
        assert!(read(&short).is_err());
        assert_eq!(read(&SecretSource::PassphraseFile(path)).unwrap().as_slice(), b"secret");
        assert!(read(&SecretSource::PassphraseFd(987)).is_err());
    }
}
