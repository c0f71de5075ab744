//! Secret bytes: volume keys, derived keys, passphrases.
//!
//! A [`Key`] lives in pages of its own, locked into memory, left out of core files, empty in a forked
//! child, and overwritten before they are given back. It cannot be copied by accident (no `Clone`), is
//! not printed (`Debug` says `Key(..)`), and two keys are compared in a time that depends on their
//! length only.
//!
//! Locking and the two advices are best effort: a small `RLIMIT_MEMLOCK` must not keep a volume shut.
//! The first refusal is logged, once.
#![allow(
    unsafe_code,
    reason = "mmap, mlock and madvise; each block says who owns the pages until when"
)]

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags};
use zeroize::Zeroize;

use crate::error::{Error, Result};

/// Secret bytes in locked memory, zeroised on drop.
pub struct Key {
    /// First byte of a mapping that this value alone owns.
    at: NonNull<u8>,
    len: usize,
    mapped: usize,
}

// SAFETY: the mapping belongs to this value alone, and nothing about it is tied to a thread.
unsafe impl Send for Key {}
// SAFETY: `&Key` only hands out `&[u8]`; there is no interior mutability.
unsafe impl Sync for Key {}

impl Key {
    /// A key of `len` zero bytes, to be filled through [`Key::bytes_mut`].
    ///
    /// # Panics
    /// When the system has no page left, as any allocation does.
    pub fn zeroed(len: usize) -> Key {
        let mapped = len.max(1).next_multiple_of(rustix::param::page_size());
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches nothing that
        // exists; it is owned by the value returned here until `drop` unmaps it.
        let at = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), mapped, prot, MapFlags::PRIVATE)
        }
        .expect("memory for a key");
        protect(at, mapped);
        // SAFETY: as in `protect`; a child of fork() finds zeroes here, this process keeps its bytes.
        let _ = unsafe { rustix::mm::madvise(at, mapped, Advice::LinuxWipeOnFork) };
        let at = NonNull::new(at.cast::<u8>()).expect("mmap never returns null on success");
        Key { at, len, mapped }
    }

    /// A key with these bytes. The source stays as it is: zeroise it if it was the only copy.
    pub fn copy_from(bytes: &[u8]) -> Key {
        let mut key = Key::zeroed(bytes.len());
        key.bytes_mut().copy_from_slice(bytes);
        key
    }

    /// Takes the bytes out of a buffer and zeroises it.
    pub fn take_from(bytes: &mut Vec<u8>) -> Key {
        let key = Key::copy_from(bytes);
        bytes.zeroize();
        key
    }

    /// A key of `len` fresh random bytes from the system. Its failure is final.
    pub fn random(len: usize) -> Result<Key> {
        let mut key = Key::zeroed(len);
        fill_random(key.bytes_mut())?;
        Ok(key)
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No bytes at all: an empty passphrase.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The secret itself.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `at` points to `mapped >= len` initialised bytes, and `&self` keeps writers away.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }

    /// The secret itself, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }

    /// A second copy, for the few places that need one (a volume and its key schedule). Named, so that
    /// it is seen in review.
    pub fn duplicate(&self) -> Key {
        Key::copy_from(self.bytes())
    }

    /// All bytes are zero. Takes the same time for every content.
    pub fn is_zero(&self) -> bool {
        same(self.bytes(), &vec![0; self.len])
    }

    /// The two halves are equal, which takes the security proof away from XTS (check 22).
    pub fn halves_equal(&self) -> bool {
        let (a, b) = self.bytes().split_at(self.len / 2);
        a.len() == b.len() && same(a, b)
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.bytes_mut().zeroize();
        // SAFETY: the mapping was made in `zeroed` with this length, and no borrow outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.at.as_ptr().cast(), self.mapped) };
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        same(self.bytes(), other.bytes())
    }
}
impl Eq for Key {}

/// Equality in a time that depends on the lengths only.
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let difference = a.iter().zip(b).fold(0u8, |d, (x, y)| std::hint::black_box(d | (x ^ y)));
    std::hint::black_box(difference) == 0
}

/// Fills from the system's generator, the only source of keys, salts and AF stripes.
pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes).map_err(|e| Error::Random(e.to_string()))
}

/// Locks the pages of an expanded key, wherever its library put them, and keeps them out of core files.
/// Nothing undoes it: the pages may hold a neighbour's secret too.
///
/// Page by page: `len` is what the schedules take at most, and the allocator may not have opened the
/// page behind the last one that is really used.
pub(crate) fn protect_schedule(at: *const u8, len: usize) {
    let page = rustix::param::page_size();
    let start = at.addr() & !(page - 1);
    protect(at.with_addr(start).cast_mut().cast(), page);
    for further in (start + page..at.addr() + len).step_by(page) {
        let further = at.with_addr(further).cast_mut().cast();
        // SAFETY: locking pages changes nothing that the program can see; a bad range is an error value.
        let locked = unsafe { rustix::mm::mlock(further, page) };
        if locked.is_ok() {
            protect(further, page);
        }
    }
}

fn protect(at: *mut c_void, len: usize) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    // SAFETY: locking pages changes nothing that the program can see; a bad range is an error value.
    let locked = unsafe { rustix::mm::mlock(at, len) };
    if let Err(e) = locked
        && !WARNED.swap(true, Ordering::Relaxed)
    {
        tracing::warn!(error = %e, "keys cannot be locked into memory, they may reach the swap device");
    }
    // SAFETY: the advice concerns core files only; a bad range is an error value.
    let _ = unsafe { rustix::mm::madvise(at, len, Advice::LinuxDontDump) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Key::copy_from(b"hunter2")), "Key(..)");
        assert_eq!(format!("{:?}", Some(Key::copy_from(b"hunter2"))), "Some(Key(..))");
    }

    #[test]
    fn equality_is_over_all_bytes_and_the_length() {
        let k = Key::copy_from(b"abcd");
        assert_eq!(k, Key::copy_from(b"abcd"));
        assert_ne!(k, Key::copy_from(b"abce"));
        assert_ne!(k, Key::copy_from(b"bbcd"));
        // HMAC pads with zeroes, so these two would give the same digest: lengths must differ too.
        assert_ne!(k, Key::copy_from(b"abcd\0"));
        assert!(Key::copy_from(b"abab").halves_equal());
        assert!(!k.halves_equal());
        assert!(Key::zeroed(9).is_zero());
        assert!(!k.is_zero());
    }

    #[test]
    fn taking_a_buffer_leaves_it_zero() {
        let mut v = b"secret".to_vec();
        v.reserve_exact(1);
        let k = Key::take_from(&mut v);
        assert_eq!(k.bytes(), b"secret");
        assert!(v.is_empty());
    }

    #[test]
    fn pages_are_kept_out_of_core_files() {
        let k = Key::copy_from(&[7; 64]);
        let at = k.bytes().as_ptr().addr();
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
        let mut inside = false;
        for line in maps.lines() {
            if let Some((range, _)) = line.split_once(' ')
                && let Some((a, b)) = range.split_once('-')
                && let (Ok(a), Ok(b)) = (usize::from_str_radix(a, 16), usize::from_str_radix(b, 16))
            {
                inside = (a..b).contains(&at);
            }
            if inside && line.starts_with("VmFlags:") {
                assert!(line.contains(" dd"), "no MADV_DONTDUMP: {line}");
                return;
            }
        }
        panic!("mapping not found");
    }

    #[test]
    fn random_keys_differ() {
        assert_ne!(Key::random(64).unwrap(), Key::random(64).unwrap());
    }
}
