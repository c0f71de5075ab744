//! S21: the cache under every schedule of a few readers, and the defect of 2024 put back for comparison.
//!
//! The defect: a reader tests that a block is not valid, is held up, and then claims the read without
//! testing again. Meanwhile another has read and published the block; the second read goes into memory
//! that a third reader is using.
//!
//! All that may happen between two awaits is one step, and a step cannot be interrupted: the cache
//! belongs to one lane. So the schedules are the orders in which ready readers and ended device reads
//! take their turns, and these are tried one by one.

use super::tests::block;
use super::{BlockCache, Claim, Entry, Look, Waiters};
use crate::tree::node::TreeBlock;
use crate::units::Logical;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

const AT: Logical = Logical(4096);

/// How a reader gets at a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Manner {
    /// As the engine does.
    Sound,
    /// Looks, dawdles, and claims without looking again.
    NoSecondLook,
}

impl BlockCache {
    /// A look without consequences: the first half of the defect.
    fn peek(&self, at: Logical) -> Option<Arc<TreeBlock>> {
        match self.state.borrow().entries.get(&at) {
            Some(Entry::Valid(block, _)) => Some(Arc::clone(block)),
            _ => None,
        }
    }

    /// The second half: only another's read is respected, not its result.
    fn claim_unseen(&self, at: Logical) -> Look<'_> {
        let mut state = self.state.borrow_mut();
        if let Some(Entry::Reading(waiters)) = state.entries.get(&at) {
            return Look::Wait(Rc::clone(waiters));
        }
        let waiters = Rc::new(Waiters::default());
        state.entries.insert(at, Entry::Reading(Rc::clone(&waiters)));
        Look::Claimed(Claim { cache: self, at, waiters })
    }
}

/// A device whose reads end when the schedule says so.
#[derive(Default)]
struct Device {
    /// One for each read that was begun; `true` once it has ended.
    reads: RefCell<Vec<(bool, Option<Waker>)>>,
}

impl Device {
    fn begin(&self) -> usize {
        let mut reads = self.reads.borrow_mut();
        reads.push((false, None));
        reads.len() - 1
    }

    async fn ended(&self, read: usize) {
        poll_fn(|cx| match &mut self.reads.borrow_mut()[read] {
            (true, _) => Poll::Ready(()),
            (false, waker) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
        })
        .await;
    }

    fn waited_for(&self) -> Vec<usize> {
        let reads = self.reads.borrow();
        (0..reads.len()).filter(|n| !reads[*n].0 && reads[*n].1.is_some()).collect()
    }

    fn end(&self, read: usize) {
        let waker = {
            let mut reads = self.reads.borrow_mut();
            reads[read].0 = true;
            reads[read].1.take()
        };
        waker.expect("somebody waits for it").wake();
    }
}

/// Lets the others run.
async fn pause() {
    let mut first = true;
    poll_fn(|cx| {
        if std::mem::take(&mut first) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    })
    .await;
}

