//! Dumps that the kernel's tools wrote, whole, cut short and scribbled on.

use super::*;
use crate::format::inode::FileType;
use crate::{Fs, OpenOptions};
use proptest::prelude::*;
use varve_block::dev::Mem;
use varve_block::{BufPool, Extent, Geometry, Sector, Sectors, Sim};

const PACKED: &[u8] = include_bytes!("../../../tests/images/060-btrfs-image-dumps/packed.dump");
const PLAIN: &[u8] = include_bytes!("../../../tests/images/060-btrfs-image-dumps/plain.dump.zst");
const SANITISED: &[u8] =
    include_bytes!("../../../tests/images/060-btrfs-image-dumps/sanitised.dump");
const THREE: &[u8] =
    include_bytes!("../../../tests/images/060-btrfs-image-dumps/three-devices.dump");

fn plain() -> Vec<u8> {
    zstd::decode_all(PLAIN).expect("a zstd stream")
}

/// Names in `/` and the number of entries in `/folder`.
async fn looked_at<D: BlockDevice>(device: D) -> Result<(Vec<String>, usize)> {
    let fs = Fs::open(device, OpenOptions::default()).await?;
    let names = fs.read_dir(fs.lookup("/").await?, 0, 100).await?;
    let folder = fs.lookup("/folder").await?;
    assert_eq!(fs.inode(folder).await?.file_type(), FileType::Directory);
    let inside = fs.read_dir(folder, 0, 1000).await?;
    for entry in &inside {
        fs.inode(entry.id).await?;
    }
    let names = names.iter().map(|e| String::from_utf8_lossy(&e.name).into_owned()).collect();
    Ok((names, inside.len()))
}

#[test]
fn dumps_open_like_the_devices_they_were_made_of() {
    Sim::new(1).run(|_| async {
        for (what, bytes) in [("packed", PACKED), ("plain", &plain()), ("three devices", THREE)] {
            let device = DumpDevice::open(Mem::from_bytes(bytes)).await.expect(what);
            let (names, files) = looked_at(device).await.expect(what);
            assert_eq!(names, ["folder", "large", "link", "subvolume", "snapshot"], "{what}");
            assert_eq!(files, 300, "{what}");
        }
    });
}

#[test]
fn names_that_do_not_hash_as_they_should_are_refused() {
    Sim::new(1).run(|_| async {
        let device = DumpDevice::open(Mem::from_bytes(SANITISED)).await.unwrap();
        let error = Fs::open(device, OpenOptions::default()).await.err().unwrap();
        assert!(error.to_string().contains("name hash mismatch"), "{error}");
    });
}

#[test]
fn three_devices_become_one_that_misses_nothing() {
    Sim::new(1).run(|_| async {
        let device = DumpDevice::open(Mem::from_bytes(THREE)).await.unwrap();
        assert_eq!(device.geometry().len, Sectors(3 * (128 << 11)));
        let fs = Fs::open(device, OpenOptions::default()).await.unwrap();
        assert_eq!(fs.superblock().num_devices, 1);
        let missing = fs.warnings().iter().find(|warning| warning.contains("missing"));
        assert_eq!(missing.map(String::as_str), Some(fs.warnings()[0].as_str()), "only data is");
        let mut places = std::collections::BTreeSet::new();
        for (start, chunk) in fs.chunks().iter() {
            let piece = fs.chunks().map(start, chunk.length).unwrap();
            for copy in piece.copies {
                assert_eq!(copy.devid, 1);
                assert!(places.insert(copy.byte), "two stripes at byte {}", copy.byte);
            }
        }
    });
}

#[test]
fn what_the_dump_does_not_hold_is_a_hole() {
    Sim::new(1).run(|_| async {
        let device = DumpDevice::open(Mem::from_bytes(PACKED)).await.unwrap();
        let whole = Extent::new(Sector(0), device.geometry().len);
        let mut at = whole.start;
        let pool = BufPool::new(0);
        let (mut data, mut holes) = (0, 0);
        while at < whole.end() {
            for run in device.extents(Extent::between(at, whole.end()), 3).await.unwrap() {
                assert_eq!(run.range.start, at, "runs follow each other");
                at = run.range.end();
                *(if run.hole { &mut holes } else { &mut data }) += run.range.len.0;
                if run.hole {
                    let len = run.range.len.min(Geometry::MAX_REQUEST);
                    let bytes = device.read(run.range.start, pool.take(len).await).await.unwrap();
                    assert!(bytes.iter().all(|byte| *byte == 0));
                }
            }
        }
        assert!(holes > data, "{holes} sectors of holes, {data} of data");
    });
}

#[test]
fn a_dump_cut_short_anywhere_is_refused_as_such() {
    Sim::new(1).run(|_| async {
        for bytes in [PACKED, THREE] {
            for len in (512..bytes.len()).step_by(512) {
                let opened = DumpDevice::open(Mem::from_bytes(&bytes[..len])).await;
                // The format has no end mark: what ends between clusters is a smaller dump.
                let whole = bytes[len..].starts_with(&MAGIC.to_le_bytes())
                    || bytes[len..].iter().all(|byte| *byte == 0);
                let Err(error) = opened else {
                    assert!(whole, "{len} bytes opened");
                    continue;
                };
                let text = varve_block::chain(&error);
                assert!(text.contains("truncated"), "{len} bytes: {text}");
            }
        }
    });
}

#[test]
fn the_version_that_carries_data_is_refused_by_name() {
    Sim::new(1).run(|_| async {
        let mut bytes = PACKED.to_vec();
        bytes[..8].copy_from_slice(&format::MAGIC_EXPERIMENTAL.to_le_bytes());
        let mem = Mem::from_bytes(&bytes);
        assert!(is_dump(&mem).await.unwrap());
        let error = DumpDevice::open(mem).await.err().unwrap();
        assert!(varve_block::chain(&error).contains("carry file data"), "{error}");
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// A payload's checksums do not protect the container: damage anywhere is an error or a warning.
    #[test]
    fn scribbles_are_answered(
        which in 0usize..2,
        scribbles in proptest::collection::vec((any::<u32>(), any::<u8>()), 1..6),
        head_only: bool,
    ) {
        let mut bytes = [PACKED, THREE][which].to_vec();
        for (at, value) in scribbles {
            let room = if head_only { 200 } else { bytes.len() };
            let at = at as usize % room;
            bytes[at] = value;
        }
        Sim::new(1).run(|_| async move {
            if let Ok(device) = DumpDevice::open(Mem::from_bytes(&bytes)).await {
                let _ = looked_at(device).await;
            }
        });
    }
}
