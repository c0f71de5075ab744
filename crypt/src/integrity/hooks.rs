//! Places in the request path of [`Sealed`](super::Sealed) where a test can put a known defect.
//!
//! In every other build the hooks are empty and cost nothing. Each mutation lends the layer memory that a
//! client can write to meanwhile, which buffers with one owner never are.

use varve_block::{IoBuf, Rt};

/// The defect that is switched on; nothing in life.
#[cfg(not(test))]
pub(super) struct Hooks;

#[cfg(not(test))]
impl Hooks {
    pub(super) fn none() -> Hooks {
        Hooks
    }

    #[inline]
    pub(super) async fn taken_again(&self, _: &Rt, _: &mut IoBuf) -> bool {
        false
    }

    #[inline]
    pub(super) async fn arrived(&self, _: &Rt, _: &mut IoBuf) {}
}

#[cfg(test)]
pub(super) use mutated::{Hooks, Memory, Mutation};

#[cfg(test)]
mod mutated {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::time::Duration;

    /// What a client writes to whenever it likes.
    pub(in crate::integrity) type Memory = Rc<RefCell<Vec<u8>>>;

    /// A defect of an authenticated layer.
    #[derive(Clone)]
    pub(in crate::integrity) enum Mutation {
        /// C06: the tag is made of one copy of the client's memory, and what is stored of another one.
        SealAndStoreTwoCopies(Memory),
        /// C13: a read is checked and decrypted where the client can write meanwhile.
        OpenInTheClientsMemory(Memory),
    }

    /// The defect that is switched on.
    pub(in crate::integrity) struct Hooks(Option<Mutation>);

    impl Hooks {
        pub(in crate::integrity) fn none() -> Hooks {
            Hooks(None)
        }

        pub(in crate::integrity) fn with(mutation: Mutation) -> Hooks {
            Hooks(Some(mutation))
        }

        /// Whether the buffer, whose tags are made, was filled with clear bytes once more.
        pub(in crate::integrity) async fn taken_again(&self, rt: &Rt, buf: &mut IoBuf) -> bool {
            let Some(Mutation::SealAndStoreTwoCopies(memory)) = &self.0 else { return false };
            pause(rt).await;
            buf.copy_from_slice(&memory.borrow());
            true
        }

        /// Between the answer from below and the check.
        pub(in crate::integrity) async fn arrived(&self, rt: &Rt, buf: &mut IoBuf) {
            let Some(Mutation::OpenInTheClientsMemory(memory)) = &self.0 else { return };
            memory.borrow_mut().copy_from_slice(buf);
            pause(rt).await;
            buf.copy_from_slice(&memory.borrow());
        }
    }

    async fn pause(rt: &Rt) {
        rt.sleep(Duration::from_nanos(rt.prng().below(20_000))).await;
    }
}
