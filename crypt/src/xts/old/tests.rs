use super::Old;
use crate::testing::{hex, pattern, sha256, to_hex, vk1};
use crate::xts::*;

/// Cipher, sector size, sector number; IV, first and last block, SHA-256. The key is the first half of
/// `vk1`; the bytes were compared with what dm-crypt of Linux 6.12 wrote.
type Vector = (&'static str, u64, u64, &'static str, &'static str, &'static str, &'static str);

#[rustfmt::skip]
const VECTORS: &[Vector] = &[
    (
        "aes-cbc-essiv:sha256",
        512,
        0,
        "a84011db5031716fe8ad629b9c456044",
        "d8265ad053d4314c62b4dbeb725066c7",
        "ce9cef4e29accfd5582d9fab2457169e",
        "852ad48087602772bb866cfc5cc11f152c4c2418b4d9e89ec52a4dca389208cd",
    ),
    (
        "aes-cbc-essiv:sha256",
        512,
        1,
        "66432039ddf40bfff0ee9f5b31474120",
        "bd1cdee158761e1d6bf4331b662cca64",
        "750b675e4037a3d5242e8469953b4474",
        "ffe9f122d509c72f84abaeeae0257a683ac3c18b1b5cc22f8e2b7a045e606af4",
    ),
    (
        "aes-cbc-essiv:sha256",
        512,
        1 << 32,
        "a268c67391e7279171653dd3cc1cf205",
        "9ec211ffb21e365c986a712bfddcec03",
        "3b998f366d745de2f2cc3a8b907654b2",
        "d06f9d3502a2da421d05842becb7eb6db2eb15634718b541fef197706a4b8f15",
    ),
    (
        "aes-cbc-plain64",
        512,
        0,
        "00000000000000000000000000000000",
        "7f10b6f1243572cf9b59083f61927817",
        "10218d077dc679b656563dd1e16a85ee",
        "76254e7abfb1fa4673cb4d83b890abef3a6a6913f0ff93ea25e0a9c69891e1f1",
    ),
    (
        "aes-cbc-plain64",
        512,
        1,
        "01000000000000000000000000000000",
        "4a9112f0e7e116ff4c5f19201cbf3051",
        "9688dde583274b99ce0573d552498bb3",
        "de40cb14dc82c5f4edaab840c11762bfcde8179e2a9396fcfe8174cb38b170f3",
    ),
    (
        "aes-cbc-plain64",
        512,
        1 << 32,
        "00000000010000000000000000000000",
        "42ad78ffb203d3fab3a04afb9ab7c2f2",
        "9e6b9a0e38323241690347321c3efeb6",
        "799bd70448d976e0e33c1cb4a84e1acb17d6fadc2d657dcb074c4e8f01afe04e",
    ),
    (
        "aes-cbc-benbi",
        512,
        0,
        "00000000000000000000000000000001",
        "9d188f5611813d10869dff909eace372",
        "bdac7690668144436a36407d5d86796d",
        "e5333c2b2459108d72578a31725253b8f8812ba814b71e04411c21ff63cc5619",
    ),
    (
        "aes-cbc-benbi",
        512,
        5,
        "000000000000000000000000000000a1",
        "7959aa1ebf6cb31eb37b9b1f5940acd2",
        "be6abdef9e7ae9f6698c55395c60dfa6",
        "12f3337fac116eb1e5670d502907608727d3720ec2b927d18276c59bff789ea6",
    ),
    (
        "aes-cbc-eboiv",
        512,
        0,
        "2200d2e2eadb760713f2b9715e1ac176",
        "1f23dac3b1f93daf4fe46521407081ff",
        "21b1591fcbfd9f21b8823ec8a211a541",
        "90509c17e0f562d1aec8092a19bef6d9513dcd939f94176f9125068a06f7a73d",
    ),
    (
        "aes-cbc-eboiv",
        512,
        5,
        "5d23411cf8bdceba5087196917720e58",
        "46e3d91150ec0887a9800ba2df4c3831",
        "f947658b4170bd6c42b397066f941928",
        "7dfab46063fbd16e680518220a14201ab89cc00639a86988005164fc2ddbe582",
    ),
    (
        "aes-cbc-eboiv",
        4096,
        8,
        "062f4ef0343d91acc914cc0ff8bb66bd",
        "c60dad5dc72d4aefab89e684fa488148",
        "46c6955310a91ac3ccfcb0dc479ff7c9",
        "3b97276e78ea9466d47475d1b2d8e62c7a24db5476b062bab958de5034e147b1",
    ),
];

fn cipher(spec: &str, sector: u64, key: &[u8]) -> Xts {
    let spec = CipherSpec::parse(spec).unwrap();
    let params = XtsParams::new(spec, SectorSize::new(sector).unwrap());
    Xts::new(&params, &Key::copy_from(key)).unwrap()
}

#[test]
fn cbc_as_the_kernel_writes_it() {
    for &(spec, sector, n, iv, first, last, sum) in VECTORS {
        let xts = cipher(spec, sector, &vk1()[..32]);
        let plain = pattern(0, usize::try_from(sector).unwrap());
        assert_eq!(
            to_hex(&xts.units(n, plain.len()).next().unwrap().to_le_bytes()),
            iv,
            "{spec} {n}"
        );
        let mut data = plain.clone();
        xts.encrypt(n, &mut data);
        assert_eq!(to_hex(&data[..16]), first, "{spec} {n}");
        assert_eq!(to_hex(&data[data.len() - 16..]), last, "{spec} {n}");
        assert_eq!(sha256(&data), sum, "{spec} {n}");
        xts.decrypt(n, &mut data);
        assert_eq!(data, plain, "{spec} {n}");
    }
}

/// Our own XTS around any cipher, against the engines that know AES only.
#[test]
fn the_general_xts_is_the_xts_of_the_aes_engines() {
    for len in [32, 64] {
        let key = &vk1()[..len];
        let engine = cipher("aes-xts-plain64", 512, key);
        let spec = CipherSpec::parse("aes-xts-plain64").unwrap();
        let general = Old::new(&spec, &Key::copy_from(key)).unwrap();
        let (mut a, mut b) = (pattern(0, 512), pattern(0, 512));
        engine.encrypt(77, &mut a);
        general.sector(Direction::Encrypt, 77u128.to_le_bytes(), &mut b);
        assert_eq!(a, b);
        general.sector(Direction::Decrypt, 77u128.to_le_bytes(), &mut b);
        assert_eq!(b, pattern(0, 512));
    }
}

/// One published block of each cipher: the all-zero or the counting key of its own specification.
#[test]
fn the_ciphers_are_those_of_their_standards() {
    for (name, key, plain, made) in [
        // FIPS 197, C.2.
        (
            "aes",
            "000102030405060708090a0b0c0d0e0f1011121314151617",
            "00112233445566778899aabbccddeeff",
            "dda97ca4864cdfe06eaf70a0ec0d7191",
        ),
        // RFC 3713, A.
        (
            "camellia",
            "0123456789abcdeffedcba9876543210",
            "0123456789abcdeffedcba9876543210",
            "67673138549669730857065648eabe43",
        ),
        // The Twofish paper, its table of known answers.
        (
            "twofish",
            "00000000000000000000000000000000",
            "00000000000000000000000000000000",
            "9f589f5cf6122c32b6bfec2f2ae8c35a",
        ),
    ] {
        let block = old::block(name, &hex(key)).unwrap();
        let mut data: [u8; 16] = hex(plain).try_into().unwrap();
        block.encrypt(&mut data);
        assert_eq!(to_hex(&data), made, "{name}");
        block.decrypt(&mut data);
        assert_eq!(to_hex(&data), plain, "{name}");
    }
}

#[test]
fn every_cipher_and_mode_comes_back() {
    for cipher_name in ["aes", "serpent", "twofish", "camellia"] {
        for mode in [
            "xts-plain64",
            "xts-essiv:sha256",
            "cbc-plain",
            "cbc-essiv:sha256",
            "cbc-benbi",
            "cbc-eboiv",
            "cbc-null",
            "ecb",
        ] {
            for len in if mode.starts_with("xts") { &[32, 64][..] } else { &[16, 24, 32][..] } {
                let xts = cipher(&format!("{cipher_name}-{mode}"), 1024, &vk1()[..*len]);
                let mut data = pattern(0, 8192);
                xts.encrypt(10, &mut data);
                assert_ne!(data, pattern(0, 8192));
                xts.decrypt(10, &mut data);
                assert_eq!(data, pattern(0, 8192), "{cipher_name}-{mode} {len}");
            }
        }
    }
}
