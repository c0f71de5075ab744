//! Our streams into `btrfs receive`: what comes out is the snapshot that went in.

use crate::kernel::{Mount, run, shell, try_run, workshop};
use crate::walk::{Tree, by_kernel, load};
use std::path::{Path, PathBuf};
use varve_block::Sim;
use varve_block::dev::Mem;
use varve_fs::send::{Attr, Command, Reader, SendOptions, send};
use varve_fs::{Error, ErrorKind, Fs, OpenOptions};

/// The number of the subvolume called `name` in the top level.
async fn id_of(fs: &Fs<Mem>, name: &str) -> u64 {
    fs.lookup(name).await.expect("a subvolume").root
}

struct Plan<'a> {
    name: &'a str,
    parent: Option<&'a str>,
    sources: &'a [&'a str],
    version: u32,
    compressed: bool,
}

impl Default for Plan<'_> {
    fn default() -> Self {
        Plan { name: "s1", parent: None, sources: &[], version: 1, compressed: false }
    }
}

fn stream(device: &Mem, plan: &Plan<'_>) -> Result<Vec<u8>, Error> {
    let device = device.clone();
    let (name, parent) = (plan.name.to_owned(), plan.parent.map(str::to_owned));
    let sources: Vec<String> = plan.sources.iter().map(|s| (*s).to_owned()).collect();
    let (version, compressed_data) = (plan.version, plan.compressed);
    Sim::new(1).run(|_| async move {
        let options = OpenOptions { subvolume: Some(5), ..OpenOptions::default() };
        let fs = Fs::open(device, options).await.expect("it opens");
        let id = id_of(&fs, &name).await;
        let mut options = SendOptions { version, compressed_data, ..SendOptions::default() };
        if let Some(parent) = parent {
            options.parent = Some(id_of(&fs, &parent).await);
        }
        for source in &sources {
            options.clone_sources.push(id_of(&fs, source).await);
        }
        let mut out = Vec::new();
        send(&fs, id, &options, &mut out).await?;
        Ok(out)
    })
}

/// What a stream carries: everything but inode numbers and times of change.
fn comparable(path: &Path) -> Tree {
    let mut tree = by_kernel(path);
    for seen in tree.values_mut() {
        seen.ino = 0;
        seen.times[1] = (0, 0);
    }
    tree
}

/// Two disks: one that is sent from, one that receives.
struct Pair {
    dir: tempfile::TempDir,
}

