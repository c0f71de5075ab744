//! An image that can be edited: block by block, item by item, each sealed again on every copy.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::OnceLock;
use varve_block::dev::Mem;
use varve_block::{
    BlockDevice, BufPool, Data, DevId, Durability, Extent, ExtentStatus, Geometry, IoBuf, Op,
    Sector, Sectors, Sim, Zero,
};
use varve_fs::DumpDevice;
use varve_fs::check::{CheckOptions, Checked, Severity, check};
use varve_fs::format::key::{ItemType, Key};

const GOLDEN: &[u8] =
    include_bytes!("../../../tests/images/010-kernel-btrfs-one-of-everything/image.zst");
const GOLDEN_SIZE: u64 = 112 << 20;
const SQUOTA: &[u8] = include_bytes!("../../../tests/images/080-newer-features/squota.img.zst");
const SQUOTA_SIZE: u64 = 120 << 20;
const PIECE: usize = 65536;
const SUPER: u64 = 65536;
/// Of a tree block's header, and of a superblock.
const SEALED_FROM: usize = 32;

#[derive(Clone)]
pub(crate) struct Disk {
    size: u64,
    /// What is not zero.
    pieces: BTreeMap<u64, Vec<u8>>,
    pub(crate) nodesize: usize,
    /// Where each block that a tree reaches stands, by its logical address.
    pub(crate) blocks: BTreeMap<u64, Vec<u64>>,
}

pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

pub(crate) fn le32(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
}

fn word32(n: usize) -> [u8; 4] {
    u32::try_from(n).expect("it fits").to_le_bytes()
}

/// How far into its piece a byte is.
fn within(at: u64) -> usize {
    usize::try_from(at % PIECE as u64).expect("it fits")
}

impl Disk {
    /// A disk that the kernel wrote, with one of everything.
    pub(crate) fn golden() -> Disk {
        static DISK: OnceLock<Disk> = OnceLock::new();
        DISK.get_or_init(|| Disk::unpack(GOLDEN, GOLDEN_SIZE)).clone()
    }

    /// One with simple quotas, made by newer tools.
    pub(crate) fn squota() -> Disk {
        Disk::unpack(SQUOTA, SQUOTA_SIZE)
    }

    fn unpack(packed: &[u8], size: u64) -> Disk {
        let mut plain = zstd::stream::read::Decoder::new(packed).expect("a zstd stream");
        let mut buf = vec![0; PIECE];
        let mut pieces = BTreeMap::new();
        for at in (0..size).step_by(PIECE) {
            std::io::Read::read_exact(&mut plain, &mut buf).expect("a whole image");
            if buf.iter().any(|byte| *byte != 0) {
                pieces.insert(at, buf.clone());
            }
        }
        Disk::of(size, pieces)
    }

    /// What a metadata dump would be restored to.
    pub(crate) fn of_dump(dump: &[u8]) -> Disk {
        let mut padded = dump.to_vec();
        padded.resize(dump.len().next_multiple_of(512), 0);
        let below = Mem::from_bytes(&padded);
        let (size, pieces) = Sim::new(1).run(|_| async move {
            let device = DumpDevice::open(below).await.expect("a dump");
            let (len, pool) = (device.geometry().len, BufPool::new(16 * PIECE));
            let mut pieces: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
            let whole = Extent::new(Sector(0), len);
            let runs = device.extents(whole, usize::MAX).await.expect("its shape");
            for run in runs.iter().filter(|run| !run.hole) {
                for at in run.range.start.0..run.range.end().0 {
                    let buf = pool.take(Sectors(1)).await;
                    let buf = device.read(Sector(at), buf).await.expect("a read");
                    let byte = at << 9;
                    let piece = pieces.entry(byte - byte % PIECE as u64);
                    let piece = piece.or_insert_with(|| vec![0; PIECE]);
                    piece[within(byte)..][..512].copy_from_slice(&buf);
                }
            }
            (len.bytes(), pieces)
        });
        Disk::of(size, pieces)
    }

    /// A file's, raw or a metadata dump. None where no tree can be followed, as of a superblock that is the damage.
    pub(crate) fn of_file(path: &std::path::Path) -> Option<Disk> {
        use std::os::unix::fs::FileExt;
        const DUMP_MAGIC: u64 = 0xbd5c_25e2_7295_668b;
        let file = std::fs::File::open(path).expect("an image");
        let len = file.metadata().expect("its size").len();
        let mut head = [0; 8];
        file.read_exact_at(&mut head, 0).expect("a head");
        let disk = if le64(&head, 0) == DUMP_MAGIC {
            Disk::of_dump(&std::fs::read(path).expect("a dump"))
        } else {
            let mut pieces = BTreeMap::new();
            for at in (0..len).step_by(PIECE) {
                let part = usize::try_from((len - at).min(PIECE as u64)).expect("a piece");
                let mut buf = vec![0; PIECE];
                file.read_exact_at(&mut buf[..part], at).expect("a read");
                if buf.iter().any(|byte| *byte != 0) {
                    pieces.insert(at, buf);
                }
            }
            Disk::of(len, pieces)
        };
        (!disk.blocks.is_empty()).then_some(disk)
    }

