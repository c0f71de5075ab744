//! How fast ciphers and key derivations are on this machine, for `varve crypt bench` and the benchmarks.
//!
//! Absolute figures move with the machine's other work. What is compared is therefore run in turn, many
//! times, and the shortest turn of each counts: whatever disturbs a turn can only make it longer.

use std::time::Duration;

use crate::cipher::CipherSpec;
use crate::error::Result;
use crate::hash::Hash;
use crate::kdf::{self, Clock, Kdf, Pbkdf};
use crate::key::Key;
use crate::xts::{Engine, SectorSize, Xts, XtsParams};

/// Runs the jobs in turn, `rounds` times over, and gives the shortest time of each.
pub fn shortest(
    rounds: u32,
    clock: Clock<'_>,
    jobs: &mut [Box<dyn FnMut() + '_>],
) -> Vec<Duration> {
    let mut best = vec![Duration::MAX; jobs.len()];
    for _ in 0..rounds {
        for (job, best) in jobs.iter_mut().zip(&mut best) {
            let start = clock();
            job();
            *best = clock().saturating_sub(start).max(Duration::from_nanos(1)).min(*best);
        }
    }
    best
}

/// One cipher on one engine, and what it reached.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct CipherSpeed {
    pub cipher: String,
    pub key_bits: usize,
    pub sector_size: usize,
    pub request: usize,
    pub engine: &'static str,
    /// The engine that a volume with such a key gets.
    pub default: bool,
    pub encrypt_mib_s: f64,
    pub decrypt_mib_s: f64,
}

/// Bytes of one turn: long enough for the clock, short enough to slip between disturbances.
const TURN: usize = 1 << 20;

/// Measures every engine that can do `spec` with a random key of `key_bits`, in requests of `request`
/// bytes. Engines that cannot are left out.
pub fn ciphers(
    spec: &CipherSpec,
    key_bits: usize,
    sector: SectorSize,
    request: usize,
    rounds: u32,
    clock: Clock<'_>,
) -> Result<Vec<CipherSpeed>> {
    let key = Key::random(key_bits / 8)?;
    // First, so that a cipher or key which no engine takes is told as opening a volume would.
    let default = Xts::new(&XtsParams::new(spec.clone(), sector), &key)?.engine();
    let mut expanded = Vec::new();
    for engine in Engine::available() {
        let params = XtsParams { engine, ..XtsParams::new(spec.clone(), sector) };
        if let Ok(xts) = Xts::new(&params, &key) {
            expanded.push(xts);
        }
    }
    let mut jobs: Vec<Box<dyn FnMut() + '_>> = Vec::new();
    for xts in &expanded {
        let mut data = vec![0x5a; request];
        jobs.push(Box::new(move || turn(request, |n| xts.encrypt(n, &mut data))));
        let mut data = vec![0x5a; request];
        jobs.push(Box::new(move || turn(request, |n| xts.decrypt(n, &mut data))));
    }
    let best = shortest(rounds, clock, &mut jobs);
    drop(jobs);
    let bytes = TURN.next_multiple_of(request);
    let (pairs, _) = best.as_chunks::<2>();
    Ok(expanded
        .iter()
        .zip(pairs)
        .map(|(xts, [encrypt, decrypt])| CipherSpeed {
            cipher: spec.text().to_owned(),
            key_bits,
            sector_size: sector.bytes(),
            request,
            engine: xts.engine().name(),
            default: xts.engine() == default,
            encrypt_mib_s: mib_s(bytes, *encrypt),
            decrypt_mib_s: mib_s(bytes, *decrypt),
        })
        .collect())
}

fn turn(request: usize, mut one: impl FnMut(u64)) {
    let mut n = 0;
    for _ in 0..TURN.div_ceil(request) {
        one(n);
        n += request as u64 / 512;
    }
}

#[expect(clippy::cast_precision_loss, reason = "a few megabytes")]
fn mib_s(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / f64::from(1 << 20) / time.as_secs_f64()
}

/// PBKDF2 iterations per second for a key of 32 bytes.
pub fn pbkdf2_per_second(hash: Hash, clock: Clock<'_>) -> u32 {
    kdf::benchmark_pbkdf2(hash, 32, Duration::from_secs(1), clock)
}

/// The Argon2 parameters that a new keyslot would get.
pub fn new_keyslot(pbkdf: Pbkdf, cost: kdf::Cost, clock: Clock<'_>) -> Result<Kdf> {
    kdf::choose(pbkdf, cost, 32, clock)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn the_shortest_turn_of_each_job_counts() {
        let now = Cell::new(Duration::ZERO);
        let mut slow = [9, 5, 7].into_iter();
        let clock = || now.get();
        let now = &now;
        let mut jobs: Vec<Box<dyn FnMut() + '_>> = vec![
            Box::new(|| now.set(now.get() + Duration::from_secs(slow.next().unwrap()))),
            Box::new(|| now.set(now.get() + Duration::from_secs(3))),
        ];
        assert_eq!(shortest(3, &clock, &mut jobs), [5, 3].map(Duration::from_secs));
    }

    #[test]
    fn engines_that_cannot_do_the_key_are_left_out() {
        let ticks = Cell::new(0);
        let clock = || {
            ticks.set(ticks.get() + 1);
            Duration::from_millis(ticks.get())
        };
        let spec = CipherSpec::parse("aes-xts-plain64").unwrap();
        let all = ciphers(&spec, 512, SectorSize::S4096, 4096, 1, &clock).unwrap();
        let short = ciphers(&spec, 256, SectorSize::S4096, 4096, 1, &clock).unwrap();
        assert_eq!(all.len(), Engine::available().len());
        assert_eq!(all.iter().filter(|s| s.default).count(), 1);
        assert!(short.iter().all(|s| s.engine != "aws-lc") && !short.is_empty());
        assert!(all.iter().all(|s| s.encrypt_mib_s == 1000.0), "{all:?}");
        assert!(ciphers(&spec, 384, SectorSize::S4096, 4096, 1, &clock).is_err());
    }
}
