//! The control socket of a server: suspend and resume, a line each.
//!
//! ```text
//! status                 ok running | ok suspended
//! suspend                ok suspended
//! resume N, then N bytes ok running        the bytes are the passphrase or the content of the key file
//! reencrypt JSON, bytes  ok running        the words of the command and the lengths of the secrets that follow
//! progress               ok JSON           how far that is
//! halt                   ok running        it ends after its zone
//! anything else          error TEXT
//! ```
//!
//! One command per connection, one connection at a time. The socket is for its owner only: whoever may
//! connect may stop all I/O. A secret that came through it is overwritten once it was tried.

mod job;

use crate::cmd::crypt::Order;
use crate::stack::{self, LiveCrypt, Stack};
use anyhow::{Context, bail};
use std::cell::RefCell;
use std::convert::Infallible;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use varve_block::export::Quiet;
use varve_block::rt::{Listener, Stream};
use varve_block::sync::{Either, select};
use varve_block::{BlockDevice, BufPool, Dyn, ExportShared, IoBuf, Rt};
use varve_crypt::{KEY_FILE_MAX, Key, Suspended};
use zeroize::Zeroize;

use job::Job;

/// Longest command line: the words of a re-encryption.
const LINE_MAX: usize = 16 << 10;
/// Most secrets of one command.
const SECRETS_MAX: usize = 32;
/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);
/// After an accept that failed, before the next.
const PAUSE: Duration = Duration::from_millis(100);

/// What the socket is about.
pub(crate) struct Control {
    rt: Rt,
    listener: Listener,
    state: Rc<State>,
}

struct State {
    export: Arc<ExportShared>,
    top: Dyn,
    crypt: Option<LiveCrypt>,
    /// There while suspended. The requests are held by it.
    suspended: RefCell<Option<(Suspended, Quiet)>>,
    /// The last re-encryption.
    job: RefCell<Option<Rc<Job>>>,
}

/// Lets held requests go when the server stops. The key stays away, so they end with an error.
#[derive(Clone)]
pub(crate) struct Release(Rc<State>);

impl Release {
    /// Ends a re-encryption after its zone: the stack must not go away under it.
    pub(crate) async fn settle(&self, rt: &Rt) {
        let job = self.0.job.borrow().clone();
        if let Some(job) = job {
            job.end(rt).await;
        }
    }

    pub(crate) fn now(self) {
        self.0.suspended.borrow_mut().take();
    }
}

impl Control {
    /// Listens at `path`, for the owner of the process only.
    pub(crate) fn start(
        rt: &Rt,
        path: &Path,
        export: &Arc<ExportShared>,
        stack: &Stack,
    ) -> anyhow::Result<Control> {
        let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let listener = Listener::unix(rt, path);
        rustix::process::umask(before);
        let listener = listener.with_context(|| format!("cannot listen at {}", path.display()))?;
        let state = State {
            export: Arc::clone(export),
            top: stack.top.clone(),
            crypt: stack.crypt.clone(),
            suspended: RefCell::default(),
            job: RefCell::default(),
        };
        Ok(Control { rt: rt.clone(), listener, state: Rc::new(state) })
    }

    pub(crate) fn release(&self) -> Release {
        Release(Rc::clone(&self.state))
    }

    /// Answers until it is dropped.
    pub(crate) async fn run(self) -> Infallible {
        loop {
            let Ok(stream) = self.listener.accept().await else {
                self.rt.sleep(PAUSE).await;
                continue;
            };
            let said = match select(read_command(&stream), self.rt.sleep(PATIENCE)).await {
                Either::Left(said) => said,
                Either::Right(()) => continue,
            };
            let answer = match said {
                Ok(command) => self.state.obey(&self.rt, command).await,
                Err(error) => Err(error),
            };
            let text = match answer {
                Ok(state) => format!("ok {state}\n"),
                Err(error) => {
                    let line = varve_block::chain(error.as_ref()).replace('\n', "; ");
                    format!("error {line}\n")
                }
            };
            let mut buf = BufPool::new(0).take_bytes(text.len()).await;
            buf.copy_from_slice(text.as_bytes());
            // A client that has gone does not hear the answer; what it asked for was done.
            drop(select(stream.send(&[buf.freeze()]), self.rt.sleep(PATIENCE)).await);
        }
    }
}

enum Command {
    Status,
    Suspend,
    Resume(Key),
    Reencrypt(Order, Vec<Arc<Key>>),
    Progress,
    Halt,
}

impl State {
    async fn obey(&self, rt: &Rt, command: Command) -> anyhow::Result<String> {
        let state = match command {
            Command::Status => match self.suspended.borrow().is_some() {
                true => "suspended",
                false => "running",
            },
            Command::Suspend => self.suspend(rt).await?,
            Command::Resume(secret) => self.resume(rt, secret).await?,
            Command::Reencrypt(order, secrets) => self.reencrypt(rt, order, secrets).await?,
            Command::Progress => {
                return Ok(serde_json::to_string(&Job::report(self.job.borrow().as_ref()))?);
            }
            Command::Halt => {
                self.job.borrow().iter().for_each(|job| job.halt());
                "running"
            }
        };
        Ok(state.to_owned())
    }

