use super::vectors::VECTORS;
use super::*;
use crate::testing::{hex, pattern, sha256, to_hex, vk1};
use proptest::prelude::*;

fn params(mode: &str, sector_size: u64, engine: Engine) -> XtsParams {
    let spec = CipherSpec::parse(&format!("aes-xts-{mode}")).unwrap();
    XtsParams { engine, ..XtsParams::new(spec, SectorSize::new(sector_size).unwrap()) }
}

fn engines(key_bits: usize) -> &'static [Engine] {
    if key_bits == 512 { &[Engine::AwsLc, Engine::Soft] } else { &[Engine::Auto, Engine::Soft] }
}

#[test]
fn every_vector_on_every_engine() {
    for v in VECTORS {
        let key = Key::copy_from(&vk1()[..v.key_bits / 8]);
        let plain = pattern(0, usize::try_from(v.sector_size).unwrap());
        for &engine in engines(v.key_bits) {
            let mut p = params(v.iv_mode, v.sector_size, engine);
            p.iv_large_sectors = v.large;
            let xts = Xts::new(&p, &key).unwrap();
            let iv = xts.units(v.n, plain.len()).next().unwrap();
            assert_eq!(to_hex(&iv), v.iv, "{}", v.case);

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
    for engine in [Engine::AwsLc, Engine::Soft] {
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
    for engine in [Engine::AwsLc, Engine::Soft] {
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

#[test]
fn weak_and_wrong_keys_are_refused_by_name() {
    let p = params("plain64", 512, Engine::Auto);
    let equal = Key::copy_from(&[vk1()[..32].to_vec(), vk1()[..32].to_vec()].concat());
    for weak in [&equal, &Key::zeroed(64), &Key::zeroed(32)] {
        assert!(matches!(Xts::new(&p, weak), Err(Error::Refused { check: 22, .. })));
        let allowed = XtsParams { allow_weak_key: true, ..p.clone() };
        let xts = Xts::new(&allowed, weak).unwrap();
        assert_eq!(xts.engine(), Engine::Soft, "AWS-LC refuses equal halves");
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
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn engines_agree(
        key in proptest::collection::vec(any::<u8>(), 64),
        data in proptest::collection::vec(any::<u8>(), 4096 * 4),
        n in any::<u64>(),
        shift in 0u32..4,
        large in any::<bool>(),
    ) {
        let key = Key::copy_from(&key);
        prop_assume!(!key.halves_equal());
        let size = 512u64 << shift;
        let mut made = Vec::new();
        for engine in [Engine::AwsLc, Engine::Soft] {
            let mut p = params("plain64", size, engine);
            p.iv_large_sectors = large;
            let xts = Xts::new(&p, &key).unwrap();
            let mut encrypted = data.clone();
            xts.encrypt(n, &mut encrypted);
            let mut back = encrypted.clone();
            xts.decrypt(n, &mut back);
            prop_assert_eq!(&back, &data);
            made.push(encrypted);
        }
        prop_assert_eq!(&made[0], &made[1]);
    }
}
