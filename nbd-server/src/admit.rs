//! How much one connection may have in flight.
//!
//! A request is admitted before its payload is read, and gives its place back when its reply has
//! left. A client that does not read its replies therefore stops being read itself: the pressure
//! goes back into the socket, and the heap does not grow.

use std::cell::Cell;
use std::rc::Rc;
use varve_block::sync::{LocalSemaphore, Notify, Permit};

/// Requests in flight per connection.
const REQUESTS_MAX: usize = 256;
/// Bytes in flight per connection, after which no further request is admitted.
const BYTES_MAX: usize = 64 << 20;

/// What one connection has in flight.
pub(crate) struct InFlight {
    requests: Cell<usize>,
    /// Of these, how many only wait for their error to leave.
    refusals: Cell<usize>,
    bytes: Cell<usize>,
    changed: Notify,
    /// Memory of all connections on this lane.
    lane: LocalSemaphore,
}

/// The place of one request, from its admission until its reply has left.
pub(crate) struct Ticket {
    of: Rc<InFlight>,
    bytes: usize,
    refusal: bool,
    _lane: Option<Permit>,
}

impl InFlight {
    pub(crate) fn new(lane: LocalSemaphore) -> Rc<InFlight> {
        Rc::new(InFlight {
            requests: Cell::new(0),
            refusals: Cell::new(0),
            bytes: Cell::new(0),
            changed: Notify::new(),
            lane,
        })
    }

    /// Waits for a place. Any single request fits: one is let in whenever the bytes in flight are
    /// below the limit, however long it is.
    pub(crate) async fn admit(self: &Rc<InFlight>, bytes: usize) -> Ticket {
        while self.requests.get() >= REQUESTS_MAX || self.bytes.get() >= BYTES_MAX {
            self.changed.notified().await;
        }
        self.requests.set(self.requests.get() + 1);
        self.bytes.set(self.bytes.get() + bytes);
        // The place is taken before the wait below, so the ticket must exist before it too: a
        // connection that is dropped in that wait gives it back.
        let mut ticket = Ticket { of: Rc::clone(self), bytes, refusal: false, _lane: None };
        if bytes > 0 {
            ticket._lane = Some(self.lane.acquire(bytes).await);
        }
        ticket
    }

    /// A place beyond the limit, for a request that was admitted and goes on in parts.
    pub(crate) fn hold(self: &Rc<InFlight>) -> Ticket {
        self.requests.set(self.requests.get() + 1);
        Ticket { of: Rc::clone(self), bytes: 0, refusal: false, _lane: None }
    }

    /// Waits for a place for an error that needs no request. It takes one too, or a client that
    /// reads no replies could fill the heap with them.
    pub(crate) async fn admit_refusal(self: &Rc<InFlight>) -> Ticket {
        let mut ticket = self.admit(0).await;
        ticket.refusal = true;
        self.refusals.set(self.refusals.get() + 1);
        ticket
    }

    /// Ready when every request that was begun is answered. A client that goes on asking while the
    /// server stops gets errors, and those do not count.
    pub(crate) async fn answered(&self) {
        while self.requests.get() > self.refusals.get() {
            self.changed.notified().await;
        }
    }

    /// Requests whose replies have not left yet.
    #[cfg(test)]
    pub(crate) fn requests(&self) -> usize {
        self.requests.get()
    }

    /// Ready when nothing is in flight.
    pub(crate) async fn idle(&self) {
        while self.requests.get() > 0 {
            self.changed.notified().await;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.of.requests.set(self.of.requests.get() - 1);
        self.of.refusals.set(self.of.refusals.get() - usize::from(self.refusal));
        self.of.bytes.set(self.of.bytes.get() - self.bytes);
        self.of.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Poll;
    use varve_block::sync::poll_once;

    fn now(in_flight: &Rc<InFlight>, bytes: usize) -> Option<Ticket> {
        match poll_once(Box::pin(in_flight.admit(bytes)).as_mut()) {
            Poll::Ready(ticket) => Some(ticket),
            Poll::Pending => None,
        }
    }

    #[test]
    fn the_count_is_bounded_and_a_reply_that_left_makes_room() {
        let in_flight = InFlight::new(LocalSemaphore::new(1 << 30));
        let mut held: Vec<_> = (0..REQUESTS_MAX).map(|_| now(&in_flight, 0).unwrap()).collect();
        assert!(now(&in_flight, 0).is_none());
        held.pop();
        assert!(now(&in_flight, 0).is_some());
    }

    #[test]
    fn the_largest_request_fits_beside_small_ones_and_then_nothing_does() {
        let in_flight = InFlight::new(LocalSemaphore::new(1 << 30));
        let small = now(&in_flight, 4096).unwrap();
        let large = now(&in_flight, 64 << 20).unwrap();
        assert!(now(&in_flight, 512).is_none());
        drop(large);
        assert!(now(&in_flight, 512).is_some());
        drop(small);
        assert!(poll_once(Box::pin(in_flight.idle()).as_mut()).is_ready());
    }

    #[test]
    fn waiting_for_the_lane_and_giving_up_leaves_nothing_behind() {
        let lane = LocalSemaphore::new(4096);
        let (one, two) = (InFlight::new(lane.clone()), InFlight::new(lane.clone()));
        let held = now(&one, 4096).unwrap();
        assert!(now(&two, 512).is_none());
        assert_eq!(two.requests(), 0, "the wait was given up");
        drop(held);
        assert!(now(&two, 512).is_some());
        assert_eq!(lane.available(), 4096);
    }
}
