//! Quota groups: what each says it holds against what its subvolumes reach, or with simple quotas own
//! (format: btrfs 17).
//!
//! From the roots down, level by level, each block takes over the set of subvolumes that reach its
//! parents; sets are few, so a block or extent is one number. Every block is read once, however many
//! snapshots share it.

mod sets;
mod simple;

use super::finding::{Code, Severity};
use super::roots::Roots;
use super::run::{Job, Run};
use super::walk::{Step, Walk};
use crate::error::Place;
use crate::format::file_extent::{Body, FileExtent};
use crate::format::key::{ItemType, objectid};
use crate::tree::node::TreeBlock;
use crate::units::Logical;
use crate::verify::Expect;
use sets::{SetId, Sets};
use simple::Owned;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use varve_block::BlockDevice;

/// Extents remembered by one pass: some 200 MiB of them.
const EXTENTS_MAX: usize = 4 << 20;
/// Blocks read ahead at a time.
const AHEAD: usize = super::reader::AHEAD_BLOCKS;

const ON: u64 = 1;
const RESCAN: u64 = 1 << 1;
const INCONSISTENT: u64 = 1 << 2;
const SIMPLE: u64 = 1 << 3;

/// Bytes of a group: of all extents its members reach, and of those that nobody else does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Bytes {
    referenced: u64,
    exclusive: u64,
}

/// The quota tree.
#[derive(Default)]
struct Quota {
    flags: Option<u64>,
    /// Transaction that turned simple quotas on.
    since: Option<u64>,
    groups: BTreeMap<u64, Bytes>,
    /// By member.
    parents: BTreeMap<u64, BTreeSet<u64>>,
    /// As they stand on disk: each relation twice.
    relations: BTreeSet<(u64, u64)>,
}

pub(super) async fn check<D: BlockDevice>(run: &Run<'_, '_, D>, roots: &Roots) {
    let Some(quota) = read(run, roots).await else { return };
    let flags = quota.flags.unwrap_or(0);
    if flags & ON == 0 || flags & (RESCAN | INCONSISTENT) != 0 {
        return;
    }
    relations(run, &quota);
    let (found, severity) = match flags & SIMPLE {
        0 => (shared(run, roots, &quota).await, Code::Quota.severity()),
        _ => {
            let Some(since) = quota.since else {
                let text = "simple quotas do not say since when they count";
                run.findings.add(Code::Quota, place(), text);
                return;
            };
            let owned = Owned::count(run, roots, since).await;
            let unsure = owned.as_ref().is_some_and(|owned| owned.unsure);
            let severity = if unsure { Severity::Warning } else { Code::Quota.severity() };
            (owned.map(|owned| owned.groups(&quota)), severity)
        }
    };
    match found {
        Some(found) => compare(run, &quota, &found, severity),
        None => {
            let text = "quota groups were not compared: some of the trees that they count are lost";
            run.findings.warn(Code::Quota, place(), text);
        }
    }
}

/// Full quotas: who reaches what. `None` when something is lost.
async fn shared<D: BlockDevice>(
    run: &Run<'_, '_, D>,
    roots: &Roots,
    quota: &Quota,
) -> Option<BTreeMap<u64, Bytes>> {
    let jobs: Vec<Job> =
        roots.file_jobs().into_iter().filter(|job| objectid::is_file_tree(job.tree.id)).collect();
    let mut count = Count { run, jobs, sets: Sets::default(), bytes: BTreeMap::new(), lost: false };
    count.all().await;
    (!count.lost).then(|| count.groups(quota))
}

fn compare<D: BlockDevice>(
    run: &Run<'_, '_, D>,
    quota: &Quota,
    found: &BTreeMap<u64, Bytes>,
    severity: Severity,
) {
    for (id, disk) in &quota.groups {
        let ours = found.get(id).copied().unwrap_or_default();
        if ours != *disk {
            let note = match severity {
                Severity::Error => "",
                Severity::Warning => "; a balance has left blocks that do not say whose they are",
            };
            let text = format!(
                "Counts for qgroup id: {} are different: referenced {} on disk, {} found, exclusive \
                 {} on disk, {} found{note}",
                name(*id),
                disk.referenced,
                ours.referenced,
                disk.exclusive,
                ours.exclusive
            );
            run.findings.push(Code::Quota, severity, None, place(), text);
        }
    }
}

