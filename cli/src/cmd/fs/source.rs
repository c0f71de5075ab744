//! Which file system is meant: its devices, opened for reading.

use crate::args::FsSource;
use crate::config::{CryptConfig, StackConfig, image_and_path};
use crate::failure::usage;
use crate::place::Place;
use crate::stack;
use anyhow::Context;
use varve_block::{Dyn, Rt};
use varve_fs::{Fs, OpenOptions};

/// Opens the file system of an image or a stack for reading, and says which path in it was meant.
/// Nothing is written, so a disk that may not be written can still be looked at. What is odd about
/// the file system is told by warnings.
pub(crate) async fn open(
    rt: &Rt,
    words: &[String],
    source: &FsSource,
    path_optional: bool,
) -> anyhow::Result<(Fs<Dyn>, Option<String>)> {
    let (image, path) = image_and_path(words, &source.stack, path_optional)?;
    let fs = open_at(rt, image.as_ref(), source).await?;
    Ok((fs, path))
}

/// As [`open`], for commands whose words hold no path.
pub(crate) async fn open_at(
    rt: &Rt,
    image: Option<&Place>,
    source: &FsSource,
) -> anyhow::Result<Fs<Dyn>> {
    let config = StackConfig::new(&source.stack, image)?;
    let name = config.backing.to_string();
    let devices = devices(rt, config, &source.devices).await?;
    Fs::open_devices(devices, options(source))
        .await
        .with_context(|| format!("no btrfs to read on {name}"))
}

/// What the flags say about opening.
pub(crate) fn options(source: &FsSource) -> OpenOptions {
    OpenOptions {
        super_copy: source.super_copy.into(),
        ignore_log: source.nologreplay,
        ..OpenOptions::default()
    }
}

/// Every member device, opened read-only: the stack of `config`, then `more`, encrypted like it.
pub(crate) async fn devices(
    rt: &Rt,
    config: StackConfig,
    more: &[Place],
) -> anyhow::Result<Vec<Dyn>> {
    if !more.is_empty() && matches!(config.crypt, CryptConfig::Luks { header: Some(_), .. }) {
        return usage("--device has no header of its own: --device and --header exclude");
    }
    let config = config.reading();
    let mut devices = vec![stack::open(rt, &config).await?.top];
    for backing in more {
        let backing = backing.clone();
        let one =
            StackConfig { backing, cache: None, cache_mode: None, volume: None, ..config.clone() };
        devices.push(stack::open(rt, &one).await?.top);
    }
    Ok(devices)
}
