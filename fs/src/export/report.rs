//! What an export tells when it is over.

use super::scan::Gap;

/// A range of a file's bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Range {
    pub at: u64,
    pub len: u64,
    pub why: String,
}

/// What is not as it was on the disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ProblemKind {
    /// Parts are missing: the copy is named `NAME.damaged`, the missing ranges are zero, or of an older
    /// state where that is the reason.
    Damaged,
    /// Copied whole, but there are no checksums to compare with.
    Unverified,
    /// Copied whole, but as it was some commits ago: what the tree says today is lost.
    Older,
    /// The content is whole, and nothing else is known of it.
    Bare,
    /// Names below are missing.
    Directory,
    /// Nothing was written.
    NotWritten,
}

impl ProblemKind {
    pub fn word(self) -> &'static str {
        match self {
            ProblemKind::Damaged => "damaged",
            ProblemKind::Unverified => "unverified",
            ProblemKind::Older => "older",
            ProblemKind::Bare => "bare",
            ProblemKind::Directory => "incomplete",
            ProblemKind::NotWritten => "not written",
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// Below the destination.
    pub path: Vec<u8>,
    pub kind: ProblemKind,
    /// What is missing, for [`ProblemKind::Damaged`].
    pub ranges: Vec<Range>,
    pub why: String,
}

/// The outcome of [`super::export`].
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Report {
    pub files: u64,
    pub bytes: u64,
    pub directories: u64,
    pub symlinks: u64,
    /// Further names of files.
    pub links: u64,
    /// Devices, pipes, sockets.
    pub special: u64,
    /// What a run before had copied whole.
    pub already_there: u64,
    /// Names that the filters left out.
    pub left_out: u64,
    /// Files that hang nowhere any more, written below `varve-lost+found`.
    pub reattached: u64,
    /// Names and files that only an older state has, and that were removed since: not written.
    pub removed_since: u64,
    /// Snapshots that were not asked for.
    pub snapshots_left_out: Vec<Vec<u8>>,
    /// Attributes that the destination does not take.
    pub attributes_not_set: u64,
    pub problems: Vec<Problem>,
    /// Tree blocks of which no copy could be read.
    pub lost_blocks: Vec<Gap>,
    /// What was used although a rule speaks against it.
    pub suspicious: Vec<String>,
}

impl Report {
    /// Whether everything that was asked for was written, and verified.
    pub fn is_whole(&self) -> bool {
        self.problems.is_empty() && self.lost_blocks.is_empty()
    }

    pub fn damaged(&self) -> usize {
        self.count(ProblemKind::Damaged)
    }

    pub fn count(&self, kind: ProblemKind) -> usize {
        self.problems.iter().filter(|problem| problem.kind == kind).count()
    }
}
