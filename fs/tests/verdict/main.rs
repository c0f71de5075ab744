//! The checker's verdict on every image of the corpora, against the table in `tests/verdicts`.
//!
//! Needs `VARVE_SHARED` (the folder with `corpora/`) and `xz`; says so and passes without.

mod corpus;
mod table;

use corpus::Corpus;
use std::path::Path;
use std::process::Command;
use table::{Line, read_table};

const TABLE: &str = include_str!("../../../tests/verdicts/btrfs.txt");

#[test]
fn every_image_of_the_corpora_has_its_verdict() {
    let test = "every_image_of_the_corpora_has_its_verdict";
    let Some(corpus) = Corpus::find(test) else { return };
    let table = read_table(TABLE);
    let mut wrong = Vec::new();
    for name in corpus.names() {
        let found = corpus.open_all(std::slice::from_ref(&name)).check();
        match table.iter().find(|line| line.name == name) {
            Some(line) if line.exit == found.exit && line.codes == found.codes => {}
            Some(line) => wrong.push(format!("table:   {line}\nchecker: {found}")),
            None => wrong.push(format!("no line: {found}")),
        }
    }
    for line in &table {
        if !corpus.names().contains(&line.name) {
            wrong.push(format!("{}: in the table and not in the corpora", line.name));
        }
    }
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
}

/// The two halves of a file system whose uuid was being changed when the machine stopped.
#[test]
fn a_half_changed_uuid_still_makes_one_file_system() {
    let Some(corpus) = Corpus::find("a_half_changed_uuid_still_makes_one_file_system") else {
        return;
    };
    for pair in [[1, 2], [2, 1], [3, 4], [4, 3]] {
        let names = pair.map(|n| format!("misc-tests/034-metadata-uuid/disk{n}.raw.xz"));
        let found = corpus.open_all(&names).check();
        assert_eq!((found.exit, found.codes.len()), (0, 0), "{pair:?}: {found}");
    }
    let names = [1, 3].map(|n| format!("misc-tests/034-metadata-uuid/disk{n}.raw.xz"));
    assert_eq!(corpus.open_all(&names).check().exit, 3, "two file systems");
}

/// The tool that the table speaks of; another version knows other things.
#[test]
fn the_tool_says_what_the_table_says_of_it() {
    let test = "the_tool_says_what_the_table_says_of_it";
    let Some(corpus) = Corpus::find(test) else { return };
    let version = Command::new("btrfs").arg("--version").output();
    if !version.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains("v6.2")) {
        println!("{test}: skipped, no btrfs-progs 6.2");
        return;
    }
    let mut wrong = Vec::new();
    for line in read_table(TABLE) {
        let Some(tool) = line.tool else { continue };
        let exit = corpus.by_tool(&line.name);
        if exit != Some(tool) {
            wrong.push(format!("{}: table {tool}, tool {exit:?}", line.name));
        }
        let differ = (line.exit == 0) != (tool == 0);
        assert_eq!(differ, !line.why.is_empty(), "{}: a reason where we differ", line.name);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn lines_of_the_table_are_sorted_and_unique() {
    let table = read_table(TABLE);
    assert!(table.len() > 60);
    assert!(table.windows(2).all(|pair| pair[0].name < pair[1].name));
    let odd = |line: &&Line| (line.exit == 0) != line.codes.is_empty() && line.exit != 3;
    assert!(table.iter().find(odd).is_none());
}

/// The images that every clone carries.
#[test]
fn the_small_images_have_their_verdicts_too() {
    let table = read_table(TABLE);
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/images/070-btrfs-progs-dumps");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).expect("the images") {
        let path = entry.expect("an entry").path();
        let file = path.file_name().expect("a name").to_string_lossy().into_owned();
        if !file.ends_with(".img") {
            continue;
        }
        let (number, name) = file.split_once('-').expect("NNN-NAME.img");
        let line = table
            .iter()
            .find(|line| {
                line.name.starts_with(&format!("fsck-tests/{number}-"))
                    && line.name.ends_with(&format!("/{name}"))
            })
            .unwrap_or_else(|| panic!("{file}: no line"));
        let found = corpus::Image::load(&path).check();
        assert_eq!((found.exit, &found.codes), (line.exit, &line.codes), "{file}");
        seen += 1;
    }
    assert_eq!(seen, 12);
}
