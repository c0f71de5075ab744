//! Items of file trees and of the root tree.

use super::{Fields, Value, bytes, le64, num, text};
use crate::format::dir::DirItem;
use crate::format::file_extent::{Body, FileExtent};
use crate::format::inode::{Inode, InodeRef, Time};
use crate::format::key::{ItemType as T, Key};
use crate::format::root::{Root, RootRef};

pub(super) fn describe(key: Key, data: &[u8]) -> Result<Fields, String> {
    let said = |wrong: crate::format::Wrong| wrong.to_string();
    Ok(match key.kind {
        T::INODE_ITEM => inode(&Inode::parse(data).map_err(said)?),
        T::INODE_REF => names(InodeRef::each(data, key.offset), false)?,
        T::INODE_EXTREF => names(InodeRef::each_ext(data), true)?,
        T::DIR_ITEM | T::DIR_INDEX | T::XATTR_ITEM => {
            let entries: Result<Vec<_>, _> =
                DirItem::each(data).map(|entry| entry.map(|entry| dir_entry(&entry))).collect();
            vec![("entries", Value::List(entries.map_err(said)?))]
        }
        T::EXTENT_DATA => file_extent(&FileExtent::parse(data).map_err(said)?),
        T::ROOT_ITEM => root(&Root::parse(data).map_err(said)?),
        T::ROOT_REF | T::ROOT_BACKREF => {
            let link = RootRef::parse(data).map_err(said)?;
            vec![num("dirid", link.dirid), num("sequence", link.sequence), bytes("name", link.name)]
        }
        T::DIR_LOG_ITEM | T::DIR_LOG_INDEX => vec![num("end", le64(data))],
        // The first part of a verity description says how long it is; the rest are pieces of bytes.
        T::VERITY_DESC_ITEM if key.offset == 0 && data.len() == 25 => {
            vec![num("size", le64(&data[..8])), num("encryption", data[24])]
        }
        _ => vec![num("bytes", data.len() as u64)],
    })
}

fn time(name: &'static str, time: Time) -> (&'static str, Value) {
    text(name, time)
}

fn inode(inode: &Inode) -> Fields {
    vec![
        num("generation", inode.generation),
        num("transid", inode.transid),
        num("size", inode.size),
        num("nbytes", inode.nbytes),
        num("block_group", inode.block_group),
        text("mode", format!("{:o}", inode.mode)),
        num("links", inode.nlink),
        num("uid", inode.uid),
        num("gid", inode.gid),
        num("rdev", inode.rdev),
        num("sequence", inode.sequence),
        text("flags", format!("{:#x}", inode.flags.bits())),
        time("atime", inode.atime),
        time("ctime", inode.ctime),
        time("mtime", inode.mtime),
        time("otime", inode.otime),
    ]
}

fn names<'a>(
    names: impl Iterator<Item = crate::format::Result<InodeRef<'a>>>,
    with_parent: bool,
) -> Result<Fields, String> {
    let mut list = Vec::new();
    for name in names {
        let InodeRef { parent, index, name } = name.map_err(|wrong| wrong.to_string())?;
        let mut fields = vec![num("index", index), bytes("name", name)];
        if with_parent {
            fields.insert(0, num("parent", parent));
        }
        list.push(fields);
    }
    Ok(vec![("names", Value::List(list))])
}

fn dir_entry(entry: &DirItem<'_>) -> Fields {
    let mut fields = vec![
        text("location", entry.location),
        num("transid", entry.transid),
        num("type", entry.kind),
        bytes("name", entry.name),
    ];
    if !entry.data.is_empty() {
        fields.push(bytes("data", entry.data));
    }
    fields
}

fn file_extent(extent: &FileExtent<'_>) -> Fields {
    let mut fields = vec![
        num("generation", extent.generation),
        text("compression", format!("{:?}", extent.compression).to_lowercase()),
        num("ram_bytes", extent.ram_bytes),
    ];
    let (kind, place) = match &extent.body {
        Body::Inline(data) => {
            fields.insert(1, text("type", "inline"));
            fields.push(num("inline_bytes", data.len() as u64));
            return fields;
        }
        Body::Regular(place) => ("regular", place),
        Body::Prealloc(place) => ("prealloc", place),
    };
    fields.insert(1, text("type", kind));
    fields.extend([
        num("disk_bytenr", place.disk_bytenr.0),
        num("disk_num_bytes", place.disk_num_bytes),
        num("offset", place.offset),
        num("num_bytes", place.num_bytes),
    ]);
    fields
}

fn root(root: &Root) -> Fields {
    let mut fields = vec![
        num("generation", root.generation),
        num("root_dirid", root.root_dirid),
        num("bytenr", root.bytenr.0),
        num("byte_limit", root.byte_limit),
        num("bytes_used", root.bytes_used),
        num("last_snapshot", root.last_snapshot),
        text("flags", format!("{:#x}", root.flags)),
        num("refs", root.refs),
        text("drop_key", root.drop_progress),
        num("drop_level", root.drop_level),
        num("level", root.level),
    ];
    if root.is_v2() {
        fields.extend([
            num("generation_v2", root.generation_v2),
            text("uuid", root.uuid),
            text("parent_uuid", root.parent_uuid),
            text("received_uuid", root.received_uuid),
            num("ctransid", root.ctransid),
            num("otransid", root.otransid),
            num("stransid", root.stransid),
            num("rtransid", root.rtransid),
            time("ctime", root.ctime),
            time("otime", root.otime),
            time("stime", root.stime),
            time("rtime", root.rtime),
        ]);
    }
    fields
}
