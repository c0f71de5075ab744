//! The world of the report: tree blocks of a btrfs, striped over two encrypted disks of different speed,
//! a cache of them, and four readers.
//!
//! The readers do what the file system did: test "up to date", then claim the block, then read it into
//! the block's memory without testing again. So a block that is up to date may be read once more. With a
//! layer that hands over whole plaintext ([`Layer::Sound`], which is Varve's own) that changes nothing.
//! With one that puts ciphertext into that memory and decrypts it there, whoever uses the block meanwhile
//! sees ciphertext. The careless layer stands here only; no served stack can contain it.

use anyhow::Context;
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use varve_block::dev::SimDisk;
use varve_block::dev::sim::{Image, Plan};
use varve_block::{
    BlockDevice, BufPool, Data, DevId, Durability, Geometry, Rt, Sector, Sectors, Sim,
};
use varve_crypt::{
    CipherSpec, Crypt, CryptOptions, Engine, Key, MapOptions, PlainSpec, SectorSize, VolumeHandle,
    Xts, XtsParams,
};
use varve_fs::format::block::Header;
use varve_fs::format::inode::Time;
use varve_fs::verify::{Expect, Rules, read_block};
use varve_fs::{Identity, MkfsOptions, Step};

const READERS: u64 = 4;
const ROUNDS: u64 = 24;
/// Looks of a reader at a block that it uses.
const LOOKS: u64 = 8;
const CIPHER: &str = "aes-xts-plain64";

/// How blocks come from a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Layer {
    /// Varve's.
    Sound,
    /// Decrypts in the reader's memory, at once.
    Inline,
    /// Decrypts in the reader's memory, after a trip to a worker.
    Worker,
}

/// What a reader saw that nobody may see.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Seen {
    pub(super) step: u64,
    pub(super) reader: u64,
    /// Logical address.
    pub(super) block: u64,
    pub(super) tree: u64,
    pub(super) disk: usize,
    /// Where in the block the sixteen bytes are.
    pub(super) byte: usize,
    pub(super) found: String,
    pub(super) clear: String,
    /// What the tree checker says of the block as it was seen.
    pub(super) verdict: String,
}

/// The end of a world.
pub(super) struct Run {
    pub(super) seen: Option<Seen>,
    /// Looks at published blocks.
    pub(super) looks: u64,
}

/// The tree blocks of a fresh btrfs.
pub(super) struct Blocks {
    rules: Rules,
    blocks: Vec<(Header, Vec<u8>)>,
}

impl Blocks {
    /// As `varve fs mkfs` writes them; nothing is written here.
    pub(super) fn make() -> anyhow::Result<Arc<Blocks>> {
        let options = MkfsOptions { dup_metadata: false, ..MkfsOptions::default() };
        let identity = Identity {
            fsid: uuid::Uuid::from_u128(1),
            device: uuid::Uuid::from_u128(2),
            chunk_tree: uuid::Uuid::from_u128(3),
            top_level: uuid::Uuid::from_u128(4),
            now: Time { seconds: 0, nanos: 0 },
        };
        let plan = varve_fs::plan(&options, &identity, 256 << 20)?;
        let rules = Rules::of(&plan.superblock).context("a checksum that is not known")?;
        let size = options.nodesize as usize;
        let mut blocks = Vec::new();
        for step in plan.steps {
            if let Step::Write { bytes, .. } = step
                && bytes.len() == size
            {
                blocks.push((Header::parse(&bytes)?, bytes));
            }
        }
        anyhow::ensure!(blocks.len() > 2, "a file system of {} tree blocks", blocks.len());
        Ok(Arc::new(Blocks { rules, blocks }))
    }

    fn verdict(&self, index: usize, bytes: &[u8]) -> String {
        let header = &self.blocks[index].0;
        let expect = Expect {
            logical: header.bytenr,
            level: header.level,
            generation: Some(header.generation),
            first_key: None,
            owner: Some(header.owner),
        };
        match read_block(&self.rules, bytes, &expect, 1) {
            Ok(()) => "nothing".to_owned(),
            Err(fault) => format!("{fault} (rule {})", fault.rule),
        }
    }
}

/// A block in the file system's cache.
struct Page {
    bytes: Vec<u8>,
    up_to_date: bool,
    reading: bool,
}

/// What the readers share.
struct World {
    rt: Rt,
    blocks: Arc<Blocks>,
    layer: Layer,
    disks: [(SimDisk, Crypt<SimDisk>); 2],
    xts: Arc<Xts>,
    pages: Vec<RefCell<Page>>,
    step: Cell<u64>,
    looks: Cell<u64>,
    seen: RefCell<Option<Seen>>,
}

/// One seed is one world: the same steps, the same bytes.
pub(super) fn run(seed: u64, blocks: &Arc<Blocks>, layer: Layer) -> Run {
    let blocks = Arc::clone(blocks);
    Sim::new(seed).run(move |rt| async move {
        let world = Rc::new(World::make(&rt, blocks, layer).await);
        let readers: Vec<_> = (0..READERS)
            .map(|n| {
                let world = Rc::clone(&world);
                rt.spawn(async move { world.reader(n).await })
            })
            .collect();
        for reader in readers {
            reader.await;
        }
        Run { seen: world.seen.take(), looks: world.looks.get() }
    })
}

fn key() -> Key {
    let bytes: Vec<u8> = (0..64u8).map(|n| n.wrapping_mul(37) ^ 0x5A).collect();
    Key::copy_from(&bytes)
}

