//! `varve crypt reproduce`: metadata corruption on encrypted disks, as reported in March 2024, from a seed.
//!
//! A file system that reads a block twice, and a decryption that works in the memory which others read
//! already: each is harmless alone. `story.rs` has the world; here the seeds are tried and the finds told.

mod story;

use crate::args::CryptReproduce;
use crate::cmd::output;
use crate::failure::Outcome;
use serde::Serialize;
use std::io::Write;
use story::{Blocks, Layer, Seen};

#[derive(Serialize)]
struct Report {
    /// A find per way of decrypting; none where all seeds went by.
    with_the_defect: Vec<Find>,
    without_it: Clean,
}

#[derive(Serialize)]
struct Find {
    decryption: &'static str,
    seeds_tried: u64,
    seed: Option<u64>,
    seen: Option<Seen>,
}

#[derive(Serialize)]
struct Clean {
    seeds: u64,
    /// Looks at published blocks that found plaintext.
    looks: u64,
    seen: Option<Seen>,
}

pub(super) fn run(args: &CryptReproduce) -> anyhow::Result<Outcome> {
    let blocks = Blocks::make()?;
    let seeds = match args.seed {
        Some(seed) => seed..seed.saturating_add(1),
        None => 0..args.seeds,
    };
    let ways = [("inline", Layer::Inline), ("by a worker", Layer::Worker)];
    let with_the_defect = ways
        .map(|(decryption, layer)| {
            let mut find = Find { decryption, seeds_tried: 0, seed: None, seen: None };
            for seed in seeds.clone() {
                find.seeds_tried += 1;
                find.seen = story::run(seed, &blocks, layer).seen;
                if find.seen.is_some() {
                    find.seed = Some(seed);
                    break;
                }
            }
            find
        })
        .into();
    let mut without_it = Clean { seeds: 0, looks: 0, seen: None };
    for seed in seeds {
        let run = story::run(seed, &blocks, Layer::Sound);
        without_it.seeds += 1;
        without_it.looks += run.looks;
        without_it.seen = without_it.seen.or(run.seen);
    }
    let report = Report { with_the_defect, without_it };
    match args.json {
        true => output::json(&report)?,
        false => print(&report)?,
    }
    let shown = report.with_the_defect.iter().all(|find| find.seen.is_some());
    let clean = report.without_it.seen.is_none();
    Ok(if shown && clean { Outcome::Fine } else { Outcome::Problems })
}

fn print(report: &Report) -> anyhow::Result<()> {
    let mut out = output::stdout();
    writeln!(
        out,
        "a btrfs over two encrypted disks, four readers, a block that is read twice at a time\n\n\
         with the defect: blocks are decrypted in the memory that others see"
    )?;
    for find in &report.with_the_defect {
        let how = find.decryption;
        match (find.seed, &find.seen) {
            (Some(seed), Some(seen)) => {
                writeln!(out, "  decryption {how}: seed {seed} shows it")?;
                tell(&mut out, seen)?;
            }
            _ => writeln!(out, "  decryption {how}: not in {} seeds", find.seeds_tried)?,
        }
    }
    let clean = &report.without_it;
    writeln!(out, "\nwithout it: every reader has memory of its own until the block is whole")?;
    match &clean.seen {
        None => writeln!(
            out,
            "  {} seeds pass: {} looks at published blocks, each found plaintext",
            clean.seeds, clean.looks
        )?,
        Some(seen) => tell(&mut out, seen)?,
    }
    out.flush()?;
    Ok(())
}

fn tell(out: &mut impl Write, seen: &Seen) -> std::io::Result<()> {
    writeln!(
        out,
        "    step {}: reader {} uses block {} of tree {} on disk {}, and sees in bytes {} to {}\n      \
         {}  ciphertext\n      {}  is what they are\n    the tree checker: {}",
        seen.step,
        seen.reader,
        seen.block,
        seen.tree,
        seen.disk,
        seen.byte,
        seen.byte + 15,
        seen.found,
        seen.clear,
        seen.verdict
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C02 and C03: the defect shows, inline and by a worker, and the sound layer passes the same seeds.
    #[test]
    fn the_defect_shows_and_the_sound_layer_passes_the_same_seeds() {
        let blocks = Blocks::make().unwrap();
        for layer in [Layer::Inline, Layer::Worker] {
            let first =
                (0..40).find_map(|seed| Some((seed, story::run(seed, &blocks, layer).seen?)));
            let (seed, seen) = first.expect("the defect goes unnoticed");
            assert_ne!(seen.found, seen.clear);
            assert!(!seen.verdict.contains("nothing"), "{}", seen.verdict);
            assert_eq!(story::run(seed, &blocks, layer).seen, Some(seen), "a seed is a world");
        }
        for seed in 0..40 {
            let run = story::run(seed, &blocks, Layer::Sound);
            assert_eq!(run.seen, None, "seed {seed}");
            assert!(run.looks > 0);
        }
    }
}
