//! What keeps secrets out of files that nobody asked for.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// No core files, and no other process of this user may look into this one's memory. Called before any
/// secret is read; the key's own pages are kept out of dumps and swap besides.
///
/// Nothing depends on it, so a system that forbids it is no reason to stop.
pub fn no_dumps() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let _ = setrlimit(Resource::Core, none);
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{dumpable_behavior, getrlimit};

    #[test]
    fn afterwards_there_are_no_core_files() {
        no_dumps();
        assert_eq!(getrlimit(Resource::Core).current, Some(0));
        assert_eq!(dumpable_behavior().expect("asked"), DumpableBehavior::NotDumpable);
        // A descriptor can still be opened again by its number, which is how passphrases arrive.
        let file = tempfile::tempfile().expect("a file");
        let number = std::os::fd::AsRawFd::as_raw_fd(&file);
        std::fs::File::open(format!("/proc/self/fd/{number}")).expect("opened again");
    }
}
