//! A file of the host, addressed in bytes, with owned buffers and whole transfers.

use super::Rt;
use super::op::{Allocate, Fd, Op, Outcome};
use crate::buf::{Data, IoBuf};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// An open file or block device on one lane; clones share the descriptor.
#[derive(Clone)]
pub struct File {
    rt: Rt,
    fd: Fd,
}

impl File {
    pub fn new(rt: &Rt, fd: impl Into<OwnedFd>) -> File {
        File::shared(rt, Arc::new(fd.into()))
    }

    /// A descriptor that others use too, for instance the same file on another lane.
    pub fn shared(rt: &Rt, fd: Arc<OwnedFd>) -> File {
        File { rt: rt.clone(), fd }
    }

    pub fn descriptor(&self) -> &Arc<OwnedFd> {
        &self.fd
    }

    /// Fills the whole of `buf` from byte `at`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before.
    pub async fn read_at(&self, at: u64, buf: IoBuf) -> io::Result<IoBuf> {
        self.read_somehow(at, buf, false).await
    }

    /// As [`File::read_at`], copied beside this lane by the host's threads. That costs a switch from
    /// thread to thread.
    pub async fn read_aside_at(&self, at: u64, buf: IoBuf) -> io::Result<IoBuf> {
        self.read_somehow(at, buf, true).await
    }

    async fn read_somehow(&self, at: u64, mut buf: IoBuf, aside: bool) -> io::Result<IoBuf> {
        let mut patience = Patience::new();
        let mut done = 0;
        while done < buf.len() {
            let (file, at) = (Arc::clone(&self.fd), at + done as u64);
            let op = Op::Read { file, at, buf, from: done, aside };
            let (op, result) = self.rt.submit(op).await;
            let Op::Read { buf: back, .. } = op else {
                unreachable!("an operation comes back as it went");
            };
            buf = back;
            match advance(result, buf.len() - done, io::ErrorKind::UnexpectedEof) {
                Ok(n) => done += n,
                Err(e) => patience.wait(&self.rt, e).await?,
            }
        }
        Ok(buf)
    }

    /// Writes all of `data` at byte `at`; with `dsync` it is durable when this is ready.
    ///
    /// # Errors
    /// `WriteZero` when the host takes nothing more without saying why. Part of the data may have
    /// been written after any error.
    pub async fn write_at(&self, at: u64, data: Data, dsync: bool) -> io::Result<Data> {
        let (data, result) = self.try_write_at(at, data, dsync).await;
        result.map(|()| data)
    }

    /// As [`File::write_at`]; the data comes back after an error, too.
    pub(crate) async fn try_write_at(
        &self,
        at: u64,
        mut data: Data,
        dsync: bool,
    ) -> (Data, io::Result<()>) {
        let mut patience = Patience::new();
        let mut done = 0;
        while done < data.len() {
            let file = Arc::clone(&self.fd);
            let op = Op::Write { file, at: at + done as u64, data, from: done, dsync };
            let (op, result) = self.rt.submit(op).await;
            let Op::Write { data: back, .. } = op else {
                unreachable!("an operation comes back as it went");
            };
            data = back;
            match advance(result, data.len() - done, io::ErrorKind::WriteZero) {
                Ok(n) => done += n,
                Err(e) => {
                    if let Err(e) = patience.wait(&self.rt, e).await {
                        return (data, Err(e));
                    }
                }
            }
        }
        (data, Ok(()))
    }

    /// fdatasync(2). It is not repeated on any error: after a failure the kernel has forgotten.
    pub async fn fdatasync(&self) -> io::Result<()> {
        let op = Op::DataSync { file: Arc::clone(&self.fd) };
        self.rt.submit(op).await.1.map(drop)
    }

    /// Changes the allocation of a range of bytes, never the length of the file.
    pub async fn fallocate(&self, what: Allocate, at: u64, len: u64) -> io::Result<()> {
        let mut patience = Patience::new();
        loop {
            let op = Op::Fallocate { file: Arc::clone(&self.fd), what, at, len };
            match self.rt.submit(op).await.1 {
                Ok(_) => return Ok(()),
                Err(e) => patience.wait(&self.rt, e).await?,
            }
        }
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// How often a transfer may be told "not now" in a row, a millisecond apart.
const RETRIES_MAX: u32 = 1000;

/// Tries left of one operation. An interrupted call has done nothing; "not now" from a file means
/// that the host is short of requests or memory, which is a matter of time.
struct Patience(u32);

impl Patience {
    fn new() -> Patience {
        Patience(RETRIES_MAX)
    }

    /// Waits, if it is worth while to try again after `error`; else gives it back.
    async fn wait(&mut self, rt: &Rt, error: io::Error) -> io::Result<()> {
        let later = error.kind() == io::ErrorKind::WouldBlock;
        if self.0 == 0 || !(later || error.kind() == io::ErrorKind::Interrupted) {
            return Err(error);
        }
        self.0 -= 1;
        if later {
            rt.sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }
}

/// How many of the `left` bytes were moved. No progress is an error, and so is too much of it.
fn advance(result: io::Result<Outcome>, left: usize, none: io::ErrorKind) -> io::Result<usize> {
    match result? {
        Outcome::Count(0) => Err(none.into()),
        Outcome::Count(n) => {
            assert!(n <= left, "the host moved {n} of {left} bytes");
            Ok(n)
        }
        Outcome::Socket(_) => unreachable!("a transfer returns a count"),
    }
}
