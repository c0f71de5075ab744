//! Random damage, most of it sealed, from a seed: whatever the checker says, it says it soon, in bounded
//! memory and without panic, the same words twice, and without a write.

use crate::disk::{Disk, codes};
use crate::mutate::{Dice, mutate};
use crate::tour::{self, CLEAN, Look};
use std::ops::Range;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use varve_fs::format::key::{ItemType, Key};

const DUMPS: &[&[u8]] = &[
    include_bytes!("../../../tests/images/070-btrfs-progs-dumps/020-keyed_block_ref.img"),
    include_bytes!("../../../tests/images/070-btrfs-progs-dumps/020-extent_data_ref.img"),
    include_bytes!("../../../tests/images/070-btrfs-progs-dumps/020-shared_data_ref_only.img"),
    include_bytes!("../../../tests/images/070-btrfs-progs-dumps/032-qgroup_corrupted.img"),
];
const FEW: u64 = 300;
const FEWER: u64 = 60;
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
    fn of_environment(few: u64) -> Plan {
        let number = |name| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
        let first = number("VARVE_MUTANTS_FROM").unwrap_or(0);
        let many = number("VARVE_MUTANTS").unwrap_or(few);
        Plan { seeds: first..first + many, tool: std::env::var_os("VARVE_MUTANTS_TOOL").is_some() }
    }
}

/// What the threads share.
struct Work {
    bases: Vec<Disk>,
    plan: Plan,
    looks: &'static [Look],
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
            for (name, look) in self.looks {
                begin(now, &format!("{name}, {what}"));
                let again = seed.is_multiple_of(AGAIN);
                let seen = self.look(*look, &disk, again);
                seen.map_err(|wrong| format!("{name}, {what}: {wrong}"))?;
            }
            if self.plan.tool {
                begin(now, &format!("btrfs check, {what}"));
                compare(&disk, &what);
            }
        }
    }

    fn look(&self, look: fn(&Disk) -> String, disk: &Disk, again: bool) -> Result<(), &str> {
        let once = || std::panic::catch_unwind(|| look(disk)).map_err(|_| "a panic");
        let words = once()?;
        if again && once()? != words {
            return Err("other words the second time");
        }
        self.clean.fetch_add(u64::from(words == CLEAN), Ordering::Relaxed);
        Ok(())
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

#[test]
fn no_mutant_takes_the_checker_down() {
    let (many, clean) = all(tour::CHECK, Plan::of_environment(FEW));
    println!("{many} mutants, {clean} of them clean");
    assert!(clean < many / 2, "most damage is seen");
}

#[test]
fn no_mutant_takes_another_reader_down() {
    let plan = Plan { tool: false, ..Plan::of_environment(FEWER) };
    let (many, _) = all(tour::OTHERS, plan);
    println!("{many} mutants, each read in {} ways", tour::OTHERS.len());
}

/// Places for tree blocks are looked through where a tree has lost one, and what a chunk claims is any length.
#[test]
fn a_chunk_longer_than_its_device_ends_with_it() {
    let mut disk = Disk::of_dump(DUMPS[1]);
    let metadata = |key: &Key| (key.kind, key.offset) == (ItemType::CHUNK_ITEM, 30_408_704);
    disk.edit(3, metadata, |_, chunk| chunk[..8].copy_from_slice(&(1_u64 << 47).to_le_bytes()));
    let (lost, ..) = disk.items(5)[0];
    for place in disk.blocks[&lost].clone() {
        disk.write(place + 200, b"lost");
    }
    let (said, ends) = mpsc::channel();
    #[allow(clippy::disallowed_methods, reason = "it runs simulators of its own")]
    std::thread::spawn(move || tour::OTHERS.iter().try_for_each(|look| said.send(look.1(&disk))));
    for (name, _) in tour::OTHERS {
        assert!(ends.recv_timeout(SOON).is_ok(), "{name} goes on, or panics");
    }
}

/// Takes all looks at all mutants: how many there were, and of how many a look said that they are clean. A
/// look that never ends holds its thread, so another one has an eye on the clock.
fn all(looks: &'static [Look], plan: Plan) -> (u64, u64) {
    let mut bases = vec![Disk::golden()];
    bases.extend(DUMPS.iter().map(|dump| Disk::of_dump(dump)));
    if let Some(folder) = std::env::var_os("VARVE_MUTANTS_OF") {
        let files = std::fs::read_dir(folder).expect("a folder");
        let mut paths: Vec<_> = files.map(|file| file.expect("an entry").path()).collect();
        paths.sort();
        bases = paths.iter().filter_map(|path| Disk::of_file(path)).collect();
        println!("mutants of {} of {} images", bases.len(), paths.len());
    }
    let (first, many) = (plan.seeds.start, plan.seeds.end - plan.seeds.start);
    let (next, clean) = (AtomicU64::new(first), AtomicU64::new(0));
    let work = Arc::new(Work { bases, plan, looks, next, clean });
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
    let peak = peak_memory();
    assert!(peak < MEMORY_MAX, "{peak} bytes of memory");
    (many, work.clean.load(Ordering::Relaxed))
}

fn in_time(now: &Now) {
    let (what, since) = &*now.lock().expect("nobody panics with it");
    assert!(since.elapsed() < SOON, "{what}: {:?}", since.elapsed());
}

/// Prints where `btrfs check` is of another opinion.
fn compare(disk: &Disk, what: &str) {
    let ours = disk.check().map(|checked| (checked.is_clean(), codes(&checked)));
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("mutant");
    disk.save(&path);
    let out = Command::new("timeout").args(["20", "btrfs", "check"]).arg(&path).output();
    let Ok(out) = out else { return };
    let clean = matches!(&ours, Ok((true, _)));
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