    fn of(size: u64, pieces: BTreeMap<u64, Vec<u8>>) -> Disk {
        let mut disk = Disk { size, pieces, nodesize: 0, blocks: BTreeMap::new() };
        let sb = disk.bytes(SUPER, 4096);
        disk.nodesize = le32(&sb, 0x94);
        if !disk.nodesize.is_power_of_two() || !(4096..=PIECE).contains(&disk.nodesize) {
            return disk;
        }
        let mut places: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for (at, piece) in &disk.pieces {
            for off in (0..PIECE).step_by(4096) {
                let head = &piece[off..off + 101];
                if head[32..48] == sb[0x20..0x30] {
                    places.entry(le64(head, 48)).or_default().push(at + off as u64);
                }
            }
        }
        let mut todo = vec![le64(&sb, 0x50), le64(&sb, 0x58), le64(&sb, 0x60)];
        let mut seen = BTreeSet::from([0]);
        while let Some(at) = todo.pop() {
            let Some(copies) = places.get(&at).filter(|_| seen.insert(at)) else { continue };
            disk.blocks.insert(at, copies.clone());
            let block = disk.block(at);
            todo.extend(children(&block));
        }
        disk
    }

    pub(crate) fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        for (n, byte) in out.iter_mut().enumerate() {
            let at = at + n as u64;
            let start = at - at % PIECE as u64;
            if let Some(piece) = self.pieces.get(&start) {
                *byte = piece[within(at)];
            }
        }
        out
    }

    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) {
        for (n, byte) in bytes.iter().enumerate() {
            let at = at + n as u64;
            let start = at - at % PIECE as u64;
            let piece = self.pieces.entry(start).or_insert_with(|| vec![0; PIECE]);
            piece[within(at)] = *byte;
        }
    }

    pub(crate) fn block(&self, at: u64) -> Vec<u8> {
        self.bytes(self.blocks[&at][0], self.nodesize)
    }

    /// Writes a block to all its places, sealed.
    pub(crate) fn put(&mut self, at: u64, mut block: Vec<u8>) {
        seal(&mut block);
        for place in self.blocks[&at].clone() {
            self.write(place, &block);
        }
    }

    /// Changes the superblock, on both of the copies there are.
    pub(crate) fn edit_super(&mut self, edit: impl Fn(&mut [u8])) {
        for at in [SUPER, 64 << 20] {
            let mut sb = self.bytes(at, 4096);
            if le64(&sb, 0x40) == 0x4D5F_5366_5248_425F {
                edit(&mut sb);
                seal(&mut sb);
                self.write(at, &sb);
            }
        }
    }

    /// Every leaf of tree `owner`: its address and its items, as key, and the place of their data.
    pub(crate) fn items(&self, owner: u64) -> Vec<(u64, usize, Key)> {
        let mut found = Vec::new();
        for at in self.blocks.keys() {
            let block = self.block(*at);
            if le64(&block, 88) == owner && block[100] == 0 {
                for slot in 0..le32(&block, 96) {
                    found.push((*at, slot, key_at(&block, 101 + 25 * slot)));
                }
            }
        }
        found
    }

    /// Changes the first item of tree `owner` that `which` likes: its key (17 bytes) and its data.
    #[track_caller]
    pub(crate) fn edit(
        &mut self,
        owner: u64,
        which: impl Fn(&Key) -> bool,
        edit: impl FnOnce(&mut [u8], &mut [u8]),
    ) {
        let found = self.items(owner).into_iter().find(|(_, _, key)| which(key));
        let (at, slot, _) = found.expect("the disk has such an item");
        let mut block = self.block(at);
        let head = 101 + 25 * slot;
        let from = 101 + le32(&block, head + 17);
        let to = from + le32(&block, head + 21);
        let mut key = block[head..head + 17].to_vec();
        let mut data = block[from..to].to_vec();
        edit(&mut key, &mut data);
        block[head..head + 17].copy_from_slice(&key);
        block[from..to].copy_from_slice(&data);
        self.put(at, block);
    }

    /// Takes an item out of its leaf, which stays as tight as the format wants it.
    #[track_caller]
    pub(crate) fn remove(&mut self, owner: u64, which: impl Fn(&Key) -> bool) {
        let found = self.items(owner).into_iter().find(|(_, slot, key)| *slot > 0 && which(key));
        let (at, slot, _) = found.expect("the disk has such an item behind the first");
        let mut block = self.block(at);
        let count = le32(&block, 96);
        let of = |block: &[u8], n: usize| {
            (le32(block, 101 + 25 * n + 17), le32(block, 101 + 25 * n + 21))
        };
        let (_, gone) = of(&block, slot);
        let (lowest, _) = of(&block, count - 1);
        let (mine, _) = of(&block, slot);
        block.copy_within(101 + lowest..101 + mine, 101 + lowest + gone);
        for n in slot + 1..count {
            let offset = of(&block, n).0 + gone;
            let head = 101 + 25 * n;
            block[head + 17..head + 21].copy_from_slice(&word32(offset));
        }
        block.copy_within(101 + 25 * (slot + 1)..101 + 25 * count, 101 + 25 * slot);
        block[96..100].copy_from_slice(&word32(count - 1));
        self.put(at, block);
    }

    /// The image as a sparse file, for the reference tool.
    pub(crate) fn save(&self, path: &std::path::Path) {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::create(path).expect("a file");
        file.set_len(self.size).expect("room");
        for (at, piece) in &self.pieces {
            file.write_all_at(piece, *at).expect("a write");
        }
        file.set_len(self.size).expect("its size");
    }

    pub(crate) fn truncate(&mut self, size: u64) {
        self.size = size;
        self.pieces.retain(|at, _| *at < size);
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn unwritten(&self) -> Unwritten {
        let geometry = Geometry::new(DevId::new("mutant"), Sectors(self.size >> 9));
        Unwritten { geometry, pieces: Rc::new(self.pieces.clone()) }
    }

    pub(crate) fn check(&self) -> varve_fs::Result<Checked> {
        let mem = self.unwritten();
        let options = CheckOptions { data: true, ..CheckOptions::default() };
        Sim::new(2).run(|_| async move { check(vec![mem], &options).await })
    }
}

