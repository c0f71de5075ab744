//! The scenarios of authenticated sectors: C05, C06, C13, C14.

use super::*;
use crate::integrity::hooks::{Memory, Mutation};
use crate::testing::story::proven;
use std::cell::RefCell;
use std::time::Duration;
use varve_block::sync::join;

/// Byte of the data of a sector, of its tag, and of its stored IV, on the device.
fn places(shape: Shape, device: Sectors, sections: u32, at: u64) -> (u64, u64, usize) {
    let sb = superblock(shape, device, sections);
    let l = Layout::new(&sb, START, device).unwrap();
    (l.data(Sector(at)).byte(), l.tag_byte(Sector(at)), l.tag)
}

/// C14: a bit of data, tag or stored IV, and sectors that changed places: an error that names the sector,
/// and no byte. An old sector with its old tuple is taken: nothing says that it is old.
#[test]
fn c14_a_tampered_sector_is_an_error_with_its_number_and_never_data() {
    const DEVICE: Sectors = Sectors(8192);
    for shape in SHAPES {
        Sim::new(14).run(move |rt| async move {
            let disk = made(&rt, shape, DEVICE, 2).await;
            let unit = usize::try_from(shape.2).unwrap();
            let step = shape.2 / 512;
            let s = open(&rt, disk.clone(), shape, Journaling::Journal).await.unwrap();
            write(&s, 0, &pattern(11, 64 * 512)).await;
            s.close().await.unwrap();
            let whole = disk.to_vec();
            let (data, tag, tuple) = places(shape, DEVICE, 2, 16);
            let refused = async |what: &str| {
                let e = try_read(&s, 0, 64).await.expect_err(what);
                assert_eq!(
                    (e.kind, e.at),
                    (ErrorKind::Corrupt, Extent::new(Sector(16), Sectors(step)))
                );
                let line = varve_block::chain(&e);
                assert_eq!(
                    line,
                    format!(
                        "read sector 16+{step} on crypt on mem: corrupt data: \
                         the integrity tag does not match"
                    )
                );
                // Its neighbours are not concerned.
                assert_eq!(read(&s, 0, 16).await, pattern(11, 16 * 512));
                assert_eq!(
                    read(&s, 16 + step, 8).await,
                    pattern(11 + 16 * 512 + unit as u64, 8 * 512)
                );
            };
            for at in [data, data + unit as u64 - 1, tag, tag + tuple as u64 - 1] {
                let mut byte = [0];
                disk.peek(at, &mut byte);
                disk.poke(at, &[byte[0] ^ 0x20]);
                refused("a bit").await;
                disk.poke(at, &byte);
            }
            // Two sectors change places, with their tuples.
            let (other, other_tag, _) = places(shape, DEVICE, 2, 32);
            let piece = |at: u64, len: usize| {
                let at = usize::try_from(at).unwrap();
                whole[at..at + len].to_vec()
            };
            disk.poke(data, &piece(other, unit));
            disk.poke(tag, &piece(other_tag, tuple));
            disk.poke(other, &piece(data, unit));
            disk.poke(other_tag, &piece(tag, tuple));
            let e = try_read(&s, 32, step).await.expect_err("the other one");
            assert_eq!((e.kind, e.at.start), (ErrorKind::Corrupt, Sector(32)));
            refused("swapped").await;
            disk.poke(0, &whole);
            // The limit: old data under its own old tuple.
            write(&s, 16, &pattern(99, unit)).await;
            s.close().await.unwrap();
            assert_eq!(read(&s, 16, step).await, pattern(99, unit));
            disk.poke(data, &piece(data, unit));
            disk.poke(tag, &piece(tag, tuple));
            assert_eq!(read(&s, 16, step).await, pattern(11 + 16 * 512, unit));
        });
    }
}

