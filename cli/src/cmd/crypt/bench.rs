//! `varve crypt bench`: what unlocking, reading and writing cost on this machine.

use crate::args::{BenchHalf, CryptBench};
use crate::cmd::output;
use crate::failure::{Outcome, usage};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::io::Write;
use std::time::Duration;
use varve_block::Rt;
use varve_crypt::speed::{self, CipherSpeed};
use varve_crypt::{Argon2Kind, CipherSpec, Cost, Hash, Kdf, Pbkdf, SectorSize};

/// What volumes have: today's, and those of old ones that still open.
const CIPHERS: [&str; 6] = [
    "aes-xts-plain64",
    "aes-cbc-essiv:sha256",
    "serpent-xts-plain64",
    "twofish-xts-plain64",
    "camellia-xts-plain64",
    "serpent-cbc-plain64",
];
const HASHES: [Hash; 7] = [
    Hash::Sha1,
    Hash::Sha224,
    Hash::Sha256,
    Hash::Sha384,
    Hash::Sha512,
    Hash::Ripemd160,
    Hash::Whirlpool,
];
/// Bytes of the keys that derivations are measured for.
const KEY_BITS: usize = 256;
/// Largest request: the export cuts longer ones.
const REQUEST_MAX: u64 = 64 << 20;

/// What was measured of the key derivations.
#[derive(Default)]
struct Derivations {
    /// Iterations per second.
    pbkdf2: Vec<(Hash, u32)>,
    argon2: Vec<Kdf>,
}

/// One line of the cipher table.
struct Job {
    spec: CipherSpec,
    key_bits: usize,
    sector: SectorSize,
}

pub(super) fn run(rt: &Rt, args: &CryptBench) -> anyhow::Result<Outcome> {
    // All words are looked at before anything takes time.
    let hashes = hashes(args)?;
    let jobs = jobs(args)?;
    let request = usize::try_from(args.request.0.min(REQUEST_MAX))?;
    if jobs.iter().any(|j| !args.request.0.is_multiple_of(j.sector.bytes() as u64))
        || !(512..=REQUEST_MAX).contains(&args.request.0)
    {
        return usage(format!("--request {}: whole sectors, at most 64M", args.request));
    }
    let start = rt.now();
    let clock = || rt.now() - start;
    let (kdf, cipher) = (args.only != Some(BenchHalf::Cipher), args.only != Some(BenchHalf::Kdf));
    let bar = progress();
    let mut derivations = Derivations::default();
    if kdf {
        for hash in hashes {
            bar.set_message(format!("pbkdf2-{}", hash.name()));
            derivations.pbkdf2.push((hash, speed::pbkdf2_per_second(hash, &clock)));
        }
        if args.hash.is_none() {
            for kind in [Argon2Kind::I, Argon2Kind::Id] {
                bar.set_message(kind.name());
                derivations.argon2.push(speed::new_keyslot(
                    Pbkdf::Argon2(kind),
                    argon2_cost(args)?,
                    &clock,
                )?);
            }
        }
    }
    let mut ciphers = Vec::new();
    for job in jobs.iter().filter(|_| cipher) {
        bar.set_message(job.spec.text().to_owned());
        let some =
            speed::ciphers(&job.spec, job.key_bits, job.sector, request, args.rounds, &clock)?;
        ciphers.extend(some);
    }
    bar.finish_and_clear();
    match args.json {
        true => output::json(&as_json(args, &derivations, &ciphers))?,
        false => print(args, &derivations, &ciphers)?,
    }
    Ok(Outcome::Fine)
}

fn progress() -> ProgressBar {
    // Draws on standard error, and only where that is a terminal.
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{spinner} measuring {msg}").expect("a template"));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn hashes(args: &CryptBench) -> anyhow::Result<Vec<Hash>> {
    let Some(name) = &args.hash else { return Ok(HASHES.to_vec()) };
    match Hash::named(name) {
        Some(hash) => Ok(vec![hash]),
        None => usage(format!("--hash {name:?} is none of {}", HASHES.map(Hash::name).join(", "))),
    }
}

fn argon2_cost(args: &CryptBench) -> anyhow::Result<Cost> {
    Ok(Cost::Benchmark {
        target: Duration::from_millis(args.iter_time.into()),
        memory_kib_max: u32::try_from(args.pbkdf_memory.0 >> 10)?,
        lanes_max: args.pbkdf_parallel,
    })
}

