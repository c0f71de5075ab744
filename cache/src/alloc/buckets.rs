//! What every bucket is, kept exact at every step.
//!
//! ```text
//!             invalidate            prio chain durable
//!   Unused ──────────────> Incoming ──────────────────> Free ──> Data (pinned while it is written)
//!     ^  Data, all clean ──────^                          └────> Meta ──┐
//!     └─────────────────────── released, parent durable ────────────────┘
//! ```
//!
//! The kernel recomputes marks in every gc and frees nothing in between. Here every insertion moves
//! the counts of the buckets it touches, so a bucket is reclaimable the moment its last dirty sector
//! is gone; gc only compares (O16).
//!
//! Three generations per bucket: the *current* one decides whether a pointer is stale, the *durable*
//! one is what a crash would leave, and *last_gc* is the oldest that any pointer may still have. They
//! never drift further apart than [`GEN_DISTANCE_MAX`].

use crate::btree::Generations;
use crate::format::{Bucket, Key, Layout, Prio, Ptr, Replacement, generation_after};
use varve_block::Prng;

/// How far a generation may run ahead of the oldest pointer. The kernel calls a pointer staler than
/// 96 broken; the last few are for freed nodes, which bump without asking.
const GEN_DISTANCE_MAX: u8 = 88;

/// What a bucket holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// Nothing that is needed; stale pointers may exist.
    Unused,
    /// Its generation went up; not durable yet.
    Incoming,
    /// Ready to be written.
    Free,
    Data,
    /// Btree node, prio set, uuid table, journal; also what lies below the first bucket.
    Meta,
}

#[derive(Clone, Copy, Debug)]
struct Info {
    /// When it was last used, in ticks of the clock.
    used: u32,
    /// Sectors that unstale keys name.
    live: u32,
    dirty: u32,
    pins: u16,
    gen_now: u8,
    gen_durable: u8,
    last_gc: u8,
    role: Role,
    /// Its counts moved since the gc that runs now began.
    touched: bool,
}

impl Info {
    /// Whether it could be had without losing anything.
    fn available(&self) -> bool {
        match self.role {
            Role::Unused | Role::Incoming | Role::Free => true,
            Role::Data => self.dirty == 0 && self.pins == 0,
            Role::Meta => false,
        }
    }
}

/// Numbers for display and for the cutoffs.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Counts {
    pub free: u64,
    pub unused: u64,
    pub clean: u64,
    pub dirty: u64,
    pub metadata: u64,
}

/// All buckets of the device.
#[derive(Clone, Debug)]
pub(crate) struct Buckets {
    layout: Layout,
    info: Vec<Info>,
    /// Ready to be written, oldest first.
    free: std::collections::VecDeque<Bucket>,
    available: u64,
    meta: u64,
    /// Freed nodes whose parent is not durable yet: on disk their generation must not move (W9).
    freeing: Vec<Bucket>,
    /// Goes up by one for each 1/1024 of the cache that was used.
    clock: u32,
    since_tick: u64,
    fifo_hand: u64,
    /// Recovery counted sectors for a life of a bucket that turned out to be over.
    voided: bool,
}

impl Buckets {
    /// Buckets with the generations and priorities of a prio chain, holding nothing.
    pub(crate) fn new(layout: &Layout, prios: &[Prio]) -> Buckets {
        let clock = u32::from(Prio::FRESH);
        let count = usize::try_from(layout.nbuckets).expect("bounded by memory");
        let first = usize::try_from(layout.first_bucket).expect("16 bits");
        let info = (0..count).map(|b| {
            let prio = prios.get(b).copied().unwrap_or_default();
            let used = if prio.prio == Prio::METADATA { Prio::FRESH } else { prio.prio };
            Info {
                used: u32::from(used.min(Prio::FRESH)),
                live: 0,
                dirty: 0,
                pins: 0,
                gen_now: prio.generation,
                gen_durable: prio.generation,
                last_gc: prio.generation,
                role: if b < first { Role::Meta } else { Role::Unused },
                touched: false,
            }
        });
        Buckets {
            layout: *layout,
            info: info.collect(),
            free: std::collections::VecDeque::new(),
            available: (count - first.min(count)) as u64,
            meta: first.min(count) as u64,
            freeing: Vec::new(),
            clock,
            since_tick: 0,
            fifo_hand: layout.first_bucket,
            voided: false,
        }
    }

