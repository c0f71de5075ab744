//! A seeded world: two disks, a stack over them, an export over that, and clients who do their worst.
//!
//! One seed is one world: the order of tasks, the disks' times and faults, what the clients ask for,
//! when the power goes and what it leaves. Each *life* of the stack is opened from what the one
//! before left, read in full and compared with the [`Model`]; then the clients work until the power
//! goes or the work is done.
//!
//! ```text
//! for seed in seeds(200) {
//!     World::new(seed).faults(Plan::power_cuts()).run(&stack::bare(), ops(500));
//! }
//! ```

mod client;
mod life;

use crate::clock::Deadline;
use crate::fault::Plan;
use crate::model::{Model, Wrong};
use crate::stack::Stack;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::Duration;
use varve_block::dev::sim::Image;
use varve_block::{Prng, Sim};

/// What the clients do.
#[derive(Clone, Copy, Debug)]
pub struct Ops {
    /// Requests in each life.
    pub count: u64,
    /// How many ask at the same time.
    pub clients: usize,
    /// Lanes that the clients are spread over. The stack lives on the first.
    pub lanes: usize,
    /// Longest request in bytes.
    pub longest: u64,
    /// Bytes of the device they crowd into.
    pub arena: u64,
    /// Every request starts and ends on a multiple of this.
    pub align: u64,
    /// Of 100 requests: writes. The others are spread over all there is.
    pub writes: u64,
    pub trims: bool,
    /// Without, every read is a flush instead: what only a cut can show.
    pub reads: bool,
    /// An operator quiesces the export now and then, and swaps its device. Each client keeps to
    /// bytes of its own then: what was held together has no order.
    pub operator: bool,
}

/// So many requests in each life, of any alignment, by eight clients.
pub fn ops(count: u64) -> Ops {
    Ops {
        count,
        clients: 8,
        lanes: 1,
        operator: false,
        longest: 40_000,
        arena: 256 << 10,
        align: 1,
        writes: 50,
        trims: true,
        reads: true,
    }
}

/// What a stack did that it must not.
#[derive(Debug, Clone)]
pub enum Violation {
    /// Bytes that the model does not allow.
    Bytes(Wrong),
    /// An error where nothing had gone wrong.
    Error(String),
    /// The stack did not open, or did not end, though it should.
    Stack(String),
    /// Nobody can go on.
    Stuck(String),
    Panic(String),
}

/// Why a world ended before its time.
#[derive(Debug, Clone)]
pub struct Failure {
    pub seed: u64,
    /// Which life of the stack, counted from 0.
    pub life: u32,
    pub what: Violation,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { seed, life, what } = self;
        match what {
            Violation::Bytes(wrong) => write!(f, "{wrong}")?,
            Violation::Error(text) => write!(f, "an error out of nowhere: {text}")?,
            Violation::Stack(text) => write!(f, "the stack failed: {text}")?,
            Violation::Stuck(text) => write!(f, "{text}")?,
            Violation::Panic(text) => write!(f, "panic: {text}")?,
        }
        write!(f, " [life {life} of seed {seed}; replay with VARVE_SEEDS={seed}]")
    }
}

/// What a world was, when all went well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// Equal only for equal histories.
    pub digest: u64,
    pub requests: u64,
    pub errors: u64,
    pub cuts: u32,
}

impl Report {
    fn fold(&mut self, word: u64) {
        self.digest = Prng::new(self.digest ^ word).next_u64();
    }
}

pub struct World {
    seed: u64,
    plan: Plan,
}

/// A life of the stack that goes on for so many steps goes nowhere.
const MAX_STEPS: u64 = 20_000_000;

impl World {
    pub fn new(seed: u64) -> World {
        World { seed, plan: Plan::default() }
    }

    pub fn faults(self, plan: Plan) -> World {
        World { plan, ..self }
    }

