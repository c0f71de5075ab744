//! S24: a striped file system over two encrypted disks, and sectors that were not decrypted, or for
//! another place.

use std::path::Path;
use std::process::Command;

use varve_block::dev::Mem;
use varve_block::{BlockDevice, BufPool, Durability, Rt, Sector, Sectors, Sim, chain};
use varve_crypt::Crypt;
use varve_fs::csum::CsumType;
use varve_fs::format::key::{ItemType, Key, objectid};
use varve_fs::{Error, ErrorKind, Fs, Logical, OpenOptions, Physical};
use varve_tests::loop_mount;
use varve_tests::stack::crypt::over;
use varve_tests::{disk, process, tool};

const FILL: &str = r#"
cd "$1"
loop=$(losetup --find --show 2.img)
trap 'umount mnt 2>/dev/null || true; losetup --detach $loop' EXIT
mkfs.btrfs -q -d raid0 -m raid1 1.img $loop
mkdir mnt; mount -o loop,device=$loop 1.img mnt
cp noise mnt/noise; for i in $(seq 300); do seq $i 400 > mnt/f$i; done
sync; umount mnt
"#;
/// Plain mode begins here, see `stack::crypt`.
const OFFSET: u64 = 16 * 512;
const SECTOR: usize = 4096;
const CHUNK: usize = 1 << 20;

/// An encrypted disk, and the plaintext that was put on it.
struct Encrypted {
    below: Mem,
    plain: Vec<u8>,
}

async fn encrypted(rt: &Rt, image: &Path) -> Encrypted {
    let plain = std::fs::read(image).expect("an image");
    let below = Mem::new(Sectors((plain.len() as u64 + OFFSET) >> 9));
    let crypt = over(rt, below.clone(), SECTOR as u64, None);
    let pool = BufPool::new(8 << 20);
    for (n, bytes) in (0u64..).zip(plain.chunks(CHUNK)) {
        if bytes.iter().all(|byte| *byte == 0) {
            continue;
        }
        let mut buf = pool.take(Sectors(bytes.len() as u64 >> 9)).await;
        buf.copy_from_slice(bytes);
        let at = Sector((n * CHUNK as u64) >> 9);
        crypt.write(at, buf.into(), Durability::Cached).await.expect("a write to memory");
    }
    Encrypted { below, plain }
}

impl Encrypted {
    /// The bytes on the disk that one sector of the file system is.
    fn ciphertext(&self, byte: u64) -> [u8; SECTOR] {
        let mut sector = [0; SECTOR];
        self.below.peek(byte + OFFSET, &mut sector);
        assert!(
            sector != self.plain[usize::try_from(byte).expect("a small disk")..][..SECTOR],
            "it is encrypted"
        );
        sector
    }

    /// As if the sector had been encrypted for the place `other`.
    fn with_the_tweak_of(&self, byte: u64, other: u64) {
        let elsewhere = self.ciphertext(other);
        self.below.poke(byte + OFFSET, &elsewhere);
    }

    /// Who reads the sector gets what is on the disk now: it was encrypted twice, or not decrypted.
    async fn stays_ciphertext(&self, rt: &Rt, byte: u64) {
        let now = self.ciphertext(byte);
        let crypt = over(rt, self.below.clone(), SECTOR as u64, None);
        let mut buf = BufPool::new(1 << 20).take(Sectors(SECTOR as u64 >> 9)).await;
        buf.copy_from_slice(&now);
        crypt.write(Sector(byte >> 9), buf.into(), Durability::Cached).await.expect("a write");
    }
}

type Both = Fs<Crypt<Mem>>;

async fn open(rt: &Rt, disks: &[Encrypted]) -> Result<Both, Error> {
    let devices = disks.iter().map(|one| over(rt, one.below.clone(), SECTOR as u64, None));
    Fs::open_devices(devices.collect(), OpenOptions::default()).await
}

