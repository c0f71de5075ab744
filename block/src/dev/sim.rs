//! A disk that has its worst days on purpose, all of them from one seed.
//!
//! ```text
//!   write --> in flight --> volatile cache --> stable
//!             (begun,       (seen by reads,    (what a power cut
//!              no answer)    answered)          cannot take away)
//!                  \______________|_________________/
//!                    a power cut leaves, for each unit,
//!                    its stable version or any later one
//! ```
//!
//! A [`SimDisk`] gives exactly what the crate's crash contract promises and not a bit more. Each
//! request takes its own time, so requests pass each other; a read may see a half-done write unit
//! by unit; what no flush has covered is lost at the cut in any combination. [`Plan`] adds what a
//! disk should not do: errors, lost answers, death, and flushes that are lies.
//!
//! The medium ([`Image`]) is apart from the disk, so that it outlives the world: the cut of one world
//! is the first image of the next. Faults lie beside it and never in it.

mod image;
mod plan;
mod state;
#[cfg(test)]
mod tests;

pub use image::Image;
pub use plan::{Effect, Fault, Plan, When};
pub use state::{Outcome, Record};

use crate::buf::{Data, IoBuf};
use crate::device::{BlockDevice, Durability, ExtentStatus, Geometry, Zero};
use crate::error::{Error, ErrorKind, Op, Result};
use crate::rt::{Prng, Rt};
use crate::units::{Extent, Sector};
use image::Unit;
use state::State;
use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

/// Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    rt: Rt,
    chance: Rc<Prng>,
    state: Rc<RefCell<State>>,
}

impl SimDisk {
    /// A disk that holds `image`, with its own chance: what else happens in the world does not
    /// change its fate.
    ///
    /// # Panics
    /// When the image is not as long as the geometry says, or its unit does not divide the block.
    pub fn new(rt: &Rt, geometry: Geometry, image: Image, plan: Plan) -> SimDisk {
        assert!(image.len() == geometry.len, "the image is the whole medium");
        assert!(geometry.block.is_multiple_of(image.unit()), "a block is made of units");
        SimDisk {
            rt: rt.clone(),
            chance: Rc::new(rt.prng().fork()),
            state: Rc::new(RefCell::new(State::new(geometry, image, plan))),
        }
    }

    /// Other faults from now on; operations are counted anew.
    pub fn set_plan(&self, plan: Plan) {
        self.state.borrow_mut().set_plan(plan);
    }

    /// Everything fails from now on.
    pub fn die(&self) {
        self.state.borrow_mut().dead = true;
    }

    /// A bit of the medium reads wrong until its unit is written again.
    pub fn flip(&self, byte: u64, mask: u8) {
        self.state.borrow_mut().flip(byte, mask);
    }

    /// A state that a power cut now could leave. The disk goes on.
    pub fn snapshot(&self, chance: &Prng) -> Image {
        self.state.borrow().crash(chance)
    }

    /// The power goes: no request is ever answered again, and what is left is returned.
    pub fn cut(&self, chance: &Prng) -> Image {
        let mut state = self.state.borrow_mut();
        state.off = true;
        state.crash(chance)
    }

    /// What reads would see now: the medium after an orderly end.
    pub fn settled(&self) -> Image {
        self.state.borrow().settled()
    }

    /// The latest operations, oldest first; at most some ten thousand are kept.
    pub fn log(&self) -> Vec<Record> {
        self.state.borrow().log()
    }

    /// A number that is the same for two runs only if all their operations, times and bytes are.
    pub fn digest(&self) -> u64 {
        self.state.borrow().digest
    }

    /// Operations begun so far: for loops that fail the n-th for n = 1, 2, 3 ...
    pub fn operations(&self) -> u64 {
        self.state.borrow().begun()
    }

    /// Runs an operation to its end whether or not its caller waits, as a ring does; now and then
    /// it ends within the call that submits it.
    async fn detached<T: 'static, W>(&self, work: impl FnOnce(SimDisk, Haste) -> W) -> Result<T>
    where
        W: Future<Output = Result<T>> + 'static,
    {
        let inline = self.state.borrow().plan.inline_permille;
        if inline > 0 && self.chance.chance(inline, 1000) {
            return work(self.clone(), Haste::Inline).await;
        }
        self.rt.spawn(work(self.clone(), Haste::Own)).await
    }

