//! The shadow array: for every block, the contents it may have.
//!
//! A block has a list of versions, oldest first: the last one that is certainly durable, and
//! everything written since. A read without a crash sees the newest. A crash leaves any of the list;
//! what is read after it is what the block has from then on: it must not change again by itself.

use std::cell::RefCell;
use std::rc::Rc;

use varve_block::sync::RangeLock;
use varve_block::{
    BlockDevice, BufPool, Data, Durability, Extent, Prng, Rt, Sector, Sectors, Zero,
};

use super::SimCache;

/// What a block holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Content {
    Zero,
    Version(u64),
    /// It was discarded: anything.
    Any,
}

#[derive(Clone, Debug)]
struct Entry {
    content: Content,
    /// When its write was acknowledged, by the model's clock.
    done: Option<u64>,
}

/// See the module.
pub(super) struct Model {
    block: u64,
    /// Per block, never empty.
    maybe: RefCell<Vec<Vec<Entry>>>,
    clock: std::cell::Cell<u64>,
    pub locks: RangeLock,
    /// Requests may fail. A block whose write failed has any of its versions until the next write.
    pub tolerant: std::cell::Cell<bool>,
}

impl Model {
    pub(super) fn new(volume: u64, block: u64) -> Rc<Model> {
        let fresh = vec![Entry { content: Content::Zero, done: Some(0) }];
        Rc::new(Model {
            block,
            maybe: RefCell::new(vec![fresh; usize::try_from(volume / block).unwrap()]),
            clock: std::cell::Cell::new(1),
            locks: RangeLock::new(),
            tolerant: std::cell::Cell::new(false),
        })
    }

    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    fn blocks(&self, range: Extent) -> std::ops::Range<usize> {
        let of = |at: u64| usize::try_from(at / self.block).unwrap();
        of(range.start.0)..of(range.end().0)
    }

    /// Bytes of a version of a block.
    fn fill(&self, number: usize, content: Content, out: &mut [u8]) {
        match content {
            Content::Version(v) => {
                let seed = v << 20 | number as u64;
                Prng::new(seed).fill(out);
                out[..8].copy_from_slice(&seed.to_le_bytes());
            }
            _ => out.fill(0),
        }
    }

    fn begin(&self, range: Extent, content: Content) {
        let mut maybe = self.maybe.borrow_mut();
        for b in self.blocks(range) {
            maybe[b].push(Entry { content, done: None });
        }
    }

    fn done(&self, range: Extent, durable: bool) {
        let now = self.tick();
        let mut maybe = self.maybe.borrow_mut();
        for b in self.blocks(range) {
            let versions = &mut maybe[b];
            versions.last_mut().unwrap().done = Some(now);
            if durable {
                versions.drain(..versions.len() - 1);
            }
        }
    }

    /// The result of a request; an error is fine only where errors were injected.
    fn accept<T>(&self, result: varve_block::Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(_) if self.tolerant.get() => None,
            Err(e) => panic!("{}", varve_block::chain(&e)),
        }
    }

    /// A flush that began at `began` was acknowledged.
    fn flushed(&self, began: u64) {
        for versions in self.maybe.borrow_mut().iter_mut() {
            let covered = versions.iter().rposition(|e| e.done.is_some_and(|done| done <= began));
            versions.drain(..covered.unwrap_or(0));
        }
    }

    /// Checks one block as a reader without crash sees it.
    fn expect_newest(&self, b: usize, bytes: &[u8], what: &str) {
        if self.tolerant.get() && self.maybe.borrow()[b].last().unwrap().done.is_none() {
            let maybe = self.maybe.borrow();
            let legal = maybe[b].iter().any(|e| self.is(b, e.content, bytes));
            assert!(
                legal,
                "{what}: block {b} is {}, not one of {:?}",
                self.name(b, bytes),
                maybe[b]
            );
            return;
        }
        let newest = self.maybe.borrow()[b].last().unwrap().content;
        assert!(
            self.is(b, newest, bytes),
            "{what}: block {b} is {}, not {newest:?}",
            self.name(b, bytes)
        );
    }

    fn is(&self, b: usize, content: Content, bytes: &[u8]) -> bool {
        if content == Content::Any {
            return true;
        }
        let mut want = vec![0; bytes.len()];
        self.fill(b, content, &mut want);
        want == bytes
    }

    fn name(&self, b: usize, bytes: &[u8]) -> String {
        let seed = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        if bytes.iter().all(|&byte| byte == 0) {
            return "zero".into();
        }
        let whole = self.is((seed & 0xF_FFFF) as usize, Content::Version(seed >> 20), bytes);
        let (of, part) = (seed & 0xF_FFFF, if whole { "" } else { "torn " });
        format!("{part}version {} of block {of} (here {b})", seed >> 20)
    }

    /// After a crash: every block has one of its possible contents. From now on that one.
    pub(super) fn after_crash(&self, all: &[u8]) {
        let len = Sectors(self.block).byte_len();
        let mut maybe = self.maybe.borrow_mut();
        for (b, bytes) in all.chunks(len).enumerate() {
            let versions = &mut maybe[b];
            let found = versions.iter().find(|e| self.is(b, e.content, bytes));
            let Some(found) = found else {
                panic!(
                    "block {b} is {} after the crash, not one of {versions:?}",
                    self.name(b, bytes)
                );
            };
            let content = match found.content {
                Content::Any if bytes.iter().any(|&byte| byte != 0) => Content::Any,
                Content::Any => Content::Zero,
                content => content,
            };
            *versions = vec![Entry { content, done: Some(0) }];
        }
    }

    /// Without a crash: every block has its newest content.
    pub(super) fn expect_all(&self, all: &[u8], what: &str) {
        let len = Sectors(self.block).byte_len();
        for (b, bytes) in all.chunks(len).enumerate() {
            self.expect_newest(b, bytes, what);
        }
    }
}

