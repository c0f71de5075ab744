//! The stack as asked for: flags over a TOML file, checked once into a typed [`StackConfig`].

use crate::args::{
    ActivationArgs, AllowedArgs, CacheModeArg, DmIntegrityArgs, DmIntegrityModeArg, SecretArgs,
    StackArgs,
};
use crate::failure::usage;
use crate::place::Place;
use crate::size::Size;
use anyhow::Context;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use varve_crypt::{Activation, HashSpec, Journaling, WORKERS_MAX, Workers};

/// Where the unlocking secret comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SecretSource {
    /// The raw bytes of a file, or a part of them.
    KeyFile { path: PathBuf, offset: u64, size: Option<u64> },
    /// The first line of a file.
    PassphraseFile(PathBuf),
    /// The first line from an open file descriptor.
    PassphraseFd(i32),
    /// The terminal.
    Prompt,
}

/// What is done about encryption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CryptConfig {
    /// What is below is served, ciphertext or not.
    None,
    /// A LUKS volume is opened.
    Luks { secret: SecretSource, header: Option<Place>, key_slot: Option<u32> },
    /// A headerless dm-crypt mapping; the key file is the volume key.
    Plain { spec: String, secret: SecretSource },
}

/// A dm-integrity layer over the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IntegrityConfig {
    pub hash: HashSpec,
    pub key: Option<SecretSource>,
    pub mode: Journaling,
    /// Neither journal, bitmap nor tags are looked at.
    pub recovery: bool,
    /// All tags are computed anew.
    pub from_start: bool,
    pub legacy_recalculate: bool,
}

impl IntegrityConfig {
    /// `None`: nothing says that there is such a layer.
    fn of(args: &DmIntegrityArgs) -> anyhow::Result<Option<IntegrityConfig>> {
        let Some(name) = &args.dm_integrity else {
            let silent = args.dm_integrity_mode.is_none()
                && args.dm_integrity_key_file.is_none()
                && !args.dm_integrity_legacy_recalculate;
            return match silent {
                true => Ok(None),
                false => usage("--dm-integrity-... needs --dm-integrity HASH"),
            };
        };
        let hash = match HashSpec::named(name) {
            Ok(hash) => hash,
            Err(e) => return usage(format!("--dm-integrity {name}: {e}")),
        };
        let key = args.dm_integrity_key_file.clone().map(|path| SecretSource::KeyFile {
            path,
            offset: 0,
            size: args.dm_integrity_key_size.map(|size| size.0),
        });
        match (hash.is_keyed(), &key) {
            (true, None) => return usage(format!("{name} needs --dm-integrity-key-file")),
            (false, Some(_)) => return usage(format!("{name} has no key")),
            _ => {}
        }
        let mode = match args.dm_integrity_mode {
            None | Some(DmIntegrityModeArg::Journal) => Journaling::Journal,
            Some(DmIntegrityModeArg::Bitmap) => Journaling::Bitmap,
            Some(DmIntegrityModeArg::Direct | DmIntegrityModeArg::Recovery) => Journaling::Direct,
        };
        let recovery = args.dm_integrity_mode == Some(DmIntegrityModeArg::Recovery);
        let legacy_recalculate = args.dm_integrity_legacy_recalculate;
        let from_start = false;
        Ok(Some(IntegrityConfig { hash, key, mode, recovery, from_start, legacy_recalculate }))
    }
}

/// A stack that makes sense, before any device was opened.
#[derive(Clone, Debug)]
pub(crate) struct StackConfig {
    pub backing: Place,
    pub cache: Option<Place>,
    pub cache_mode: Option<CacheModeArg>,
    pub integrity: Option<IntegrityConfig>,
    pub crypt: CryptConfig,
    pub allowed: AllowedArgs,
    pub activation: Activation,
    /// The flags go to the header, too.
    pub persistent: bool,
    pub workers: Workers,
    pub read_only: bool,
    pub allow_stale: bool,
    pub volume: Option<uuid::Uuid>,
    /// The key may change while it is served.
    pub live: bool,
}

