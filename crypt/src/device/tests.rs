use super::*;
use crate::testing::{images, pattern, sha256, vk1};
use crate::unlock::{UnlockOptions, unlock};
use crate::{Engine, Key, MapOptions, PlainSpec};
use varve_block::dev::sim::{Effect, Fault, Image, Plan, When};
use varve_block::dev::{Mem, SimDisk};
use varve_block::sync::join;
use varve_block::{Prng, Sim};

mod limits;
mod scenarios;
mod spread;
mod suspend;

const DISK: Sectors = Sectors(4096);
/// The payload of the plain volumes here starts at this sector.
const OFFSET: u64 = 16;

fn volume_of(spec: &str, device: Sectors) -> Volume {
    let options = MapOptions {
        data_len: device,
        detached: true,
        allow_weak_key: false,
        engine: Engine::Auto,
    };
    PlainSpec::parse(spec).unwrap().open(Key::copy_from(&vk1()), &options).unwrap()
}

fn crypt<D: BlockDevice>(rt: &Rt, below: D, sector_size: u64) -> Crypt<D> {
    let spec = format!("aes-xts-plain64,sector={sector_size},offset={OFFSET}");
    let volume = volume_of(&spec, below.geometry().len);
    let (handle, pool) = (VolumeHandle::new(volume), BufPool::new(8 << 20));
    let options = CryptOptions { allow_discards: true, ..CryptOptions::default() };
    Crypt::new(rt, below, handle, pool, &options).unwrap()
}

async fn write<D: BlockDevice>(device: &D, at: u64, bytes: &[u8]) {
    let buf = BufPool::new(8 << 20).take_copy(bytes).await;
    device.write(Sector(at), Data::Owned(buf), Durability::Cached).await.unwrap();
}

async fn read<D: BlockDevice>(device: &D, at: u64, sectors: u64) -> Vec<u8> {
    let buf = BufPool::new(8 << 20).take(Sectors(sectors)).await;
    device.read(Sector(at), buf).await.unwrap().to_vec()
}

#[test]
fn the_example_volumes_read_and_write_as_the_specification_says() {
    let volumes = [
        (images::luks1(), images::LUKS1_PAYLOAD, 2 << 20, 1),
        (images::luks2_a(), images::LUKS2_A_PAYLOAD, 1 << 20, 8),
        (images::luks2_b(), images::LUKS2_B_PAYLOAD, 1 << 20, 1),
    ];
    for ((image, payload, start, per_unit), secret) in volumes.into_iter().zip(images::SECRETS) {
        Sim::new(7).run(|rt| async move {
            let disk = Mem::from_bytes(&image);
            let secret = Arc::new(Key::copy_from(secret.as_bytes()));
            let v = unlock(&rt, &disk, &UnlockOptions::default(), &secret).await.unwrap();
            assert_eq!((v.sector_size.sectors(), v.len()), (per_unit, Sectors(64)));
            assert_eq!(disk.to_vec(), image, "opening writes nothing");
            let handle = VolumeHandle::new(v);
            let pool = BufPool::new(8 << 20);
            let c = Crypt::new(&rt, disk.clone(), handle, pool, &CryptOptions::default()).unwrap();
            assert_eq!(c.geometry().block, Sectors(per_unit));
            for (unit, sum) in payload {
                let at = *unit as u64 * per_unit;
                let clear = pattern(at * 512, usize::try_from(per_unit).unwrap() * 512);
                assert_eq!(read(&c, at, per_unit).await, clear);
                write(&c, at, &clear).await;
                let mut cipher = vec![0; clear.len()];
                disk.peek(start + at * 512, &mut cipher);
                assert_eq!(sha256(&cipher), *sum);
            }
            assert_eq!(disk.to_vec(), image, "the same plaintext is the same ciphertext");
        });
    }
}

