//! A host for tests that does file operations at once, and as badly as it is told.

use super::engine::{Clock, Engine, unix_time};
use super::executor::{Driver, Host, Wait};
use super::op::{Op, OpKey, OpTable, Outcome};
use super::{Instant, threads};
use rustix::event::{Timespec, poll};
use rustix::io::Errno;
use std::cell::RefCell;
use std::io;
use std::task::Waker;
use std::time::Duration;

/// What becomes of an operation.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Verdict {
    Do,
    /// A transfer of at most so many bytes.
    Short(usize),
    Fail(Errno),
}

type Judge = Box<dyn FnMut(&Op) -> Verdict>;

pub(crate) struct Fake {
    ops: RefCell<OpTable<()>>,
    judge: RefCell<Judge>,
    clock: Clock,
}

impl Fake {
    pub(super) fn new(clock: Clock, judge: Judge) -> Fake {
        Fake { ops: RefCell::new(OpTable::new()), judge: RefCell::new(judge), clock }
    }
}

/// The transfer cut to `most` bytes, really done.
fn short(op: &mut Op, most: usize) -> io::Result<Outcome> {
    let count = match op {
        Op::Read { file, at, buf, from, .. } => {
            let end = buf.len().min(*from + most);
            rustix::io::pread(file, &mut buf[*from..end], *at)?
        }
        Op::Write { file, at, data, from, .. } => {
            let end = data.len().min(*from + most);
            rustix::io::pwrite(file, &data[*from..end], *at)?
        }
        _ => panic!("only transfers can be short"),
    };
    Ok(Outcome::Count(count))
}

impl Driver for Fake {
    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn unix_time(&self) -> u64 {
        unix_time()
    }

    fn has_threads(&self) -> bool {
        false
    }

    fn host(&self) -> Option<&dyn Host> {
        Some(self)
    }
}

impl Host for Fake {
    fn engine(&self) -> Engine {
        Engine::Threads
    }

    fn submit(&self, mut op: Op) -> OpKey {
        let verdict = (self.judge.borrow_mut())(&op);
        let result = match verdict {
            Verdict::Do => threads::blocking(&mut op),
            Verdict::Short(most) => short(&mut op, most),
            Verdict::Fail(errno) => Err(errno.into()),
        };
        self.ops.borrow_mut().insert_done(op, result)
    }

    fn poll_op(&self, key: OpKey, waker: &Waker) -> Option<(Op, io::Result<Outcome>)> {
        self.ops.borrow_mut().poll(key, waker)
    }

    fn abandon(&self, key: OpKey) {
        drop(self.ops.borrow_mut().abandon(key));
    }

    fn wait(&self, how: Wait) {
        if let Wait::Until(at) = how {
            let left: Duration = at - self.clock.now();
            poll(&mut [], Some(&Timespec::try_from(left).unwrap())).unwrap();
        }
    }

    fn reap(&self) {}

    fn close(&self) {}
}
