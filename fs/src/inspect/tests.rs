//! Superblocks with a log that is forgotten, cut off half-way, and remembered.

use super::*;
use crate::error::ErrorKind;
use crate::format::superblock::{SUPER_OFFSETS, SUPER_SIZE, Superblock};
use crate::units::Logical;
use crate::{Fs, OpenOptions};
use varve_block::dev::Mem;
use varve_block::{Sectors, Sim};

const PACKED: &[u8] =
    include_bytes!("../../../tests/images/010-kernel-btrfs-one-of-everything/image.zst");
const COPIES: [u64; 2] = [SUPER_OFFSETS[0], SUPER_OFFSETS[1]];

/// A real image whose superblocks name a log that cannot be read.
fn with_log() -> Mem {
    let bytes = zstd::decode_all(PACKED).expect("a zstd stream");
    let mem = Mem::new(Sectors(bytes.len() as u64 >> 9));
    for (n, part) in (0u64..).zip(bytes.chunks(65536)) {
        if part.iter().any(|byte| *byte != 0) {
            mem.poke(n * 65536, part);
        }
    }
    for at in COPIES {
        let mut sb = Superblock::parse(&peek(&mem, at)).expect("a superblock");
        sb.log_root = Logical(30_408_704);
        sb.log_root_level = 1;
        mem.poke(at, &sb.seal(at));
    }
    mem
}

fn peek(mem: &Mem, at: u64) -> Vec<u8> {
    let mut bytes = vec![0; SUPER_SIZE];
    mem.peek(at, &mut bytes);
    bytes
}

fn logs(mem: &Mem) -> Vec<bool> {
    let named = |at: u64| Superblock::parse(&peek(mem, at)).expect("sealed").log_root.0 != 0;
    COPIES.map(named).to_vec()
}

#[test]
fn zero_log_needs_superblocks_alone_and_is_undone_to_the_byte() {
    Sim::new(1).run(|_| async {
        let mem = with_log();
        // Everything else on the device may be broken.
        let rest = mem.to_vec();
        for (n, part) in (0u64..).zip(rest.chunks(65536)) {
            let holds_super = COPIES.contains(&(n * 65536));
            if !holds_super && part.iter().any(|byte| *byte != 0) {
                mem.poke(n * 65536, &[0xA5; 65536]);
            }
        }
        let before = mem.to_vec();
        let plan = ZeroLog::plan(&mem).await.unwrap().expect("there is a log");
        assert_eq!(mem.to_vec(), before, "a plan writes nothing");
        plan.run(&mem).await.unwrap();
        assert_eq!(logs(&mem), [false, false]);
        let after = mem.to_vec();
        let changed = (0..after.len()).filter(|n| after[*n] != before[*n]).map(|n| n as u64);
        for byte in changed {
            assert!(COPIES.iter().any(|at| (*at..*at + 512).contains(&byte)), "byte {byte}");
        }
        assert_eq!(ZeroLog::plan(&mem).await.unwrap(), None, "nothing is left to do");
        ZeroLog::undo(&mem, &plan.writes).await.unwrap();
        assert!(mem.to_vec() == before, "undone to the byte");
    });
}

#[test]
fn a_power_cut_at_any_write_leaves_the_old_state_or_the_new_one() {
    Sim::new(1).run(|_| async {
        let plan = ZeroLog::plan(&with_log()).await.unwrap().unwrap();
        assert_eq!(plan.writes.len(), 2);
        for cut in 0..=plan.writes.len() {
            // Whole writes before the cut; of the one that it hits, any part by sectors.
            for torn in [0, 1, 7, 8] {
                let mem = with_log();
                for write in &plan.writes[..cut] {
                    mem.poke(write.at, &write.after);
                }
                if let Some(hit) = plan.writes.get(cut) {
                    mem.poke(hit.at, &hit.after[..torn * 512]);
                }
                for copy in super_copies(&mem).await.unwrap() {
                    assert_eq!(copy.problem, None, "cut at write {cut}, {torn} sectors");
                }
                let first = logs(&mem)[0];
                let last_hit = cut + 1 == plan.writes.len() && torn > 0;
                assert_eq!(first, cut < plan.writes.len() && !last_hit);
                Fs::open(mem.clone(), OpenOptions { ignore_log: true, ..OpenOptions::default() })
                    .await
                    .expect("it opens");
                // Again is always the way on, and undo the way back.
                if let Some(rest) = ZeroLog::plan(&mem).await.unwrap() {
                    rest.run(&mem).await.unwrap();
                }
                assert_eq!(logs(&mem), [false, false]);
                ZeroLog::undo(&mem, &plan.writes).await.unwrap();
                assert_eq!(logs(&mem), [true, true]);
            }
        }
    });
}

#[test]
fn undo_refuses_a_superblock_that_has_changed_since() {
    Sim::new(1).run(|_| async {
        let mem = with_log();
        let plan = ZeroLog::plan(&mem).await.unwrap().unwrap();
        plan.run(&mem).await.unwrap();
        let mut sb = Superblock::parse(&peek(&mem, COPIES[0])).unwrap();
        sb.generation += 1;
        mem.poke(COPIES[0], &sb.seal(COPIES[0]));
        let before = mem.to_vec();
        let error = ZeroLog::undo(&mem, &plan.writes).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(mem.to_vec() == before, "a refusal writes nothing");
    });
}

#[test]
fn a_broken_first_copy_is_not_decided_over() {
    Sim::new(1).run(|_| async {
        let mem = with_log();
        mem.poke(COPIES[0] + 0x48, &[0xFF; 4]);
        let error = ZeroLog::plan(&mem).await.unwrap_err();
        assert!(error.to_string().contains("checksum mismatch"), "{error}");
    });
}
