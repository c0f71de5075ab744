//! Checksums and hashes. Four kinds protect blocks and sectors; three more uses of the raw CRC-32C
//! update function make keys. They differ only in seed and inversion, which is why they live side
//! by side here (format: btrfs 2).

use blake2::digest::consts::U32;
use blake2::{Blake2b, Digest as _};
use sha2::Sha256;
use std::fmt;
use varve_block::sum;

/// Which checksum a file system uses, for metadata and data alike.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum CsumType {
    #[default]
    Crc32c,
    Xxhash64,
    Sha256,
    Blake2b,
}

impl CsumType {
    pub const ALL: [CsumType; 4] =
        [CsumType::Crc32c, CsumType::Xxhash64, CsumType::Sha256, CsumType::Blake2b];

    /// From the superblock's `csum_type`.
    pub fn from_disk(raw: u16) -> Option<CsumType> {
        match raw {
            0 => Some(CsumType::Crc32c),
            1 => Some(CsumType::Xxhash64),
            2 => Some(CsumType::Sha256),
            3 => Some(CsumType::Blake2b),
            _ => None,
        }
    }

    pub fn to_disk(self) -> u16 {
        match self {
            CsumType::Crc32c => 0,
            CsumType::Xxhash64 => 1,
            CsumType::Sha256 => 2,
            CsumType::Blake2b => 3,
        }
    }

    /// Bytes per digest in the checksum tree.
    pub fn size(self) -> usize {
        match self {
            CsumType::Crc32c => 4,
            CsumType::Xxhash64 => 8,
            CsumType::Sha256 | CsumType::Blake2b => 32,
        }
    }

    /// The digest as stored: left aligned, the rest zero.
    pub fn digest(self, bytes: &[u8]) -> Digest {
        let mut stored = [0; 32];
        match self {
            CsumType::Crc32c => stored[..4].copy_from_slice(&sum::crc32c(bytes).to_le_bytes()),
            CsumType::Xxhash64 => stored[..8].copy_from_slice(&sum::xxhash64(bytes).to_le_bytes()),
            CsumType::Sha256 => stored.copy_from_slice(&Sha256::digest(bytes)),
            CsumType::Blake2b => stored.copy_from_slice(&Blake2b::<U32>::digest(bytes)),
        }
        Digest { stored, kind: self }
    }
}

impl fmt::Display for CsumType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CsumType::Crc32c => "crc32c",
            CsumType::Xxhash64 => "xxhash64",
            CsumType::Sha256 => "sha256",
            CsumType::Blake2b => "blake2b",
        })
    }
}

/// A computed checksum.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    stored: [u8; 32],
    kind: CsumType,
}

impl Digest {
    /// The bytes that the checksum tree holds: as long as the kind's digest.
    pub fn bytes(&self) -> &[u8] {
        &self.stored[..self.kind.size()]
    }

    /// The 32 bytes that open a superblock or tree block.
    pub fn field(&self) -> &[u8; 32] {
        &self.stored
    }

    /// Whether a header's 32-byte field holds this digest. What follows a short digest there is
    /// not compared: the kernel does not either.
    pub fn is_in(&self, field: &[u8]) -> bool {
        field.get(..self.kind.size()) == Some(self.bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(self.bytes(), self.kind, f)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A digest found on disk, printed as the kernel prints it.
pub(crate) struct Found<'a>(pub(crate) &'a [u8], pub(crate) CsumType);

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(self.0.get(..self.1.size()).unwrap_or(self.0), self.1, f)
    }
}

/// Short digests are little-endian numbers and read as such; long ones are strings of bytes.
fn hex(bytes: &[u8], kind: CsumType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str("0x")?;
    let put = |f: &mut fmt::Formatter<'_>, byte: &u8| write!(f, "{byte:02x}");
    match kind {
        CsumType::Crc32c => bytes.iter().rev().try_for_each(|b| put(f, b)),
        _ => bytes.iter().try_for_each(|b| put(f, b)),
    }
}

/// One step per byte value of the reflected polynomial 0x82F63B78.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    let mut byte = 0u32;
    while i < 256 {
        let mut reg = byte;
        let mut bit = 0;
        while bit < 8 {
            reg = if reg & 1 == 1 { (reg >> 1) ^ 0x82F6_3B78 } else { reg >> 1 };
            bit += 1;
        }
        table[i] = reg;
        i += 1;
        byte += 1;
    }
    table
};

