//! Replies on their way out.
//!
//! Requests finish in any order and drop their replies here; one task per connection takes all
//! that has gathered and sends it in one operation. While a send is under way the next batch
//! gathers, so the busier a connection is, the fewer operations a reply costs.
//!
//! Heads are bytes in one vector, data stays in the buffer it was read into.

use crate::admit::Ticket;
use std::cell::{Cell, RefCell};
use std::ops::Range;
use varve_block::sync::Notify;
use varve_block::{BufPool, IoView};

/// Most pieces of one send: well below `IOV_MAX`, which is 1024.
const PIECES_MAX: usize = 512;
/// Most bytes of one send. More would only lie in the socket's queue, and make the memory of what
/// has left already wait for what has not.
const SEND_MAX: usize = 1 << 20;

/// Heads are merged into pieces of this many bytes, so that a parcel can end between them.
const HEADS_MERGED_MAX: usize = 64 << 10;

/// The replies of one connection that have not been taken for sending yet.
pub(crate) struct Outbox {
    waiting: RefCell<Batch>,
    changed: Notify,
    closed: Cell<bool>,
    /// The peer is gone: what comes now is dropped.
    dead: Cell<bool>,
}

/// Replies in order.
#[derive(Default)]
struct Batch {
    heads: Vec<u8>,
    pieces: Vec<Piece>,
}

enum Piece {
    /// This many bytes of `heads`.
    Head(usize),
    Data(IoView),
    /// The reply before this is complete; its request's place is free once that has left.
    End(Ticket),
}

/// What one send carries, and the places it frees.
#[derive(Default)]
pub(crate) struct Parcel {
    pub(crate) parts: Vec<IoView>,
    load: Vec<Load>,
    places: Vec<Ticket>,
}

enum Load {
    /// A part of the parcel's heads.
    Head(Range<usize>),
    Data(IoView),
}

/// Writes one reply, or one chunk of one.
pub(crate) struct Writer<'a> {
    batch: &'a mut Batch,
}

impl Writer<'_> {
    /// Bytes that `f` appends.
    pub(crate) fn head(&mut self, f: impl FnOnce(&mut Vec<u8>)) {
        let before = self.batch.heads.len();
        f(&mut self.batch.heads);
        let n = self.batch.heads.len() - before;
        match self.batch.pieces.last_mut() {
            Some(Piece::Head(len)) if *len + n <= HEADS_MERGED_MAX => *len += n,
            _ => self.batch.pieces.push(Piece::Head(n)),
        }
    }

    /// Bytes that are shared, not copied.
    pub(crate) fn data(&mut self, view: IoView) {
        if !view.is_empty() {
            self.batch.pieces.push(Piece::Data(view));
        }
    }
}

impl Outbox {
    pub(crate) fn new() -> Outbox {
        Outbox {
            waiting: RefCell::default(),
            changed: Notify::new(),
            closed: Cell::new(false),
            dead: Cell::new(false),
        }
    }

    /// Queues what `f` writes; `ticket` comes with the end of a reply.
    pub(crate) fn push(&self, ticket: Option<Ticket>, f: impl FnOnce(&mut Writer<'_>)) {
        if self.dead.get() {
            return;
        }
        let mut batch = self.waiting.borrow_mut();
        f(&mut Writer { batch: &mut batch });
        batch.pieces.extend(ticket.map(Piece::End));
        drop(batch);
        self.changed.notify_all();
    }

    /// Nothing more will be pushed: what waits is still sent.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.changed.notify_all();
    }

    /// The peer does not take anything any more: what waits, and what is still to come, is dropped.
    pub(crate) fn kill(&self) {
        self.dead.set(true);
        let dropped = self.waiting.take();
        drop(dropped);
    }

    /// Waits for replies; `None` when the outbox is closed and empty.
    async fn gather(&self, spare: &mut Batch) -> Option<()> {
        loop {
            if !self.waiting.borrow().pieces.is_empty() {
                std::mem::swap(spare, &mut *self.waiting.borrow_mut());
                return Some(());
            }
            if self.closed.get() {
                return None;
            }
            self.changed.notified().await;
        }
    }

    /// Hands out everything that is pushed, in order, in parcels for `send`, until the outbox is
    /// closed or `send` fails. Heads are copied into `pool`, which must be this connection's own.
    pub(crate) async fn run<E>(
        &self,
        pool: &BufPool,
        mut send: impl AsyncFnMut(&mut Parcel) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut batch = Batch::default();
        let mut parcel = Parcel::default();
        while self.gather(&mut batch).await.is_some() {
            let mut heads = &batch.heads[..];
            let mut pieces = batch.pieces.drain(..).peekable();
            while pieces.peek().is_some() {
                let mut head_bytes = 0;
                let mut bytes = 0;
                while let Some(piece) = pieces.next_if(|piece| {
                    let end = matches!(piece, Piece::End(_));
                    end || bytes < SEND_MAX && parcel.load.len() < PIECES_MAX
                }) {
                    match piece {
                        Piece::Head(len) => {
                            parcel.load.push(Load::Head(head_bytes..head_bytes + len));
                            head_bytes += len;
                            bytes += len;
                        }
                        Piece::Data(view) => {
                            bytes += view.len();
                            parcel.load.push(Load::Data(view));
                        }
                        Piece::End(ticket) => parcel.places.push(ticket),
                    }
                }
                let (mine, rest) = heads.split_at(head_bytes);
                heads = rest;
                parcel.pack(pool, mine).await;
                send(&mut parcel).await?;
                parcel.places.clear();
            }
            drop(pieces);
            batch.heads.clear();
        }
        Ok(())
    }
}

