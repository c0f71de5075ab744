//! `varve up`: the whole stack from one folder, made when absent.
//!
//! A folder is made in `DIR/.new` and moved into place file by file, the disk last: a run that is
//! killed half-way is finished or started over by the next one, and a `hdd.img` that is there is
//! complete.

use crate::args::{AllowedArgs, Up};
use crate::cmd::serve::{Plan, serve};
use crate::config::{CryptConfig, SecretSource, StackConfig};
use crate::failure::Outcome;
use crate::place::Place;
use crate::size::Size;
use crate::stack;
use anyhow::{Context, bail};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use varve_block::{BlockDevice, Rt};
use varve_cache::MakeOptions;
use varve_crypt::{
    Activation, Cost, CryptOptions, FormatOptions, Hash, Key, Pbkdf, UnlockOptions, Workers,
};
use varve_fs::{MkfsOptions, mkfs};
use varve_nbd_server::Listen;

const HDD: &str = "hdd.img";
const SSD: &str = "ssd.img";
const KEY: &str = "key";
const SOCKET: &str = "varve.sock";
const NEW: &str = ".new";
/// Written last into `.new`: everything in there is whole and durable.
const COMPLETE: &str = "complete";

/// The key is 64 random bytes: there is nothing to stretch, and unlocking should take no time.
const ITERATIONS: u32 = 1000;

pub(crate) async fn run(rt: &Rt, args: Up) -> anyhow::Result<Outcome> {
    let signals = rt.signals()?;
    fs::create_dir_all(&args.dir)
        .with_context(|| format!("cannot make folder {}", args.dir.display()))?;
    let dir = fs::canonicalize(&args.dir)?;
    let made = prepare(rt, &dir, &args).await?;
    let config = config_of(&dir, &args);
    let stack = stack::open(rt, &config).await?;
    let plan = Plan {
        listen: vec![Listen::Unix(dir.join(SOCKET))],
        name: String::new(),
        intro: intro(&dir, made),
        quiet: args.quiet,
        control: None,
    };
    serve(rt, stack, signals, plan).await
}

fn config_of(dir: &Path, args: &Up) -> StackConfig {
    StackConfig {
        backing: dir.join(HDD).into(),
        cache: Some(dir.join(SSD).into()),
        integrity: None,
        cache_mode: args.cache_mode,
        crypt: CryptConfig::Luks {
            secret: SecretSource::KeyFile { path: dir.join(KEY), offset: 0, size: None },
            header: None,
            key_slot: None,
        },
        allowed: AllowedArgs::default(),
        activation: Activation::default(),
        persistent: false,
        workers: Workers::Auto,
        read_only: false,
        allow_stale: false,
        volume: None,
        live: false,
    }
}

/// Makes what is missing; true when a disk was made.
async fn prepare(rt: &Rt, dir: &Path, args: &Up) -> anyhow::Result<bool> {
    let new = dir.join(NEW);
    if new.join(COMPLETE).exists() {
        move_in(dir, &new)?;
    }
    if dir.join(HDD).exists() {
        for name in [SSD, KEY] {
            if !dir.join(name).exists() {
                bail!("{} is there but {name} is not: put it back", dir.join(HDD).display());
            }
        }
        return Ok(false);
    }
    for name in [SSD, KEY] {
        if dir.join(name).exists() {
            bail!(
                "{} is there but {HDD} is not: put it back, or move this one away",
                dir.join(name).display()
            );
        }
    }
    if new.exists() {
        fs::remove_dir_all(&new)?;
    }
    fs::create_dir(&new)?;
    let outcome = make(rt, &new, args).await;
    if outcome.is_err() {
        fs::remove_dir_all(&new)?;
    }
    outcome?;
    File::create(new.join(COMPLETE))?.sync_all()?;
    sync_dir(&new)?;
    move_in(dir, &new)?;
    Ok(true)
}

/// The disk goes last: where it is, the others are.
fn move_in(dir: &Path, new: &Path) -> anyhow::Result<()> {
    for name in [KEY, SSD, HDD] {
        if new.join(name).exists() {
            fs::rename(new.join(name), dir.join(name))?;
            sync_dir(dir)?;
        }
    }
    fs::remove_dir_all(new)?;
    Ok(())
}

fn sync_dir(dir: &Path) -> anyhow::Result<()> {
    Ok(File::open(dir)?.sync_all()?)
}

async fn make(rt: &Rt, new: &Path, args: &Up) -> anyhow::Result<()> {
    let sparse = |name: &str, size: Size| -> anyhow::Result<Place> {
        let path = new.join(name);
        let file = File::create_new(&path)?;
        file.set_len(size.0).with_context(|| format!("cannot make {name} of {size}"))?;
        file.sync_all()?;
        Ok(path.into())
    };
    let key = Key::random(64)?;
    let mut key_file =
        File::options().write(true).create_new(true).mode(0o600).open(new.join(KEY))?;
    key_file.write_all(key.bytes())?;
    key_file.sync_all()?;
    let hdd = stack::open_device(rt, &sparse(HDD, args.hdd_size)?, false).await?;
    let ssd = stack::open_device(rt, &sparse(SSD, args.ssd_size)?, false).await?;
    let options = MakeOptions {
        mode: args.cache_mode.map_or_else(Default::default, stack::mode),
        label: "varve".to_owned(),
        ..MakeOptions::default()
    };
    varve_cache::make(Some(&ssd), Some(&hdd), &options).await?;
    let cache = varve_cache::Cache::open(rt, ssd, hdd, varve_cache::OpenOptions::default()).await?;
    let cache = Rc::new(cache);
    let outcome = fill(rt, Rc::clone(&cache), &key).await;
    cache.stop().await?;
    outcome
}

/// LUKS2 and btrfs on the new volume.
async fn fill<D: BlockDevice>(rt: &Rt, device: D, key: &Key) -> anyhow::Result<()> {
    let options = FormatOptions {
        pbkdf: Pbkdf::Pbkdf2(Hash::Sha256),
        cost: Cost::Forced { iterations: ITERATIONS, memory_kib: 0, lanes: 1 },
        label: "varve".to_owned(),
        ..FormatOptions::default()
    };
    let secret = Arc::new(key.duplicate());
    varve_crypt::format(rt, &device, &options, &secret).await?;
    let volume = varve_crypt::unlock(rt, &device, &UnlockOptions::default(), &secret).await?;
    let crypt = stack::crypt_over(rt, device, volume, &CryptOptions::default())?;
    mkfs(rt, &crypt, &MkfsOptions { label: "varve".to_owned(), ..MkfsOptions::default() }).await?;
    crypt.flush().await?;
    Ok(())
}

fn intro(dir: &Path, made: bool) -> String {
    let socket = dir.join(SOCKET);
    let socket = socket.display();
    let state = if made { "made and serving" } else { "serving" };
    format!(
        "{state} {dir}: a btrfs, encrypted with {dir}/{KEY}, behind an SSD cache
  as a file, then mounted:
      mkdir -p {dir}/mnt {dir}/nbd; nbdfuse {dir}/nbd/disk nbd+unix:///?socket={socket} &
      mount $(losetup --direct-io=on -f --show {dir}/nbd/disk) {dir}/mnt
  with the kernel's client:
      nbd-client -unix {socket} /dev/nbd0; mount /dev/nbd0 {dir}/mnt
  in a virtual machine:
      qemu-system-x86_64 -drive file=nbd+unix:///?socket={socket},format=raw,if=virtio ...
  Ctrl-C stops; the next start goes on where this one was",
        dir = dir.display()
    )
}
