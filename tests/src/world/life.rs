//! One life of a stack: opened, compared, used, and ended by a cut or in order.

use super::client;
use super::{Ops, Violation};
use crate::fault::Plan;
use crate::model::{Model, SECTOR};
use crate::stack::{Disks, Dress, Failed, Running, Stack};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use varve_block::dev::sim::{self, Image, SimDisk};
use varve_block::dev::{Remote, RemoteHandle};
use varve_block::sync::{Either, MailSender, join_all, oneshot, select};
use varve_block::{BufPool, Dyn, Export, ExportOptions, ExportShared, LaneId, Rt};

pub(super) struct Start {
    pub(super) disks: (Image, Image),
    pub(super) model: Option<Model>,
    pub(super) plan: Plan,
    pub(super) ops: Ops,
    pub(super) first: bool,
    pub(super) may_cut: bool,
}

pub(super) struct End {
    pub(super) disks: (Image, Image),
    pub(super) model: Model,
    pub(super) requests: u64,
    pub(super) errors: u64,
    pub(super) cut: bool,
    /// What goes into the digest.
    pub(super) words: Vec<u64>,
}

/// What the clients of one life share, on all lanes.
pub(super) struct Life {
    pub(super) ops: Ops,
    pub(super) errors_allowed: bool,
    pub(super) settles: bool,
    pub(super) pool: BufPool,
    pub(super) begun: AtomicU64,
    pub(super) errors: AtomicU64,
    model: Mutex<Model>,
    violation: Mutex<Option<Violation>>,
    /// Rings at every request, and at a violation.
    bell: MailSender<()>,
}

impl Life {
    /// For one step: never across an await.
    pub(super) fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ring(&self) {
        // Full: somebody has rung already.
        let _ = self.bell.try_send(());
    }

    pub(super) fn blame(&self, what: Violation) {
        let mut violation = self.violation.lock().unwrap_or_else(PoisonError::into_inner);
        violation.get_or_insert(what);
        drop(violation);
        self.ring();
    }

