#![allow(
    unsafe_code,
    reason = "calls to the host that no safe crate wraps: ioctls and signal handlers"
)]
//! The host's interface, where rustix has no safe word for it.

use rustix::pipe::{PipeFlags, pipe_with};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};

fn checked(result: libc::c_int) -> io::Result<()> {
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// `_IO(0x12, 119)` of `linux/fs.h`.
const BLKDISCARD: libc::Ioctl = 0x1277;
/// Of `linux/loop.h`.
const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;

/// Gives up `[start, start + len)` in bytes of a block device: it may read as anything afterwards.
pub(crate) fn blk_discard(device: &OwnedFd, start: u64, len: u64) -> io::Result<()> {
    let range = [start, len];
    // SAFETY: BLKDISCARD reads two 64-bit words, which `range` is until the call returns.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), BLKDISCARD, range.as_ptr()) })
}

/// `struct loop_info64` of `linux/loop.h`, as far as it matters.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rest: [u64; 27],
}
const _: () = assert!(size_of::<LoopInfo>() == 232);

/// Device and inode number of the file behind a loop device.
pub(crate) fn loop_backing(device: &OwnedFd) -> io::Result<(u64, u64)> {
    let mut info = LoopInfo { device: 0, inode: 0, rest: [0; 27] };
    // SAFETY: LOOP_GET_STATUS64 writes one `loop_info64`, whose size `info` has.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) })?;
    Ok((info.device, info.inode))
}

/// The write end of the pipe below, or -1. Read by the handler at any moment.
static SIGNAL_PIPE: AtomicI32 = AtomicI32::new(-1);

/// Writes the signal's number into the pipe: all that a handler may do.
extern "C" fn on_signal(signal: libc::c_int) {
    let number = signal.to_le_bytes()[0];
    let pipe = SIGNAL_PIPE.load(Ordering::Acquire);
    // SAFETY: returns this thread's own errno slot.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: the slot is valid as long as the thread lives, which runs this handler.
    let saved = unsafe { errno.read() };
    // SAFETY: the byte lives on this stack; write(2) is async-signal-safe. A full pipe holds news enough.
    unsafe { libc::write(pipe, (&raw const number).cast(), 1) };
    // SAFETY: as above; whoever was interrupted finds its errno as it left it.
    unsafe { errno.write(saved) };
}

/// Signals that go into a pipe; dropping it restores what they did before.
pub(crate) struct CaughtSignals(Vec<(libc::c_int, libc::sigaction)>);

/// Lets each of `signals` write its number, as a byte, into the pipe whose (non-blocking) read end
/// is returned. The pipe is made once and never closed: a late handler must not write elsewhere.
pub(crate) fn catch_signals(signals: &[libc::c_int]) -> io::Result<(Arc<OwnedFd>, CaughtSignals)> {
    static PIPE: OnceLock<(Arc<OwnedFd>, OwnedFd)> = OnceLock::new();
    if PIPE.get().is_none() {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Somebody else may have been faster; then theirs is used.
        drop(PIPE.set((Arc::new(read), write)));
    }
    let (read, write) = PIPE.get().expect("just set");
    SIGNAL_PIPE.store(write.as_raw_fd(), Ordering::Release);
    // What came before somebody listened is no news.
    while rustix::io::read(read, &mut [0u8; 64]).is_ok_and(|n| n > 0) {}
    let mut caught = CaughtSignals(Vec::new());
    for &signal in signals {
        let before = set_handler(signal)?;
        caught.0.push((signal, before));
    }
    Ok((Arc::clone(read), caught))
}

fn set_handler(signal: libc::c_int) -> io::Result<libc::sigaction> {
    let handler: extern "C" fn(libc::c_int) = on_signal;
    // SAFETY: a sigaction is integers, a set of bits and an optional function: zero is a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    // Calls that the signal interrupts are restarted: nobody else should notice.
    action.sa_flags = libc::SA_RESTART;
    let mut before = MaybeUninit::uninit();
    // SAFETY: both point to a sigaction on this stack; the handler does only what handlers may do.
    checked(unsafe { libc::sigaction(signal, &raw const action, before.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so it has filled `before`.
    Ok(unsafe { before.assume_init() })
}

impl Drop for CaughtSignals {
    fn drop(&mut self) {
        for (signal, before) in &self.0 {
            // SAFETY: `before` is what the kernel told us for this very signal. It cannot fail.
            unsafe { libc::sigaction(*signal, before, std::ptr::null_mut()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::rt::{Config, Engine, Signal, run};

    /// One test for all of it: dispositions belong to the process.
    #[test]
    fn signals_are_caught_even_where_they_were_ignored_and_given_back() {
        use rustix::process::{getpid, kill_process};
        // SAFETY: ignoring a signal runs nothing.
        let before = unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
        for engine in [Engine::Auto, Engine::Threads] {
            run(Config { engine, lanes: 1 }, |rt| async move {
                let mut signals = rt.signals().unwrap();
                assert!(rt.signals().is_err(), "one at a time");
                kill_process(getpid(), rustix::process::Signal::INT).unwrap();
                assert_eq!(signals.next().await.unwrap(), Signal::Interrupt);
                let later = rt.clone();
                let task = rt.spawn(async move { signals.next().await.unwrap() });
                later.sleep(std::time::Duration::from_millis(5)).await;
                kill_process(getpid(), rustix::process::Signal::TERM).unwrap();
                assert_eq!(task.await, Signal::Terminate);
            })
            .unwrap();
        }
        // SAFETY: puts back what was there.
        let now = unsafe { libc::signal(libc::SIGINT, before) };
        assert_eq!(now, libc::SIG_IGN, "it does again what it did before");
    }
}
