use super::*;
use crate::unlock::{UnlockOptions, unlock};
use std::rc::Rc;
use varve_block::dev::Mem;
use varve_block::{DevId, Sim};

const FORCED: Cost = Cost::Forced { iterations: 1000, memory_kib: 32, lanes: 1 };
const LEN: Sectors = Sectors((20 << 20) / 512);

fn options(version: LuksVersion, pbkdf: Pbkdf) -> FormatOptions {
    let cost = match pbkdf {
        Pbkdf::Pbkdf2(_) => FORCED,
        Pbkdf::Argon2(_) => Cost::Forced { iterations: 4, memory_kib: 32, lanes: 1 },
    };
    FormatOptions { pbkdf, cost, ..FormatOptions::new(version) }
}

fn pbkdf2(version: LuksVersion) -> FormatOptions {
    options(version, Pbkdf::Pbkdf2(Hash::Sha256))
}

fn plan(o: &FormatOptions, len: Sectors) -> Result<Plan> {
    let geometry = Geometry::new(DevId::new("mem"), len);
    Plan::make(o, &geometry, &Key::copy_from(b"secret"), &|| Duration::ZERO)
}

/// Formats a device in memory, opens it, and gives the volume's facts.
fn round_trip(o: FormatOptions) -> (u64, u64, String) {
    Sim::new(1).run(|rt| async move {
        let device = Rc::new(Mem::new(LEN));
        let secret = Arc::new(Key::copy_from(b"secret"));
        let made = format(&rt, &device, &o, &secret).await.unwrap();
        let read = Header::read(&*device, None).await.unwrap();
        assert_eq!(made, read, "what is written is what was meant");
        assert!(read.notes().is_empty(), "{:?}", read.notes());
        let v = unlock(&rt, &device, &UnlockOptions::default(), &secret).await.unwrap();
        let wrong = Arc::new(Key::copy_from(b"Secret"));
        let e = unlock(&rt, &device, &UnlockOptions::default(), &wrong).await;
        assert!(matches!(e, Err(Error::WrongKey { .. })));
        (v.segments[0].below.byte(), v.sector_size.bytes() as u64, v.uuid)
    })
}

#[test]
fn what_is_made_opens() {
    let (at, size, uuid) = round_trip(pbkdf2(LuksVersion::Luks2));
    assert_eq!((at, size), (16 << 20, 4096));
    assert_eq!(uuid.len(), 36);
    for kind in [Argon2Kind::I, Argon2Kind::Id] {
        round_trip(options(LuksVersion::Luks2, Pbkdf::Argon2(kind)));
    }
    let (at, size, _) = round_trip(pbkdf2(LuksVersion::Luks1));
    assert_eq!((at, size), (2 << 20, 512));
    for hash in [Hash::Sha1, Hash::Sha512] {
        let o = options(LuksVersion::Luks1, Pbkdf::Pbkdf2(hash));
        round_trip(FormatOptions { hash, key_bits: 256, ..o });
    }
    for header_size in HDR_SIZES {
        let o = pbkdf2(LuksVersion::Luks2);
        round_trip(FormatOptions {
            header_size,
            sector_size: Some(SectorSize::S512),
            label: "a label".into(),
            subsystem: "sub".into(),
            uuid: Some(uuid::Uuid::from_u128(7)),
            flags: vec!["allow-discards".into()],
            ..o
        });
    }
    let small = FormatOptions {
        keyslots_size: Some(256 << 10),
        data_offset: Some(1 << 20),
        ..pbkdf2(LuksVersion::Luks2)
    };
    assert_eq!(round_trip(small).0, 1 << 20);
}

#[test]
fn the_default_sector_size_follows_the_device() {
    let size = |len: u64, preferred: u64| {
        let mut g = Geometry::new(DevId::new("mem"), Sectors(len));
        g.preferred = Sectors(preferred);
        default_sector_size(&g, 16 << 20, false).bytes()
    };
    assert_eq!(size(65536, 8), 4096);
    assert_eq!(size(65536, 128), 4096);
    assert_eq!(size(65537, 8), 512, "a last partial block would be lost");
    assert_eq!(size(65536, 1), 512);
}

