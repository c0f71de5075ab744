//! The device whose header a command is about.

use crate::args::StackArgs;
use crate::config::{HeaderConfig, HeaderPlace, SecretSource, StackConfig};
use crate::failure::usage;
use crate::place::Place;
use crate::stack::{self, Stack};
use std::cell::OnceCell;
use std::sync::Arc;
use varve_block::{Dyn, Rt};
use varve_crypt::{Header, IntegrityInfo, Key, UnlockOptions};

/// A superblock, or what is wrong with it.
pub(super) type Superblock = varve_crypt::Result<IntegrityInfo>;

/// An open header device: the header's own, or the stack below encryption.
pub(super) struct Target {
    pub(super) device: Dyn,
    config: HeaderConfig,
    stack: Option<Stack>,
    /// Read once: a terminal is asked once, a pipe has it once.
    secret: OnceCell<Arc<Key>>,
}

impl Target {
    /// Opened to read only; nothing is written, not even by a cache that could be recovered.
    pub(super) async fn to_look(
        rt: &Rt,
        flags: &StackArgs,
        image: Option<&Place>,
    ) -> anyhow::Result<Target> {
        Target::open(rt, HeaderConfig::new(flags, image)?, true, OnceCell::new()).await
    }

    /// Opened to be changed, and locked. With a cache, a secret that is given is tried first through a
    /// view of the set that only reads: a wrong one writes nothing, not even what a recovery would.
    pub(super) async fn to_change(
        rt: &Rt,
        flags: &StackArgs,
        image: Option<&Place>,
    ) -> anyhow::Result<Target> {
        if flags.read_only {
            return usage("--read-only: this command writes to the header");
        }
        let config = HeaderConfig::new(flags, image)?;
        let cached = matches!(&config.place, HeaderPlace::Below(below) if below.cache.is_some());
        let mut secret = OnceCell::new();
        if cached && config.secret.is_some() {
            let view = Target::open(rt, config.clone(), true, OnceCell::new()).await?;
            varve_crypt::test(rt, &view.device, &view.options(), &view.secret()?).await?;
            secret = view.secret;
        }
        Target::open(rt, config, false, secret).await
    }

    async fn open(
        rt: &Rt,
        config: HeaderConfig,
        read_only: bool,
        secret: OnceCell<Arc<Key>>,
    ) -> anyhow::Result<Target> {
        let (device, stack) = match &config.place {
            HeaderPlace::Detached(path) => {
                (Dyn::new(stack::open_device(rt, path, read_only).await?), None)
            }
            HeaderPlace::Below(below) => {
                let below = StackConfig::clone(below);
                let below = if read_only { below.reading() } else { below };
                let stack = stack::open(rt, &below).await?;
                (stack.top.clone(), Some(stack))
            }
        };
        Ok(Target { device, config, stack, secret })
    }

    /// What dm-integrity's superblock of the volume says; `None`: it has none. With a header of its own
    /// the data device is not opened.
    pub(super) async fn superblock(&self, header: &Header) -> Option<Superblock> {
        let place = varve_crypt::integrity_place(header)?;
        match &self.config.place {
            HeaderPlace::Detached(_) => None,
            HeaderPlace::Below(_) => Some(varve_crypt::integrity_info(&self.device, place).await),
        }
    }

    /// Leaves everything durable; also after a failure, so the work's result is passed through.
    pub(super) async fn close<T>(self, done: anyhow::Result<T>) -> anyhow::Result<T> {
        let stopped = match self.stack {
            Some(stack) => stack.stop().await,
            None => Ok(()),
        };
        let done = done?;
        stopped?;
        Ok(done)
    }

    pub(super) fn has_secret(&self) -> bool {
        self.config.secret.is_some()
    }

    /// The secret that was named; asked for on the terminal when none was.
    pub(super) fn secret(&self) -> anyhow::Result<Arc<Key>> {
        if let Some(secret) = self.secret.get() {
            return Ok(Arc::clone(secret));
        }
        let source = self.config.secret.as_ref().unwrap_or(&SecretSource::Prompt);
        let secret = stack::read_key(source)?;
        Ok(Arc::clone(self.secret.get_or_init(|| secret)))
    }

    pub(super) fn options(&self) -> UnlockOptions {
        self.config.allowed.options(self.config.key_slot)
    }
}
