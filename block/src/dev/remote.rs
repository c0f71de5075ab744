//! The hop to the lane that owns a device's state: a hop is a device, too.
//!
//! A [`Remote`] on the owner's lane is a plain call. A [`RemoteHandle`] is `Send`; attached on
//! another lane it makes a `Remote` that sends each request to the owner and waits for the answer.
//! Buffers travel with the request, as they always do, so nothing is copied.
//!
//! ```text
//!   lane 1: Remote -- mailbox (bounded) --> lane 0: serve -- at most `bound` at a time --> D
//!              ^----------- oneshot ----------------------------------------------'
//! ```
//!
//! # Order
//!
//! Requests of one sender start in the order they were sent. As everywhere, two in flight that
//! overlap have no order.
//!
//! # Cancellation
//!
//! A request that has been sent runs to its end, whether somebody waits for it or not. When the last
//! handle and the last remote away from the owner are gone, the owner stops serving.

use crate::buf::{Data, IoBuf};
use crate::device::{BlockDevice, Durability, ExtentStatus, Geometry, Zero};
use crate::error::{Error, ErrorKind, Op, Result};
use crate::rt::{LaneId, Rt};
use crate::sync::{LocalSemaphore, MailReceiver, MailSender, OneSender, oneshot};
use crate::units::{Extent, Sector};
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;

/// A device that may live on another lane.
pub struct Remote<D>(Place<D>);

enum Place<D> {
    Here(Rc<D>),
    There(Caller),
}

/// The way to a device from any lane. Clones lead to the same device.
pub struct RemoteHandle<D> {
    owner: LaneId,
    /// The device's place among the things that the owner's lane shares.
    share: u64,
    caller: Caller,
    device: PhantomData<fn() -> D>,
}

#[derive(Clone)]
struct Caller {
    requests: MailSender<Request>,
    /// As it was when the handle was made.
    geometry: Arc<Geometry>,
}

/// A request on its way, with the way back.
enum Request {
    Read(Sector, IoBuf, OneSender<Result<IoBuf>>),
    Write(Sector, Data, Durability, OneSender<Result<Data>>),
    Flush(OneSender<Result<()>>),
    Discard(Extent, OneSender<Result<()>>),
    WriteZeroes(Extent, Zero, OneSender<Result<()>>),
    Extents(Extent, usize, OneSender<Result<Vec<ExtentStatus>>>),
    Prefetch(Extent, OneSender<Result<()>>),
}

impl<D: BlockDevice> Remote<D> {
    /// On the lane that owns `device`.
    pub fn new(device: D) -> Remote<D> {
        Remote(Place::Here(Rc::new(device)))
    }

    /// A way here for other lanes, which together may have `bound` requests in flight and as many
    /// waiting; the rest wait where they are.
    ///
    /// # Panics
    /// Away from the owner's lane, `rt` being another's: clone the handle there.
    pub fn handle(&self, rt: &Rt, bound: usize) -> RemoteHandle<D> {
        let Place::Here(device) = &self.0 else {
            panic!("a handle is made on the lane that owns the device");
        };
        let (tx, rx) = rt.mailbox(bound);
        let share = rt.share(Rc::clone(device));
        drop(rt.spawn(serve(rt.clone(), Rc::clone(device), rx, bound, share)));
        RemoteHandle {
            owner: rt.lane(),
            share,
            caller: Caller { requests: tx, geometry: Arc::new(device.geometry()) },
            device: PhantomData,
        }
    }
}

impl<D: BlockDevice> RemoteHandle<D> {
    /// The device as seen from `rt`'s lane.
    pub fn attach(&self, rt: &Rt) -> Remote<D> {
        if rt.lane() == self.owner
            && let Some(device) = rt.shared(self.share)
        {
            return Remote(Place::Here(device));
        }
        Remote(Place::There(self.caller.clone()))
    }
}

impl<D> Clone for RemoteHandle<D> {
    fn clone(&self) -> Self {
        RemoteHandle { caller: self.caller.clone(), device: PhantomData, ..*self }
    }
}

impl<D> Clone for Remote<D> {
    fn clone(&self) -> Self {
        Remote(match &self.0 {
            Place::Here(device) => Place::Here(Rc::clone(device)),
            Place::There(caller) => Place::There(caller.clone()),
        })
    }
}

/// The owner's side: until nobody can ask any more.
async fn serve<D: BlockDevice>(
    rt: Rt,
    device: Rc<D>,
    mut requests: MailReceiver<Request>,
    bound: usize,
    share: u64,
) {
    let places = LocalSemaphore::new(bound.max(1));
    while let Some(request) = requests.recv().await {
        let place = places.acquire(1).await;
        let device = Rc::clone(&device);
        drop(rt.spawn(async move {
            request.run(&*device).await;
            drop(place);
        }));
    }
    rt.unshare(share);
}

