//! Stories of corruption: each is run with a known defect, which must be caught, and without it, which must
//! pass, over the same seeds.

/// What a run says: fine, or what went wrong where.
pub(crate) type Verdict = Result<(), String>;

pub(crate) const SEEDS: std::ops::Range<u64> = 0..40;

/// The clean layer passes every seed; the mutated one fails some.
#[track_caller]
pub(crate) fn proven<M>(
    story: &str,
    run: impl Fn(u64, Option<M>) -> Verdict,
    mutation: impl Fn() -> M,
) {
    for seed in SEEDS {
        if let Err(e) = run(seed, None) {
            panic!("{story}, seed {seed}: {e}");
        }
    }
    let caught = SEEDS.filter(|&seed| run(seed, Some(mutation())).is_err()).count();
    assert!(caught > 0, "{story}: the defect went unnoticed over {} seeds", SEEDS.end);
}
