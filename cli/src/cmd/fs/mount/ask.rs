//! The kernel's side: its requests as values, forwarded to the lane with the means to answer them.

use fuser::{
    AccessFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use varve_block::sync::MailSender;

/// How much the kernel reads ahead by itself, if its own limit allows.
const KERNEL_AHEAD: u32 = 1 << 20;

/// A request of the kernel. Dropped unanswered, it answers with an I/O error.
pub(super) enum Ask {
    Lookup { parent: u64, name: Vec<u8>, reply: ReplyEntry },
    Attr { node: u64, reply: ReplyAttr },
    Link { node: u64, reply: ReplyData },
    Read { node: u64, offset: u64, len: u32, reply: ReplyData },
    Names { node: u64, offset: u64, reply: ReplyDirectory },
    NamesPlus { node: u64, offset: u64, reply: ReplyDirectoryPlus },
    Xattr { node: u64, name: Vec<u8>, room: u32, reply: ReplyXattr },
    Xattrs { node: u64, room: u32, reply: ReplyXattr },
    Seek { node: u64, offset: u64, data: bool, reply: ReplyLseek },
    Space { reply: ReplyStatfs },
}

pub(super) struct Asker {
    queue: MailSender<Ask>,
    /// The kernel opens files and folders by itself, and keeps their pages.
    opens_itself: bool,
    /// Whether the kernel is to enforce modes and ACLs.
    enforce: bool,
}

impl Asker {
    pub(super) fn new(queue: MailSender<Ask>, enforce: bool) -> Asker {
        Asker { queue, opens_itself: false, enforce }
    }

    /// Nothing is to be done at an open. A kernel that can, is told so once and does not ask again.
    fn opened(&self, reply: ReplyOpen, flags: FopenFlags) {
        match self.opens_itself {
            true => reply.error(Errno::ENOSYS),
            false => reply.opened(FileHandle(0), flags),
        }
    }

    /// Waits for room in the queue. Where nobody listens any more, the request is dropped.
    fn ask(&self, ask: Ask) {
        drop(wait_for(self.queue.send(ask)));
    }
}

/// Holds this thread until the future is ready.
fn wait_for<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            // A wake-up between the poll and here is remembered by the thread.
            Poll::Pending => std::thread::park(),
        }
    }
}

impl Filesystem for Asker {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
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
        self.opens_itself = config.capabilities().contains(alone);
        for flag in wanted {
            // An older kernel does without.
            let _ = config.add_capabilities(flag);
        }
        if let Err(most) = config.set_max_readahead(KERNEL_AHEAD) {
            let _ = config.set_max_readahead(most);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.ask(Ask::Lookup { parent: parent.0, name: name.as_bytes().to_vec(), reply });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.ask(Ask::Attr { node: ino.0, reply });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.ask(Ask::Link { node: ino.0, reply });
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.opened(reply, FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.ask(Ask::Read { node: ino.0, offset, len: size, reply });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // There is nothing to flush, ever: the kernel does not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.opened(reply, FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.ask(Ask::Names { node: ino.0, offset, reply });
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.ask(Ask::NamesPlus { node: ino.0, offset, reply });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.ask(Ask::Space { reply });
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.ask(Ask::Xattr { node: ino.0, name: name.as_bytes().to_vec(), room: size, reply });
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.ask(Ask::Xattrs { node: ino.0, room: size, reply });
    }

    fn access(&self, _: &Request, _: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        match mask.contains(AccessFlags::W_OK) {
            true => reply.error(Errno::EROFS),
            false => reply.ok(),
        }
    }

    fn lseek(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        // The kernel does the other kinds itself. 3 is SEEK_DATA, 4 is SEEK_HOLE.
        match (u64::try_from(offset), whence) {
            (Ok(offset), 3 | 4) => {
                self.ask(Ask::Seek { node: ino.0, offset, data: whence == 3, reply });
            }
            (Err(_), 3 | 4) => reply.error(Errno::ENXIO),
            _ => reply.error(Errno::EINVAL),
        }
    }
}
