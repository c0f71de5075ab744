//! The lane's side: what the engine says to a request, in the kernel's terms.

use super::ahead::Ahead;
use super::ask::Ask;
use super::nodes::{Node, Nodes, ROOT};
use crate::cmd::text;
use fuser::{Errno, FileAttr, FileType as Kind, Generation, INodeNo};
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use varve_block::{Dyn, Rt, chain};
use varve_fs::format::inode::{FileType, Inode, Time};
use varve_fs::{Error, ErrorKind, Fs, InodeId};

/// How long the kernel may keep what it was told: nothing changes.
const KEEP: Duration = Duration::from_secs(365 * 24 * 3600);
/// Names read at a time: more than one answer holds.
const ENTRIES: usize = 512;
/// What a file's blocks are counted in, as the kernel's own btrfs does.
const PAGE: u32 = 4096;

pub(super) struct Server {
    fs: Rc<Fs<Dyn>>,
    nodes: Nodes,
    ahead: Ahead,
}

/// A name in a folder, and where to go on behind it.
struct Name {
    node: Node,
    kind: FileType,
    name: Vec<u8>,
    cookie: u64,
}

impl Server {
    pub(super) fn new(rt: Rt, fs: Fs<Dyn>) -> Server {
        let fs = Rc::new(fs);
        let nodes = Nodes::new(fs.top());
        Server { ahead: Ahead::new(rt, Rc::clone(&fs)), fs, nodes }
    }

    pub(super) async fn answer(&self, ask: Ask) {
        match ask {
            Ask::Lookup { parent, name, reply } => match self.lookup(parent, &name).await {
                Ok(attr) => reply.entry(&KEEP, &attr, Generation(0)),
                Err(errno) => reply.error(errno),
            },
            Ask::Attr { node, reply } => match self.attr(node).await {
                Ok(attr) => reply.attr(&KEEP, &attr),
                Err(errno) => reply.error(errno),
            },
            Ask::Link { node, reply } => match self.link(node).await {
                Ok(target) => reply.data(&target),
                Err(errno) => reply.error(errno),
            },
            Ask::Read { node, offset, len, reply } => match self.read(node, offset, len).await {
                Ok(bytes) => reply.data(&bytes),
                Err(errno) => reply.error(errno),
            },
            Ask::Names { node, offset, mut reply } => {
                let add = async |name: Name| {
                    let number = INodeNo(self.nodes.number(&name.node));
                    reply.add(number, name.cookie, kind(name.kind), text::os(&name.name))
                };
                match self.each_name(node, offset, add).await {
                    Ok(()) => reply.ok(),
                    Err(errno) => reply.error(errno),
                }
            }
            Ask::NamesPlus { node, offset, mut reply } => {
                let add = async |name: Name| {
                    let attr = self.attr_beside_name(&name).await;
                    let os = text::os(&name.name);
                    reply.add(attr.ino, name.cookie, os, &KEEP, &attr, Generation(0))
                };
                match self.each_name(node, offset, add).await {
                    Ok(()) => reply.ok(),
                    Err(errno) => reply.error(errno),
                }
            }
            Ask::Xattr { node, name, room, reply } => match self.xattr(node, &name).await {
                Ok(value) => sized(reply, &value, room),
                Err(errno) => reply.error(errno),
            },
            Ask::Xattrs { node, room, reply } => match self.xattrs(node).await {
                Ok(names) => sized(reply, &names, room),
                Err(errno) => reply.error(errno),
            },
            Ask::Seek { node, offset, data, reply } => match self.seek(node, offset, data).await {
                Ok(at) => reply.offset(at),
                Err(errno) => reply.error(errno),
            },
            Ask::Space { reply } => self.space(reply),
        }
    }

    fn id(&self, node: u64) -> Result<InodeId, Errno> {
        self.nodes.id(node).ok_or(Errno::ESTALE)
    }

    /// The errno for an error; what means damage is said in the log too, with the file's name.
    async fn failed(&self, id: InodeId, doing: &str, error: &Error) -> Errno {
        match error.kind {
            ErrorKind::NotFound => return Errno::ENOENT,
            ErrorKind::NotADirectory => return Errno::ENOTDIR,
            ErrorKind::IsADirectory => return Errno::EISDIR,
            ErrorKind::Loop => return Errno::ELOOP,
            ErrorKind::Invalid => return Errno::EINVAL,
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
            ErrorKind::Unsupported => Errno::EOPNOTSUPP,
            _ => Errno::EIO,
        }
    }