    fn at(&self, bucket: Bucket) -> &Info {
        &self.info[index(bucket)]
    }

    /// Changes one bucket and keeps the sums.
    fn change<T>(&mut self, bucket: Bucket, change: impl FnOnce(&mut Info) -> T) -> T {
        let info = &mut self.info[index(bucket)];
        let (was, meta) = (info.available(), info.role == Role::Meta);
        let out = change(info);
        self.available = self.available + u64::from(info.available()) - u64::from(was);
        self.meta = self.meta + u64::from(info.role == Role::Meta) - u64::from(meta);
        out
    }

    // Generations.

    /// Recovery saw `ptr` on disk.
    pub(crate) fn recover_pointer(&mut self, ptr: Ptr) {
        let bucket = self.layout.bucket_of(ptr.offset());
        let voided = self.change(bucket, |info| {
            let gen_seen = ptr.generation();
            let mut voided = false;
            if generation_after(info.gen_now, gen_seen) == 0 && info.gen_now != gen_seen {
                voided = info.live > 0;
                info.gen_now = gen_seen;
                info.gen_durable = gen_seen;
            }
            if generation_after(info.last_gc, gen_seen) > 0 {
                info.last_gc = gen_seen;
            }
            voided
        });
        self.voided |= voided;
    }

    /// Whether counting began too early: a second pass with the generations known now is exact.
    pub(crate) fn voided(&self) -> bool {
        self.voided
    }

    /// Whether a pointer is of its bucket's current life.
    pub(crate) fn is_current(&self, ptr: Ptr) -> bool {
        self.current(self.layout.bucket_of(ptr.offset())) == ptr.generation()
    }

    /// The generation that may go to disk.
    fn persisted(&self, bucket: Bucket) -> u8 {
        let now = self.at(bucket).gen_now;
        if self.freeing.contains(&bucket) { now.wrapping_sub(1) } else { now }
    }

    /// What a prio chain written now says.
    pub(crate) fn prios(&self) -> Vec<Prio> {
        let (clock, freeing) = (self.clock, self.freeing.is_empty());
        let all = self.info.iter().enumerate().map(|(b, info)| {
            let generation = if freeing { info.gen_now } else { self.persisted(Bucket(b as u64)) };
            let prio = if info.role == Role::Meta { Prio::METADATA } else { prio_of(info, clock) };
            Prio { prio, generation }
        });
        all.collect()
    }

    /// A prio chain with these entries is durable.
    pub(crate) fn made_durable(&mut self, prios: &[Prio]) {
        for (info, prio) in self.info.iter_mut().zip(prios) {
            info.gen_durable = prio.generation;
        }
    }

    /// Whether a pointer will be stale after any crash.
    pub(crate) fn durably_stale(&self, ptr: Ptr) -> bool {
        let bucket = self.layout.bucket_of(ptr.offset());
        self.info
            .get(index(bucket))
            .is_none_or(|info| generation_after(info.gen_durable, ptr.generation()) > 0)
    }

    /// The generation of a new pointer into `bucket`.
    pub(crate) fn current(&self, bucket: Bucket) -> u8 {
        self.at(bucket).gen_now
    }

    // Counts.

    /// An unstale key names `sectors` more sectors.
    pub(crate) fn add(&mut self, ptr: Ptr, sectors: u32, dirty: bool) {
        let bucket = self.layout.bucket_of(ptr.offset());
        self.change(bucket, |info| {
            if info.gen_now != ptr.generation() {
                return;
            }
            if info.role == Role::Unused {
                info.role = Role::Data;
            }
            info.live += sectors;
            info.dirty += if dirty { sectors } else { 0 };
            info.touched = true;
        });
    }

