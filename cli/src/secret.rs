//! Reading the unlocking secret: never from the command line, never into a log.

use crate::config::SecretSource;
use anyhow::{Context, bail};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use varve_crypt::{Key, KeyFilePart, read_key, read_key_file, read_passphrase};

/// Reads the secret from where the user said it is.
///
/// # Errors
/// When the source cannot be read, is empty, or is longer than a key can be.
pub(crate) fn read(source: &SecretSource) -> anyhow::Result<Key> {
    match source {
        SecretSource::KeyFile { path, offset, size } => {
            key_file(path, KeyFilePart { offset: *offset, size: *size })
        }
        SecretSource::PassphraseFile(path) => {
            let what = || format!("cannot read passphrase file {}", path.display());
            let file = File::open(path).with_context(what)?;
            Ok(read_passphrase(file, &path.display().to_string())?)
        }
        SecretSource::PassphraseFd(fd) => from_fd(*fd),
        SecretSource::Prompt => prompt("Passphrase: "),
    }
}

/// Reads a secret that is going to be needed again. One that is typed is typed twice: nobody can see
/// what was typed.
///
/// # Errors
/// As [`read`], and when the two differ.
pub(crate) fn read_new(source: &SecretSource) -> anyhow::Result<Key> {
    if *source != SecretSource::Prompt {
        return read(source);
    }
    let first = prompt("New passphrase: ")?;
    if prompt("The same again: ")? != first {
        bail!("the two passphrases differ");
    }
    Ok(first)
}

fn key_file(path: &Path, part: KeyFilePart) -> anyhow::Result<Key> {
    if path == Path::new("-") {
        return Ok(read_key(io::stdin().lock(), part, "standard input")?);
    }
    Ok(read_key_file(path, part)?)
}

/// Reopened through /proc, so that the caller's descriptor is neither closed nor moved under it.
fn from_fd(fd: i32) -> anyhow::Result<Key> {
    let file = File::open(format!("/proc/self/fd/{fd}"))
        .with_context(|| format!("cannot read from file descriptor {fd}"))?;
    Ok(read_passphrase(file, &format!("file descriptor {fd}"))?)
}

/// What Ctrl-C sends.
const INTERRUPT: u8 = 3;

/// Asks on the terminal without echo.
///
/// Ctrl-C comes as a byte and not as a signal, which would leave the terminal without its echo.
///
/// # Errors
/// When there is no terminal.
fn prompt(text: &str) -> anyhow::Result<Key> {
    let mut tty = File::options()
        .read(true)
        .write(true)
        .open("/dev/tty")
        .context("no terminal to ask for the passphrase on")?;
    let before = tcgetattr(&tty).context("the terminal does not answer")?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
    silent.local_modes.insert(LocalModes::ECHONL);
    silent.special_codes[SpecialCodeIndex::VEOL] = INTERRUPT;
    // Silent before anybody is asked: who types fast must not be seen either.
    tcsetattr(&tty, OptionalActions::Flush, &silent)?;
    let asked = tty.write_all(text.as_bytes()).and_then(|()| tty.flush());
    let line = asked.map(|()| read_passphrase(Typed(&tty), "the terminal"));
    tcsetattr(&tty, OptionalActions::Flush, &before)?;
    Ok(line??)
}

/// Asks a question on the terminal whose answer must be spelled out.
///
/// # Errors
/// When the answer is another, or when there is no terminal: then `otherwise` says which option
/// answers it.
pub(crate) fn confirm(question: &str, otherwise: &str) -> anyhow::Result<()> {
    let asked = File::options().read(true).write(true).open("/dev/tty");
    let Ok(mut tty) = asked else {
        bail!("{question} ({otherwise})");
    };
    writeln!(tty, "{question}")?;
    write!(tty, "Type YES in capitals to go on: ")?;
    tty.flush()?;
    match read_passphrase(&tty, "the terminal") {
        Ok(answer) if answer.bytes() == b"YES" => Ok(()),
        _ => bail!("not confirmed, nothing was changed"),
    }
}

/// Bytes from a terminal that does not send signals.
struct Typed<'a>(&'a File);

impl Read for Typed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.0.read(buf)?;
        if buf.get(..n).is_some_and(|bytes| bytes.contains(&INTERRUPT)) {
            return Err(io::Error::other("interrupted"));
        }
        Ok(n)
    }
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
        assert_eq!(read(&whole).unwrap().bytes(), b"secret\nmore");
        let part = SecretSource::KeyFile { path: path.clone(), offset: 2, size: Some(3) };
        assert_eq!(read(&part).unwrap().bytes(), b"cre");
        let short = SecretSource::KeyFile { path: path.clone(), offset: 9, size: Some(3) };
        assert!(read(&short).is_err());
        assert_eq!(read(&SecretSource::PassphraseFile(path)).unwrap().bytes(), b"secret");
        assert!(read(&SecretSource::PassphraseFd(987)).is_err());
        let absent = dir.path().join("absent");
        let typed = SecretSource::KeyFile { path: absent, offset: 0, size: None };
        assert!(read_new(&typed).unwrap_err().to_string().contains("absent"));
    }
}