#[test]
fn nothing_is_planned_when_anything_is_wrong() {
    let base = || pbkdf2(LuksVersion::Luks2);
    let luks1 = || pbkdf2(LuksVersion::Luks1);
    let spec = |t| CipherSpec::parse(t).unwrap();
    let bad = [
        FormatOptions { key_bits: 384, ..base() },
        FormatOptions { cipher: spec("aes-xts-plain"), ..base() },
        FormatOptions { cipher: spec("null"), ..base() },
        FormatOptions { cipher: spec("serpent-xts-plain64"), ..base() },
        FormatOptions { label: "x".repeat(48), ..base() },
        FormatOptions { header_size: 20480, ..base() },
        FormatOptions { keyslots_size: Some(4096), ..base() },
        FormatOptions { keyslots_size: Some(1 << 30), ..base() },
        FormatOptions { data_offset: Some(4096), ..base() },
        FormatOptions { data_offset: Some((16 << 20) + 512), ..base() },
        FormatOptions { data_offset: Some(LEN.bytes()), ..base() },
        FormatOptions { cost: Cost::Forced { iterations: 999, memory_kib: 0, lanes: 0 }, ..base() },
        FormatOptions { sector_size: Some(SectorSize::S4096), ..luks1() },
        FormatOptions { label: "x".into(), ..luks1() },
        FormatOptions { pbkdf: Pbkdf::Argon2(Argon2Kind::Id), ..luks1() },
        FormatOptions { hash: Hash::Sha512, ..luks1() },
        FormatOptions { data_offset: Some(1 << 20), ..luks1() },
    ];
    for o in bad {
        assert!(plan(&o, LEN).is_err(), "{o:?}");
    }
    assert!(plan(&base(), Sectors((16 << 20) / 512)).is_err(), "no room for a sector");
    assert!(plan(&base(), Sectors((16 << 20) / 512 + 8)).is_ok());
    assert!(plan(&luks1(), Sectors(4096)).is_err());
    assert!(plan(&luks1(), Sectors(4097)).is_ok());
}

#[test]
fn a_broken_generator_makes_no_volume() {
    let o = pbkdf2(LuksVersion::Luks2);
    let geometry = Geometry::new(DevId::new("mem"), LEN);
    let secret = Key::copy_from(b"secret");
    let clock = || Duration::ZERO;
    let mut same = |out: &mut [u8]| {
        out.fill(7);
        Ok(())
    };
    let made = Plan::make_with(&o, &geometry, &secret, &clock, &mut same);
    assert!(matches!(made, Err(Error::Random(_))));
    let mut dead = |_: &mut [u8]| Err(Error::Random("gone".into()));
    assert!(Plan::make_with(&o, &geometry, &secret, &clock, &mut dead).is_err());
}

/// C22 and C23 for `format`: the device after every prefix of the plan's writes, each cut at every
/// 4096 bytes of headers, holds the old volume (until its headers are durably gone), none, or the new
/// one: each whole, never a header whose keyslot area is half-written.
#[test]
fn a_cut_at_any_write_leaves_no_volume_or_the_new_one() {
    for version in [LuksVersion::Luks1, LuksVersion::Luks2] {
        let len = Sectors((3 << 20) / 512);
        let o = match version {
            LuksVersion::Luks1 => pbkdf2(version),
            LuksVersion::Luks2 => FormatOptions {
                keyslots_size: Some(256 << 10),
                data_offset: Some(1 << 20),
                ..pbkdf2(version)
            },
        };
        let old = plan(&o, len).unwrap();
        let new = plan(&o, len).unwrap();
        let disk = Mem::new(len);
        apply(&old, &disk, &mut |_, _| {});
        let (mut none, mut whole) = (0, 0);
        apply(&new, &disk, &mut |disk, flushes| match Header::parse(
            &disk.to_vec(),
            len.bytes(),
            None,
        ) {
            Err(_) => none += 1,
            Ok(h) => {
                assert!(opens(&h, disk), "a header without its area");
                let is_new = h.uuid() == new.header.uuid();
                assert!(is_new || flushes == 0, "an old header lives on");
                whole += u32::from(is_new);
            }
        });
        assert!(none > 5, "{version:?}: {none} cuts without a volume");
        assert!(whole >= 1, "{version:?}: {whole} cuts with one");
    }
}

