//! What the three instruction sets share: the walk over sectors and strides, and the rounds.
//!
//! AES keeps half of the processor's vector units busy, and the arithmetic of tweaks costs nothing if it
//! runs on the other half meanwhile. In front of the rounds it would not: a stride is about as long as
//! what the processor looks ahead, so the AES units would wait. So the tweaks of the *next* stride are
//! made between the rounds of this one, and the compiler is kept from moving them to the front
//! (`hold`):
//!
//! ```text
//! stride n     xor  round 1  round 2  round 3  ...  round 7  ...  round 14, xor
//! stride n+1      T0       T1       T2       T3   ...      T7
//! ```
//!
//! A macro and not a trait: functions of a trait cannot carry `target_feature`, and without it nothing
//! is inlined and every vector goes through memory. For the same reason `stride` has one caller only.

/// The block once for each value, which is a constant in it: a loop the compiler need not unroll.
macro_rules! unroll {
    ($n:ident in $($value:literal)* $body:block) => {
        $({
            const $n: usize = $value;
            $body
        })*
    };
}

/// Writes `run` for the vector type `V` of `$lanes` blocks, in registers of class `$register`. The module
/// that calls it has, with the same features: `load`, `store`, `broadcast`, `xor`, `xor3`, `enc`,
/// `enc_last`, `dec`, `dec_last`; `spread(block)`: a sector's first vector of tweaks, which is number 0 of its
/// first stride; and `forward(n, tweaks)`: number `n`, from number `before(n)`. Number 8 is number 0 of the
/// next stride.
macro_rules! kernel {
    ($features:literal, $lanes:literal, $register:ident) => {
        /// Vectors in flight: enough to hide the latency of a round on every processor that has it.
        const VECTORS: usize = 8;
        const VECTOR: usize = 16 * $lanes;
        const STRIDE: usize = VECTORS * VECTOR;

        /// Turns the job's IVs into tweaks, and its data into what it becomes.
        #[target_feature(enable = $features)]
        pub(super) fn run(schedules: &Schedules, job: Job<'_>) {
            match (schedules.rounds, job.direction) {
                (10, Direction::Encrypt) => walk::<10, true>(schedules, job),
                (10, Direction::Decrypt) => walk::<10, false>(schedules, job),
                (_, Direction::Encrypt) => walk::<14, true>(schedules, job),
                (_, Direction::Decrypt) => walk::<14, false>(schedules, job),
            }
        }

        #[target_feature(enable = $features)]
        fn walk<const ROUNDS: usize, const ENCRYPT: bool>(
            schedules: &Schedules,
            mut job: Job<'_>,
        ) {
            encrypt_tweaks::<ROUNDS>(schedules.tweak(), job.tweaks);
            let keys = if ENCRYPT { schedules.encrypt() } else { schedules.decrypt() };
            let (sectors, strides) = (job.data.from().len() / job.unit, job.unit / STRIDE);
            let start = |sector| spread(job.tweaks.get(sector).unwrap_or(&[0; 16]));
            let mut now = all_from(start(0));
            for sector in 0..sectors {
                for n in 0..strides {
                    let first = if n + 1 < strides {
                        forward(VECTORS, now[before(VECTORS)])
                    } else {
                        start(sector + 1)
                    };
                    let at = sector * strides + n;
                    let x = load_all(&job.data.from().as_chunks().0[at]);
                    let (x, next) = stride::<ROUNDS, ENCRYPT>(keys, x, now, first);
                    store_all(&mut job.data.to().as_chunks_mut().0[at], x);
                    now = next;
                }
            }
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn encrypt_tweaks<const ROUNDS: usize>(keys: &RoundKeys, tweaks: &mut [[u8; 16]]) {
            // No two of these depend on each other: the processor runs several at once.
            for tweaks in tweaks.as_flattened_mut().as_chunks_mut().0 {
                let mut x = [xor(load(tweaks), broadcast(&keys[0]))];
                for key in &keys[1..ROUNDS] {
                    round::<1, true>(&mut x, key);
                }
                store(tweaks, enc_last(x[0], broadcast(&keys[ROUNDS])));
            }
        }

        /// The tweaks of a stride that none came before, made in front of it.
        #[inline]
        #[target_feature(enable = $features)]
        fn all_from(first: V) -> [V; VECTORS] {
            let mut all = [first; VECTORS];
            unroll!(N in 1 2 3 4 5 6 7 { all[N] = forward(N, all[before(N)]); });
            all
        }

        /// A stride under the tweaks `now`; and the tweaks of the stride that starts with `first`. The
        /// tweaks go in with the first and the last round key, which spares an instruction each.
        #[inline]
        #[target_feature(enable = $features)]
        fn stride<const ROUNDS: usize, const ENCRYPT: bool>(
            keys: &RoundKeys,
            mut x: [V; VECTORS],
            now: [V; VECTORS],
            first: V,
        ) -> ([V; VECTORS], [V; VECTORS]) {
            let mut next = [first; VECTORS];
            let key = broadcast(&keys[0]);
            for (x, tweak) in x.iter_mut().zip(now) {
                *x = xor3(*x, tweak, key);
            }
            unroll!(N in 1 2 3 4 5 6 7 {
                round::<VECTORS, ENCRYPT>(&mut x, &keys[N]);
                hold(&mut x, &mut next[N - 1]);
                hold(&mut x, &mut next[before(N)]);
                next[N] = forward(N, next[before(N)]);
            });
            for key in &keys[VECTORS..ROUNDS] {
                round::<VECTORS, ENCRYPT>(&mut x, key);
                hold(&mut x, &mut next[VECTORS - 1]);
            }
            let key = broadcast(&keys[ROUNDS]);
            for (x, tweak) in x.iter_mut().zip(now) {
                let last = xor(key, tweak);
                *x = if ENCRYPT { enc_last(*x, last) } else { dec_last(*x, last) };
            }
            (x, next)
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn round<const N: usize, const ENCRYPT: bool>(x: &mut [V; N], key: &[u8; 16]) {
            let key = broadcast(key);
            for x in x {
                *x = if ENCRYPT { enc(*x, key) } else { dec(*x, key) };
            }
        }

        /// Nothing, but the compiler cannot know: what is computed from any of these afterwards stays
        /// behind what all of them were computed from before.
        #[inline]
        #[target_feature(enable = $features)]
        fn hold([a, b, c, d, e, f, g, h]: &mut [V; VECTORS], tweak: &mut V) {
            // SAFETY: no instruction, and every register is given back as it came.
            unsafe {
                std::arch::asm!(
                    "/* {} {} {} {} {} {} {} {} {} */",
                    inout($register) *a,
                    inout($register) *b,
                    inout($register) *c,
                    inout($register) *d,
                    inout($register) *e,
                    inout($register) *f,
                    inout($register) *g,
                    inout($register) *h,
                    inout($register) *tweak,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn load_all(stride: &[u8; STRIDE]) -> [V; VECTORS] {
            let (parts, _) = stride.as_chunks::<VECTOR>();
            let mut x = [load(&parts[0]); VECTORS];
            for (x, part) in x.iter_mut().zip(parts) {
                *x = load(part);
            }
            x
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn store_all(stride: &mut [u8; STRIDE], x: [V; VECTORS]) {
            for (part, x) in stride.as_chunks_mut::<VECTOR>().0.iter_mut().zip(x) {
                store(part, x);
            }
        }
    };
}

pub(super) use {kernel, unroll};