    pub(super) fn violation(&self) -> Option<Violation> {
        self.violation.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn is_over(&self) -> bool {
        self.begun.load(SeqCst) >= self.ops.count || self.violation().is_some()
    }
}

fn text(failed: &Failed) -> String {
    varve_block::chain(&**failed)
}

/// As the plan says but for the faults: those wait until the stack has been opened and compared.
fn peaceful(plan: &sim::Plan) -> sim::Plan {
    sim::Plan { faults: Vec::new(), ..plan.clone() }
}

/// What a lane needs to be a way in.
#[derive(Clone)]
struct Door {
    way: RemoteHandle<Dyn>,
    dress: Dress,
    shared: Arc<ExportShared>,
}

impl Door {
    fn handle(&self, rt: &Rt) -> Export<Dyn> {
        let device = (self.dress)(rt, self.way.attach(rt));
        Export::new(rt.clone(), Arc::clone(&self.shared), device)
    }
}

pub(super) async fn live<S: Stack>(rt: Rt, stack: Rc<S>, start: Start) -> Result<End, Violation> {
    let (plan, chance) = (start.plan, rt.prng().fork());
    let calm = (peaceful(&plan.backing), peaceful(&plan.cache));
    let (b, c) = start.disks;
    let disks = Disks {
        backing: SimDisk::new(&rt, stack.backing(), b, calm.0.clone()),
        cache: SimDisk::new(&rt, stack.cache(), c, calm.1.clone()),
    };
    let failed =
        |doing: &'static str| move |e: Failed| Violation::Stack(format!("{doing}: {}", text(&e)));
    if start.first {
        stack.format(&rt, &disks).await.map_err(failed("formatting"))?;
    }
    let running = stack.open(&rt, &disks).await.map_err(failed("opening"))?;
    let options = ExportOptions { sabotage: plan.sabotage, read_only: false };
    let door = Door {
        way: Remote::new(running.device.clone()).handle(&rt, 64),
        dress: Arc::clone(&running.dress),
        shared: ExportShared::new(options),
    };
    let export = door.handle(&rt);
    let (bell, rung) = rt.mailbox(1);
    let life = Arc::new(Life {
        ops: start.ops,
        errors_allowed: plan.errors,
        settles: stack.settles(),
        pool: BufPool::new(64 << 20),
        begun: AtomicU64::new(0),
        errors: AtomicU64::new(0),
        model: Mutex::new(start.model.unwrap_or_else(|| Model::new(export.size()))),
        violation: Mutex::new(None),
        bell,
    });
    life.model().restarted();
    let unreadable = plan.backing.torn_units_unreadable || plan.cache.torn_units_unreadable;
    compare(&life, &export, unreadable).await?;
    disks.backing.set_plan(plan.backing);
    disks.cache.set_plan(plan.cache);
    let cut_at = start.may_cut.then(|| chance.below(life.ops.count * 4 / 3 + 1));
    let power = power(&rt, &life, rung, cut_at, Duration::from_nanos(chance.below(200_000)));
    let work = work(&rt, &life, &door, &export);
    let cut = matches!(select(power, work).await, Either::Left(()));
    if let Some(violation) = life.violation() {
        return Err(violation);
    }
    if !cut {
        disks.backing.set_plan(calm.0);
        disks.cache.set_plan(calm.1);
        end_in_order(&life, &export, running).await?;
    }
    let images = (disks.backing.cut(&chance), disks.cache.cut(&chance));
    let words = vec![disks.backing.digest(), disks.cache.digest(), rt.now().0];
    let model = std::mem::replace(&mut *life.model(), Model::new(0));
    let (requests, errors) = (life.begun.load(SeqCst), life.errors.load(SeqCst));
    Ok(End { disks: images, model, requests, errors, cut, words })
}

/// Reads everything and compares it with what a crash may have left.
async fn compare(life: &Life, export: &Export<Dyn>, unreadable: bool) -> Result<(), Violation> {
    let size = export.size();
    for at in (0..size).step_by(64 << 10) {
        let len = usize::try_from((64 << 10).min(size - at)).expect("small");
        let buf = life.pool.take_bytes(len).await;
        match export.read(at, buf).await {
            Ok(bytes) => {
                let compared = life.model().recovered(at, &bytes, life.settles);
                compared.map_err(Violation::Bytes)?;
            }
            Err(_) if unreadable => sector_by_sector(life, export, at, len).await?,
            Err(e) => {
                return Err(Violation::Error(format!("after the crash: {}", text(&e.into()))));
            }
        }
    }
    Ok(())
}

async fn sector_by_sector(
    life: &Life,
    export: &Export<Dyn>,
    at: u64,
    len: usize,
) -> Result<(), Violation> {
    for at in (at..at + len as u64).step_by(SECTOR) {
        let buf = life.pool.take_bytes(SECTOR).await;
        let compared = match export.read(at, buf).await {
            Ok(bytes) => life.model().recovered(at, &bytes, life.settles),
            Err(_) => life.model().unreadable(at / SECTOR as u64),
        };
        compared.map_err(Violation::Bytes)?;
    }
    Ok(())
}

/// Ends when the power goes, some time after the request `cut_at`, or when something was wrong. A
/// number of requests that is never reached is a life without a cut.
async fn power(
    rt: &Rt,
    life: &Life,
    mut rung: varve_block::sync::MailReceiver<()>,
    cut_at: Option<u64>,
    delay: Duration,
) {
    while life.violation().is_none() {
        if cut_at.is_some_and(|at| life.begun.load(SeqCst) >= at) {
            return rt.sleep(delay).await;
        }
        if rung.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// The clients, on all lanes, until they are through.
async fn work(rt: &Rt, life: &Arc<Life>, door: &Door, export: &Export<Dyn>) {
    let clients = (0..life.ops.clients).map(|n| {
        let (life, door, (done, end)) = (Arc::clone(life), door.clone(), oneshot());
        let lane = LaneId(n % rt.lanes());
        let ask = move |rt: Rt, export: Export<Dyn>| async move {
            client::client(&rt, &life, &export, n as u64).await;
            done.send(());
        };
        if lane == rt.lane() {
            // With the operator's own handle, so that a swap is felt.
            drop(rt.spawn(ask(rt.clone(), export.clone())));
        } else {
            rt.spawn_on(lane, move |rt| {
                let export = door.handle(&rt);
                ask(rt, export)
            });
        }
        end
    });
    let clients: Vec<_> = clients.collect();
    if life.ops.operator {
        drop(rt.spawn(operate(rt.clone(), Arc::clone(life), door.clone(), export.clone())));
    }
    for end in join_all(clients).await {
        end.expect("a client ends");
    }
}

/// Quiesces now and then, and puts another device (the same way to the same bytes) in place.
async fn operate(rt: Rt, life: Arc<Life>, door: Door, export: Export<Dyn>) {
    let micros = |max| Duration::from_micros(rt.prng().below(max));
    while !life.is_over() {
        rt.sleep(micros(300)).await;
        let quiet = door.shared.quiesce().await;
        if door.shared.in_flight() != 0 {
            life.blame(Violation::Error("a quiet export has requests in flight".into()));
        }
        rt.sleep(micros(50)).await;
        if door.shared.in_flight() != 0 {
            life.blame(Violation::Error("a request was admitted to a quiet export".into()));
        }
        let swapped = export.swap(&quiet, (door.dress)(&rt, door.way.attach(&rt)));
        if let Err(e) = swapped {
            life.blame(Violation::Error(e.to_string()));
        }
        quiet.resume();
    }
}

/// Everybody has been answered. What is read now is exactly what was written, and once the stack has
/// ended in order, no cut can take it away.
async fn end_in_order(
    life: &Life,
    export: &Export<Dyn>,
    running: Running,
) -> Result<(), Violation> {
    // A life without reads leaves everything to what is found after the cut.
    let size = if life.ops.reads { export.size() } else { 0 };
    for at in (0..size).step_by(128 << 10) {
        let len = usize::try_from((128 << 10).min(size - at)).expect("small");
        let buf = life.pool.take_bytes(len).await;
        let read = life.model().read(at, len);
        match export.read(at, buf).await {
            Ok(bytes) => life.model().seen(&read, &bytes).map_err(Violation::Bytes)?,
            Err(e) if life.errors_allowed => drop(e),
            Err(e) => return Err(Violation::Error(text(&e.into()))),
        }
    }
    let flush = life.model().flush();
    match (running.stop)().await {
        Ok(()) => life.model().flushed(&flush),
        Err(e) if life.errors_allowed => drop(e),
        Err(e) => return Err(Violation::Stack(format!("stopping: {}", text(&e)))),
    }
    Ok(())
}
