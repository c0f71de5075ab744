//! Random damage, most of it sealed, from a seed: whatever the checker says, it says it soon, in bounded
//! memory and without panic, the same words twice, and without a write.

use crate::disk::{Disk, codes};
use crate::mutate::{Dice, mutate};
use std::ops::Range;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use varve_fs::check::Checked;

const DUMPS: &[&[u8]] = &[
    include_bytes!("../../../tests/images/070-btrfs-progs-dumps/020-keyed_block_ref.img"),
    include_bytes!("../../../tests/images/070-btrfs-progs-dumps/020-extent_data_ref.img"),
    include_bytes!("../../../tests/images/070-btrfs-progs-dumps/020-shared_data_ref_only.img"),
    include_bytes!("../../../tests/images/070-btrfs-progs-dumps/032-qgroup_corrupted.img"),
];
const FEW: u64 = 300;
/// One in so many is looked at twice.
const AGAIN: u64 = 64;
/// No mutant of these small images may take longer, on a machine that does other things too.
const SOON: Duration = Duration::from_secs(20);
/// The test itself holds the images.
const MEMORY_MAX: u64 = 1 << 30;

/// How many mutants, from which seed on, and whether the reference tool looks too.
struct Plan {
    seeds: Range<u64>,
    tool: bool,
}

impl Plan {
    fn of_environment() -> Plan {
        let number = |name| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
        let first = number("VARVE_MUTANTS_FROM").unwrap_or(0);
        let many = number("VARVE_MUTANTS").unwrap_or(FEW);
        Plan { seeds: first..first + many, tool: std::env::var_os("VARVE_MUTANTS_TOOL").is_some() }
    }
}

/// What the threads share.
struct Work {
    bases: Vec<Disk>,
    plan: Plan,
    next: AtomicU64,
    clean: AtomicU64,
}

/// What a thread is at, and since when.
type Now = Arc<Mutex<(String, Instant)>>;

impl Work {
    /// Takes seeds until there are none left. Gives what went wrong, if something did.
    fn run(&self, now: &Now) -> Result<(), String> {
        loop {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            if seed >= self.plan.seeds.end {
                return Ok(());
            }
            let (disk, what) = self.mutant(seed);
            begin(now, &what);
            let look = || std::panic::catch_unwind(|| disk.check());
            let verdict = look().map_err(|_| format!("{what}: a panic"))?;
            if seed.is_multiple_of(AGAIN) {
                let again = look().map_err(|_| format!("{what}: a panic, the second time"))?;
                if words(&again) != words(&verdict) {
                    return Err(format!("{what}: other words the second time"));
                }
            }
            let clean = verdict.as_ref().is_ok_and(|checked| checked.is_clean());
            self.clean.fetch_add(u64::from(clean), Ordering::Relaxed);
            if self.plan.tool {
                let ours = verdict.map(|checked| (checked.is_clean(), codes(&checked)));
                begin(now, &format!("btrfs check, {what}"));
                compare(&disk, &ours, &what);
            }
        }
    }

    fn mutant(&self, seed: u64) -> (Disk, String) {
        let mut dice = Dice::new(seed);
        let mut disk = self.bases[dice.below(self.bases.len())].clone();
        let mut done = vec![mutate(&mut disk, &mut dice)];
        for _ in 0..dice.below(3) {
            // One damage at a time is what two opinions can be compared over.
            if !self.plan.tool {
                done.push(mutate(&mut disk, &mut dice));
            }
        }
        (disk, format!("seed {seed}: {}", done.join(", ")))
    }
}

#[allow(clippy::disallowed_methods, reason = "real time, to see that it stays short")]
fn begin(now: &Now, what: &str) {
    *now.lock().expect("nobody panics with it") = (what.to_owned(), Instant::now());
}

/// All that a person would read.
fn words(verdict: &varve_fs::Result<Checked>) -> Vec<String> {
    match verdict {
        Ok(checked) => checked.findings.iter().map(|f| format!("{f:?}")).collect(),
        Err(error) => vec![format!("{error:?}")],
    }
}

/// A checker that never ends holds its thread, so another one looks at the clock.
#[test]
fn no_mutant_takes_the_checker_down() {
    let mut bases = vec![Disk::golden()];
    bases.extend(DUMPS.iter().map(|dump| Disk::of_dump(dump)));
    if let Some(folder) = std::env::var_os("VARVE_MUTANTS_OF") {
        let files = std::fs::read_dir(folder).expect("a folder");
        let mut paths: Vec<_> = files.map(|file| file.expect("an entry").path()).collect();
        paths.sort();
        bases = paths.iter().filter_map(|path| Disk::of_file(path)).collect();
        println!("mutants of {} of {} images", bases.len(), paths.len());
    }
    let plan = Plan::of_environment();
    let (first, many) = (plan.seeds.start, plan.seeds.end - plan.seeds.start);
    let next = AtomicU64::new(first);
    let work = Arc::new(Work { bases, plan, next, clean: AtomicU64::new(0) });
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let (said, ends) = mpsc::channel();
    let mut now = Vec::new();
    for _ in 0..threads {
        #[allow(clippy::disallowed_methods, reason = "real time, to see that it stays short")]
        let mine: Now = Arc::new(Mutex::new((String::new(), Instant::now())));
        now.push(Arc::clone(&mine));
        let (work, said) = (Arc::clone(&work), said.clone());
        #[allow(clippy::disallowed_methods, reason = "each runs a simulator of its own")]
        std::thread::spawn(move || said.send(work.run(&mine)));
    }
    let mut running = threads;
    while running > 0 {
        match ends.recv_timeout(Duration::from_secs(1)) {
            Ok(end) => {
                end.unwrap_or_else(|what| panic!("{what}"));
                running -= 1;
            }
            Err(_) => now.iter().for_each(in_time),
        }
    }
    let clean = work.clean.load(Ordering::Relaxed);
    println!("{many} mutants, {clean} of them clean");
    assert!(clean < many / 2, "most damage is seen");
    let peak = peak_memory();
    assert!(peak < MEMORY_MAX, "{peak} bytes of memory");
}

fn in_time(now: &Now) {
    let (what, since) = &*now.lock().expect("nobody panics with it");
    assert!(since.elapsed() < SOON, "{what}: {:?}", since.elapsed());
}

type Said = Result<(bool, std::collections::BTreeSet<String>), varve_fs::Error>;

/// Prints where `btrfs check` is of another opinion.
fn compare(disk: &Disk, ours: &Said, what: &str) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("mutant");
    disk.save(&path);
    let out = Command::new("timeout").args(["20", "btrfs", "check"]).arg(&path).output();
    let Ok(out) = out else { return };
    let clean = matches!(ours, Ok((true, _)));
    if out.status.success() == clean {
        return;
    }
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('[')).take(3).collect();
    println!(
        "DIFFER {what}\n  ours {ours:?}\n  tool {:?} {}",
        out.status.code(),
        lines.join(" | ")
    );
}

fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}
