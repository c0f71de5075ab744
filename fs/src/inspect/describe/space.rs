//! Items of the trees that manage space: extents, chunks, devices, quotas.

use super::{Fields, Value, bytes, le64, num, numbers, text};
use crate::format::chunk::{BlockGroup, Chunk, DevExtent, DevItem};
use crate::format::extent::{DataRef, Extent, Reference, parse_shared_count};
use crate::format::free_space::{CacheHead, FreeSpaceInfo};
use crate::format::key::{ItemType as T, Key, objectid};

/// In the flags of QGROUP_STATUS.
const SIMPLE_QUOTA: u64 = 1 << 3;

pub(super) fn describe(key: Key, data: &[u8]) -> Result<Fields, String> {
    let said = |wrong: crate::format::Wrong| wrong.to_string();
    Ok(match key.kind {
        T::EXTENT_ITEM | T::METADATA_ITEM => extent(&Extent::parse(key.kind, data).map_err(said)?),
        T::EXTENT_DATA_REF => data_ref(&DataRef::parse(data).map_err(said)?),
        T::SHARED_DATA_REF => vec![num("count", parse_shared_count(data).map_err(said)?)],
        T::BLOCK_GROUP_ITEM => {
            let group = BlockGroup::parse(data).map_err(said)?;
            vec![
                num("used", group.used),
                num("chunk_objectid", group.chunk_objectid),
                text("flags", group.flags),
            ]
        }
        T::CHUNK_ITEM => chunk(&Chunk::parse(data).map_err(said)?),
        T::DEV_ITEM => device(&DevItem::parse(data).map_err(said)?),
        T::DEV_EXTENT => {
            let extent = DevExtent::parse(data).map_err(said)?;
            vec![
                num("chunk_tree", extent.chunk_tree),
                num("chunk_objectid", extent.chunk_objectid),
                num("chunk_offset", extent.chunk_offset.0),
                num("length", extent.length),
                text("chunk_tree_uuid", extent.chunk_tree_uuid),
            ]
        }
        T::FREE_SPACE_INFO => {
            let info = FreeSpaceInfo::parse(data).map_err(said)?;
            vec![num("extent_count", info.extent_count), num("flags", info.flags)]
        }
        T::FREE_SPACE_BITMAP => {
            let free: u32 = data.iter().map(|byte| byte.count_ones()).sum();
            vec![num("free_sectors", free)]
        }
        T::UNTYPED if key.objectid == objectid::FREE_SPACE => {
            let head = CacheHead::parse(data).map_err(said)?;
            vec![
                text("location", head.location),
                num("cache_generation", head.generation),
                num("entries", head.num_entries),
                num("bitmaps", head.num_bitmaps),
            ]
        }
        T::RAID_STRIPE => {
            let stripes = data.chunks(16).map(|s| numbers(s, &["devid", "physical"]));
            vec![("stripes", Value::List(stripes.collect::<Result<_, _>>()?))]
        }
        T::UUID_KEY_SUBVOL | T::UUID_KEY_RECEIVED_SUBVOL => {
            let ids = data.chunks(8).map(|id| numbers(id, &["subvol_id"]));
            vec![("subvolumes", Value::List(ids.collect::<Result<_, _>>()?))]
        }
        _ => return accounts(key, data),
    })
}

