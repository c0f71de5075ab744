use super::vectors::VECTORS;
use super::*;
use crate::testing::{hex, pattern, sha256, to_hex, vk1};
use proptest::prelude::*;

fn params(mode: &str, sector_size: u64, engine: Engine) -> XtsParams {
    let spec = CipherSpec::parse(&format!("aes-xts-{mode}")).unwrap();
    XtsParams { engine, ..XtsParams::new(spec, SectorSize::new(sector_size).unwrap()) }
}

/// All engines that do a key of that length.
fn engines(key_bits: usize) -> Vec<Engine> {
    let mut all = Engine::available();
    all.retain(|&e| key_bits == 512 || e != Engine::AwsLc);
    all.push(Engine::Auto);
    all
}

#[test]
fn every_vector_on_every_engine() {
    for v in VECTORS {
        let key = Key::copy_from(&vk1()[..v.key_bits / 8]);
        let plain = pattern(0, usize::try_from(v.sector_size).unwrap());
        for engine in engines(v.key_bits) {
            let mut p = params(v.iv_mode, v.sector_size, engine);
            p.iv_large_sectors = v.large;
            let xts = Xts::new(&p, &key).unwrap();
            let iv = xts.units(v.n, plain.len()).next().unwrap();
            assert_eq!(to_hex(&iv.to_le_bytes()), v.iv, "{}", v.case);

            let mut data = plain.clone();
            xts.encrypt(v.n, &mut data);
            assert_eq!(to_hex(&data[..16]), v.first, "{} on {engine:?}", v.case);
            assert_eq!(to_hex(&data[data.len() - 16..]), v.last, "{} on {engine:?}", v.case);
            assert_eq!(sha256(&data), v.sha256, "{} on {engine:?}", v.case);

            let mut into = vec![0xaa; plain.len()];
            xts.encrypt_into(v.n, &plain, &mut into);
            assert_eq!(into, data);
            xts.decrypt(v.n, &mut data);
            assert_eq!(data, plain, "{} on {engine:?}", v.case);
        }
    }
}

/// NIST's data units are shorter than a sector. Without ciphertext stealing a block does not depend on
/// those behind it, so each vector is the head of a sector whose rest is noise.
#[test]
fn every_vector_of_nist_on_every_engine() {
    let rows = include_str!("nist.txt").lines().filter(|l| !l.starts_with('#'));
    let mut seen = 0;
    for (number, row) in rows.enumerate() {
        let fields: Vec<Vec<u8>> = row.split(' ').map(hex).collect();
        let [key, tweak, plain, cipher] = &fields[..] else { panic!("row {number}: {row}") };
        let tweak = u128::from_le_bytes(tweak[..].try_into().unwrap());
        let key = Key::copy_from(key);
        for engine in engines(key.len() * 8) {
            let xts = Xts::new(&params("plain64", 512, engine), &key).unwrap();
            let mut sector = pattern(number as u64, 512);
            sector[..plain.len()].copy_from_slice(plain);
            let before = sector.clone();
            xts.run(Direction::Encrypt, std::iter::once(tweak), &mut sector);
            assert_eq!(&sector[..cipher.len()], cipher, "row {number} on {engine:?}");
            xts.run(Direction::Decrypt, std::iter::once(tweak), &mut sector);
            assert_eq!(sector, before, "row {number} on {engine:?}");
        }
        seen += 1;
    }
    assert_eq!(seen, 1200);
}