/// The keys of a stack file: those of the flags, with underscores.
#[derive(Deserialize, Default, Debug)]
#[serde(deny_unknown_fields)]
struct StackFile {
    backing: Option<Place>,
    cache: Option<Place>,
    cache_mode: Option<String>,
    dm_integrity: Option<String>,
    dm_integrity_mode: Option<String>,
    dm_integrity_key_file: Option<PathBuf>,
    dm_integrity_key_size: Option<Size>,
    #[serde(default)]
    dm_integrity_legacy_recalculate: bool,
    key_file: Option<PathBuf>,
    keyfile_offset: Option<Size>,
    keyfile_size: Option<Size>,
    passphrase_file: Option<PathBuf>,
    passphrase_fd: Option<i32>,
    #[serde(default)]
    unlock: bool,
    key_slot: Option<u32>,
    header: Option<Place>,
    plain: Option<String>,
    #[serde(default)]
    allow_costly_kdf: bool,
    #[serde(default)]
    allow_weak_key: bool,
    #[serde(default)]
    no_crypt: bool,
    allow_discards: Option<bool>,
    same_cpu_crypt: Option<bool>,
    submit_from_crypt_cpus: Option<bool>,
    no_read_workqueue: Option<bool>,
    no_write_workqueue: Option<bool>,
    #[serde(default)]
    persistent: bool,
    crypt_workers: Option<usize>,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    allow_stale: bool,
    volume: Option<String>,
}

/// Paths in a stack file are relative to the file.
fn beside(file: &Path, path: Option<PathBuf>) -> Option<PathBuf> {
    path.map(|p| file.parent().unwrap_or(Path::new(".")).join(p))
}

/// The value of a key of a stack file that has a fixed list of values.
fn named<T: clap::ValueEnum>(key: &str, name: &str) -> anyhow::Result<T> {
    T::from_str(name, false).or_else(|_| usage(format!("{key} {name:?} is none of its modes")))
}

/// Flags, filled up from the stack file if there is one.
fn merged(flags: &StackArgs) -> anyhow::Result<StackArgs> {
    let mut all = flags.clone();
    let Some(path) = &flags.stack else { return Ok(all) };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read stack file {}", path.display()))?;
    let file: StackFile = match toml::from_str(&text) {
        Ok(file) => file,
        Err(e) => return usage(format!("stack file {}: {}", path.display(), e.message())),
    };
    let secret_given = flags.secret.key_file.is_some()
        || flags.secret.passphrase_file.is_some()
        || flags.secret.passphrase_fd.is_some()
        || flags.unlock
        || flags.no_crypt;
    all.backing = all.backing.or(file.backing.map(|place| place.beside(path)));
    all.cache = all.cache.or(file.cache.map(|place| place.beside(path)));
    if let (None, Some(name)) = (all.cache_mode, file.cache_mode) {
        all.cache_mode = Some(named("cache_mode", &name)?);
    }
    let mode = file.dm_integrity_mode.map(|name| named("dm_integrity_mode", &name));
    all.dm_integrity = all.dm_integrity.or(DmIntegrityArgs {
        dm_integrity: file.dm_integrity,
        dm_integrity_mode: mode.transpose()?,
        dm_integrity_key_file: beside(path, file.dm_integrity_key_file),
        dm_integrity_key_size: file.dm_integrity_key_size,
        dm_integrity_legacy_recalculate: file.dm_integrity_legacy_recalculate,
    });
    if !secret_given {
        all.secret = SecretArgs {
            key_file: beside(path, file.key_file),
            keyfile_offset: all.secret.keyfile_offset.or(file.keyfile_offset),
            keyfile_size: all.secret.keyfile_size.or(file.keyfile_size),
            passphrase_file: beside(path, file.passphrase_file),
            passphrase_fd: file.passphrase_fd,
        };
        all.unlock = file.unlock;
        all.no_crypt = file.no_crypt;
    }
    if !all.no_crypt {
        all.header = all.header.or(file.header.map(|place| place.beside(path)));
        all.plain = all.plain.or(file.plain);
        all.key_slot = all.key_slot.or(file.key_slot);
    }
    all.allowed = all.allowed.or(AllowedArgs {
        allow_costly_kdf: file.allow_costly_kdf,
        allow_weak_key: file.allow_weak_key,
    });
    all.activation = all.activation.or(ActivationArgs {
        allow_discards: file.allow_discards,
        same_cpu_crypt: file.same_cpu_crypt,
        submit_from_crypt_cpus: file.submit_from_crypt_cpus,
        no_read_workqueue: file.no_read_workqueue,
        no_write_workqueue: file.no_write_workqueue,
        persistent: file.persistent,
        crypt_workers: file.crypt_workers,
    });
    all.read_only |= file.read_only;
    all.allow_stale |= file.allow_stale;
    if let (None, Some(text)) = (all.volume, file.volume) {
        let Ok(volume) = text.parse() else { return usage(format!("volume {text:?} is no UUID")) };
        all.volume = Some(volume);
    }
    Ok(all)
}

