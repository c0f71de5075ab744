//! What the three instruction sets share: the walk over sectors and strides, and the rounds.
//!
//! A macro and not a trait: functions of a trait cannot carry `target_feature`, and without it nothing
//! is inlined and every vector goes through memory.

/// Writes `run` for the vector type `V` of `$lanes` blocks. The module that calls it has, with the same
/// features: `load`, `store`, `broadcast`, `xor`, `xor3`, `enc`, `enc_last`, `dec`, `dec_last`; and
/// `tweaks(first)`: the tweaks of a stride, and the first one of the next; `spread(block)`: the first
/// one of a sector.
macro_rules! kernel {
    ($features:literal, $lanes:literal) => {
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
        fn walk<const ROUNDS: usize, const ENCRYPT: bool>(schedules: &Schedules, job: Job<'_>) {
            for tweaks in job.tweaks.as_flattened_mut().as_chunks_mut::<VECTOR>().0 {
                // No two of these depend on each other: the processor runs several at once.
                let [tweak] = rounds::<1, ROUNDS, true>(schedules.tweak(), [load(tweaks)], None);
                store(tweaks, tweak);
            }
            let keys = if ENCRYPT { schedules.encrypt() } else { schedules.decrypt() };
            match job.data {
                Place::Same(data) => {
                    for (first, sector) in job.tweaks.iter().zip(data.chunks_exact_mut(job.unit)) {
                        let mut tweak = spread(first);
                        for stride in sector.as_chunks_mut::<STRIDE>().0 {
                            let (now, next) = tweaks(tweak);
                            let out = rounds::<VECTORS, ROUNDS, ENCRYPT>(
                                keys,
                                load_all(stride),
                                Some(now),
                            );
                            store_all(stride, out);
                            tweak = next;
                        }
                    }
                }
                Place::Apart(from, to) => {
                    let sectors = from.chunks_exact(job.unit).zip(to.chunks_exact_mut(job.unit));
                    for (first, (from, to)) in job.tweaks.iter().zip(sectors) {
                        let mut tweak = spread(first);
                        let strides = from.as_chunks::<STRIDE>().0.iter();
                        for (from, to) in strides.zip(to.as_chunks_mut::<STRIDE>().0) {
                            let (now, next) = tweaks(tweak);
                            let out =
                                rounds::<VECTORS, ROUNDS, ENCRYPT>(keys, load_all(from), Some(now));
                            store_all(to, out);
                            tweak = next;
                        }
                    }
                }
            }
        }

        /// All rounds over `N` vectors side by side. The tweaks go in with the first and the last
        /// round key, which spares an instruction each.
        #[inline]
        #[target_feature(enable = $features)]
        fn rounds<const N: usize, const ROUNDS: usize, const ENCRYPT: bool>(
            keys: &[[u8; 16]],
            mut x: [V; N],
            tweaks: Option<[V; N]>,
        ) -> [V; N] {
            let (first, last) = (broadcast(&keys[0]), broadcast(&keys[ROUNDS]));
            for i in 0..N {
                x[i] = match &tweaks {
                    Some(t) => xor3(x[i], t[i], first),
                    None => xor(x[i], first),
                };
            }
            for key in &keys[1..ROUNDS] {
                let key = broadcast(key);
                for x in &mut x {
                    *x = if ENCRYPT { enc(*x, key) } else { dec(*x, key) };
                }
            }
            for i in 0..N {
                let last = match &tweaks {
                    Some(t) => xor(last, t[i]),
                    None => last,
                };
                x[i] = if ENCRYPT { enc_last(x[i], last) } else { dec_last(x[i], last) };
            }
            x
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

pub(super) use kernel;
