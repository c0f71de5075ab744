//! SIGINT and SIGTERM as something to await.

use super::Rt;
use crate::dev::sys;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the operator asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    Interrupt,
    Terminate,
}

/// Signals to this process, while it lives; then they do again what they did before.
pub struct Signals {
    rt: Rt,
    pipe: Arc<OwnedFd>,
    _caught: sys::CaughtSignals,
    _only: Only,
}

/// A process has one handler, so there is one [`Signals`] at a time.
struct Only;

static TAKEN: AtomicBool = AtomicBool::new(false);

impl Drop for Only {
    fn drop(&mut self) {
        TAKEN.store(false, Ordering::Release);
    }
}

impl Rt {
    /// Catches SIGINT and SIGTERM from now on, also when they were inherited as ignored (a shell
    /// starts background jobs so).
    ///
    /// # Errors
    /// `ResourceBusy` when they are caught already.
    pub fn signals(&self) -> io::Result<Signals> {
        if TAKEN.swap(true, Ordering::AcqRel) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let only = Only;
        let (pipe, caught) = sys::catch_signals(&[libc::SIGINT, libc::SIGTERM])?;
        Ok(Signals { rt: self.clone(), pipe, _caught: caught, _only: only })
    }
}

impl Signals {
    /// The next signal.
    pub async fn next(&mut self) -> io::Result<Signal> {
        loop {
            let mut number = [0u8];
            match rustix::io::read(&self.pipe, &mut number) {
                Ok(1) if i32::from(number[0]) == libc::SIGINT => return Ok(Signal::Interrupt),
                Ok(1) => return Ok(Signal::Terminate),
                Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(rustix::io::Errno::AGAIN) => self.rt.readable(&self.pipe).await?,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}
