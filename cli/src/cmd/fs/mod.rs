//! `varve fs`: make a file system, and read one without a kernel.

mod check;
mod chunk_recover;
mod csum_report;
mod dump_super;
mod dump_tree;
mod export;
mod find_root;
mod image;
mod log;
mod map;
mod mount;
mod rescue;
mod resolve;
mod send;
mod show;
mod target;

use crate::args::{FsLs, FsMkfs, FsPath, FsStat, FsVerb, MetadataProfile};
use crate::cmd::{output, text};
use crate::config::StackConfig;
use crate::failure::{Outcome, usage};
use crate::stack;
use anyhow::bail;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use varve_block::{Dyn, Rt};
use varve_fs::format::inode::{FileType, Inode, Time};
use varve_fs::{Fs, InodeId, MkfsOptions};

mod source;

pub(crate) use source::open;

/// What `cat` asks for at a time.
const READ_BYTES: usize = 1 << 20;
/// What `ls` asks for at a time.
const ENTRIES: usize = 512;

pub(crate) async fn run(rt: &Rt, verb: FsVerb) -> anyhow::Result<Outcome> {
    match verb {
        FsVerb::Check(args) => check::run(rt, args).await,
        FsVerb::Mkfs(args) => mkfs(rt, args).await,
        FsVerb::Ls(args) => ls(rt, args).await,
        FsVerb::Cat(args) => cat(rt, args).await,
        FsVerb::Stat(args) => stat(rt, args).await,
        FsVerb::Show(args) => show::show(rt, args).await,
        FsVerb::Df(args) => show::df(rt, args).await,
        FsVerb::Usage(args) => show::usage(rt, args).await,
        FsVerb::Map(args) => map::run(rt, args).await,
        FsVerb::Subvol(verb) => resolve::subvol(rt, verb).await,
        FsVerb::InodeResolve(args) => resolve::inode(rt, args).await,
        FsVerb::LogicalResolve(args) => resolve::logical(rt, args).await,
        FsVerb::FindRoot(args) => find_root::run(rt, args).await,
        FsVerb::ChunkRecover(args) => chunk_recover::run(rt, args).await,
        FsVerb::CsumReport(args) => csum_report::run(rt, args).await,
        FsVerb::Mount(args) => mount::run(rt, args).await,
        FsVerb::Export(args) => export::run(rt, args).await,
        FsVerb::Send(args) => send::run(rt, args).await,
        FsVerb::SendDump(args) => send::dump(&args),
        FsVerb::DumpSuper(args) => dump_super::run(rt, args).await,
        FsVerb::DumpTree(args) => dump_tree::run(rt, args).await,
        FsVerb::Image(verb) => image::run(rt, verb).await,
        FsVerb::Log(verb) => log::run(rt, verb).await,
        FsVerb::Rescue(verb) => rescue::run(rt, verb).await,
    }
}

async fn mkfs(rt: &Rt, args: FsMkfs) -> anyhow::Result<Outcome> {
    let config = StackConfig::new(&args.stack, args.image.as_ref())?;
    let Ok(nodesize) = u32::try_from(args.nodesize.0) else {
        return usage(format!("--nodesize {}: 4k to 64k", args.nodesize));
    };
    let options = MkfsOptions {
        label: args.label,
        uuid: args.uuid,
        dup_metadata: args.metadata == MetadataProfile::Dup,
        nodesize,
        force: args.force,
        ..MkfsOptions::default()
    };
    let stack = stack::open_to_format(rt, &config, args.force).await?;
    let made = varve_fs::mkfs(rt, &stack.top, &options).await;
    // Also after a failure: a stack that was opened is stopped.
    let stopped = stack.stop().await;
    let fsid = made?.fsid;
    stopped?;
    let mut out = output::stdout();
    writeln!(out, "file system {fsid} on {}", config.backing)?;
    out.flush()?;
    Ok(Outcome::Fine)
}

