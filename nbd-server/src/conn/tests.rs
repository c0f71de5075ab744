//! Whole conversations in the seeded world: a client, the server's side of its connection, a
//! device. What they talk about stands in the files below.

mod device;
mod odd_input;
mod order;
mod random;
mod stop;

use super::*;
use crate::hall::{Exports, Look};
use crate::nbd::testing::*;
use crate::nbd::wire::{self, CommandFlags, info, option};
use std::sync::Arc;
use varve_block::dev::Mem;
use varve_block::sync::LocalSemaphore;
use varve_block::{
    BlockDevice, Data, DevId, Durability, Error, ErrorKind, ExportOptions, ExportShared, Extent,
    Op, Rt, Sector, Sectors, Sim, Zero,
};

const SIZE: u64 = 4 << 20;

/// A world that ends: connections have clocks, so one that hangs would tick for ever.
fn world(seed: u64) -> Sim {
    Sim::new(seed).max_steps(5_000_000)
}

/// The client's end of a connection; it cuts what it sends and takes by chance.
struct End {
    rt: Rt,
    stream: Stream,
    pool: BufPool,
}

impl End {
    /// All of `bytes`, or an error when the other end is gone.
    async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let most = if self.rt.prng().chance(1, 4) { 30 } else { bytes.len() };
            let n = 1 + self.rt.prng().index(most.min(bytes.len()).min(1 << 20));
            let mut buf = self.pool.take_bytes(n).await;
            buf.copy_from_slice(&bytes[..n]);
            self.stream.send(&[buf.freeze()]).await?;
            bytes = &bytes[n..];
        }
        Ok(())
    }

    /// Exactly `n` bytes, or what came before the end.
    async fn read(&self, n: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < n {
            let most = (n - all.len()).min(1 << 20);
            let buf = self.pool.take_bytes(1 + self.rt.prng().index(most)).await;
            let room = buf.len();
            let Ok((got, buf)) = self.stream.recv(buf, 0..room).await else { break };
            if got == 0 {
                break;
            }
            all.extend_from_slice(&buf[..got]);
        }
        all
    }

    /// Says that nothing more will be written.
    fn finish(&self) {
        self.stream.shutdown_send();
    }
}

/// A server of one connection, and the client's end of it.
struct Client {
    rt: Rt,
    end: End,
    hall: Rc<Hall>,
    conn: Rc<Conn>,
    task: varve_block::Task<()>,
    structured: bool,
}

fn hall(rt: &Rt, look: Look, mem: &Mem) -> Rc<Hall> {
    hall_of(rt, look, Dyn::new(mem.clone()))
}

fn hall_of(rt: &Rt, look: Look, device: Dyn) -> Rc<Hall> {
    let shared = ExportShared::new(ExportOptions::default());
    hall_with(rt, look, Export::new(rt.clone(), shared, device))
}

fn hall_with(rt: &Rt, look: Look, export: Export<Dyn>) -> Rc<Hall> {
    let stopping = Rc::new(Cell::new(false));
    let exports = Exports::new(vec![(look, export)], Rc::clone(&stopping));
    let (pool, budget) = (BufPool::new(1 << 30), LocalSemaphore::new(1 << 30));
    Rc::new(Hall::new(rt.clone(), exports, pool, budget, Arc::default(), stopping))
}

fn connect(hall: &Rc<Hall>, capacity: usize) -> Client {
    let (near, far) = Stream::pair(capacity);
    let end = End { rt: hall.rt.clone(), stream: near, pool: BufPool::new(64 << 20) };
    let conn = Conn::new(Rc::clone(hall), far);
    let task = hall.rt.spawn(Rc::clone(&conn).serve(()));
    Client { rt: hall.rt.clone(), end, hall: Rc::clone(hall), conn, task, structured: false }
}