impl Request {
    async fn run(self, device: &impl BlockDevice) {
        match self {
            Request::Read(at, buf, answer) => answer.send(device.read(at, buf).await),
            Request::Write(at, data, how, answer) => {
                answer.send(device.write(at, data, how).await);
            }
            Request::Flush(answer) => answer.send(device.flush().await),
            Request::Discard(range, answer) => answer.send(device.discard(range).await),
            Request::WriteZeroes(range, how, answer) => {
                answer.send(device.write_zeroes(range, how).await);
            }
            Request::Extents(range, limit, answer) => {
                answer.send(device.extents(range, limit).await);
            }
            Request::Prefetch(range, answer) => answer.send(device.prefetch(range).await),
        }
    }
}

impl Caller {
    async fn ask<T: Send>(
        &self,
        op: Op,
        at: Extent,
        request: impl FnOnce(OneSender<Result<T>>) -> Request,
    ) -> Result<T> {
        let (tx, rx) = oneshot();
        // The request that comes back when the owner is gone holds `tx`, and dropping it closes `rx`.
        drop(self.requests.send(request(tx)).await);
        let gone = || Error::new(ErrorKind::Stopped, op, at, &self.geometry.dev);
        rx.await.unwrap_or_else(|_| Err(gone().with("the lane that owns the device has ended")))
    }
}

impl<D: BlockDevice> BlockDevice for Remote<D> {
    fn geometry(&self) -> Geometry {
        match &self.0 {
            Place::Here(device) => device.geometry(),
            Place::There(caller) => Geometry::clone(&caller.geometry),
        }
    }

    async fn read(&self, at: Sector, buf: IoBuf) -> Result<IoBuf> {
        match &self.0 {
            Place::Here(device) => device.read(at, buf).await,
            Place::There(caller) => {
                let range = Extent::new(at, buf.sectors());
                caller.ask(Op::Read, range, |tx| Request::Read(at, buf, tx)).await
            }
        }
    }

    async fn write(&self, at: Sector, data: Data, how: Durability) -> Result<Data> {
        match &self.0 {
            Place::Here(device) => device.write(at, data, how).await,
            Place::There(caller) => {
                let range = Extent::new(at, data.sectors());
                caller.ask(Op::Write, range, |tx| Request::Write(at, data, how, tx)).await
            }
        }
    }

    async fn flush(&self) -> Result<()> {
        match &self.0 {
            Place::Here(device) => device.flush().await,
            Place::There(caller) => {
                let all = Extent::new(Sector::ZERO, caller.geometry.len);
                caller.ask(Op::Flush, all, Request::Flush).await
            }
        }
    }

    async fn discard(&self, range: Extent) -> Result<()> {
        match &self.0 {
            Place::Here(device) => device.discard(range).await,
            Place::There(caller) => {
                caller.ask(Op::Discard, range, |tx| Request::Discard(range, tx)).await
            }
        }
    }

    async fn write_zeroes(&self, range: Extent, how: Zero) -> Result<()> {
        match &self.0 {
            Place::Here(device) => device.write_zeroes(range, how).await,
            Place::There(caller) => {
                let request = |tx| Request::WriteZeroes(range, how, tx);
                caller.ask(Op::WriteZeroes, range, request).await
            }
        }
    }

    async fn extents(&self, range: Extent, limit: usize) -> Result<Vec<ExtentStatus>> {
        match &self.0 {
            Place::Here(device) => device.extents(range, limit).await,
            Place::There(caller) => {
                let request = |tx| Request::Extents(range, limit, tx);
                caller.ask(Op::Extents, range, request).await
            }
        }
    }