    /// A part of an operation's time. A disk without power never wakes up again.
    async fn pass(&self, ns: u64) {
        if ns > 0 {
            self.rt.sleep(Duration::from_nanos(ns)).await;
        }
        if self.state.borrow().off {
            std::future::pending::<()>().await;
        }
    }

    /// The operation is on the books: how long it will take, and what the plan does to it.
    fn begin(&self, op: Op, at: Extent, fua: bool, haste: Haste) -> Course {
        let mut state = self.state.borrow_mut();
        let (number, effect) = state.begin(op, at, fua, self.rt.now(), &self.chance);
        let mut course = Course {
            number,
            ns: match haste {
                Haste::Inline => 0,
                Haste::Own => state.plan.latency(&self.chance),
            },
            fails: None,
            answered: true,
        };
        match effect {
            None => {}
            Some(Effect::Delay(more)) => {
                let more = u64::try_from(more.as_nanos()).unwrap_or(u64::MAX);
                course.ns = course.ns.saturating_add(more);
            }
            Some(Effect::NoAnswer) => course.answered = false,
            Some(Effect::Fail(kind)) => course.fails = Some(kind),
            Some(Effect::Die) => {
                state.dead = true;
                course.fails = Some(ErrorKind::Io);
            }
        }
        course
    }

    fn end_with(&self, number: u64, kind: ErrorKind, op: Op, at: Extent) -> Error {
        let mut state = self.state.borrow_mut();
        state.end(number, Outcome::Failed(kind), self.rt.now(), 0);
        Error::new(kind, op, at, &state.geometry.dev).with("simulated")
    }

    /// Whether the disk takes a change or a read at all.
    fn admit(&self, op: Op, at: Extent) -> Result<()> {
        let state = self.state.borrow();
        state.geometry.admit(op, at)?;
        let refuse = |kind| Err(Error::new(kind, op, at, &state.geometry.dev).with("simulated"));
        if state.dead {
            return refuse(ErrorKind::Io);
        }
        if state.poisoned && !matches!(op, Op::Read | Op::Extents | Op::Prefetch) {
            return refuse(ErrorKind::Poisoned);
        }
        Ok(())
    }

    async fn do_read(self, at: Extent, mut buf: IoBuf, haste: Haste) -> Result<IoBuf> {
        self.pass(0).await;
        self.admit(Op::Read, at)?;
        let course = self.begin(Op::Read, at, false, haste);
        // Two looks at different times, so that a read beside a write may see half of it.
        let [first, second, last] = self.in_three(course.ns);
        let units = self.state.borrow().units_of(at);
        let middle = units.start + self.chance.below(units.end - units.start + 1);
        self.pass(first).await;
        let early = self.state.borrow().look(units.start..middle, at, &mut buf);
        self.pass(second).await;
        let late = self.state.borrow().look(middle..units.end, at, &mut buf);
        self.pass(last).await;
        if !course.answered {
            return std::future::pending().await;
        }
        let bad = course.fails.or(early.and(late).err());
        if let Some(kind) = bad {
            return Err(self.end_with(course.number, kind, Op::Read, at));
        }
        let sum = crate::sum::xxhash64(&buf);
        let mut state = self.state.borrow_mut();
        state.end(course.number, Outcome::Done, self.rt.now(), sum);
        Ok(buf)
    }

    /// Anything that changes units: the new ones take effect in two parts at two times.
    async fn do_change(self, change: Change, haste: Haste) -> Result<()> {
        let Change { op, at, fua, new } = change;
        self.pass(0).await;
        self.admit(op, at)?;
        let course = self.begin(op, at, fua, haste);
        let [first, second, last] = self.in_three(course.ns);
        // A change that fails may have happened in part, or wholly, or not at all.
        let middle = self.chance.index(new.len() + 1);
        let sum =
            new.iter().fold(0, |sum: u64, unit| sum.rotate_left(1) ^ crate::sum::xxhash64(unit));
        self.state.borrow_mut().submit(course.number, at, new);
        self.pass(first).await;
        self.state.borrow_mut().apply(course.number, middle);
        self.pass(second).await;
        if !course.answered {
            return std::future::pending().await;
        }
        if let Some(kind) = course.fails {
            self.pass(last).await;
            self.state.borrow_mut().abandon(course.number);
            return Err(self.end_with(course.number, kind, op, at));
        }
        self.state.borrow_mut().apply(course.number, usize::MAX);
        self.pass(last).await;
        let mut state = self.state.borrow_mut();
        state.complete(course.number, fua);
        state.end(course.number, Outcome::Done, self.rt.now(), sum);
        Ok(())
    }

