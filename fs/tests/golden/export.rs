//! Files out of the image into a folder: whole, and with blocks lost.

use crate::image::{Tree, assert_same, golden, in_sim, open, walk};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use varve_block::dev::Mem;
use varve_block::{Prng, Rt};
use varve_fs::export::{Options, ProblemKind, Report, RescueOptions, export, open_rescue};
use varve_fs::format::chunk::GroupFlags;
use varve_fs::format::superblock::Superblock;
use varve_fs::inspect::{Inspector, Step, Walk, scan_chunks};
use varve_fs::{ErrorKind, Fs, Logical};

async fn run(rt: &Rt, fs: &Fs<Mem>, dest: &Path, options: Options) -> Report {
    let options = Options { snapshots: true, ..options };
    export(rt, fs, fs.top(), dest, &options, &mut |_| ()).await.expect("an export")
}

/// Regular files below a folder, as the walk over the image names them.
fn on_host(dest: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut todo = vec![dest.to_path_buf()];
    while let Some(folder) = todo.pop() {
        for entry in folder.read_dir().expect("a folder") {
            let path = entry.expect("an entry").path();
            let meta = path.symlink_metadata().expect("a status");
            if meta.is_dir() {
                todo.push(path);
            } else if meta.is_file() {
                let name = path.strip_prefix(dest).expect("below it").as_os_str().as_bytes();
                let sum = Sha256::digest(std::fs::read(&path).expect("a file"));
                let hex = sum.iter().map(|byte| format!("{byte:02x}")).collect();
                tree.insert([b"/", name].concat(), hex);
            }
        }
    }
    tree
}

fn is_damaged_copy(path: &[u8]) -> bool {
    path.ends_with(b".damaged")
}

#[test]
fn everything_is_copied_once_and_a_second_run_has_nothing_to_do() {
    in_sim(|rt| async move {
        let fs = open(golden()).await;
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("out");
        let report = run(&rt, &fs, &dest, Options::default()).await;
        assert!(report.is_whole(), "{report:#?}");
        let found = on_host(&dest);
        assert_same(&found, &crate::expected());
        assert_eq!(report.files + report.links, found.len() as u64);
        let again = run(&rt, &fs, &dest, Options::default()).await;
        assert!(again.is_whole(), "{again:#?}");
        assert_eq!((again.files, again.links, again.special, again.symlinks), (0, 0, 0, 0));
        // A file that was cut short by a kill is not whole: it is written again, and others are not.
        let victim = dest.join("plain/text");
        std::fs::remove_file(&victim).unwrap();
        let third = run(&rt, &fs, &dest, Options::default()).await;
        assert_eq!((third.files, third.problems.len()), (1, 0));
        assert_same(&on_host(&dest), &crate::expected());
    });
}

#[test]
fn what_is_in_the_way_is_left_alone_unless_asked() {
    in_sim(|rt| async move {
        let fs = open(golden()).await;
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("plain")).unwrap();
        let victim = dir.path().join("plain/text");
        std::fs::write(&victim, "mine").unwrap();
        let report = run(&rt, &fs, dir.path(), Options::default()).await;
        assert_eq!(std::fs::read(&victim).unwrap(), b"mine");
        let told: Vec<_> = report.problems.iter().map(|p| (p.kind, p.path.as_slice())).collect();
        assert_eq!(told, [(ProblemKind::NotWritten, &b"plain/text"[..])]);
        let options = Options { overwrite: true, ..Options::default() };
        assert!(run(&rt, &fs, dir.path(), options).await.is_whole());
        assert_same(&on_host(dir.path()), &crate::expected());
    });
}

#[test]
fn filters_choose_files_and_make_no_empty_folders() {
    in_sim(|rt| async move {
        let fs = open(golden()).await;
        let dir = tempfile::tempdir().unwrap();
        let filter: varve_fs::export::Filter = Box::new(|path| path == b"plain/text");
        let options = Options { filter: Some(filter), ..Options::default() };
        let report = run(&rt, &fs, dir.path(), options).await;
        assert_eq!(report.files, 1);
        let found: Vec<_> = on_host(dir.path()).into_keys().collect();
        assert_eq!(found, [b"/plain/text".to_vec()]);
        assert_eq!(dir.path().read_dir().unwrap().count(), 1);
    });
}

#[test]
fn a_dry_run_counts_the_same_and_writes_nothing() {
    in_sim(|rt| async move {
        let fs = open(golden()).await;
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("out");
        let options = Options { dry_run: true, ..Options::default() };
        let dry = run(&rt, &fs, &dest, options).await;
        assert!(!dest.exists());
        assert_eq!(dry.files, crate::expected().len() as u64);
    });
}

