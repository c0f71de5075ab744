//! Opening a file system, and what is known of it once it is open (format: btrfs 22).

use crate::chunk::ChunkMap;
use crate::error::{Error, ErrorKind, Result};
use crate::file::Unpacked;
use crate::format::chunk::{Chunk, DevItem};
use crate::format::key::{ItemType, Key, objectid};
use crate::format::root::Root;
use crate::format::superblock::{CompatRo, Incompat, RootPointer, SuperFlags, Superblock};
use crate::replay::replay;
use crate::seeds;
use crate::supers::gather;
use crate::tree::cursor::{Cursor, Tree, find_last};
use crate::units::Logical;
use crate::verify::Rules;
use crate::volume::{Counters, Volume};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use varve_block::BlockDevice;

/// How to open. `Default` is what a mount does.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Which superblock copy to believe. The kernel knows only the first; others are for rescue.
    pub super_copy: usize,
    /// Memory for tree blocks.
    pub cache_bytes: usize,
    /// Read data whose checksums are missing or wrong.
    pub ignore_data_csums: bool,
    /// Which tree `/` is: the default subvolume when absent.
    pub subvolume: Option<u64>,
    /// Show the last commit, without what was fsynced after it.
    pub ignore_log: bool,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions {
            super_copy: 0,
            cache_bytes: 64 << 20,
            ignore_data_csums: false,
            subvolume: None,
            ignore_log: false,
        }
    }
}

/// An open file system. It reads; nothing is ever written to a device through it.
///
/// # Log tree
/// What was fsynced after the last commit lives in a log, which is replayed in memory: files are as
/// a kernel would show them after its next mount, and the superblock here is of the transaction in
/// which it would commit that. [`OpenOptions::ignore_log`] shows the last commit.
pub struct Fs<D: BlockDevice> {
    pub(crate) volume: Volume<D>,
    pub(crate) options: OpenOptions,
    /// File trees by id, as they are used.
    subvolumes: RefCell<BTreeMap<u64, Rc<Subvolume>>>,
    pub(crate) csums: Option<Tree>,
    pub(crate) top: u64,
    pub(crate) unpacked: RefCell<Unpacked>,
    warnings: Vec<String>,
}

/// A file tree and its root item.
#[derive(Clone, Debug)]
pub struct Subvolume {
    pub id: u64,
    pub root: Root,
    pub(crate) tree: Tree,
}

impl<D: BlockDevice> Fs<D> {
    /// Opens a file system on one device.
    pub async fn open(device: D, options: OpenOptions) -> Result<Fs<D>> {
        Fs::open_devices(vec![device], options).await
    }

    /// Opens a file system on several devices, in any order. Missing ones are no error until
    /// something is read of which they hold the only copy.
    pub async fn open_devices(devices: Vec<D>, options: OpenOptions) -> Result<Fs<D>> {
        let (mut volume, mut warnings) = open_volume(devices, &options).await?;
        if volume.sb.log_root.0 != 0 {
            match options.ignore_log {
                true => warnings.push(LOG_IGNORED.into()),
                false => {
                    let replayed = replay(&volume).await?;
                    volume.wear(replayed);
                }
            }
        }
        let csums = root_of(&volume, objectid::CSUM_TREE).await?.map(|(tree, _)| tree);
        for warning in &warnings {
            tracing::warn!(fsid = %volume.sb.fsid, "{warning}");
        }
        let mut fs = Fs::assemble(volume, options, csums, warnings);
        fs.top = match fs.options.subvolume {
            Some(id) => id,
            None => fs.default_subvolume().await?,
        };
        fs.subvolume(fs.top).await?;
        Ok(fs)
    }

    /// Over a volume whose chunks are known, for a rescue: nothing but the volume itself has to be
    /// readable.
    pub(crate) async fn over(
        volume: Volume<D>,
        options: OpenOptions,
        warnings: Vec<String>,
    ) -> Result<Fs<D>> {
        features(&volume.sb)?;
        let csums = root_of(&volume, objectid::CSUM_TREE).await;
        let csums = csums.ok().flatten().map(|(tree, _)| tree);
        let mut fs = Fs::assemble(volume, options, csums, warnings);
        fs.top = match fs.options.subvolume {
            Some(id) => id,
            None => fs.default_subvolume().await.unwrap_or(objectid::FS_TREE),
        };
        Ok(fs)
    }

    fn assemble(
        volume: Volume<D>,
        options: OpenOptions,
        csums: Option<Tree>,
        warnings: Vec<String>,
    ) -> Fs<D> {
        Fs {
            volume,
            options,
            subvolumes: RefCell::default(),
            csums,
            top: objectid::FS_TREE,
            unpacked: RefCell::default(),
            warnings,
        }
    }

    pub fn superblock(&self) -> &Superblock {
        &self.volume.sb
    }

