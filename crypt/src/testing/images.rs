//! The specification's three example volumes, rebuilt byte by byte: header rows, JSON, and what the
//! parts must hash to. Both cryptsetup and the kernel opened volumes built from this recipe.

use crate::af::{self, tests::stream};
use crate::cipher::CipherSpec;
use crate::hash::Hash;
use crate::kdf::{Argon2Kind, Kdf, Limits};
use crate::key::Key;
use crate::keyslot::fill_area;
use crate::testing::{hex, pattern, vk1};
use crate::xts::{SectorSize, Xts, XtsParams};

pub(crate) type Rows = &'static [(usize, &'static str)];

const LUKS1_HEADER: Rows = &[
    (0, "4c554b53babe0001616573000000000000000000000000000000000000000000"),
    (32, "00000000000000007874732d706c61696e363400000000000000000000000000"),
    (64, "0000000000000000736861323536000000000000000000000000000000000000"),
    (96, "000000000000000000001000000000408b422260bd837fb848d7a484d5517959"),
    (128, "435a1d75ae1f933f573f6d344d0effd9158958c8c4cd4a7d17e6e14215112c09"),
    (160, "0f90a8b1000003e831313131313131312d323232322d333333332d343434342d"),
    (192, "3535353535353535353535350000000000ac71f3000003e895fee57b7d827e9b"),
    (224, "5a4c8496f5b30a427f1ef3d86c95f500c918504c04e36f290000000800000fa0"),
    (256, "0000dead00000000000000000000000000000000000000000000000000000000"),
    (288, "00000000000000000000020000000fa00000dead000000000000000000000000"),
    (320, "000000000000000000000000000000000000000000000000000003f800000fa0"),
    (352, "0000dead00000000000000000000000000000000000000000000000000000000"),
    (384, "0000000000000000000005f000000fa00000dead000000000000000000000000"),
    (416, "000000000000000000000000000000000000000000000000000007e800000fa0"),
    (448, "0000dead00000000000000000000000000000000000000000000000000000000"),
    (480, "0000000000000000000009e000000fa00000dead000000000000000000000000"),
    (512, "00000000000000000000000000000000000000000000000000000bd800000fa0"),
    (544, "0000dead00000000000000000000000000000000000000000000000000000000"),
    (576, "000000000000000000000dd000000fa0"),
];
const LUKS2_A_HEADER: Rows = &[
    (0, "4c554b53babe00020000000000004000000000000000000376617276652d7665"),
    (32, "6300000000000000000000000000000000000000000000000000000000000000"),
    (64, "0000000000000000736861323536000000000000000000000000000000000000"),
    (96, "0000000000000000dd88697627e8d35cf853631ac1db9cfa153e51ad4e5632c6"),
    (128, "f9fdd2676e283162f75cf092f385c1c7906d1be03ec45e84710c9dbcf71f151b"),
    (160, "4be89655297cac1732323232323232322d333333332d343434342d353535352d"),
    (192, "3636363636363636363636360000000000000000000000000000000000000000"),
    (448, "1f26b5d666a7eaa113e06526faea62e74a003f02bd2996f8b83a4463c3344f50"),
    (16384, "534b554cbabe00020000000000004000000000000000000376617276652d7665"),
    (16416, "6300000000000000000000000000000000000000000000000000000000000000"),
    (16448, "0000000000000000736861323536000000000000000000000000000000000000"),
    (16480, "000000000000000021b65671b8df48bc38ddc3841322ac9a4e0a31a5a279a252"),
    (16512, "e3f8b7a448d81de0a0cf7f4230175a8a64f65ce3a79fbe12e6b2d7834d71ba16"),
    (16544, "96eeed0fe9388e0532323232323232322d333333332d343434342d353535352d"),
    (16576, "3636363636363636363636360000000000000000000000000000000000000000"),
    (16640, "0000000000004000000000000000000000000000000000000000000000000000"),
    (16832, "4781e6462b2104170262565d46e409e0f161f8214d6b6e5b51f7a7dc435756db"),
];
const LUKS2_B_HEADER: Rows = &[
    (0, "4c554b53babe0002000000000000400000000000000000030000000000000000"),
    (64, "0000000000000000736861323536000000000000000000000000000000000000"),
    (96, "0000000000000000490dc483937acfafcd9a910b587ec11b8917b47132f47499"),
    (128, "17ed91246c733dcfb593d74492c29e16923fc012f30c0711d41dd9f00f1c02f3"),
    (160, "43af10e51096d85533333333333333332d343434342d353535352d363636362d"),
    (192, "3737373737373737373737370000000000000000000000000000000000000000"),
    (448, "ef9b60543c15723489efe71df94b919f2769b1e39a606b5b368fd7b4cd8584ba"),
    (16384, "534b554cbabe0002000000000000400000000000000000030000000000000000"),
    (16448, "0000000000000000736861323536000000000000000000000000000000000000"),
    (16480, "00000000000000005d3380e12e52d5407230faff5699d34ee7e399981195e6cc"),
    (16512, "dea5e6d1d69e9cf9809d8da36f5fb9352ad6e80bb639ab29b40b0fc87fd11669"),
    (16544, "2ee971f22c7db7d033333333333333332d343434342d353535352d363636362d"),
    (16576, "3737373737373737373737370000000000000000000000000000000000000000"),
    (16640, "0000000000004000000000000000000000000000000000000000000000000000"),
    (16832, "3d3ac3a213f52bbf1cc4f29025d8470f782242156cb64e972511df05d777abe4"),
];
pub(crate) const LUKS2_A_JSON: &str = r#"{"keyslots":{"0":{"type":"luks2","key_size":64,"af":{"type":"luks1","stripes":4000,"hash":"sha256"},"area":{"type":"raw","offset":"32768","size":"258048","encryption":"aes-xts-plain64","key_size":64},"kdf":{"type":"pbkdf2","hash":"sha256","iterations":1000,"salt":"TsuQpDt0nC6LLRPOmLqxWCdVAF8EH8Wl8U1QeV/PcKI="}}},"tokens":{},"segments":{"0":{"type":"crypt","offset":"1048576","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":4096}},"digests":{"0":{"type":"pbkdf2","keyslots":["0"],"segments":["0"],"hash":"sha256","iterations":1000,"salt":"2OqkBhkTnGW1R/fXUWXz2CLjOCk5M5g5DC8rEP5LSq8=","digest":"FkC+RR1Zb8uVskwqDD+i7DCPuSI0ycS64gTxZXBg2UI="}},"config":{"json_size":"12288","keyslots_size":"262144"}}"#;
pub(crate) const LUKS2_B_JSON: &str = r#"{"keyslots":{"0":{"type":"luks2","key_size":64,"af":{"type":"luks1","stripes":4000,"hash":"sha256"},"area":{"type":"raw","offset":"32768","size":"258048","encryption":"aes-xts-plain64","key_size":64},"kdf":{"type":"argon2id","time":4,"memory":32,"cpus":1,"salt":"OSxVmH62RtqUxWR5GhmPrcLsuCAuzKvageZcgp4IAP0="}}},"tokens":{},"segments":{"0":{"type":"crypt","offset":"1048576","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":512}},"digests":{"0":{"type":"pbkdf2","keyslots":["0"],"segments":["0"],"hash":"sha256","iterations":1000,"salt":"YX0u/XqAGm9wCA96DuYV4WPeA6JOJy6A0BS/948cLHg=","digest":"Z1utwj4QcjELhA06N4sVcYqJyExzEMz15pfj/a2OmD0="}},"config":{"json_size":"12288","keyslots_size":"262144"}}"#;
/// Encryption sectors that hold the pattern, and the hash of their ciphertext.
pub(crate) const LUKS1_PAYLOAD: Rows = &[
    (0, "3e7caf429f1c9eea770760098d6b48302f047adc875799b878ef399436b8949e"),
    (1, "7e1592eb95a2e96a27b56de35ece97fb30601e42137235c1e17183744fb8cf4b"),
    (2, "dd4215ee70872d5a264b7fa6d88646d0989e84961a6b4f12db8ed245b1280e8a"),
    (7, "5ba4a1e036e97b960fb8b49e8dadb5480c439f29b63e5ddd0c8101e8cbefe430"),
    (8, "670ec13d587cd1d797ba4684a5f87064b8528afaa6a09f0ab4f02ba2298cc9db"),
];
/// Encryption sectors that hold the pattern, and the hash of their ciphertext.
pub(crate) const LUKS2_A_PAYLOAD: Rows = &[
    (0, "872a1d6056e3c162a57ab98f60ad685ef1a65a33a773879def1aa6b33fae9bc4"),
    (1, "9f20d90b52aa96be0cc14154fdef04f28454f2d851af1684845b12c76f43f3ca"),
    (2, "3c3a4c6d438c4ef300735d28856729db4752d9eb3513ac876572b894a0901087"),
    (3, "0f3bac60aa5d7696c10d8cd9d4569c7e3040b56daba61262792eee016301a45d"),
];
/// Encryption sectors that hold the pattern, and the hash of their ciphertext.
pub(crate) const LUKS2_B_PAYLOAD: Rows = &[
    (0, "3e7caf429f1c9eea770760098d6b48302f047adc875799b878ef399436b8949e"),
    (1, "7e1592eb95a2e96a27b56de35ece97fb30601e42137235c1e17183744fb8cf4b"),
    (8, "670ec13d587cd1d797ba4684a5f87064b8528afaa6a09f0ab4f02ba2298cc9db"),
];

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