/// Where the secret comes from, if one of the flags says so. `prompt`: the terminal was named.
///
/// # Errors
/// [`crate::failure::Usage`] when several do.
pub(crate) fn secret_of(args: &SecretArgs, prompt: bool) -> anyhow::Result<Option<SecretSource>> {
    let mut found = Vec::new();
    if let Some(path) = &args.key_file {
        found.push(SecretSource::KeyFile {
            path: path.clone(),
            offset: args.keyfile_offset.map_or(0, |s| s.0),
            size: args.keyfile_size.map(|s| s.0),
        });
    }
    found.extend(args.passphrase_file.clone().map(SecretSource::PassphraseFile));
    found.extend(args.passphrase_fd.map(SecretSource::PassphraseFd));
    if prompt {
        found.push(SecretSource::Prompt);
    }
    if found.len() > 1 {
        return usage(
            "give one of --key-file, --passphrase-file, --passphrase-fd and --unlock, not several",
        );
    }
    Ok(found.pop())
}

/// The threads of the encryption layer; and whether what is said about it makes sense.
fn workers(
    activation: ActivationArgs,
    read_only: bool,
    crypt: &CryptConfig,
) -> anyhow::Result<Workers> {
    if activation.persistent {
        match crypt {
            CryptConfig::Luks { .. } if read_only => {
                return usage("--persistent writes to the header, --read-only forbids it");
            }
            CryptConfig::Luks { .. } if activation.said().is_silent() => {
                return usage(
                    "--persistent keeps flags in the header: give one, as --allow-discards",
                );
            }
            CryptConfig::Luks { .. } => {}
            CryptConfig::Plain { .. } | CryptConfig::None => {
                return usage("--persistent needs a LUKS2 volume and its key");
            }
        }
    }
    match activation.crypt_workers {
        None => Ok(Workers::Auto),
        Some(n) if n <= WORKERS_MAX => Ok(Workers::Up(n)),
        Some(n) => usage(format!("--crypt-workers {n}: at most {WORKERS_MAX}")),
    }
}

impl StackConfig {
    /// A stack from flags and stack file, over `--backing` or over an image named in its place.
    ///
    /// # Errors
    /// [`crate::failure::Usage`] when the combination makes no sense.
    pub(crate) fn new(flags: &StackArgs, image: Option<&Place>) -> anyhow::Result<StackConfig> {
        let args = merged(flags)?;
        let backing = match (image, &args.backing) {
            (Some(_), Some(_)) => return usage("give an image or --backing, not both"),
            (Some(image), None) => image.clone(),
            (None, Some(backing)) => backing.clone(),
            (None, None) => return usage("which disk? give --backing DEV"),
        };
        if args.cache.is_none() && args.cache_mode.is_some() {
            return usage("--cache-mode needs --cache");
        }
        if args.cache.is_none() && args.volume.is_some() {
            return usage("--volume needs --cache");
        }
        if args.allow_stale && !args.read_only {
            return usage("--allow-stale needs --read-only");
        }
        let secret = secret_of(&args.secret, args.unlock)?;
        let crypt = match (secret, args.plain.clone()) {
            (Some(_), _) if args.no_crypt => {
                return usage("--no-crypt stops below encryption: no key is needed");
            }
            (None, Some(_)) | (_, Some(_)) if args.no_crypt => {
                return usage("--no-crypt and --plain contradict each other");
            }
            (Some(secret), Some(spec)) => {
                if args.header.is_some() {
                    return usage("a plain mapping has no header: --plain and --header exclude");
                }
                CryptConfig::Plain { spec, secret }
            }
            (None, Some(_)) => return usage("--plain needs a key: --key-file or a passphrase"),
            (Some(secret), None) => {
                CryptConfig::Luks { secret, header: args.header, key_slot: args.key_slot }
            }
            (None, None) if args.header.is_some() => return usage("--header needs a key"),
            (None, None) => CryptConfig::None,
        };
        let workers = workers(args.activation, args.read_only, &crypt)?;
        Ok(StackConfig {
            backing,
            cache: args.cache,
            cache_mode: args.cache_mode,
            integrity: IntegrityConfig::of(&args.dm_integrity)?,
            crypt,
            allowed: args.allowed,
            activation: args.activation.said(),
            persistent: args.activation.persistent,
            workers,
            read_only: args.read_only,
            allow_stale: args.allow_stale,
            volume: args.volume,
            live: false,
        })
    }

