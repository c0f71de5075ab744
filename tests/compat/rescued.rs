//! Files that an export brings home from damaged images, beside those that `btrfs restore` does: every file
//! that restore writes right is ours too, with the same bytes. The counts are kept in
//! `tests/verdicts/restore.txt`, so that a change shows.
//!
//! Both read the same devices. Snapshots are followed where an image was made here, and nowhere else: the
//! strangers' images are about their top.

mod both;
mod corpus;
mod made;
mod table;

use corpus::Corpus;
use table::{Line, Table};

const TABLE: &str = include_str!("../verdicts/restore.txt");

/// Fails when a line is another one than the table's, when restore has something right that we lack, or
/// when something of ours is wrong and listed as neither old nor unverified.
fn judge(table: &Table, found: &[Line]) {
    let mut wrong = Vec::new();
    for line in found {
        match table.line(&line.name) {
            Some(kept) if kept.agrees(line) => {}
            Some(kept) => wrong.push(format!("table: {kept}\nfound: {line}")),
            None => wrong.push(format!("no line: {line}")),
        }
        if !line.lacking.is_empty() {
            wrong.push(format!("{}: restore alone has {}", line.name, line.lacking.join(", ")));
        }
        if !line.unsaid.is_empty() {
            wrong.push(format!("{}: wrong, and not said {}", line.name, line.unsaid.join(", ")));
        }
    }
    assert!(wrong.is_empty(), "{} complaints\n{}", wrong.len(), wrong.join("\n"));
}

/// Nobody knows what these images held before, so right is what has a right checksum.
#[test]
fn of_strangers_images_an_export_brings_all_that_restore_does() {
    if !both::available() {
        return;
    }
    let (table, dir) = (Table::parse(TABLE), tempfile::tempdir().expect("a temporary folder"));
    let mut found = Vec::new();
    for corpus in [Corpus::shared(), Corpus::small()].into_iter().flatten() {
        for name in corpus.names() {
            let image = corpus.plain_image(&name, dir.path());
            let counts = both::rescue(dir.path(), std::slice::from_ref(&image), false);
            let line = Line::unknown(corpus.title(&name), &counts);
            println!("{line}");
            found.push(line);
            corpus.done_with(&image);
        }
    }
    judge(&table, &found);
}

/// Images of the running kernel, damaged in one way each; what they held is known.
#[test]
fn of_damaged_disks_an_export_brings_all_that_restore_does_and_more() {
    if !both::available() || !made::available() {
        return;
    }
    let table = Table::parse(TABLE);
    let found: Vec<Line> = made::every_damage().into_iter().map(made::Damage::rescue).collect();
    judge(&table, &found);
    let more = found.iter().filter(|line| line.ours > line.theirs).count();
    assert!(more >= 4, "a mirror, an older root, the log and checksums bring more home");
}
