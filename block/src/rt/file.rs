//! A file of the host, addressed in bytes, with owned buffers and whole transfers.

use super::Rt;
use super::op::{Allocate, Fd, Op, Outcome};
use crate::buf::{Data, IoBuf};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

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
    pub async fn read_at(&self, at: u64, mut buf: IoBuf) -> io::Result<IoBuf> {
        let mut done = 0;
        while done < buf.len() {
            let op = Op::Read { file: Arc::clone(&self.fd), at: at + done as u64, buf, from: done };
            let (op, result) = self.rt.submit(op)?.await;
            let Op::Read { buf: back, .. } = op else {
                unreachable!("an operation comes back as it went");
            };
            buf = back;
            done += advance(result, buf.len() - done, io::ErrorKind::UnexpectedEof)?;
        }
        Ok(buf)
    }

    /// Writes all of `data` at byte `at`; with `dsync` it is durable when this is ready.
    ///
    /// # Errors
    /// `WriteZero` when the host takes nothing more without saying why. Part of the data may have
    /// been written after any error.
    pub async fn write_at(&self, at: u64, mut data: Data, dsync: bool) -> io::Result<Data> {
        let mut done = 0;
        while done < data.len() {
            let op = Op::Write {
                file: Arc::clone(&self.fd),
                at: at + done as u64,
                data,
                from: done,
                dsync,
            };
            let (op, result) = self.rt.submit(op)?.await;
            let Op::Write { data: back, .. } = op else {
                unreachable!("an operation comes back as it went");
            };
            data = back;
            done += advance(result, data.len() - done, io::ErrorKind::WriteZero)?;
        }
        Ok(data)
    }

    /// fdatasync(2). It is not repeated on any error: after a failure the kernel has forgotten.
    pub async fn fdatasync(&self) -> io::Result<()> {
        let op = Op::DataSync { file: Arc::clone(&self.fd) };
        self.rt.submit(op)?.await.1.map(drop)
    }

    /// Changes the allocation of a range of bytes, never the length of the file.
    pub async fn fallocate(&self, what: Allocate, at: u64, len: u64) -> io::Result<()> {
        loop {
            let op = Op::Fallocate { file: Arc::clone(&self.fd), what, at, len };
            match self.rt.submit(op)?.await.1 {
                Err(e) if again(&e) => self.rt.yield_now().await,
                result => return result.map(drop),
            }
        }
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An interrupted call has done nothing, and a full request queue is a matter of time.
pub(super) fn again(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

/// How many of the `left` bytes were moved. No progress is an error, and so is too much of it.
fn advance(result: io::Result<Outcome>, left: usize, none: io::ErrorKind) -> io::Result<usize> {
    match result {
        Ok(Outcome::Count(0)) => Err(none.into()),
        Ok(Outcome::Count(n)) => {
            assert!(n <= left, "the host moved {n} of {left} bytes");
            Ok(n)
        }
        Ok(Outcome::Socket(_)) => unreachable!("a transfer returns a count"),
        Err(e) if again(&e) => Ok(0),
        Err(e) => Err(e),
    }
}
