//! btrfs without a kernel: make a file system, and read one from any
//! [`BlockDevice`](varve_block::BlockDevice), be it a file, a LUKS volume, or a bcache set.
//!
//! # btrfs in ten minutes
//!
//! Everything is a key and a value in a B-tree. A *key* is `(objectid, type, offset)`; an inode, a
//! name, a piece of a file, a checksum are *items* under such keys. There are about ten trees, and
//! one more per subvolume, all alike; the *root tree* holds the roots of the others.
//!
//! ```text
//! superblock --> chunk tree: which bytes of which device a logical address is
//!           \--> root tree --> extent tree: what is allocated, and who refers to it
//!                         |--> csum tree: a checksum per data sector
//!                         |--> free space tree, device tree, uuid tree ...
//!                         \--> FS tree, and one tree per subvolume: inodes, names, file extents
//! ```
//!
//! All pointers are *logical* addresses. *Chunks* map them: a DUP chunk is at two places of one
//! device, a RAID1 chunk on two devices, a RAID0 chunk in stripes. What is stored twice can be read
//! twice, which is why an error is told only after every copy was tried.
//!
//! # The life of one write (by whoever writes)
//!
//! No block in use is ever overwritten. A change copies the leaf to a new place, and so its parent,
//! up to the root of the tree; the root tree notes the new root, and is copied itself; at last the
//! superblock, in place, points to the new root tree. Each pointer carries the *generation* of the
//! block it means, so a block that a lost write left old is noticed.
//!
//! ```text
//! new data, new blocks --> flush --> superblock (FUA) --> the old blocks are free
//!                                       ^ a crash before: the old state, whole; after: the new one
//! ```
//!
//! An `fsync` does not wait for all that: it writes a small *log tree*, which a writer replays at the
//! next mount. This engine replays it in memory, where readers see it and devices do not.
//!
//! # What can be trusted
//!
//! Nothing, until it was looked at. A block passes, in this order: its address, uuid and checksum
//! (was it written, here, by this file system?), its level, generation, first key and owner against
//! the parent that led to it (is it the one that was meant?), and the [tree checker](verify) (does
//! each field make sense?). Only then is it published, and from then on it never changes. Data is
//! compared with the checksum tree, sector by sector.
//!
//! # Where things are
//!
//! | module | what |
//! |---|---|
//! | [`mod@format`] | the bytes: raw and parsed structures, nothing else |
//! | [`verify`] | the tree checker: each rule once, in the kernel's words |
//! | `chunk`, `volume` | addresses; devices, copies, retries |
//! | `raid` | rebuilding from parity |
//! | `tree` | blocks in memory, their cache, cursors, making new ones |
//! | `supers` | superblocks, and the devices they gather |
//! | `access` | trees and blocks for tools: cursors, raw copies, all faults of a block |
//! | `replay` | the log of fsyncs, replayed in memory |
//! | `fs`, `inode`, `dir`, `file`, `holes`, `subvol`, `paths`, `compress` | what users touch |
//! | `image`, `inspect` | metadata dumps; looking without believing |
//! | [`usage`] | block groups and devices, and how full they are |
//! | [`owners`] | from addresses back to files |
//! | [`export`] | files out of it, also where it is damaged |
//! | [`send`] | a snapshot as a stream |
//! | [`check`](mod@check) | every rule that spans blocks; finds, and never repairs |
//! | `mkfs` | a new file system: a pure [`plan`], and its careful execution |
//!
//! # Example
//!
//! ```
//! use varve_block::{Sectors, Sim, dev::Mem};
//! use varve_fs::{Fs, MkfsOptions, OpenOptions, mkfs};
//!
//! Sim::new(1).run(|rt| async move {
//!     let device = Mem::new(Sectors((256 << 20) / 512));
//!     mkfs(&rt, &device, &MkfsOptions { label: "vault".into(), ..Default::default() }).await?;
//!     let fs = Fs::open(device, OpenOptions::default()).await?;
//!     assert_eq!(fs.superblock().label.as_bytes(), b"vault");
//!     assert!(fs.read_dir(fs.lookup("/").await?, 0, 100).await?.is_empty());
//!     Ok::<_, varve_fs::Error>(())
//! })
//! # .unwrap();
//! ```
#![forbid(unsafe_code)]

mod access;
pub mod check;
mod chunk;
mod compress;
pub mod csum;
mod dir;
mod error;
pub mod export;
mod file;
pub mod format;
mod fs;
mod holes;
mod image;
mod inode;
pub mod inspect;
mod lent;
mod mkfs;
pub mod owners;
mod paths;
mod raid;
mod replay;
mod seeds;
pub mod send;
mod subvol;
mod supers;
mod tree;
mod units;
pub mod usage;
pub mod verify;
mod volume;

pub use access::Examined;
pub use chunk::{ChunkMap, Piece};
pub use dir::DirEntry;
pub use error::{Error, ErrorKind, Place, Result};
pub use fs::{Fs, OpenOptions, Subvolume};
pub use image::{DumpDevice, DumpOptions, DumpReport, dump, is_dump};
pub use inode::InodeId;
pub use mkfs::{Existing, Identity, MkfsOptions, Plan, Step, detect, mkfs, plan};
pub use raid::Row;
pub use subvol::SubvolumeInfo;
pub use supers::{SuperCopy, super_copies};
pub use tree::cursor::{Cursor, Item, Tree};
pub use tree::node::TreeBlock;
pub use units::{Logical, Physical};
pub use volume::Counters;
