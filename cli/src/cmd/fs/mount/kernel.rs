//! The line to the kernel: requests in, answers out, both on the lane itself. A thread of its own would
//! cost two more switches for each request.
//!
//! # Staying awake
//!
//! Who reads piece by piece asks again a few microseconds after an answer, and to wake a core that has
//! gone to sleep takes longer than all the rest of a small read. So the lane goes on looking for a moment
//! before it waits; how long, [`Watch`] learns from how soon the last requests came.

use super::ask::Request;
use super::wire::{RawAnswer, RawName, RawOpened};
use fuser::{Filesystem, FopenFlags, InitFlags, KernelConfig, Session};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::cell::Cell;
use std::future::Future;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use varve_block::Rt;
use varve_block::sync::{Either, Notify, select};
use zerocopy::IntoBytes;

/// How much the kernel reads ahead by itself, if its own limit allows.
const KERNEL_AHEAD: u32 = 1 << 20;
/// The longest write that could come, and room for its head: the kernel insists on it.
const REQUEST_MAX: usize = KERNEL_AHEAD as usize + 4096;

/// What is agreed with the kernel when it mounts. The session does that, and nothing else.
pub(super) struct Terms {
    /// Whether the kernel is to enforce modes and ACLs.
    enforce: bool,
    opens_itself: Arc<AtomicBool>,
}

impl Terms {
    pub(super) fn new(enforce: bool) -> Terms {
        Terms { enforce, opens_itself: Arc::default() }
    }

    /// Whether the kernel opens files and folders by itself, and keeps their pages.
    pub(super) fn opens_itself(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.opens_itself)
    }
}

impl Filesystem for Terms {
    fn init(&mut self, _: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = vec![
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
        ];
        if self.enforce {
            wanted.push(InitFlags::FUSE_POSIX_ACL);
        }
        let alone = InitFlags::FUSE_NO_OPEN_SUPPORT | InitFlags::FUSE_NO_OPENDIR_SUPPORT;
        self.opens_itself.store(config.capabilities().contains(alone), Ordering::Relaxed);
        for flag in wanted {
            // An older kernel does without.
            let _ = config.add_capabilities(flag);
        }
        let most = |_| io::Error::from(io::ErrorKind::InvalidInput);
        config.set_max_write(KERNEL_AHEAD).map_err(most)?;
        if let Err(most) = config.set_max_readahead(KERNEL_AHEAD) {
            let _ = config.set_max_readahead(most);
        }
        Ok(())
    }
}

/// The longest time to look for a request before waiting for it.
const WATCH_MAX: Duration = Duration::from_micros(50);
const WATCH_MIN: Duration = Duration::from_micros(5);

/// How long to look for the next request.
struct Watch {
    most: Duration,
    now: Duration,
}

impl Watch {
    /// On a single core whoever asks would wait for us to give up.
    fn new(cores: usize) -> Watch {
        let most = if cores > 1 { WATCH_MAX } else { Duration::ZERO };
        Watch { most, now: most }
    }

    /// A request had to be waited for.
    fn waited(&mut self, time: Duration) {
        self.now = match time < self.most {
            true => self.most,
            false if self.now / 2 < WATCH_MIN => Duration::ZERO,
            false => self.now / 2,
        };
    }
}

/// Requests that are being worked on.
#[derive(Default)]
struct InWork {
    count: Cell<usize>,
    answered: Notify,
}

/// The kernel's end of the mount.
pub(super) struct Kernel {
    rt: Rt,
    fd: Arc<OwnedFd>,
    /// Who alone may ask; `None`: everybody.
    owner: Option<u32>,
    buf: Vec<u8>,
    watch: Watch,
    in_work: Rc<InWork>,
    /// Ready when there is a request; kept until it is, as calling it off costs more than a look in vain.
    bell: Option<Pin<Box<dyn Future<Output = io::Result<()>>>>>,
}

impl Kernel {
    pub(super) fn new(rt: &Rt, session: &Session<Terms>, for_all: bool) -> io::Result<Kernel> {
        let fd = session.as_fd().try_clone_to_owned()?;
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Kernel {
            rt: rt.clone(),
            fd: Arc::new(fd),
            owner: (!for_all).then(|| rustix::process::geteuid().as_raw()),
            buf: vec![0; REQUEST_MAX],
            watch: Watch::new(std::thread::available_parallelism().map_or(1, usize::from)),
            in_work: Rc::default(),
            bell: None,
        })
    }

    /// The next request and the means to answer it; `None` when there is no mount any more.
    pub(super) async fn next(&mut self) -> io::Result<Option<(Request, Reply)>> {
        let mut since = self.rt.now();
        loop {
            let len = match rustix::io::read(&self.fd, &mut self.buf[..]) {
                Ok(len) => len,
                Err(Errno::AGAIN) if self.in_work.count.get() > 0 => {
                    self.ring_or_answer().await?;
                    since = self.rt.now();
                    continue;
                }
                Err(Errno::AGAIN) if self.rt.now() - since < self.watch.now => {
                    self.rt.yield_now().await;
                    continue;
                }
                Err(Errno::AGAIN) => {
                    let start = self.rt.now();
                    self.bell().await?;
                    self.bell = None;
                    self.watch.waited(self.rt.now() - start);
                    since = start;
                    continue;
                }
                // One that was given up meanwhile.
                Err(Errno::NOENT | Errno::INTR) => continue,
                Err(Errno::NODEV) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let Some(request) = self.buf.get(..len).and_then(Request::parse) else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "no request of FUSE"));
            };
            let reply = Reply::new(&self.fd, request.unique, &self.in_work);
            if self.owner.is_some_and(|owner| owner != request.uid) && !request.for_all() {
                reply.error(Errno::ACCESS);
                continue;
            }
            return Ok(Some((request, reply)));
        }
    }

    fn bell(&mut self) -> &mut Pin<Box<dyn Future<Output = io::Result<()>>>> {
        let (rt, fd) = (&self.rt, &self.fd);
        self.bell.get_or_insert_with(|| {
            let (rt, fd) = (rt.clone(), Arc::clone(fd));
            Box::pin(async move { rt.readable(&fd).await })
        })
    }

    /// Ready when there may be a request, or one was answered.
    async fn ring_or_answer(&mut self) -> io::Result<()> {
        let in_work = Rc::clone(&self.in_work);
        let answered = std::pin::pin!(in_work.answered.notified());
        match select(self.bell(), answered).await {
            Either::Left(rang) => {
                self.bell = None;
                rang
            }
            Either::Right(()) => Ok(()),
        }
    }
}

