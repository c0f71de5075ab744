//! A re-encryption that the server does while it serves.

use crate::args::CryptReencrypt;
use crate::cmd::crypt::{Order, Report, State, take_up};
use crate::stack::LiveCrypt;
use anyhow::{Context, bail};
use clap::Parser;
use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use varve_block::Rt;
use varve_crypt::Key;
use varve_crypt::reencrypt::{Ended, Progress};

/// How often a stop looks whether the zone is done.
const LOOK: Duration = Duration::from_millis(5);

/// The words of the command as the client had them.
#[derive(Parser)]
#[command(no_binary_name = true)]
struct Words {
    #[command(flatten)]
    args: CryptReencrypt,
}

/// One re-encryption, under way or done.
pub(super) struct Job {
    progress: Cell<Progress>,
    stop: Cell<bool>,
    ended: RefCell<Option<Result<Ended, String>>>,
}

impl Job {
    /// Begins it, or goes on with the one that the header describes.
    pub(super) async fn start(
        rt: &Rt,
        crypt: &LiveCrypt,
        order: Order,
        secrets: Vec<Arc<Key>>,
    ) -> anyhow::Result<Rc<Job>> {
        let args = Words::try_parse_from(order.words).context("the words of a command")?.args;
        let Some(ranges) = crypt.ranges.clone() else {
            bail!("what is served is not a LUKS2 volume that is open for writing");
        };
        let block = crypt.handle.get().sector_size.bytes() as u64;
        if args.cipher.sector_size.is_some_and(|size| size.0 > block) {
            bail!(
                "clients see blocks of {block} bytes: larger sectors only while it is not served"
            );
        }
        let devices = crypt.devices(rt).await?;
        let options = crypt.unlock_options();
        let work = take_up(rt, &args, (&devices, false), &options, |_| Ok(secrets)).await?;
        let work = work.online(crypt.handle.clone(), ranges)?;
        let job = Rc::new(Job {
            progress: Cell::new(work.progress()),
            stop: Cell::new(false),
            ended: RefCell::default(),
        });
        let (this, held) = (Rc::clone(&job), rt.clone());
        let rate = args.rate.map(|rate| rate.0);
        drop(rt.spawn(async move {
            let mut watch = |now: Progress| {
                this.progress.set(now);
                if this.stop.get() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let ended = work.run(&held, rate, &mut watch).await;
            if let Err(error) = &ended {
                tracing::error!(%error, "the re-encryption of the served volume failed");
            }
            if matches!(ended, Ok(Ended::Finished)) {
                let total = this.progress.get().total;
                this.progress.set(Progress { done: total, total });
            }
            *this.ended.borrow_mut() = Some(ended.map_err(|e| e.to_string()));
        }));
        Ok(job)
    }

    pub(super) fn is_running(&self) -> bool {
        self.ended.borrow().is_none()
    }

    /// It ends after the zone that is being done.
    pub(super) fn halt(&self) {
        self.stop.set(true);
    }

    /// The same, and waits for it.
    pub(super) async fn end(&self, rt: &Rt) {
        self.halt();
        while self.is_running() {
            rt.sleep(LOOK).await;
        }
    }

    pub(super) fn report(job: Option<&Rc<Job>>) -> Report {
        let Some(job) = job else {
            return Report { state: State::None, done: 0, total: 0, error: None };
        };
        let (state, error) = match &*job.ended.borrow() {
            None => (State::Running, None),
            Some(Ok(Ended::Finished)) => (State::Finished, None),
            Some(Ok(Ended::Interrupted(_))) => (State::Stopped, None),
            Some(Err(error)) => (State::Failed, Some(error.clone())),
        };
        let Progress { done, total } = job.progress.get();
        Report { state, done, total, error }
    }
}
