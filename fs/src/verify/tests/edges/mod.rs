//! S13: the edge of every rule. What is just legal is accepted, what is just not is refused, and by that
//! rule: a checker that is off by one either loses data or lets damage in.

mod blocks;
mod extents;
mod files;
mod roots;
mod space;

use super::*;
use std::collections::BTreeSet;

/// Verdicts on the last legal and the first illegal values, by rule.
#[derive(Default)]
pub(super) struct Edges(Vec<(u8, Vec<Verdict>, Vec<Verdict>)>);

impl Edges {
    /// Leaves of a tree with owner `owner`, made from each value.
    fn items<V: Copy>(
        &mut self,
        rule: u8,
        owner: u64,
        make: impl Fn(V) -> Vec<NewItem>,
        legal: &[V],
        illegal: &[V],
    ) {
        let judge = |value: &V| leaf(&rules(), &leaf_of(owner, &make(*value)));
        self.0.push((rule, legal.iter().map(judge).collect(), illegal.iter().map(judge).collect()));
    }

    /// As [`Edges::items`], of one item's data under a fixed key.
    fn data(
        &mut self,
        rule: u8,
        owner: u64,
        key: Key,
        legal: &[impl AsRef<[u8]>],
        illegal: &[impl AsRef<[u8]>],
    ) {
        let judge = |data: &[u8]| leaf(&rules(), &leaf_of(owner, &[(key, data.to_vec())]));
        self.0.push((
            rule,
            legal.iter().map(|data| judge(data.as_ref())).collect(),
            illegal.iter().map(|data| judge(data.as_ref())).collect(),
        ));
    }

    /// Anything else: two verdicts.
    fn pair(&mut self, rule: u8, legal: Verdict, illegal: Verdict) {
        self.0.push((rule, vec![legal], vec![illegal]));
    }
}

/// Trees that hold files: the first, and the ends of the range of the others.
const FILE_TREES: [u64; 3] = [5, 256, (1 << 48) - 1];
/// What is beside them.
const NO_FILE_TREES: [u64; 4] = [4, 6, 255, 1 << 48];
const INODES: [u64; 2] = [256, id::LAST_FREE];
const NO_INODES: [u64; 2] = [255, id::LAST_FREE + 1];

#[test]
fn s13_every_rule_accepts_the_last_legal_value_and_refuses_the_first_illegal_one() {
    let mut edges = Edges::default();
    blocks::edges(&mut edges);
    files::edges(&mut edges);
    space::edges(&mut edges);
    roots::edges(&mut edges);
    extents::edges(&mut edges);
    let mut wrong = Vec::new();
    let mut covered = BTreeSet::new();
    for (rule, legal, illegal) in &edges.0 {
        if !legal.is_empty() && !illegal.is_empty() {
            covered.insert(*rule);
        }
        for (n, verdict) in legal.iter().enumerate() {
            if let Err(corrupt) = verdict {
                wrong.push(format!("rule {rule}, legal value {n}: {corrupt}"));
            }
        }
        for (n, verdict) in illegal.iter().enumerate() {
            match verdict {
                Ok(()) => wrong.push(format!("rule {rule}, illegal value {n} is accepted")),
                Err(corrupt) if corrupt.rule != *rule => {
                    let by = corrupt.rule;
                    wrong.push(format!("rule {rule}, illegal value {n}: rule {by}: {corrupt}"));
                }
                Err(_) => (),
            }
        }
    }
    let without: Vec<_> = audit::numbers().filter(|rule| !covered.contains(rule)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(without.is_empty(), "rules without an edge: {without:?}");
}