fn jobs(args: &CryptBench) -> anyhow::Result<Vec<Job>> {
    if args.pbkdf_memory.0 >> 10 > u64::from(varve_crypt::ARGON2_MEMORY_MAX_KIB) {
        return usage(format!("--pbkdf-memory {} is more than argon2 takes", args.pbkdf_memory));
    }
    let sectors = match args.cipher.sector_size {
        None => vec![SectorSize::S512, SectorSize::S4096],
        Some(size) => vec![super::sector_size(size)?],
    };
    let mut jobs = Vec::new();
    let named = args.cipher.cipher.as_deref();
    for text in named.map_or(CIPHERS.to_vec(), |one| vec![one]) {
        let spec = CipherSpec::parse(text)?;
        spec.check_supported()?;
        for bytes in [16, 24, 32, 64].into_iter().filter(|n| spec.takes_key(*n)) {
            let wanted = args.cipher.key_size.is_none_or(|bits| bits as usize == bytes * 8);
            for &sector in sectors.iter().filter(|_| wanted) {
                jobs.push(Job { spec: spec.clone(), key_bits: bytes * 8, sector });
            }
        }
    }
    if let (true, Some(bits)) = (jobs.is_empty(), args.cipher.key_size) {
        return usage(format!("--key-size {bits}: no cipher here takes such a key"));
    }
    Ok(jobs)
}

fn print(args: &CryptBench, kdf: &Derivations, ciphers: &[CipherSpeed]) -> anyhow::Result<()> {
    let mut out = output::stdout();
    if !kdf.pbkdf2.is_empty() {
        writeln!(out, "key derivation, for keys of {KEY_BITS} bits")?;
    }
    for (hash, per_second) in &kdf.pbkdf2 {
        writeln!(out, "  pbkdf2-{:<10} {per_second:>10} iterations per second", hash.name())?;
    }
    for one in &kdf.argon2 {
        if let Kdf::Argon2 { kind, time, memory_kib, lanes, .. } = one {
            writeln!(
                out,
                "  {:<17} {time:>10} passes, {memory_kib} KiB, {lanes} threads (for {} ms)",
                kind.name(),
                args.iter_time
            )?;
        }
    }
    if !ciphers.is_empty() {
        writeln!(
            out,
            "ciphers on one core, in requests of {}; * is the engine that volumes get\n  \
             {:<22} {:>4} {:>6} {:<9} {:>14} {:>14}",
            args.request, "cipher", "key", "sector", "engine", "encrypt", "decrypt"
        )?;
    }
    for c in ciphers {
        writeln!(
            out,
            "  {:<22} {:>4} {:>6} {:<8}{} {:>8.0} MiB/s {:>8.0} MiB/s",
            c.cipher,
            c.key_bits,
            c.sector_size,
            c.engine,
            if c.default { '*' } else { ' ' },
            c.encrypt_mib_s,
            c.decrypt_mib_s
        )?;
    }
    out.flush()?;
    Ok(())
}

fn as_json(args: &CryptBench, kdf: &Derivations, ciphers: &[CipherSpeed]) -> Value {
    let pbkdf2 = kdf.pbkdf2.iter().map(|(hash, per_second)| {
        json!({ "hash": hash.name(), "key_bits": KEY_BITS, "iterations_per_second": per_second })
    });
    let argon2 = kdf.argon2.iter().filter_map(|one| match one {
        Kdf::Argon2 { kind, time, memory_kib, lanes, .. } => Some(json!({
            "kind": kind.name(), "key_bits": KEY_BITS, "target_ms": args.iter_time,
            "passes": time, "memory_kib": memory_kib, "lanes": lanes,
        })),
        Kdf::Pbkdf2 { .. } => None,
    });
    json!({
        "pbkdf2": pbkdf2.collect::<Vec<_>>(),
        "argon2": argon2.collect::<Vec<_>>(),
        "ciphers": ciphers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, CryptVerb, Noun};
    use clap::Parser;

    fn bench(words: &[&str]) -> CryptBench {
        let words = [&["varve", "crypt", "bench"], words].concat();
        match Cli::parse_from(words).noun {
            Noun::Crypt(CryptVerb::Bench(args)) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_cipher_is_measured_with_every_key_that_it_takes() {
        let all = jobs(&bench(&[])).unwrap();
        let of = |text: &str| all.iter().filter(|j| j.spec.text() == text).count();
        // 256 and 512 bits; 128, 192 and 256 bits; two sector sizes each.
        assert_eq!((of("aes-xts-plain64"), of("aes-cbc-essiv:sha256")), (4, 6));
        let one = jobs(&bench(&["--cipher", "aes-xts-plain64", "--key-size", "512"])).unwrap();
        assert_eq!(one.len(), 2);
    }

    #[test]
    fn what_cannot_be_measured_is_a_usage_error() {
        for words in [
            &["--cipher", "aes-xts-plain64", "--key-size", "128"][..],
            &["--sector-size", "513"],
            &["--pbkdf-memory", "8T"],
        ] {
            let error = jobs(&bench(words)).err().expect("refused");
            assert!(error.is::<crate::failure::Usage>(), "{error}");
        }
        assert!(hashes(&bench(&["--hash", "md5"])).unwrap_err().is::<crate::failure::Usage>());
    }
}
