//! Places in the request path where a test can put a known defect.
//!
//! In every other build the hooks are empty and cost nothing. Each [`Mutation`] is a bug that some
//! encryption layer really had; the tests of this folder run the same seeds with and without it, and
//! expect the catch.

use std::rc::Rc;

use varve_block::{BlockDevice, Data, Durability, IoBuf, Rt, Sector};

use crate::volume::Mapping;

type Io<T> = varve_block::Result<T>;

/// The defect that is switched on; nothing in life.
#[cfg(not(any(test, feature = "mutations")))]
pub(super) struct Hooks;

#[cfg(not(any(test, feature = "mutations")))]
impl Hooks {
    pub(super) fn none() -> Hooks {
        Hooks
    }

    #[inline]
    pub(super) async fn arrived(&self, _: &Rt, _: Sector, _: &IoBuf) {}

    #[inline]
    pub(super) fn decrypted(&self, _: &Mapping, _: Sector, _: &mut IoBuf) {}

    #[inline]
    pub(super) fn forgets_position(&self) -> bool {
        false
    }

    #[inline]
    pub(super) async fn write<D: BlockDevice>(
        &self,
        _: &Rt,
        below: &Rc<D>,
        at: Sector,
        buf: IoBuf,
        how: Durability,
    ) -> Io<Data> {
        below.write(at, Data::Owned(buf), how).await
    }
}

#[cfg(any(test, feature = "mutations"))]
pub(super) use mutated::Hooks;
#[cfg(any(test, feature = "mutations"))]
pub use mutated::{Mutation, Observer};

#[cfg(any(test, feature = "mutations"))]
mod mutated {
    use super::*;
    use std::cell::RefCell;
    use std::time::Duration;
    use varve_block::Sectors;

    /// Somebody who looks at memory that should be private.
    pub type Observer = Rc<dyn Fn(Sector, &[u8])>;

    /// A defect of an encryption layer.
    #[derive(Clone)]
    pub enum Mutation {
        /// C02: the caller's memory is visible between "bytes arrived" and "decrypted". The function
        /// is shown the ciphertext; a pause follows.
        VisibleBeforeDecryption(Observer),
        /// C07: after a failed write the caller gets its buffer back, encrypted.
        BufferKeptAfterError(Rc<RefCell<Option<Vec<u8>>>>),
        /// C05: the part of a large request that is left when no thread is free begins again with the
        /// position of the first.
        ForgetPosition,
        /// C08: the first block of a read is decrypted twice.
        DecryptTwice,
        /// C09, C11: a write is answered when it is queued; a worker carries it out some time later.
        AnswerWhenQueued,
        /// C10: FUA is lost on the way down.
        LoseFua,
        /// C12: encryption sectors go down in pieces of 512 bytes.
        SplitSectors,
    }

    /// The defect that is switched on.
    pub(in crate::device) struct Hooks(Option<Mutation>);

    impl Hooks {
        pub(in crate::device) fn none() -> Hooks {
            Hooks(None)
        }

        pub(in crate::device) fn with(mutation: Mutation) -> Hooks {
            Hooks(Some(mutation))
        }

        pub(in crate::device) async fn arrived(&self, rt: &Rt, at: Sector, buf: &IoBuf) {
            if let Some(Mutation::VisibleBeforeDecryption(show)) = &self.0 {
                show(at, buf);
                rt.sleep(Duration::from_nanos(rt.prng().below(20_000))).await;
            }
        }

        pub(in crate::device) fn decrypted(&self, m: &Mapping, at: Sector, buf: &mut IoBuf) {
            if let Some(Mutation::DecryptTwice) = self.0 {
                let unit = m.xts.sector_size().bytes();
                m.xts.decrypt(m.iv_number(at), &mut buf[..unit]);
            }
        }

        pub(in crate::device) fn forgets_position(&self) -> bool {
            matches!(self.0, Some(Mutation::ForgetPosition))
        }

        pub(in crate::device) async fn write<D: BlockDevice>(
            &self,
            rt: &Rt,
            below: &Rc<D>,
            at: Sector,
            buf: IoBuf,
            how: Durability,
        ) -> Io<Data> {
            match &self.0 {
                Some(Mutation::BufferKeptAfterError(kept)) => {
                    let copy = buf.to_vec();
                    let done = below.write(at, Data::Owned(buf), how).await;
                    if done.is_err() {
                        *kept.borrow_mut() = Some(copy);
                    }
                    done
                }
                Some(Mutation::AnswerWhenQueued) => {
                    let view = buf.freeze();
                    let (below, later, queued) = (Rc::clone(below), rt.clone(), view.clone());
                    drop(rt.spawn(async move {
                        later.sleep(Duration::from_nanos(later.prng().below(200_000))).await;
                        let _ = below.write(at, Data::Shared(queued), how).await;
                    }));
                    Ok(Data::Shared(view))
                }
                Some(Mutation::LoseFua) => {
                    below.write(at, Data::Owned(buf), Durability::Cached).await
                }
                Some(Mutation::SplitSectors) => {
                    let view = buf.freeze();
                    for (i, from) in (0u64..).zip((0..view.len()).step_by(512)) {
                        let piece = view.slice(from..from + 512);
                        below.write(at + Sectors(i), Data::Shared(piece), how).await?;
                        rt.yield_now().await;
                    }
                    Ok(Data::Shared(view))
                }
                _ => below.write(at, Data::Owned(buf), how).await,
            }
        }
    }
}