#[test]
fn zero_plaintext_and_the_standards_own_vector() {
    let xts = Xts::new(&params("plain64", 512, Engine::Auto), &Key::copy_from(&vk1())).unwrap();
    let mut data = vec![0; 512];
    xts.encrypt(0, &mut data);
    assert_eq!(sha256(&data), "000c68601a5521ad88b990591dd0706c33a7e8b89b48c2fc5ea1870e2a19e7c0");

    // IEEE 1619, vector 10 (AES-256, data unit 0xff of 512 bytes): first and last block.
    let key =
        Key::copy_from(&hex("2718281828459045235360287471352662497757247093699959574966967627\
         3141592653589793238462643383279502884197169399375105820974944592"));
    for engine in engines(512) {
        let xts = Xts::new(&params("plain64", 512, engine), &key).unwrap();
        let mut data: Vec<u8> = (0..=255).chain(0..=255).collect();
        xts.encrypt(0xff, &mut data);
        assert_eq!(to_hex(&data[..16]), "1c3b3a102f770386e4836c99e370cf9b");
        assert_eq!(to_hex(&data[496..]), "c4f36ffda9fcea70b9c6e693e148c151");
    }
}

#[test]
fn a_request_is_many_data_units() {
    let key = Key::copy_from(&vk1());
    for engine in engines(512) {
        let xts = Xts::new(&params("plain64", 4096, engine), &key).unwrap();
        let mut all = pattern(0, 4096 * 5);
        xts.encrypt(40, &mut all);
        for (i, unit) in all.chunks_exact(4096).enumerate() {
            let mut alone = pattern(4096 * i as u64, 4096);
            xts.encrypt(40 + 8 * i as u64, &mut alone);
            assert_eq!(unit, alone);
        }
    }
}

/// The number of a data unit's first 512-byte sector chooses its key, whatever the IV counts.
#[test]
fn several_keys_take_turns_by_sector() {
    for (text, size, bits) in [
        ("aes:2-xts-plain64", 512, 256),
        ("aes:4-cbc-essiv:sha256", 512, 128),
        ("aes:16-xts-plain64", 4096, 512),
    ] {
        let spec = CipherSpec::parse(text).unwrap();
        let (one, count) = (spec.of_one_key(), spec.key_count as usize);
        let size = SectorSize::new(size).unwrap();
        let bytes: Vec<u8> = pattern(3, 4096)[..count * bits / 8].to_vec();
        let single: Vec<Xts> = bytes
            .chunks(bits / 8)
            .map(|key| Xts::new(&XtsParams::new(one.clone(), size), &Key::copy_from(key)).unwrap())
            .collect();
        let xts = Xts::new(&XtsParams::new(spec, size), &Key::copy_from(&bytes)).unwrap();
        let plain = pattern(0, 9 * size.bytes());
        let n = 8 * 5;
        let mut data = plain.clone();
        xts.encrypt(n, &mut data);
        let mut into = vec![0; plain.len()];
        xts.encrypt_into(n, &plain, &mut into);
        assert_eq!(into, data, "{text}");
        for (i, unit) in (0u64..).zip(data.chunks(size.bytes())) {
            let n = n + i * size.sectors();
            let key = &single[usize::try_from(n).unwrap() % count];
            let mut alone = unit.to_vec();
            key.decrypt(n, &mut alone);
            let at = usize::try_from(i).unwrap() * size.bytes();
            assert_eq!(alone, plain[at..at + size.bytes()], "{text}, unit {i}");
        }
        xts.decrypt(n, &mut data);
        assert_eq!(data, plain, "{text}");
        assert!(
            Xts::new(
                &XtsParams::new(CipherSpec::parse(text).unwrap(), size),
                &Key::copy_from(&bytes[..bits / 8])
            )
            .is_err()
        );
    }
}

#[test]
fn weak_and_wrong_keys_are_refused_by_name() {
    let p = params("plain64", 512, Engine::Auto);
    let equal = Key::copy_from(&[vk1()[..32].to_vec(), vk1()[..32].to_vec()].concat());
    for weak in [&equal, &Key::zeroed(64), &Key::zeroed(32)] {
        assert!(matches!(Xts::new(&p, weak), Err(Error::Refused { check: 22, .. })));
        let allowed = XtsParams { allow_weak_key: true, ..p.clone() };
        let xts = Xts::new(&allowed, weak).unwrap();
        assert_ne!(xts.engine(), Engine::AwsLc, "AWS-LC refuses equal halves");
        let mut data = pattern(0, 512);
        xts.encrypt(3, &mut data);
        assert_ne!(data, pattern(0, 512));
        xts.decrypt(3, &mut data);
        assert_eq!(data, pattern(0, 512));
    }
    for len in [0, 16, 48, 63, 96] {
        let key = Key::copy_from(&vk1().repeat(2)[..len]);
        assert!(matches!(Xts::new(&p, &key), Err(Error::Unsupported(_))), "{len}");
    }
    let small = Key::copy_from(&vk1()[..32]);
    let aws_only = params("plain64", 512, Engine::AwsLc);
    assert!(matches!(Xts::new(&aws_only, &small), Err(Error::Unsupported(_))));
}

