//! How far the re-encryption of a LUKS2 volume is, while somebody works on it.
//!
//! Whoever works holds the lock of the disk, so this looks at the bytes of the header. A header is written
//! twice: the newest copy that is whole is the one that the next program goes by.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// A copy of the header, as both programs make it unless they are asked for another size.
const COPY: usize = 16 << 10;
/// Behind it comes the JSON text.
const BINARY: usize = 4096;

/// What the header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// Bytes of the payload that are done.
    pub done: u64,
    /// A zone was begun and is not done.
    pub hot: bool,
}

impl Standing {
    /// What the header in a file says of the payload in `disk`, which may be the same file; `None` when nothing is
    /// under way, or there is no header.
    #[must_use]
    pub fn of(header: &Path, disk: &Path) -> Option<Standing> {
        let file = std::fs::File::open(header).ok()?;
        let newest = [0, COPY].into_iter().filter_map(|at| copy(&file, at as u64));
        let (_, json) = newest.max_by_key(|(seqid, _)| *seqid)?;
        let end = std::fs::metadata(disk).ok()?.len();
        let slots = json["keyslots"].as_object()?;
        let mode = &slots.values().find(|slot| slot["type"] == "reencrypt")?["mode"];
        let segments = json["segments"].as_object()?;
        let (last_id, last) = segments.iter().find(|(_, s)| has(&s["flags"], "backup-final"))?;
        let is_new = |id: &str, segment: &Value| match mode.as_str() {
            Some("encrypt") => segment["type"] == "crypt",
            Some("decrypt") => segment["type"] == "linear",
            _ => {
                let same = |field| segment[field] == last[field];
                let named =
                    |digest: &Value| [id, last_id].iter().all(|id| has(&digest["segments"], id));
                same("encryption")
                    && same("sector_size")
                    && json["digests"].as_object().is_some_and(|d| d.values().any(named))
            }
        };
        let is_backup = |segment: &Value| {
            ["backup-previous", "backup-final", "backup-moved-segment"]
                .iter()
                .any(|flag| has(&segment["flags"], flag))
        };
        let is_hot = |segment: &Value| has(&segment["flags"], "in-reencryption");
        let parts = || segments.iter().filter(|(_, segment)| !is_backup(segment));
        let done = parts().filter(|(id, segment)| !is_hot(segment) && is_new(id, segment));
        let done = done.map(|(_, segment)| len(segment, end)).sum();
        Some(Standing { done, hot: parts().any(|(_, segment)| is_hot(segment)) })
    }
}

/// Whether so much more is done than now, and a zone is `hot` or none is: a time to kill whoever works.
pub fn further(header: &Path, disk: &Path, by: u64, hot: bool) -> impl Fn() -> bool + use<> {
    let (header, disk) = (header.to_owned(), disk.to_owned());
    let done = by + Standing::of(&header, &disk).map_or(0, |now| now.done);
    move || Standing::of(&header, &disk).is_some_and(|now| now.done >= done && now.hot == hot)
}

/// Number and text of a copy that is whole.
fn copy(file: &std::fs::File, at: u64) -> Option<(u64, Value)> {
    let mut bytes = vec![0; COPY];
    file.read_exact_at(&mut bytes, at).ok()?;
    let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let (size, seqid) = (number(8), number(16));
    let sum = bytes[448..480].to_vec();
    bytes[448..512].fill(0);
    if size != COPY as u64 || Sha256::digest(&bytes)[..] != sum {
        return None;
    }
    let text = bytes[BINARY..].split(|&byte| byte == 0).next()?;
    Some((seqid, serde_json::from_slice(text).ok()?))
}

fn has(list: &Value, word: &str) -> bool {
    list.as_array().is_some_and(|list| list.iter().any(|one| one == word))
}

/// The bytes of a segment; one without a size of its own goes to the end of the disk.
fn len(segment: &Value, end: u64) -> u64 {
    let number = |field: &str| segment[field].as_str().and_then(|text| text.parse::<u64>().ok());
    number("size").unwrap_or_else(|| end.saturating_sub(number("offset").unwrap_or(0)))
}
