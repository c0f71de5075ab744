//! The lane's side: what the engine says to a request, in the kernel's terms.

use super::ahead::{Ahead, Bytes};
use super::ask::Ask;
use super::kernel::{Listing, Reply};
use super::nodes::{Node, Nodes, ROOT};
use super::wire::{RawAttr, RawAttrAnswer, RawEntry, RawName, RawSpace, RawXattrSize};
use fuser::FopenFlags;
use rustix::io::Errno;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use varve_block::{Dyn, Rt, chain};
use varve_fs::format::inode::{FileType, Inode, Time};
use varve_fs::{Error, ErrorKind, Fs, InodeId};
use zerocopy::IntoBytes;

/// Names read at a time: more than one answer holds.
const ENTRIES: usize = 512;
/// What a file's blocks are counted in, as the kernel's own btrfs does.
const PAGE: u32 = 4096;

pub(super) struct Server {
    fs: Rc<Fs<Dyn>>,
    nodes: Nodes,
    ahead: Ahead,
    /// The kernel opens files and folders by itself.
    opens_itself: Arc<AtomicBool>,
}

/// A name in a folder, and where to go on behind it.
struct Name {
    node: Node,
    kind: FileType,
    name: Vec<u8>,
    cookie: u64,
}

impl Server {
    pub(super) fn new(rt: Rt, fs: Fs<Dyn>, opens_itself: Arc<AtomicBool>) -> Server {
        let fs = Rc::new(fs);
        let nodes = Nodes::new(fs.top());
        Server { ahead: Ahead::new(rt, Rc::clone(&fs)), fs, nodes, opens_itself }
    }

    pub(super) async fn answer(&self, ask: Ask, reply: Reply) {
        match ask {
            Ask::Lookup { parent, name } => match self.lookup(parent, &name).await {
                Ok(attr) => reply.structure(&RawEntry::new(attr)),
                Err(errno) => reply.error(errno),
            },
            Ask::Attr { node } => match self.attr(node).await {
                Ok(attr) => reply.structure(&RawAttrAnswer::new(attr)),
                Err(errno) => reply.error(errno),
            },
            Ask::Link { node } => match self.link(node).await {
                Ok(target) => reply.data(&target),
                Err(errno) => reply.error(errno),
            },
            Ask::Read { node, offset, len } => match self.read(node, offset, len).await {
                Ok(bytes) => reply.data(&bytes),
                Err(errno) => reply.error(errno),
            },
            Ask::Names { node, offset, room } => match self.listing(node, offset, room).await {
                Ok(listing) => listing.send(reply),
                Err(errno) => reply.error(errno),
            },
            Ask::NamesPlus { node, offset, room } => {
                match self.listing_plus(node, offset, room).await {
                    Ok(listing) => listing.send(reply),
                    Err(errno) => reply.error(errno),
                }
            }
            Ask::Xattr { node, name, room } => match self.xattr(node, &name).await {
                Ok(value) => sized(reply, &value, room),
                Err(errno) => reply.error(errno),
            },
            Ask::Xattrs { node, room } => match self.xattrs(node).await {
                Ok(names) => sized(reply, &names, room),
                Err(errno) => reply.error(errno),
            },
            Ask::Seek { node, offset, data } => match self.seek(node, offset, data).await {
                Ok(at) => reply.structure(&at),
                Err(errno) => reply.error(errno),
            },
            Ask::Space => self.space(reply),
            Ask::Open { folder } => self.opened(reply, folder),
            // 2 asks whether it could be written.
            Ask::Access { mask } if mask & 2 != 0 => reply.error(Errno::ROFS),
            Ask::Access { .. } | Ask::Nothing | Ask::Destroy => reply.nothing(),
            Ask::Forget => reply.unwanted(),
            Ask::Beyond => reply.error(Errno::NXIO),
            Ask::Unknown => reply.error(Errno::NOSYS),
        }
    }

    /// Nothing is to be done at an open. A kernel that can, is told so once and does not ask again.
    fn opened(&self, reply: Reply, folder: bool) {
        let keep = match folder {
            true => FopenFlags::FOPEN_CACHE_DIR,
            false => FopenFlags::FOPEN_NOFLUSH,
        };
        match self.opens_itself.load(Ordering::Relaxed) {
            true => reply.error(Errno::NOSYS),
            false => reply.opened(FopenFlags::FOPEN_KEEP_CACHE | keep),
        }
    }

    async fn listing(&self, node: u64, offset: u64, room: u32) -> Result<Listing, Errno> {
        let mut listing = Listing::new(room);
        let add = async |name: Name| {
            let kind = mode_of(name.kind) >> 12;
            listing.add(&[], &raw_name(self.nodes.number(&name.node), &name, kind), &name.name)
        };
        self.each_name(node, offset, add).await?;
        Ok(listing)
    }