/// Quotas, statistics, states of long operations: rows of numbers.
fn accounts(key: Key, data: &[u8]) -> Result<Fields, String> {
    match key.kind {
        T::QGROUP_STATUS => {
            // The fifth number means something with simple quotas alone; without them the kernel
            // leaves there what its memory held.
            let simple = data.get(16..24).is_some_and(|flags| le64(flags) & SIMPLE_QUOTA != 0);
            let known = if simple { data } else { data.get(..32).unwrap_or(data) };
            let names = ["version", "generation", "flags", "scan", "enable_generation"];
            numbers(known, names.get(..known.len() / 8).unwrap_or(&names))
        }
        T::QGROUP_INFO => {
            let names = [
                "generation",
                "referenced",
                "referenced_compressed",
                "exclusive",
                "exclusive_compressed",
            ];
            numbers(data, &names)
        }
        T::QGROUP_LIMIT => {
            let names =
                ["flags", "max_referenced", "max_exclusive", "rsv_referenced", "rsv_exclusive"];
            numbers(data, &names)
        }
        T::PERSISTENT_ITEM => {
            let names = [
                "write_errors",
                "read_errors",
                "flush_errors",
                "corruption_errors",
                "generation_errors",
            ];
            numbers(data, &names)
        }
        T::DEV_REPLACE => numbers(
            data,
            &[
                "source_devid",
                "cursor_left",
                "cursor_right",
                "continue_mode",
                "state",
                "time_started",
                "time_stopped",
                "write_errors",
                "uncorrectable_read_errors",
            ],
        ),
        T::TEMPORARY_ITEM if key.objectid == objectid::BALANCE => {
            Ok(vec![num("flags", le64(data.get(..8).unwrap_or(data)))])
        }
        _ if data.is_empty() => Ok(Vec::new()),
        _ => Ok(vec![bytes("bytes", data)]),
    }
}

fn extent(extent: &Extent) -> Fields {
    let mut fields = vec![
        num("refs", extent.refs),
        num("generation", extent.generation),
        text("flags", flag_names(extent)),
    ];
    if let Some((key, level)) = extent.tree_block {
        fields.push(text("first_key", key));
        fields.push(num("level", level));
    }
    let inline = extent.inline.iter().map(reference).collect();
    fields.push(("inline", Value::List(inline)));
    fields
}

fn flag_names(extent: &Extent) -> String {
    let names: Vec<_> = extent.flags.iter_names().map(|(name, _)| name).collect();
    names.join("|")
}

fn reference(reference: &Reference) -> Fields {
    let mut fields = vec![text("ref", reference.kind())];
    match reference {
        Reference::Owner { root } | Reference::TreeBlock { root } => {
            fields.push(num("root", *root))
        }
        Reference::Data(data) => fields.extend(data_ref(data)),
        Reference::SharedBlock { parent } => fields.push(num("parent", parent.0)),
        Reference::SharedData { parent, count } => {
            fields.push(num("parent", parent.0));
            fields.push(num("count", *count));
        }
    }
    fields
}

fn data_ref(data: &DataRef) -> Fields {
    vec![
        num("root", data.root),
        num("inode", data.inode),
        num("offset", data.offset),
        num("count", data.count),
    ]
}

fn chunk(chunk: &Chunk) -> Fields {
    let stripes = chunk.stripes.iter().map(|stripe| {
        vec![
            num("devid", stripe.devid),
            num("offset", stripe.offset),
            text("dev_uuid", stripe.dev_uuid),
        ]
    });
    vec![
        num("length", chunk.length),
        num("owner", chunk.owner),
        num("stripe_len", chunk.stripe_len),
        text("type", chunk.flags),
        num("io_align", chunk.io_align),
        num("io_width", chunk.io_width),
        num("sector_size", chunk.sector_size),
        num("sub_stripes", chunk.sub_stripes),
        ("stripes", Value::List(stripes.collect())),
    ]
}

fn device(device: &DevItem) -> Fields {
    vec![
        num("devid", device.devid),
        num("total_bytes", device.total_bytes),
        num("bytes_used", device.bytes_used),
        num("io_align", device.io_align),
        num("io_width", device.io_width),
        num("sector_size", device.sector_size),
        num("type", device.kind),
        num("generation", device.generation),
        num("start_offset", device.start_offset),
        num("dev_group", device.dev_group),
        num("seek_speed", device.seek_speed),
        num("bandwidth", device.bandwidth),
        text("uuid", device.uuid),
        text("fsid", device.fsid),
    ]
}
