//! The dm-integrity layer: over disk and cache, under encryption.

use super::{LiveHashed, Stack, read_key};
use crate::config::IntegrityConfig;
use std::rc::Rc;
use varve_block::{BlockDevice, BufPool, Dyn, Rt};
use varve_crypt::{Hashed, HashedOptions, Journaling, Replayed};

/// Memory of the layer: what is written as zeroes, and what is looked at without a client.
const POOL: usize = 8 << 20;

/// Stands the layer on a stack. One that cannot be taken up leaves the stack stopped.
pub(super) async fn add(
    rt: &Rt,
    wanted: &IntegrityConfig,
    mut stack: Stack,
) -> anyhow::Result<Stack> {
    match open(rt, wanted, stack.top.clone()).await {
        Ok(hashed) => {
            stack.layers.push(told(wanted, &hashed));
            stack.top = Dyn::new(Rc::clone(&hashed));
            stack.hashed = Some(hashed);
            Ok(stack)
        }
        Err(error) => {
            stack.stop().await?;
            Err(error)
        }
    }
}

async fn open(rt: &Rt, wanted: &IntegrityConfig, below: Dyn) -> anyhow::Result<LiveHashed> {
    let options = HashedOptions {
        key: wanted.key.as_ref().map(read_key).transpose()?,
        journaling: wanted.mode,
        recovery: wanted.recovery,
        recalculate: wanted.from_start,
        legacy_recalculate: wanted.legacy_recalculate,
        ..HashedOptions::new(wanted.hash)
    };
    let hashed = Hashed::open(rt, below, &options, BufPool::new(POOL)).await?;
    if let (Some(from), false) = (hashed.recalculating_from(), wanted.recovery) {
        tracing::warn!(
            dev = %hashed.geometry().dev,
            "sectors from {from} on are not checked until their tags are computed"
        );
    }
    Ok(Rc::new(hashed))
}

fn told(wanted: &IntegrityConfig, hashed: &LiveHashed) -> String {
    let mode = match wanted.mode {
        _ if wanted.recovery => "recovery: nothing is checked",
        Journaling::Journal => "journal",
        Journaling::Bitmap => "bitmap",
        Journaling::Direct => "direct",
    };
    let mut what = format!("integrity {} ({mode})", wanted.hash);
    match hashed.replayed() {
        Replayed { blocks: 0, .. } => {}
        Replayed { sections, .. } => {
            what.push_str(&format!(", {sections} sections of its journal replayed"));
        }
    }
    if let (Some(from), false) = (hashed.recalculating_from(), wanted.recovery) {
        what.push_str(&format!(", computing tags from sector {from} on"));
    }
    what
}