    /// Runs the world and reports, or tells what was not allowed.
    pub fn try_run<S: Stack>(&self, stack: &Rc<S>, ops: Ops) -> Result<Report, Failure> {
        let mut report = Report::default();
        let mut disks = (Image::new(stack.backing().len), Image::new(stack.cache().len));
        let mut model: Option<Model> = None;
        for life in 0..=self.plan.power_cuts {
            let failed = |what| Failure { seed: self.seed, life, what };
            let start = life::Start {
                disks,
                model,
                plan: self.plan.clone(),
                ops,
                first: life == 0,
                may_cut: life < self.plan.power_cuts,
            };
            let seed = Prng::new(self.seed ^ u64::from(life).rotate_left(48)).next_u64();
            let stack = Rc::clone(stack);
            let sim = Sim::new(seed).lanes(ops.lanes).max_steps(MAX_STEPS);
            let run = || sim.try_run(move |rt| life::live(rt, stack, start));
            // With the world, its tasks and their devices are gone: nothing half-done is looked at.
            let outcome = std::panic::catch_unwind(AssertUnwindSafe(run))
                .map_err(|panic| failed(Violation::Panic(panic_text(&*panic))))?;
            let end = outcome.map_err(|d| failed(Violation::Stuck(d.to_string())))?;
            let end = end.map_err(failed)?;
            report.requests += end.requests;
            report.errors += end.errors;
            report.cuts += u32::from(end.cut);
            for word in end.words {
                report.fold(word);
            }
            disks = end.disks;
            report.fold(disks.0.digest());
            report.fold(disks.1.digest());
            model = Some(end.model);
        }
        Ok(report)
    }

    /// Runs the world.
    ///
    /// # Panics
    /// When something was not allowed, naming the seed.
    pub fn run<S: Stack>(&self, stack: &Rc<S>, ops: Ops) -> Report {
        self.try_run(stack, ops).unwrap_or_else(|failure| panic!("{failure}"))
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "of an unknown kind".to_owned())
}

/// One test goes on with fresh seeds for at most so long.
const BOX: Duration = Duration::from_secs(6);

/// The seeds to try: those that `VARVE_SEEDS` names (`17,99`, or `5..1000`), or `count` fresh ones,
/// as far as there is time.
pub fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let (list, boxed) = match std::env::var("VARVE_SEEDS") {
        Ok(list) => (parse_seeds(&list), false),
        Err(_) => {
            let base = std::hash::RandomState::new().build_hasher().finish() >> 16;
            eprintln!("seeds {base}..{}", base + count);
            ((base..base + count).collect(), true)
        }
    };
    let end = Deadline::after(BOX);
    let mut tried = 0;
    list.into_iter().take_while(move |_| {
        tried += 1;
        !boxed || tried <= 3 || !end.passed()
    })
}

/// # Panics
/// When the list is not one: a typing error must not pass as "no seeds, no failures".
fn parse_seeds(list: &str) -> Vec<u64> {
    let number = |text: &str| -> u64 {
        let n = text.trim().parse();
        n.unwrap_or_else(|e| panic!("VARVE_SEEDS={list}: {text}: {e}"))
    };
    let ranges = list.split(',').map(|part| match part.split_once("..") {
        Some((from, to)) => number(from)..number(to),
        None => number(part)..number(part) + 1,
    });
    ranges.flatten().collect()
}

/// Runs worlds until one fails, as a deliberately wrong stack must.
///
/// # Panics
/// When none of them does: the harness is blind to this bug.
pub fn must_fail<S: Stack>(name: &str, plan: &Plan, stack: &Rc<S>, ops: Ops) -> Failure {
    let tries = 60;
    // Fixed seeds: that the bug can be found is a fact to keep, not a matter of luck.
    let found = (1..=tries).find_map(|seed| {
        let world = World::new(seed).faults(plan.clone());
        world.try_run(stack, ops).err()
    });
    let Some(failure) = found else {
        panic!("{name}: not noticed in {tries} worlds");
    };
    eprintln!("{name}: caught: {failure}");
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_listed_or_ranges() {
        assert_eq!(parse_seeds("17, 99,3..5"), [17, 99, 3, 4]);
    }

    #[test]
    #[should_panic(expected = "VARVE_SEEDS")]
    fn a_misspelt_seed_is_an_error() {
        parse_seeds("17;99");
    }
}
