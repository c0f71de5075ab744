//! Suspend and resume with requests at every stage.

use super::*;
use std::cell::Cell;
use std::time::Duration;
use varve_block::dev::sim::Image;
use varve_block::{Export, ExportOptions, ExportShared};

fn volume(secret: u8, offset: u64) -> Volume {
    let bytes: Vec<u8> = (0..64u8).map(|n| n.wrapping_mul(secret) ^ 0x5A).collect();
    let options =
        MapOptions { data_len: DISK, detached: true, allow_weak_key: false, engine: Engine::Auto };
    let spec = format!("aes-xts-plain64,sector=512,offset={offset}");
    PlainSpec::parse(&spec).unwrap().open(Key::copy_from(&bytes), &options).unwrap()
}

/// C19: the key is wiped while clients work. They are held and not failed, nothing reaches the disk
/// meanwhile, and after the resume everything is right. Without holding them, they see errors.
#[test]
fn c19_requests_are_held_while_the_key_is_away() {
    // How many requests failed; or what else went wrong.
    let run = |seed, held: bool| -> Result<usize, String> {
        Sim::new(seed).run(|rt| async move {
            let geometry = Geometry::new(DevId::new("disk"), DISK);
            let below = SimDisk::new(&rt, geometry, Image::new(DISK), Plan::default());
            let handle = VolumeHandle::new(volume(37, OFFSET));
            let workers = Workers::Up(2);
            let options = CryptOptions { write_workers: workers, ..CryptOptions::default() };
            let pool = BufPool::new(8 << 20);
            let c = Crypt::new(&rt, below.clone(), handle.clone(), pool, &options).unwrap();
            let shared = ExportShared::new(ExportOptions::default());
            let export = Export::new(rt.clone(), Arc::clone(&shared), Rc::new(c));
            let (failed, done) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
            let clients: Vec<_> = (0..4u64)
                .map(|n| {
                    let (export, rt) = (export.clone(), rt.clone());
                    let (failed, done) = (Rc::clone(&failed), Rc::clone(&done));
                    rt.clone().spawn(async move {
                        let pool = BufPool::new(8 << 20);
                        for round in 0..12 {
                            let len = 512 * usize::try_from(1 + rt.prng().below(500)).unwrap();
                            let (at, bytes) = (n * (500 << 10), pattern(n * 7 + round, len));
                            let buf = pool.take_copy(&bytes).await;
                            let wrote = export.write(at, buf, round % 3 == 0).await;
                            let read = export.read(at, pool.take_bytes(len).await).await;
                            done.set(done.get() + 1);
                            match (wrote, read) {
                                (Ok(()), Ok(back)) if back[..] == bytes[..] => {}
                                (Ok(()), Ok(_)) => {
                                    return Err(format!("round {round}: other bytes"));
                                }
                                _ => failed.set(failed.get() + 1),
                            }
                        }
                        Ok(())
                    })
                })
                .collect();
            for _ in 0..3 {
                rt.sleep(Duration::from_nanos(rt.prng().below(300_000))).await;
                let quiet = match held {
                    true => Some(shared.quiesce().await),
                    false => None,
                };
                let suspended = handle.suspend(&rt).await.unwrap();
                assert!(handle.get().is_suspended());
                assert!(handle.suspend(&rt).await.is_err(), "suspended twice");
                let before = (done.get(), below.operations());
                rt.sleep(Duration::from_micros(500)).await;
                if held && before != (done.get(), below.operations()) {
                    return Err("something went on while suspended".to_owned());
                }
                handle.resume(&suspended, volume(37, OFFSET)).unwrap();
                drop(quiet);
            }
            for one in clients {
                one.await?;
            }
            Ok(failed.get())
        })
    };
    let mut noticed = 0;
    for seed in 0..20 {
        assert_eq!(run(seed, true), Ok(0), "seed {seed}");
        noticed += usize::from(run(seed, false) != Ok(0));
    }
    assert!(noticed > 0, "nobody notices that the key is away");
}

/// C20: a resume needs the volume that was suspended.
#[test]
fn c20_another_key_uuid_or_place_does_not_resume() {
    Sim::new(1).run(|rt| async move {
        let handle = VolumeHandle::new(volume(37, OFFSET));
        let suspended = handle.suspend(&rt).await.unwrap();
        let other_uuid = Volume { uuid: "another".into(), ..volume(37, OFFSET) };
        for (what, other) in [
            ("another key", volume(41, OFFSET)),
            ("another place", volume(37, OFFSET + 8)),
            ("another UUID", other_uuid),
        ] {
            assert!(handle.resume(&suspended, other).is_err(), "{what}");
            assert!(handle.get().is_suspended(), "{what}");
        }
        handle.resume(&suspended, volume(37, OFFSET)).unwrap();
        assert!(!handle.get().is_suspended());
        assert!(handle.resume(&suspended, volume(37, OFFSET)).is_err(), "resumed twice");
    });
}