#[test]
fn owned_and_shared_writes_give_one_ciphertext_and_shared_bytes_stay() {
    Sim::new(1).run(|rt| async move {
        let (one, two) = (Mem::new(DISK), Mem::new(DISK));
        let (a, b) = (crypt(&rt, one.clone(), 512), crypt(&rt, two.clone(), 512));
        let clear = pattern(0, 700 << 10);
        write(&a, 8, &clear).await;
        let view = BufPool::new(8 << 20).take_copy(&clear).await.freeze();
        let back = b.write(Sector(8), Data::Shared(view.clone()), Durability::Fua).await.unwrap();
        assert_eq!(&view[..], &clear[..]);
        assert_eq!(&back[..], &clear[..]);
        assert_eq!(one.to_vec(), two.to_vec());
        assert_eq!(read(&a, 8, 1400).await, clear);
        let mut below = vec![0; 512];
        one.peek((OFFSET + 8) * 512, &mut below);
        assert_ne!(below, clear[..512], "what lies below is ciphertext");
    });
}

#[test]
fn requests_that_are_not_whole_encryption_sectors_are_refused() {
    Sim::new(1).run(|rt| async move {
        let c = crypt(&rt, Mem::new(DISK), 4096);
        let g = c.geometry();
        assert_eq!((g.block, g.len), (Sectors(8), DISK - Sectors(OFFSET)));
        let pool = BufPool::new(8 << 20);
        for (at, len) in [(1, 8), (8, 4), (4, 8), (g.len.0, 8), (g.len.0 - 8, 16)] {
            let buf = pool.take(Sectors(len)).await;
            let e = c.read(Sector(at), buf).await.unwrap_err();
            assert!(matches!(e.kind, ErrorKind::Misaligned | ErrorKind::OutOfRange), "{e}");
            let buf = pool.take(Sectors(len)).await;
            assert!(c.write(Sector(at), Data::Owned(buf), Durability::Cached).await.is_err());
            let range = Extent::new(Sector(at), Sectors(len));
            assert!(c.discard(range).await.is_err());
            assert!(c.write_zeroes(range, Zero::default()).await.is_err());
        }
    });
}

#[test]
fn the_payload_must_fit_the_blocks_below() {
    Sim::new(1).run(|rt| async move {
        let below = Geometry { block: Sectors(8), ..Geometry::new(DevId::new("4k"), DISK) };
        let stand = |spec: &str| {
            let disk = Mem::with_geometry(below.clone());
            let handle = VolumeHandle::new(volume_of(spec, DISK));
            Crypt::new(&rt, disk, handle, BufPool::new(0), &CryptOptions::default())
        };
        assert!(stand("aes-xts-plain64,offset=1").is_err());
        let c = stand("aes-xts-plain64,offset=8,size=1001").unwrap();
        assert_eq!((c.geometry().block, c.geometry().len), (Sectors(8), Sectors(1000)));
        let short = Mem::new(Sectors(100));
        let handle = VolumeHandle::new(volume_of("aes-xts-plain64", DISK));
        assert!(Crypt::new(&rt, short, handle, BufPool::new(0), &CryptOptions::default()).is_err());
    });
}

#[test]
fn discards_pass_only_when_the_operator_said_so() {
    Sim::new(1).run(|rt| async move {
        let disk = Mem::new(DISK);
        let range = Extent::new(Sector(0), Sectors(64));
        let allowed = crypt(&rt, disk.clone(), 512);
        write(&allowed, 0, &pattern(0, 64 * 512)).await;
        let before = disk.to_vec();
        let handle = allowed.volume().clone();
        let pool = BufPool::new(0);
        let c = Crypt::new(&rt, disk.clone(), handle, pool, &CryptOptions::default()).unwrap();
        assert!(!c.geometry().can_discard);
        assert_eq!(c.discard(range).await.unwrap_err().kind, ErrorKind::Unsupported);
        assert_eq!(disk.to_vec(), before);
        assert!(allowed.geometry().can_discard);
        allowed.discard(range).await.unwrap();
        assert_ne!(disk.to_vec(), before);
        assert_ne!(read(&allowed, 0, 64).await, vec![0; 64 * 512], "never taken for zeroes");
        assert!(!allowed.extents(range, 4).await.unwrap()[0].zero);
    });
}