    /// What is odd about this file system, in sentences.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    pub fn counters(&self) -> Counters {
        self.volume.counters()
    }

    /// The chunks, as the chunk tree has them.
    pub fn chunks(&self) -> ChunkMap {
        self.volume.chunks().borrow().clone()
    }

    /// The tree that `/` is.
    pub fn top_subvolume(&self) -> u64 {
        self.top
    }

    /// A file tree by its id.
    pub async fn subvolume(&self, id: u64) -> Result<Rc<Subvolume>> {
        if let Some(known) = self.subvolumes.borrow().get(&id) {
            return Ok(Rc::clone(known));
        }
        if !objectid::is_file_tree(id) {
            return Err(Error::new(ErrorKind::Invalid, format!("tree {id} holds no files")));
        }
        let Some((tree, root)) = root_of(&self.volume, id).await? else {
            return Err(Error::new(ErrorKind::NotFound, format!("there is no subvolume {id}")));
        };
        let found = Rc::new(Subvolume { id, root, tree });
        self.subvolumes.borrow_mut().insert(id, Rc::clone(&found));
        Ok(found)
    }

    pub(crate) fn root_tree(&self) -> Tree {
        Tree::new(objectid::ROOT_TREE, self.volume.sb.tree_root())
    }
}

/// The part of opening that needs no tree but the chunk tree: enough for a checker to start from.
/// What is odd is said in the second value.
pub(crate) async fn open_volume<D: BlockDevice>(
    devices: Vec<D>,
    options: &OpenOptions,
) -> Result<(Volume<D>, Vec<String>)> {
    let mut warnings = Vec::new();
    let (members, sb) = gather(devices, options.super_copy, &mut warnings).await?;
    features(&sb)?;
    let rules = Rules::of(&sb).ok_or_else(|| Error::unsupported("unknown checksum type"))?;
    note_state(&sb, &mut warnings);
    let mut volume = Volume::new(members, sb, rules, options.cache_bytes);
    load_chunks(&mut volume, &mut warnings).await?;
    Ok((volume, warnings))
}

/// The newest root of tree `id`: relocation and snapshots key theirs by source or transaction.
pub(crate) async fn root_of<D: BlockDevice>(
    volume: &Volume<D>,
    id: u64,
) -> Result<Option<(Tree, Root)>> {
    let root_tree = Tree::new(objectid::ROOT_TREE, volume.sb.tree_root());
    let last = Key::new(id, ItemType::ROOT_ITEM, u64::MAX);
    let item = find_last(volume, &root_tree, last).await?;
    let Some(item) =
        item.filter(|item| (item.key().objectid, item.key().kind) == (id, ItemType::ROOT_ITEM))
    else {
        return Ok(None);
    };
    let root = Root::parse(item.data())
        .map_err(|wrong| Error::corrupt(format!("root item of tree {id}")).because(wrong))?;
    let at = RootPointer { block: root.bytenr, generation: root.generation, level: root.level };
    let tree = Tree::new(id, at);
    Ok(Some((tree, root)))
}

/// Said where the log is there and not replayed.
pub(crate) const LOG_IGNORED: &str =
    "there is a log tree: what was fsynced after the last commit is not shown";

/// What this engine would misread is refused by name.
pub(crate) fn features(sb: &Superblock) -> Result<()> {
    let unknown = sb.incompat.difference(Incompat::READABLE);
    if !unknown.is_empty() {
        let names = unknown.iter_names().map(|(name, _)| name.to_lowercase().replace('_', "-"));
        let names = names.collect::<Vec<_>>().join(", ");
        let names = if names.is_empty() { names } else { format!(" ({names})") };
        let bits = unknown.bits();
        return Err(Error::unsupported(format!("unsupported incompat features 0x{bits:x}{names}")));
    }
    Ok(())
}

pub(crate) fn note_state(sb: &Superblock, warnings: &mut Vec<String>) {
    let unknown = sb.compat_ro.difference(CompatRo::KNOWN);
    if !unknown.is_empty() {
        let bits = unknown.bits();
        warnings.push(format!("unknown read-only compatible features 0x{bits:x}: reading only"));
    }
    if sb.flags.contains(SuperFlags::ERROR) {
        warnings.push("the superblock says that errors were found".into());
    }
    if sb.flags.contains(SuperFlags::CHANGING_FSID_V2) {
        warnings.push("a change of the file system's uuid was interrupted".into());
    }
    if sb.flags.intersects(SuperFlags::METADUMP | SuperFlags::METADUMP_V2) {
        warnings.push("restored from a metadata dump: file data is missing or partial".into());
    }
}

/// From the few chunks in the superblock to all of them, and to the devices that they are on.
pub(crate) async fn load_chunks<D: BlockDevice>(
    volume: &mut Volume<D>,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let system = volume.sb.sys_chunks().map_err(|w| Error::corrupt(w.to_string()))?;
    for (start, chunk) in system {
        volume.chunks().borrow_mut().insert(start, chunk)?;
    }
    let tree = Tree::new(objectid::CHUNK_TREE, volume.sb.chunk_tree_root());
    let mut cursor = Cursor::seek(volume, &tree, Key::MIN).await?;
    let mut devices = Vec::new();
    while let Some(item) = cursor.next().await? {
        let key = item.key();
        let damaged = |what: &str, wrong| {
            Error::corrupt(format!("{what} {key} in the chunk tree")).because(wrong)
        };
        match key.kind {
            ItemType::CHUNK_ITEM => {
                let chunk = Chunk::parse(item.data()).map_err(|w| damaged("chunk", w))?;
                volume.chunks().borrow_mut().insert(Logical(key.offset), chunk)?;
            }
            ItemType::DEV_ITEM => {
                let device = DevItem::parse(item.data()).map_err(|w| damaged("device", w))?;
                devices.push(device);
            }
            _ => (),
        }
    }
    seeds::settle(volume, &devices, warnings)
}
