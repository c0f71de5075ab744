//! Blocks as the checker reads them: every complaint is noted once, and a block that is only partly
//! wrong is still walked, for what is behind it.

use super::bitmap::Bitmap;
use super::finding::{Code, Findings, Severity};
use crate::error::{Error, Place};
use crate::format::block::Header;
use crate::tree::node::TreeBlock;
use crate::units::{Logical, to_usize};
use crate::verify::{self, Corrupt, Expect};
use crate::volume::Volume;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::ControlFlow;
use std::rc::Rc;
use varve_block::sync::join_all;
use varve_block::{BlockDevice, chain};

/// Bytes of one read ahead.
const AHEAD_BYTES: u64 = 1 << 20;
/// Blocks that a walk reads ahead at a time: 2 MiB of 16 KiB blocks.
pub(crate) const AHEAD_BLOCKS: usize = 128;
/// Blocks kept for the next tree that shares them.
const KEPT_BYTES: usize = 6 << 20;

pub(crate) struct Reader<'a, D> {
    pub(crate) volume: &'a Volume<D>,
    pub(crate) findings: &'a Findings,
    /// Blocks whose problems were told.
    told: RefCell<Bitmap>,
    /// Blocks that were read before anybody asked for them.
    ahead: RefCell<HashMap<u64, Vec<u8>>>,
    kept: RefCell<Kept>,
    pub(crate) blocks_read: Cell<u64>,
    /// Read and compare every copy of every block.
    pub(crate) all_copies: bool,
}

#[derive(Default)]
struct Kept {
    blocks: HashMap<u64, Rc<TreeBlock>>,
    order: VecDeque<u64>,
}

/// How much of a block can be believed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    /// Nothing of it.
    Nothing,
    /// Its layout holds, so its items can be walked.
    Walkable,
    Good,
}

