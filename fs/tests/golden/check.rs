//! The checker on a disk that the kernel wrote: nothing is found, nothing is written; and what is
//! broken on purpose is told.

use crate::image::{golden, in_sim};
use varve_block::dev::Mem;
use varve_fs::check::{CheckOptions, Checked, Code, check};

async fn run(device: Mem) -> varve_fs::Result<Checked> {
    check(vec![device], &CheckOptions::default()).await
}

#[test]
fn a_disk_of_the_kernel_is_clean_and_stays_as_it_is() {
    in_sim(|_| async {
        let device = golden();
        let before = device.to_vec();
        let options = CheckOptions { all_copies: true, ..CheckOptions::default() };
        let checked = check(vec![device.clone()], &options).await.expect("it opens");
        assert!(checked.is_clean(), "{:#?}", checked.findings);
        assert!(checked.inodes > 200);
        assert!(before == device.to_vec());
    });
}

#[test]
fn a_superblock_that_cannot_be_believed_is_refused() {
    in_sim(|_| async {
        let device = golden();
        device.poke(65536 + 100, &[0xFF; 8]);
        assert!(run(device).await.is_err());
        let options = CheckOptions::default();
        assert!(check(Vec::<Mem>::new(), &options).await.is_err());
    });
}

/// Both copies of a run of metadata are overwritten: many blocks fail, none of them takes the
/// checker down, and the verdict is not "clean".
#[test]
fn lost_blocks_are_told_and_survived() {
    in_sim(|_| async {
        let whole = golden().to_vec();
        for n in 0..24_usize {
            let device = golden();
            // Any block with this file system's uuid in its header is a tree block.
            let fsid = &whole[65536 + 32..65536 + 48];
            let blocks: Vec<usize> = (1 << 20..whole.len() - 16384)
                .step_by(16384)
                .filter(|at| &whole[at + 32..at + 48] == fsid)
                .collect();
            let Some(at) = blocks.get(n * blocks.len() / 24) else { continue };
            let bytenr = whole[at + 48..at + 56].to_vec();
            for copy in blocks.iter().filter(|b| whole[**b + 48..**b + 56] == bytenr[..]) {
                device.poke(*copy as u64 + 500, &[0xA5; 64]);
            }
            if let Ok(checked) = run(device).await {
                // A block that no tree holds any more may be overwritten at will.
                let told = checked.findings.iter().any(|f| f.code == Code::BlockCsum);
                assert_eq!(told, !checked.is_clean(), "block {at}: {:#?}", checked.findings);
            }
        }
    });
}