/// How random requests are made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// Longest request, in blocks.
    pub blocks_max: u64,
    /// Requests fall into this many blocks from the start of the volume.
    pub span: u64,
    pub discards: bool,
}

/// One client: random requests, each checked.
pub(super) async fn client(
    rt: Rt,
    cache: Rc<SimCache>,
    model: Rc<Model>,
    load: Load,
    requests: u64,
) {
    let pool = BufPool::new(0);
    let chance = rt.prng().fork();
    for n in 0..requests {
        let range = pick(&model, load, &chance);
        match chance.below(20) {
            0..=8 => write(&cache, &model, &pool, range, &chance).await,
            9..=15 => {
                let _range = model.locks.read(range).await;
                let buf = cache.read(range.start, pool.take(range.len).await).await;
                let Some(buf) = model.accept(buf) else { continue };
                for (b, bytes) in
                    model.blocks(range).zip(buf.chunks(Sectors(model.block).byte_len()))
                {
                    model.expect_newest(b, bytes, "read");
                }
            }
            16 | 17 => {
                let began = model.tick();
                if model.accept(cache.flush().await).is_some() {
                    model.flushed(began);
                }
            }
            18 => {
                let _range = model.locks.write(range).await;
                model.begin(range, Content::Zero);
                let how = if chance.chance(1, 4) { Durability::Fua } else { Durability::Cached };
                let zero =
                    Zero { may_unmap: chance.chance(1, 2), durability: how, ..Zero::default() };
                let done = cache.write_zeroes(range, zero).await;
                if model.accept(done).is_some() {
                    model.done(range, how == Durability::Fua);
                }
            }
            _ if load.discards => {
                let _range = model.locks.write(range).await;
                model.begin(range, Content::Any);
                let done = cache.discard(range).await;
                if model.accept(done).is_some() {
                    model.done(range, false);
                }
            }
            _ => rt.sleep(std::time::Duration::from_micros(chance.below(3000))).await,
        }
        if n % 64 == 0 {
            rt.yield_now().await;
        }
    }
}

fn pick(model: &Model, load: Load, chance: &Prng) -> Extent {
    let volume = model.maybe.borrow().len() as u64;
    let span = load.span.min(volume);
    let len = 1 + chance.below(load.blocks_max.min(span));
    let start = chance.below(span - len + 1);
    Extent::new(Sector(start * model.block), Sectors(len * model.block))
}

async fn write(cache: &SimCache, model: &Model, pool: &BufPool, range: Extent, chance: &Prng) {
    let _range = model.locks.write(range).await;
    let version = Content::Version(model.tick());
    let mut buf = pool.take(range.len).await;
    for (b, bytes) in model.blocks(range).zip(buf.chunks_mut(Sectors(model.block).byte_len())) {
        model.fill(b, version, bytes);
    }
    let how = if chance.chance(1, 8) { Durability::Fua } else { Durability::Cached };
    let data: Data = if chance.chance(1, 2) { buf.into() } else { buf.freeze().into() };
    model.begin(range, version);
    if model.accept(cache.write(range.start, data, how).await).is_some() {
        model.done(range, how == Durability::Fua);
    }
}