impl<'a, D: BlockDevice> Reader<'a, D> {
    pub(crate) fn new(
        volume: &'a Volume<D>,
        findings: &'a Findings,
        all_copies: bool,
    ) -> Reader<'a, D> {
        Reader {
            volume,
            findings,
            told: RefCell::new(Bitmap::new(volume.rules.sectorsize)),
            ahead: RefCell::default(),
            kept: RefCell::default(),
            blocks_read: Cell::new(0),
            all_copies,
        }
    }

    /// The block that `expect` describes, or `None` with the reason told.
    pub(crate) async fn block(&self, expect: &Expect) -> Option<Rc<TreeBlock>> {
        let at = expect.logical.0;
        let kept = self.kept.borrow().blocks.get(&at).cloned();
        if let Some(block) = kept {
            return match block.is_expected(expect) {
                Ok(()) => Some(block),
                Err(corrupt) => {
                    self.tell(&corrupt, expect);
                    (worth_of(corrupt.rule) > Worth::Nothing).then_some(block)
                }
            };
        }
        let block = Rc::new(self.read(expect).await?);
        self.keep(at, &block);
        Some(block)
    }

    fn keep(&self, at: u64, block: &Rc<TreeBlock>) {
        let mut kept = self.kept.borrow_mut();
        if kept.blocks.insert(at, Rc::clone(block)).is_none() {
            kept.order.push_back(at);
        }
        let most = (KEPT_BYTES / block.size().max(1)).max(8);
        while kept.order.len() > most {
            let Some(old) = kept.order.pop_front() else { break };
            kept.blocks.remove(&old);
        }
    }

    async fn read(&self, expect: &Expect) -> Option<TreeBlock> {
        let at = expect.logical;
        self.blocks_read.set(self.blocks_read.get() + 1);
        let mirrors = match self.volume.mirrors(at) {
            Ok(mirrors) => mirrors,
            Err(error) => {
                self.unreadable(expect, &error);
                return None;
            }
        };
        let mut best: Option<(Worth, Vec<u8>)> = None;
        let mut problem: Option<Error> = None;
        for mirror in 1..=mirrors {
            let ahead = if mirror == 1 { self.ahead.borrow_mut().remove(&at.0) } else { None };
            let bytes = match ahead {
                Some(bytes) => Ok(bytes),
                None => {
                    let mut bytes = vec![0; self.volume.rules.nodesize as usize];
                    self.volume.read_mirror(at, mirror, &mut bytes).await.map(|()| bytes)
                }
            };
            let bytes = match bytes {
                Ok(bytes) => bytes,
                Err(error) => {
                    problem.get_or_insert(error);
                    continue;
                }
            };
            let worth = match verify::read_block(&self.volume.rules, &bytes, expect, mirror) {
                Ok(()) => Worth::Good,
                Err(corrupt) => self.judge(&corrupt, &bytes, expect),
            };
            if best.as_ref().is_none_or(|(had, _)| *had < worth) {
                best = Some((worth, bytes));
            }
            if worth == Worth::Good && !self.all_copies {
                break;
            }
        }
        match best {
            Some((worth, bytes)) if worth > Worth::Nothing => {
                Header::parse(&bytes).ok().map(|header| TreeBlock::understood(header, bytes))
            }
            _ => {
                if let Some(error) = problem {
                    self.unreadable(expect, &error);
                }
                None
            }
        }
    }

    /// Tells all that is wrong with a block, and how much of it can be believed.
    fn judge(&self, first: &Corrupt, bytes: &[u8], expect: &Expect) -> Worth {
        let tell = self.told.borrow_mut().insert(expect.logical.0) || self.all_copies;
        let worth = worth_of(first.rule);
        let outside = first.rule >= 158;
        if tell && (outside || worth == Worth::Nothing) {
            self.say(first, expect);
        }
        if worth == Worth::Nothing {
            return worth;
        }
        let mut worth = worth;
        let mut own = |corrupt: &Corrupt| {
            if tell {
                self.say(corrupt, expect);
            }
            worth = worth.min(worth_of(corrupt.rule));
        };
        let rules = &self.volume.rules;
        if Header::parse(bytes).is_ok_and(|header| header.level == 0) {
            verify::leaf_each(rules, bytes, |corrupt| {
                own(&corrupt);
                ControlFlow::Continue(())
            });
        } else if let Err(corrupt) = verify::node(rules, bytes) {
            own(&corrupt);
        }
        worth
    }

    /// A block is complained of once, however many trees share it.
    fn tell(&self, corrupt: &Corrupt, expect: &Expect) {
        if self.told.borrow_mut().insert(expect.logical.0) || self.all_copies {
            self.say(corrupt, expect);
        }
    }

    fn say(&self, corrupt: &Corrupt, expect: &Expect) {
        let place = Place {
            root: expect.owner.or(Some(corrupt.root)),
            logical: Some(expect.logical),
            inode: inode_of(corrupt),
            offset: None,
        };
        let code = match corrupt.rule {
            167 => Code::BlockCsum,
            164..=166 => Code::BlockIdentity,
            161 => Code::BlockTransid,
            158..=160 | 162 | 163 => Code::BlockParent,
            1..=16 => Code::BlockLayout,
            _ => Code::ItemRule,
        };
        let message = corrupt.message.clone();
        self.findings.push(code, Severity::Error, Some(corrupt.rule), place, message);
    }

    fn unreadable(&self, expect: &Expect, error: &Error) {
        if self.told.borrow_mut().insert(expect.logical.0) {
            let at = expect.logical;
            let place = Place { root: expect.owner, logical: Some(at), ..Place::default() };
            let text = format!("tree block {at} cannot be read: {}", chain(error));
            self.findings.add(Code::BlockUnreadable, place, text);
        }
    }

    /// Reads blocks that will be asked for soon, in the order of their addresses and as few
    /// requests; what fails here fails again, with words, when it is asked for.
    pub(crate) async fn ahead(&self, wanted: impl Iterator<Item = Logical>) {
        let node = u64::from(self.volume.rules.nodesize);
        let mut starts: Vec<u64> = {
            let (ahead, kept) = (self.ahead.borrow(), self.kept.borrow());
            wanted
                .map(|at| at.0)
                .filter(|at| !ahead.contains_key(at) && !kept.blocks.contains_key(at))
                .collect()
        };
        starts.sort_unstable();
        starts.dedup();
        let mut runs: BTreeMap<u64, u64> = BTreeMap::new();
        let mut last: Option<(u64, u64)> = None;
        for start in starts {
            last = match last {
                Some((from, len)) if from.checked_add(len) == Some(start) && len < AHEAD_BYTES => {
                    Some((from, len + node))
                }
                _ => Some((start, node)),
            };
            if let Some((from, len)) = last {
                runs.insert(from, len);
            }
        }
        let worth = |(from, len): &(u64, u64)| *len > node && self.mapped(*from, *len);
        let reads = runs.into_iter().filter(worth).map(|(from, len)| self.run_ahead(from, len));
        join_all(reads.collect::<Vec<_>>()).await;
    }

    /// Reads neighbours at once.
    async fn run_ahead(&self, from: u64, len: u64) {
        let node = to_usize(self.volume.rules.nodesize.into());
        let read = self.volume.fetch_mirror(Logical(from), 1, to_usize(len)).await;
        let Ok(bytes) = read else { return };
        let mut ahead = self.ahead.borrow_mut();
        for (n, block) in (0u64..).zip(bytes.chunks_exact(node)) {
            ahead.insert(from + n * node as u64, block.to_vec());
        }
    }

    fn mapped(&self, from: u64, len: u64) -> bool {
        let chunks = self.volume.chunks().borrow();
        chunks.find(Logical(from)).is_some_and(|(start, chunk)| {
            (from - start.0).checked_add(len).is_some_and(|end| end <= chunk.length)
        })
    }

    /// Forgets what was read ahead and not used: after a tree, that is what damage cut off.
    pub(crate) fn forget(&self) {
        self.ahead.borrow_mut().clear();
    }
}

/// What a broken rule leaves of a block.
fn worth_of(rule: u8) -> Worth {
    match rule {
        // The key order of a leaf is needed to walk it; positions are, too.
        1..=16 | 160 | 164..=167 => Worth::Nothing,
        _ => Worth::Walkable,
    }
}

/// The inode that a broken item rule is about, where its key says so.
fn inode_of(corrupt: &Corrupt) -> Option<u64> {
    let key = corrupt.key?;
    use crate::format::key::{ItemType, objectid};
    let of_inode = matches!(
        key.kind,
        ItemType::INODE_ITEM
            | ItemType::INODE_REF
            | ItemType::INODE_EXTREF
            | ItemType::XATTR_ITEM
            | ItemType::DIR_ITEM
            | ItemType::DIR_INDEX
            | ItemType::EXTENT_DATA
    );
    (of_inode && objectid::is_file_tree(corrupt.root)).then_some(key.objectid)
}
