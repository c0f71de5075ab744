//! What the checker says: a stable code, a severity, a place, and a sentence.

use crate::error::Place;
use crate::units::Physical;
use std::fmt;

/// Whether a finding makes the file system count as damaged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// Odd and harmless: it alone leaves the verdict "clean".
    Warning,
    Error,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal $severity:ident,)*) => {
        /// What kind of problem it is. The text of a code never changes its meaning: scripts match it.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Code {
            $($(#[$doc])* $name,)*
        }

        impl Code {
            /// Every code there is.
            pub const ALL: &[Code] = &[$(Code::$name,)*];

            pub fn text(self) -> &'static str {
                match self {
                    $(Code::$name => $text,)*
                }
            }

            pub fn severity(self) -> Severity {
                match self {
                    $(Code::$name => Severity::$severity,)*
                }
            }
        }
    };
}

codes! {
    /// Something about the device set: missing, short, stale.
    DeviceState = "device-state" Warning,
    /// A copy of the superblock cannot be used.
    SuperCopy = "super-copy" Warning,
    /// The superblock's sums or sizes disagree with the trees.
    SuperTotals = "super-totals" Error,
    /// No copy of a tree block can be read.
    BlockUnreadable = "block-unreadable" Error,
    /// A tree block fails its checksum, on all copies or on some.
    BlockCsum = "block-csum" Error,
    /// A block of another place, file system or time.
    BlockIdentity = "block-identity" Error,
    /// A block is older or newer than its parent says.
    BlockTransid = "block-transid" Error,
    /// A block's level, first key or owner is not what its parent says.
    BlockParent = "block-parent" Error,
    /// Items or pointers of a block overlap, leave gaps or are out of order.
    BlockLayout = "block-layout" Error,
    /// An item breaks a rule of the tree checker.
    ItemRule = "item-rule" Error,
    /// A block's address is not a multiple of its size.
    BlockAlignment = "block-alignment" Warning,
    /// A tree that must exist has no root item, or its root cannot be read.
    TreeMissing = "tree-missing" Error,
    /// A root item disagrees with the block it names.
    RootItem = "root-item" Error,
    /// An extent record that makes no sense by itself.
    ExtentRecord = "extent-record" Error,
    /// Two allocated extents overlap.
    ExtentOverlap = "extent-overlap" Error,
    /// The references found differ from those recorded.
    ExtentRefs = "extent-refs" Error,
    /// Something refers to an extent that has no record.
    ExtentMissing = "extent-missing" Error,
    /// A record that nothing refers to.
    ExtentUnused = "extent-unused" Error,
    /// The flag that says how a block's references are keyed is wrong.
    FullBackref = "full-backref" Error,
    /// Data in a metadata group, or the other way round.
    ExtentType = "extent-type" Error,
    BlockGroupUsed = "block-group-used" Error,
    BlockGroupChunk = "block-group-chunk" Error,
    DevExtent = "dev-extent" Error,
    /// DEV_ITEM against its extents, its superblock or its real size.
    DevItem = "dev-item" Error,
    FreeSpaceTree = "free-space-tree" Error,
    /// Entries that old mkfs left of its temporary groups.
    FreeSpaceLeftover = "free-space-leftover" Warning,
    /// An inode's own items do not fit together; the message has the bits of `errors`.
    Inode = "inode" Error,
    /// The three places of a name do not fit together.
    Name = "name" Error,
    /// An item of a type that has no business in its tree.
    UnknownKey = "unknown-key" Error,
    CsumOverlap = "csum-overlap" Error,
    /// A checksum for space that holds no data.
    CsumStray = "csum-stray" Error,
    RootRef = "root-ref" Error,
    /// A deleted subvolume without the orphan item that would finish it.
    RootOrphan = "root-orphan" Error,
    /// A writable subvolume that claims to be a received one.
    ReceivedUuid = "received-uuid" Error,
    /// A quota group's numbers are not those of its subvolumes.
    Quota = "quota" Error,
    /// The index of subvolumes by uuid, which the kernel corrects by itself.
    UuidTree = "uuid-tree" Warning,
    /// What is to be replayed at the next mount.
    LogTree = "log-tree" Error,
    /// The old free space cache; a stale one is a warning.
    SpaceCache = "space-cache" Error,
    /// A copy of file data does not have its checksum.
    DataCsum = "data-csum" Error,
    /// A copy of file data cannot be read.
    DataUnreadable = "data-unreadable" Error,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// One problem.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    pub code: Code,
    pub severity: Severity,
    /// The tree checker's rule, where it was one of those.
    pub rule: Option<u8>,
    pub place: Place,
    pub message: String,
    /// Where the file is, from the top of the file system; a hard-linked one has several, and data may
    /// belong to many files.
    pub paths: Vec<String>,
    /// Bad data: every file that reads it, in every subvolume.
    pub files: Vec<FileAt>,
    /// Bad data: which copy, and where it is.
    pub copy: Option<DataCopy>,
}