/// Carries a plan out in steps of 4096 bytes and looks after each; the number of flushes so far is told.
fn apply(plan: &Plan, disk: &Mem, look: &mut dyn FnMut(&Mem, u32)) {
    let mut flushes = 0;
    for step in &plan.steps {
        match step {
            Step::Write(at, bytes) => {
                for (i, piece) in bytes.chunks(4096).enumerate() {
                    disk.poke(at + 4096 * i as u64, piece);
                    // Areas are long and all alike: look at their ends only.
                    if i < 6 || i + 2 > bytes.len() / 4096 {
                        look(disk, flushes);
                    }
                }
            }
            Step::Fill(at, len, how) => {
                let mut noise = vec![0; usize::try_from(*len).unwrap()];
                if *how == Fill::Random {
                    crate::key::fill_random(&mut noise).unwrap();
                }
                disk.poke(*at, &noise[..noise.len() / 2]);
                look(disk, flushes);
                disk.poke(*at, &noise);
                look(disk, flushes);
            }
            Step::Flush => {
                flushes += 1;
                look(disk, flushes);
            }
        }
    }
}

fn opens(header: &Header, disk: &Mem) -> bool {
    let limits = Limits::default();
    let secret = Key::copy_from(b"secret");
    let candidates = header.candidates(None, &limits).unwrap();
    candidates.list.iter().any(|c| {
        let mut area = vec![0; usize::try_from(c.area_len).unwrap()];
        disk.peek(c.area_offset, &mut area);
        c.attempt(&area, &secret, &limits).unwrap().is_some()
    })
}

#[test]
fn a_secondary_of_an_older_larger_header_is_destroyed() {
    let len = Sectors((20 << 20) / 512);
    let disk = Mem::new(len);
    let large = FormatOptions { header_size: 0x40_0000, ..pbkdf2(LuksVersion::Luks2) };
    apply(&plan(&large, len).unwrap(), &disk, &mut |_, _| {});
    apply(&plan(&pbkdf2(LuksVersion::Luks1), len).unwrap(), &disk, &mut |_, _| {});
    disk.poke(0, &[0; 4096]);
    let gone = Header::parse(&disk.to_vec(), len.bytes(), None);
    assert!(matches!(gone, Err(Error::NotLuks(_))), "{gone:?}");
}

/// Formats, opens with the secret, reads and writes, and opens again.
#[test]
fn a_volume_with_integrity_is_wiped_and_opens() {
    use crate::device::VolumeHandle;
    use crate::integrity::Sealed;
    use std::ops::ControlFlow;
    for (cipher, integrity, key_bits, sector) in [
        ("aes-xts-plain64", "hmac-sha256", 512, None),
        ("aes-xts-plain64", "hmac-sha256", 256, Some(512)),
        ("aes-xts-random", "hmac-sha512", 512, Some(512)),
        ("aes-gcm-random", "aead", 256, Some(4096)),
        ("chacha20-random", "poly1305", 256, Some(1024)),
    ] {
        Sim::new(1).run(move |rt| async move {
            let device = Mem::new(LEN);
            device.poke(16 << 20, &[0xaa; 65536]);
            let secret = Arc::new(Key::copy_from(b"secret"));
            let o = FormatOptions {
                cipher: CipherSpec::parse(cipher).unwrap(),
                integrity: Some(integrity.into()),
                key_bits,
                sector_size: sector.map(|n| SectorSize::new(n).unwrap()),
                ..pbkdf2(LuksVersion::Luks2)
            };
            let mut told = Vec::new();
            let mut watch = |w: Wiped| {
                told.push(w);
                ControlFlow::Continue(())
            };
            let made = format_sealed(&rt, &device, &o, &secret, true, &mut watch).await.unwrap();
            assert_eq!(made, Header::read(&device, None).await.unwrap());
            let end = told.last().unwrap();
            assert!(end.done == end.total && end.total > 1 << 20, "{end:?}");
            let open = async || {
                let v = unlock(&rt, &device, &UnlockOptions::default(), &secret).await.unwrap();
                let pool = varve_block::BufPool::new(8 << 20);
                Sealed::open(&rt, device.clone(), VolumeHandle::new(v), pool).await.unwrap()
            };
            let read = async |s: &Sealed<Mem>, at| {
                let buf = varve_block::BufPool::new(0).take(Sectors(64)).await;
                s.read(Sector(at), buf).await.unwrap().to_vec()
            };
            let s = open().await;
            assert_eq!(s.geometry().len.bytes(), end.total);
            for at in (0..s.geometry().len.0 - 64).step_by(64) {
                assert!(read(&s, at).await.iter().all(|b| *b == 0));
            }
            let buf = varve_block::BufPool::new(0).take_copy(&[7; 32768]).await;
            s.write(Sector(64), buf.into(), varve_block::Durability::Fua).await.unwrap();
            let s = open().await;
            assert_eq!(read(&s, 64).await, vec![7; 32768]);
        });
    }
}

