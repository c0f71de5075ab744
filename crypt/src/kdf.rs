//! From a passphrase to the key of a keyslot area: PBKDF2, Argon2i, Argon2id, with a price limit.
//!
//! Costs come from the header, which anybody can write. They are compared with [`Limits`] before the
//! first block is computed or allocated, and a slot that costs too much is skipped with the reason
//! (checks 26 to 28). One Argon2 runs at a time in the process, so that 32 slots of a gigabyte each
//! can never stand in memory together.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use zeroize::Zeroize;

use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::key::Key;

/// Bytes of salt in every LUKS structure.
pub(crate) const SALT_LEN: usize = 32;
/// Fewest PBKDF2 iterations that are ever written.
pub const PBKDF2_ITERATIONS_MIN: u32 = 1000;
/// Fewest Argon2 passes that are ever written.
pub const ARGON2_TIME_MIN: u32 = 4;
/// Least Argon2 memory that may be asked for by name, in KiB.
pub const ARGON2_MEMORY_MIN_KIB: u32 = 32;
/// Least Argon2 memory that a benchmark chooses, in KiB.
const ARGON2_MEMORY_BENCH_MIN_KIB: u32 = 64 << 10;
/// Most Argon2 memory of the format, in KiB: 4 GiB.
pub const ARGON2_MEMORY_MAX_KIB: u32 = 4 << 20;
const ARGON2_TIME_MAX: u32 = 1 << 24;
const ARGON2_LANES_MAX: u32 = 64;

/// A key derivation with its parameters, all within the format's bounds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kdf {
    Pbkdf2 { hash: Hash, iterations: u32, salt: [u8; SALT_LEN] },
    Argon2 { kind: Argon2Kind, time: u32, memory_kib: u32, lanes: u32, salt: [u8; SALT_LEN] },
}

/// Which Argon2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Argon2Kind {
    I,
    Id,
}

impl Argon2Kind {
    /// As headers spell it.
    pub fn name(self) -> &'static str {
        match self {
            Argon2Kind::I => "argon2i",
            Argon2Kind::Id => "argon2id",
        }
    }
}

/// What a keyslot may cost before it is skipped. The defaults open everything that the reference's
/// own defaults make, on slow and on fast machines, and refuse what would look like a hang.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most Argon2 memory, in KiB.
    pub argon2_memory_kib: u32,
    /// Most Argon2 work: passes times memory, in KiB.
    pub argon2_work_kib: u64,
    /// Most PBKDF2 iterations.
    pub pbkdf2_iterations: u32,
    /// After this long no further slot is tried (check 28): a header can name 32 of them.
    pub total: Duration,
    /// Raised by somebody else to stop the work: between PBKDF2 blocks, and between slots.
    pub stop: Option<Arc<AtomicBool>>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            argon2_memory_kib: 2 << 20,
            argon2_work_kib: 64 << 20,
            pbkdf2_iterations: 1 << 28,
            total: Duration::from_secs(600),
            stop: None,
        }
    }
}

impl Limits {
    /// Whatever the format allows.
    pub fn format_maximum() -> Limits {
        Limits {
            argon2_memory_kib: ARGON2_MEMORY_MAX_KIB,
            argon2_work_kib: u64::MAX,
            pbkdf2_iterations: 1 << 31,
            total: Duration::MAX,
            stop: None,
        }
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stop.as_ref().is_some_and(|s| s.load(Ordering::Relaxed))
    }
}

impl Kdf {
    /// Why this derivation is not run, or nothing. Says so where the operator can allow it.
    pub fn too_expensive(&self, limits: &Limits) -> Option<String> {
        let why = self.beyond(limits)?;
        Some(match self.beyond(&Limits::format_maximum()) {
            None => format!("{why}; --allow-costly-kdf pays it"),
            Some(_) => why,
        })
    }