    async fn do_flush(self, barrier: u64, haste: Haste) -> Result<()> {
        let all = Extent::new(Sector::ZERO, self.state.borrow().geometry.len);
        self.pass(0).await;
        self.admit(Op::Flush, all)?;
        let course = self.begin(Op::Flush, all, false, haste);
        self.pass(course.ns).await;
        if !course.answered {
            return std::future::pending().await;
        }
        if let Some(kind) = course.fails {
            self.state.borrow_mut().poisoned = true;
            return Err(self.end_with(course.number, kind, Op::Flush, all));
        }
        let mut state = self.state.borrow_mut();
        if !state.plan.lies_about_flush {
            state.stabilise(barrier);
        }
        state.end(course.number, Outcome::Done, self.rt.now(), 0);
        Ok(())
    }

    /// An operation's time in three random parts.
    fn in_three(&self, ns: u64) -> [u64; 3] {
        let first = self.chance.below(ns + 1);
        let second = self.chance.below(ns - first + 1);
        [first, second, ns - first - second]
    }
}

/// Whether an operation ends within its own submission.
#[derive(Clone, Copy)]
enum Haste {
    Inline,
    Own,
}

/// What will become of an operation.
struct Course {
    number: u64,
    ns: u64,
    fails: Option<ErrorKind>,
    answered: bool,
}

struct Change {
    op: Op,
    at: Extent,
    fua: bool,
    new: Vec<Unit>,
}

impl BlockDevice for SimDisk {
    fn geometry(&self) -> Geometry {
        self.state.borrow().geometry.clone()
    }

    async fn read(&self, at: Sector, buf: IoBuf) -> Result<IoBuf> {
        let at = Extent::new(at, buf.sectors());
        self.detached(|disk, haste| disk.do_read(at, buf, haste)).await
    }

    async fn write(&self, at: Sector, data: Data, how: Durability) -> Result<Data> {
        let at = Extent::new(at, data.sectors());
        self.admit(Op::Write, at)?;
        let change = Change {
            op: Op::Write,
            at,
            fua: how == Durability::Fua,
            new: self.state.borrow().cut_units(&data),
        };
        self.detached(|disk, haste| async move {
            disk.do_change(change, haste).await?;
            Ok(data)
        })
        .await
    }

    async fn flush(&self) -> Result<()> {
        let barrier = self.state.borrow_mut().barrier();
        self.detached(|disk, haste| disk.do_flush(barrier, haste)).await
    }

    async fn discard(&self, range: Extent) -> Result<()> {
        self.admit(Op::Discard, range)?;
        let change = Change {
            op: Op::Discard,
            at: range,
            fua: false,
            new: self.state.borrow().discarded(range, &self.chance),
        };
        self.detached(|disk, haste| disk.do_change(change, haste)).await
    }

    async fn write_zeroes(&self, range: Extent, how: Zero) -> Result<()> {
        self.admit(Op::WriteZeroes, range)?;
        let change = {
            let state = self.state.borrow();
            if how.only_if_fast && !state.geometry.fast_zero {
                let (kind, op) = (ErrorKind::Unsupported, Op::WriteZeroes);
                return Err(Error::new(kind, op, range, &state.geometry.dev));
            }
            Change {
                op: Op::WriteZeroes,
                at: range,
                fua: how.durability == Durability::Fua,
                new: state.zeroes(range),
            }
        };
        self.detached(|disk, haste| disk.do_change(change, haste)).await
    }

    async fn extents(&self, range: Extent, limit: usize) -> Result<Vec<ExtentStatus>> {
        self.admit(Op::Extents, range)?;
        Ok(self.state.borrow().extents(range, limit))
    }
}
