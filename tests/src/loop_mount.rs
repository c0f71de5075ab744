//! An image file mounted by the running kernel: the oracle for whatever reads file systems.

use std::path::Path;
use std::process::Command;

use crate::mount::{self, Mounted};
use crate::{process, tool};

/// What [`rich_btrfs`] and a loop mount need.
pub const TOOLS: &[&str] =
    &["mkfs.btrfs", "btrfs", "mount", "umount", "setfattr", "setfacl", "mknod", "fallocate"];

/// Whether the kernel here mounts btrfs from an image, with the tools to fill it; prints the reason
/// otherwise.
#[must_use]
pub fn available() -> bool {
    tool::have(TOOLS)
        && tool::have_root()
        && mount::has(&["/dev/loop-control"])
        && mount::kernel_knows("btrfs")
}

/// A mounted image.
pub type LoopMount = Mounted<'static>;

impl LoopMount {
    /// # Panics
    /// When the kernel refuses.
    #[track_caller]
    pub fn open(image: &Path, options: &str) -> LoopMount {
        Mounted::new("btrfs", &format!("loop,{options}"), image)
    }
}

/// What a tree can hold: hard links, attributes, ACLs, symbolic links, device nodes, odd names, holes,
/// unwritten space, compression, reflinks, a nested subvolume, and a read-only snapshot of all of it.
const FILL: &str = r#"
cd "$1"
mkdir -p dir/deep/er empty
echo inline > small
head -c 300000 /dev/urandom > dir/random
ln dir/random dir/deep/hard; ln dir/random hard2
seq 200000 > dir/numbers
seq 100000 > empty/packed
ln -s dir/numbers link; ln -s /nowhere/at/all dangling
mknod null c 1 3; mknod block b 8 300; mkfifo pipe
truncate -s 5M sparse; printf end | dd of=sparse bs=1 seek=5242000 conv=notrunc status=none
fallocate -l 1M unwritten; printf x | dd of=unwritten bs=1 seek=70000 conv=notrunc status=none
cp --reflink=always dir/numbers dir/clone
setfattr -n user.comment -v "a value" small
setfattr -n user.long -v "$(head -c 3000 /dev/zero | tr '\0' v)" dir
setfattr -n trusted.hidden -v secret dir/random
setfacl -m u:1234:rwx,g:4321:r small
setfacl -d -m u:77:rx dir/deep
touch "$(printf 'odd \001\377 name')" -- '-dash' 'ünïcode'
chown 1000:2000 dir/random; chmod 4751 dir/numbers; chmod 1777 dir
touch -h -d '1960-02-03 04:05:06.789' dangling; touch -d '2100-01-01' small
for i in $(seq 700); do echo $i > dir/deep/er/file-$i; done
btrfs -q subvolume create sub
echo inside > sub/inside; mkdir sub/d; seq 50000 > sub/d/data
sync
btrfs -q subvolume snapshot -r sub snap
echo later >> sub/inside; rm sub/d/data
"#;

/// Makes a btrfs image of 256 MiB at `path`, filled by the kernel with one of everything.
///
/// # Panics
/// When a tool fails.
#[track_caller]
pub fn rich_btrfs(path: &Path, mkfs: &[&str]) {
    crate::disk::sparse(path, 256 << 20);
    process::run(Command::new("mkfs.btrfs").arg("-q").args(mkfs).arg(path)).ok();
    let mounted = LoopMount::open(path, "compress=zstd");
    process::run(Command::new("bash").args(["-euc", FILL, "fill"]).arg(mounted.path())).ok();
    mounted.unmount();
}