impl World {
    async fn make(rt: &Rt, blocks: Arc<Blocks>, layer: Layer) -> World {
        let each = blocks.blocks[0].1.len();
        let len = Sectors::exact((each * blocks.blocks.len()) as u64).expect("whole sectors");
        let disks = ["a", "b"].map(|name| {
            // Up to 200 us, another for each: the slow disk of the report and the fast one.
            let latency = Duration::from_micros(rt.prng().below(201));
            let geometry = Geometry::new(DevId::new(name), len);
            let plan = Plan { latency, ..Plan::default() };
            let disk = SimDisk::new(rt, geometry, Image::new(len), plan);
            let options = MapOptions {
                data_len: len,
                detached: true,
                allow_weak_key: false,
                engine: Engine::Auto,
            };
            let volume = PlainSpec::parse(&format!("{CIPHER},sector=512,offset=0"))
                .and_then(|spec| spec.open(key(), &options))
                .expect("a volume that fits");
            let (handle, pool) = (VolumeHandle::new(volume), BufPool::new(0));
            let crypt = Crypt::new(rt, disk.clone(), handle, pool, &CryptOptions::default());
            (disk, crypt.expect("a disk that can carry it"))
        });
        let spec = CipherSpec::parse(CIPHER).expect("the usual cipher");
        let xts = Xts::new(&XtsParams::new(spec, SectorSize::S512), &key()).expect("a good key");
        let page = |(_, bytes): &(Header, Vec<u8>)| {
            RefCell::new(Page { bytes: vec![0; bytes.len()], up_to_date: false, reading: false })
        };
        let pages = blocks.blocks.iter().map(page).collect();
        let world = World {
            rt: rt.clone(),
            blocks,
            layer,
            disks,
            xts: Arc::new(xts),
            pages,
            step: Cell::new(0),
            looks: Cell::new(0),
            seen: RefCell::new(None),
        };
        for (index, (_, bytes)) in world.blocks.blocks.iter().enumerate() {
            let buf = BufPool::new(0).take_copy(bytes).await;
            let (disk, at) = world.place(index);
            let wrote = world.disks[disk].1.write(at, Data::Owned(buf), Durability::Cached).await;
            wrote.expect("a disk without faults");
        }
        world
    }

    /// The disk that holds a block, and where: block by block in turn.
    fn place(&self, index: usize) -> (usize, Sector) {
        let each = Sectors::of_slice(&self.blocks.blocks[index].1).0;
        (index % 2, Sector((index / 2) as u64 * each))
    }

    async fn pause(&self, ns: u64) {
        self.rt.sleep(Duration::from_nanos(self.rt.prng().below(ns))).await;
    }

    async fn reader(&self, n: u64) {
        for _ in 0..ROUNDS {
            // Few blocks, so that readers meet.
            let index = usize::try_from(self.rt.prng().below(3)).expect("three");
            let page = &self.pages[index];
            if self.rt.prng().below(4) == 0 && !page.borrow().reading {
                page.borrow_mut().up_to_date = false; // memory was needed for something else
            }
            if !page.borrow().up_to_date {
                // Here somebody else may run, claim the block, read it and publish it.
                self.pause(2_000).await;
                while page.borrow().reading {
                    self.rt.sleep(Duration::from_nanos(500)).await;
                }
                page.borrow_mut().reading = true;
                // The error of the file system: "up to date" is not tested again.
                self.fill(index).await;
                let mut page = page.borrow_mut();
                page.up_to_date = true;
                page.reading = false;
            }
            for _ in 0..LOOKS {
                if self.seen.borrow().is_some() {
                    return;
                }
                self.look(n, index);
                self.pause(2_000).await;
            }
        }
    }

    /// Reads a block into its page.
    async fn fill(&self, index: usize) {
        let (disk, at) = self.place(index);
        let (below, crypt) = &self.disks[disk];
        let len = Sectors::of_slice(&self.blocks.blocks[index].1);
        let buf = BufPool::new(0).take(len).await;
        let page = &self.pages[index];
        if self.layer == Layer::Sound {
            let buf = crypt.read(at, buf).await.expect("a disk without faults");
            page.borrow_mut().bytes.copy_from_slice(&buf);
            return;
        }
        let buf = below.read(at, buf).await.expect("a disk without faults");
        // "The caller's memory" is the page: ciphertext is in it until the cipher is done.
        page.borrow_mut().bytes.copy_from_slice(&buf);
        self.pause(20_000).await;
        let mut bytes = buf.to_vec();
        let bytes = match self.layer {
            Layer::Worker => {
                let xts = Arc::clone(&self.xts);
                let work = move || {
                    xts.decrypt(at.0, &mut bytes);
                    bytes
                };
                self.rt.offload(work).await
            }
            Layer::Inline | Layer::Sound => {
                self.xts.decrypt(at.0, &mut bytes);
                bytes
            }
        };
        page.borrow_mut().bytes.copy_from_slice(&bytes);
    }

    /// A reader looks at a block that it believes to be up to date.
    fn look(&self, reader: u64, index: usize) {
        self.step.set(self.step.get() + 1);
        let page = self.pages[index].borrow();
        if !page.up_to_date {
            return;
        }
        self.looks.set(self.looks.get() + 1);
        let (header, clear) = &self.blocks.blocks[index];
        let Some(at) = (0..clear.len()).find(|&i| page.bytes[i] != clear[i]) else { return };
        let byte = at / 16 * 16;
        let hex =
            |bytes: &[u8]| bytes[byte..byte + 16].iter().map(|b| format!("{b:02x}")).collect();
        *self.seen.borrow_mut() = Some(Seen {
            step: self.step.get(),
            reader,
            block: header.bytenr.0,
            tree: header.owner,
            disk: self.place(index).0,
            byte,
            found: hex(&page.bytes),
            clear: hex(clear),
            verdict: self.blocks.verdict(index, &page.bytes),
        });
    }
}
