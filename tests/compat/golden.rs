//! Pairs that the kernel wrote before a power cut.

use varve_tests::{disk, golden};

#[test]
fn pairs_of_the_kernel_read_as_the_kernel_says() {
    let pairs = disk::pairs();
    assert!(!pairs.is_empty(), "the repository's own pairs are gone");
    for pair in &pairs {
        golden::reads_as_the_kernel_says(pair);
    }
}