/// What one request is answered with. Dropped unanswered, it answers with an I/O error.
pub(super) struct Reply {
    fd: Arc<OwnedFd>,
    unique: u64,
    open: bool,
    in_work: Rc<InWork>,
}

impl Reply {
    fn new(fd: &Arc<OwnedFd>, unique: u64, in_work: &Rc<InWork>) -> Reply {
        in_work.count.set(in_work.count.get() + 1);
        Reply { fd: Arc::clone(fd), unique, open: true, in_work: Rc::clone(in_work) }
    }

    pub(super) fn data(self, bytes: &[u8]) {
        self.send(0, bytes);
    }

    pub(super) fn structure(self, raw: &(impl IntoBytes + zerocopy::Immutable)) {
        self.send(0, raw.as_bytes());
    }

    pub(super) fn nothing(self) {
        self.send(0, &[]);
    }

    pub(super) fn error(self, errno: Errno) {
        self.send(-errno.raw_os_error(), &[]);
    }

    /// Opened, without anything to remember.
    pub(super) fn opened(self, flags: FopenFlags) {
        self.structure(&RawOpened { handle: 0, flags: flags.bits(), backing: 0 });
    }

    /// The kernel waits for no answer.
    pub(super) fn unwanted(mut self) {
        self.open = false;
    }

    fn send(mut self, error: i32, bytes: &[u8]) {
        self.open = false;
        self.write(error, bytes);
    }

    fn write(&self, error: i32, bytes: &[u8]) {
        let len = u32::try_from(size_of::<RawAnswer>() + bytes.len()).unwrap_or(u32::MAX);
        let head = RawAnswer { len, error, unique: self.unique };
        let parts = [IoSlice::new(head.as_bytes()), IoSlice::new(bytes)];
        // It fails where nobody waits any more: interrupted, or unmounted.
        if let Err(error) = rustix::io::writev(&self.fd, &parts) {
            tracing::debug!(%error, "an answer was not taken");
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.open {
            self.write(-Errno::IO.raw_os_error(), &[]);
        }
        self.in_work.count.set(self.in_work.count.get() - 1);
        self.in_work.answered.notify_all();
    }
}

/// A listing as it grows.
pub(super) struct Listing {
    bytes: Vec<u8>,
    room: usize,
}

impl Listing {
    pub(super) fn new(room: u32) -> Listing {
        Listing { bytes: Vec::new(), room: usize::try_from(room).unwrap_or(usize::MAX) }
    }

    /// Adds a name, with `before` in front of it; `false` when there is no room for it.
    pub(super) fn add(&mut self, before: &[u8], name: &RawName, bytes: &[u8]) -> bool {
        let len = before.len() + size_of::<RawName>() + bytes.len();
        let end = self.bytes.len() + len.next_multiple_of(8);
        if end > self.room {
            return false;
        }
        self.bytes.extend_from_slice(before);
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(end, 0);
        true
    }

    pub(super) fn send(self, reply: Reply) {
        reply.data(&self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_asked_soon_stops_looking_and_starts_again() {
        let mut watch = Watch::new(2);
        assert_eq!(watch.now, WATCH_MAX);
        for _ in 0..4 {
            watch.waited(Duration::from_millis(1));
        }
        assert_eq!(watch.now, Duration::ZERO);
        watch.waited(Duration::from_micros(20));
        assert_eq!(watch.now, WATCH_MAX);
        assert_eq!(Watch::new(1).now, Duration::ZERO);
    }

    #[test]
    fn a_listing_ends_where_there_is_no_room_and_its_names_are_padded() {
        let mut listing = Listing::new(70);
        let name = |len| RawName { ino: 1, cookie: 2, name_len: len, kind: 4 };
        assert!(listing.add(&[], &name(3), b"abc"));
        assert!(listing.add(&[], &name(8), b"abcdefgh"));
        assert!(!listing.add(&[], &name(1), b"a"));
        assert_eq!(listing.bytes.len(), 32 + 32);
        assert_eq!(listing.bytes[24..32], *b"abc\0\0\0\0\0");
    }
}