    /// A key that named them was overwritten, trimmed or cleaned.
    pub(crate) fn sub(&mut self, ptr: Ptr, sectors: u32, dirty: bool) {
        let bucket = self.layout.bucket_of(ptr.offset());
        self.change(bucket, |info| {
            if info.gen_now != ptr.generation() {
                return;
            }
            assert!(info.live >= sectors, "{bucket} loses more sectors than it has");
            info.live -= sectors;
            if dirty {
                assert!(info.dirty >= sectors, "{bucket} loses more dirty sectors than it has");
                info.dirty -= sectors;
            }
            info.touched = true;
        });
    }

    /// Live and dirty sectors.
    pub(crate) fn sectors(&self, bucket: Bucket) -> (u32, u32) {
        let info = self.at(bucket);
        (info.live, info.dirty)
    }

    pub(crate) fn role(&self, bucket: Bucket) -> Role {
        self.at(bucket).role
    }

    /// Somebody reads or writes in it: it may not be invalidated.
    pub(crate) fn pin(&mut self, bucket: Bucket) {
        self.change(bucket, |info| info.pins += 1);
    }

    pub(crate) fn unpin(&mut self, bucket: Bucket) {
        self.change(bucket, |info| {
            assert!(info.pins > 0, "{bucket} was not pinned");
            info.pins -= 1;
        });
    }

    /// A hit.
    pub(crate) fn touch(&mut self, bucket: Bucket) {
        let clock = self.clock;
        self.info[index(bucket)].used = clock;
    }

    /// `sectors` went through the cache: the clock of the priorities moves.
    pub(crate) fn age(&mut self, sectors: u64) {
        self.since_tick += sectors;
        let step = (self.layout.sectors() / 1024).max(1);
        if self.since_tick >= step {
            self.since_tick -= step;
            self.clock = self.clock.saturating_add(1);
        }
    }

    // Life of a bucket.

    /// Marks a bucket that recovery found in use as metadata.
    pub(crate) fn set_meta(&mut self, bucket: Bucket) {
        self.change(bucket, |info| {
            info.role = Role::Meta;
            (info.live, info.dirty) = (0, 0);
        });
    }

    /// A metadata bucket that nothing durable names any more.
    pub(crate) fn release(&mut self, bucket: Bucket) {
        assert!(self.at(bucket).role == Role::Meta, "{bucket} is released but holds no metadata");
        self.freeing.retain(|&b| b != bucket);
        self.change(bucket, |info| info.role = Role::Unused);
    }

    /// A node is about to be replaced: its pointers become stale in memory now, on disk only after
    /// its parent is durable and it is [released](Buckets::release). Returns the new generation.
    pub(crate) fn free_node(&mut self, bucket: Bucket) -> u8 {
        self.freeing.push(bucket);
        self.change(bucket, |info| {
            info.gen_now = info.gen_now.wrapping_add(1);
            info.gen_now
        })
    }

    fn can_invalidate(info: &Info) -> bool {
        matches!(info.role, Role::Unused | Role::Data)
            && info.dirty == 0
            && info.pins == 0
            && generation_after(info.gen_now, info.last_gc) < GEN_DISTANCE_MAX
    }

    /// Up to `n` buckets worth the least, chosen by the policy. The second number counts buckets
    /// that only gc can make available, by finding out that their old pointers are gone.
    pub(crate) fn candidates(
        &mut self,
        n: usize,
        policy: Replacement,
        prng: &Prng,
    ) -> (Vec<Bucket>, u64) {
        let too_far = |info: &&Info| {
            info.available()
                && matches!(info.role, Role::Unused | Role::Data)
                && generation_after(info.gen_now, info.last_gc) >= GEN_DISTANCE_MAX
        };
        let blocked = self.info.iter().filter(too_far).count() as u64;
        let chosen = match policy {
            Replacement::Lru => self.least_recently_used(n),
            Replacement::Fifo => self.next_in_turn(n),
            Replacement::Random => self.random(n, prng),
        };
        (chosen, blocked)
    }

