//! One life of a stack: opened, compared, used, and ended by a cut or in order.

use super::client;
use super::{Ops, Violation};
use crate::fault::Plan;
use crate::model::{Model, SECTOR};
use crate::stack::{Disks, Failed, Running, Stack};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use varve_block::dev::sim::{self, Image, SimDisk};
use varve_block::sync::{Either, Notify, join_all, select};
use varve_block::{BufPool, Dyn, Export, ExportOptions, ExportShared, Prng, Rt};

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

/// What the clients of one life share.
pub(super) struct Life {
    pub(super) rt: Rt,
    pub(super) ops: Ops,
    pub(super) errors_allowed: bool,
    pub(super) model: RefCell<Model>,
    pub(super) pool: BufPool,
    pub(super) begun: Cell<u64>,
    pub(super) errors: Cell<u64>,
    pub(super) violation: RefCell<Option<Violation>>,
    /// Rings at every request, and at a violation.
    pub(super) bell: Notify,
}

impl Life {
    pub(super) fn blame(&self, what: Violation) {
        self.violation.borrow_mut().get_or_insert(what);
        self.bell.notify_all();
    }

    pub(super) fn is_over(&self) -> bool {
        self.begun.get() >= self.ops.count || self.violation.borrow().is_some()
    }
}

fn text(failed: &Failed) -> String {
    varve_block::chain(&**failed)
}

/// As the plan says but for the faults: those wait until the stack has been opened and compared.
fn peaceful(plan: &sim::Plan) -> sim::Plan {
    sim::Plan { faults: Vec::new(), ..plan.clone() }
}

pub(super) async fn live<S: Stack>(rt: Rt, stack: Rc<S>, start: Start) -> Result<End, Violation> {
    let (plan, chance) = (start.plan, rt.prng().fork());
    let calm = (peaceful(&plan.backing), peaceful(&plan.cache));
    let (b, c) = start.disks;
    let disks = Disks {
        backing: SimDisk::new(&rt, stack.backing(), b, calm.0.clone()),
        cache: SimDisk::new(&rt, stack.cache(), c, calm.1.clone()),
    };
    let failed = |e: Failed| Violation::Stack(text(&e));
    if start.first {
        stack.format(&rt, &disks).await.map_err(failed)?;
    }
    let running = stack.open(&rt, &disks).await.map_err(failed)?;
    let shared = ExportShared::new(ExportOptions { sabotage: plan.sabotage, read_only: false });
    let handle = || {
        let device = running.device.clone();
        Export::new(rt.clone(), Arc::clone(&shared), device)
    };
    let handles = [handle(), handle()];
    let model = start.model.unwrap_or_else(|| Model::new(handles[0].size()));
    let life = Rc::new(Life {
        rt: rt.clone(),
        ops: start.ops,
        errors_allowed: plan.errors,
        model: RefCell::new(model),
        pool: BufPool::new(64 << 20),
        begun: Cell::new(0),
        errors: Cell::new(0),
        violation: RefCell::new(None),
        bell: Notify::new(),
    });
    let unreadable = plan.backing.torn_units_unreadable || plan.cache.torn_units_unreadable;
    compare(&life, &handles[0], unreadable).await?;
    disks.backing.set_plan(plan.backing);
    disks.cache.set_plan(plan.cache);
    let cut = work(&life, &handles, start.may_cut, &chance).await;
    if let Some(violation) = life.violation.borrow().clone() {
        return Err(violation);
    }
    if !cut {
        disks.backing.set_plan(calm.0);
        disks.cache.set_plan(calm.1);
        end_in_order(&life, &handles, running).await?;
    }
    let images = (disks.backing.cut(&chance), disks.cache.cut(&chance));
    let words = vec![disks.backing.digest(), disks.cache.digest(), rt.now().0];
    Ok(End {
        disks: images,
        model: life.model.replace(Model::new(0)),
        requests: life.begun.get(),
        errors: life.errors.get(),
        cut,
        words,
    })
}

/// Reads everything and compares it with what a crash may have left.
async fn compare(life: &Life, export: &Export<Dyn>, unreadable: bool) -> Result<(), Violation> {
    let size = export.size();
    let piece = |at: u64| (64 << 10).min(size - at);
    let mut at = 0;
    while at < size {
        let len = usize::try_from(piece(at)).expect("small");
        let buf = life.pool.take_bytes(len).await;
        match export.read(at, buf).await {
            Ok(bytes) => {
                let compared = life.model.borrow_mut().recovered(at, &bytes);
                compared.map_err(Violation::Bytes)?;
            }
            Err(e) if !unreadable => {
                return Err(Violation::Error(format!("after the crash: {}", text(&e.into()))));
            }
            Err(_) => sector_by_sector(life, export, at, len).await?,
        }
        at += len as u64;
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
            Ok(bytes) => life.model.borrow_mut().recovered(at, &bytes),
            Err(_) => life.model.borrow_mut().unreadable(at / SECTOR as u64),
        };
        compared.map_err(Violation::Bytes)?;
    }
    Ok(())
}

/// The clients work until they are through, or until the power goes: then `true`.
async fn work(life: &Rc<Life>, handles: &[Export<Dyn>], may_cut: bool, chance: &Prng) -> bool {
    let clients: Vec<_> = (0..life.ops.clients)
        .map(|n| {
            let export = handles[n % handles.len()].clone();
            life.rt.spawn(client::client(Rc::clone(life), export))
        })
        .collect();
    // Three lives in four end early, at a request and some time after it.
    let cut_at = chance.below(life.ops.count + 1);
    let cuts = may_cut && chance.chance(3, 4);
    let delay = Duration::from_nanos(chance.below(200_000));
    let power = async {
        while !cuts || life.begun.get() < cut_at {
            if life.violation.borrow().is_some() {
                return;
            }
            life.bell.notified().await;
        }
        life.rt.sleep(delay).await;
    };
    matches!(select(power, join_all(clients)).await, Either::Left(()))
}

/// Everybody has been answered. What is read now is exactly what was written, and once the stack has
/// ended in order, no cut can take it away.
async fn end_in_order(
    life: &Life,
    handles: &[Export<Dyn>],
    running: Running,
) -> Result<(), Violation> {
    let (size, shared) = (handles[0].size(), handles[0].shared());
    // A life without reads leaves everything to what is found after the cut.
    let read_to = if life.ops.reads { size } else { 0 };
    for at in (0..read_to).step_by(128 << 10) {
        let len = usize::try_from((128 << 10).min(size - at)).expect("small");
        let buf = life.pool.take_bytes(len).await;
        let read = life.model.borrow().read(at, len);
        match handles[0].read(at, buf).await {
            Ok(bytes) => life.model.borrow().seen(&read, &bytes).map_err(Violation::Bytes)?,
            Err(e) if life.errors_allowed => drop(e),
            Err(e) => return Err(Violation::Error(text(&e.into()))),
        }
    }
    if shared.in_flight() != 0 {
        return Err(Violation::Error(format!("{} requests never ended", shared.in_flight())));
    }
    let flush = life.model.borrow_mut().flush();
    match (running.stop)().await {
        Ok(()) => life.model.borrow_mut().flushed(&flush),
        Err(e) if life.errors_allowed => drop(e),
        Err(e) => return Err(Violation::Stack(text(&e))),
    }
    Ok(())
}
