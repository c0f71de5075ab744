//! `fio` with its `nbd` engine: random writes that carry their own checksum, and their verification in
//! a later run.

use std::process::Command;

use crate::process::{self, Finished};
use crate::tool;

/// A job whose blocks, order and contents follow from its numbers alone, so that a second `fio` can
/// verify what a first one wrote, on another server process.
#[derive(Clone, Debug)]
pub struct Job {
    pub size: u64,
    pub block: u32,
    pub depth: u32,
    pub seed: u64,
}

impl Job {
    /// Writes every block once, in random order, and flushes at the end.
    #[track_caller]
    pub fn write(&self, uri: &str) -> Finished {
        process::run(self.command(uri).args(["--rw=randwrite", "--do_verify=0", "--end_fsync=1"]))
    }

    /// Reads back what [`Job::write`] wrote and checks every block's checksum and place.
    #[track_caller]
    pub fn verify(&self, uri: &str) -> Finished {
        process::run(self.command(uri).args(["--rw=randwrite", "--verify_only=1"]))
    }

    fn command(&self, uri: &str) -> Command {
        let mut command = Command::new(tool::find("fio").unwrap_or_else(|| "fio".into()));
        let Job { size, block, depth, seed } = self;
        command
            .args(["--name=varve", "--ioengine=nbd", "--verify=crc32c", "--verify_state_save=0"])
            .args(["--verify_fatal=1", "--thread", "--randrepeat=1"])
            .arg(format!("--uri={uri}"))
            .arg(format!("--size={size}"))
            .arg(format!("--bs={block}"))
            .arg(format!("--iodepth={depth}"))
            .arg(format!("--randseed={seed}"));
        command
    }
}