/// C14 in the journal: a block that rots there is noticed by its tag, wherever it is read from.
#[test]
fn c14_a_block_that_rots_in_the_journal_is_an_error_after_the_replay() {
    Sim::new(15).run(|rt| async move {
        let shape = SHAPES[0];
        let disk = made(&rt, shape, Sectors(4096), 3).await;
        let s = open(&rt, disk.clone(), shape, Journaling::Journal).await.unwrap();
        write(&s, 8, &pattern(1, 4096)).await;
        write(&s, 24, &pattern(2, 4096)).await;
        s.flush().await.unwrap();
        // The second data block of the first section.
        let at = START.byte() + (8 + 8 + 8) * 512;
        let mut byte = [0];
        disk.peek(at, &mut byte);
        disk.poke(at, &[byte[0] ^ 1]);
        let s = open(&rt, disk.clone(), shape, Journaling::Journal).await.unwrap();
        assert_eq!(read(&s, 8, 8).await, pattern(1, 4096));
        let e = try_read(&s, 24, 8).await.unwrap_err();
        assert_eq!((e.kind, e.at.start), (ErrorKind::Corrupt, Sector(24)));
        // A commit id that rots fits no sequence: the journal is damaged, and nothing is written.
        write(&s, 40, &pattern(3, 4096)).await;
        s.flush().await.unwrap();
        disk.poke(START.byte() + 8 * 512 + 504, &[0xff; 8]);
        let before = disk.to_vec();
        let e = open(&rt, disk.clone(), shape, Journaling::Journal).await.map(drop).unwrap_err();
        assert!(e.to_string().contains("sector 24 of mem"), "{e}");
        assert!(matches!(e, Error::Corrupt(c) if c.check == 51));
        assert_eq!(disk.to_vec(), before);
    });
}

/// C05: a pool that is dry in the middle of a large request, and requests that are cut anywhere: data and
/// tuples are those of one request.
#[test]
fn c05_positions_and_tuples_survive_a_dry_pool_and_any_cut() {
    let shape = SHAPES[1];
    let clear = pattern(5, 96 * 512);
    let stored = move |cut: Option<u64>| {
        let clear = clear.clone();
        Sim::new(50).run(move |rt| async move {
            let disk = made(&rt, shape, Sectors(4096), 2).await;
            let handle = VolumeHandle::new(volume(shape, Journaling::Direct));
            let pool = BufPool::new(varve_block::MAX_LEN);
            let s = Sealed::open(&rt, disk.clone(), handle, pool.clone()).await.unwrap();
            match cut {
                None => write(&s, 40, &clear).await,
                Some(k) => {
                    let view = BufPool::new(0).take_copy(&clear).await.freeze();
                    let at = usize::try_from(k * 512).unwrap();
                    let (one, two) = (view.slice(0..at), view.slice(at..clear.len()));
                    let held = pool.take_bytes(varve_block::MAX_LEN).await;
                    let first = s.write(Sector(40), Data::Shared(one), Durability::Cached);
                    let second = s.write(Sector(40 + k), Data::Shared(two), Durability::Cached);
                    let release = async {
                        rt.yield_now().await;
                        drop(held);
                    };
                    let ((a, b), ()) = join(join(first, second), release).await;
                    a.unwrap();
                    b.unwrap();
                }
            }
            assert_eq!(read(&s, 40, 96).await, clear);
            disk.to_vec()
        })
    };
    let whole = stored(None);
    for k in 1..96 {
        assert!(stored(Some(k)) == whole, "cut after {k} sectors");
    }
}

/// More than is sealed or opened in one turn.
const SHARED: usize = 128 << 10;

/// A client that changes a byte of its memory now and then, until it is cancelled.
fn scribble(rt: &Rt, memory: &Memory) -> varve_block::Task<()> {
    let (rt, memory) = (rt.clone(), Rc::clone(memory));
    rt.clone().spawn(async move {
        loop {
            match rt.prng().chance(1, 4) {
                true => rt.sleep(Duration::from_nanos(rt.prng().below(10_000))).await,
                false => rt.yield_now().await,
            }
            let at = rt.prng().index(memory.borrow().len());
            memory.borrow_mut()[at] ^= 0x20;
        }
    })
}

fn with(s: Sealed<Mem>, mutation: Option<Mutation>) -> Sealed<Mem> {
    match mutation {
        Some(m) => s.with_mutation(m),
        None => s,
    }
}

/// A volume that was made once, for many worlds.
fn image(shape: Shape) -> Vec<u8> {
    Sim::new(60).run(move |rt| async move { made(&rt, shape, Sectors(4096), 2).await.to_vec() })
}

