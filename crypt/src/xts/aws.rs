//! AES-256-XTS by AWS-LC: the engine where the processor has no AES instructions of a known kind, and
//! an oracle for the others.
//!
//! The library keeps the IV inside its context, so there is a small set of contexts, one per thread in
//! the usual case, taken once per request and never waited for by a thread that has one of its own.
#![allow(
    unsafe_code,
    reason = "the AES library's C interface; each block says who owns the context"
)]

use std::cell::Cell;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use aws_lc_sys as aws;

use super::Direction;
use crate::error::{Error, Result};
use crate::key::Key;

/// The C library's contexts for one key: a set per direction.
pub(super) struct AwsLc {
    encrypt: Box<[Mutex<Context>]>,
    decrypt: Box<[Mutex<Context>]>,
}

impl AwsLc {
    pub(super) fn new(key: &Key) -> Result<AwsLc> {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(64));
        let set = |direction| -> Result<Box<[Mutex<Context>]>> {
            (0..threads).map(|_| Ok(Mutex::new(Context::new(key, direction)?))).collect()
        };
        Ok(AwsLc { encrypt: set(Direction::Encrypt)?, decrypt: set(Direction::Decrypt)? })
    }

    /// A context nobody uses; in the usual case the one this thread used before.
    fn context(&self, direction: Direction) -> MutexGuard<'_, Context> {
        let set = match direction {
            Direction::Encrypt => &self.encrypt,
            Direction::Decrypt => &self.decrypt,
        };
        let home = thread_number() % set.len();
        for i in 0..set.len() {
            match set[(home + i) % set.len()].try_lock() {
                Ok(free) => return free,
                Err(TryLockError::Poisoned(p)) => return p.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        set[home].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs over whole data units of `unit` bytes, in place.
    pub(super) fn in_place(
        &self,
        direction: Direction,
        ivs: impl Iterator<Item = [u8; 16]>,
        unit: usize,
        data: &mut [u8],
    ) {
        let mut context = self.context(direction);
        for (iv, unit) in ivs.zip(data.chunks_exact_mut(unit)) {
            context.start(&iv);
            context.run(unit.as_ptr(), unit.as_mut_ptr(), unit.len());
        }
    }

    /// Encrypts whole data units of `unit` bytes from one buffer into another of the same length.
    pub(super) fn encrypt_into(
        &self,
        ivs: impl Iterator<Item = [u8; 16]>,
        unit: usize,
        from: &[u8],
        to: &mut [u8],
    ) {
        let mut context = self.context(Direction::Encrypt);
        let pairs = from.chunks_exact(unit).zip(to.chunks_exact_mut(unit));
        for (iv, (from, to)) in ivs.zip(pairs) {
            context.start(&iv);
            context.run(from.as_ptr(), to.as_mut_ptr(), to.len());
        }
    }
}

/// A small number for this thread, so that threads spread over the contexts.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static MINE: Cell<Option<usize>> = const { Cell::new(None) });
    MINE.with(|mine| {
        mine.get().unwrap_or_else(|| {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            mine.set(Some(n));
            n
        })
    })
}

/// One `EVP_CIPHER_CTX` with both key schedules in it. The library overwrites them when it frees it.
struct Context(NonNull<aws::EVP_CIPHER_CTX>);

// SAFETY: a context is plain memory of the C library, tied to no thread; `Mutex` keeps users apart.
unsafe impl Send for Context {}

/// Bytes of the library's private context data that are locked: two schedules of 15 round keys and
/// their round counts, which lie at its start.
const SCHEDULE_BYTES: usize = 2 * (15 * 16 + 8);

impl Context {
    fn new(key: &Key, direction: Direction) -> Result<Context> {
        assert_eq!(key.len(), 64, "this engine is for AES-256-XTS");
        // SAFETY: no arguments; the result is checked.
        let raw = unsafe { aws::EVP_CIPHER_CTX_new() };
        let context = Context(NonNull::new(raw).expect("memory for a cipher context"));
        // SAFETY: returns a pointer to a static description.
        let cipher = unsafe { aws::EVP_aes_256_xts() };
        let encrypt = match direction {
            Direction::Encrypt => 1,
            Direction::Decrypt => 0,
        };
        // SAFETY: the context is ours until `drop`; the key has the 64 bytes the cipher reads, and
        // the library keeps its expansion, not the pointer. A null IV means "later".
        let ok = unsafe {
            aws::EVP_CipherInit_ex(
                context.0.as_ptr(),
                cipher,
                ptr::null_mut(),
                key.bytes().as_ptr(),
                ptr::null(),
                encrypt,
            )
        };
        if ok != 1 {
            return Err(Error::unsupported("the AES library refused the key"));
        }
        // SAFETY: the context was initialised above; reading a field of it races with nobody.
        let schedules = unsafe { (*context.0.as_ptr()).cipher_data };
        crate::key::protect_schedule(schedules.cast::<u8>().cast_const(), SCHEDULE_BYTES);
        Ok(context)
    }

    /// Begins a data unit.
    #[inline]
    fn start(&mut self, iv: &[u8; 16]) {
        // SAFETY: `&mut self` is the only user of the context; the IV's 16 bytes are copied at once;
        // null cipher and key and -1 mean "as they are".
        let ok = unsafe {
            aws::EVP_CipherInit_ex(
                self.0.as_ptr(),
                ptr::null(),
                ptr::null_mut(),
                ptr::null(),
                iv.as_ptr(),
                -1,
            )
        };
        assert_eq!(ok, 1, "starting a data unit cannot fail");
    }

    /// One whole data unit: `from` and `to` are each valid for `len` bytes, equal or disjoint.
    #[inline]
    fn run(&mut self, from: *const u8, to: *mut u8, len: usize) {
        // SAFETY: private to this module; both callers pass slices of `len` bytes that they borrow
        // across the call, either the same one or two that cannot overlap.
        let ok = unsafe { aws::EVP_Cipher(self.0.as_ptr(), to, from, len) };
        assert_eq!(ok, 1, "a started data unit of 512 to 4096 bytes cannot fail");
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by `EVP_CIPHER_CTX_new`, freed once, here; the library cleanses the schedules.
        unsafe { aws::EVP_CIPHER_CTX_free(self.0.as_ptr()) }
    }
}