/// A device that may only be read. Clones are the same device. Its holes cost nothing, whatever size a dump says
/// that it is of.
#[derive(Clone)]
pub(crate) struct Unwritten {
    geometry: Geometry,
    pieces: Rc<BTreeMap<u64, Vec<u8>>>,
}

impl BlockDevice for Unwritten {
    fn geometry(&self) -> Geometry {
        self.geometry.clone()
    }

    async fn read(&self, at: Sector, mut buf: IoBuf) -> varve_block::Result<IoBuf> {
        self.geometry.admit(Op::Read, Extent::new(at, buf.sectors()))?;
        let mut byte = at.byte();
        let mut rest = &mut buf[..];
        while !rest.is_empty() {
            let from = within(byte);
            let (part, behind) = rest.split_at_mut((PIECE - from).min(rest.len()));
            match self.pieces.get(&(byte - from as u64)) {
                Some(piece) => part.copy_from_slice(&piece[from..from + part.len()]),
                None => part.fill(0),
            }
            byte += part.len() as u64;
            rest = behind;
        }
        Ok(buf)
    }

    async fn write(&self, at: Sector, _: Data, _: Durability) -> varve_block::Result<Data> {
        panic!("a reader that writes, at {at:?}");
    }

    async fn flush(&self) -> varve_block::Result<()> {
        panic!("a reader that flushes");
    }

    async fn discard(&self, range: Extent) -> varve_block::Result<()> {
        panic!("a reader that discards {range:?}");
    }

    async fn write_zeroes(&self, range: Extent, _: Zero) -> varve_block::Result<()> {
        panic!("a reader that zeroes {range:?}");
    }

    /// One run: a piece, or what lies before the next one.
    async fn extents(&self, range: Extent, _: usize) -> varve_block::Result<Vec<ExtentStatus>> {
        self.geometry.admit(Op::Extents, range)?;
        let start = range.start.byte();
        let here = start - start % PIECE as u64;
        let hole = !self.pieces.contains_key(&here);
        let end = match hole {
            true => self.pieces.range(here..).next().map_or(u64::MAX, |(at, _)| *at),
            false => here + PIECE as u64,
        };
        let end = Sector(end >> 9).min(range.end());
        let range = Extent::between(range.start, end);
        Ok(vec![ExtentStatus { range, hole, zero: hole }])
    }
}

/// What the checker said, code by code; the traces of mkfs left out, warnings marked.
pub(crate) fn codes(checked: &Checked) -> BTreeSet<String> {
    let kept = checked.findings.iter().filter(|f| f.code.text() != "free-space-leftover");
    let mark = |s| if s == Severity::Warning { "~" } else { "" };
    kept.map(|f| format!("{}{}", mark(f.severity), f.code)).collect()
}

pub(crate) fn seal(block: &mut [u8]) {
    let sum = varve_block::sum::crc32c(&block[SEALED_FROM..]).to_le_bytes();
    block[..4].copy_from_slice(&sum);
}

pub(crate) fn key_at(block: &[u8], at: usize) -> Key {
    Key::new(le64(block, at), ItemType(block[at + 8]), le64(block, at + 9))
}

/// Where a block leads: its pointers, or the roots in its items, as far as its counts stay inside of it.
fn children(block: &[u8]) -> Vec<u64> {
    let count = le32(block, 96);
    let inside = |at: &usize| at + 8 <= block.len();
    if block[100] > 0 {
        let pointers = (0..count).map(|n| 101 + 33 * n + 17).take_while(inside);
        return pointers.map(|at| le64(block, at)).collect();
    }
    let heads = (0..count).map(|n| 101 + 25 * n).take_while(|head| head + 25 <= block.len());
    let roots = heads.filter(|head| block[head + 8] == 132);
    let places = roots.map(|head| 101 + le32(block, head + 17) + 0xb0).filter(inside);
    places.map(|at| le64(block, at)).collect()
}
