//! LUKS headers around what a target was given.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use varve_block::Sim;
use varve_block::dev::Mem;
use varve_crypt::{Header, HeaderCopy, Key, Limits, UnlockOptions};

/// Bytes of one copy of the header.
const COPY: usize = 16 << 10;
const BINARY: usize = 4096;
const SUM: usize = 448;

/// The metadata of a volume with one keyslot.
pub const JSON: &str = include_str!("../seeds/luks2_json/one-slot.json");

/// Both copies of a LUKS2 header with this text, sealed.
pub fn head(json: &[u8]) -> Vec<u8> {
    let mut head = vec![0; 256 << 10];
    for (at, magic) in [(0, b"LUKS\xba\xbe"), (COPY, b"SKUL\xba\xbe")] {
        let copy = &mut head[at..at + COPY];
        copy[..6].copy_from_slice(magic);
        copy[7] = 2;
        copy[8..16].copy_from_slice(&(COPY as u64).to_be_bytes());
        copy[23] = 3;
        copy[72..78].copy_from_slice(b"sha256");
        copy[168..204].copy_from_slice(b"22222222-3333-4444-5555-666666666666");
        copy[256..264].copy_from_slice(&(at as u64).to_be_bytes());
        let n = json.len().min(COPY - BINARY);
        copy[BINARY..BINARY + n].copy_from_slice(&json[..n]);
        seal(&mut head, at);
    }
    head
}

/// Gives the copy at `at` the checksum that it should have.
pub fn seal(head: &mut [u8], at: usize) {
    let size = u64::from_be_bytes(head[at + 8..at + 16].try_into().expect("8 bytes"));
    let size = usize::try_from(size).unwrap_or(usize::MAX).clamp(BINARY, head.len() - at);
    head[at + SUM..at + 512].fill(0);
    let sum = Sha256::digest(&head[at..at + size]);
    head[at + SUM..at + SUM + sum.len()].copy_from_slice(&sum);
}

/// Parses the header, either copy of it, and says what `varve crypt dump` would.
pub fn look(head: &[u8], device: u64) {
    for only in [None, Some(HeaderCopy::Primary), Some(HeaderCopy::Secondary)] {
        match Header::parse(head, device, only) {
            Ok(header) => {
                assert!(header.to_string().is_ascii(), "a dump is harmless");
                let _ = header.check_activatable();
                assert!(!header.uuid().contains('\u{1b}'));
            }
            Err(why) => assert!(!why.to_string().is_empty()),
        }
    }
}

/// Tries a passphrase on every slot that costs next to nothing.
pub fn unlock(head: &[u8]) {
    let limits = Limits {
        argon2_memory_kib: 64,
        argon2_work_kib: 256,
        pbkdf2_iterations: 16,
        total: Duration::from_secs(1),
        stop: None,
    };
    let options = UnlockOptions { limits, ..UnlockOptions::default() };
    let (disk, secret) = (Mem::from_bytes(head), Arc::new(Key::copy_from(b"fuzz")));
    let opened =
        Sim::new(1).run(|rt| async move { varve_crypt::unlock(&rt, &disk, &options, &secret).await });
    assert!(opened.is_err(), "nobody has the passphrase");
}