    fn beyond(&self, limits: &Limits) -> Option<String> {
        match *self {
            Kdf::Pbkdf2 { iterations, .. } => (iterations > limits.pbkdf2_iterations).then(|| {
                format!("{iterations} PBKDF2 iterations, the limit is {}", limits.pbkdf2_iterations)
            }),
            Kdf::Argon2 { time, memory_kib, .. } => {
                let work = u64::from(time) * u64::from(memory_kib);
                let memory_max = limits.argon2_memory_kib.min(physical_memory_kib());
                if memory_kib > memory_max {
                    Some(format!("{memory_kib} KiB of Argon2 memory, the limit is {memory_max}"))
                } else if work > limits.argon2_work_kib {
                    Some(format!("{time} Argon2 passes over {memory_kib} KiB are above the limit"))
                } else {
                    None
                }
            }
        }
    }

    /// Whether the parameters are within the format's own bounds (checks 26, 27).
    pub fn out_of_bounds(&self) -> Option<String> {
        let bad = match *self {
            Kdf::Pbkdf2 { iterations, .. } => iterations == 0 || iterations > 1 << 31,
            Kdf::Argon2 { time, memory_kib, lanes, .. } => {
                !(1..=ARGON2_TIME_MAX).contains(&time)
                    || !(1..=ARGON2_LANES_MAX).contains(&lanes)
                    || !(8 * lanes..=ARGON2_MEMORY_MAX_KIB).contains(&memory_kib)
            }
        };
        bad.then(|| format!("{self} is outside the bounds of the format"))
    }

    /// Derives `len` bytes.
    pub(crate) fn derive(&self, secret: &Key, len: usize, limits: &Limits) -> Result<Key> {
        if let Some(why) = self.out_of_bounds().or_else(|| self.too_expensive(limits)) {
            return Err(Error::refused(27, why));
        }
        let mut out = Key::zeroed(len);
        match self {
            Kdf::Pbkdf2 { hash, iterations, salt } => {
                let stop = || limits.stopped();
                if !hash.pbkdf2(secret.bytes(), salt, *iterations, out.bytes_mut(), &stop) {
                    return Err(Error::Interrupted);
                }
            }
            Kdf::Argon2 { kind, time, memory_kib, lanes, salt } => {
                argon2(*kind, *time, *memory_kib, *lanes, secret, salt, &mut out)?;
            }
        }
        if limits.stopped() { Err(Error::Interrupted) } else { Ok(out) }
    }
}

impl std::fmt::Display for Kdf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Kdf::Pbkdf2 { hash, iterations, .. } => {
                write!(f, "pbkdf2-{} with {iterations} iterations", hash.name())
            }
            Kdf::Argon2 { kind, time, memory_kib, lanes, .. } => {
                write!(f, "{} with {time} passes, {memory_kib} KiB, {lanes} lanes", kind.name())
            }
        }
    }
}

fn argon2(
    kind: Argon2Kind,
    time: u32,
    memory_kib: u32,
    lanes: u32,
    secret: &Key,
    salt: &[u8; SALT_LEN],
    out: &mut Key,
) -> Result<()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let failed = |e: argon2::Error| Error::refused(27, format!("{}: {e}", kind.name()));
    let params = Params::new(memory_kib, time, lanes, Some(out.len())).map_err(failed)?;
    let algorithm = match kind {
        Argon2Kind::I => Algorithm::Argon2i,
        Argon2Kind::Id => Algorithm::Argon2id,
    };
    let mut memory: Vec<Block> = Vec::new();
    let blocks = params.block_count();
    memory.try_reserve_exact(blocks).map_err(|_| {
        Error::refused(27, format!("{memory_kib} KiB of Argon2 memory cannot be allocated"))
    })?;
    memory.resize(blocks, Block::default());
    let done = Argon2::new(algorithm, Version::V0x13, params).hash_password_into_with_memory(
        secret.bytes(),
        salt,
        out.bytes_mut(),
        &mut memory,
    );
    memory.zeroize();
    done.map_err(failed)
}