async fn reader(cache: &BlockCache, device: &Device, manner: Manner) -> Arc<TreeBlock> {
    loop {
        pause().await;
        let look = match manner {
            Manner::Sound => cache.look(AT),
            Manner::NoSecondLook => match cache.peek(AT) {
                Some(block) => return block,
                None => {
                    pause().await;
                    cache.claim_unseen(AT)
                }
            },
        };
        match look {
            Look::Hit(block) => return block,
            Look::Wait(read) => read.ended().await,
            Look::Claimed(claim) => {
                let read = device.begin();
                device.ended(read).await;
                return claim.publish(block(AT.0));
            }
        }
    }
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The choices of one run: those that are given, then the first of what there is.
struct Schedule {
    given: Vec<usize>,
    taken: Vec<(usize, usize)>,
}

impl Schedule {
    fn choose(&mut self, of: usize) -> usize {
        let choice = self.given.get(self.taken.len()).copied().unwrap_or(0);
        self.taken.push((choice, of));
        choice
    }

    /// The next schedule in order; `None` after the last.
    fn next(mut self) -> Option<Vec<usize>> {
        while let Some((choice, of)) = self.taken.pop() {
            if choice + 1 < of {
                let mut given: Vec<usize> = self.taken.iter().map(|(choice, _)| *choice).collect();
                given.push(choice + 1);
                return Some(given);
            }
        }
        None
    }
}

/// What one run came to.
struct Run {
    reads: usize,
    /// What each reader that was not dropped got.
    got: Vec<Arc<TreeBlock>>,
    dropped_readers: usize,
}

/// Runs `readers` under a schedule. With `impatient`, the first reader may be dropped at any time.
fn run(readers: usize, manner: Manner, impatient: bool, schedule: &mut Schedule) -> Run {
    type Task<'a> = Pin<Box<dyn Future<Output = Arc<TreeBlock>> + 'a>>;
    let (cache, device) = (BlockCache::new(1 << 20), Device::default());
    let flags: Vec<_> = (0..readers).map(|_| Arc::new(Flag(AtomicBool::new(true)))).collect();
    let mut tasks: Vec<Option<Task<'_>>> =
        (0..readers).map(|_| Some(Box::pin(reader(&cache, &device, manner)) as Task<'_>)).collect();
    let mut run = Run { reads: 0, got: Vec::new(), dropped_readers: 0 };
    let dropped = Cell::new(false);
    while tasks.iter().any(Option::is_some) {
        let ready = |n: &usize| tasks[*n].is_some() && flags[*n].0.load(Ordering::SeqCst);
        let ready: Vec<usize> = (0..readers).filter(ready).collect();
        let ending = device.waited_for();
        let may_drop = impatient && !dropped.get() && tasks[0].is_some();
        let choices = ready.len() + ending.len();
        assert!(choices > 0 || may_drop, "readers wait for nothing: {:?}", schedule.taken);
        let choice = schedule.choose(choices + usize::from(may_drop));
        if let Some(n) = ready.get(choice) {
            flags[*n].0.store(false, Ordering::SeqCst);
            let waker = Waker::from(Arc::clone(&flags[*n]));
            let mut cx = Context::from_waker(&waker);
            let task = tasks[*n].as_mut().expect("it is ready");
            if let Poll::Ready(block) = task.as_mut().poll(&mut cx) {
                run.got.push(block);
                tasks[*n] = None;
            }
        } else if let Some(read) = ending.get(choice - ready.len()) {
            device.end(*read);
        } else {
            tasks[0] = None;
            dropped.set(true);
            run.dropped_readers += 1;
        }
    }
    drop(tasks);
    run.reads = device.reads.borrow().len();
    run
}

/// Every schedule in turn, until `bad` says yes. How many there were, and the bad one.
fn explore(
    readers: usize,
    manner: Manner,
    impatient: bool,
    bad: impl Fn(&Run) -> bool,
) -> (usize, Option<Vec<usize>>) {
    let mut given = Vec::new();
    for tried in 1.. {
        assert!(tried < 5_000_000, "the model has grown too large to be tried out");
        let mut schedule = Schedule { given, taken: Vec::new() };
        let seen = run(readers, manner, impatient, &mut schedule);
        if bad(&seen) {
            return (tried, Some(schedule.taken.iter().map(|(choice, _)| *choice).collect()));
        }
        match schedule.next() {
            Some(next) => given = next,
            None => return (tried, None),
        }
    }
    unreachable!("the loop ends by itself")
}

fn read_twice(run: &Run) -> bool {
    run.reads > 1 + run.dropped_readers
}

/// The bytes behind an address have changed: somebody holds others than the next one got.
fn republished(run: &Run) -> bool {
    run.got.windows(2).any(|two| !Arc::ptr_eq(&two[0], &two[1]))
}

#[test]
fn s21_no_schedule_reads_a_block_twice_or_changes_a_published_one() {
    for (readers, impatient) in [(2, false), (3, false), (2, true), (3, true)] {
        let bad = |run: &Run| read_twice(run) || republished(run);
        let (tried, found) = explore(readers, Manner::Sound, impatient, bad);
        assert_eq!(found, None, "{readers} readers, one gives up: {impatient}");
        println!("{readers} readers, one gives up: {impatient}: {tried} schedules");
        assert!(tried > 20, "only {tried}: nothing was explored");
    }
}

#[test]
fn s21_without_the_second_look_a_schedule_reads_twice_and_changes_what_others_hold() {
    for readers in [2, 3] {
        let (_, twice) = explore(readers, Manner::NoSecondLook, false, read_twice);
        println!("{readers} readers: read twice under {:?}", twice.expect("the defect is caught"));
        let (_, changed) = explore(readers, Manner::NoSecondLook, false, republished);
        changed.expect("a block that was published is replaced");
    }
}

/// The same defect in a seeded world: random schedules find it too, and never without it.
#[test]
fn s21_random_schedules_catch_the_defect_and_pass_without_it() {
    let caught = |manner| {
        let of = |seed: u64| {
            let chance = varve_block::Prng::new(seed);
            let given = (0..200).map(|_| usize::try_from(chance.below(1 << 16)).expect("small"));
            let mut dice = given.collect::<Vec<_>>().into_iter();
            // A random choice of those there are, told step by step.
            let mut schedule = Schedule { given: Vec::new(), taken: Vec::new() };
            loop {
                let mut next = Schedule { given: schedule.given.clone(), taken: Vec::new() };
                let seen = run(4, manner, false, &mut next);
                let open = schedule.given.len();
                let Some((_, of)) = next.taken.get(open) else {
                    return read_twice(&seen) || republished(&seen);
                };
                schedule.given.push(dice.next().expect("enough dice") % of);
            }
        };
        (0..60).filter(|seed| of(*seed)).count()
    };
    assert_eq!(caught(Manner::Sound), 0);
    assert!(caught(Manner::NoSecondLook) > 0, "no seed of sixty shows the defect");
}
