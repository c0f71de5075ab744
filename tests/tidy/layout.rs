//! Structures that mirror bytes of a disk or a wire have their size asserted beside them.

use crate::{none, texts};

#[test]
fn every_raw_structure_has_its_size_asserted() {
    let mut complaints = Vec::new();
    let mut seen = 0;
    for file in texts().iter().filter(|file| file.is("rs") && !file.path.starts_with("tests")) {
        for (at, _) in file.text.match_indices("#[repr(C") {
            let rest = &file.text[at..];
            // The attribute belongs to the next item; derives may stand before or after it.
            let Some(item) = rest.find("struct ") else { continue };
            let between = &rest[..item];
            if between.contains("enum ") || between.contains("union ") || between.contains("fn ") {
                continue;
            }
            let before = &file.text[..at];
            let last_item = before.rfind("\n\n").map_or(0, |blank| blank);
            let derives = [&before[last_item..], between].concat();
            if !derives.contains("FromBytes") && !derives.contains("IntoBytes") {
                continue;
            }
            seen += 1;
            let name: String = rest[item + "struct ".len()..]
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            if !file.text.contains(&format!("size_of::<{name}>()")) {
                let line = file.line(at);
                complaints
                    .push(format!("{}:{line}: the size of {name} is not asserted", file.name()));
            }
        }
    }
    none(&complaints);
    assert!(seen > 0, "found no structure of any disk format: this test has gone blind");
}