/// Memory of the machine; all of it when the system does not say.
fn physical_memory_kib() -> u32 {
    Memory::of_this_machine().total_kib
}

/// What the system says of the machine's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Memory {
    total_kib: u32,
    /// What can be had without swapping.
    available_kib: u32,
    swap_kib: u32,
}

impl Memory {
    fn of_this_machine() -> Memory {
        Memory::parse(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default())
    }

    /// From the lines of `/proc/meminfo`. What is missing there is taken for plenty.
    fn parse(text: &str) -> Memory {
        let field = |name: &str| {
            text.lines()
                .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))
                .and_then(|l| l.split_whitespace().next())
                .and_then(|n| n.parse::<u64>().ok())
                .map_or(u32::MAX, |kib| u32::try_from(kib).unwrap_or(u32::MAX))
        };
        Memory {
            total_kib: field("MemTotal"),
            available_kib: field("MemAvailable"),
            swap_kib: field("SwapTotal"),
        }
    }

    /// Most that a derivation that will be repeated at every unlocking may take: half of the machine's
    /// memory; half of what is free on a small machine that cannot swap.
    fn for_a_new_slot_kib(self) -> u32 {
        let small = self.total_kib < 4 << 20 && self.swap_kib == 0;
        let of = if small { self.available_kib.min(self.total_kib) } else { self.total_kib };
        of / 2
    }
}

/// What a new keyslot's derivation should cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cost {
    /// Measured on this machine: about `target` long, Argon2 within the memory.
    Benchmark {
        /// How long unlocking should take here.
        target: Duration,
        /// Most Argon2 memory, in KiB; half of the machine's memory caps it too, half of what is free
        /// on a machine below 4 GiB without swap.
        memory_kib_max: u32,
        /// Most Argon2 lanes; the number of processors caps it too.
        lanes_max: u32,
    },
    /// As the operator says.
    Forced {
        /// PBKDF2 iterations, or Argon2 passes.
        iterations: u32,
        /// Argon2 memory in KiB.
        memory_kib: u32,
        /// Argon2 lanes.
        lanes: u32,
    },
}

impl Default for Cost {
    /// As the reference: two seconds, one GiB, four lanes.
    fn default() -> Cost {
        Cost::Benchmark {
            target: Duration::from_millis(2000),
            memory_kib_max: 1 << 20,
            lanes_max: 4,
        }
    }
}

/// Which derivation a new keyslot gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pbkdf {
    Pbkdf2(Hash),
    Argon2(Argon2Kind),
}

/// Time since some fixed point: passed in, because time belongs to the runtime.
pub type Clock<'a> = &'a dyn Fn() -> Duration;

/// Chooses the parameters of a new derivation of `key_len` bytes, with a fresh salt.
pub(crate) fn choose(pbkdf: Pbkdf, cost: Cost, key_len: usize, clock: Clock<'_>) -> Result<Kdf> {
    let mut salt = [0; SALT_LEN];
    crate::key::fill_random(&mut salt)?;
    let kdf = match (pbkdf, cost) {
        (Pbkdf::Pbkdf2(hash), Cost::Forced { iterations, .. }) => {
            Kdf::Pbkdf2 { hash, iterations, salt }
        }
        (Pbkdf::Argon2(kind), Cost::Forced { iterations, memory_kib, lanes }) => {
            Kdf::Argon2 { kind, time: iterations, memory_kib, lanes, salt }
        }
        (Pbkdf::Pbkdf2(hash), Cost::Benchmark { target, .. }) => {
            let iterations = benchmark_pbkdf2(hash, key_len, target, clock);
            Kdf::Pbkdf2 { hash, iterations, salt }
        }
        (Pbkdf::Argon2(kind), Cost::Benchmark { target, memory_kib_max, lanes_max }) => {
            benchmark_argon2(kind, key_len, target, memory_kib_max, lanes_max, clock)?.salted(salt)
        }
    };
    let floor = match kdf {
        Kdf::Pbkdf2 { iterations, .. } if iterations < PBKDF2_ITERATIONS_MIN => {
            Some(format!("at least {PBKDF2_ITERATIONS_MIN} PBKDF2 iterations"))
        }
        Kdf::Argon2 { time, .. } if time < ARGON2_TIME_MIN => {
            Some(format!("at least {ARGON2_TIME_MIN} Argon2 passes"))
        }
        Kdf::Argon2 { memory_kib, .. } if memory_kib < ARGON2_MEMORY_MIN_KIB => {
            Some(format!("at least {ARGON2_MEMORY_MIN_KIB} KiB of Argon2 memory"))
        }
        _ => kdf.out_of_bounds(),
    };
    match floor {
        Some(why) => Err(Error::Options(format!("key derivation: {why}"))),
        None => Ok(kdf),
    }
}

