use super::*;
use crate::testing::{hex, pattern, sha256};

/// Sectors that kernel 6.12 sealed (luks.md 11.9): cipher, integrity, sector size, key, then sector,
/// SHA-256 of the ciphertext, tuple.
type Vector =
    (&'static str, &'static str, u64, &'static str, [(u64, &'static str, &'static str); 2]);

const KERNEL: [Vector; 5] = [
    (
        "aes-xts-plain64",
        "hmac(sha256)",
        512,
        "dc2ded2c985b914207bc8ce4898ef43de2d0a0cd79ca870b2ec1e72b07bef1a8\
         46583301348d7b186d16f5741914ab79237ff0aa35ed5bc1cf8bd30f7701207a\
         383fea5a0ddaaa043aafbb741819e6fc18d35921b9fb98e6803fb440df0adabe",
        [
            (
                0,
                "8362bd56c98b5f8257c5b1e96d02dd165aca3c9c127b75d54934749b31aa6189",
                "3d5cb2268a82b6c5499c3cf69c745a5aa9384c3074a08158784b2497e46a1730",
            ),
            (
                8,
                "50a6a876c5b0bc06bf594ccd3b6426134b5c6ef4132a22cd14633c9bb72501a7",
                "f454502aea592e96b0663f6134ffce4a1bdf9828b442ba3cc783da3d772a71cd",
            ),
        ],
    ),
    (
        "aes-gcm-random",
        "aead",
        512,
        "4711cc798210db121a1e20ef2873339a20de0c0ffb38ca93b2f47e6ba2b08b8c",
        [
            (
                0,
                "4cd2c95259c26e544970c8b3e2b738a5cf0713eb4567f3a6bbbc8a03f25c0842",
                "cf3271188c8b41bc2d5d40a10a3a05905c0e5a658e1e551feeb79f7d",
            ),
            (
                8,
                "f925fe17cc8d9dfd1c8cd0a861230b1fcdccb70f26fc5d10ebb53903f291194c",
                "3f8db49232b56ec04c5283f21d8e07c062d0067d7ca36651feb821c1",
            ),
        ],
    ),
    (
        "aes-xts-random",
        "hmac(sha256)",
        512,
        "851c572aa498488bf624f870e19c88be80f4d98b1c340c56cbc4fd7c92ce071c\
         97ec60701e2f8eb717ede80274b160b19c867595c714e1406327015a4e6b41ad\
         6aba76535abd6d53181a68ddfd595ab592df0f6aca276d65b5fc5cd385df22ee",
        [
            (
                0,
                "b2f2e5c70c58a101ff1c12feaf66e8ad614300347c6677581618b685caedceef",
                "cf0205d18d9342bf20982e655e9c88825b8e8367bc17bd370ab107e24bb4996a\
                 a205b5ea8ce35debf7a7d3d2aab0f5eb",
            ),
            (
                8,
                "5c625e06f0441266985e947b15a1e520ceb44ccbb2b9b0e9e8bce6b49bd2525a",
                "1108ec6fc654749fdfb25b014407366adf7ad68224a0f5f89c25c33a36548d53\
                 d99c0ff2e03d5e7bc8f6c96a82a5fae5",
            ),
        ],
    ),
    (
        "aes-xts-plain64",
        "hmac(sha256)",
        4096,
        "81f1c1e6b94403624a0b13d38d4e09e2a2210abe3cfe557715a69c6caf6346e3\
         133d23f216a54d6a65f65ac69f89f8c0c17eb75827afa06afa0d2867a09a123d\
         1c0c4479033056376d68f56588f37f32e24af8f42bd4e3a00d112c56933708c8",
        [
            (
                0,
                "0dc080239dec722de97e86b89f5edff6d85f4b6e4baef45cd28c5cbb851fa7bc",
                "686c2ef4b049781e26169f6589a9741a49bda33e0731046d12474d9635828916",
            ),
            (
                8,
                "7e093898ce8d43585d79f1de81d194156b1d3923b5b66382b0cc64b4fb1fb8aa",
                "41ee327c1b7c6832261b0df4dfc6132f68ad756644d86a6af8b57c0d2d738f22",
            ),
        ],
    ),
    (
        "chacha20-random",
        "poly1305",
        512,
        "8bec356a5514c7ba0ed206bb450071fce82094f267fc9138313a82e225cc5f81",
        [
            (
                0,
                "1e7faff2d14acd5ef4092317b154c7e5f611b99b2dda47df08e453f8c365ac36",
                "260bf47b9d8ba921265ed9d6eb8ce202c8a4e63c1b1fb602d1bccb6e",
            ),
            (
                8,
                "9c606cc65b13564925d09c60d6c051833fa63da0bbfbc6c3d10726313d87cd0e",
                "ab6169ad98621ff5440416375f620009c19ea13b605677c01240c8d5",
            ),
        ],
    ),
];

fn aead(cipher: &str, integrity: &str, sector: u64, key: &[u8], engine: Engine) -> Result<Aead> {
    let spec = AeadSpec::parse(&CipherSpec::parse(cipher)?, integrity)?;
    let size = SectorSize::new(sector).unwrap();
    Aead::new(&spec, &Key::copy_from(key), size, 0, engine, false)
}

#[test]
fn sectors_are_sealed_and_opened_as_the_kernel_does() {
    for (cipher, integrity, size, key, sectors) in KERNEL {
        let a = aead(cipher, integrity, size, &hex(key), Engine::Auto).unwrap();
        for (n, sum, tuple) in sectors {
            let clear = pattern(n * 512, usize::try_from(size).unwrap());
            let (mut data, kernel) = (clear.clone(), hex(tuple));
            assert_eq!(kernel.len(), a.tuple_len());
            // The stored IV is part of the vector; a tag is not.
            let mut made = kernel.clone();
            made[..a.spec.tag_len()].fill(0);
            a.seal(n, &mut data, &mut made);
            assert_eq!((sha256(&data).as_str(), &made), (sum, &kernel), "{cipher} {n}");
            assert!(a.open(n, &mut data, &kernel), "{cipher} {n}");
            assert_eq!(data, clear);
        }
    }
}

/// C14, for one sector: each bit of data and tuple, and the place, count.
#[test]
fn a_changed_bit_anywhere_or_another_place_does_not_open() {
    for (cipher, integrity, size, key, _) in KERNEL {
        let a = aead(cipher, integrity, size, &hex(key), Engine::Auto).unwrap();
        let mut data = pattern(5, usize::try_from(size).unwrap());
        let mut tuple = vec![0; a.tuple_len()];
        a.draw_ivs(&mut tuple).unwrap();
        a.seal(16, &mut data, &mut tuple);
        for bit in 0..tuple.len() * 8 {
            let mut bad = tuple.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!a.open(16, &mut data.clone(), &bad), "{cipher}: bit {bit} of the tuple");
        }
        for bit in (0..data.len() * 8).step_by(101) {
            let mut bad = data.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!a.open(16, &mut bad, &tuple), "{cipher}: bit {bit}");
        }
        assert!(!a.open(24, &mut data.clone(), &tuple), "{cipher}: moved");
        assert!(a.open(16, &mut data, &tuple));
        assert_eq!(data, pattern(5, data.len()));
    }
}

