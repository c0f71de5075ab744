//! AES-XTS over encryption sectors: one data unit, one tweak start, per sector of 512 to 4096 bytes.
//!
//! Two engines compute the same bytes. [`Engine::AwsLc`] is the fast one; it knows AES-256 only and
//! refuses a key with equal halves. [`Engine::Soft`] is pure Rust and knows everything. Both expand
//! the key once per volume; a request only starts tweaks.
//!
//! # Numbers
//! Every method takes `n`, the number of the *first 512-byte sector* of the data, counted from the
//! start of the segment and with the segment's IV offset already added. Without `large` the IV of
//! consecutive 4096-byte sectors steps by 8, as LUKS2 wants; with it, by 1.
//!
//! # Concurrency
//! [`Xts`] is `Sync`. The C library keeps the IV inside its context, so there is a small set of
//! contexts, one per thread in the usual case, taken once per request and never waited for by a
//! thread that has one of its own.
#![allow(
    unsafe_code,
    reason = "the AES library's C interface; each block says who owns the context"
)]

mod soft;

use std::cell::Cell;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use aws_lc_sys as aws;

use crate::cipher::{CipherSpec, IvMode};
use crate::error::{Error, Result};
use crate::key::Key;
use soft::Soft;

/// Which code computes AES.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Engine {
    /// The fastest that can do the key.
    #[default]
    Auto,
    /// AWS-LC: AES-256 with unequal halves.
    AwsLc,
    /// RustCrypto.
    Soft,
}

/// Size of an encryption sector in bytes: 512, 1024, 2048 or 4096.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SectorSize(u32);

impl SectorSize {
    /// The size of a block-layer sector, and of every keyslot area's sectors.
    pub const S512: SectorSize = SectorSize(512);
    /// The size a new volume has where nothing speaks against it.
    pub const S4096: SectorSize = SectorSize(4096);

    /// One of the four legal sizes (check 35).
    pub fn new(bytes: u64) -> Option<SectorSize> {
        matches!(bytes, 512 | 1024 | 2048 | 4096)
            .then(|| SectorSize(u32::try_from(bytes).expect("at most 4096")))
    }

    /// In bytes.
    pub fn bytes(self) -> usize {
        self.0 as usize
    }

    /// In 512-byte sectors: 1, 2, 4 or 8.
    pub fn sectors(self) -> u64 {
        u64::from(self.0 / 512)
    }
}

/// What a cipher needs to know besides its key.
#[derive(Clone, Debug)]
pub struct XtsParams {
    /// The parsed cipher text; must be an XTS mode.
    pub spec: CipherSpec,
    /// Size of a data unit.
    pub sector_size: SectorSize,
    /// `iv_large_sectors`: the IV counts encryption sectors instead of 512-byte sectors.
    pub iv_large_sectors: bool,
    /// Which code to use.
    pub engine: Engine,
    /// Accept equal key halves and an all-zero key, to rescue what somebody made with one (check 22).
    pub allow_weak_key: bool,
}

impl XtsParams {
    /// The usual parameters around a cipher text.
    pub fn new(spec: CipherSpec, sector_size: SectorSize) -> XtsParams {
        XtsParams {
            spec,
            sector_size,
            iv_large_sectors: false,
            engine: Engine::Auto,
            allow_weak_key: false,
        }
    }
}

/// An expanded XTS key: encrypts and decrypts whole encryption sectors.
pub struct Xts {
    engine: Expanded,
    iv: IvMode,
    sector_size: SectorSize,
    large: bool,
}

enum Expanded {
    AwsLc(AwsLc),
    Soft(Soft),
}

impl std::fmt::Debug for Xts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Xts({:?}, {} bytes, {:?})", self.engine(), self.sector_size.0, self.iv)
    }
}

impl Xts {
    /// Expands a key. A wrong length, a weak key and a cipher that is not AES-XTS are errors.
    pub fn new(params: &XtsParams, key: &Key) -> Result<Xts> {
        params.spec.check_supported()?;
        if !matches!(key.len(), 32 | 64) {
            return Err(Error::unsupported(format!(
                "a key of {} bits for {}: AES-XTS takes 256 or 512",
                key.len() * 8,
                params.spec
            )));
        }
        let weak = key.halves_equal() || key.is_zero();
        if weak && !params.allow_weak_key {
            return Err(Error::refused(
                22,
                "the two halves of the XTS key are equal; allow a weak key to rescue the data",
            ));
        }
        let fast = key.len() == 64 && !weak;
        let engine = match params.engine {
            Engine::Auto | Engine::AwsLc if fast => Expanded::AwsLc(AwsLc::new(key)?),
            Engine::Auto | Engine::Soft => {
                Expanded::Soft(Soft::new(key).expect("the length was checked"))
            }
            Engine::AwsLc => {
                return Err(Error::unsupported(
                    "the AWS-LC engine takes AES-256-XTS keys with unequal halves only",
                ));
            }
        };
        Ok(Xts {
            engine,
            iv: params.spec.iv.clone(),
            sector_size: params.sector_size,
            large: params.iv_large_sectors,
        })
    }