    async fn lookup(&self, parent: u64, name: &[u8]) -> Result<FileAttr, Errno> {
        let dir = self.id(parent)?;
        match self.fs.entry(dir, name).await {
            Ok(Some(id)) => self.attr_of(&Node::new(dir, name, id)).await,
            // Number 0 says that there is none, and that this may be kept too.
            Ok(None) => Ok(attributes(0, &Inode::default())),
            Err(error) => Err(self.failed(dir, "looking up a name", &error).await),
        }
    }

    async fn attr(&self, node: u64) -> Result<FileAttr, Errno> {
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
                Err(Errno::EIO)
            }
            Err(error) => Err(self.failed(id, "reading an inode", &error).await),
        }
    }

    async fn attr_of(&self, node: &Node) -> Result<FileAttr, Errno> {
        Ok(attributes(self.nodes.number(node), &self.inode(node.id).await?))
    }

    /// For a listing: a name whose inode cannot be read is listed, and the kernel asks again.
    async fn attr_beside_name(&self, name: &Name) -> FileAttr {
        let dots = matches!(&*name.name, b"." | b"..");
        match (dots, self.fs.inode(name.node.id).await) {
            (false, Ok(inode)) => attributes(self.nodes.number(&name.node), &inode),
            (_, _) => FileAttr { kind: kind(name.kind), ..attributes(0, &Inode::default()) },
        }
    }

    async fn link(&self, node: u64) -> Result<Vec<u8>, Errno> {
        let id = self.id(node)?;
        match self.fs.read_link(id).await {
            Ok(target) => Ok(target),
            Err(error) => Err(self.failed(id, "reading a link", &error).await),
        }
    }

    async fn read(&self, node: u64, offset: u64, len: u32) -> Result<Vec<u8>, Errno> {
        let id = self.id(node)?;
        let len = usize::try_from(len).map_err(|_| Errno::EINVAL)?;
        match self.ahead.read(id, offset, len).await {
            Ok(bytes) => Ok(bytes),
            Err(error) => Err(self.failed(id, "reading", &error).await),
        }
    }

    /// Gives `add` every name behind the cookie `from`, until it says that the answer is full.
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
                if add(name).await {
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
        all.into_iter().find(|(known, _)| known == name).map(|(_, v)| v).ok_or(Errno::ENODATA)
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
            Ok(at) => at.and_then(|at| i64::try_from(at).ok()).ok_or(Errno::ENXIO),
            Err(error) => Err(self.failed(id, "looking for holes", &error).await),
        }
    }

    /// Bytes of the devices, whatever profiles make of them: `varve fs usage` knows more.
    fn space(&self, reply: fuser::ReplyStatfs) {
        let sb = self.fs.superblock();
        let block = u64::from(sb.sectorsize);
        let (all, used) = (sb.total_bytes / block, sb.bytes_used.div_ceil(block));
        let free = all.saturating_sub(used);
        reply.statfs(all, free, free, 0, 0, sb.sectorsize, 255, sb.sectorsize);
    }
}

/// As getxattr(2) wants it: the size when no room was given, the bytes when they fit.
fn sized(reply: fuser::ReplyXattr, bytes: &[u8], room: u32) {
    let Ok(len) = u32::try_from(bytes.len()) else { return reply.error(Errno::E2BIG) };
    match room {
        0 => reply.size(len),
        room if len > room => reply.error(Errno::ERANGE),
        _ => reply.data(bytes),
    }
}

fn kind(kind: FileType) -> Kind {
    match kind {
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::CharDevice => Kind::CharDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::Fifo => Kind::NamedPipe,
        FileType::Socket => Kind::Socket,
        FileType::Regular | FileType::Unknown => Kind::RegularFile,
    }
}

fn attributes(number: u64, inode: &Inode) -> FileAttr {
    let (major, minor) = inode.device();
    FileAttr {
        ino: INodeNo(number),
        size: inode.size,
        blocks: inode.nbytes.next_multiple_of(PAGE.into()) / 512,
        atime: time(inode.atime),
        mtime: time(inode.mtime),
        ctime: time(inode.ctime),
        crtime: time(inode.otime),
        kind: kind(inode.file_type()),
        perm: u16::try_from(inode.mode & 0o7777).unwrap_or(0),
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
fn time(time: Time) -> SystemTime {
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = match time.seconds < 0 {
        true => UNIX_EPOCH.checked_sub(seconds),
        false => UNIX_EPOCH.checked_add(seconds),
    };
    let nanos = Duration::from_nanos(time.nanos.min(999_999_999).into());
    whole.and_then(|whole| whole.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}
