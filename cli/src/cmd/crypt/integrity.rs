//! `--integrity`: making volumes whose sectors are authenticated, and showing what they say.

use super::target::Superblock;
use crate::args::CryptFormat;
use crate::cmd::interrupt::Interrupt;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::Write;
use std::sync::Arc;
use varve_block::{Dyn, Rt};
use varve_crypt::{FormatOptions, Header, Key, Wiped};

/// Formats and wipes, with progress. A signal ends the wipe; there is no volume then.
pub(super) async fn format(
    rt: &Rt,
    args: &CryptFormat,
    device: &Dyn,
    options: &FormatOptions,
    secret: &Arc<Key>,
) -> anyhow::Result<Header> {
    let interrupt = Interrupt::watch(rt)?;
    let bar = ProgressBar::new(0);
    let template = "wiping {bar:30} {bytes} of {total_bytes}, {binary_bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut watch = |now: Wiped| {
        bar.set_length(now.total);
        bar.set_position(now.done);
        interrupt.flow()
    };
    let wipe = !args.integrity_no_wipe;
    let made = varve_crypt::format_sealed(rt, device, options, secret, wipe, &mut watch).await;
    interrupt.end().await;
    bar.finish_and_clear();
    Ok(made?)
}

/// The superblock below a header's text; what is wrong with it is a warning, as for headers.
pub(super) fn show(out: &mut impl Write, superblock: &Superblock) -> anyhow::Result<()> {
    match superblock {
        Ok(info) => write!(out, "{info}")?,
        Err(e) => eprintln!("varve: warning: {e}"),
    }
    Ok(())
}

/// The superblock in JSON.
pub(super) fn json(superblock: &Superblock) -> anyhow::Result<serde_json::Value> {
    Ok(match superblock {
        Ok(info) => serde_json::to_value(info)?,
        Err(e) => serde_json::json!({ "error": e.to_string() }),
    })
}
