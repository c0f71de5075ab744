//! A block against what was asked for: A.14 to A.16. A checksum cannot notice a good block from the
//! wrong place, an older one, or one of another tree; its address, its generation and its first key
//! can, because the parent knows them.

use super::{Corrupt, Rules, Verdict, leaf, leaf_each, node};
use crate::csum::Found;
use crate::format::block::{CSUM_SIZE, Header, MAX_LEVEL, item_head, pointer};
use crate::format::key::{Key, objectid};
use crate::units::Logical;
use std::ops::ControlFlow;

/// What the reader of a block knows of it before it comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Expect {
    pub logical: Logical,
    pub level: u8,
    /// `None` only for tools that read blocks without a parent.
    pub generation: Option<u64>,
    /// Known where a parent's pointer led here.
    pub first_key: Option<Key>,
    /// The tree being read.
    pub owner: Option<u64>,
}

/// Everything about a block that was just read from copy `mirror`, in the kernel's order.
pub fn read_block(rules: &Rules, block: &[u8], expect: &Expect, mirror: usize) -> Verdict {
    let header = identity(rules, block, expect, mirror)?;
    expected(block, &header, expect, mirror)?;
    if header.level == 0 { leaf(rules, block) } else { node(rules, block) }
}

/// The same rules for a tool that wants all faults rather than the first: a block that is not the one
/// that was meant is examined all the same, as long as it is whole.
pub fn examine_block(rules: &Rules, block: &[u8], expect: &Expect, mirror: usize) -> Vec<Corrupt> {
    let header = match identity(rules, block, expect, mirror) {
        Ok(header) => header,
        Err(fault) => return vec![*fault],
    };
    let mut faults = Vec::new();
    let whole = [against_parent(block, &header, expect, mirror), owner(&header, expect)];
    faults.extend(whole.into_iter().filter_map(Result::err).map(|fault| *fault));
    if header.level == 0 {
        leaf_each(rules, block, |fault| {
            faults.push(*fault);
            ControlFlow::Continue(())
        });
    } else {
        faults.extend(node(rules, block).err().map(|fault| *fault));
    }
    faults
}

/// A.16: was this block written, here, by this file system?
fn identity(
    rules: &Rules,
    block: &[u8],
    expect: &Expect,
    mirror: usize,
) -> Result<Header, Box<Corrupt>> {
    let at = expect.logical;
    let Ok(header) = Header::parse(block) else {
        let blank = Header::parse(&[0; 101]).expect("101 bytes are a header");
        let text = format!("short tree block, mirror {mirror} logical {at}");
        return Err(corrupt(&blank, at, 164, text));
    };
    let wrong = |rule, message| Err(corrupt(&header, at, rule, message));
    if header.bytenr != at {
        let have = header.bytenr;
        let text = format!("bad tree block start, mirror {mirror} want {at} have {have}");
        return wrong(164, text);
    }
    if !rules.fsids.contains(&header.fsid) {
        return wrong(165, format!("bad fsid on logical {at} mirror {mirror}"));
    }
    let level = header.level;
    if level >= MAX_LEVEL {
        let text = format!("bad tree block level, mirror {mirror} level {level} on logical {at}");
        return wrong(166, text);
    }
    let (field, rest) = block.split_at(CSUM_SIZE);
    let computed = rules.csum.digest(rest);
    if !computed.is_in(field) {
        let found = Found(field, rules.csum);
        return wrong(
            167,
            format!(
                "checksum verify failed on logical {at} mirror {mirror} wanted {found} \
                 found {computed} level {level}"
            ),
        );
    }
    Ok(header)
}

/// The header of a block that this file system once wrote, here or elsewhere: what scans go by.
pub(crate) fn once_written(rules: &Rules, block: &[u8]) -> Option<Header> {
    let header = Header::parse(block).ok()?;
    if !rules.fsids.contains(&header.fsid) || header.level >= MAX_LEVEL {
        return None;
    }
    let (field, rest) = block.split_at_checked(CSUM_SIZE)?;
    rules.csum.digest(rest).is_in(field).then_some(header)
}