    fn is_reencrypting(&self) -> bool {
        self.job.borrow().as_ref().is_some_and(|job| job.is_running())
    }

    async fn reencrypt(
        &self,
        rt: &Rt,
        order: Order,
        secrets: Vec<Arc<Key>>,
    ) -> anyhow::Result<&'static str> {
        let crypt = self.crypt()?;
        if self.suspended.borrow().is_some() {
            bail!("the volume is suspended");
        }
        if self.is_reencrypting() {
            bail!("a re-encryption is running already");
        }
        let job = Job::start(rt, crypt, order, secrets).await?;
        *self.job.borrow_mut() = Some(job);
        tracing::info!("the volume is being re-encrypted");
        Ok("running")
    }

    fn crypt(&self) -> anyhow::Result<&LiveCrypt> {
        self.crypt.as_ref().context("what is served is not encrypted by this server")
    }

    async fn suspend(&self, rt: &Rt) -> anyhow::Result<&'static str> {
        let crypt = self.crypt()?;
        if self.suspended.borrow().is_some() {
            bail!("the volume is suspended already");
        }
        if self.is_reencrypting() {
            bail!("a re-encryption is running, and it needs the keys: stop it first");
        }
        let quiet = self.export.quiesce().await;
        if !self.top.geometry().read_only {
            self.top.flush().await?;
        }
        let suspended = crypt.handle.suspend(rt).await?;
        *self.suspended.borrow_mut() = Some((suspended, quiet));
        tracing::info!("the volume is suspended, its key wiped");
        Ok("suspended")
    }

    async fn resume(&self, rt: &Rt, secret: Key) -> anyhow::Result<&'static str> {
        let crypt = self.crypt()?;
        let Some(suspended) = self.suspended.borrow().as_ref().map(|(s, _)| s.clone()) else {
            bail!("the volume is not suspended");
        };
        let volume = stack::unlock_again(rt, crypt, &Arc::new(secret)).await?;
        crypt.handle.resume(&suspended, volume)?;
        // Lets the requests go.
        drop(self.suspended.borrow_mut().take());
        tracing::info!("the volume is resumed");
        Ok("running")
    }
}

/// A command and, for a resume, its secret. No more is read than was announced and is lawful.
async fn read_command(stream: &Stream) -> anyhow::Result<Command> {
    let pool = BufPool::new(0);
    let mut buf = pool.take_bytes(LINE_MAX).await;
    let mut len = 0;
    // Byte by byte, so that what follows the line stays in the socket.
    while len == 0 || buf[len - 1] != b'\n' {
        if len == LINE_MAX {
            bail!("a command of more than {LINE_MAX} bytes");
        }
        buf = stream.recv_exact(buf, len..len + 1).await.context("half a command")?;
        len += 1;
    }
    let line = String::from_utf8_lossy(&buf[..len - 1]).into_owned();
    match line.split_once(' ').unwrap_or((&line, "")) {
        ("status", "") => Ok(Command::Status),
        ("suspend", "") => Ok(Command::Suspend),
        ("progress", "") => Ok(Command::Progress),
        ("halt", "") => Ok(Command::Halt),
        ("reencrypt", order) => {
            let order: Order = serde_json::from_str(order).context("an order without sense")?;
            let fits = |n: &u64| *n <= KEY_FILE_MAX;
            if order.secrets.len() > SECRETS_MAX || !order.secrets.iter().all(fits) {
                bail!("at most {SECRETS_MAX} secrets of {KEY_FILE_MAX} bytes");
            }
            let mut secrets = Vec::new();
            for &len in &order.secrets {
                secrets.push(Arc::new(read_secret(stream, usize::try_from(len)?).await?));
            }
            Ok(Command::Reencrypt(order, secrets))
        }
        ("resume", n) => {
            let Some(n) = n.parse().ok().filter(|n: &u64| *n <= KEY_FILE_MAX) else {
                bail!("resume takes the length of a secret, at most {KEY_FILE_MAX} bytes");
            };
            Ok(Command::Resume(read_secret(stream, usize::try_from(n)?).await?))
        }
        _ => bail!(
            "no such command: there are status, suspend, resume, reencrypt, progress and halt"
        ),
    }
}

async fn read_secret(stream: &Stream, len: usize) -> anyhow::Result<Key> {
    let mut key = Key::zeroed(len);
    let pool = BufPool::new(0);
    let mut done = 0;
    while done < len {
        let n = (len - done).min(4096);
        let buf: IoBuf = pool.take_bytes(n).await;
        let mut buf = stream.recv_exact(buf, 0..n).await.context("half a secret")?;
        key.bytes_mut()[done..done + n].copy_from_slice(&buf);
        buf[..].zeroize();
        done += n;
    }
    Ok(key)
}
