//! Logs that somebody has tampered with, and sealed anew: an error or some tree, and never a panic, a
//! hang, or a write.

use super::cut;
use crate::kernel::{Mount, shell, workshop};
use crate::walk::load;
use varve_block::dev::Mem;
use varve_block::{Prng, Sim};
use varve_fs::csum::CsumType;
use varve_fs::format::block::Header;
use varve_fs::format::inode::FileType;
use varve_fs::format::key::objectid;
use varve_fs::{Fs, OpenOptions};

const NODE: usize = 4096;
const ROUNDS: u64 = 600;

/// Items of every kind that a log has.
const FILL: &str = "mkdir d e; for i in $(seq 30); do seq $i 50 > d/f$i; done
    seq 9999 > a; ln a b; seq 9999 > c; setfattr -n user.a -v 1 a; seq 40000 > warm; sync
    rm d/f7 d/f8; mv d/f9 d/new; ln d/f10 d/link; seq 3 > d/f11; mkdir d/deep; sync d
    setfattr -n user.b -v 22 a; setfattr -x user.a a; seq 12000 > a; fallocate -l 1M a; sync a
    head -c 100000 /dev/urandom | dd of=c bs=4k seek=3 conv=notrunc status=none; sync c";

/// The blocks of logs, and where each has its copies.
fn log_blocks(device: &Mem) -> Vec<(Vec<u8>, Vec<u64>)> {
    let all = device.to_vec();
    let mut blocks: Vec<(Vec<u8>, Vec<u64>)> = Vec::new();
    let fsid = all[65536 + 32..65536 + 48].to_vec();
    for (at, bytes) in (0u64..).step_by(NODE).zip(all.chunks_exact(NODE)) {
        let Ok(header) = Header::parse(bytes) else { continue };
        if header.owner != objectid::TREE_LOG || bytes[32..48] != fsid {
            continue;
        }
        match blocks.iter_mut().find(|(known, _)| known == bytes) {
            Some((_, copies)) => copies.push(at),
            None => blocks.push((bytes.to_vec(), vec![at])),
        }
    }
    blocks
}

/// Changes a few used bytes: in item heads, or in data.
fn tampered(block: &[u8], prng: &Prng) -> Vec<u8> {
    let mut block = block.to_vec();
    let used: Vec<usize> = (101..block.len()).filter(|at| block[*at] != 0).collect();
    for _ in 0..=prng.below(3) {
        let Some(at) = used.get(usize::try_from(prng.below(used.len() as u64)).expect("small"))
        else {
            break;
        };
        block[*at] = match prng.below(3) {
            0 => block[*at] ^ (1 << prng.below(8)),
            1 => [0, 1, 0x7F, 0x80, 0xFF][usize::try_from(prng.below(5)).expect("small")],
            _ => prng.next_u64().to_le_bytes()[0],
        };
    }
    let digest = CsumType::Crc32c.digest(&block[32..]);
    block[..32].copy_from_slice(digest.field());
    block
}

/// Reads all there is, whatever fails.
async fn wander(fs: &Fs<Mem>) -> usize {
    let (mut todo, mut seen) = (vec![fs.top()], 0);
    while let Some(id) = todo.pop() {
        seen += 1;
        // A folder may be inside itself.
        if seen > 2000 {
            return seen;
        }
        let Ok(inode) = fs.inode(id).await else { continue };
        let _ = (fs.xattrs(id).await, fs.names(id).await);
        if inode.file_type() == FileType::Directory {
            for entry in fs.read_dir(id, 0, 500).await.unwrap_or_default() {
                todo.push(entry.id);
            }
        } else {
            let _ = fs.read(id, 0, 1 << 20).await;
        }
    }
    seen
}

#[test]
fn s09_a_log_that_was_tampered_with_is_refused_or_shown_and_no_more() {
    let test = "s09_a_log_that_was_tampered_with_is_refused_or_shown_and_no_more";
    let Some(dir) = workshop(test) else { return };
    let image = dir.path().join("disk");
    shell(dir.path(), "truncate -s 200M disk; mkfs.btrfs -q -n 4096 disk >/dev/null");
    let mount = Mount::new(&image, "commit=300");
    shell(mount.path(), FILL);
    let device = load(&cut(&image, "cut"));
    drop(mount);
    let blocks = log_blocks(&device);
    assert!(blocks.len() > 2, "only {} blocks of a log", blocks.len());
    let (shown, refused) = Sim::new(1).max_steps(u64::MAX).run(|_| async move {
        let (mut shown, mut refused) = (0, 0);
        for seed in 0..ROUNDS {
            let prng = Prng::new(seed);
            let which = usize::try_from(prng.below(blocks.len() as u64)).expect("small");
            let (old, copies) = &blocks[which];
            let new = tampered(old, &prng);
            copies.iter().for_each(|at| device.poke(*at, &new));
            match Fs::open(device.clone(), OpenOptions::default()).await {
                Ok(fs) => shown += usize::from(wander(&fs).await > 0),
                Err(error) => {
                    refused += 1;
                    assert!(error.message.contains("--nologreplay"), "seed {seed}: {error}");
                }
            }
            let mut now = vec![0; NODE];
            copies.iter().for_each(|at| {
                device.peek(*at, &mut now);
                assert!(now == new, "seed {seed}: written to");
                device.poke(*at, old);
            });
        }
        (shown, refused)
    });
    println!("{shown} shown, {refused} refused");
    assert!(shown > 50 && refused > 50, "{shown} shown, {refused} refused");
}