    fn least_recently_used(&self, n: usize) -> Vec<Bucket> {
        let usable = || self.info.iter().enumerate().filter(|(_, info)| Self::can_invalidate(info));
        let min = usable().map(|(_, info)| prio_of(info, self.clock)).min().unwrap_or(0);
        let (min, base) = (u64::from(min), (u64::from(Prio::FRESH) - u64::from(min)) / 8);
        let mut values: Vec<(u64, u64)> = usable()
            .map(|(b, info)| {
                let prio = u64::from(prio_of(info, self.clock));
                ((prio - min + base) * u64::from(info.live), b as u64)
            })
            .collect();
        let n = n.min(values.len());
        if n == 0 {
            return Vec::new();
        }
        values.select_nth_unstable(n - 1);
        values.truncate(n);
        values.sort_unstable();
        values.into_iter().map(|(_, b)| Bucket(b)).collect()
    }

    fn next_in_turn(&mut self, n: usize) -> Vec<Bucket> {
        let mut chosen = Vec::new();
        for _ in 0..self.info.len() {
            if chosen.len() == n {
                break;
            }
            let bucket = Bucket(self.fifo_hand);
            self.fifo_hand += 1;
            if self.fifo_hand >= self.layout.nbuckets {
                self.fifo_hand = self.layout.first_bucket;
            }
            if Self::can_invalidate(self.at(bucket)) {
                chosen.push(bucket);
            }
        }
        chosen
    }

    fn random(&self, n: usize, prng: &Prng) -> Vec<Bucket> {
        let mut chosen = std::collections::BTreeSet::new();
        let span = self.layout.nbuckets - self.layout.first_bucket;
        for _ in 0..self.layout.nbuckets {
            if chosen.len() == n {
                break;
            }
            let bucket = Bucket(self.layout.first_bucket + prng.below(span.max(1)));
            if Self::can_invalidate(self.at(bucket)) {
                chosen.insert(bucket);
            }
        }
        chosen.into_iter().collect()
    }

    /// Makes every pointer into the bucket stale. False: it is not to be had any more.
    pub(crate) fn invalidate(&mut self, bucket: Bucket) -> bool {
        if !Self::can_invalidate(self.at(bucket)) {
            return false;
        }
        self.change(bucket, |info| {
            info.gen_now = info.gen_now.wrapping_add(1);
            info.live = 0;
            info.role = Role::Incoming;
            info.touched = true;
        });
        true
    }

    /// The new generation is durable: the bucket may be handed out (O12, W8).
    pub(crate) fn push_free(&mut self, bucket: Bucket) {
        let info = self.at(bucket);
        assert!(info.role == Role::Incoming, "{bucket} was not invalidated");
        assert!(info.gen_now == info.gen_durable, "{bucket} is not invalid on disk yet");
        self.push_unwritten(bucket);
    }

    /// A bucket that no live pointer on disk names, so that a crash which forgets its new generation
    /// revives nothing: no prio chain is needed. Only recovery can know that.
    pub(crate) fn push_untouched(&mut self, bucket: Bucket) {
        if self.invalidate(bucket) {
            self.push_unwritten(bucket);
        }
    }

    fn push_unwritten(&mut self, bucket: Bucket) {
        assert!(self.at(bucket).live == 0, "{bucket} is free and holds data");
        self.change(bucket, |info| info.role = Role::Free);
        self.free.push_back(bucket);
    }

    /// A bucket from the free list, never leaving less than `keep`.
    pub(crate) fn take_free(&mut self, keep: usize, role: Role) -> Option<Bucket> {
        if self.free.len() <= keep {
            return None;
        }
        let bucket = self.free.pop_front()?;
        assert!(self.at(bucket).role == Role::Free, "{bucket} is on the free list");
        let clock = self.clock;
        self.change(bucket, |info| {
            info.role = role;
            info.used = clock;
        });
        Some(bucket)
    }

