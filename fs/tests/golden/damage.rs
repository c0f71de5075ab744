//! One bad copy is nobody's business; when all are bad, the error says which byte of which file.

use crate::devices::{Rig, Rigged};
use crate::image::{assert_same, golden, in_sim, open, walk};
use std::ops::Range;
use std::rc::Rc;
use varve_block::chain;
use varve_block::dev::Mem;
use varve_fs::csum::CsumType;
use varve_fs::format::block::Header;
use varve_fs::format::chunk::GroupFlags;
use varve_fs::{ErrorKind, Fs, OpenOptions};

const NODE: usize = 16384;

/// The device ranges of every metadata and system chunk, one list per copy.
async fn metadata(device: &Mem) -> [Vec<Range<u64>>; 2] {
    let fs = open(device.clone()).await;
    let mut copies = [Vec::new(), Vec::new()];
    for (_, chunk) in fs.chunks().iter() {
        if !chunk.flags.contains(GroupFlags::DATA) {
            for (copy, stripe) in copies.iter_mut().zip(&chunk.stripes) {
                copy.push(stripe.offset..stripe.offset + chunk.length);
            }
        }
    }
    copies
}

fn smash(device: &Mem, ranges: &[Range<u64>]) {
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            let mut block = vec![0; NODE];
            device.peek(at, &mut block);
            if block.iter().any(|byte| *byte != 0) {
                device.poke(at + 4000, b"garbage");
            }
            at += NODE as u64;
        }
    }
}

#[test]
fn with_one_copy_of_all_metadata_gone_every_file_is_read() {
    in_sim(|_| async {
        let whole = walk(&open(golden()).await).await.sums;
        for lost in [0, 1] {
            let device = golden();
            let copies = metadata(&device).await;
            smash(&device, &copies[lost]);
            let fs = open(device).await;
            assert_same(&walk(&fs).await.sums, &whole);
            assert_eq!(fs.counters().bad_copies > 5, lost == 0, "copy 1 is read first");
        }
    });
}

#[test]
fn with_one_copy_unreadable_every_file_is_read() {
    in_sim(|rt| async move {
        let below = golden();
        let [first, _] = metadata(&below).await;
        let rig = Rc::new(Rig::default());
        rig.broken.replace(first);
        let fs = open(Rigged { below, rig, rt }).await;
        let found = walk(&fs).await;
        assert_eq!((found.failed, found.sums.len()), (0, 221));
    });
}

#[test]
fn a_superblock_that_is_gone_is_told_and_another_copy_opens() {
    in_sim(|_| async {
        let device = golden();
        device.poke(65536 + 100, b"damage");
        let error = Fs::open(device.clone(), OpenOptions::default()).await.err().unwrap();
        assert_eq!(error.kind, ErrorKind::Corrupt);
        assert!(error.message.contains("superblock at byte 65536: superblock checksum mismatch"));
        let options = OpenOptions { super_copy: 1, ..OpenOptions::default() };
        let fs = Fs::open(device, options).await.unwrap();
        assert_eq!(walk(&fs).await.sums.len(), 221);
    });
}

/// A good block, of the right tree, from an older commit: what a lost write leaves.
#[test]
fn an_old_block_in_place_of_a_new_one_is_a_transid_failure() {
    in_sim(|_| async {
        let device = golden();
        let fs = open(device.clone()).await;
        let sub = fs.subvolume(5).await.unwrap();
        let piece = fs.chunks().map(sub.root.bytenr, 1).unwrap();
        for copy in &piece.copies {
            let mut block = vec![0; NODE];
            device.peek(copy.byte, &mut block);
            let mut header = Header::parse(&block).unwrap();
            header.generation -= 1;
            block[..101].copy_from_slice(&header.encode());
            let sum = CsumType::Crc32c.digest(&block[32..]);
            block[..32].copy_from_slice(sum.field());
            device.poke(copy.byte, &block);
        }
        let fs = open(device).await;
        let error = fs.inode(fs.top()).await.err().unwrap();
        let (at, wanted) = (sub.root.bytenr, sub.root.generation);
        let line = chain(&error);
        let words = format!(
            "parent transid verify failed on logical {at} mirror 1 wanted {wanted} found {}",
            wanted - 1
        );
        assert!(line.contains(&words), "{line}");
        assert_eq!(error.place.logical, Some(at));
    });
}

#[test]
fn bad_data_names_root_inode_offset_and_place() {
    in_sim(|rt| async move {
        let below = golden();
        let mut whole = vec![0; 112 << 20];
        below.peek(0, &mut whole);
        // A line that only the plain text has, in its second sector.
        let needle = b"\n1500\n1501\n1502\n";
        let at = whole.windows(needle.len()).position(|w| w == needle).unwrap() as u64;
        below.poke(at, b"X");
        let rig = Rc::new(Rig::default());
        let fs = open(Rigged { below: below.clone(), rig: Rc::clone(&rig), rt }).await;
        let id = fs.lookup("/plain/text").await.unwrap();
        let error = fs.read(id, 0, 1 << 20).await.err().unwrap();
        assert_eq!(error.kind, ErrorKind::Corrupt);
        let line = chain(&error);
        let start = format!("root 5 inode {} offset 0, logical ", id.ino);
        assert!(line.starts_with(&start), "{line}");
        let grammar = format!("csum failed root 5 ino {} off 4096 csum 0x", id.ino);
        assert!(line.contains(&grammar), "{line}");
        assert!(line.ends_with("mirror 1"), "{line}");
        assert_eq!(error.place.offset, Some(4096));
        // The sectors around it can be had, and with checksums ignored all of it.
        assert_eq!(fs.read(id, 0, 4096).await.unwrap().len(), 4096);
        assert_eq!(fs.read(id, 8192, 9999).await.unwrap().len(), 9999);
        let options = OpenOptions { ignore_data_csums: true, ..OpenOptions::default() };
        let careless = Fs::open(below, options).await.unwrap();
        let bytes = careless.read(id, 0, 1 << 20).await.unwrap();
        assert_eq!(bytes.iter().filter(|byte| **byte == b'X').count(), 1);
        // The same sector unreadable: an I/O error, and only for it.
        let sector = at - at % 4096;
        rig.broken.borrow_mut().push(sector..sector + 1);
        let error = fs.read(id, 0, 1 << 20).await.err().unwrap();
        assert_eq!((error.kind, error.place.offset), (ErrorKind::Io, Some(4096)));
        assert_eq!(fs.read(id, 8192, 9999).await.unwrap().len(), 9999);
    });
}