    async fn listing_plus(&self, node: u64, offset: u64, room: u32) -> Result<Listing, Errno> {
        let mut listing = Listing::new(room);
        let add = async |name: Name| {
            let attr = self.attr_beside_name(&name).await;
            let (entry, raw) = (RawEntry::new(attr), raw_name(attr.ino, &name, attr.mode >> 12));
            listing.add(entry.as_bytes(), &raw, &name.name)
        };
        self.each_name(node, offset, add).await?;
        Ok(listing)
    }

    fn id(&self, node: u64) -> Result<InodeId, Errno> {
        self.nodes.id(node).ok_or(Errno::STALE)
    }

    /// The errno for an error; what means damage is said in the log too, with the file's name.
    async fn failed(&self, id: InodeId, doing: &str, error: &Error) -> Errno {
        match error.kind {
            ErrorKind::NotFound => return Errno::NOENT,
            ErrorKind::NotADirectory => return Errno::NOTDIR,
            ErrorKind::IsADirectory => return Errno::ISDIR,
            ErrorKind::Loop => return Errno::LOOP,
            ErrorKind::Invalid => return Errno::INVAL,
            _ => {}
        }
        let names = self.fs.paths_in_tree(id).await.unwrap_or_default();
        let paths: Vec<_> = names.iter().map(|path| path.escape_ascii().to_string()).collect();
        tracing::error!(
            path = paths.join(", "),
            root = id.root,
            inode = id.ino,
            error = %chain(error),
            "{doing} failed"
        );
        match error.kind {
            ErrorKind::Unsupported => Errno::OPNOTSUPP,
            _ => Errno::IO,
        }
    }

    async fn lookup(&self, parent: u64, name: &[u8]) -> Result<RawAttr, Errno> {
        let dir = self.id(parent)?;
        match self.fs.entry(dir, name).await {
            Ok(Some(id)) => self.attr_of(&Node::new(dir, name, id)).await,
            // Number 0 says that there is none, and that this may be kept too.
            Ok(None) => Ok(attributes(0, &Inode::default())),
            Err(error) => Err(self.failed(dir, "looking up a name", &error).await),
        }
    }

    async fn attr(&self, node: u64) -> Result<RawAttr, Errno> {
        let id = self.id(node)?;
        let inode = self.inode(id).await?;
        // The root is 1 to the kernel, and its own number to everybody who asks.
        Ok(attributes(if node == ROOT { id.ino } else { node }, &inode))
    }

    async fn inode(&self, id: InodeId) -> Result<Inode, Errno> {
        match self.fs.inode(id).await {
            Ok(inode) => Ok(inode),
            Err(error) if error.kind == ErrorKind::NotFound => {
                // A name leads to it, so it ought to be there.
                tracing::error!(root = id.root, inode = id.ino, "a name leads to no inode");
                Err(Errno::IO)
            }
            Err(error) => Err(self.failed(id, "reading an inode", &error).await),
        }
    }

    async fn attr_of(&self, node: &Node) -> Result<RawAttr, Errno> {
        Ok(attributes(self.nodes.number(node), &self.inode(node.id).await?))
    }

    /// For a listing: a name whose inode cannot be read is listed, and the kernel asks again.
    async fn attr_beside_name(&self, name: &Name) -> RawAttr {
        let dots = matches!(&*name.name, b"." | b"..");
        match (dots, self.fs.inode(name.node.id).await) {
            (false, Ok(inode)) => attributes(self.nodes.number(&name.node), &inode),
            (_, _) => RawAttr { mode: mode_of(name.kind), ..attributes(0, &Inode::default()) },
        }
    }

    async fn link(&self, node: u64) -> Result<Vec<u8>, Errno> {
        let id = self.id(node)?;
        match self.fs.read_link(id).await {
            Ok(target) => Ok(target),
            Err(error) => Err(self.failed(id, "reading a link", &error).await),
        }
    }

    async fn read(&self, node: u64, offset: u64, len: u32) -> Result<Bytes, Errno> {
        let id = self.id(node)?;
        let len = usize::try_from(len).map_err(|_| Errno::INVAL)?;
        match self.ahead.read(id, offset, len).await {
            Ok(bytes) => Ok(bytes),
            Err(error) => Err(self.failed(id, "reading", &error).await),
        }
    }

    /// Gives `add` every name behind the cookie `from`, until there is no room for one.
    async fn each_name(
        &self,
        node: u64,
        mut from: u64,
        mut add: impl AsyncFnMut(Name) -> bool,
    ) -> Result<(), Errno> {
        loop {
            let names = self.names(node, from).await?;
            let Some(last) = names.last() else { return Ok(()) };
            from = last.cookie;
            for name in names {
                if !add(name).await {
                    return Ok(());
                }
            }
        }
    }

