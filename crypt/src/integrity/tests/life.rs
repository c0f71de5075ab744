//! The steps that the lives of all volumes are made of, between a start and a power cut.

use super::model::*;
use super::*;
use varve_block::Prng;
use varve_block::sync::{Either, select};

/// A volume at work, and what may be found of it after a cut.
pub(super) struct Life<'a, S> {
    pub(super) rt: &'a Rt,
    pub(super) s: Rc<S>,
    /// Bytes of a block.
    pub(super) unit: usize,
    pub(super) model: &'a mut Model,
    /// Of the last write.
    pub(super) version: &'a mut u64,
    pub(super) chance: &'a Prng,
}

impl<S: BlockDevice> Life<'_, S> {
    fn at(&self, block: usize) -> Sector {
        Sector((block * self.unit / 512) as u64)
    }

    pub(super) async fn flush(&mut self) {
        self.s.flush().await.unwrap();
        self.model.flush();
    }

    pub(super) async fn write_through(&mut self, block: usize) {
        *self.version += 1;
        let buf = BufPool::new(0).take_copy(&bytes(block, *self.version, self.unit)).await;
        self.s.write(self.at(block), Data::Owned(buf), Durability::Fua).await.unwrap();
        self.model.write(block, *self.version);
        self.model.settle(block);
    }

    /// A read, and a flush under way, while others write.
    pub(super) async fn read_beside_a_flush(&self, block: usize) {
        let other = Rc::clone(&self.s);
        drop(self.rt.spawn(async move { drop(other.flush().await) }));
        drop(try_read(&*self.s, self.at(block).0, self.unit as u64 / 512).await.unwrap());
    }

    /// One to four blocks. One time in `odds` the cut may come meanwhile: `false` says that it did.
    pub(super) async fn write_some(&mut self, block: usize, odds: u64) -> bool {
        let mut all = Vec::new();
        for block in block..block + 1 + self.chance.index(4) {
            *self.version += 1;
            all.extend(bytes(block, *self.version, self.unit));
            self.model.write(block, *self.version);
        }
        let buf = BufPool::new(0).take_copy(&all).await;
        let write = self.s.write(self.at(block), Data::Owned(buf), Durability::Cached);
        if self.chance.chance(1, odds) {
            let cut = self.rt.sleep(moment(self.chance));
            return matches!(select(write, cut).await, Either::Left(_));
        }
        write.await.unwrap();
        true
    }
}