#[test]
fn zeroes_are_encrypted_zeroes() {
    Sim::new(1).run(|rt| async move {
        let disk = Mem::new(DISK);
        let c = crypt(&rt, disk.clone(), 4096);
        let range = Extent::new(Sector(8), Sectors(3000 / 8 * 8));
        let fast = Zero { only_if_fast: true, ..Zero::default() };
        assert_eq!(c.write_zeroes(range, fast).await.unwrap_err().kind, ErrorKind::Unsupported);
        assert_eq!(disk.to_vec(), vec![0; DISK.byte_len()], "refused at once");
        let how = Zero { may_unmap: true, ..Zero::default() };
        c.write_zeroes(range, how).await.unwrap();
        for at in (range.start.0..range.end().0).step_by(1000) {
            assert_eq!(read(&c, at / 8 * 8, 8).await, vec![0; 4096]);
        }
        let mut below = vec![0; 4096];
        disk.peek((OFFSET + 8) * 512, &mut below);
        assert_ne!(below, vec![0; 4096]);
    });
}

#[test]
fn a_large_request_lets_others_have_their_turn() {
    Sim::new(3).run(|rt| async move {
        let c = crypt(&rt, Mem::new(DISK), 512);
        write(&c, 0, &pattern(0, 1 << 20)).await;
        let turns = Rc::new(std::cell::Cell::new(0));
        let (other, counted) = (rt.clone(), Rc::clone(&turns));
        let ticker = rt.spawn(async move {
            loop {
                counted.set(counted.get() + 1);
                other.yield_now().await;
            }
        });
        turns.set(0);
        read(&c, 0, 2048).await;
        let after_read = turns.get();
        write(&c, 0, &pattern(0, 1 << 20)).await;
        assert!(after_read >= 1, "no turn in 1 MiB of decryption");
        assert!(turns.get() > after_read, "no turn in 1 MiB of encryption");
        drop(ticker);
    });
}

#[test]
fn an_error_below_passes_unchanged_and_names_the_place_below() {
    Sim::new(1).run(|rt| async move {
        let plan = Plan::instant()
            .with(Fault::new(Op::Read, When::Nth(1), Effect::Fail(ErrorKind::Corrupt)))
            .with(Fault::new(Op::Flush, When::Nth(1), Effect::Fail(ErrorKind::Io)));
        let geometry = Geometry::new(DevId::new("disk"), DISK);
        let disk = SimDisk::new(&rt, geometry, Image::new(DISK), plan);
        let c = crypt(&rt, disk, 512);
        let buf = BufPool::new(0).take(Sectors(8)).await;
        let e = c.read(Sector(4), buf).await.unwrap_err();
        assert_eq!((e.kind, e.at.start, e.dev.as_str()), (ErrorKind::Corrupt, Sector(20), "disk"));
        assert!(c.flush().await.is_err());
    });
}

/// Two segments with different keys and sector sizes, as a re-encryption has them.
fn two_segments() -> Volume {
    let mut a = volume_of("aes-xts-plain64,sector=4096,offset=1000,size=800", DISK);
    let b = volume_of("aes-xts-plain64,sector=512,offset=16,size=800,skip=5", DISK);
    let mut second = b.segments[0].clone();
    second.range.start = Sector(800);
    a.segments.push(second);
    a
}

#[test]
fn requests_over_a_segment_boundary_are_cut_there() {
    Sim::new(1).run(|rt| async move {
        let disk = Mem::new(DISK);
        let handle = VolumeHandle::new(two_segments());
        let pool = BufPool::new(0);
        let c = Crypt::new(&rt, disk.clone(), handle, pool, &CryptOptions::default()).unwrap();
        assert_eq!(c.geometry().len, Sectors(1600));
        let clear = pattern(0, 64 * 512);
        write(&c, 768, &clear).await;
        assert_eq!(read(&c, 768, 64).await, clear);
        assert_eq!(read(&c, 800, 8).await, clear[32 * 512..40 * 512]);
        let only = crypt_over(&rt, disk, "aes-xts-plain64,sector=512,offset=16,size=800,skip=5");
        assert_eq!(read(&only, 0, 32).await, clear[32 * 512..]);
        c.write_zeroes(Extent::new(Sector(768), Sectors(64)), Zero::default()).await.unwrap();
        assert_eq!(read(&c, 768, 64).await, vec![0; 64 * 512]);
    });
}

