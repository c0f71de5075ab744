//! Many readers of one block: one read, whole or not at all. (The bug: a second reader looked, found
//! nothing, and read into memory that the first had published meanwhile.)

use crate::devices::{Rig, Rigged};
use crate::image::{golden, open};
use std::collections::BTreeMap;
use std::rc::Rc;
use varve_block::Sim;
use varve_block::sync::{join_all, select};

#[test]
fn each_tree_block_is_read_once_however_many_ask() {
    for seed in 0..40 {
        Sim::new(seed).run(|rt| async move {
            let rig = Rc::new(Rig::default());
            let device = Rigged { below: golden(), rig: Rc::clone(&rig), rt: rt.clone() };
            let fs = Rc::new(open(device).await);
            rig.reads.borrow_mut().clear();
            rig.delay_us.set(500);
            let paths = ["/plain/text", "/plain/file 7", "/zstd/inline", "/sub/nested/f"];
            let tasks = (0..24).map(|n| {
                let fs = Rc::clone(&fs);
                rt.spawn(async move {
                    let id = fs.lookup(paths[n % paths.len()]).await.unwrap();
                    fs.inode(id).await.unwrap().size
                })
            });
            let sizes = join_all(tasks.collect::<Vec<_>>()).await;
            assert!(sizes.chunks(4).all(|four| four == &sizes[..4]), "seed {seed}");
            let twice: BTreeMap<_, _> =
                rig.reads.borrow().iter().filter(|(_, n)| **n > 1).map(|(a, n)| (*a, *n)).collect();
            assert!(twice.is_empty(), "seed {seed}: sectors read more than once: {twice:?}");
            assert!(!rig.reads.borrow().is_empty());
        });
    }
}

/// Whoever reads may be dropped in the middle: the next in line takes over, nobody hangs.
#[test]
fn a_reader_that_gives_up_leaves_nobody_waiting() {
    for seed in 0..40 {
        Sim::new(seed).run(|rt| async move {
            let rig = Rc::new(Rig::default());
            let device = Rigged { below: golden(), rig: Rc::clone(&rig), rt: rt.clone() };
            let fs = Rc::new(open(device).await);
            rig.delay_us.set(500);
            let patience = std::time::Duration::from_micros(seed * 20);
            let hasty = (0..6).map(|_| {
                let (fs, rt) = (Rc::clone(&fs), rt.clone());
                async move {
                    let read = async { drop(fs.lookup("/sub/nested/f").await) };
                    select(read, rt.sleep(patience)).await;
                }
            });
            let hasty = hasty.map(|task| rt.spawn(task)).collect::<Vec<_>>();
            let patient = fs.lookup("/sub/nested/f").await.unwrap();
            assert_eq!(fs.read(patient, 0, 10).await.unwrap(), b"deep");
            join_all(hasty).await;
        });
    }
}
