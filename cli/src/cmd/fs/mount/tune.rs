//! How far the kernel reads ahead in this mount. It starts with 128 KiB, whatever it is answered; root may
//! raise that in `/sys`, and then one question does for eight.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// As much as one request can ask for.
const READ_AHEAD_KIB: &str = "1024";

/// Best effort: without it reading is slower, and no more. `dir` has no links in it: nothing may be asked of
/// the mount itself, which is not served yet.
pub(super) fn read_ahead(dir: &Path) {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let Some(device) = device_of(&table, dir) else { return };
    let file = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = std::fs::write(&file, READ_AHEAD_KIB) {
        tracing::debug!(%error, "{file} stays as it is");
    }
}

/// `MAJOR:MINOR` of what was mounted last on `dir`, without asking the mount itself.
fn device_of(table: &[u8], dir: &Path) -> Option<String> {
    let wanted = escaped(dir.as_os_str().as_bytes());
    let mut found = None;
    for line in table.split(|byte| *byte == b'\n') {
        let mut words = line.split(|byte| *byte == b' ').skip(2);
        let (device, place) = (words.next(), words.nth(1));
        if place == Some(&wanted) {
            found = device.and_then(|device| std::str::from_utf8(device).ok());
        }
    }
    found.map(str::to_owned)
}

/// A path as the table writes it.
fn escaped(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for byte in path {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => out.extend(format!("\\{byte:03o}").bytes()),
            _ => out.push(*byte),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_mount_on_a_folder_counts_and_odd_names_are_found() {
        let table = b"22 1 254:0 / / rw - ext4 a rw\n40 22 0:37 / /mnt/a\\040b rw - fuse x ro\n\
                      41 22 0:38 / /mnt/a\\040b rw shared:1 - fuse.varve x ro\n";
        assert_eq!(device_of(table, Path::new("/mnt/a b")), Some("0:38".into()));
        assert_eq!(device_of(table, Path::new("/")), Some("254:0".into()));
        assert_eq!(device_of(table, Path::new("/mnt")), None);
    }
}