impl Client {
    async fn negotiate(mut self, structured: bool) -> Client {
        assert_eq!(self.end.read(18).await.len(), 18);
        let mut bytes = vec![0, 0, 0, 3];
        if structured {
            bytes.extend(option(option::STRUCTURED_REPLY, &[]));
            bytes.extend(option(option::SET_META_CONTEXT, &meta_data("", &["base:allocation"])));
        }
        bytes.extend(option(option::GO, &go_data("", &[info::BLOCK_SIZE])));
        self.end.write(&bytes).await.unwrap();
        loop {
            let head = self.end.read(20).await;
            let data = u32::from_be_bytes(head[16..20].try_into().unwrap());
            self.end.read(data as usize).await;
            if head[8..16] == [0, 0, 0, 7, 0, 0, 0, 1] {
                self.structured = structured;
                return self;
            }
        }
    }

    async fn send(&self, flags: CommandFlags, kind: u16, cookie: u64, offset: u64, length: u32) {
        let raw = request(flags.bits(), kind, cookie, offset, length);
        self.end.write(&raw).await.unwrap();
    }

    async fn ask(&self, kind: u16, cookie: u64, offset: u64, length: u32) {
        self.send(CommandFlags::empty(), kind, cookie, offset, length).await;
    }

    async fn write(&self, cookie: u64, offset: u64, bytes: &[u8]) {
        self.ask(wire::command::WRITE, cookie, offset, u32::try_from(bytes.len()).unwrap()).await;
        self.end.write(bytes).await.unwrap();
    }

    /// One frame; `data` is the length that a successful simple reply carries.
    async fn frame(&self, data: usize) -> Frame {
        self.frame_of(|_| data).await
    }

    /// One frame, when it depends on the cookie.
    async fn frame_of(&self, data: impl Fn(u64) -> usize) -> Frame {
        let mut bytes = self.end.read(16).await;
        assert_eq!(bytes.len(), 16, "a reply came");
        if bytes.starts_with(&wire::SIMPLE_REPLY_MAGIC.to_be_bytes()) {
            let failed = bytes[4..8] != [0; 4];
            let cookie = u64::from_be_bytes(bytes[8..16].try_into().unwrap());
            bytes.extend(self.end.read(if failed { 0 } else { data(cookie) }).await);
        } else {
            bytes.extend(self.end.read(4).await);
            let length = u32::from_be_bytes(bytes[16..20].try_into().unwrap());
            bytes.extend(self.end.read(length as usize).await);
        }
        let mut rest = &bytes[..];
        let frame = frame(&mut rest, data);
        assert!(rest.is_empty());
        frame
    }

    /// The errno of the next reply, which must be for this cookie; 0 for success.
    async fn errno(&self, cookie: u64) -> u32 {
        match self.frame(0).await {
            Frame::Simple { error, cookie: of, .. } if of == cookie => error,
            Frame::Error { error, cookie: of, .. } if of == cookie => error,
            Frame::None { cookie: of } if of == cookie => 0,
            other => panic!("not a plain answer to {cookie}: {other:?}"),
        }
    }

    /// A successful read, whatever its style and chunks; the chunks must tile it.
    async fn read(&self, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
        self.ask(wire::command::READ, cookie, offset, length).await;
        self.content(cookie, offset, length).await
    }

    async fn content(&self, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
        let mut seen = vec![None; length as usize];
        loop {
            let (at, bytes, done) = match self.frame(length as usize).await {
                Frame::Simple { error: 0, data, cookie: of } if !self.structured => {
                    assert_eq!(of, cookie);
                    return data;
                }
                Frame::Data { cookie: of, offset, data, done } if of == cookie => {
                    (offset, data, done)
                }
                Frame::Hole { cookie: of, offset, length, done } if of == cookie => {
                    (offset, vec![0; length as usize], done)
                }
                Frame::None { cookie: of } if of == cookie => (offset, Vec::new(), true),
                other => panic!("not content for {cookie}: {other:?}"),
            };
            let from = usize::try_from(at - offset).unwrap();
            for (byte, slot) in bytes.iter().zip(&mut seen[from..]) {
                assert!(slot.replace(*byte).is_none(), "chunks overlap");
            }
            assert!(from + bytes.len() <= seen.len(), "chunks stay inside");
            if done {
                return seen.into_iter().map(|b| b.expect("chunks tile the request")).collect();
            }
        }
    }

