//! Words that mean "not finished" or "only on my machine", and stray bytes.

use crate::{Text, none, texts};

/// In any text. Written in two halves, so that this list does not find itself.
const FORBIDDEN: &[(&str, &str, &str)] = &[
    ("tod", "o!(", "unfinished code"),
    ("unimpl", "emented!(", "unfinished code"),
    ("db", "g!(", "left over from debugging"),
    ("FIX", "ME", "say what is wrong in an issue"),
    ("XX", "X:", "say what is wrong in an issue"),
    ("<<<<", "<<< ", "a conflict marker"),
    (">>>>", ">>> ", "a conflict marker"),
    ("/wo", "rk/", "a path of one machine"),
    ("/roo", "t/.", "a path of one machine"),
    ("file", ":///", "a path of one machine"),
];

fn ours(file: &Text) -> bool {
    ["rs", "md", "toml", "sh", "yml", "yaml", "py"].iter().any(|kind| file.is(kind))
        || file.text.starts_with("#!")
}

#[test]
fn no_text_holds_a_forbidden_word() {
    let mut complaints = Vec::new();
    for file in texts().iter().filter(|file| ours(file)) {
        for (head, tail, why) in FORBIDDEN {
            let word = [*head, *tail].concat();
            for (at, _) in file.text.match_indices(&word) {
                complaints.push(format!("{}:{}: `{word}`: {why}", file.name(), file.line(at)));
            }
        }
    }
    none(&complaints);
}

#[test]
fn a_note_of_work_to_do_names_its_issue() {
    let word = ["TO", "DO"].concat();
    let mut complaints = Vec::new();
    for file in texts().iter().filter(|file| file.is("rs")) {
        for (at, _) in file.text.match_indices(&word) {
            if !file.text[at..].starts_with(&format!("{word}(#")) {
                complaints.push(format!(
                    "{}:{}: {word} without an issue",
                    file.name(),
                    file.line(at)
                ));
            }
        }
    }
    none(&complaints);
}

#[test]
fn texts_end_in_one_newline_and_have_no_stray_blanks() {
    let mut complaints = Vec::new();
    for file in texts().iter().filter(|file| ours(file)) {
        if !file.text.is_empty() && (!file.text.ends_with('\n') || file.text.ends_with("\n\n")) {
            complaints.push(format!("{}: does not end in one newline", file.name()));
        }
        for (n, line) in file.text.lines().enumerate() {
            if line.ends_with([' ', '\t', '\r']) {
                complaints.push(format!("{}:{}: ends in a blank", file.name(), n + 1));
            }
        }
    }
    none(&complaints);
}