/// What the reader knows beyond the block itself: also asked of a block that was read before, for
/// another reader. Mirror 0 is the cache.
pub(crate) fn expected(block: &[u8], header: &Header, expect: &Expect, mirror: usize) -> Verdict {
    against_parent(block, header, expect, mirror)?;
    owner(header, expect)
}

/// A.15.
fn against_parent(block: &[u8], header: &Header, expect: &Expect, mirror: usize) -> Verdict {
    let at = expect.logical;
    let wrong = |rule, message| fail(header, at, rule, message);
    if header.level != expect.level {
        let (want, have) = (expect.level, header.level);
        return wrong(
            160,
            format!(
                "level verify failed on logical {at} mirror {mirror} wanted {want} found {have}"
            ),
        );
    }
    if let Some(want) = expect.generation
        && want != header.generation
    {
        let have = header.generation;
        return wrong(
            161,
            format!(
                "parent transid verify failed on logical {at} mirror {mirror} wanted {want} \
                 found {have}"
            ),
        );
    }
    let Some(want) = expect.first_key else { return Ok(()) };
    if header.nritems == 0 {
        return wrong(162, format!("invalid tree nritems, bytenr={at} nritems=0 expect >0"));
    }
    let first = match header.level {
        0 => item_head(block, 0).map(|item| item.key),
        _ => pointer(block, 0).map(|pointer| pointer.key),
    };
    let has = first.unwrap_or(Key::MIN);
    if has != want {
        let comma = |key: Key| format!("({},{},{})", key.objectid, key.kind.0, key.offset);
        return wrong(
            163,
            format!(
                "tree first key mismatch detected, bytenr={at} parent_transid={} key \
                 expected={} has={}",
                header.generation,
                comma(want),
                comma(has)
            ),
        );
    }
    Ok(())
}

/// A.14. Blocks of a subvolume may belong to any other it was snapshotted from.
fn owner(header: &Header, expect: &Expect) -> Verdict {
    let Some(tree) = expect.owner else { return Ok(()) };
    if [0, objectid::TREE_LOG, objectid::TREE_RELOC].contains(&tree) {
        return Ok(());
    }
    let kind = if header.level == 0 { "leaf" } else { "node" };
    let have = header.owner;
    let start = format!(
        "corrupted {kind}, root={tree} block={} owner mismatch, have {have} expect",
        expect.logical
    );
    if !objectid::is_file_tree(tree) {
        if have != tree {
            return fail(header, expect.logical, 158, format!("{start} {tree}"));
        }
    } else if !objectid::is_file_tree(have) {
        let text = format!("{start} [{}, {}]", objectid::FIRST_FREE, objectid::LAST_FREE);
        return fail(header, expect.logical, 159, text);
    }
    Ok(())
}

/// The same rules before a block is written in the transaction after `committed`: a bit that flipped
/// since it was changed must not reach the disk under a fresh checksum.
pub fn write_block(rules: &Rules, block: &[u8], committed: u64) -> Verdict {
    let Ok(header) = Header::parse(block) else {
        return Ok(());
    };
    if header.level == 0 {
        leaf(rules, block)?;
    } else {
        node(rules, block)?;
    }
    if header.generation <= committed {
        let text = format!(
            "block={} bad generation, have {} expect > {committed}",
            header.bytenr, header.generation
        );
        return fail(&header, header.bytenr, 169, text);
    }
    Ok(())
}

fn fail(header: &Header, block: Logical, rule: u8, message: String) -> Verdict {
    Err(corrupt(header, block, rule, message))
}

fn corrupt(header: &Header, block: Logical, rule: u8, message: String) -> Box<Corrupt> {
    let root = header.owner;
    Corrupt { rule, block, root, slot: None, key: None, message }.boxed()
}