    /// The same stack without its encryption layer.
    pub(crate) fn below_crypt(&self) -> StackConfig {
        StackConfig { crypt: CryptConfig::None, ..self.clone() }
    }

    /// The same stack without dm-integrity and what stands over it.
    pub(crate) fn below_integrity(&self) -> StackConfig {
        StackConfig { integrity: None, ..self.below_crypt() }
    }

    /// The same stack, nothing written.
    pub(crate) fn reading(mut self) -> StackConfig {
        self.read_only = true;
        self
    }
}

/// Where a LUKS header is, and what opens it: for commands that concern the header alone.
#[derive(Clone, Debug)]
pub(crate) struct HeaderConfig {
    pub place: HeaderPlace,
    pub secret: Option<SecretSource>,
    pub key_slot: Option<u32>,
    pub allowed: AllowedArgs,
}

/// What holds the header.
#[derive(Clone, Debug)]
pub(crate) enum HeaderPlace {
    /// A file or device of its own.
    Detached(Place),
    /// The head of what is below encryption.
    Below(Box<StackConfig>),
}

impl HeaderConfig {
    /// From the same flags as a stack. A detached header is named alone: the disk is not looked at.
    ///
    /// # Errors
    /// [`crate::failure::Usage`] when the combination makes no sense.
    pub(crate) fn new(flags: &StackArgs, image: Option<&Place>) -> anyhow::Result<HeaderConfig> {
        let mut args = merged(flags)?;
        if args.plain.is_some() {
            return usage("a plain mapping has no header");
        }
        if args.no_crypt {
            return usage("--no-crypt stops below encryption, where no header is");
        }
        let secret = secret_of(&args.secret, args.unlock)?;
        let (key_slot, allowed) = (args.key_slot, args.allowed);
        let place = match args.header.take() {
            Some(path) => HeaderPlace::Detached(path),
            None => HeaderPlace::Below(Box::new(StackConfig::new(&args, image)?.below_crypt())),
        };
        Ok(HeaderConfig { place, secret, key_slot, allowed })
    }
}

/// What a word means that stands where an image may stand.
///
/// # Errors
/// [`crate::failure::Usage`] when it is a URI that cannot be opened.
pub(crate) fn place(word: &str) -> anyhow::Result<Place> {
    Place::parse(word.as_ref()).or_else(|refused| usage(refused.to_string()))
}

