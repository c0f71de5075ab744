//! How a key slot is derived, from the flags.

use crate::args::{PbkdfArg, PbkdfArgs};
use crate::failure::usage;
use std::time::Duration;
use varve_crypt::{Argon2Kind, Cost, Hash, LuksVersion, Pbkdf, Protection};

pub(super) fn protection(args: &PbkdfArgs, version: LuksVersion) -> anyhow::Result<Protection> {
    // RIPEMD-160 and Whirlpool open old volumes; new ones do not get them.
    let old = [Hash::Ripemd160, Hash::Whirlpool];
    let Some(hash) = Hash::named(&args.hash).filter(|hash| !old.contains(hash)) else {
        let known = "sha1, sha224, sha256, sha384 or sha512";
        return usage(format!("--hash {:?} is not one for new keys: {known}", args.hash));
    };
    let pbkdf = match (args.pbkdf, version) {
        (Some(PbkdfArg::Pbkdf2), _) | (None, LuksVersion::Luks1) => Pbkdf::Pbkdf2(hash),
        (Some(PbkdfArg::Argon2i), _) => Pbkdf::Argon2(Argon2Kind::I),
        (Some(PbkdfArg::Argon2id), _) | (None, LuksVersion::Luks2) => Pbkdf::Argon2(Argon2Kind::Id),
    };
    let Ok(memory_kib) = u32::try_from(args.pbkdf_memory.0 >> 10) else {
        return usage(format!("--pbkdf-memory {} is too much", args.pbkdf_memory));
    };
    let cost = match args.pbkdf_force_iterations {
        Some(iterations) => Cost::Forced { iterations, memory_kib, lanes: args.pbkdf_parallel },
        None => Cost::Benchmark {
            target: Duration::from_millis(args.iter_time.into()),
            memory_kib_max: memory_kib,
            lanes_max: args.pbkdf_parallel,
        },
    };
    Ok(Protection { pbkdf, cost, hash })
}