/// The first sector that has a checksum on each device.
async fn data_on(fs: &Both, devid: u64) -> (Logical, Physical) {
    let tree = fs.tree(objectid::CSUM_TREE).await.expect("the root tree").expect("sums");
    let first = Key::new(objectid::EXTENT_CSUM, ItemType::EXTENT_CSUM, 0);
    let mut cursor = fs.seek(&tree, first).await.expect("a leaf");
    while let Some(item) = cursor.next().await.expect("a leaf") {
        for n in 0..item.data().len() as u64 / 4 {
            let at = Logical(item.key().offset + n * SECTOR as u64);
            let place = fs.chunks().map(at, 1).expect("it is mapped").copies[0];
            if place.devid == devid {
                return (at, place);
            }
        }
    }
    panic!("no data on device {devid}");
}

/// No part of the key, however it is written.
fn holds_no_key(text: &str) {
    let key: Vec<u8> = (0..64u8).map(|n| n.wrapping_mul(37) ^ 0x5A).collect();
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let text = text.to_lowercase();
    for part in key.windows(4) {
        assert!(!text.contains(&hex(part)), "a part of the key in {text:?}");
    }
}

#[test]
fn s24_a_sector_that_stays_ciphertext_is_named_with_its_device_and_never_parsed() {
    if !loop_mount::available() || !tool::have(&["losetup"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path().to_path_buf();
    for name in ["1.img", "2.img"] {
        disk::sparse(&dir.join(name), 256 << 20);
    }
    std::fs::write(dir.join("noise"), disk::noise(5, 3 << 20)).expect("a file");
    process::run(Command::new("bash").args(["-euc", FILL, "fill"]).arg(&dir)).ok();
    Sim::new(1).run(|rt| async move {
        let images = [dir.join("1.img"), dir.join("2.img")];
        let mut disks = Vec::new();
        for image in &images {
            disks.push(encrypted(&rt, image).await);
        }
        let fs = open(&rt, &disks).await.expect("it opens");
        let noise = fs.read(fs.lookup("/noise").await.unwrap(), 0, 4 << 20).await.unwrap();
        assert!(noise == disk::noise(5, 3 << 20), "it does not read as it was written");
        assert!(fs.scan_data(&mut |_| ()).await.unwrap().bad.is_empty());

        // Data: one sector on each device.
        let (first, on_first) = data_on(&fs, 1).await;
        let (second, on_second) = data_on(&fs, 2).await;
        disks[0].stays_ciphertext(&rt, on_first.byte).await;
        disks[1].with_the_tweak_of(on_second.byte, on_second.byte + SECTOR as u64);
        let fs = open(&rt, &disks).await.expect("it opens");
        let scanned = fs.scan_data(&mut |_| ()).await.unwrap();
        let mut found: Vec<_> = scanned.bad.iter().map(|bad| (bad.at, bad.physical)).collect();
        found.sort();
        let mut expected = vec![(first, on_first), (second, on_second)];
        expected.sort();
        assert_eq!(found, expected);
        scanned.bad.iter().for_each(|bad| holds_no_key(&bad.why));

        // A tree block: the other copy; and where there is none, an error before anything is parsed.
        let tree = fs.tree(objectid::FS_TREE).await.unwrap().unwrap();
        let root = tree.expect_root();
        let copies = fs.chunks().map(root.logical, 1).unwrap().copies;
        assert_eq!(copies.len(), 2);
        let of = |place: &Physical| &disks[usize::try_from(place.devid).unwrap() - 1];
        of(&copies[0]).stays_ciphertext(&rt, copies[0].byte).await;
        let fs = open(&rt, &disks).await.expect("it opens");
        fs.lookup("/f7").await.expect("the other copy is whole");
        assert!(fs.counters().bad_copies > 0);
        // Not its first sector: the header is right, and the checksum is what tells.
        let later = copies[1].byte + SECTOR as u64;
        of(&copies[1]).with_the_tweak_of(later, copies[1].byte);
        let error = match open(&rt, &disks).await {
            Ok(fs) => fs.lookup("/f7").await.expect_err("no copy is whole"),
            Err(error) => error,
        };
        let said = chain(&error);
        assert_eq!(error.kind, ErrorKind::Corrupt, "{said}");
        assert!(said.contains("bad tree block start") || said.contains("checksum"), "{said}");
        holds_no_key(&said);
        assert_eq!(fs.superblock().csum(), Some(CsumType::Crc32c));
    });
}
