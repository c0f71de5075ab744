//! Signs that a damaged header was not damaged but overwritten, on purpose, by something else.
//!
//! `mkfs` over an old LUKS2 volume destroys the primary header and often misses the secondary. Who then
//! opened the volume from its secondary header and wrote would destroy the new file system. So a lost
//! primary with one of these in its place is *ambiguous*: only the operator can say which is meant.

struct Signature {
    name: &'static str,
    byte: usize,
    magic: &'static [u8],
}

const fn signature(name: &'static str, byte: usize, magic: &'static [u8]) -> Signature {
    Signature { name, byte, magic }
}

/// What people put over whole devices and partitions, where its format says it is found.
const SIGNATURES: &[Signature] = &[
    signature("ext2/3/4", 1024 + 56, b"\x53\xef"),
    signature("btrfs", 65_536 + 64, b"_BHRfS_M"),
    signature("xfs", 0, b"XFSB"),
    signature("f2fs", 1024, b"\x10\x20\xf5\xf2"),
    signature("ntfs", 3, b"NTFS    "),
    signature("exfat", 3, b"EXFAT   "),
    signature("FAT", 54, b"FAT1"),
    signature("FAT", 82, b"FAT32   "),
    signature("swap", 4096 - 10, b"SWAPSPACE2"),
    signature("LVM physical volume", 0, b"LABELONE"),
    signature("LVM physical volume", 512, b"LABELONE"),
    signature("LVM physical volume", 1024, b"LABELONE"),
    signature("LVM physical volume", 1536, b"LABELONE"),
    signature(
        "bcache",
        4096 + 24,
        b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
    ),
    signature("md RAID", 4096, b"\xfc\x4e\x2b\xa9"),
    signature("GPT partition table", 512, b"EFI PART"),
    signature("MBR partition table", 510, b"\x55\xaa"),
];

/// The first foreign signature at the head of a device.
pub(crate) fn find(head: &[u8]) -> Option<&'static str> {
    SIGNATURES
        .iter()
        .find(|s| head.get(s.byte..).is_some_and(|rest| rest.starts_with(s.magic)))
        .map(|s| s.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_found_at_their_place_only() {
        let mut head = vec![0; 128 << 10];
        assert_eq!(find(&head), None);
        head[1024 + 56..1024 + 58].copy_from_slice(b"\x53\xef");
        assert_eq!(find(&head), Some("ext2/3/4"));
        assert_eq!(find(&head[1..]), None);
        assert_eq!(find(&head[..1081]), None);
    }
}