fn place() -> Place {
    Place { root: Some(objectid::QUOTA_TREE), ..Place::default() }
}

fn name(id: u64) -> String {
    format!("{}/{}", id >> 48, id & ((1 << 48) - 1))
}

fn word(data: &[u8], n: usize) -> Option<u64> {
    let bytes = data.get(n * 8..n * 8 + 8)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

async fn read<D: BlockDevice>(run: &Run<'_, '_, D>, roots: &Roots) -> Option<Quota> {
    let tree = roots.tree(objectid::QUOTA_TREE)?;
    let mut quota = Quota::default();
    let mut walk = Walk::new(run.reader, tree, None);
    while let Some(step) = walk.next().await {
        let Step::Block(block) = step else { return None };
        for slot in 0..block.len() {
            let Some((key, data)) = block.item(slot) else { continue };
            let sound = match key.kind {
                ItemType::QGROUP_STATUS => {
                    quota.flags = word(data, 2);
                    quota.since = word(data, 4);
                    quota.flags.is_some()
                }
                ItemType::QGROUP_INFO => match (word(data, 1), word(data, 3)) {
                    (Some(referenced), Some(exclusive)) => {
                        quota.groups.insert(key.offset, Bytes { referenced, exclusive });
                        true
                    }
                    _ => false,
                },
                ItemType::QGROUP_RELATION => {
                    let (a, b) = (key.objectid, key.offset);
                    quota.relations.insert((a, b));
                    quota.parents.entry(a.min(b)).or_default().insert(a.max(b));
                    true
                }
                ItemType::QGROUP_LIMIT => true,
                _ => {
                    let text = format!("unknown key {key} in the quota tree");
                    run.findings.add(Code::UnknownKey, place(), text);
                    true
                }
            };
            if !sound {
                let text = format!("quota item {key} has {} bytes only", data.len());
                run.findings.add(Code::Quota, place(), text);
            }
        }
    }
    run.reader.forget();
    Some(quota)
}

/// Each relation stands twice, between groups that exist, and from a lower level to a higher one.
fn relations<D: BlockDevice>(run: &Run<'_, '_, D>, quota: &Quota) {
    for (a, b) in &quota.relations {
        let tell = |what: &str| {
            let text = format!("qgroup relation {} to {}: {what}", name(*a), name(*b));
            run.findings.warn(Code::Quota, place(), text);
        };
        if !quota.relations.contains(&(*b, *a)) {
            tell("the reverse is missing");
        }
        if a >> 48 == b >> 48 {
            tell("both are of one level");
        }
        if !quota.groups.contains_key(a) || !quota.groups.contains_key(b) {
            tell("there is no such group");
        }
    }
}

struct Count<'r, 'x, 'a, D: BlockDevice> {
    run: &'r Run<'x, 'a, D>,
    jobs: Vec<Job>,
    sets: Sets,
    /// What each set of subvolumes reaches.
    bytes: BTreeMap<SetId, u64>,
    lost: bool,
}