/// S10 for data: of every file it is known which sectors were lost.
#[test]
fn s10_with_data_sectors_lost_every_other_file_is_exact_and_the_ranges_are_listed() {
    for (seed, percent) in [(1, 1), (2, 5), (3, 30)] {
        in_sim(move |rt| async move {
            let device = golden();
            let chunks = open(device.clone()).await.chunks();
            let prng = Prng::new(seed);
            for (_, chunk) in chunks.iter() {
                if !chunk.flags.contains(GroupFlags::DATA) {
                    continue;
                }
                for sector in 0..chunk.length / 4096 {
                    if prng.chance(percent, 100) {
                        device.poke(chunk.stripes[0].offset + sector * 4096 + 1, b"lost");
                    }
                }
            }
            let fs = open(device).await;
            let survivors = walk(&fs).await.sums;
            let dir = tempfile::tempdir().unwrap();
            let report = run(&rt, &fs, dir.path(), Options::default()).await;
            let mut found = on_host(dir.path());
            let spoiled = found.keys().filter(|path| is_damaged_copy(path)).count();
            found.retain(|path, _| !is_damaged_copy(path));
            assert_same(&found, &survivors);
            let expected = crate::expected();
            for (path, sum) in &found {
                assert_eq!(Some(sum), expected.get(path), "{}", path.escape_ascii());
            }
            assert!(spoiled > 0, "something was lost");
            // A file with several names is listed under each.
            let listed: std::collections::BTreeSet<_> =
                report.problems.iter().map(|p| &p.path).collect();
            assert_eq!(listed.len() + survivors.len(), expected.len());
            for problem in &report.problems {
                assert_eq!(problem.kind, ProblemKind::Damaged);
                assert!(!problem.ranges.is_empty());
                let id = fs.lookup(&problem.path).await.unwrap();
                for range in &problem.ranges {
                    let mut byte = [0];
                    assert!(fs.read_into(id, range.at, &mut byte).await.is_err(), "{range:?}");
                }
            }
        });
    }
}

/// S10 for all of the device: metadata too, of which there are two copies.
#[test]
fn s10_with_blocks_lost_everywhere_nothing_wrong_is_called_whole() {
    for (seed, percent) in [(4, 1), (5, 10), (6, 20), (7, 30)] {
        in_sim(move |rt| async move {
            let device = golden();
            let prng = Prng::new(seed);
            // The superblocks stay: where all are gone nothing is known.
            for at in (1 << 20..112 << 20).step_by(4096) {
                if at != 64 << 20 && prng.chance(percent, 100) {
                    device.poke(at + 207, b"lost");
                }
            }
            let strict = match Fs::open(device.clone(), varve_fs::OpenOptions::default()).await {
                Ok(fs) => walk(&fs).await.sums,
                Err(_) => Tree::new(),
            };
            let Ok(rescued) =
                open_rescue(vec![device], &RescueOptions::default(), &mut |_, _| ()).await
            else {
                assert!(strict.is_empty());
                return;
            };
            let dir = tempfile::tempdir().unwrap();
            let report = run(&rt, &rescued.fs, dir.path(), Options::default()).await;
            let mut found = on_host(dir.path());
            found.retain(|path, _| !is_damaged_copy(path));
            let expected = crate::expected();
            for (path, sum) in &strict {
                assert_eq!(found.get(path), Some(sum), "{}", path.escape_ascii());
            }
            let unverified =
                report.count(ProblemKind::Unverified) + report.count(ProblemKind::Older);
            let wrong = found
                .iter()
                .filter(|(path, _)| expected.contains_key(*path))
                .filter(|(path, sum)| expected.get(*path) != Some(sum));
            assert!(wrong.count() <= unverified, "wrong, and not said to be unverified or old");
            assert!(found.len() >= strict.len());
            assert!(!report.is_whole());
        });
    }
}

/// The first superblock is gone, and the root tree of the last commit in both copies.
#[test]
fn other_superblocks_and_older_roots_are_found() {
    in_sim(|rt| async move {
        let device = golden();
        device.poke(65536 + 100, b"damage");
        let options = RescueOptions::default();
        let rescued = open_rescue(vec![device.clone()], &options, &mut |_, _| ()).await.unwrap();
        assert!(rescued.notes.iter().any(|note| note.contains("superblock copy 1")));
        let dir = tempfile::tempdir().unwrap();
        let report = run(&rt, &rescued.fs, dir.path(), Options::default()).await;
        assert!(report.is_whole());
        assert_same(&on_host(dir.path()), &crate::expected());

        let device = golden();
        let fs = open(device.clone()).await;
        let sb: Superblock = fs.superblock().clone();
        for copy in fs.chunks().map(sb.root, 1).unwrap().copies {
            device.poke(copy.byte + 200, b"damage");
        }
        assert_eq!(
            Fs::open(device.clone(), varve_fs::OpenOptions::default()).await.err().unwrap().kind,
            ErrorKind::Corrupt
        );
        // An older root helps where its blocks were not used again; where they were, that is an error
        // and not a wrong tree.
        match open_rescue(vec![device.clone()], &options, &mut |_, _| ()).await {
            Ok(rescued) => assert!(rescued.notes[0].contains("generation"), "{:?}", rescued.notes),
            Err(error) => assert_eq!(error.kind, ErrorKind::Corrupt),
        }
        let by_hand = RescueOptions { root_block: Some(Logical(4096)), ..options };
        assert!(open_rescue(vec![device], &by_hand, &mut |_, _| ()).await.is_err());
    });
}