    /// The engine that computes.
    pub fn engine(&self) -> Engine {
        match self.engine {
            Expanded::AwsLc(_) => Engine::AwsLc,
            Expanded::Soft(_) => Engine::Soft,
        }
    }

    /// Size of a data unit.
    pub fn sector_size(&self) -> SectorSize {
        self.sector_size
    }

    /// Encrypts in place.
    ///
    /// # Panics
    /// When `data` is not whole encryption sectors: alignment is checked at the device's door.
    pub fn encrypt(&self, n: u64, data: &mut [u8]) {
        let units = self.units(n, data.len());
        match &self.engine {
            Expanded::AwsLc(aws) => aws.in_place(Direction::Encrypt, units, data),
            Expanded::Soft(soft) => {
                for (iv, unit) in units.zip(data.chunks_exact_mut(self.sector_size.bytes())) {
                    soft.sector(true, iv, unit);
                }
            }
        }
    }

    /// Decrypts in place.
    ///
    /// # Panics
    /// As [`Xts::encrypt`].
    pub fn decrypt(&self, n: u64, data: &mut [u8]) {
        let units = self.units(n, data.len());
        match &self.engine {
            Expanded::AwsLc(aws) => aws.in_place(Direction::Decrypt, units, data),
            Expanded::Soft(soft) => {
                for (iv, unit) in units.zip(data.chunks_exact_mut(self.sector_size.bytes())) {
                    soft.sector(false, iv, unit);
                }
            }
        }
    }

    /// Encrypts one buffer into another of the same length, which spares the copy where the source
    /// is shared and must not change.
    ///
    /// # Panics
    /// As [`Xts::encrypt`], and when the lengths differ.
    pub fn encrypt_into(&self, n: u64, from: &[u8], to: &mut [u8]) {
        assert_eq!(from.len(), to.len(), "source and target have one length");
        let units = self.units(n, from.len());
        match &self.engine {
            Expanded::AwsLc(aws) => aws.into(Direction::Encrypt, units, from, to),
            Expanded::Soft(_) => {
                to.copy_from_slice(from);
                self.encrypt(n, to);
            }
        }
    }

    /// The IVs of a run of encryption sectors.
    fn units(&self, n: u64, len: usize) -> Units<'_> {
        let size = self.sector_size.bytes();
        assert!(len.is_multiple_of(size), "{len} bytes are not whole {size}-byte sectors");
        let per_unit = self.sector_size.sectors();
        let (next, step) = if self.large { (n / per_unit, 1) } else { (n, per_unit) };
        Units { iv: &self.iv, next, step, size }
    }
}

/// Endless run of IVs, one per data unit. Sector numbers wrap, as the kernel's do.
struct Units<'a> {
    iv: &'a IvMode,
    next: u64,
    step: u64,
    size: usize,
}

impl Iterator for Units<'_> {
    type Item = [u8; 16];

    #[inline]
    fn next(&mut self) -> Option<[u8; 16]> {
        let iv = self.iv.block(self.next);
        self.next = self.next.wrapping_add(self.step);
        Some(iv.expect("an IV mode without a plain block was refused when the key was expanded"))
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Encrypt,
    Decrypt,
}

/// The C library's contexts for one key: a set per direction.
struct AwsLc {
    encrypt: Box<[Mutex<Context>]>,
    decrypt: Box<[Mutex<Context>]>,
}

impl AwsLc {
    fn new(key: &Key) -> Result<AwsLc> {
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

    fn in_place(&self, direction: Direction, units: Units<'_>, data: &mut [u8]) {
        let mut context = self.context(direction);
        let size = units.size;
        for (iv, unit) in units.zip(data.chunks_exact_mut(size)) {
            context.start(&iv);
            context.run(unit.as_ptr(), unit.as_mut_ptr(), unit.len());
        }
    }

    fn into(&self, direction: Direction, units: Units<'_>, from: &[u8], to: &mut [u8]) {
        let mut context = self.context(direction);
        let size = units.size;
        let pairs = from.chunks_exact(size).zip(to.chunks_exact_mut(size));
        for (iv, (from, to)) in units.zip(pairs) {
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

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;