fn put_rows(image: &mut [u8], rows: Rows) {
    for (at, row) in rows {
        put(image, *at, &hex(row));
    }
}

fn spec() -> CipherSpec {
    CipherSpec::parse("aes-xts-plain64").unwrap()
}

/// The area of the only keyslot: the vectors' split of the vectors' key, encrypted.
fn area(secret: &str, kdf: &Kdf) -> Vec<u8> {
    let derived = kdf.derive(&Key::copy_from(secret.as_bytes()), 64, &Limits::default()).unwrap();
    let key = Key::copy_from(&vk1());
    fill_area(&spec(), Hash::Sha256, &key, &derived, &mut stream()).unwrap().to_vec()
}

fn put_payload(image: &mut [u8], at: usize, sector_size: u64, sectors: Rows) {
    let params = XtsParams::new(spec(), SectorSize::new(sector_size).unwrap());
    let xts = Xts::new(&params, &Key::copy_from(&vk1())).unwrap();
    let size = params.sector_size.bytes();
    for (sector, _) in sectors {
        let mut data = pattern((sector * size) as u64, size);
        xts.encrypt((sector * size / 512) as u64, &mut data);
        put(image, at + sector * size, &data);
    }
}

pub(crate) fn salt(row: &str) -> [u8; 32] {
    hex(row).try_into().unwrap()
}

