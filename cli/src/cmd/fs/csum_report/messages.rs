//! What the kernel says about bad checksums, in the words of all its versions since 2011: `csum failed
//! ino 358 off 227975168 ...`, `csum failed root 5 ino 358 off ...`, `no csum found for inode 358 start
//! ...`, `checksum error at logical 123 on dev ...`, `unable to fixup (regular) error at logical ...`,
//! `checksum verify failed on 30408704 ...`.

use std::collections::BTreeMap;

/// Where something bad was seen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Seen {
    Logical(u64),
    /// Old kernels do not say in which tree.
    File {
        root: Option<u64>,
        inode: u64,
        offset: u64,
    },
}

/// Words that a line about a bad checksum has one of.
const TELLING: &[&str] = &[
    "csum failed",
    "no csum found",
    "csum hole found",
    "checksum error",
    "checksum verify failed",
    "bad csum",
    "error at logical",
    "csum mismatch",
];

/// Every place that the messages name, and how often.
pub(super) fn parse(text: &str) -> BTreeMap<Seen, usize> {
    let mut all = BTreeMap::new();
    for seen in text.lines().filter_map(line) {
        *all.entry(seen).or_insert(0) += 1;
    }
    all
}

fn line(line: &str) -> Option<Seen> {
    let line = line.to_ascii_lowercase();
    if !TELLING.iter().any(|words| line.contains(words)) {
        return None;
    }
    let words: Vec<&str> =
        line.split([' ', '\t', ',', '(', ')', '=']).filter(|w| !w.is_empty()).collect();
    // The number that follows one of these words. A name in the line (`path: ino`) is followed by none.
    let after = |names: &[&str]| {
        words.windows(2).find_map(|pair| match pair {
            [word, number] if names.contains(&word.trim_end_matches(':')) => parse_number(number),
            _ => None,
        })
    };
    if let Some(logical) = after(&["logical"]) {
        return Some(Seen::Logical(logical));
    }
    if let Some(inode) = after(&["ino", "inode"]) {
        let offset = after(&["off", "offset", "start"])?;
        return Some(Seen::File { root: after(&["root"]), inode, offset });
    }
    // Tree blocks: "checksum verify failed on 30408704 wanted ...", "tree block 30408704 ... bad csum".
    after(&["on", "block", "bytenr"]).map(Seen::Logical)
}

/// Trees with negative numbers (relocation) are written so by newer kernels.
fn parse_number(word: &str) -> Option<u64> {
    let word = word.trim_end_matches([':', ';', '.']);
    match word.strip_prefix('-') {
        Some(rest) => rest.parse::<u64>().ok().map(u64::wrapping_neg),
        None => word.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernels_words_are_understood() {
        let file = |root, inode, offset| Some(Seen::File { root, inode, offset });
        for (text, seen) in [
            (
                "[ 4055.661622] btrfs csum failed ino 358 off 227975168 csum 4151547339 private 259191981",
                file(None, 358, 227_975_168),
            ),
            (
                "BTRFS warning (device sda1): csum failed root 5 ino 257 off 131072 csum 0x8941f998 \
                 expected csum 0x61f1c0ac mirror 1",
                file(Some(5), 257, 131_072),
            ),
            (
                "BTRFS warning (device dm-0): csum failed root -9 ino 258 off 0 csum 0x1 expected csum 0x2 mirror 2",
                file(Some(9u64.wrapping_neg()), 258, 0),
            ),
            ("btrfs no csum found for inode 358 start 65536", file(None, 358, 65536)),
            (
                "BTRFS warning (device sdb): checksum error at logical 13631488 on dev /dev/sdb, physical \
                 13631488, root 5, inode 257, offset 0, length 4096, links 1 (path: ino 3)",
                Some(Seen::Logical(13_631_488)),
            ),
            (
                "BTRFS error (device loop0): unable to fixup (regular) error at logical 298844160 on dev /dev/loop0 physical 1",
                Some(Seen::Logical(298_844_160)),
            ),
            (
                "BTRFS warning (device sda): checksum verify failed on logical 30408704 mirror 1 wanted 0x1 found 0x2 level 0",
                Some(Seen::Logical(30_408_704)),
            ),
            (
                "BTRFS: sda checksum verify failed on 30408704 wanted 1 found 2 level 0",
                Some(Seen::Logical(30_408_704)),
            ),
            ("BTRFS info (device sda): disk space caching is enabled", None),
            ("csum failed ino lots off course", None),
            ("", None),
        ] {
            assert_eq!(line(text), seen, "{text}");
        }
    }

    #[test]
    fn repeated_messages_are_counted() {
        let all = parse("csum failed ino 1 off 2\nhello\nCsum failed ino 1 off 2 again\n");
        assert_eq!(all.into_values().collect::<Vec<_>>(), [2]);
    }
}