impl Parcel {
    /// Turns the load into parts; `heads` are the bytes its heads mean.
    async fn pack(&mut self, pool: &BufPool, heads: &[u8]) {
        let mut buf = pool.take_bytes(heads.len()).await;
        buf.copy_from_slice(heads);
        let heads = buf.freeze();
        self.parts.clear();
        self.parts.extend(self.load.drain(..).map(|load| match load {
            Load::Head(range) => heads.slice(range),
            Load::Data(view) => view,
        }));
    }

    /// Drops what has left.
    pub(crate) fn advance(&mut self, mut sent: usize) {
        let whole = self.parts.iter().take_while(|part| {
            let left = sent >= part.len();
            if left {
                sent -= part.len();
            }
            left
        });
        let whole = whole.count();
        self.parts.drain(..whole);
        if sent > 0 {
            let first = self.parts.first_mut().expect("no more was sent than there was");
            *first = first.slice(sent..first.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admit::InFlight;
    use proptest::prelude::*;
    use std::rc::Rc;
    use varve_block::sync::LocalSemaphore;
    use varve_block::{Rt, Sim};

    /// What is pushed comes out in order, whatever `send` takes at a time, and every place is free.
    async fn check(rt: Rt, pushes: Vec<(Vec<u8>, usize)>, take: usize) {
        let pool = BufPool::new(64 << 20);
        let in_flight = InFlight::new(LocalSemaphore::new(1 << 30));
        let outbox = Rc::new(Outbox::new());
        let mut want = Vec::new();
        let mut queue = Vec::new();
        for (n, (head, len)) in pushes.into_iter().enumerate() {
            want.extend(&head);
            let mut data = pool.take_bytes(len).await;
            data.fill(u8::try_from(n % 251).unwrap());
            want.extend(&*data);
            queue.push((head, data.freeze(), in_flight.admit(len).await));
        }
        let pusher = Rc::clone(&outbox);
        let clock = rt.clone();
        let pushing = rt.spawn(async move {
            for (head, data, ticket) in queue {
                pusher.push(Some(ticket), |w| {
                    w.head(|out| out.extend(head));
                    w.data(data);
                });
                if clock.prng().below(3) == 0 {
                    clock.yield_now().await;
                }
            }
            pusher.close();
        });
        let mut got = Vec::new();
        let all = outbox.run::<()>(&pool, async |parcel| {
            while !parcel.parts.is_empty() {
                let mut left = take;
                for part in &parcel.parts {
                    let n = left.min(part.len());
                    got.extend_from_slice(&part[..n]);
                    left -= n;
                }
                parcel.advance(take - left);
                rt.yield_now().await;
            }
            Ok(())
        });
        all.await.unwrap();
        pushing.await;
        assert!(got == want, "{} bytes out, {} in", got.len(), want.len());
        assert_eq!(in_flight.requests(), 0);
        assert_eq!(pool.lent(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn what_goes_in_comes_out_in_order_and_frees_its_place(
            pushes in proptest::collection::vec(
                (proptest::collection::vec(any::<u8>(), 1..80), 0_usize..9000), 0..40),
            take in 1_usize..20_000, seed: u64,
        ) {
            Sim::new(seed).run(move |rt| check(rt, pushes, take));
        }
    }

    #[test]
    fn long_heads_cross_their_buffers() {
        let pushes = (0..40).map(|n| (vec![n; 9000], usize::from(n) * 300)).collect();
        Sim::new(1).run(move |rt| check(rt, pushes, 70_000));
    }

    #[test]
    fn a_dead_peer_frees_what_waits_and_what_comes() {
        let in_flight = InFlight::new(LocalSemaphore::new(1 << 30));
        Sim::new(1).run(move |_| async move {
            let outbox = Outbox::new();
            let ticket = in_flight.admit(0).await;
            outbox.push(Some(ticket), |w| w.head(|out| out.push(1)));
            outbox.kill();
            assert_eq!(in_flight.requests(), 0);
            let ticket = in_flight.admit(0).await;
            outbox.push(Some(ticket), |w| w.head(|out| out.push(1)));
            assert_eq!(in_flight.requests(), 0);
        });
    }
}