impl Kdf {
    fn salted(mut self, fresh: [u8; SALT_LEN]) -> Kdf {
        match &mut self {
            Kdf::Pbkdf2 { salt, .. } | Kdf::Argon2 { salt, .. } => *salt = fresh,
        }
        self
    }
}

/// Shortest run that counts as a measurement.
const MEASURED: Duration = Duration::from_millis(250);

fn measure(clock: Clock<'_>, work: impl FnOnce()) -> Duration {
    let start = clock();
    work();
    clock().saturating_sub(start).max(Duration::from_micros(1))
}

/// `n * by / of`, within `u32`.
fn scaled(n: u32, by: Duration, of: Duration) -> u32 {
    let scaled = u128::from(n) * by.as_micros() / of.as_micros().max(1);
    u32::try_from(scaled).unwrap_or(u32::MAX)
}

/// Iterations that take about `target` here: doubled until the run is long enough to measure.
pub(crate) fn benchmark_pbkdf2(
    hash: Hash,
    key_len: usize,
    target: Duration,
    clock: Clock<'_>,
) -> u32 {
    let mut out = Key::zeroed(key_len);
    let mut iterations = 1 << 13;
    loop {
        let took = measure(clock, || {
            let salt = [0x55; SALT_LEN];
            hash.pbkdf2(b"benchmark", &salt, iterations, out.bytes_mut(), &|| false);
        });
        if took >= MEASURED.min(target) || iterations >= 1 << 28 {
            return scaled(iterations, target, took).clamp(PBKDF2_ITERATIONS_MIN, 1 << 30);
        }
        iterations *= 2;
    }
}

/// Memory first, then passes, until a run is long enough to measure; then towards the target.
fn benchmark_argon2(
    kind: Argon2Kind,
    key_len: usize,
    target: Duration,
    memory_kib_max: u32,
    lanes_max: u32,
    clock: Clock<'_>,
) -> Result<Kdf> {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get().min(64));
    let lanes = lanes_max.clamp(1, u32::try_from(cpus).expect("at most 64"));
    let most = memory_kib_max.min(Memory::of_this_machine().for_a_new_slot_kib());
    let most = most.min(ARGON2_MEMORY_MAX_KIB);
    let least = ARGON2_MEMORY_BENCH_MIN_KIB.min(most).max(8 * lanes);
    let most = most.max(least);
    let secret = Key::copy_from(b"benchmark");
    let (mut time, mut memory_kib) = (ARGON2_TIME_MIN, least);
    for _ in 0..8 {
        let mut out = Key::zeroed(key_len);
        let mut result = Ok(());
        let took = measure(clock, || {
            let salt = [0x55; SALT_LEN];
            result = argon2(kind, time, memory_kib, lanes, &secret, &salt, &mut out);
        });
        result?;
        let aim = if took < MEASURED.min(target) { MEASURED.min(target) * 2 } else { target };
        let close = took.abs_diff(target) < target / 20;
        let (t, m) = steer(time, memory_kib, aim, took, least, most);
        if close || (t, m) == (time, memory_kib) {
            break;
        }
        (time, memory_kib) = (t, m);
    }
    Ok(Kdf::Argon2 { kind, time, memory_kib, lanes, salt: [0; SALT_LEN] })
}