impl<D: BlockDevice> Count<'_, '_, '_, D> {
    async fn all(&mut self) {
        let mut from = 0;
        while let Some(next) = self.pass(from).await {
            from = next;
        }
    }

    /// Counts the extents from `from` on, and in the first pass the blocks. Where the next pass has to
    /// begin, if there were too many.
    async fn pass(&mut self, from: u64) -> Option<u64> {
        let node = u64::from(self.run.sb().nodesize);
        let mut levels: [BTreeMap<u64, SetId>; 8] = Default::default();
        for (n, job) in self.jobs.iter().enumerate() {
            let set = self.sets.one(n);
            let root = job.tree.root;
            if let Some(level) = levels.get_mut(usize::from(root.level)) {
                self.sets.merge(level.entry(root.block.0).or_insert(set), set);
            }
        }
        let mut extents: HashMap<u64, (u64, SetId)> = HashMap::new();
        let mut until = u64::MAX;
        for level in (0..8u8).rev() {
            let blocks = std::mem::take(&mut levels[usize::from(level)]);
            let order: Vec<(u64, SetId)> = blocks.into_iter().collect();
            for batch in order.chunks(AHEAD) {
                self.run.reader.ahead(batch.iter().map(|(at, _)| Logical(*at))).await;
                for &(at, set) in batch {
                    if from == 0 {
                        *self.bytes.entry(set).or_insert(0) += node;
                    }
                    let expect = Expect {
                        logical: Logical(at),
                        level,
                        generation: None,
                        first_key: None,
                        owner: None,
                    };
                    let Some(block) = self.run.reader.block(&expect).await else {
                        self.lost = true;
                        continue;
                    };
                    if level == 0 {
                        self.leaf(&block, set, &mut extents, from..until);
                        if extents.len() > EXTENTS_MAX {
                            until = halve(&mut extents);
                        }
                    } else {
                        self.node(&block, set, &mut levels[usize::from(level) - 1]);
                    }
                }
            }
            self.run.reader.forget();
        }
        for (len, set) in extents.into_values() {
            *self.bytes.entry(set).or_insert(0) += len;
        }
        (until != u64::MAX).then_some(until)
    }

    fn node(&mut self, block: &TreeBlock, set: SetId, below: &mut BTreeMap<u64, SetId>) {
        // What a deletion has passed by is nobody's; what it has not reached is not shared yet.
        let dropped = self.sets.only(set).and_then(|n| self.jobs.get(n)?.dropped);
        for slot in 0..block.len() {
            if dropped.is_some_and(|dropped| dropped.has(block, slot)) {
                continue;
            }
            if let Some(pointer) = block.pointer(slot) {
                self.sets.merge(below.entry(pointer.block.0).or_insert(set), set);
            }
        }
    }

    fn leaf(
        &mut self,
        block: &TreeBlock,
        set: SetId,
        extents: &mut HashMap<u64, (u64, SetId)>,
        range: std::ops::Range<u64>,
    ) {
        for slot in 0..block.len() {
            let Some((key, data)) = block.item(slot) else { continue };
            if key.kind != ItemType::EXTENT_DATA {
                continue;
            }
            let Ok(extent) = FileExtent::parse(data) else { continue };
            let (Body::Regular(place) | Body::Prealloc(place)) = extent.body else { continue };
            if place.is_hole() || !range.contains(&place.disk_bytenr.0) {
                continue;
            }
            let entry = extents.entry(place.disk_bytenr.0).or_insert((place.disk_num_bytes, set));
            self.sets.merge(&mut entry.1, set);
        }
    }

    /// The bytes of each group: a set belongs to every group of every subvolume in it, and wholly to
    /// those that all of its subvolumes are in.
    fn groups(&self, quota: &Quota) -> BTreeMap<u64, Bytes> {
        let mut found: BTreeMap<u64, Bytes> = BTreeMap::new();
        for (set, bytes) in &self.bytes {
            let members = self.sets.members(*set);
            let mut seen: BTreeMap<u64, usize> = BTreeMap::new();
            for n in members {
                let Some(job) = self.jobs.get(*n) else { continue };
                if quota.groups.contains_key(&job.tree.id) {
                    for group in ancestors(quota, job.tree.id) {
                        *seen.entry(group).or_insert(0) += 1;
                    }
                }
            }
            for (group, times) in seen {
                let sums = found.entry(group).or_default();
                sums.referenced = sums.referenced.saturating_add(*bytes);
                if times == members.len() {
                    sums.exclusive = sums.exclusive.saturating_add(*bytes);
                }
            }
        }
        found
    }
}

/// A group and all groups above it, each once.
fn ancestors(quota: &Quota, id: u64) -> BTreeSet<u64> {
    let mut all = BTreeSet::from([id]);
    let mut todo = vec![id];
    while let Some(at) = todo.pop() {
        for parent in quota.parents.get(&at).into_iter().flatten() {
            if all.insert(*parent) {
                todo.push(*parent);
            }
        }
    }
    all
}

/// Keeps the lower half of the extents, and says where the rest begins.
fn halve(extents: &mut HashMap<u64, (u64, SetId)>) -> u64 {
    let mut starts: Vec<u64> = extents.keys().copied().collect();
    let half = starts.len() / 2;
    let (_, middle, _) = starts.select_nth_unstable(half);
    let middle = *middle;
    extents.retain(|start, _| *start < middle);
    middle
}
