//! One request, from its admission to its reply.

use crate::admit::Ticket;
use crate::conn::Conn;
use crate::hall::PAYLOAD_MAX;
use crate::nbd::facts::Context;
use crate::nbd::handshake::Negotiated;
use crate::nbd::reply::{self, Last, Style};
use crate::nbd::transmit::{Command, Request};
use crate::nbd::wire::{AllocationFlags, Errno, StatusExtent};
use crate::outbox::Writer;
use std::cell::Cell;
use std::rc::Rc;
use varve_block::{
    Data, Durability, Dyn, Error, ErrorKind, Export, IoBuf, IoView, Result, Zero, chain,
};

/// Data travels in buffers of this length, which is the longest request of a device.
pub(crate) const PIECE: usize = 1 << 20;

/// Reads at least this long look for holes first: the look must cost less than it can save.
const LOOK_FOR_HOLES_MIN: u32 = 128 << 10;
/// Shorter holes travel as zeroes.
const HOLE_MIN: u32 = 4096;
/// Most runs that a read is cut into.
const RUNS_MAX: usize = 64;
/// Most extents in one status chunk.
const STATUS_MAX: usize = 8192;
/// After a failed read, the good part is looked for in steps of these lengths.
const PROBE_STEPS: [u32; 2] = [64 << 10, 4 << 10];

/// So many failed requests are told of one by one.
const TOLD_MAX: u64 = 32;

/// So many looks for holes in a row may find nothing; then most reads go without one.
const LOOKS_IN_VAIN_MAX: u32 = 8;
/// One read in so many looks again, for the holes may begin further on.
const LOOK_AGAIN: u32 = 32;

/// What all requests of a connection need.
pub(crate) struct Session {
    conn: Rc<Conn>,
    export: Export<Dyn>,
    pub(crate) style: Style,
    contexts: Vec<Context>,
    looks_in_vain: Cell<u32>,
}

impl Session {
    pub(crate) fn new(conn: Rc<Conn>, export: Export<Dyn>, agreed: &Negotiated) -> Rc<Session> {
        Rc::new(Session {
            conn,
            export,
            style: Style::of(agreed.structured),
            contexts: agreed.contexts.clone(),
            looks_in_vain: Cell::new(0),
        })
    }

    /// Whether a long read should look for holes: a file without any is not asked every time.
    fn looks_for_holes(&self) -> bool {
        let vain = self.looks_in_vain.get();
        self.looks_in_vain.set(vain.wrapping_add(1));
        vain < LOOKS_IN_VAIN_MAX || vain.is_multiple_of(LOOK_AGAIN)
    }
}

/// A request with all it needs.
pub(crate) struct Job {
    pub(crate) session: Rc<Session>,
    pub(crate) request: Request,
}

/// A part of what a read returns, in the order of the range.
enum Run {
    Data(u64, u32, Vec<IoView>),
    Hole(u64, u32),
}

impl Job {
    /// Runs the request to its end and queues its reply. `ticket` leaves with the reply.
    pub(crate) async fn run(self, payload: Vec<IoBuf>, ticket: Ticket) {
        let (cookie, offset) = (self.request.cookie, self.request.offset);
        let length = u64::from(self.request.length);
        let export = &self.session.export;
        let done = match self.request.command {
            Command::Read { whole } => return self.read(whole, ticket).await,
            Command::BlockStatus { one } => return self.status(one, ticket).await,
            Command::Flush => {
                self.session.conn.hall.stats.flushes.add(1);
                export.flush().await
            }
            _ if length == 0 => Ok(()),
            Command::Write { fua } => self.write(payload, fua).await,
            Command::Trim { fua } => export.trim(offset, length, fua).await,
            Command::Cache => export.prefetch(offset, length).await,
            Command::WriteZeroes { fua, may_unmap, only_if_fast } => {
                let durability = if fua { Durability::Fua } else { Durability::Cached };
                let how = Zero { may_unmap, only_if_fast, durability };
                export.write_zeroes(offset, length, how).await
            }
        };
        match done {
            Ok(()) => self.push(ticket, |w| w.head(|out| self.session.style.done(out, cookie))),
            Err(error) => self.failed(&error, ticket),
        }
    }