    /// Names behind a cookie: 0 is the start, 1 behind `.`, 2 behind `..`, and a name's own index
    /// and one more behind it.
    async fn names(&self, node: u64, from: u64) -> Result<Vec<Name>, Errno> {
        let dir = self.id(node)?;
        let mut names = Vec::new();
        let own = |name: &[u8], id, cookie| Name {
            node: Node { id, place: None },
            kind: FileType::Directory,
            name: name.to_vec(),
            cookie,
        };
        if from == 0 {
            names.push(own(b".", dir, 1));
        }
        if from <= 1 {
            let up = self.fs.entry(dir, b"..").await.ok().flatten().unwrap_or(dir);
            names.push(own(b"..", up, 2));
        }
        let after = if from <= 2 { 0 } else { from - 1 };
        match self.fs.read_dir(dir, after, ENTRIES).await {
            Ok(entries) => names.extend(entries.into_iter().map(|entry| Name {
                node: Node::new(dir, &entry.name, entry.id),
                kind: entry.kind,
                cookie: entry.index.saturating_add(1),
                name: entry.name,
            })),
            Err(error) => return Err(self.failed(dir, "listing a folder", &error).await),
        }
        Ok(names)
    }

    async fn all_xattrs(&self, id: InodeId) -> Result<Vec<(Vec<u8>, Vec<u8>)>, Errno> {
        match self.fs.xattrs(id).await {
            Ok(all) => Ok(all),
            Err(error) => Err(self.failed(id, "reading attributes", &error).await),
        }
    }

    async fn xattr(&self, node: u64, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let all = self.all_xattrs(self.id(node)?).await?;
        all.into_iter().find(|(known, _)| known == name).map(|(_, v)| v).ok_or(Errno::NODATA)
    }

    async fn xattrs(&self, node: u64) -> Result<Vec<u8>, Errno> {
        let all = self.all_xattrs(self.id(node)?).await?;
        Ok(all.into_iter().flat_map(|(name, _)| name.into_iter().chain([0])).collect())
    }

    async fn seek(&self, node: u64, offset: u64, data: bool) -> Result<i64, Errno> {
        let id = self.id(node)?;
        let found = match data {
            true => self.fs.next_data(id, offset).await,
            false => self.fs.next_hole(id, offset).await,
        };
        match found {
            Ok(at) => at.and_then(|at| i64::try_from(at).ok()).ok_or(Errno::NXIO),
            Err(error) => Err(self.failed(id, "looking for holes", &error).await),
        }
    }

    /// Bytes of the devices, whatever profiles make of them: `varve fs usage` knows more.
    fn space(&self, reply: Reply) {
        let sb = self.fs.superblock();
        let block = u64::from(sb.sectorsize);
        let (all, used) = (sb.total_bytes / block, sb.bytes_used.div_ceil(block));
        let free = all.saturating_sub(used);
        reply.structure(&RawSpace {
            blocks: all,
            free,
            available: free,
            block_size: sb.sectorsize,
            name_max: 255,
            fragment_size: sb.sectorsize,
            ..RawSpace::default()
        });
    }
}

/// As getxattr(2) wants it: the size when no room was given, the bytes when they fit.
fn sized(reply: Reply, bytes: &[u8], room: u32) {
    let Ok(len) = u32::try_from(bytes.len()) else { return reply.error(Errno::TOOBIG) };
    match room {
        0 => reply.structure(&RawXattrSize { len, padding: 0 }),
        room if len > room => reply.error(Errno::RANGE),
        _ => reply.data(bytes),
    }
}

fn raw_name(ino: u64, name: &Name, kind: u32) -> RawName {
    // A name has at most 255 bytes.
    let name_len = u32::try_from(name.name.len()).unwrap_or(u32::MAX);
    RawName { ino, cookie: name.cookie, name_len, kind }
}

/// The bits of st_mode that say what something is.
fn mode_of(kind: FileType) -> u32 {
    match kind {
        FileType::Directory => 0o040_000,
        FileType::Symlink => 0o120_000,
        FileType::CharDevice => 0o020_000,
        FileType::BlockDevice => 0o060_000,
        FileType::Fifo => 0o010_000,
        FileType::Socket => 0o140_000,
        FileType::Regular | FileType::Unknown => 0o100_000,
    }
}

fn attributes(number: u64, inode: &Inode) -> RawAttr {
    let (major, minor) = inode.device();
    RawAttr {
        ino: number,
        size: inode.size,
        blocks: inode.nbytes.next_multiple_of(PAGE.into()) / 512,
        atime: inode.atime.seconds.cast_unsigned(),
        mtime: inode.mtime.seconds.cast_unsigned(),
        ctime: inode.ctime.seconds.cast_unsigned(),
        atime_ns: nanos(inode.atime),
        mtime_ns: nanos(inode.mtime),
        ctime_ns: nanos(inode.ctime),
        mode: mode_of(inode.file_type()) | inode.mode & 0o7777,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        // FUSE's 32 bits: twelve of the major number amid twenty of the minor.
        rdev: minor & 0xFF | major << 8 | (minor & 0xF_FF00) << 12,
        blksize: PAGE,
        flags: 0,
    }
}

/// Nanoseconds beyond a second are damage that nobody checks; they are cut.
fn nanos(time: Time) -> u32 {
    time.nanos.min(999_999_999)
}