#[test]
fn random_ivs_differ_from_sector_to_sector() {
    let a = aead("aes-gcm-random", "aead", 512, &[7; 32], Engine::Auto).unwrap();
    let mut tuples = vec![0; 4 * 28];
    a.draw_ivs(&mut tuples).unwrap();
    let ivs: std::collections::BTreeSet<_> = tuples.chunks(28).map(|t| &t[16..]).collect();
    assert_eq!(ivs.len(), 4);
}

#[test]
fn what_is_not_implemented_is_named() {
    for (cipher, integrity) in [
        ("aes-ccm-random", "aead"),
        ("aegis128-random", "aead"),
        ("aes-gcm-plain64", "aead"),
        ("aes-xts-plain64", "cmac(aes)"),
        ("aes-xts-random", "none"),
        ("aes-xts-plain", "hmac(sha256)"),
        ("aes-cbc-essiv:sha256", "hmac(sha256)"),
        ("serpent-xts-plain64", "hmac(sha256)"),
        ("aes:2-xts-plain64", "hmac(sha256)"),
        ("aes-xts-plain64", "aead"),
        ("cipher_null-ecb", "hmac(sha256)"),
        ("aes-xts-plain64", "hmac(md5)"),
    ] {
        let cipher = CipherSpec::parse(cipher).unwrap();
        let got = AeadSpec::parse(&cipher, integrity);
        assert!(matches!(got, Err(Error::Unsupported(_))), "{cipher} {integrity}");
    }
    for (cipher, integrity, len) in [
        ("aes-xts-plain64", "hmac(sha256)", 63),
        ("aes-gcm-random", "aead", 24),
        ("chacha20-random", "poly1305", 16),
    ] {
        let key = pattern(1, len);
        assert!(aead(cipher, integrity, 512, &key, Engine::Auto).is_err(), "{cipher} {len}");
    }
    // Weak keys stay weak under a MAC.
    assert!(aead("aes-xts-plain64", "hmac(sha256)", 512, &[1; 96], Engine::Auto).is_err());
}
