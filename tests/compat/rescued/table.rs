//! `NAME THEIRS OURS SPOILED` per line: how many files restore and an export wrote, in which they agree; and
//! those of restore's that we know to be wrong.

use std::collections::BTreeMap;
use std::fmt;

use super::both::{Files, Rescued};

const LOST_AND_FOUND: &[u8] = b"varve-lost+found/";

/// What came of one image.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    /// Right files of restore. Where nobody knows the truth: what it wrote, but for `spoiled`.
    pub(crate) theirs: usize,
    /// Right files of ours.
    pub(crate) ours: usize,
    /// Files that restore wrote, and that are wrong.
    pub(crate) spoiled: usize,
    /// What restore alone has right, and should not be the only one to have.
    pub(crate) lacking: Vec<String>,
    /// What of ours is wrong, and we do not say that it may be.
    pub(crate) unsaid: Vec<String>,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line { name, theirs, ours, spoiled, .. } = self;
        write!(f, "{name} {theirs} {ours} {spoiled}")
    }
}

impl Line {
    /// Where nobody knows what was there: checksums speak.
    pub(crate) fn unknown(name: String, rescued: &Rescued) -> Line {
        let Rescued { theirs, ours, spoiled, .. } = rescued;
        let right = theirs.iter().filter(|(path, _)| !spoiled.contains(path));
        let lacking = right.filter(|(path, content)| ours.get(*path) != Some(*content));
        Line {
            name,
            theirs: theirs.len() - spoiled.len(),
            ours: whole(ours).count(),
            spoiled: spoiled.len(),
            lacking: lacking.map(|(path, _)| path.escape_ascii().to_string()).collect(),
            unsaid: Vec::new(),
        }
    }

    pub(crate) fn known(name: &str, truth: &Files, rescued: &Rescued) -> Line {
        let Rescued { theirs, ours, unsure, .. } = rescued;
        let right = |files: &Files| -> Files {
            let right = files.iter().filter(|(path, content)| truth.get(*path) == Some(*content));
            right.map(|(path, content)| (path.clone(), content.clone())).collect()
        };
        let (right_theirs, right_ours) = (right(theirs), right(ours));
        // Whose folder is lost keeps its content.
        let elsewhere = |path: &Vec<u8>| {
            path.starts_with(LOST_AND_FOUND) && truth.values().any(|file| *file == ours[path])
        };
        let said = |path: &Vec<u8>| {
            right_ours.contains_key(path) || unsure.contains(path) || elsewhere(path)
        };
        let unsaid = whole(ours).filter(|path| !said(path));
        let lacking = right_theirs.keys().filter(|path| !right_ours.contains_key(*path));
        Line {
            name: name.to_owned(),
            theirs: right_theirs.len(),
            ours: right_ours.len(),
            spoiled: theirs.len() - right_theirs.len(),
            lacking: lacking.map(|path| path.escape_ascii().to_string()).collect(),
            unsaid: unsaid.map(|path| path.escape_ascii().to_string()).collect(),
        }
    }
}

fn whole(files: &Files) -> impl Iterator<Item = &Vec<u8>> {
    files.keys().filter(|path| !path.ends_with(b".damaged"))
}

/// A line of the table: `*` stands for a number that the kernel's layout of a tree decides.
pub(crate) struct Kept {
    text: String,
    numbers: [Option<usize>; 3],
}

impl Kept {
    pub(crate) fn agrees(&self, line: &Line) -> bool {
        let found = [line.theirs, line.ours, line.spoiled];
        self.numbers.iter().zip(found).all(|(kept, found)| kept.is_none_or(|kept| kept == found))
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// By name.
pub(crate) struct Table(BTreeMap<String, Kept>);

impl Table {
    pub(crate) fn parse(text: &str) -> Table {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let read = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [name, theirs, ours, spoiled] = words[..] else { panic!("no four words: {line}") };
            let number = |word: &str| match word {
                "*" => None,
                _ => Some(word.parse().unwrap_or_else(|_| panic!("no number {word}: {line}"))),
            };
            let numbers = [theirs, ours, spoiled].map(number);
            (name.to_owned(), Kept { text: line.to_owned(), numbers })
        };
        Table(lines.map(read).collect())
    }

    pub(crate) fn line(&self, name: &str) -> Option<&Kept> {
        self.0.get(name)
    }
}