    fn push(&self, ticket: Ticket, f: impl FnOnce(&mut Writer<'_>)) {
        self.session.conn.outbox.push(Some(ticket), f);
    }

    fn failed(&self, error: &Error, ticket: Ticket) {
        let errno = errno(error.kind, self.request.command);
        let text = chain(error);
        self.tell(error.kind, &text);
        self.push(ticket, |w| {
            w.head(|out| self.session.style.failed(out, self.request.cookie, errno, &text));
        });
    }

    /// Counts a failure and, when it is a device's and not the client's, tells the operator: the first ones,
    /// and then ever fewer, for a device that is gone fails every request.
    fn tell(&self, kind: ErrorKind, text: &str) {
        let failed = &self.session.conn.hall.stats.requests_failed;
        failed.add(1);
        let so_far = failed.get();
        let of_a_device = match kind {
            ErrorKind::Io | ErrorKind::Corrupt | ErrorKind::Poisoned | ErrorKind::NoSpace => true,
            ErrorKind::Busy
            | ErrorKind::OutOfRange
            | ErrorKind::Misaligned
            | ErrorKind::Unsupported
            | ErrorKind::ReadOnly
            | ErrorKind::Stopped => false,
        };
        if of_a_device && (so_far <= TOLD_MAX || so_far.is_power_of_two()) {
            tracing::error!(so_far, "a request failed: {text}");
        } else {
            tracing::debug!(so_far, "a request failed: {text}");
        }
    }

    /// Answers a read window by window. All but the longest reads are one window, and a window is
    /// complete in memory before its head leaves: a promise of data is never broken.
    async fn read(self, whole: bool, ticket: Ticket) {
        let (cookie, length) = (self.request.cookie, self.request.length);
        if length == 0 {
            return self
                .push(ticket, |w| w.head(|out| self.session.style.done_empty_read(out, cookie)));
        }
        // Keeps the request in flight between two windows.
        let _going_on =
            (window(length) < length as usize).then(|| self.session.conn.in_flight.hold());
        let (mut at, mut left, mut ticket) = (self.request.offset, length, Some(ticket));
        while left > 0 {
            let n = u32::try_from(window(left)).expect("a window is at most the rest");
            let place = match ticket.take() {
                Some(first) => first,
                None => self.session.conn.in_flight.admit(footprint(n as usize)).await,
            };
            left -= n;
            let last = if left == 0 { Last::Yes } else { Last::No };
            match self.runs(at, n, whole).await {
                Ok(runs) => self.send_runs(runs, last, place),
                Err(error) => return self.read_failed(at, n, whole, &error, place).await,
            }
            at += u64::from(n);
        }
    }

    /// The content of a window.
    async fn runs(&self, at: u64, n: u32, whole: bool) -> Result<Vec<Run>> {
        let mut runs = Vec::new();
        let mut from = at;
        let may_have_holes = self.session.style == Style::Structured && !whole;
        if may_have_holes && n >= LOOK_FOR_HOLES_MIN && self.session.looks_for_holes() {
            let end = at + u64::from(n);
            for (start, length) in self.holes(at, n).await {
                if from < start {
                    runs.push(self.data(from, short(start - from)).await?);
                }
                runs.push(Run::Hole(start, length));
                from = start + u64::from(length);
            }
            if from == end {
                return Ok(runs);
            }
        }
        let rest = n - short(from - at);
        runs.push(self.data(from, rest).await?);
        Ok(runs)
    }

    async fn data(&self, at: u64, n: u32) -> Result<Run> {
        Ok(Run::Data(at, n, self.bytes(at, n).await?))
    }

    async fn bytes(&self, at: u64, n: u32) -> Result<Vec<IoView>> {
        let pool = &self.session.conn.hall.pool;
        let n = n as usize;
        if n <= PIECE {
            let buf = pool.take_bytes(n).await;
            return Ok(vec![self.session.export.read(at, buf).await?.freeze()]);
        }
        let mut list = Vec::with_capacity(n.div_ceil(PIECE));
        for start in (0..n).step_by(PIECE) {
            list.push(pool.take_bytes(PIECE.min(n - start)).await);
        }
        let list = self.session.export.read_list(at, list).await?;
        Ok(list.into_iter().map(IoBuf::freeze).collect())
    }

    async fn write(&self, mut payload: Vec<IoBuf>, fua: bool) -> Result<()> {
        let offset = self.request.offset;
        let written = match (payload.len(), payload.pop()) {
            (1, Some(only)) => self.session.export.write(offset, only, fua).await,
            (_, last) => {
                let list = payload.into_iter().chain(last).map(Data::Owned).collect();
                self.session.export.write_list(offset, list, fua).await
            }
        };
        written.inspect(|()| {
            self.session.conn.hall.stats.write_bytes.add(u64::from(self.request.length));
        })
    }

    /// Ranges inside `n` bytes from `at` that are known to read as zeroes, without touching the
    /// medium. Not knowing is no failure: then it is read.
    async fn holes(&self, at: u64, n: u32) -> Vec<(u64, u32)> {
        let known =
            self.session.export.block_status(at, u64::from(n), RUNS_MAX).await.unwrap_or_default();
        let mut holes: Vec<(u64, u32)> = Vec::new();
        let mut start = at;
        let end = at + u64::from(n);
        for run in known {
            let length = run.len.min(end - start);
            if run.zero {
                match holes.last_mut() {
                    Some((from, len)) if *from + u64::from(*len) == start => *len += short(length),
                    _ => holes.push((start, short(length))),
                }
            }
            start += length;
        }
        holes.retain(|(_, length)| *length >= HOLE_MIN);
        if !holes.is_empty() {
            self.session.looks_in_vain.set(0);
        }
        holes
    }

    fn send_runs(&self, runs: Vec<Run>, last: Last, ticket: Ticket) {
        let cookie = self.request.cookie;
        let count = runs.len();
        self.push(ticket, |w| {
            for (n, run) in runs.into_iter().enumerate() {
                let last = if n + 1 == count { last } else { Last::No };
                match run {
                    Run::Hole(at, length) => {
                        w.head(|out| reply::hole(out, cookie, at, length, last));
                    }
                    Run::Data(at, length, views) => {
                        self.session.conn.hall.stats.read_bytes.add(u64::from(length));
                        w.head(|out| match self.session.style {
                            Style::Simple => reply::simple(out, cookie, 0),
                            Style::Structured => reply::data(out, cookie, at, length, last),
                        });
                        views.into_iter().for_each(|view| w.data(view));
                    }
                }
            }
        });
    }

    /// Tells what can be told: in chunks the good part and the place of the failure, otherwise only
    /// that it failed.
    async fn read_failed(&self, at: u64, n: u32, whole: bool, error: &Error, ticket: Ticket) {
        if self.session.style == Style::Simple || whole {
            return self.failed(error, ticket);
        }
        let (mut views, good) = self.good_part(at, n).await;
        if good == n {
            return self.send_runs(vec![Run::Data(at, n, views)], Last::Yes, ticket);
        }
        let cookie = self.request.cookie;
        let text = chain(error);
        self.tell(error.kind, &text);
        // The chunk has to cover the place that failed, so it ends in padding.
        let pad = (n - good).min(PROBE_STEPS[1]);
        let mut zeroes = self.session.conn.hall.pool.take_bytes(pad as usize).await;
        zeroes.fill(0);
        views.push(zeroes.freeze());
        self.push(ticket, |w| {
            w.head(|out| reply::data(out, cookie, at, good + pad, Last::No));
            views.into_iter().for_each(|view| w.data(view));
            let errno = errno(error.kind, self.request.command);
            w.head(|out| {
                reply::error_at(out, cookie, errno, &text, at + u64::from(good));
                reply::none(out, cookie);
            });
        });
    }

    /// What can be read from the front of a range that failed as a whole.
    async fn good_part(&self, at: u64, n: u32) -> (Vec<IoView>, u32) {
        let (mut views, mut good) = (Vec::new(), 0);
        for step in PROBE_STEPS {
            while good < n {
                // Steps end on multiples of their length, as the blocks of a device do.
                let start = at + u64::from(good);
                let to_edge = u64::from(step) - start % u64::from(step);
                let len = short(to_edge).min(n - good);
                let Ok(more) = self.bytes(start, len).await else { break };
                views.extend(more);
                good += len;
            }
        }
        (views, good)
    }

    /// Answers `BLOCK_STATUS`, one chunk per context. An index that cannot be asked says "data".
    async fn status(self, one: bool, ticket: Ticket) {
        let (cookie, at, n) = (self.request.cookie, self.request.offset, self.request.length);
        let limit = if one { 1 } else { STATUS_MAX };
        let known = self.session.export.block_status(at, u64::from(n), limit).await.unwrap_or_else(
            |error| {
                tracing::debug!(error = %chain(&error), "no status, said to be data");
                Vec::new()
            },
        );
        let mut extents: Vec<(u32, AllocationFlags)> = Vec::new();
        let mut left = n;
        for run in known {
            let length = short(run.len.min(u64::from(left)));
            let mut flags = AllocationFlags::empty();
            flags.set(AllocationFlags::HOLE, run.hole);
            flags.set(AllocationFlags::ZERO, run.zero);
            let full = extents.len() == limit;
            match extents.last_mut() {
                _ if length == 0 => break,
                Some((len, last)) if *last == flags => *len += length,
                _ if full => break,
                _ => extents.push((length, flags)),
            }
            left -= length;
        }
        if extents.is_empty() {
            extents.push((n, AllocationFlags::empty()));
        }
        let wire: Vec<_> = extents
            .iter()
            .map(|(len, flags)| StatusExtent { length: (*len).into(), flags: flags.bits().into() })
            .collect();
        self.push(ticket, |w| {
            for (n, context) in self.session.contexts.iter().enumerate() {
                let last = if n + 1 == self.session.contexts.len() { Last::Yes } else { Last::No };
                w.head(|out| reply::status(out, cookie, *context, &wire, last));
            }
        });
    }
}

/// How much of a read of `length` bytes is answered at a time.
pub(crate) fn window(length: u32) -> usize {
    length.min(PAYLOAD_MAX) as usize
}

/// Memory that `length` bytes of data take, in the buffers they are cut into.
pub(crate) fn footprint(length: usize) -> usize {
    let rest = length % PIECE;
    let last = if rest == 0 { 0 } else { rest.next_power_of_two().max(4096) };
    length - rest + last
}

/// A length inside one request.
fn short(length: u64) -> u32 {
    u32::try_from(length).expect("a part of a request is no longer than the request")
}

/// The one place where kinds of errors become numbers on the wire.
fn errno(kind: ErrorKind, command: Command) -> Errno {
    let writes = matches!(command, Command::Write { .. } | Command::WriteZeroes { .. });
    match kind {
        ErrorKind::Io | ErrorKind::Corrupt | ErrorKind::Poisoned | ErrorKind::Busy => Errno::Io,
        ErrorKind::NoSpace => Errno::NoSpc,
        ErrorKind::OutOfRange if writes => Errno::NoSpc,
        ErrorKind::OutOfRange | ErrorKind::Misaligned => Errno::Inval,
        ErrorKind::Unsupported => match command {
            Command::WriteZeroes { only_if_fast: true, .. } => Errno::NotSup,
            _ => Errno::Inval,
        },
        ErrorKind::ReadOnly => Errno::Perm,
        ErrorKind::Stopped => Errno::Shutdown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_error_has_its_number() {
        let read = Command::Read { whole: false };
        let write = Command::Write { fua: false };
        let zero =
            |only_if_fast| Command::WriteZeroes { fua: false, may_unmap: true, only_if_fast };
        for (kind, command, want) in [
            (ErrorKind::Io, read, Errno::Io),
            (ErrorKind::Corrupt, read, Errno::Io),
            (ErrorKind::Poisoned, write, Errno::Io),
            (ErrorKind::OutOfRange, read, Errno::Inval),
            (ErrorKind::OutOfRange, write, Errno::NoSpc),
            (ErrorKind::NoSpace, write, Errno::NoSpc),
            (ErrorKind::ReadOnly, write, Errno::Perm),
            (ErrorKind::Unsupported, zero(true), Errno::NotSup),
            (ErrorKind::Unsupported, zero(false), Errno::Inval),
            (ErrorKind::Stopped, read, Errno::Shutdown),
        ] {
            assert_eq!(errno(kind, command), want, "{kind:?}");
        }
    }
}
