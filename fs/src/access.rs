//! Trees and blocks as they are, for those who look at a file system rather than at files: the
//! checker, dumps, send.

use crate::error::Result;
use crate::format::key::{Key, objectid};
use crate::fs::{Fs, root_of};
use crate::tree::cursor::{Cursor, Tree};
use crate::tree::node::TreeBlock;
use crate::units::Logical;
use crate::verify::{Corrupt, Expect, Rules, examine_block};
use crate::volume::Volume;
use std::sync::Arc;
use varve_block::BlockDevice;

/// A tree block read from one copy, with everything that is wrong with it.
#[derive(Debug)]
pub struct Examined {
    pub bytes: Vec<u8>,
    /// In the order of the checker's rules. Behind a bad header or a bad item head nothing is
    /// examined, because nothing there can be believed.
    pub faults: Vec<Corrupt>,
}

impl<D: BlockDevice> Volume<D> {
    /// One copy of the block that `expect` describes, whatever is wrong with it. Copies count from 1
    /// to [`Volume::mirrors`].
    ///
    /// # Errors
    /// Only when the bytes cannot be had: no chunk, no device, no such copy, a failed read.
    pub(crate) async fn examine(&self, expect: &Expect, mirror: usize) -> Result<Examined> {
        let mut bytes = vec![0; self.rules.nodesize as usize];
        self.read_mirror(expect.logical, mirror, &mut bytes).await?;
        let faults = examine_block(&self.rules, &bytes, expect, mirror);
        Ok(Examined { bytes, faults })
    }
}

impl<D: BlockDevice> Fs<D> {
    /// A tree by its id, the newest where there are several under one id. `None` when the file
    /// system has none.
    pub async fn tree(&self, id: u64) -> Result<Option<Tree>> {
        match id {
            objectid::ROOT_TREE => Ok(Some(self.root_tree())),
            objectid::CHUNK_TREE => {
                Ok(Some(Tree::new(objectid::CHUNK_TREE, self.volume.sb.chunk_tree_root())))
            }
            id if objectid::is_file_tree(id) => match self.subvolume(id).await {
                Ok(subvolume) => Ok(Some(subvolume.tree)),
                Err(error) if error.kind == crate::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            },
            _ => Ok(root_of(&self.volume, id).await?.map(|(tree, _)| tree)),
        }
    }

    /// A cursor at the first item of `tree` that is not below `key`.
    pub async fn seek(&self, tree: &Tree, key: Key) -> Result<Cursor<'_, D>> {
        Cursor::seek(&self.volume, tree, key).await
    }

    /// A cursor at the last item of `tree` that is not above `key`, or at the first of all.
    pub async fn seek_back(&self, tree: &Tree, key: Key) -> Result<Cursor<'_, D>> {
        Cursor::seek_back(&self.volume, tree, key).await
    }

    /// A block that has passed the tree checker, from memory or from the first good copy.
    pub async fn block(&self, expect: &Expect) -> Result<Arc<TreeBlock>> {
        self.volume.block(expect).await
    }

    /// One copy of a block, and all that is wrong with it: reported, not failed.
    ///
    /// # Errors
    /// Only when the bytes cannot be had.
    pub async fn examine(&self, expect: &Expect, mirror: usize) -> Result<Examined> {
        self.volume.examine(expect, mirror).await
    }

    /// How many ways there are to read what lies at `at`: copies, and rebuilding from parity.
    pub fn mirrors(&self, at: Logical) -> Result<usize> {
        self.volume.mirrors(at)
    }

    /// Bytes of one copy, unverified, across chunks and stripes.
    pub async fn read_logical(&self, at: Logical, mirror: usize, out: &mut [u8]) -> Result<()> {
        self.volume.read_mirror(at, mirror, out).await
    }

    /// What blocks of this file system are measured against.
    pub fn rules(&self) -> &Rules {
        &self.volume.rules
    }
}
