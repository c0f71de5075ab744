//! Feature bits that this engine does not know (format: btrfs 21): refused, or read and told.

use crate::image::{golden, in_sim, walk};
use varve_block::dev::Mem;
use varve_fs::check::{CheckOptions, check};
use varve_fs::csum::CsumType;
use varve_fs::export::{RescueOptions, open_rescue};
use varve_fs::format::superblock::{CompatRo, Incompat, Superblock};
use varve_fs::inspect::{Inspector, scan_chunks};
use varve_fs::{Error, ErrorKind, Fs, OpenOptions};

const SUPER: u64 = 65536;
/// Offsets of the three fields.
const COMPAT: usize = 0xac;
const COMPAT_RO: usize = 0xb4;
const INCOMPAT: usize = 0xbc;

/// The golden disk with one bit more.
fn with_bit(field: usize, bit: u32) -> Mem {
    let device = golden();
    for at in [SUPER, 64 << 20] {
        let mut sb = vec![0; 4096];
        device.peek(at, &mut sb);
        sb[field + bit as usize / 8] |= 1 << (bit % 8);
        let sum = CsumType::Crc32c.digest(&sb[32..]);
        sb[..32].copy_from_slice(sum.field());
        device.poke(at, &sb);
    }
    device
}

fn superblock() -> Superblock {
    let mut sb = vec![0; 4096];
    golden().peek(SUPER, &mut sb);
    Superblock::parse(&sb).expect("a superblock")
}

#[track_caller]
fn refused<T>(result: Result<T, Error>, bit: u32, how: &str) {
    let error = result.err().unwrap_or_else(|| panic!("bit {bit}: {how} takes it"));
    assert_eq!(error.kind, ErrorKind::Unsupported, "bit {bit}, {how}: {error}");
    let said = &error.message;
    assert!(said.contains(&format!("0x{:x}", 1u64 << bit)), "bit {bit}, {how}: {said}");
    let names =
        [(12, "zoned"), (13, "extent-tree-v2"), (14, "raid-stripe-tree"), (17, "remap-tree")];
    let name = names.iter().find(|(n, _)| *n == bit);
    assert!(name.is_none_or(|(_, name)| said.contains(name)), "bit {bit}, {how}: {said}");
}

/// Each way to open a file system, with each bit that is not understood.
#[test]
fn an_unknown_incompatible_feature_is_refused_by_its_bit() {
    in_sim(|_| async {
        let known = Incompat::READABLE.bits();
        let unknown = (0..64).filter(|bit| known & 1 << bit == 0);
        for bit in unknown {
            let device = || with_bit(INCOMPAT, bit);
            refused(Fs::open(device(), OpenOptions::default()).await, bit, "a mount");
            refused(check(vec![device()], &CheckOptions::default()).await, bit, "a check");
            refused(Inspector::open(device(), 0).await, bit, "a dump");
            refused(scan_chunks(vec![device()], 0, &mut |_, _| ()).await, bit, "chunk-recover");
            let options = RescueOptions::default();
            refused(open_rescue(vec![device()], &options, &mut |_, _| ()).await, bit, "an export");
        }
    });
}

/// A file system that may be read and not written is read.
#[test]
fn an_unknown_read_only_compatible_feature_is_read_and_told() {
    in_sim(|_| async {
        let has = superblock().compat_ro.bits() | CompatRo::BLOCK_GROUP_TREE.bits();
        for bit in (0..64).filter(|bit| has & 1 << bit == 0) {
            let fs = Fs::open(with_bit(COMPAT_RO, bit), OpenOptions::default()).await;
            let fs = fs.unwrap_or_else(|error| panic!("bit {bit}: {error}"));
            let told = format!("unknown read-only compatible features 0x{:x}", 1u64 << bit);
            let known = CompatRo::KNOWN.bits() & 1 << bit != 0;
            let says = fs.warnings().iter().any(|warning| warning.contains(&told));
            assert_eq!(says, !known, "bit {bit}: {:?}", fs.warnings());
            if bit % 16 == 0 {
                assert_eq!(walk(&fs).await.sums.len(), 221);
            }
        }
    });
}

#[test]
fn a_compatible_feature_changes_nothing() {
    in_sim(|_| async {
        for bit in 0..64 {
            let fs =
                Fs::open(with_bit(COMPAT, bit), OpenOptions::default()).await.expect("it opens");
            assert_eq!(fs.warnings(), [""; 0]);
        }
    });
}
