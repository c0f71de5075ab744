//! A disk that the kernel wrote, read whole and read damaged. Needs neither root nor tools.

mod check;
mod check_data;
mod damage;
mod devices;
mod double_read;
mod export;
mod features;
mod flight;
mod fuzz;
mod image;

use image::{Tree, assert_same, golden, in_sim, open, walk};
use varve_fs::{Fs, OpenOptions};

/// `SHA256  ./PATH` per line, as the kernel saw it.
fn expected() -> Tree {
    let lines = include_str!("../../../tests/images/010-kernel-btrfs-one-of-everything/expect.txt");
    let pair = |line: &str| {
        let (sum, path) = line.split_once("  .").expect("two columns");
        (path.as_bytes().to_vec(), sum.to_string())
    };
    lines.lines().map(pair).collect()
}

#[test]
fn every_file_has_the_sum_that_the_kernel_says() {
    in_sim(|_| async {
        let fs = open(golden()).await;
        let found = walk(&fs).await;
        assert_eq!(found.failed, 0);
        assert!(found.lent > 10, "{} reads without a copy", found.lent);
        assert_same(&found.sums, &expected());
        assert_eq!(fs.counters().bad_copies, 0);
        assert!(fs.warnings().is_empty());
        assert_eq!(fs.superblock().label.as_bytes(), b"varve-020");
    });
}

#[test]
fn a_small_cache_reads_the_same() {
    in_sim(|_| async {
        let options = OpenOptions { cache_bytes: 1, ..OpenOptions::default() };
        let fs = Fs::open(golden(), options).await.expect("it opens");
        assert_same(&walk(&fs).await.sums, &expected());
    });
}

#[test]
fn reading_writes_nothing() {
    in_sim(|_| async {
        let device = golden();
        let before = device.to_vec();
        walk(&open(device.clone()).await).await;
        assert!(before == device.to_vec());
    });
}