    /// The stream ends here, and the server's task too; nothing is left in flight.
    async fn ends(self) {
        assert_eq!(self.end.read(1).await, []);
        self.task.await;
        assert_eq!(self.conn.in_flight.requests(), 0);
        assert_eq!(self.hall.budget.available(), 1 << 30);
        drop(self.conn);
        assert_eq!(self.hall.pool.lent(), 0);
    }

    async fn bye(self) {
        self.ask(wire::command::DISC, 0, 0, 0).await;
        self.ends().await;
    }
}

/// A few worlds of one client each, in both styles, on a device made from patterned memory.
fn talk_to<D: BlockDevice, F: Future<Output = ()> + 'static>(
    device: impl Fn(&Rt, Mem) -> D + Copy + 'static,
    f: impl Fn(Client, Rc<D>) -> F + Copy + 'static,
) {
    for seed in 0..6 {
        world(seed).run(move |rt| async move {
            let mem = Mem::new(Sectors::exact(SIZE).unwrap());
            mem.poke(0, &pattern(0, u32::try_from(SIZE).unwrap()));
            let device = Rc::new(device(&rt, mem));
            let hall = hall_of(&rt, Look::new("disk"), Dyn::new(Rc::clone(&device)));
            let client = connect(&hall, 300_000);
            f(client.negotiate(seed.is_multiple_of(2)).await, device).await;
        });
    }
}

/// A few worlds of one client each, in both styles.
fn talk<F: Future<Output = ()> + 'static>(f: impl Fn(Client, Mem) -> F + Copy + 'static) {
    talk_to(|_, mem| mem, move |client, mem| f(client, (*mem).clone()));
}

fn pattern(offset: u64, length: u32) -> Vec<u8> {
    (offset..offset + u64::from(length)).map(|n| (n % 251).to_le_bytes()[0]).collect()
}

/// Memory with habits: sectors that cannot be read, writes that take their time.
struct Odd {
    mem: Mem,
    bad: Extent,
    slow: Option<(Rt, Duration)>,
    flushes: Cell<u32>,
    flushed_last: Cell<bool>,
    looks: Cell<u32>,
}

impl Odd {
    fn new(mem: Mem) -> Odd {
        let (flushes, flushed_last) = (Cell::new(0), Cell::new(false));
        Odd { mem, bad: Extent::default(), slow: None, flushes, flushed_last, looks: Cell::new(0) }
    }

    fn bad(self, bad: Extent) -> Odd {
        Odd { bad, ..self }
    }

    fn slow(self, rt: &Rt, by: Duration) -> Odd {
        Odd { slow: Some((rt.clone(), by)), ..self }
    }
}

impl BlockDevice for Odd {
    fn geometry(&self) -> varve_block::Geometry {
        self.mem.geometry()
    }

    async fn read(&self, at: Sector, buf: IoBuf) -> varve_block::Result<IoBuf> {
        let range = Extent::new(at, buf.sectors());
        if range.overlaps(self.bad) {
            return Err(Error::new(ErrorKind::Io, Op::Read, self.bad, &DevId::new("disk7")));
        }
        self.mem.read(at, buf).await
    }

    async fn write(&self, at: Sector, data: Data, how: Durability) -> varve_block::Result<Data> {
        if let Some((rt, by)) = &self.slow {
            rt.sleep(*by).await;
        }
        self.flushed_last.set(false);
        self.mem.write(at, data, how).await
    }

    async fn flush(&self) -> varve_block::Result<()> {
        self.flushes.set(self.flushes.get() + 1);
        self.flushed_last.set(true);
        Ok(())
    }

    async fn extents(
        &self,
        range: Extent,
        limit: usize,
    ) -> varve_block::Result<Vec<varve_block::ExtentStatus>> {
        self.looks.set(self.looks.get() + 1);
        self.mem.extents(range, limit).await
    }

    async fn discard(&self, range: Extent) -> varve_block::Result<()> {
        self.mem.discard(range).await
    }

    async fn write_zeroes(&self, range: Extent, how: Zero) -> varve_block::Result<()> {
        self.mem.write_zeroes(range, how).await
    }
}