fn disk_of(image: &[u8]) -> Mem {
    let disk = Mem::new(Sectors(4096));
    disk.poke(0, image);
    disk
}

/// C06: a client changes its memory while it is written. What is shared is frozen, and what is sealed is this
/// layer's one copy; so both mirrors hold the same ciphertext, each with the tag of it.
#[test]
fn c06_shared_bytes_are_sealed_from_a_copy_and_both_mirrors_agree() {
    let shape = SHAPES[0];
    let image = image(shape);
    let run = |seed, mutation: Option<Mutation>| {
        let (a, b) = (disk_of(&image), disk_of(&image));
        let memory: Memory = Rc::new(RefCell::new(pattern(4, SHARED)));
        let mutation = mutation.map(|_| Mutation::SealAndStoreTwoCopies(Rc::clone(&memory)));
        Sim::new(seed).run(move |rt| async move {
            let one = open(&rt, a.clone(), shape, Journaling::Journal).await.unwrap();
            let two = open(&rt, b.clone(), shape, Journaling::Journal).await.unwrap();
            let (one, two) = (with(one, mutation.clone()), with(two, mutation));
            let client = scribble(&rt, &memory);
            let clear = memory.borrow().clone();
            let view = BufPool::new(1 << 20).take_copy(&clear).await.freeze();
            // Sealing takes turns; the other mirror's runs between them.
            let send = async |s: &Sealed<Mem>| {
                let shared = Data::Shared(view.clone());
                s.write(Sector(8), shared, Durability::Fua).await.map(drop)
            };
            let (x, y) = join(send(&one), send(&two)).await;
            x.unwrap();
            y.unwrap();
            client.cancel().await;
            assert!(view[..] == clear, "not encrypted where the client reads");
            one.close().await.unwrap();
            two.close().await.unwrap();
            let l = Layout::new(&superblock(shape, Sectors(4096), 2), START, Sectors(4096));
            // As far as the first area goes.
            let (at, len) = (l.unwrap().data(Sector(8)).byte(), 120 * 512);
            let (mut left, mut right) = (vec![0; len], vec![0; len]);
            a.peek(at, &mut left);
            b.peek(at, &mut right);
            assert!(left != clear[..len]);
            if left != right {
                return Err("the mirrors differ".into());
            }
            for s in [&one, &two] {
                match try_read(s, 8, 256).await {
                    Ok(found) if found == clear => {}
                    Ok(_) => return Err("neither what was sent nor an error".into()),
                    Err(e) => return Err(varve_block::chain(&e)),
                }
            }
            Ok(())
        })
    };
    proven("C06", run, || Mutation::SealAndStoreTwoCopies(Memory::default()));
}

/// C13: a client writes to the memory that it wants the answer in. The buffer of a read is the request's
/// until it is checked. What a caller does to the bytes it was given changes nothing for the next reader,
/// and counts as no damage.
#[test]
fn c13_a_scribbling_reader_is_no_damage() {
    let shape = SHAPES[4];
    let image = image(shape);
    let run = |seed, mutation: Option<Mutation>| {
        let (disk, memory) = (disk_of(&image), Memory::default());
        memory.borrow_mut().resize(SHARED, 0);
        let mutation = mutation.map(|_| Mutation::OpenInTheClientsMemory(Rc::clone(&memory)));
        Sim::new(seed).run(move |rt| async move {
            let s = open(&rt, disk, shape, Journaling::Journal).await.unwrap();
            let s = with(s, mutation);
            write(&s, 8, &pattern(4, SHARED)).await;
            let client = scribble(&rt, &memory);
            for flushed in [false, true] {
                if flushed {
                    s.close().await.unwrap();
                }
                let mut buf = BufPool::new(1 << 20).take(Sectors(256)).await;
                for _ in 0..2 {
                    let got = s.read(Sector(8), buf).await;
                    buf = got.map_err(|e| varve_block::chain(&e))?;
                    if buf[..] != pattern(4, SHARED) {
                        return Err("bytes that nobody wrote".into());
                    }
                    buf.fill(0xff);
                }
            }
            client.cancel().await;
            Ok(())
        })
    };
    proven("C13", run, || Mutation::OpenInTheClientsMemory(Memory::default()));
}