fn crypt_over(rt: &Rt, disk: Mem, spec: &str) -> Crypt<Mem> {
    let handle = VolumeHandle::new(volume_of(spec, DISK));
    Crypt::new(rt, disk, handle, BufPool::new(0), &CryptOptions::default()).unwrap()
}

#[test]
fn a_request_keeps_the_volume_it_began_with() {
    Sim::new(5).run(|rt| async move {
        let plan = Plan { inline_permille: 0, ..Plan::default() };
        let geometry = Geometry::new(DevId::new("disk"), DISK);
        let disk = SimDisk::new(&rt, geometry, Image::new(DISK), plan);
        let c = crypt(&rt, disk, 512);
        let clear = pattern(0, 4096);
        write(&c, 0, &clear).await;
        let other = volume_of(&format!("aes-xts-plain64,offset={OFFSET},skip=1"), DISK);
        let swap = async {
            rt.yield_now().await;
            c.volume().replace(other).unwrap();
        };
        let (seen, ()) = join(read(&c, 0, 8), swap).await;
        assert_eq!(seen, clear);
        assert_ne!(read(&c, 0, 8).await, clear, "the next request has the new one");
        let shorter = volume_of("aes-xts-plain64,offset=17", DISK);
        assert!(c.volume().replace(shorter).is_err());
    });
}

#[test]
fn requests_wait_for_a_range_that_is_being_converted() {
    Sim::new(2).run(|rt| async move {
        let lock = RangeLock::new();
        let handle = VolumeHandle::new(volume_of("aes-xts-plain64", DISK));
        let options = CryptOptions { ranges: Some(lock.clone()), ..CryptOptions::default() };
        let c = Crypt::new(&rt, Mem::new(DISK), handle, BufPool::new(0), &options).unwrap();
        let c = Rc::new(c);
        let hot = lock.write(Extent::new(Sector(100), Sectors(100))).await;
        let (busy, free) = (Rc::clone(&c), Rc::clone(&c));
        let waiting = rt.spawn(async move { read(&*busy, 150, 8).await });
        let passing = rt.spawn(async move { read(&*free, 50, 8).await });
        passing.await;
        for _ in 0..100 {
            rt.yield_now().await;
        }
        assert!(!waiting.is_finished());
        drop(hot);
        waiting.await;
    });
}

#[test]
fn random_requests_equal_a_plain_device() {
    for seed in 0..20 {
        Sim::new(seed).run(|rt| async move {
            let chance = Prng::new(seed);
            let size = 512 << chance.below(4);
            let geometry = Geometry::new(DevId::new("disk"), DISK);
            let disk = SimDisk::new(&rt, geometry, Image::new(DISK), Plan::default());
            let c = crypt(&rt, disk, size);
            let unit = size / 512;
            let len = c.geometry().len.0;
            c.write_zeroes(Extent::new(Sector(0), Sectors(len)), Zero::default()).await.unwrap();
            let mut model = vec![0; usize::try_from(len * 512).unwrap()];
            for _ in 0..60 {
                let n = (1 + chance.below(300 / unit)) * unit;
                let at = chance.below((len - n) / unit) * unit;
                let bytes =
                    usize::try_from(at * 512).unwrap()..usize::try_from((at + n) * 512).unwrap();
                match chance.below(4) {
                    0 => {
                        let range = Extent::new(Sector(at), Sectors(n));
                        c.write_zeroes(range, Zero::default()).await.unwrap();
                        model[bytes].fill(0);
                    }
                    1 => {
                        chance.fill(&mut model[bytes.clone()]);
                        write(&c, at, &model[bytes]).await;
                    }
                    2 => {
                        chance.fill(&mut model[bytes.clone()]);
                        let buf = BufPool::new(0).take_copy(&model[bytes]).await;
                        let data = Data::Shared(buf.freeze());
                        c.write(Sector(at), data, Durability::Fua).await.unwrap();
                    }
                    _ => assert_eq!(read(&c, at, n).await, model[bytes], "seed {seed}"),
                }
            }
        });
    }
}