    async fn prefetch(&self, range: Extent) -> Result<()> {
        match &self.0 {
            Place::Here(device) => device.prefetch(range).await,
            Place::There(caller) => {
                caller.ask(Op::Prefetch, range, |tx| Request::Prefetch(range, tx)).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::BufPool;
    use crate::dev::{FileDevice, FileOptions, Mem};
    use crate::rt::{Config, Sim, run};
    use crate::sync::{join_all, poll_once};
    use crate::units::Sectors;
    use std::cell::Cell;
    use std::time::Duration;

    /// Each lane writes its own stripe through the hop and reads it back.
    async fn stripes(rt: Rt) {
        let mem = Mem::new(Sectors(1024));
        let remote = Remote::new(mem.clone());
        let handle = remote.handle(&rt, 4);
        let (done, mut finished) = rt.mailbox::<usize>(8);
        for lane in 0..rt.lanes() {
            let (handle, done) = (handle.clone(), done.clone());
            rt.spawn_on(LaneId(lane), move |rt| async move {
                let device = handle.attach(&rt);
                let pool = BufPool::new(0);
                for n in 0..64u8 {
                    let at = Sector(u64::from(n) * 16 + lane as u64 * 4);
                    let mut buf = pool.take(Sectors(4)).await;
                    buf.fill(n);
                    device.write(at, buf.into(), Durability::Cached).await.unwrap();
                    let back = device.read(at, pool.take(Sectors(4)).await).await.unwrap();
                    assert!(back.iter().all(|&b| b == n));
                }
                device.flush().await.unwrap();
                device.prefetch(Extent::new(Sector(0), Sectors(4))).await.unwrap();
                done.send(lane).await.unwrap();
            });
        }
        for _ in 0..rt.lanes() {
            finished.recv().await.unwrap();
        }
        for (n, stripe) in (0u8..64).zip(mem.to_vec().chunks(16 * 512)) {
            assert!(stripe[..rt.lanes() * 4 * 512].iter().all(|&b| b == n));
        }
        let all = Extent::new(Sector(0), Sectors(1024));
        remote.write_zeroes(all, Zero::default()).await.unwrap();
        assert!(handle.attach(&rt).extents(all, 1).await.unwrap()[0].zero);
    }

    #[test]
    fn every_lane_reaches_the_device() {
        for seed in 0..20 {
            Sim::new(seed).lanes(3).run(stripes);
        }
        run(Config { lanes: 3, ..Config::default() }, stripes).unwrap();
    }

    #[test]
    fn on_the_owners_lane_it_is_a_plain_call() {
        Sim::new(1).lanes(2).run(|rt| async move {
            let handle = Remote::new(Mem::new(Sectors(8))).handle(&rt, 1);
            let pool = BufPool::new(0);
            let here = handle.attach(&rt);
            let read = here.read(Sector(0), pool.take(Sectors(8)).await);
            assert!(poll_once(Box::pin(read).as_mut()).is_ready(), "nothing to wait for");
        });
    }

    /// Knows how many requests are in it.
    #[derive(Clone)]
    struct Busy {
        rt: Rt,
        now: Rc<Cell<usize>>,
        most: Rc<Cell<usize>>,
        done: Rc<Cell<usize>>,
    }

    impl BlockDevice for Busy {
        fn geometry(&self) -> Geometry {
            Mem::new(Sectors(8)).geometry()
        }
        async fn read(&self, _: Sector, buf: IoBuf) -> Result<IoBuf> {
            Ok(buf)
        }
        async fn write(&self, _: Sector, data: Data, _: Durability) -> Result<Data> {
            Ok(data)
        }
        async fn flush(&self) -> Result<()> {
            self.now.set(self.now.get() + 1);
            self.most.set(self.most.get().max(self.now.get()));
            self.rt.sleep(Duration::from_micros(3)).await;
            self.now.set(self.now.get() - 1);
            self.done.set(self.done.get() + 1);
            Ok(())
        }
        async fn discard(&self, _: Extent) -> Result<()> {
            Ok(())
        }
        async fn write_zeroes(&self, _: Extent, _: Zero) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn requests_in_flight_are_bounded_and_a_dropped_one_still_ends() {
        Sim::new(5).lanes(2).run(|rt| async move {
            let busy = Busy {
                rt: rt.clone(),
                now: Rc::default(),
                most: Rc::default(),
                done: Rc::default(),
            };
            let handle = Remote::new(busy.clone()).handle(&rt, 3);
            let (tx, mut rx) = rt.mailbox::<()>(1);
            rt.spawn_on(LaneId(1), move |rt| async move {
                let device = handle.attach(&rt);
                let forgotten = poll_once(Box::pin(device.flush()).as_mut());
                assert!(forgotten.is_pending());
                let all = (0..20).map(|_| device.flush());
                assert!(join_all(all).await.iter().all(Result::is_ok));
                tx.send(()).await.unwrap();
            });
            rx.recv().await.unwrap();
            assert_eq!((busy.most.get(), busy.done.get()), (3, 21));
        });
    }

    #[test]
    fn when_the_owner_has_ended_requests_are_answered() {
        Sim::new(2).lanes(2).run(|rt| async move {
            let (requests, owner) = rt.mailbox(1);
            let geometry = Arc::new(Mem::new(Sectors(8)).geometry());
            let orphan = Remote::<Mem>(Place::There(Caller { requests, geometry }));
            let mut asked = Box::pin(orphan.flush());
            assert!(poll_once(asked.as_mut()).is_pending(), "sent, not answered");
            drop(owner);
            assert_eq!(asked.await.unwrap_err().kind, ErrorKind::Stopped);
            assert_eq!(orphan.flush().await.unwrap_err().kind, ErrorKind::Stopped);
        });
    }

    #[test]
    fn a_run_that_ends_lets_go_of_a_shared_device() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        for _ in 0..2 {
            let path = file.path().to_path_buf();
            run(Config { lanes: 2, ..Config::default() }, |rt| async move {
                let options = FileOptions { lock_wait: Duration::ZERO, ..FileOptions::default() };
                let device = FileDevice::open(&rt, path, options).await.unwrap();
                let handle = Remote::new(device).handle(&rt, 4);
                let there = handle.clone();
                rt.spawn_on(LaneId(1), move |rt| async move {
                    let remote = there.attach(&rt);
                    remote.flush().await.unwrap();
                    std::future::pending::<()>().await;
                });
                handle.attach(&rt).flush().await.unwrap();
                rt.sleep(Duration::from_millis(5)).await;
            })
            .unwrap();
        }
    }
}