/// The raw CRC-32C update function: no inversion before or after. Names and keys are short, so a
/// byte table is enough; whole blocks go through `varve_block::sum`.
fn update(mut reg: u32, bytes: &[u8]) -> u32 {
    for byte in bytes {
        let [low, ..] = reg.to_le_bytes();
        reg = (reg >> 8) ^ TABLE[usize::from(low ^ byte)];
    }
    reg
}

/// Key offset of DIR_ITEM and XATTR_ITEM.
pub fn name_hash(name: &[u8]) -> u64 {
    u64::from(update(0xFFFF_FFFE, name))
}

/// Key offset of INODE_EXTREF. Only the low half of the parent's number takes part.
pub fn extref_hash(parent: u64, name: &[u8]) -> u64 {
    let [a, b, c, d, ..] = parent.to_le_bytes();
    u64::from(update(u32::from_le_bytes([a, b, c, d]), name))
}

/// Key offset and inline order of EXTENT_DATA_REF. The shift is 31, not 32: the halves overlap.
pub fn extent_data_ref_hash(root: u64, inode: u64, offset: u64) -> u64 {
    let high = update(u32::MAX, &root.to_le_bytes());
    let low = update(update(u32::MAX, &inode.to_le_bytes()), &offset.to_le_bytes());
    (u64::from(high) << 31) ^ u64::from(low)
}

/// Checksum of a send command, whose own field counts as zero.
pub fn send_crc(command: &[u8]) -> u32 {
    update(0, command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_of_a_zero_sector_are_the_known_ones() {
        let zero = [0; 4096];
        let of = |kind: CsumType| kind.digest(&zero).to_string();
        assert_eq!(of(CsumType::Crc32c), "0x98f94189");
        assert_eq!(of(CsumType::Xxhash64), "0xdbbbd8326f9b86ac");
        assert_eq!(
            of(CsumType::Sha256),
            "0xad7facb2586fc6e966c004d7d1d16b024f5805ff7cb47c7a85dabd8b48892ca7"
        );
        assert_eq!(
            of(CsumType::Blake2b),
            "0x686ede9288c391e7e05026e56f2f91bfd879987a040ea98445dabc76f55b8e5f"
        );
    }

    #[test]
    fn name_hashes_are_the_kernels() {
        assert_eq!(name_hash(b"default"), 2_378_154_706);
        assert_eq!(name_hash(b"a"), 0xCC44_3FCC);
        assert_eq!(name_hash(b"cl099"), 0x00FC_CDBD);
        assert_eq!(name_hash(b"4mcqpb1w9r"), name_hash(b"ymgbw34tsy"));
        assert_eq!(name_hash(b"4mcqpb1w9r"), 0x3987_F3B8);
        assert_eq!(name_hash(b"user.o953q73mvm"), name_hash(b"user.r51x0gag3f"));
    }

    #[test]
    fn extref_hashes_are_the_kernels() {
        assert_eq!(extref_hash(256, b"foo"), 0xBC02_9510);
        let long = format!("hardlink-0382-{}", "n".repeat(60));
        assert_eq!(extref_hash(256, long.as_bytes()), 5_890_795);
        assert_eq!(extref_hash(256, b"lbls90t6ws"), 0x24FB_40CC);
        assert_eq!(extref_hash(256, b"62bxy490uf"), 0x24FB_40CC);
    }

    #[test]
    fn data_reference_hashes_are_the_kernels() {
        assert_eq!(extent_data_ref_hash(256, 320, 0), 1_002_667_597_127_826_152);
        assert_eq!(extent_data_ref_hash(5, 257, 0), 0x0DFB_591F_A80D_95EA);
        let collision = 1_007_496_934_860_855_560;
        assert_eq!(extent_data_ref_hash(5, 860_154, 3_445_800_960), collision);
        assert_eq!(extent_data_ref_hash(5, 897_465, 4_292_370_432), collision);
    }

    #[test]
    fn send_checksum_has_no_inversion() {
        assert_eq!(send_crc(b"123456789"), 0x58E3_FA20);
        assert_eq!(!update(u32::MAX, b"123456789"), 0xE306_9283);
    }
}
