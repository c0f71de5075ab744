//! What the command line promises: exit codes, one line per error, nothing written when refusing, and sane
//! answers to bad input and failing media.

mod bad_images;
mod bad_input;
mod costly;
mod looking;
mod media;
mod memory;
mod prompt;
mod refusals;
mod signals;
mod suspend;

use varve_tests::process::Finished;

/// The one line a command that could not run says on standard error.
#[track_caller]
fn refused(finished: Finished) -> String {
    assert!(!finished.stderr.contains("panicked"), "{finished}");
    let shown = finished.to_string();
    let stderr = finished.exits_with(3);
    // Warnings about what was survived may come before; the error itself is one line, the last.
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("varve: ")).collect();
    assert_eq!(errors.len(), 1, "not one line of error: {shown}");
    assert_eq!(stderr.lines().last(), Some(errors[0]), "the error is not the last word: {shown}");
    errors[0].to_owned()
}

/// The sums of these images in `dir`, to show that nothing was written.
fn sums(dir: &std::path::Path, images: &[&str]) -> Vec<String> {
    images.iter().map(|image| varve_tests::disk::sum_file(&dir.join(image))).collect()
}
