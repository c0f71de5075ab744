//! `NAME EXIT CODES TOOL [WHY]` per line: the image, our exit code, our error codes (`-`: none), the exit
//! code of `btrfs check` 6.2, and where they differ, the reason.

use std::collections::BTreeSet;
use std::fmt;

/// What is expected of an image, or found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) exit: u8,
    pub(crate) codes: BTreeSet<String>,
    /// `btrfs check`'s exit code, where it was run.
    pub(crate) tool: Option<u8>,
    pub(crate) why: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let codes: Vec<&str> = self.codes.iter().map(String::as_str).collect();
        let codes = if codes.is_empty() { "-".to_owned() } else { codes.join(",") };
        write!(f, "{} {} {codes}", self.name, self.exit)
    }
}

pub(crate) fn read_table(text: &str) -> Vec<Line> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(read_line).collect()
}

fn read_line(line: &str) -> Line {
    let mut words = line.split_whitespace();
    let mut word = || words.next().unwrap_or_else(|| panic!("too few words: {line}"));
    let (name, exit, codes, tool) = (word(), word(), word(), word());
    let why: Vec<&str> = words.collect();
    Line {
        name: name.to_owned(),
        exit: exit.parse().unwrap_or_else(|_| panic!("no exit code: {line}")),
        codes: codes.split(',').filter(|code| *code != "-").map(str::to_owned).collect(),
        tool: tool.parse().ok(),
        why: why.join(" "),
    }
}