async fn cat(rt: &Rt, args: FsPath) -> anyhow::Result<Outcome> {
    let (fs, path) = open(rt, &args.at, &args.source, false).await?;
    let path = path.unwrap_or_default();
    let id = fs.resolve(&path).await?;
    let inode = fs.inode(id).await?;
    if inode.file_type() != FileType::Regular {
        bail!("{path} is a {}, not a file", text::kind(inode.file_type()));
    }
    let mut out = std::io::stdout().lock();
    let mut at = 0;
    while at < inode.size {
        let bytes = fs.read(id, at, READ_BYTES).await?;
        if bytes.is_empty() {
            bail!("{path} ends at byte {at} of {}", inode.size);
        }
        out.write_all(&bytes)?;
        at += bytes.len() as u64;
    }
    out.flush()?;
    Ok(Outcome::Fine)
}

async fn ls(rt: &Rt, args: FsLs) -> anyhow::Result<Outcome> {
    let (fs, path) = open(rt, &args.at, &args.source, true).await?;
    let path = path.unwrap_or_else(|| "/".to_owned());
    let mut list = Listing { fs: &fs, args: &args, out: output::stdout(), json: Vec::new() };
    let start = fs.lookup(&path).await?;
    if fs.inode(start).await?.file_type() != FileType::Directory {
        list.entry(Path::new(&path), start).await?;
        return list.finish();
    }
    // A stack of folders rather than recursion: a file system may be deeper than our stack is.
    let mut folders = vec![(PathBuf::new(), start)];
    while let Some((folder, id)) = folders.pop() {
        let mut below = list.folder(&folder, id).await?;
        below.reverse();
        if args.recursive {
            folders.append(&mut below);
        }
    }
    list.finish()
}

struct Listing<'a, W> {
    fs: &'a Fs<Dyn>,
    args: &'a FsLs,
    out: W,
    json: Vec<Value>,
}

impl<W: Write> Listing<'_, W> {
    /// Prints the entries of a folder and returns the folders among them.
    async fn folder(
        &mut self,
        folder: &Path,
        id: InodeId,
    ) -> anyhow::Result<Vec<(PathBuf, InodeId)>> {
        let mut below = Vec::new();
        let mut after = 0;
        loop {
            let entries = self.fs.read_dir(id, after, ENTRIES).await?;
            let Some(last) = entries.last() else { return Ok(below) };
            after = last.index;
            for entry in entries {
                let path = folder.join(text::os(&entry.name));
                self.entry(&path, entry.id).await?;
                if entry.kind == FileType::Directory {
                    below.push((path, entry.id));
                }
            }
        }
    }

    async fn entry(&mut self, path: &Path, id: InodeId) -> anyhow::Result<()> {
        if !self.args.long && !self.args.json {
            self.out.write_all(text::bytes(path))?;
            self.out.write_all(b"\n")?;
            return Ok(());
        }
        let inode = self.fs.inode(id).await?;
        let target = match inode.file_type() {
            FileType::Symlink => Some(self.fs.read_link(id).await?),
            _ => None,
        };
        if self.args.json {
            self.json.push(described(path, id, &inode, target.as_deref()));
            return Ok(());
        }
        write!(
            self.out,
            "{} {:>3} {:>6} {:>6} {:>12} {} ",
            text::mode(inode.mode),
            inode.nlink,
            inode.uid,
            inode.gid,
            inode.size,
            text::time(inode.mtime.seconds),
        )?;
        self.out.write_all(text::bytes(path))?;
        if let Some(target) = target {
            self.out.write_all(b" -> ")?;
            self.out.write_all(&target)?;
        }
        self.out.write_all(b"\n")?;
        Ok(())
    }

    fn finish(mut self) -> anyhow::Result<Outcome> {
        self.out.flush()?;
        drop(self.out);
        if self.args.json {
            output::json(&self.json)?;
        }
        Ok(Outcome::Fine)
    }
}

