//! Cipher texts as headers hold them, and plain mappings as the command line takes them: what is accepted
//! encrypts and decrypts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use varve_crypt::{CipherSpec, Key, MapOptions, PlainSpec, SectorSize, Xts, XtsParams};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(spec) = CipherSpec::parse(text) {
        assert!(!spec.to_string().is_empty());
        for bytes in [16, 32, 64] {
            let key: Vec<u8> = (0..bytes).collect();
            let mut params = XtsParams::new(spec.clone(), SectorSize::S512);
            params.allow_weak_key = true;
            if let Ok(xts) = Xts::new(&params, &Key::copy_from(&key)) {
                let mut sector = vec![7; 1024];
                xts.encrypt(u64::MAX, &mut sector);
                xts.decrypt(u64::MAX, &mut sector);
                assert_eq!(sector, vec![7; 1024], "{spec}");
            }
        }
    }
    if let Ok(plain) = PlainSpec::parse(text) {
        let options = MapOptions {
            data_len: varve_block::Sectors(4096),
            detached: true,
            allow_weak_key: false,
            engine: varve_crypt::Engine::Auto,
        };
        let key: Vec<u8> = (0..64).collect();
        if let Ok(volume) = plain.open(Key::copy_from(&key), &options) {
            assert!(volume.len() <= options.data_len, "{text}");
        }
    }
});
