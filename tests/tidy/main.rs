//! What lints cannot keep: file sizes, dead files, asserted layouts, documented images, clean words.

mod images;
mod layout;
mod sources;
mod words;

use std::path::{Path, PathBuf};

use varve_tests::repository;

/// A text file of the repository.
struct Text {
    /// Relative to the repository's root.
    path: PathBuf,
    text: String,
}

impl Text {
    fn name(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }

    fn is(&self, extension: &str) -> bool {
        self.path.extension().is_some_and(|found| found == extension)
    }

    /// The line of a byte of the text, counted from 1.
    fn line(&self, byte: usize) -> usize {
        self.text[..byte].matches('\n').count() + 1
    }
}

/// Everything that is text and ours, in a fixed order. Generated and fetched things are left out.
fn texts() -> Vec<Text> {
    const SKIPPED: &[&str] = &[".git", ".cache", "target", "images", "Cargo.lock"];
    let mut texts = Vec::new();
    let mut folders = vec![repository().to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a readable folder") {
            let entry = entry.expect("a folder's entry");
            let name = entry.file_name().to_string_lossy().into_owned();
            if SKIPPED.contains(&name.as_str()) || name.starts_with("target") {
                continue;
            }
            let kind = entry.file_type().expect("an entry's type");
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let bytes = std::fs::read(entry.path()).expect("a readable file");
                let Ok(text) = String::from_utf8(bytes) else { continue };
                let path = entry.path().strip_prefix(repository()).expect("inside").to_owned();
                texts.push(Text { path, text });
            }
        }
    }
    texts.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(texts.len() > 20, "this is not the repository: {}", repository().display());
    texts
}

/// Fails with all complaints at once, so that one run shows everything there is to mend.
#[track_caller]
fn none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

fn below(path: &Path, folder: &str) -> bool {
    path.components().any(|part| part.as_os_str() == folder)
}