fn described(path: &Path, id: InodeId, inode: &Inode, target: Option<&[u8]>) -> Value {
    let time = |t: Time| json!({ "seconds": t.seconds, "nanoseconds": t.nanos });
    json!({
        "path": path.to_string_lossy(),
        "root": id.root,
        "inode": id.ino,
        "type": text::kind(inode.file_type()),
        "mode": inode.mode & 0o7777,
        "links": inode.nlink,
        "uid": inode.uid,
        "gid": inode.gid,
        "size": inode.size,
        "bytes": inode.nbytes,
        "rdev": inode.rdev,
        "atime": time(inode.atime),
        "mtime": time(inode.mtime),
        "ctime": time(inode.ctime),
        "otime": time(inode.otime),
        "target": target.map(String::from_utf8_lossy),
    })
}

async fn stat(rt: &Rt, args: FsStat) -> anyhow::Result<Outcome> {
    let (fs, path) = open(rt, &args.at, &args.source, true).await?;
    let Some(path) = path else { return stat_fs(&fs, args.json) };
    let id = fs.lookup(&path).await?;
    let inode = fs.inode(id).await?;
    let target = match inode.file_type() {
        FileType::Symlink => Some(fs.read_link(id).await?),
        _ => None,
    };
    let xattrs = fs.xattrs(id).await?;
    let mut all = described(Path::new(&path), id, &inode, target.as_deref());
    if args.json {
        all["xattrs"] = xattrs
            .iter()
            .map(|(name, value)| {
                json!({ "name": String::from_utf8_lossy(name), "value_hex": text::hex(value) })
            })
            .collect();
        output::json(&all)?;
        return Ok(Outcome::Fine);
    }
    let mut out = output::stdout();
    writeln!(out, "path    {path}")?;
    writeln!(out, "inode   {} in tree {}", id.ino, id.root)?;
    writeln!(out, "mode    {} ({:04o})", text::mode(inode.mode), inode.mode & 0o7777)?;
    writeln!(out, "links   {}", inode.nlink)?;
    writeln!(out, "owner   {}:{}", inode.uid, inode.gid)?;
    writeln!(out, "size    {} bytes, {} allocated", inode.size, inode.nbytes)?;
    for (name, t) in [
        ("access", inode.atime),
        ("modify", inode.mtime),
        ("change", inode.ctime),
        ("birth ", inode.otime),
    ] {
        writeln!(out, "{name}  {}.{:09}", text::time(t.seconds), t.nanos)?;
    }
    if let Some(target) = target {
        writeln!(out, "target  {}", String::from_utf8_lossy(&target))?;
    }
    for (name, value) in xattrs {
        writeln!(out, "xattr   {} = 0x{}", String::from_utf8_lossy(&name), text::hex(&value))?;
    }
    out.flush()?;
    Ok(Outcome::Fine)
}

fn stat_fs(fs: &Fs<Dyn>, json: bool) -> anyhow::Result<Outcome> {
    let sb = fs.superblock();
    let label = String::from_utf8_lossy(sb.label.as_bytes()).into_owned();
    if json {
        output::json(&json!({
            "fsid": sb.fsid.to_string(),
            "label": label,
            "generation": sb.generation,
            "total_bytes": sb.total_bytes,
            "bytes_used": sb.bytes_used,
            "devices": sb.num_devices,
            "nodesize": sb.nodesize,
            "sectorsize": sb.sectorsize,
            "warnings": fs.warnings(),
        }))?;
        return Ok(Outcome::Fine);
    }
    let mut out = output::stdout();
    writeln!(out, "fsid        {}", sb.fsid)?;
    writeln!(out, "label       {label}")?;
    writeln!(out, "generation  {}", sb.generation)?;
    writeln!(out, "used        {} of {} bytes", sb.bytes_used, sb.total_bytes)?;
    writeln!(out, "devices     {}", sb.num_devices)?;
    writeln!(out, "blocks      nodes of {}, sectors of {}", sb.nodesize, sb.sectorsize)?;
    out.flush()?;
    Ok(Outcome::Fine)
}