    /// Gives back a bucket that was taken and never written.
    pub(crate) fn untake(&mut self, bucket: Bucket) {
        self.change(bucket, |info| info.role = Role::Free);
        self.free.push_front(bucket);
    }

    pub(crate) fn free_len(&self) -> usize {
        self.free.len()
    }

    // Figures.

    /// Percent of buckets that hold dirty data, metadata, or are being written.
    pub(crate) fn in_use_percent(&self) -> u8 {
        let percent = self.in_use() * 100 / self.layout.nbuckets.max(1);
        u8::try_from(percent).unwrap_or(100)
    }

    /// How many those are.
    pub(crate) fn in_use(&self) -> u64 {
        self.layout.nbuckets.saturating_sub(self.available)
    }

    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for info in &self.info {
            match info.role {
                Role::Unused => counts.unused += 1,
                Role::Incoming | Role::Free => counts.free += 1,
                Role::Meta => counts.metadata += 1,
                Role::Data if info.dirty > 0 => counts.dirty += 1,
                Role::Data if info.live > 0 || info.pins > 0 => counts.clean += 1,
                Role::Data => counts.unused += 1,
            }
        }
        counts
    }

    // Gc.

    /// The current generations: the newest that `last_gc` may become.
    pub(crate) fn begin_gc(&mut self) -> Vec<u8> {
        self.info.iter_mut().for_each(|info| info.touched = false);
        self.info.iter().map(|info| info.gen_now).collect()
    }

    /// Gc has seen every pointer: `oldest` is the oldest generation per bucket.
    pub(crate) fn end_gc(&mut self, oldest: &[u8]) {
        for (info, oldest) in self.info.iter_mut().zip(oldest) {
            info.last_gc = *oldest;
        }
    }

    /// O16: the first bucket whose counts did not move since gc began and differ from what gc saw.
    pub(crate) fn disagreement(&self, seen: &[(u32, u32)]) -> Option<(Bucket, (u32, u32))> {
        let wrong = self.info.iter().zip(seen).position(|(info, seen)| {
            info.role == Role::Data && !info.touched && (info.live, info.dirty) != *seen
        })?;
        Some((Bucket(wrong as u64), (self.info[wrong].live, self.info[wrong].dirty)))
    }

    /// Check 50 after recovery: more live sectors than the bucket has.
    pub(crate) fn overfull(&self) -> Option<Bucket> {
        let wrong = self.info.iter().position(|info| info.live > self.layout.bucket_size)?;
        Some(Bucket(wrong as u64))
    }

    /// Adds a key that recovery found in a leaf.
    pub(crate) fn recover_key(&mut self, key: &Key) {
        if let Some(ptr) = key.ptr().filter(|ptr| ptr.available()) {
            self.add(ptr, key.size(), key.dirty());
        }
    }

    /// Buckets without any live pointer.
    pub(crate) fn unused(&self) -> Vec<Bucket> {
        let unused = self.info.iter().enumerate().filter(|(_, info)| info.role == Role::Unused);
        unused.map(|(b, _)| Bucket(b as u64)).collect()
    }
}

impl Generations for Buckets {
    fn generation(&self, bucket: Bucket) -> u8 {
        self.info.get(index(bucket)).map_or(0, |info| info.gen_now)
    }
}

/// The generations that a crash would leave.
pub(crate) struct Durable<'a>(pub &'a Buckets);

impl Generations for Durable<'_> {
    fn generation(&self, bucket: Bucket) -> u8 {
        self.0.info.get(index(bucket)).map_or(0, |info| info.gen_durable)
    }
}

/// Priority on disk: fresh when just used, one less for each tick since, never 0 ("never used").
fn prio_of(info: &Info, clock: u32) -> u16 {
    let age = clock.saturating_sub(info.used);
    u16::try_from(u32::from(Prio::FRESH).saturating_sub(age).max(1)).unwrap_or(1)
}

pub(crate) fn index(bucket: Bucket) -> usize {
    usize::try_from(bucket.0).unwrap_or(usize::MAX)
}

#[cfg(test)]
#[path = "buckets_tests.rs"]
mod tests;