#[test]
fn an_interrupted_wipe_leaves_no_volume_and_without_one_sectors_wait_for_a_write() {
    use crate::device::VolumeHandle;
    use crate::integrity::Sealed;
    use std::ops::ControlFlow;
    Sim::new(1).run(|rt| async move {
        let device = Mem::new(LEN);
        let secret = Arc::new(Key::copy_from(b"secret"));
        let plain = pbkdf2(LuksVersion::Luks2);
        format(&rt, &device, &plain, &secret).await.unwrap();
        let o = FormatOptions { integrity: Some("hmac-sha256".into()), ..plain };
        assert!(matches!(format(&rt, &device, &o, &secret).await, Err(Error::Options(_))));
        let mut stop = |_| ControlFlow::Break(());
        let e = format_sealed(&rt, &device, &o, &secret, true, &mut stop).await;
        assert!(matches!(e, Err(Error::Interrupted)));
        assert!(matches!(Header::read(&device, None).await, Err(Error::NotLuks(_))));

        format_sealed(&rt, &device, &o, &secret, false, &mut stop).await.unwrap();
        let v = unlock(&rt, &device, &UnlockOptions::default(), &secret).await.unwrap();
        let pool = varve_block::BufPool::new(8 << 20);
        let s = Sealed::open(&rt, device, VolumeHandle::new(v), pool.clone()).await.unwrap();
        let e = s.read(Sector(0), pool.take(Sectors(8)).await).await.unwrap_err();
        assert_eq!(e.kind, varve_block::ErrorKind::Corrupt);
        let buf = pool.take_zeroed(Sectors(8)).await;
        s.write(Sector(0), buf.into(), varve_block::Durability::Cached).await.unwrap();
        s.read(Sector(0), pool.take(Sectors(8)).await).await.unwrap();
    });
}

#[test]
fn what_integrity_cannot_be_made_with_is_refused_before_anything_is_written() {
    let with = |cipher: &str, integrity: &str, key_bits, version| {
        let o = FormatOptions {
            cipher: CipherSpec::parse(cipher).unwrap(),
            integrity: Some(integrity.into()),
            key_bits,
            ..pbkdf2(version)
        };
        plan(&o, LEN).map(drop)
    };
    with("aes-xts-plain64", "hmac-sha256", 512, LuksVersion::Luks2).unwrap();
    for (cipher, integrity, bits, version) in [
        ("aes-xts-plain64", "hmac-sha256", 512, LuksVersion::Luks1),
        ("aes-gcm-random", "aead", 512, LuksVersion::Luks2),
        ("aes-xts-plain64", "hmac-md5", 512, LuksVersion::Luks2),
        ("aes-xts-plain64", "none", 512, LuksVersion::Luks2),
    ] {
        let got = with(cipher, integrity, bits, version);
        assert!(matches!(got, Err(Error::Options(_) | Error::Unsupported(_))), "{integrity}");
    }
}
