//! `varve fs mount`: a file system as folders of this machine, through FUSE, read-only.
//!
//! ```text
//! kernel --/dev/fuse--> the lane: a task for each request
//!    ^                              |
//!    +----------- answer -----------+
//! ```
//!
//! The lane that the engine lives on talks to the kernel itself ([`kernel`]), so a request whose data is
//! in memory is read, worked on ([`answer`]) and answered without another thread waking up; tasks wait for
//! devices beside each other. Nothing ever changes, so the kernel is told to keep what it has seen.

mod ahead;
mod answer;
mod ask;
mod kernel;
mod nodes;
mod tune;
mod wire;

use super::source;
use crate::args::FsMount;
use crate::config::{StackConfig, image_and_path};
use crate::failure::{Outcome, usage};
use anyhow::Context;
use ask::Ask;
use fuser::{Config, MountOption, Session, SessionACL};
use kernel::{Kernel, Terms};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use varve_block::rt::Signals;
use varve_block::sync::{Either, LocalSemaphore, select};
use varve_block::{Dyn, Rt};
use varve_fs::{Fs, InodeId};

/// Requests that are worked on at once; the kernel keeps the others.
const AT_ONCE: usize = 64;

pub(super) async fn run(rt: &Rt, mut args: FsMount) -> anyhow::Result<Outcome> {
    let Some(dir) = args.at.pop().map(PathBuf::from) else {
        return usage("where to? give a folder to mount on");
    };
    if !dir.is_dir() {
        return usage(format!("{} is no folder to mount on", dir.display()));
    }
    let (image, extra) = image_and_path(&args.at, &args.source.stack, true)?;
    if let Some(extra) = extra {
        return usage(format!("unexpected argument {extra:?}"));
    }
    // Before anything is opened: what has been mounted must be unmounted.
    let signals = rt.signals()?;
    let config = StackConfig::new(&args.source.stack, image.as_ref())?;
    let name = config.backing.to_string();
    let devices = source::devices(rt, config, &args.source.devices).await?;
    let fs = open(devices, &args).await.with_context(|| format!("no btrfs to read on {name}"))?;
    // Once it is mounted, whoever looks at it waits for us.
    let place = dir.canonicalize();
    let terms = Terms::new(args.allow_other);
    let opens_itself = terms.opens_itself();
    let mounted = || -> std::io::Result<_> {
        let session = Session::new(terms, &dir, &options(&name, args.allow_other))?;
        let kernel = Kernel::new(rt, &session, args.allow_other)?;
        Ok((session, kernel))
    };
    let (session, kernel) =
        mounted().with_context(|| format!("{} cannot be mounted on", dir.display()))?;
    if let Ok(place) = place {
        tune::read_ahead(&place);
    }
    if !args.quiet {
        eprintln!("{name} is mounted on {}, read-only; Ctrl-C unmounts it", dir.display());
    }
    let server = Rc::new(answer::Server::new(rt.clone(), fs, opens_itself));
    serve(rt, server, kernel, session, signals, &dir).await?;
    Ok(Outcome::Fine)
}

async fn open(devices: Vec<Dyn>, args: &FsMount) -> anyhow::Result<Fs<Dyn>> {
    let mut options = source::options(&args.source);
    options.ignore_data_csums = args.ignore_checksums;
    options.subvolume = match args.subvol.as_deref() {
        None => None,
        Some(word) => match word.parse() {
            Ok(id) => Some(id),
            Err(_) => {
                // By path, from the top level.
                options.subvolume = Some(5);
                let all = Fs::open_devices(devices.clone(), options.clone()).await?;
                let id = all.resolve(word).await?;
                if id != InodeId::root_of(id.root) {
                    return usage(format!("{word} is no subvolume"));
                }
                Some(id.root)
            }
        },
    };
    Ok(Fs::open_devices(devices, options).await?)
}

/// What mount(8) shows. Devices and set-user-id bits stay dead unless modes are enforced for everybody:
/// whoever owns an image could put anything into it.
fn options(name: &str, allow_other: bool) -> Config {
    let mut options = Config::default();
    options.mount_options = vec![
        MountOption::RO,
        MountOption::FSName(name.to_owned()),
        MountOption::Subtype("varve".into()),
        MountOption::NoAtime,
        MountOption::NoDev,
        MountOption::NoSuid,
    ];
    if allow_other {
        options.mount_options.push(MountOption::DefaultPermissions);
        options.acl = SessionACL::All;
    }
    options
}

/// Answers until somebody unmounts it or a signal comes.
async fn serve(
    rt: &Rt,
    server: Rc<answer::Server>,
    mut kernel: Kernel,
    session: Session<Terms>,
    mut signals: Signals,
    dir: &Path,
) -> anyhow::Result<()> {
    let slots = LocalSemaphore::new(AT_ONCE);
    let answering = async {
        while let Some((request, reply)) = kernel.next().await? {
            let slot = slots.acquire(1).await;
            let ended = request.ask == Ask::Destroy;
            let server = Rc::clone(&server);
            rt.spawn(async move {
                server.answer(request.ask, reply).await;
                drop(slot);
            });
            if ended {
                break;
            }
        }
        Ok::<_, std::io::Error>(())
    };
    let mut answering = std::pin::pin!(answering);
    match select(answering.as_mut(), signals.next()).await {
        Either::Left(ended) => {
            // Somebody has unmounted it. Dropped, the session would do so once more, and hit whatever
            // is mounted there by now.
            std::mem::forget(session);
            ended.context("the kernel's requests cannot be read")
        }
        Either::Right(signal) => {
            signal?;
            // Requests go on being answered meanwhile, or the kernel would wait for ever.
            let dir = dir.to_owned();
            let mut unmounting = std::pin::pin!(rt.offload(move || unmount(session, &dir)));
            match select(answering, unmounting.as_mut()).await {
                Either::Left(_) => unmounting.await,
                Either::Right(done) => done,
            }
        }
    }
}

/// Where somebody still has a file open, the folder is freed at once and the files end with us.
fn unmount(mut session: Session<Terms>, dir: &Path) -> anyhow::Result<()> {
    let Err(error) = session.unmount() else { return Ok(()) };
    if error.raw_os_error() != Some(rustix::io::Errno::BUSY.raw_os_error()) {
        return Err(error).with_context(|| format!("{} cannot be unmounted", dir.display()));
    }
    tracing::warn!("{} is still in use: whoever uses it gets errors from now on", dir.display());
    rustix::mount::unmount(dir, rustix::mount::UnmountFlags::DETACH)
        .with_context(|| format!("{} cannot be unmounted", dir.display()))
}
