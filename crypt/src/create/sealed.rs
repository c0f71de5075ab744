//! Making a volume whose sectors are authenticated.
//!
//! ```text
//! 1. what every volume begins with: old headers destroyed, keyslots written
//! 2. an empty journal, the dm-integrity superblock
//! 3. zeroes, sealed, in every sector: what was never written would have no valid tag
//! 4. the LUKS2 header
//! ```
//!
//! The header comes last, so that a wipe that was interrupted leaves no volume, and not one that fails in
//! places.

use std::ops::ControlFlow;
use std::sync::Arc;

use varve_block::{BlockDevice, BufPool, Extent, Rt, Sector, Zero};

use super::{FormatOptions, LuksVersion, carry_out, make};
use crate::device::VolumeHandle;
use crate::error::{Error, Result};
use crate::header::Header;
use crate::integrity::{Journaling, Sealed, lay_out};
use crate::key::Key;
use crate::keyslot::Verified;
use crate::volume::MapOptions;
use crate::xts::Engine;

/// How far the wipe is, in bytes of the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wiped {
    pub done: u64,
    pub total: u64,
}

/// What can be said before anything is made.
pub(super) fn check_options(o: &FormatOptions) -> Result<()> {
    let Some((spec, _)) = o.aead()? else { return Ok(()) };
    let bad = |why: String| Err(Error::Options(why));
    if o.version != LuksVersion::Luks2 {
        return bad("LUKS1 has no integrity protection".into());
    }
    if o.detached {
        return bad("a new volume with integrity has its header on its own device".into());
    }
    if !spec.takes_key(o.key_bits as usize / 8 + spec.mac_key_len()) {
        return bad(format!(
            "a key of {} bits for {}; aes-xts takes 256 or 512, aes-gcm 128 or 256, chacha20 256 \
             (the key that authenticates is not counted)",
            o.key_bits, o.cipher
        ));
    }
    Ok(())
}

/// Makes a volume with integrity on `device`; `watch` is told of every megabyte that is wiped, and may end
/// the work. Without `wipe` a sector can be read once it has been written. What was there is lost.
///
/// # Errors
/// [`Error::Interrupted`] when `watch` says so: there is no volume then.
pub async fn format_sealed<D: BlockDevice + Clone>(
    rt: &Rt,
    device: &D,
    options: &FormatOptions,
    secret: &Arc<Key>,
    wipe: bool,
    watch: &mut dyn FnMut(Wiped) -> ControlFlow<()>,
) -> Result<Header> {
    let geometry = device.geometry();
    let plan = make(rt, geometry.clone(), options, secret).await?;
    let verified = Verified { key: plan.key.duplicate(), slot: Some(0), digest: Some(0) };
    let mut volume = plan.header.map(
        verified,
        &MapOptions {
            data_len: geometry.len,
            detached: false,
            allow_weak_key: false,
            engine: Engine::Auto,
        },
    )?;
    let Some(seal) = volume.seal.as_mut() else {
        return Err(Error::Options("no integrity was asked for".into()));
    };
    // No crash is survived before there is a header: no journal is needed, either.
    seal.journaling = Journaling::Direct;
    let (superblock, start) = (seal.design(geometry.len)?, seal.start);
    let (before, header) = plan.parts();
    carry_out(device, before).await?;
    lay_out(device, &superblock, start).await?;
    if wipe {
        let pool = BufPool::new(varve_block::MAX_LEN);
        let sealed = Sealed::open(rt, device.clone(), VolumeHandle::new(volume), pool).await?;
        let all = Extent::new(Sector(0), sealed.geometry().len);
        for piece in all.pieces(sealed.geometry().max_request) {
            sealed.write_zeroes(piece, Zero::default()).await?;
            let done = Wiped { done: piece.end().byte(), total: all.len.bytes() };
            if watch(done).is_break() {
                return Err(Error::Interrupted);
            }
        }
        sealed.flush().await?;
    }
    carry_out(device, header).await?;
    Ok(plan.header)
}