impl Pair {
    fn new(test: &str) -> Option<Pair> {
        let dir = workshop(test)?;
        for name in ["disk", "other"] {
            shell(dir.path(), &format!("truncate -s 600M {name}; mkfs.btrfs -q {name} >/dev/null"));
        }
        Some(Pair { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a script in the source's top level.
    fn change(&self, script: &str) {
        let mount = Mount::new(&self.path("disk"), "");
        shell(mount.path(), script);
    }

    fn image(&self) -> Mem {
        load(&self.path("disk"))
    }

    /// Receives on the other disk, and compares with the source.
    #[track_caller]
    fn receive(&self, bytes: &[u8], name: &str) {
        std::fs::write(self.path("stream"), bytes).expect("a stream");
        let other = Mount::new(&self.path("other"), "");
        let (file, to) = (self.path("stream"), other.path().to_path_buf());
        let args = ["receive".as_ref(), "-f".as_ref(), file.as_os_str(), to.as_os_str()];
        let out = try_run("btrfs", args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{said}");
        let source = Mount::new(&self.path("disk"), "ro");
        let (theirs, ours) = (comparable(&source.path().join(name)), comparable(&to.join(name)));
        for (path, seen) in &theirs {
            assert_eq!(ours.get(path), Some(seen), "{}", path.escape_ascii());
        }
        assert_eq!(ours.len(), theirs.len(), "names that should not be there");
    }
}

fn count(bytes: &[u8], wanted: Command) -> usize {
    let mut reader = Reader::start(bytes).expect("a stream");
    let mut n = 0;
    while let Some(command) = reader.next_command().expect("a command") {
        n += usize::from(command.command == wanted);
    }
    n
}

#[test]
fn one_of_everything_arrives() {
    let Some(pair) = Pair::new("one_of_everything_arrives") else { return };
    {
        let mount = Mount::new(&pair.path("disk"), "compress=zstd");
        shell(mount.path(), "btrfs -q subvolume create w");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle/make_tree.py");
        run("python3", [Path::new(script), &mount.path().join("w")]);
        // Snapshots show nested subvolumes as empty folders, which no stream carries.
        shell(
            mount.path(),
            "btrfs -q subvolume delete w/snap* w/sub/nested w/sub 2>/dev/null || true; \
            find w -inum 256 -mindepth 1 | sort -r | xargs -r btrfs -q subvolume delete; \
            btrfs -q subvolume snapshot -r w s1",
        );
    }
    let image = pair.image();
    for (version, compressed) in [(1, false), (2, false), (2, true)] {
        let plan = Plan { version, compressed, ..Plan::default() };
        let bytes = stream(&image, &plan).expect("a stream");
        assert!(
            bytes == stream(&image, &plan).expect("a stream"),
            "the same snapshot, the same bytes"
        );
        assert_eq!(count(&bytes, Command::EncodedWrite) > 0, compressed);
        pair.receive(&bytes, "s1");
        let other = Mount::new(&pair.path("other"), "");
        shell(other.path(), "btrfs -q subvolume delete s1");
    }
}

#[test]
fn folders_that_change_places_arrive() {
    let Some(pair) = Pair::new("folders_that_change_places_arrive") else { return };
    pair.change(
        "btrfs -q subvolume create w; mkdir -p w/a/b/c w/x/y w/gone/deep; echo 1 > w/a/f; \
         echo 2 > w/x/y/g; echo 3 > w/gone/deep/h; ln w/a/f w/x/link; \
         setfacl -d -m u:7:rwx w/x 2>/dev/null || true; btrfs -q subvolume snapshot -r w s1",
    );
    let first = stream(&pair.image(), &Plan::default()).expect("a stream");
    pair.receive(&first, "s1");
    pair.change(
        "cd w; mv a/b/c c; mv a c/a; mv x/y y; mv x y/x; mv gone/deep/h h; rm -r gone; mkdir gone; \
         echo 4 > gone/new; mv y/x/link y/x/f2; mv c/a/f f; mv h c/a/f; mkdir y/x/made; echo 5 > y/x/file; \
         ln f y/x/made/f; cd ..; btrfs -q subvolume snapshot -r w s2",
    );
    let plan = Plan { name: "s2", parent: Some("s1"), ..Plan::default() };
    let second = stream(&pair.image(), &plan).expect("a stream");
    pair.receive(&second, "s2");
}

#[test]
fn shared_data_is_cloned_and_not_sent_again() {
    let Some(pair) = Pair::new("shared_data_is_cloned_and_not_sent_again") else { return };
    pair.change(
        "btrfs -q subvolume create w; head -c 3000001 /dev/urandom > w/a; cp --reflink=always w/a w/b; \
         btrfs -q subvolume snapshot -r w s1",
    );
    let first = stream(&pair.image(), &Plan::default()).expect("a stream");
    assert!(first.len() < 3_200_000, "once, and not twice: {}", first.len());
    pair.receive(&first, "s1");
    pair.change("cp --reflink=always w/a w/c; rm w/a; btrfs -q subvolume snapshot -r w s2");
    let plan = Plan { name: "s2", parent: Some("s1"), ..Plan::default() };
    let second = stream(&pair.image(), &plan).expect("a stream");
    assert!(second.len() < 100_000, "nothing of the data: {}", second.len());
    assert!(count(&second, Command::Clone) > 0);
    pair.receive(&second, "s2");
    let plan = Plan { name: "s2", sources: &["s1"], ..Plan::default() };
    let third = stream(&pair.image(), &plan).expect("a stream");
    assert!(third.len() < 100_000, "a source is as good as a parent: {}", third.len());
}

#[test]
fn what_cannot_be_sent_is_refused_before_the_first_byte() {
    let test = "what_cannot_be_sent_is_refused_before_the_first_byte";
    let Some(pair) = Pair::new(test) else { return };
    pair.change(
        "btrfs -q subvolume create w; btrfs -q subvolume snapshot -r w s1; \
         btrfs -q subvolume snapshot w rw",
    );
    let image = pair.image();
    let refused = |plan: Plan<'_>| stream(&image, &plan).err().map(|error| error.kind);
    assert_eq!(refused(Plan { name: "w", ..Plan::default() }), Some(ErrorKind::Invalid));
    let plan = Plan { parent: Some("rw"), ..Plan::default() };
    assert_eq!(refused(plan), Some(ErrorKind::Invalid));
    let plan = Plan { sources: &["rw"], ..Plan::default() };
    assert_eq!(refused(plan), Some(ErrorKind::Invalid));
    let plan = Plan { version: 3, ..Plan::default() };
    assert_eq!(refused(plan), Some(ErrorKind::Unsupported));
    let plan = Plan { compressed: true, ..Plan::default() };
    assert_eq!(refused(plan), Some(ErrorKind::Invalid));
    assert_eq!(refused(Plan::default()), None);
}

/// S17, for a reader that nobody disturbs: where blocks lie does not show in the stream.
#[test]
fn a_balance_of_everything_does_not_change_the_stream() {
    let test = "a_balance_of_everything_does_not_change_the_stream";
    let Some(pair) = Pair::new(test) else { return };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle/random_ops.py");
    pair.change(&format!(
        "btrfs -q subvolume create w; python3 {script} w 1 300; btrfs -q subvolume snapshot -r w s1; \
         python3 {script} w 2 200; btrfs -q subvolume snapshot -r w s2"
    ));
    let plans =
        [Plan::default(), Plan { name: "s2", parent: Some("s1"), version: 2, ..Plan::default() }];
    let before = plans.each_ref().map(|plan| stream(&pair.image(), plan).expect("a stream"));
    pair.change("btrfs -q balance start --full-balance .; sync");
    let after = plans.each_ref().map(|plan| stream(&pair.image(), plan).expect("a stream"));
    assert!(before == after);
}

/// Random changes between snapshots, seed after seed, each received on top of the one before.
#[test]
fn random_changes_arrive() {
    let Some(pair) = Pair::new("random_changes_arrive") else { return };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle/random_ops.py");
    let rounds =
        std::env::var("VARVE_SEND_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(8u32);
    let first: u32 = std::env::var("VARVE_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1000);
    pair.change(&format!(
        "btrfs -q subvolume create w; python3 {script} w {first} 300; \
         btrfs -q subvolume snapshot -r w s0"
    ));
    let bytes = stream(&pair.image(), &Plan { name: "s0", ..Plan::default() }).expect("a stream");
    pair.receive(&bytes, "s0");
    for round in 1..=rounds {
        let seed = first + round;
        let steps = 10 + 40 * (round % 5);
        pair.change(&format!(
            "python3 {script} w {seed} {steps}; btrfs -q subvolume snapshot -r w s{round}"
        ));
        let (name, parent) = (format!("s{round}"), format!("s{}", round - 1));
        let version = 1 + round % 2;
        let compressed = round % 4 == 3;
        let plan = Plan { name: &name, parent: Some(&parent), sources: &[], version, compressed };
        println!("seed {seed}, {steps} steps, version {version}");
        let bytes = stream(&pair.image(), &plan).expect("a stream");
        let last = Reader::start(&bytes[..]).expect("a stream").next_command().expect("a command");
        assert!(last.is_some_and(|head| head.get(Attr::CloneUuid).is_some()));
        pair.receive(&bytes, &name);
    }
}
