//! What is already on a device: formatting asks before it destroys.
//!
//! The list is of what people keep on disks; offsets and magics are those the formats publish and
//! `blkid` looks for.

use anyhow::bail;
use varve_block::{BlockDevice, BufPool, Durability, Extent, Sector, Sectors};
use varve_cache::format::Superblock;

struct Known {
    name: &'static str,
    byte: usize,
    magic: &'static [u8],
}

const KNOWN: &[Known] = &[
    Known { name: "LUKS", byte: 0, magic: b"LUKS\xba\xbe" },
    Known { name: "LUKS2 (secondary header)", byte: 0x4000, magic: b"SKUL\xba\xbe" },
    Known {
        name: "bcache",
        byte: 4096 + 24,
        magic: b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
    },
    Known { name: "btrfs", byte: 65536 + 64, magic: b"_BHRfS_M" },
    Known { name: "ext2/3/4", byte: 1024 + 56, magic: b"\x53\xef" },
    Known { name: "xfs", byte: 0, magic: b"XFSB" },
    Known { name: "f2fs", byte: 1024, magic: b"\x10\x20\xf5\xf2" },
    Known { name: "ntfs", byte: 3, magic: b"NTFS    " },
    Known { name: "exfat", byte: 3, magic: b"EXFAT   " },
    Known { name: "FAT", byte: 54, magic: b"FAT1" },
    Known { name: "FAT", byte: 82, magic: b"FAT32   " },
    Known { name: "swap", byte: 4096 - 10, magic: b"SWAPSPACE2" },
    Known { name: "swap", byte: 4096 - 10, magic: b"SWAP-SPACE" },
    Known { name: "LVM physical volume", byte: 512, magic: b"LABELONE" },
    Known { name: "LVM physical volume", byte: 0, magic: b"LABELONE" },
    Known { name: "md RAID", byte: 4096, magic: b"\xfc\x4e\x2b\xa9" },
    Known { name: "md RAID", byte: 0, magic: b"\xfc\x4e\x2b\xa9" },
    Known { name: "GPT partition table", byte: 512, magic: b"EFI PART" },
    Known { name: "GPT partition table", byte: 4096, magic: b"EFI PART" },
    Known { name: "dm-integrity", byte: 0, magic: b"integrt\0" },
    Known { name: "squashfs", byte: 0, magic: b"hsqs" },
    Known { name: "iso9660", byte: 32768 + 1, magic: b"CD001" },
    Known { name: "btrfs metadata dump", byte: 0, magic: b"\x8b\x66\x95\x72\xe2\x25\x5c\xbd" },
    Known { name: "qcow2 image", byte: 0, magic: b"QFI\xfb" },
    // Last: many things above leave a boot sector's mark too.
    Known { name: "MBR partition table", byte: 510, magic: b"\x55\xaa" },
];

/// How much of a device's head is looked at.
const HEAD: Sectors = Sectors(136);

/// Where a bcache superblock lies.
const SUPERBLOCK: Extent = Extent { start: Sector(8), len: Sectors(8) };

/// The first known signature in the head of a device, if any.
///
/// # Errors
/// When the device cannot be read.
async fn find<D: BlockDevice>(device: &D) -> varve_block::Result<Option<&'static str>> {
    let geometry = device.geometry();
    let block = geometry.block.0.max(1);
    let len = Sectors(HEAD.0.min(geometry.len.0) / block * block);
    if len.0 == 0 {
        return Ok(None);
    }
    let head = device.read(Sector(0), BufPool::new(0).take(len).await).await?;
    Ok(in_head(&head))
}

/// Refuses to format over something known.
pub(crate) async fn refuse_known<D: BlockDevice>(device: &D, force: bool) -> anyhow::Result<()> {
    if force {
        return Ok(());
    }
    if let Some(found) = find(device).await? {
        bail!("{} holds {found} already; --force overwrites it", device.geometry().dev);
    }
    Ok(())
}

/// Removes a bcache superblock, if there is one: what is made elsewhere on the device must not be
/// taken for a cached volume.
pub(crate) async fn wipe_bcache<D: BlockDevice>(device: &D) -> varve_block::Result<()> {
    if device.geometry().len < SUPERBLOCK.end() - Sector(0) {
        return Ok(());
    }
    let pool = BufPool::new(0);
    let page = device.read(SUPERBLOCK.start, pool.take(SUPERBLOCK.len).await).await?;
    if !Superblock::looks_like_one(&page) {
        return Ok(());
    }
    let zeroes = pool.take_zeroed(SUPERBLOCK.len).await;
    device.write(SUPERBLOCK.start, zeroes.into(), Durability::Fua).await.map(drop)
}

fn in_head(head: &[u8]) -> Option<&'static str> {
    let there = |k: &&Known| head.get(k.byte..k.byte + k.magic.len()) == Some(k.magic);
    KNOWN.iter().find(there).map(|k| k.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signature_is_found_and_blank_is_blank() {
        assert_eq!(in_head(&vec![0; HEAD.byte_len()]), None);
        assert_eq!(in_head(&[]), None);
        for k in KNOWN {
            let mut head = vec![0; HEAD.byte_len()];
            head[k.byte..k.byte + k.magic.len()].copy_from_slice(k.magic);
            assert_eq!(in_head(&head), Some(k.name));
        }
    }
}