#[test]
fn threads_share_one_expanded_key() {
    let key = Key::copy_from(&vk1());
    let xts = Xts::new(&params("plain64", 512, Engine::AwsLc), &key).unwrap();
    std::thread::scope(|s| {
        for t in 0..6u64 {
            let xts = &xts;
            s.spawn(move || {
                for n in 0..200 {
                    let mut data = pattern(t, 4096);
                    xts.encrypt(n * 8 + t, &mut data);
                    xts.decrypt(n * 8 + t, &mut data);
                    assert_eq!(data, pattern(t, 4096));
                }
            });
        }
    });
}

#[test]
#[should_panic(expected = "not whole 4096-byte sectors")]
fn a_partial_sector_is_our_bug() {
    let key = Key::copy_from(&vk1());
    let xts = Xts::new(&params("plain64", 4096, Engine::Auto), &key).unwrap();
    xts.encrypt(0, &mut [0; 512]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn engines_agree(
        key in proptest::collection::vec(any::<u8>(), 64),
        short in any::<bool>(),
        seed in any::<u64>(),
        units in 1usize..70,
        n in any::<u64>(),
        shift in 0u32..4,
        mode in prop::sample::select(&["plain", "plain64", "plain64be", "null"][..]),
        large in any::<bool>(),
    ) {
        let key = Key::copy_from(if short { &key[..32] } else { &key });
        prop_assume!(!key.halves_equal());
        let size = 512u64 << shift;
        let mut data = vec![0; units * usize::try_from(size).unwrap()];
        varve_block::Prng::new(seed).fill(&mut data);
        let mut made: Option<Vec<u8>> = None;
        for engine in engines(key.len() * 8) {
            let mut p = params(mode, size, engine);
            p.iv_large_sectors = large;
            let xts = Xts::new(&p, &key).unwrap();
            let mut encrypted = data.clone();
            xts.encrypt(n, &mut encrypted);
            let mut into = vec![0xa5; data.len()];
            xts.encrypt_into(n, &data, &mut into);
            prop_assert!(into == encrypted, "{:?} into another buffer", engine);
            xts.decrypt(n, &mut into);
            prop_assert!(into == data, "{:?} back", engine);
            match &made {
                None => made = Some(encrypted),
                Some(first) => prop_assert!(*first == encrypted, "{:?}", engine),
            }
        }
    }
}

#[test]
fn an_equal_halved_key_that_may_be_rescued_is_the_same_on_every_engine_that_takes_it() {
    for len in [16, 32] {
        let key = Key::copy_from(&vk1()[..len].repeat(2));
        let mut made = Vec::new();
        for engine in Engine::available().into_iter().filter(|&e| e != Engine::AwsLc) {
            let p = XtsParams { allow_weak_key: true, ..params("plain64", 4096, engine) };
            let mut data = pattern(0, 3 * 4096);
            Xts::new(&p, &key).unwrap().encrypt(8, &mut data);
            made.push(data);
        }
        made.dedup();
        assert_eq!(made.len(), 1);
    }
}

#[test]
fn the_fastest_engine_is_chosen() {
    let key = Key::copy_from(&vk1());
    let xts = Xts::new(&params("plain64", 512, Engine::Auto), &key).unwrap();
    assert_eq!(xts.engine(), Engine::available()[0]);
}