pub(crate) const SECRETS: [&str; 3] =
    ["varve-test-passphrase-1", "varve-test-passphrase-2", "varve-test-passphrase-3"];

/// 2 MiB of header and keyslots, and 64 sectors of payload.
pub(crate) fn luks1() -> Vec<u8> {
    let mut image = vec![0; (2 << 20) + 64 * 512];
    put_rows(&mut image, LUKS1_HEADER);
    let kdf = Kdf::Pbkdf2 {
        hash: Hash::Sha256,
        iterations: 1000,
        salt: salt("95fee57b7d827e9b5a4c8496f5b30a427f1ef3d86c95f500c918504c04e36f29"),
    };
    put(&mut image, 4096, &area(SECRETS[0], &kdf));
    put_payload(&mut image, 2 << 20, 512, LUKS1_PAYLOAD);
    image
}

fn luks2(rows: Rows, json: &str, area: &[u8], sector_size: u64, payload: Rows) -> Vec<u8> {
    let mut image = vec![0; (1 << 20) + 64 * 512];
    put_rows(&mut image, rows);
    put(&mut image, 4096, json.as_bytes());
    put(&mut image, 16384 + 4096, json.as_bytes());
    put(&mut image, 32768, area);
    put_payload(&mut image, 1 << 20, sector_size, payload);
    image
}

/// PBKDF2, 4096-byte sectors.
pub(crate) fn luks2_a() -> Vec<u8> {
    let salt = salt("4ecb90a43b749c2e8b2d13ce98bab1582755005f041fc5a5f14d50795fcf70a2");
    let kdf = Kdf::Pbkdf2 { hash: Hash::Sha256, iterations: 1000, salt };
    let area = area(SECRETS[1], &kdf);
    luks2(LUKS2_A_HEADER, LUKS2_A_JSON, &area, 4096, LUKS2_A_PAYLOAD)
}

/// Argon2id, 512-byte sectors.
pub(crate) fn luks2_b() -> Vec<u8> {
    let kdf = Kdf::Argon2 {
        kind: Argon2Kind::Id,
        time: 4,
        memory_kib: 32,
        lanes: 1,
        salt: salt("392c55987eb646da94c564791a198fadc2ecb8202eccabda81e65c829e0800fd"),
    };
    let area = area(SECRETS[2], &kdf);
    luks2(LUKS2_B_HEADER, LUKS2_B_JSON, &area, 512, LUKS2_B_PAYLOAD)
}

/// Bytes of a keyslot area in use.
pub(crate) const AREA_LEN: usize = 256_000;
const _: () = assert!(af::STRIPES as usize * 64 == AREA_LEN);