#[test]
fn a_destination_that_cannot_be_made_is_an_error() {
    in_sim(|rt| async move {
        let fs = open(golden()).await;
        // A folder that nobody can write to, not even root.
        let error = export(
            &rt,
            &fs,
            fs.top(),
            Path::new("/proc/varve-export"),
            &Options::default(),
            &mut |_| (),
        )
        .await
        .err()
        .unwrap();
        assert_eq!(error.kind, ErrorKind::Io);
    });
}

/// Nothing can be read without chunks, of which both copies of the tree are gone.
#[test]
fn without_a_chunk_tree_the_chunks_are_looked_for_on_the_devices() {
    in_sim(|rt| async move {
        let device = golden();
        let fs = open(device.clone()).await;
        let sb = fs.superblock().clone();
        for copy in fs.chunks().map(sb.chunk_root, 1).unwrap().copies {
            device.poke(copy.byte + 200, b"damage");
        }
        let mut strict = Inspector::open(device.clone(), 0).await.unwrap();
        assert!(strict.block(sb.root).await.is_err());
        let options = RescueOptions::default();
        let rescued = open_rescue(vec![device.clone()], &options, &mut |_, _| ()).await.unwrap();
        let notes = rescued.notes.join("\n");
        assert!(notes.contains("chunks were taken from a scan of the devices"), "{notes}");
        let dir = tempfile::tempdir().unwrap();
        let report = run(&rt, &rescued.fs, dir.path(), Options::default()).await;
        assert!(report.is_whole(), "{report:#?}");
        assert_same(&on_host(dir.path()), &crate::expected());
        // A look at the trees, too.
        let scan = scan_chunks(vec![device], 0, &mut |_, _| ()).await.unwrap();
        strict.take_chunks(&scan);
        assert!(strict.block(sb.root).await.unwrap().problem.is_none());
    });
}

/// Asked for, also where the chunk tree is whole.
#[test]
fn chunks_of_a_scan_lead_to_the_same_files() {
    in_sim(|rt| async move {
        let options = RescueOptions { scan_chunks: true, ..RescueOptions::default() };
        let mut told = 0;
        let rescued = open_rescue(vec![golden()], &options, &mut |done, _| told = done).await;
        let rescued = rescued.unwrap();
        assert_eq!((told, rescued.notes.len()), (112 << 20, 1), "{:?}", rescued.notes);
        let dir = tempfile::tempdir().unwrap();
        assert!(run(&rt, &rescued.fs, dir.path(), Options::default()).await.is_whole());
        assert_same(&on_host(dir.path()), &crate::expected());
    });
}

/// Each leaf of the file tree is lost once, in all copies. What older roots still have is more, and never
/// passed for what the tree says today.
#[test]
fn what_a_lost_leaf_held_is_taken_from_older_roots() {
    in_sim(|rt| async move {
        let (fs, expected) = (open(golden()).await, crate::expected());
        let inspector = Inspector::open(golden(), 0).await.unwrap();
        let roots = inspector.roots().await;
        let mut walk = Walk::new(roots.iter().find(|root| root.id == fs.top().root).unwrap().root);
        let (mut with, mut without) = (0, 0);
        while let Some(step) = walk.next(&inspector).await {
            let Step::Block(block) = step else { panic!("the image is whole") };
            if block.header.level > 0 {
                continue;
            }
            let device = golden();
            for copy in fs.chunks().map(block.at, 1).unwrap().copies {
                device.poke(copy.byte + 200, b"damage");
            }
            let options = RescueOptions::default();
            let rescued = open_rescue(vec![device], &options, &mut |_, _| ()).await.unwrap();
            for no_older_roots in [true, false] {
                let dir = tempfile::tempdir().unwrap();
                let options = Options { no_older_roots, ..Options::default() };
                let report = run(&rt, &rescued.fs, dir.path(), options).await;
                let older = report.problems.iter().filter(|p| p.kind == ProblemKind::Older);
                let older: BTreeSet<_> =
                    older.map(|problem| [b"/", &problem.path[..]].concat()).collect();
                assert!(!no_older_roots || older.is_empty());
                let mut found = on_host(dir.path());
                found.retain(|path, _| !is_damaged_copy(path));
                let right = |path: &Vec<u8>, sum| expected.get(path) == Some(sum);
                for (path, sum) in &found {
                    let said = right(path, sum) || older.contains(path) || is_lost(path);
                    assert!(said, "leaf {}: {}", block.at, path.escape_ascii());
                }
                let right = found.iter().filter(|(path, sum)| right(path, sum)).count();
                *(if no_older_roots { &mut without } else { &mut with }) += right;
            }
        }
        println!("{with} files with older roots, {without} without");
        assert!(with > without);
    });
}

fn is_lost(path: &[u8]) -> bool {
    path.starts_with(b"/varve-lost+found/")
}