/// A byte of a file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FileAt {
    /// The subvolume's tree.
    pub root: u64,
    pub inode: u64,
    pub offset: u64,
}

/// One copy of data.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DataCopy {
    /// From 1; what lies behind the real copies is rebuilt from parity.
    pub mirror: usize,
    /// The device and the byte on it; none for what is rebuilt.
    pub place: Option<Physical>,
}

/// Collects findings; what comes after the first hundred thousand is only counted, so that a ruined
/// file system does not cost the memory that reporting it is worth.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    kept: std::cell::RefCell<Vec<Finding>>,
    counts: std::cell::Cell<Counts>,
}

/// How many findings there were, kept or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    pub errors: u64,
    pub warnings: u64,
}

const KEPT_MAX: usize = 100_000;

impl Findings {
    pub(crate) fn add(&self, code: Code, place: Place, message: impl Into<String>) {
        self.push(code, code.severity(), None, place, message.into());
    }

    /// The same kind of problem where it does no harm.
    pub(crate) fn warn(&self, code: Code, place: Place, message: impl Into<String>) {
        self.push(code, Severity::Warning, None, place, message.into());
    }

    pub(crate) fn push(
        &self,
        code: Code,
        severity: Severity,
        rule: Option<u8>,
        place: Place,
        message: String,
    ) {
        let (paths, files) = (Vec::new(), Vec::new());
        self.keep(Finding { code, severity, rule, place, message, paths, files, copy: None });
    }

    /// Bad data, on one copy (`mirror` 0: on all).
    pub(crate) fn add_data(
        &self,
        code: Code,
        place: Place,
        message: String,
        (mirror, at): (usize, Option<Physical>),
        files: Vec<FileAt>,
    ) {
        let copy = (mirror > 0).then_some(DataCopy { mirror, place: at });
        let (severity, paths) = (code.severity(), Vec::new());
        self.keep(Finding { code, severity, rule: None, place, message, paths, files, copy });
    }

    fn keep(&self, finding: Finding) {
        let mut counts = self.counts.get();
        match finding.severity {
            Severity::Warning => counts.warnings += 1,
            Severity::Error => counts.errors += 1,
        }
        self.counts.set(counts);
        let mut kept = self.kept.borrow_mut();
        if kept.len() < KEPT_MAX {
            kept.push(finding);
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts.get()
    }

    pub(crate) fn last(&self) -> Option<Finding> {
        self.kept.borrow().last().cloned()
    }

    pub(crate) fn take(&self) -> Vec<Finding> {
        self.kept.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_words() {
        let mut texts: Vec<_> = Code::ALL.iter().map(|code| code.text()).collect();
        assert!(texts.iter().all(|t| t.bytes().all(|b| b == b'-' || b.is_ascii_lowercase())));
        texts.sort_unstable();
        let all = texts.len();
        texts.dedup();
        assert_eq!(texts.len(), all);
    }

    #[test]
    fn a_flood_is_counted_and_not_kept() {
        let findings = Findings::default();
        for _ in 0..KEPT_MAX + 5 {
            findings.add(Code::Inode, Place::default(), "x");
        }
        findings.warn(Code::Inode, Place::default(), "y");
        assert_eq!(findings.counts(), Counts { errors: KEPT_MAX as u64 + 5, warnings: 1 });
        assert_eq!(findings.take().len(), KEPT_MAX);
    }
}
