//! A new dm-integrity device: an empty journal and a superblock; with an internal hash also its tags.

use std::ops::ControlFlow;
use std::sync::Arc;

use varve_block::{BlockDevice, BufPool, DevId, Extent, Rt, Sector, Zero};

use super::base::Base;
use super::device::{Integrity, Journaling};
use super::hash::HashSpec;
use super::hashed::{Hashed, HashedOptions};
use super::layout::Wishes;
use super::{IntegrityInfo, Layout};
use crate::create::Wiped;
use crate::error::{Error, Result};
use crate::format::integrity::{self as format, Superblock};
use crate::key::Key;
use crate::xts::SectorSize;

/// Where the tags of a new volume come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FirstTags {
    /// Every sector is written with zeroes.
    Wipe,
    /// What lies there stays, and whoever opens the volume computes its tags.
    Recalculate,
    /// Nowhere: a block can be read once it was written.
    Nothing,
}

/// What a new volume with an internal hash should be. The defaults are integritysetup's.
#[derive(Clone, Debug)]
pub struct HashedFormat {
    pub hash: HashSpec,
    pub key: Option<Arc<Key>>,
    /// Bytes of a tag; `None`: of the hash.
    pub tag_size: Option<u16>,
    /// One tag to so many bytes.
    pub sector_size: SectorSize,
    /// Sectors of the journal.
    pub journal: Option<u64>,
    /// Sectors of data between two runs of tags; a power of two, 8 or more.
    pub interleave: Option<u64>,
    /// Sectors that a bit of the bitmap stands for; a power of two.
    pub sectors_per_bit: Option<u64>,
    pub tags: FirstTags,
}

impl HashedFormat {
    /// The defaults for that hash.
    pub fn new(hash: HashSpec) -> HashedFormat {
        HashedFormat {
            hash,
            key: None,
            tag_size: None,
            sector_size: SectorSize::S512,
            journal: None,
            interleave: None,
            sectors_per_bit: None,
            tags: FirstTags::Wipe,
        }
    }

    fn superblock<D: BlockDevice>(&self, device: &D) -> Result<Superblock> {
        let bad = |why: String| Err(Error::Options(why));
        for (what, n, least) in
            [("interleave", self.interleave, 8), ("sectors to a bit", self.sectors_per_bit, 1)]
        {
            if let Some(n) = n
                && (!n.is_power_of_two() || n < least || n > 1 << 31)
            {
                return bad(format!("{what}: {n} is no power of two from {least} to 2^31"));
            }
        }
        let tag = self.tag_size.unwrap_or(u16::try_from(self.hash.size()).expect("at most 64"));
        if tag == 0 || tag > format::TAG_MAX {
            return bad(format!("a tag of {tag} bytes: 1 to {}", format::TAG_MAX));
        }
        let mut salt = [0; 16];
        crate::key::fill_random(&mut salt)?;
        let wishes = Wishes {
            salt: Some(salt),
            journal: self.journal,
            interleave: self.interleave,
            sectors_per_bit: self.sectors_per_bit,
        };
        let log2_block = u8::try_from(self.sector_size.sectors().ilog2()).expect("at most 3");
        let mut sb = Layout::design(tag, log2_block, &wishes, Sector(0), device.geometry().len)?;
        sb.recalculating = (self.tags == FirstTags::Recalculate).then_some(0);
        Ok(sb)
    }
}

/// Makes a volume with an internal hash; `watch` is told of every megabyte that is wiped, and may end the
/// work. The superblock comes last: a wipe that is cut leaves no volume. What was there is lost, but for the
/// data sectors of a volume whose tags are to be computed.
///
/// # Errors
/// [`Error::Interrupted`] when `watch` says so; [`Error::Options`] for what cannot be made, before anything
/// is written.
pub async fn format_hashed<D: BlockDevice + Clone>(
    rt: &Rt,
    device: &D,
    options: &HashedFormat,
    watch: &mut dyn FnMut(Wiped) -> ControlFlow<()>,
) -> Result<IntegrityInfo> {
    let at = Sector(0);
    let sb = options.superblock(device)?;
    let layout = Layout::new(&sb, at, device.geometry().len)?;
    let open = HashedOptions {
        key: options.key.clone(),
        // No crash is survived before there is a superblock: no journal is needed, either.
        journaling: Journaling::Direct,
        ..HashedOptions::new(options.hash)
    };
    open.check_key(&sb, &layout)?;
    empty_journal(device, &sb, at).await?;
    if options.tags == FirstTags::Wipe {
        let pool = BufPool::new(varve_block::MAX_LEN);
        let hashed =
            Hashed::stand(rt, device.clone(), sb.clone(), layout.clone(), &open, pool).await?;
        let all = Extent::new(at, hashed.geometry().len);
        for piece in all.pieces(hashed.geometry().max_request) {
            hashed.write_zeroes(piece, Zero::default()).await?;
            let done = Wiped { done: piece.end().byte(), total: all.len.bytes() };
            if watch(done).is_break() {
                return Err(Error::Interrupted);
            }
        }
        hashed.flush().await?;
    }
    put_superblock(device, &sb, at).await?;
    Ok(IntegrityInfo::new(&sb, &layout))
}

/// Writes an empty journal, and then the superblock that says there is one. What was there is lost.
pub(crate) async fn lay_out<D: BlockDevice + Clone>(
    device: &D,
    sb: &Superblock,
    at: Sector,
) -> Result<()> {
    empty_journal(device, sb, at).await?;
    put_superblock(device, sb, at).await
}

fn head() -> Vec<u8> {
    vec![0; usize::try_from(format::SECTORS * 512).expect("a few sectors")]
}

/// Destroys what superblock there is, and writes an empty journal.
async fn empty_journal<D: BlockDevice + Clone>(
    device: &D,
    sb: &Superblock,
    at: Sector,
) -> Result<()> {
    let geometry = device.geometry();
    let layout = Layout::new(sb, at, geometry.len)?;
    crate::io::write_bytes(device, at.byte(), &head()).await?;
    device.flush().await?;
    let sections = layout.sections;
    let base =
        Base::new(device.clone(), layout, DevId::new(format!("integrity on {}", geometry.dev)));
    Ok(Integrity::new(base, Journaling::Direct).blank(0..sections, 0).await?)
}

async fn put_superblock<D: BlockDevice>(device: &D, sb: &Superblock, at: Sector) -> Result<()> {
    let mut bytes = head();
    bytes[..format::LEN].copy_from_slice(&sb.encode());
    crate::io::write_bytes(device, at.byte(), &bytes).await?;
    Ok(device.flush().await?)
}
