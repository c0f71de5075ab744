//! S22, S23: reads that come late, and good blocks that are not the ones that were meant.

use crate::devices::{Rig, Rigged};
use crate::image::{golden, open};
use std::rc::Rc;
use std::time::Duration;
use varve_block::dev::Mem;
use varve_block::sync::select;
use varve_block::{Rt, Sim, chain};
use varve_fs::csum::CsumType;
use varve_fs::format::key::objectid;
use varve_fs::verify::Expect;
use varve_fs::{ErrorKind, Fs, TreeBlock};

const NODE: usize = 16384;

/// The root of the tree of files, and one of its leaves.
struct Known {
    root: Expect,
    leaf: Expect,
    other_leaf: Expect,
    root_bytes: Vec<u8>,
    leaf_bytes: Vec<u8>,
    other_leaf_bytes: Vec<u8>,
    sums_bytes: Vec<u8>,
    /// Where the copies of the leaf begin.
    copies: Vec<u64>,
}

async fn known(below: &Mem) -> Known {
    let fs = open(below.clone()).await;
    let tree = fs.tree(objectid::FS_TREE).await.expect("the root tree").expect("files");
    let sums = fs.tree(objectid::CSUM_TREE).await.expect("the root tree").expect("sums");
    let bytes = |block: &TreeBlock| block.bytes().to_vec();
    let root = tree.expect_root();
    let top = fs.block(&root).await.expect("a whole image");
    assert_eq!(top.level(), 1);
    let leaf = top.expect_child(1, tree.id).expect("a whole image");
    let other_leaf = top.expect_child(2, tree.id).expect("a whole image");
    let copies = fs.chunks().map(leaf.logical, 1).expect("a whole image").copies;
    Known {
        leaf_bytes: bytes(&fs.block(&leaf).await.expect("a whole image")),
        other_leaf_bytes: bytes(&fs.block(&other_leaf).await.expect("a whole image")),
        sums_bytes: bytes(&fs.block(&sums.expect_root()).await.expect("a whole image")),
        root_bytes: bytes(&top),
        copies: copies.iter().map(|place| place.byte).collect(),
        root,
        leaf,
        other_leaf,
    }
}

fn rigged(below: Mem, rig: &Rc<Rig>, rt: &Rt) -> Rigged {
    Rigged { below, rig: Rc::clone(rig), rt: rt.clone() }
}

/// A reader gives up, the next one reads anew; then the device delivers to the first, and garbage.
#[test]
fn s22_a_late_read_with_garbage_reaches_nobody() {
    for seed in 0..40 {
        Sim::new(seed).run(|rt| async move {
            let below = golden();
            let known = known(&below).await;
            let rig = Rc::new(Rig::default());
            let fs = open(rigged(below, &rig, &rt)).await;
            rig.reads.borrow_mut().clear();
            rig.first_is_late.set(Some(Duration::from_millis(5)));
            let hasty = async { drop(fs.block(&known.leaf).await) };
            select(hasty, rt.sleep(Duration::from_micros(10 + seed * 10))).await;
            let block = fs.block(&known.leaf).await.unwrap();
            assert!(block.bytes() == known.leaf_bytes, "seed {seed}");
            assert_eq!(rig.garbage.get(), 0, "the late read has not ended yet");
            rt.sleep(Duration::from_millis(20)).await;
            assert!(rig.garbage.get() > 0, "the late read has ended");
            assert!(block.bytes() == known.leaf_bytes, "seed {seed}: published bytes changed");
            let again = fs.block(&known.leaf).await.unwrap();
            assert!(std::sync::Arc::ptr_eq(&block, &again), "seed {seed}: published twice");
            assert_eq!(fs.counters().bad_copies, 0, "the garbage was looked at");
        });
    }
}

/// Over the block's own checksum, as whoever wrote it would have.
fn sealed(mut bytes: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    change(&mut bytes);
    let digest = CsumType::Crc32c.digest(&bytes[32..]);
    bytes[..32].copy_from_slice(digest.field());
    bytes
}

#[test]
fn s23_a_good_block_from_elsewhere_is_named_and_the_other_copy_read() {
    Sim::new(1).run(|rt| async move {
        let below = golden();
        let known = known(&below).await;
        assert_eq!(known.copies.len(), 2, "two copies of metadata");
        assert_ne!(known.leaf.logical, known.other_leaf.logical);
        assert_ne!(known.leaf.logical, known.root.logical);
        let moved = |bytes: &Vec<u8>| {
            let at = known.leaf.logical.0.to_le_bytes();
            let generation = known.leaf.generation.unwrap().to_le_bytes();
            sealed(bytes.clone(), |block| {
                block[48..56].copy_from_slice(&at);
                block[80..88].copy_from_slice(&generation);
            })
        };
        let older = sealed(known.leaf_bytes.clone(), |block| block[80] ^= 1);
        let of_another = sealed(known.leaf_bytes.clone(), |block| block[88] = 7);
        let cases = [
            ("bad tree block start", known.other_leaf_bytes.clone()),
            ("bad tree block start", known.sums_bytes.clone()),
            ("first key mismatch", moved(&known.other_leaf_bytes)),
            ("level", moved(&known.root_bytes)),
            ("parent transid verify failed", older),
            ("owner", of_another),
        ];
        for (word, delivered) in cases {
            assert_eq!(delivered.len(), NODE);
            for spoilt in 1..=2 {
                let rig = Rc::new(Rig::default());
                for copy in &known.copies[..spoilt] {
                    rig.instead.borrow_mut().insert(*copy, delivered.clone());
                }
                let fs: Fs<Rigged> = open(rigged(below.clone(), &rig, &rt)).await;
                let read = fs.block(&known.leaf).await;
                assert_eq!(fs.counters().bad_copies, spoilt as u64, "{word}");
                match read {
                    Ok(block) => assert!(spoilt == 1 && block.bytes() == known.leaf_bytes),
                    Err(error) => {
                        assert_eq!((spoilt, error.kind), (2, ErrorKind::Corrupt), "{word}");
                        assert!(chain(&error).contains(word), "{word}: {}", chain(&error));
                    }
                }
            }
        }
    });
}

/// One copy does not check out: nobody notices. Both are broken by somebody who sealed them anew: an
/// error, and the rest is read as ever.
#[test]
fn s15_one_broken_copy_is_passed_over_and_two_are_an_error() {
    Sim::new(1).run(|rt| async move {
        let below = golden();
        let known = known(&below).await;
        let mut torn = known.leaf_bytes.clone();
        torn[5000] ^= 0x10;
        // The first item's data ends elsewhere than at the end of the block.
        let senseless = sealed(known.leaf_bytes.clone(), |block| block[101 + 17] ^= 4);
        let with = |copies: Vec<(u64, Vec<u8>)>| {
            let rig = Rc::new(Rig::default());
            rig.instead.borrow_mut().extend(copies);
            rigged(below.clone(), &rig, &rt)
        };
        let fs = open(with(vec![(known.copies[0], torn.clone())])).await;
        assert!(fs.block(&known.leaf).await.unwrap().bytes() == known.leaf_bytes);
        assert_eq!(fs.counters().bad_copies, 1);
        for first in [torn, senseless.clone()] {
            let both = [first, senseless.clone()];
            let fs = open(with(known.copies.iter().copied().zip(both).collect())).await;
            let error = fs.block(&known.leaf).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Corrupt, "{}", chain(&error));
            assert_eq!(fs.counters().bad_copies, 2);
            assert!(fs.block(&known.other_leaf).await.is_ok(), "only one block is lost");
        }
    });
}
