//! Exports that go away under a command.
//!
//! A disk that fails sectors is a finding. A disk that is gone is none: a check would call everything
//! damaged, an export of files would write what it can of each. So what only looks, or makes, ends at once.

use crate::place::Place;
use anyhow::bail;
use std::cell::RefCell;
use std::rc::Rc;
use varve_block::Rt;
use varve_block::sync::{Either, Notify, select};
use varve_nbd_server::NbdDevice;

/// What has gone, on this lane: devices are opened all over a command.
#[derive(Default)]
struct Gone {
    why: RefCell<Option<String>>,
    changed: Notify,
}

thread_local! {
    static GONE: Rc<Gone> = Rc::default();
}

/// Notes when the connection of `device` is lost.
pub(super) fn watch(rt: &Rt, place: &Place, device: &NbdDevice) {
    let (gone, lost, place) = (GONE.with(Rc::clone), device.lost(), place.to_string());
    drop(rt.spawn(async move {
        if let Some(why) = lost.await {
            gone.why.borrow_mut().get_or_insert(format!("{place}: {why}"));
            gone.changed.notify_all();
        }
    }));
}

/// Does `work`, as long as every export that it opens is there.
///
/// # Errors
/// Those of `work`, and that an export has gone.
pub(crate) async fn while_there<T>(
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let gone = GONE.with(Rc::clone);
    let lost = async {
        loop {
            if let Some(why) = &*gone.why.borrow() {
                break why.clone();
            }
            gone.changed.notified().await;
        }
    };
    match select(lost, work).await {
        Either::Left(why) => bail!(why),
        Either::Right(done) => done,
    }
}