/// Splits `[IMAGE] PATH`: with a stack named by flags there is no image.
///
/// # Errors
/// [`crate::failure::Usage`] on too many words.
pub(crate) fn image_and_path(
    words: &[String],
    stack: &StackArgs,
    path_optional: bool,
) -> anyhow::Result<(Option<Place>, Option<String>)> {
    let by_flags = stack.backing.is_some() || stack.stack.is_some();
    let (image, rest) = match words {
        words if by_flags => (None, words),
        [image, rest @ ..] => (Some(place(image)?), rest),
        [] => return usage("which disk? give an image, or --backing DEV"),
    };
    match rest {
        [] if path_optional => Ok((image, None)),
        [] => usage("which file? give its path in the file system"),
        [path] => Ok((image, Some(path.clone()))),
        [_, extra, ..] => usage(format!("unexpected argument {extra:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Place {
        Place::Path(text.into())
    }

    fn flags(backing: &str) -> StackArgs {
        StackArgs { backing: Some(path(backing)), ..StackArgs::default() }
    }

    fn keyed() -> StackArgs {
        let secret = SecretArgs { key_file: Some("key".into()), ..SecretArgs::default() };
        StackArgs { secret, ..flags("hdd") }
    }

    #[test]
    fn a_key_means_luks_and_no_key_means_none() {
        let plain = StackConfig::new(&flags("hdd"), None).unwrap();
        assert_eq!(plain.crypt, CryptConfig::None);
        let keyed = StackConfig::new(&keyed(), None).unwrap();
        assert!(matches!(keyed.crypt, CryptConfig::Luks { .. }));
    }

    #[test]
    fn contradictions_are_usage_errors() {
        let both = StackArgs { no_crypt: true, ..keyed() };
        let two = StackArgs { unlock: true, ..keyed() };
        let mode = StackArgs { cache_mode: Some(CacheModeArg::None), ..flags("hdd") };
        let keyless = StackArgs { plain: Some("aes-xts-plain64".into()), ..flags("hdd") };
        let persistent = ActivationArgs { persistent: true, ..ActivationArgs::default() };
        let all = ActivationArgs { allow_discards: Some(true), ..persistent };
        let silent = StackArgs { activation: persistent, ..keyed() };
        let open = StackArgs { activation: all, ..flags("hdd") };
        let reading = StackArgs { activation: all, read_only: true, ..keyed() };
        for bad in [both, two, mode, keyless, silent, open, reading, StackArgs::default()] {
            let error = StackConfig::new(&bad, None).unwrap_err();
            assert!(error.is::<crate::failure::Usage>(), "{error}");
        }
    }

    #[test]
    fn a_stack_file_has_the_same_keys_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("s.toml");
        std::fs::write(&file, "backing = \"hdd\"\ncache = \"ssd\"\ncache_mode = \"writeback\"\n")
            .unwrap();
        let args = StackArgs { stack: Some(file.clone()), ..StackArgs::default() };
        let stack = StackConfig::new(&args, None).unwrap();
        assert_eq!(stack.backing, Place::Path(dir.path().join("hdd")));
        assert_eq!(stack.cache_mode, Some(CacheModeArg::Writeback));
        let flagged = "backing = \"hdd\"\nallow_discards = false\nno_read_workqueue = true\n\
                       allow_costly_kdf = true\n";
        std::fs::write(&file, flagged).unwrap();
        let stack = StackConfig::new(&args, None).unwrap();
        assert_eq!(stack.activation.allow_discards, Some(false));
        assert_eq!(stack.activation.no_read_workqueue, Some(true));
        assert_eq!(stack.activation.same_cpu_crypt, None);
        assert!(stack.allowed.allow_costly_kdf && !stack.allowed.allow_weak_key);
        std::fs::write(&file, "backing = \"hdd\"\ncolour = \"red\"\n").unwrap();
        let error = StackConfig::new(&args, None).unwrap_err().to_string();
        assert!(error.contains("colour"), "{error}");
    }

    #[test]
    fn an_integrity_layer_has_a_hash_and_a_key_where_it_needs_one() {
        let layer = |hash: Option<&str>, key: Option<&str>| DmIntegrityArgs {
            dm_integrity: hash.map(Into::into),
            dm_integrity_key_file: key.map(Into::into),
            ..DmIntegrityArgs::default()
        };
        let stack =
            |dm_integrity| StackConfig::new(&StackArgs { dm_integrity, ..flags("hdd") }, None);
        assert_eq!(stack(layer(None, None)).unwrap().integrity, None);
        let found = stack(layer(Some("crc32c"), None)).unwrap().integrity.unwrap();
        assert_eq!((found.mode, found.key), (Journaling::Journal, None));
        assert!(stack(layer(Some("hmac-sha256"), Some("k"))).is_ok());
        for bad in [
            layer(None, Some("k")),
            layer(Some("crc32c"), Some("k")),
            layer(Some("hmac-sha256"), None),
            layer(Some("md4"), None),
        ] {
            assert!(stack(bad).unwrap_err().is::<crate::failure::Usage>());
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("s.toml");
        let text = "backing = \"hdd\"\ndm_integrity = \"hmac-sha256\"\ndm_integrity_mode = \"bitmap\"\n\
                    dm_integrity_key_file = \"k\"\ndm_integrity_key_size = 32\n";
        std::fs::write(&file, text).unwrap();
        let args = StackArgs { stack: Some(file), ..StackArgs::default() };
        let found = StackConfig::new(&args, None).unwrap().integrity.unwrap();
        let key = SecretSource::KeyFile { path: dir.path().join("k"), offset: 0, size: Some(32) };
        assert_eq!((found.mode, found.key), (Journaling::Bitmap, Some(key)));
    }

    #[test]
    fn image_and_path_are_told_apart_by_the_flags() {
        let words = |w: &[&str]| w.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let none = StackArgs::default();
        let got = image_and_path(&words(&["disk.img", "/a"]), &none, false).unwrap();
        assert_eq!(got, (Some(path("disk.img")), Some("/a".into())));
        let got = image_and_path(&words(&["/a"]), &flags("hdd"), false).unwrap();
        assert_eq!(got, (None, Some("/a".into())));
        assert!(image_and_path(&words(&["disk.img"]), &none, false).is_err());
        assert!(image_and_path(&words(&["a", "b", "c"]), &none, true).is_err());
    }
}