/// Parameters that should take `aim`, given that the present ones took `took`.
fn steer(
    time: u32,
    memory_kib: u32,
    aim: Duration,
    took: Duration,
    least: u32,
    most: u32,
) -> (u32, u32) {
    let work = u64::from(time) * u64::from(memory_kib);
    let wanted = u128::from(work) * aim.as_micros() / took.as_micros().max(1);
    let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
    let memory = u32::try_from(wanted / u64::from(ARGON2_TIME_MIN)).unwrap_or(u32::MAX);
    let memory = memory.clamp(least, most);
    let time = u32::try_from(wanted / u64::from(memory)).unwrap_or(u32::MAX);
    (time.clamp(ARGON2_TIME_MIN, ARGON2_TIME_MAX), memory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{hex, to_hex};
    use std::cell::Cell;

    fn salt(text: &str) -> [u8; SALT_LEN] {
        hex(text).try_into().expect("32 bytes")
    }

    #[test]
    fn pbkdf2_gives_the_derived_key_of_the_luks1_vector() {
        let kdf = Kdf::Pbkdf2 {
            hash: Hash::Sha256,
            iterations: 1000,
            salt: salt("95fee57b7d827e9b5a4c8496f5b30a427f1ef3d86c95f500c918504c04e36f29"),
        };
        let secret = Key::copy_from(b"varve-test-passphrase-1");
        let key = kdf.derive(&secret, 64, &Limits::default()).unwrap();
        assert_eq!(
            to_hex(key.bytes()),
            "916ab5f43701ff1440677498856140ba1513bd9886ec1f037bf4701d0df97763\
             b2c4cf158d748eeead40438cc6e884fad3afbb1335d616ee864a5d64396fbeae"
        );
    }

    #[test]
    fn argon2id_gives_the_derived_key_of_the_luks2_vector() {
        use base64::prelude::*;
        let salt = BASE64_STANDARD.decode("OSxVmH62RtqUxWR5GhmPrcLsuCAuzKvageZcgp4IAP0=").unwrap();
        let kdf = Kdf::Argon2 {
            kind: Argon2Kind::Id,
            time: 4,
            memory_kib: 32,
            lanes: 1,
            salt: salt.try_into().unwrap(),
        };
        let secret = Key::copy_from(b"varve-test-passphrase-3");
        let key = kdf.derive(&secret, 64, &Limits::default()).unwrap();
        assert_eq!(
            to_hex(key.bytes()),
            "b8cdbdcd47cd5682c1cdb6303c35929609c64e87085b6e30b0c02a5fa4eddd12\
             6eeb1eecea801dab6bc1bfcb6e5093dff5a588e67780506acb5c3eeee26b85f4"
        );
    }

    #[test]
    fn bombs_are_refused_before_any_work() {
        let secret = Key::copy_from(b"x");
        let salt = [0; SALT_LEN];
        let id = Argon2Kind::Id;
        let bombs = [
            Kdf::Pbkdf2 { hash: Hash::Sha1, iterations: 1 << 31, salt },
            Kdf::Pbkdf2 { hash: Hash::Sha1, iterations: 0, salt },
            Kdf::Argon2 { kind: id, time: 4, memory_kib: 4 << 20, lanes: 4, salt },
            Kdf::Argon2 { kind: id, time: 1 << 24, memory_kib: 1 << 20, lanes: 4, salt },
            Kdf::Argon2 { kind: id, time: 4, memory_kib: 7, lanes: 1, salt },
            Kdf::Argon2 { kind: id, time: 4, memory_kib: 1 << 20, lanes: 65, salt },
            Kdf::Argon2 { kind: id, time: 0, memory_kib: 1 << 20, lanes: 1, salt },
        ];
        for bomb in bombs {
            let refused = bomb.derive(&secret, 64, &Limits::default());
            assert!(matches!(refused, Err(Error::Refused { .. })), "{bomb}");
        }
        let stop = Arc::new(AtomicBool::new(true));
        let limits = Limits { stop: Some(stop), ..Limits::default() };
        let long = Kdf::Pbkdf2 { hash: Hash::Sha1, iterations: 1 << 27, salt };
        assert!(matches!(long.derive(&secret, 64, &limits), Err(Error::Interrupted)));
    }

    #[test]
    fn a_small_machine_without_swap_gives_half_of_what_is_free() {
        let said = |total: u64, available: u64, swap: u64| {
            let text = format!(
                "MemTotal: {total} kB\nMemFree: 1 kB\nMemAvailable: {available} kB\n\
                 SwapCached: 7 kB\nSwapTotal: {swap} kB\n"
            );
            Memory::parse(&text).for_a_new_slot_kib()
        };
        assert_eq!(said(2 << 20, 300 << 10, 0), 150 << 10);
        assert_eq!(said(2 << 20, 300 << 10, 1), 1 << 20);
        assert_eq!(said(4 << 20, 300 << 10, 0), 2 << 20);
        assert_eq!(Memory::parse("").for_a_new_slot_kib(), u32::MAX / 2);
    }

    #[test]
    fn forced_costs_have_floors() {
        let clock = || Duration::ZERO;
        let forced = |iterations, memory_kib| Cost::Forced { iterations, memory_kib, lanes: 1 };
        let pbkdf2 = Pbkdf::Pbkdf2(Hash::Sha256);
        let argon2 = Pbkdf::Argon2(Argon2Kind::Id);
        assert!(choose(pbkdf2, forced(999, 0), 64, &clock).is_err());
        assert!(choose(pbkdf2, forced(1000, 0), 64, &clock).is_ok());
        assert!(choose(argon2, forced(3, 32), 64, &clock).is_err());
        assert!(choose(argon2, forced(4, 31), 64, &clock).is_err());
        assert!(choose(argon2, forced(4, 32), 64, &clock).is_ok());
        let (a, b) =
            (choose(argon2, forced(4, 32), 64, &clock), choose(argon2, forced(4, 32), 64, &clock));
        assert_ne!(a.unwrap(), b.unwrap(), "salts are fresh");
    }

    #[test]
    fn a_benchmark_scales_to_its_target() {
        // A clock that gives every measured run one second.
        let now = Cell::new(Duration::ZERO);
        let clock = || {
            now.set(now.get() + Duration::from_secs(1));
            now.get()
        };
        let n = benchmark_pbkdf2(Hash::Sha256, 64, Duration::from_secs(3), &clock);
        assert_eq!(n, 3 << 13);
        // Twice the time: memory grows to its cap first, then passes.
        let (second, four) = (Duration::from_secs(1), Duration::from_secs(4));
        assert_eq!(steer(4, 65_536, four, second, 65_536, 1 << 20), (4, 262_144));
        assert_eq!(steer(4, 1 << 20, four, second, 65_536, 1 << 20), (16, 1 << 20));
        assert_eq!(steer(16, 1 << 20, second, four, 65_536, 1 << 20), (4, 1 << 20));
        assert_eq!(steer(4, 65_536, second, four, 65_536, 1 << 20), (4, 65_536));
    }

    #[test]
    fn the_argon2_benchmark_stays_inside_its_caps() {
        // Every run seems to take what was asked for, so the first guess is the answer.
        let target = Duration::from_millis(400);
        let now = Cell::new(Duration::ZERO);
        let clock = || {
            now.set(now.get() + target);
            now.get()
        };
        let kdf = benchmark_argon2(Argon2Kind::Id, 64, target, 80 << 10, 9, &clock).unwrap();
        let Kdf::Argon2 { time, memory_kib, lanes, .. } = kdf else { panic!("argon2") };
        assert_eq!(time, ARGON2_TIME_MIN);
        assert_eq!(memory_kib, 64 << 10);
        assert!((1..=9).contains(&lanes));
    }
}
