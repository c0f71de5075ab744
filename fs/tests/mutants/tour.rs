//! All that can be done with a disk, one look after the other. Each says what it saw, in words that are
//! the same the next time, and ends, whatever the disk says.

use crate::disk::{Disk, Unwritten};
use std::fmt::Write;
use std::future::Future;
use std::path::Path;
use varve_block::{Rt, Sim};
use varve_fs::export::{Options, RescueOptions, export, open_rescue};
use varve_fs::format::inode::FileType;
use varve_fs::inspect::{Block, Inspector, Step, Walk, describe, scan_chunks, super_copies};
use varve_fs::send::{SendOptions, send};
use varve_fs::{DumpOptions, Fs, InodeId, Logical, OpenOptions, dump};

/// A name for it, and what it does.
pub(crate) type Look = (&'static str, fn(&Disk) -> String);

pub(crate) const CHECK: &[Look] = &[("check", check)];

pub(crate) const OTHERS: &[Look] = &[
    ("dump-tree", trees),
    ("chunk-recover", chunks),
    ("image dump", metadata),
    ("reading", files),
    ("csum-report", owners),
    ("send", streams),
    ("export", rescue),
];

/// A damaged file may claim any size, and a damaged folder may hold itself.
const FILE_MAX: u64 = 2 << 20;
const FILES_MAX: usize = 400;
const STREAM_MAX: usize = 64 << 20;

/// What the check says where it has nothing to say.
pub(crate) const CLEAN: &str = "clean";

fn look<F>(disk: &Disk, at: impl FnOnce(Rt, Unwritten) -> F + 'static) -> String
where
    F: Future<Output = varve_fs::Result<String>> + 'static,
{
    let device = disk.unwritten();
    let seen = Sim::new(2).run(|rt| async move { at(rt, device).await });
    seen.unwrap_or_else(|error| format!("{error:?}"))
}

fn check(disk: &Disk) -> String {
    match disk.check() {
        Ok(checked) if checked.is_clean() => CLEAN.to_owned(),
        verdict => format!("{verdict:?}"),
    }
}

fn trees(disk: &Disk) -> String {
    look(disk, |_, device| async move {
        let mut said = format!("{:?}", super_copies(&device).await);
        let fs = Inspector::open(device, 0).await?;
        let mut roots = fs.roots().await;
        roots.extend(fs.log_roots().await);
        for entry in roots {
            let mut walk = Walk::new(entry.root);
            while let Some(step) = walk.next(&fs).await {
                match step {
                    Step::Block(block) => items(&fs, &block, &mut said),
                    Step::Lost { at, why } => put(&mut said, &format!("{at}: {why}")),
                }
            }
        }
        put(&mut said, &fs.log().await);
        put(&mut said, &fs.find_roots(5, &mut |_, _| ()).await);
        Ok(said)
    })
}

/// Only how much there is: the words themselves are many.
fn items(fs: &Inspector<Unwritten>, block: &Block, said: &mut String) {
    let (sb, csum) = (fs.superblock(), fs.superblock().csum().unwrap_or_default());
    let fields = varve_fs::format::block::items(&block.bytes)
        .map(|(key, data)| describe(key, data, csum, sb.sectorsize).len());
    put(said, &(block.header.bytenr, fields.sum::<usize>()));
}

fn put(said: &mut String, what: &impl std::fmt::Debug) {
    write!(said, "{what:?};").expect("a string has room");
}

fn chunks(disk: &Disk) -> String {
    look(disk, |_, device| async move {
        let scan = scan_chunks(vec![device], 0, &mut |_, _| ()).await?;
        Ok(format!("{scan:?}"))
    })
}

fn metadata(disk: &Disk) -> String {
    look(disk, |_, device| async move {
        let options = DumpOptions { level: 0, sanitise: true };
        let mut bytes = 0;
        let sink = |part: &[u8]| {
            bytes += part.len();
            Ok(())
        };
        let report = dump(vec![device], options, sink, |_, _| ()).await?;
        Ok(format!("{report:?} {bytes}"))
    })
}

fn files(disk: &Disk) -> String {
    look(disk, |_, device| async move {
        let fs = Fs::open(device, OpenOptions::default()).await?;
        let mut said = String::new();
        put(&mut said, &fs.groups().await);
        put(&mut said, &fs.devices().await);
        put(&mut said, &fs.subvolumes().await);
        put(&mut said, &fs.subvolume_paths().await);
        let mut todo = vec![fs.top()];
        for _ in 0..FILES_MAX {
            let Some(id) = todo.pop() else { break };
            match visit(&fs, id, &mut said).await {
                Ok(below) => todo.extend(below),
                Err(error) => put(&mut said, &error),
            }
        }
        Ok(said)
    })
}

/// Reads one inode in every way. What is below it.
async fn visit(
    fs: &Fs<Unwritten>,
    id: InodeId,
    said: &mut String,
) -> varve_fs::Result<Vec<InodeId>> {
    let inode = fs.inode(id).await?;
    put(said, &inode);
    put(said, &fs.xattrs(id).await.map(|all| all.len()));
    put(said, &fs.names(id).await);
    put(said, &fs.paths_in_tree(id).await);
    match inode.file_type() {
        FileType::Directory => {
            let entries = fs.read_dir(id, 0, FILES_MAX).await?;
            return Ok(entries.iter().map(|entry| entry.id).collect());
        }
        FileType::Symlink => put(said, &fs.read_link(id).await),
        FileType::Regular => {
            put(said, &fs.next_data(id, 0).await);
            put(said, &fs.next_hole(id, 0).await);
            put(said, &fs.logical_of(id, 0).await);
            let mut at = 0;
            while at < inode.size.min(FILE_MAX) {
                let bytes = fs.read(id, at, 300_000).await?;
                put(said, &varve_block::sum::crc32c(&bytes));
                at += bytes.len().max(1) as u64;
            }
        }
        _ => (),
    }
    Ok(Vec::new())
}

fn owners(disk: &Disk) -> String {
    look(disk, |_, device| async move {
        let fs = Fs::open(device, OpenOptions::default()).await?;
        let scanned = fs.scan_data(&mut |_| ()).await?;
        let mut bad: Vec<Logical> = scanned.bad.iter().map(|bad| bad.at).collect();
        bad.extend(fs.chunks().iter().map(|(start, _)| start));
        Ok(format!("{scanned:?} {:?}", fs.damage(&bad).await?))
    })
}

fn streams(disk: &Disk) -> String {
    look(disk, |_, device| async move {
        let fs = Fs::open(device, OpenOptions::default()).await?;
        let ids = fs.subvolumes().await?.into_iter().filter(|s| s.read_only).map(|s| s.id);
        let (mut said, mut parent) = (String::new(), None);
        for id in ids {
            let options = SendOptions {
                parent,
                clone_sources: Vec::new(),
                version: 2,
                compressed_data: true,
            };
            put(&mut said, &send(&fs, id, &options, &mut Stream(0)).await);
            parent = Some(id);
        }
        Ok(said)
    })
}

/// A receiver whose disk is full at some time.
struct Stream(usize);

impl std::io::Write for Stream {
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        self.0 += part.len();
        match self.0 < STREAM_MAX {
            true => Ok(part.len()),
            false => Err(std::io::ErrorKind::StorageFull.into()),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn rescue(disk: &Disk) -> String {
    look(disk, |rt, device| async move {
        let rescued = open_rescue(vec![device], &RescueOptions::default(), &mut |_, _| ()).await?;
        let (fs, options) =
            (rescued.fs, Options { dry_run: true, snapshots: true, ..Options::default() });
        let dest = Path::new("nowhere");
        let report = export(&rt, &fs, fs.top(), dest, &options, &mut |_| ()).await?;
        Ok(format!("{:?} {report:?}", rescued.notes))
    })
}
