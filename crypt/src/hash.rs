//! The hashes that a header may name, from a fixed list (checks 5, 17, 40).

use hmac::digest::Digest;
use hmac::{Hmac, KeyInit, Mac};
use ripemd::Ripemd160;
use sha1::Sha1;
use sha2::{Sha224, Sha256, Sha384, Sha512};
use whirlpool::Whirlpool;

/// A hash by name, as text from a header or a command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hash {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
    /// The default of plain mappings before 2023.
    Ripemd160,
    Whirlpool,
}

/// Runs `$body` with `$D` being the type of the hash: the one place that lists the types.
macro_rules! with_hash {
    ($hash:expr, $D:ident => $body:expr) => {
        match $hash {
            Hash::Sha1 => {
                type $D = Sha1;
                $body
            }
            Hash::Sha224 => {
                type $D = Sha224;
                $body
            }
            Hash::Sha256 => {
                type $D = Sha256;
                $body
            }
            Hash::Sha384 => {
                type $D = Sha384;
                $body
            }
            Hash::Sha512 => {
                type $D = Sha512;
                $body
            }
            Hash::Ripemd160 => {
                type $D = Ripemd160;
                $body
            }
            Hash::Whirlpool => {
                type $D = Whirlpool;
                $body
            }
        }
    };
}

impl Hash {
    /// The hash of that name. `None`: not in the list, which is "unsupported", not "corrupt".
    pub fn named(name: &str) -> Option<Hash> {
        Some(match name {
            "sha1" => Hash::Sha1,
            "sha224" => Hash::Sha224,
            "sha256" => Hash::Sha256,
            "sha384" => Hash::Sha384,
            "sha512" => Hash::Sha512,
            "ripemd160" => Hash::Ripemd160,
            "whirlpool" => Hash::Whirlpool,
            _ => return None,
        })
    }

    /// The name as headers spell it.
    pub fn name(self) -> &'static str {
        match self {
            Hash::Sha1 => "sha1",
            Hash::Sha224 => "sha224",
            Hash::Sha256 => "sha256",
            Hash::Sha384 => "sha384",
            Hash::Sha512 => "sha512",
            Hash::Ripemd160 => "ripemd160",
            Hash::Whirlpool => "whirlpool",
        }
    }

    /// Bytes of output.
    pub fn size(self) -> usize {
        with_hash!(self, D => <D as Digest>::output_size())
    }

    /// The hash of the parts, one after the other. The first [`Hash::size`] bytes count.
    pub(crate) fn digest(self, parts: &[&[u8]]) -> [u8; 64] {
        let mut out = [0; 64];
        with_hash!(self, D => {
            let mut h = D::new();
            for part in parts {
                h.update(part);
            }
            let sum = h.finalize();
            out[..sum.len()].copy_from_slice(&sum);
        });
        out
    }

    /// PBKDF2 with HMAC of this hash. `stop` is asked every few thousand rounds, so that a hostile
    /// iteration count can be interrupted; `false` is returned then and `out` is worthless.
    pub(crate) fn pbkdf2(
        self,
        secret: &[u8],
        salt: &[u8],
        iterations: u32,
        out: &mut [u8],
        stop: &dyn Fn() -> bool,
    ) -> bool {
        with_hash!(self, D => {
            let prf = Hmac::<D>::new_from_slice(secret).expect("HMAC takes keys of any length");
            let size = <D as Digest>::output_size();
            for (i, piece) in (1u32..).zip(out.chunks_mut(size)) {
                let mut u = {
                    let mut mac = prf.clone();
                    mac.update(salt);
                    mac.update(&i.to_be_bytes());
                    mac.finalize().into_bytes()
                };
                let mut sum = u;
                for round in 1..iterations {
                    if round % 4096 == 0 && stop() {
                        return false;
                    }
                    let mut mac = prf.clone();
                    mac.update(&u);
                    u = mac.finalize().into_bytes();
                    for (s, u) in sum.iter_mut().zip(&u) {
                        *s ^= u;
                    }
                }
                let n = piece.len();
                piece.copy_from_slice(&sum[..n]);
                zeroize::Zeroize::zeroize(&mut sum[..]);
                zeroize::Zeroize::zeroize(&mut u[..]);
            }
            !stop()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_round_trip_and_sizes_are_those_of_the_standard() {
        for (name, size) in [
            ("sha1", 20),
            ("sha224", 28),
            ("sha256", 32),
            ("sha384", 48),
            ("sha512", 64),
            ("ripemd160", 20),
            ("whirlpool", 64),
        ] {
            let h = Hash::named(name).unwrap();
            assert_eq!((h.name(), h.size()), (name, size));
        }
        assert_eq!(Hash::named("tiger"), None);
        assert_eq!(Hash::named("SHA256"), None);
    }

    #[test]
    fn a_stop_ends_the_work() {
        let mut out = [0; 20];
        assert!(!Hash::Sha1.pbkdf2(b"p", b"s", u32::MAX, &mut out, &|| true));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn pbkdf2_agrees_with_an_independent_one(
            secret in proptest::collection::vec(any::<u8>(), 0..200),
            salt in proptest::collection::vec(any::<u8>(), 32),
            iterations in 1u32..50,
            len in 1usize..150,
        ) {
            let (mut ours, mut theirs) = (vec![0; len], vec![0; len]);
            Hash::Sha1.pbkdf2(&secret, &salt, iterations, &mut ours, &|| false);
            pbkdf2::pbkdf2_hmac::<Sha1>(&secret, &salt, iterations, &mut theirs);
            prop_assert_eq!(&ours, &theirs);
            Hash::Sha512.pbkdf2(&secret, &salt, iterations, &mut ours, &|| false);
            pbkdf2::pbkdf2_hmac::<Sha512>(&secret, &salt, iterations, &mut theirs);
            prop_assert_eq!(&ours, &theirs);
        }
    }
}
