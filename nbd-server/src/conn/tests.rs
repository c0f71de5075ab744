//! Whole conversations in the seeded world: the rows of the catalogue of odd input that need a
//! device or a clock, what ends a connection, and random clients against a model.

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
    let export = Export::new(rt.clone(), shared, device);
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
        Sim::new(seed).run(move |rt| async move {
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
}

impl Odd {
    fn new(mem: Mem) -> Odd {
        let (flushes, flushed_last) = (Cell::new(0), Cell::new(false));
        Odd { mem, bad: Extent::default(), slow: None, flushes, flushed_last }
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

    async fn discard(&self, range: Extent) -> varve_block::Result<()> {
        self.mem.discard(range).await
    }

    async fn write_zeroes(&self, range: Extent, how: Zero) -> varve_block::Result<()> {
        self.mem.write_zeroes(range, how).await
    }
}

// ---- Rows of section 8 that need a device. ----

#[test]
fn read_at_offset_1_length_3_returns_those_three_bytes() {
    talk(|client, _| async move {
        assert_eq!(client.read(1, 1, 3).await, [1, 2, 3]);
        client.bye().await;
    });
}

#[test]
fn write_at_offset_1_length_3_changes_those_three_bytes() {
    talk(|client, mem| async move {
        client.write(1, 1, b"xyz").await;
        assert_eq!(client.errno(1).await, 0);
        let mut bytes = [0; 6];
        mem.peek(0, &mut bytes);
        assert_eq!(bytes, [0, b'x', b'y', b'z', 4, 5]);
        client.bye().await;
    });
}

#[test]
fn zero_length_requests_succeed_and_change_nothing() {
    talk(|client, mem| async move {
        for (cookie, kind) in [(1, 0), (2, 1), (3, 4), (4, 5), (5, 6)] {
            client.ask(kind, cookie, SIZE, 0).await;
            assert_eq!(client.errno(cookie).await, 0, "{kind}");
        }
        assert!(mem.to_vec() == pattern(0, u32::try_from(SIZE).unwrap()));
        client.bye().await;
    });
}

#[test]
fn a_structured_read_of_nothing_is_a_lone_none_chunk() {
    talk(|client, _| async move {
        client.ask(wire::command::READ, 9, 0, 0).await;
        let want = match client.structured {
            true => Frame::None { cookie: 9 },
            false => Frame::Simple { error: 0, cookie: 9, data: Vec::new() },
        };
        assert_eq!(client.frame(0).await, want);
        client.bye().await;
    });
}

#[test]
fn refused_requests_are_answered_in_the_negotiated_style() {
    talk(|client, _| async move {
        client.ask(wire::command::READ, 7, SIZE, 512).await;
        match client.frame(512).await {
            Frame::Simple { error: 22, cookie: 7, .. } => assert!(!client.structured),
            Frame::Error { error: 22, cookie: 7, text } => {
                assert!(client.structured && text.contains("end of the export"), "{text}");
            }
            other => panic!("{other:?}"),
        }
        client.write(8, SIZE - 1, &[7; 5000]).await;
        assert_eq!(client.errno(8).await, 28);
        client.ask(wire::command::BLOCK_STATUS, 9, 0, 0).await;
        assert_eq!(client.errno(9).await, 22);
        client.bye().await;
    });
}

#[test]
fn disc_sent_right_behind_a_read_comes_after_its_answer() {
    talk(|client, _| async move {
        client.ask(wire::command::READ, 1, 4096, 100_000).await;
        client.ask(wire::command::DISC, 2, 0, 0).await;
        assert!(client.content(1, 4096, 100_000).await == pattern(4096, 100_000));
        client.ends().await;
    });
}

#[test]
fn the_end_of_the_stream_behind_requests_is_as_good_as_disc() {
    talk(|client, mem| async move {
        client.write(1, 0, &[9; 3000]).await;
        client.ask(wire::command::READ, 2, 4096, 512).await;
        client.end.finish();
        let mut answers = Vec::new();
        while answers.len() < 2 {
            let frame = client.frame_of(|cookie| if cookie == 2 { 512 } else { 0 }).await;
            answers.push(match frame {
                Frame::Simple { error: 0, cookie, .. } | Frame::Data { cookie, done: true, .. } => {
                    cookie
                }
                other => panic!("{other:?}"),
            });
        }
        answers.sort_unstable();
        assert_eq!(answers, [1, 2]);
        client.ends().await;
        let mut bytes = [0; 3000];
        mem.peek(0, &mut bytes);
        assert_eq!(bytes, [9; 3000]);
    });
}

#[test]
fn the_same_cookie_twice_in_flight_is_answered_twice() {
    talk(|client, _| async move {
        client.ask(wire::command::FLUSH, 5, 0, 0).await;
        client.ask(wire::command::FLUSH, 5, 0, 0).await;
        assert_eq!(client.errno(5).await, 0);
        assert_eq!(client.errno(5).await, 0);
        client.bye().await;
    });
}

#[test]
fn bad_magic_closes_after_what_was_begun_is_answered() {
    talk(|client, _| async move {
        client.ask(wire::command::READ, 1, 0, 512).await;
        client.end.write(&[0xab; 28]).await.unwrap();
        assert_eq!(client.content(1, 0, 512).await, pattern(0, 512));
        assert_eq!(client.hall.stats.streams_broken.get(), 1);
        client.ends().await;
    });
}

#[test]
fn payload_cut_by_the_end_of_the_stream_writes_nothing() {
    for cut in [0_usize, 1, 4095, 150_000] {
        talk(move |client, mem| async move {
            let length = 4096.max(u32::try_from(cut).unwrap() + 1);
            client.ask(wire::command::WRITE, 1, 0, length).await;
            client.end.write(&vec![7; cut]).await.unwrap();
            client.end.finish();
            client.ends().await;
            assert!(mem.to_vec() == pattern(0, u32::try_from(SIZE).unwrap()));
        });
    }
}

#[test]
fn half_a_header_then_silence_closes_after_sixty_seconds() {
    talk(|client, _| async move {
        let start = client.rt.now();
        client.end.write(&request(0, 0, 1, 0, 512)[..11]).await.unwrap();
        assert_eq!(client.end.read(1).await, []);
        let waited = client.rt.now() - start;
        assert!(waited >= STALL_TIMEOUT && waited <= STALL_TIMEOUT + STALL_TICK, "{waited:?}");
        assert_eq!(client.hall.stats.stalls.get(), 1);
        client.ends().await;
    });
}

#[test]
fn half_a_payload_then_silence_closes_after_sixty_seconds() {
    talk(|client, mem| async move {
        client.ask(wire::command::WRITE, 1, 0, 100_000).await;
        client.end.write(&[7; 60_000]).await.unwrap();
        assert_eq!(client.end.read(1).await, []);
        assert_eq!(client.hall.stats.stalls.get(), 1);
        client.ends().await;
        assert!(mem.to_vec() == pattern(0, u32::try_from(SIZE).unwrap()));
    });
}

#[test]
fn silence_between_requests_is_no_stall() {
    talk(|client, _| async move {
        client.rt.sleep(Duration::from_secs(100_000)).await;
        assert_eq!(client.read(1, 0, 512).await, pattern(0, 512));
        client.rt.sleep(Duration::from_secs(100_000)).await;
        client.bye().await;
    });
}

#[test]
fn a_slow_payload_that_keeps_coming_is_no_stall() {
    talk(|client, _| async move {
        client.ask(wire::command::WRITE, 1, 0, 20).await;
        for byte in 0..20 {
            client.rt.sleep(Duration::from_secs(50)).await;
            client.end.write(&[byte]).await.unwrap();
        }
        assert_eq!(client.errno(1).await, 0);
        client.bye().await;
    });
}

#[test]
fn a_client_that_stops_reading_is_pushed_back_then_closed_and_others_go_on() {
    Sim::new(3).run(|rt| async move {
        let mem = Mem::new(Sectors::exact(SIZE).unwrap());
        let hall = hall(&rt, Look::new("disk"), &mem);
        let stuck = connect(&hall, 10_000).negotiate(true).await;
        let fine = connect(&hall, 10_000).negotiate(true).await;
        let start = rt.now();
        // It asks for far more than may be in flight, and takes nothing.
        let asked = rt.spawn(async move {
            let mut asked = 0;
            for cookie in 0..100_000 {
                if stuck.end.write(&request(0, 0, cookie, 0, 1 << 20)).await.is_err() {
                    break;
                }
                asked += 1;
                let bytes = stuck.conn.hall.budget.available();
                assert!(bytes >= (1 << 30) - (65 << 20), "{bytes}");
            }
            (stuck, asked)
        });
        for cookie in 0..50 {
            rt.sleep(Duration::from_secs(1)).await;
            assert_eq!(fine.read(cookie, 0, 4096).await, vec![0; 4096]);
        }
        let (stuck, asked) = asked.await;
        assert!(asked < 2000, "{asked} requests were taken from a client that reads nothing");
        let waited = rt.now() - start;
        assert!(waited >= STALL_TIMEOUT && waited <= STALL_TIMEOUT + STALL_TICK * 2, "{waited:?}");
        assert_eq!(hall.stats.stalls.get(), 1);
        stuck.task.await;
        assert_eq!(stuck.conn.in_flight.requests(), 0);
        fine.bye().await;
    });
}

#[test]
fn a_flood_of_refused_requests_is_pushed_back_too() {
    Sim::new(4).run(|rt| async move {
        let mem = Mem::new(Sectors::exact(SIZE).unwrap());
        let hall = hall(&rt, Look::new("disk"), &mem);
        let client = connect(&hall, 10_000).negotiate(true).await;
        let mut asked = 0;
        while client.end.write(&request(0, 4242, asked, 0, 0)).await.is_ok() {
            asked += 1;
        }
        assert!(asked < 2000, "{asked}");
        client.task.await;
        assert_eq!(client.conn.in_flight.requests(), 0);
    });
}

#[test]
fn silence_after_the_greeting_closes_after_fifteen_seconds() {
    Sim::new(1).run(|rt| async move {
        let hall = hall(&rt, Look::new("disk"), &Mem::new(Sectors(8)));
        let client = connect(&hall, 1000);
        let start = rt.now();
        assert_eq!(client.end.read(100).await.len(), 18);
        let waited = rt.now() - start;
        assert!(waited >= HANDSHAKE_TIMEOUT && waited.as_secs() < 16, "{waited:?}");
        assert_eq!(hall.stats.handshakes_failed.get(), 1);
        client.ends().await;
    });
}

#[test]
fn a_handshake_that_trickles_is_closed_after_fifteen_seconds_too() {
    Sim::new(1).run(|rt| async move {
        let hall = hall(&rt, Look::new("disk"), &Mem::new(Sectors(8)));
        let client = connect(&hall, 1000);
        let bytes = [&[0, 0, 0, 3][..], &option(option::LIST, &[]).repeat(50)].concat();
        let mut sent = 0;
        for byte in bytes {
            if client.end.write(&[byte]).await.is_err() {
                break;
            }
            sent += 1;
            rt.sleep(Duration::from_millis(500)).await;
        }
        assert!((29..=31).contains(&sent), "{sent}");
    });
}

// ---- What else is promised. ----

#[test]
fn reads_and_writes_of_all_lengths_come_back() {
    talk(|client, _| async move {
        let mut cookie = 0;
        for length in [1_u32, 511, 512, 4096, 5000, 70_000, 300_000, (1 << 20) + 3, 3 << 20] {
            let offset = client.rt.prng().below(SIZE - u64::from(length));
            let mut bytes = vec![0; length as usize];
            client.rt.prng().fill(&mut bytes);
            cookie += 1;
            client.write(cookie, offset, &bytes).await;
            assert_eq!(client.errno(cookie).await, 0);
            assert!(client.read(cookie, offset, length).await == bytes, "{length}");
        }
        client.bye().await;
    });
}

#[test]
fn a_read_only_export_refuses_every_change_and_reads() {
    Sim::new(1).run(|rt| async move {
        let mem = Mem::new(Sectors(64));
        let look = Look { read_only: true, ..Look::new("disk") };
        let client = connect(&hall(&rt, look, &mem), 9000).negotiate(true).await;
        client.write(1, 0, &[1; 512]).await;
        assert_eq!(client.errno(1).await, 1);
        for (cookie, kind) in [(2, wire::command::TRIM), (3, wire::command::WRITE_ZEROES)] {
            client.ask(kind, cookie, 0, 512).await;
            assert_eq!(client.errno(cookie).await, 1);
        }
        assert_eq!(client.read(4, 0, 512).await, [0; 512]);
        client.bye().await;
        assert!(mem.to_vec().iter().all(|&b| b == 0));
    });
}

// ---- The end of a server. ----

#[test]
fn a_stop_refuses_what_is_new_finishes_what_was_begun_and_flushes_before_it_closes() {
    talk_to(
        |rt, mem| Odd::new(mem).slow(rt, Duration::from_secs(3)),
        |client, odd| async move {
            client.write(1, 0, &[9; 5000]).await;
            client.rt.sleep(Duration::from_secs(1)).await;
            let hall = Rc::clone(&client.hall);
            let stop = client.rt.spawn(async move { hall.stop(Duration::from_secs(10)).await });
            client.rt.sleep(Duration::from_millis(100)).await;
            // The reader was waiting since before the stop: the first may still be begun.
            client.ask(wire::command::CACHE, 2, 0, 512).await;
            let error = client.errno(2).await;
            assert!([0, 108].contains(&error), "{error}");
            client.ask(wire::command::CACHE, 3, 0, 512).await;
            assert_eq!(client.errno(3).await, 108);
            assert_eq!(client.errno(1).await, 0);
            stop.await;
            assert_eq!(odd.flushes.get(), 1);
            assert!(odd.flushed_last.get(), "the flush came after the write");
            client.ends().await;
        },
    );
}

#[test]
fn a_stop_does_not_wait_for_ever_for_a_client_that_reads_nothing() {
    Sim::new(9).run(|rt| async move {
        let mem = Mem::new(Sectors::exact(SIZE).unwrap());
        let hall = hall(&rt, Look::new("disk"), &mem);
        let client = connect(&hall, 1000).negotiate(true).await;
        client.ask(wire::command::READ, 1, 0, 1 << 20).await;
        rt.sleep(Duration::from_secs(1)).await;
        let start = rt.now();
        hall.stop(Duration::from_secs(10)).await;
        assert!(rt.now() - start < Duration::from_secs(11));
        client.task.await;
    });
}

#[test]
fn a_client_in_the_handshake_hears_of_the_stop() {
    Sim::new(9).run(|rt| async move {
        let hall = hall(&rt, Look::new("disk"), &Mem::new(Sectors(8)));
        let client = connect(&hall, 1000);
        client.end.write(&[0, 0, 0, 3]).await.unwrap();
        assert_eq!(client.end.read(18).await.len(), 18);
        hall.stop(Duration::from_secs(10)).await;
        assert_eq!(client.end.read(1).await, []);
        client.task.await;
    });
}

// ---- Holes, status, and a device that fails. ----

#[test]
fn a_failed_structured_read_tells_the_good_part_and_the_place() {
    for (offset, length) in [(0_u32, 1 << 20), (100, 300_000), (65_536 * 3, 4096), (0, 200_001)] {
        Sim::new(1).run(move |rt| async move {
            let mem = Mem::new(Sectors::exact(SIZE).unwrap());
            mem.poke(0, &pattern(0, u32::try_from(SIZE).unwrap()));
            let bad = Extent::new(Sector::containing(200_000), Sectors(1));
            let hall = hall_of(&rt, Look::new("disk"), Dyn::new(Odd::new(mem).bad(bad)));
            let client = connect(&hall, 70_000).negotiate(true).await;
            client.ask(wire::command::READ, 1, offset.into(), length).await;
            let Frame::Data { cookie: 1, offset: at, data, done: false } = client.frame(0).await
            else {
                panic!("no content before the error");
            };
            let Frame::ErrorAt { cookie: 1, error: 5, text, offset: broken } =
                client.frame(0).await
            else {
                panic!("no error");
            };
            assert_eq!(client.frame(0).await, Frame::None { cookie: 1 });
            assert!(text.contains("disk7") && text.contains("390"), "{text}");
            assert_eq!(at, u64::from(offset));
            let good = u32::try_from(broken - at).unwrap();
            assert!(broken <= 199_680 && 199_680 - broken < 4096, "{broken}");
            assert!(broken >= at && broken < at + data.len() as u64, "covered by content");
            assert!(data[..good as usize] == pattern(at, good));
            assert!(data[good as usize..].iter().all(|&b| b == 0), "padding");
            // Elsewhere it still reads, and the stream is in step.
            assert!(client.read(2, 300_000, 5000).await == pattern(300_000, 5000));
            assert_eq!(hall.stats.requests_failed.get(), 1);
            client.bye().await;
        });
    }
}

#[test]
fn a_failed_simple_or_whole_read_is_one_error() {
    for structured in [false, true] {
        Sim::new(1).run(move |rt| async move {
            let bad = Extent::new(Sector(0), Sectors(1));
            let mem = Mem::new(Sectors(64));
            let hall = hall_of(&rt, Look::new("disk"), Dyn::new(Odd::new(mem).bad(bad)));
            let client = connect(&hall, 7000).negotiate(structured).await;
            let flags = if structured { CommandFlags::DF } else { CommandFlags::empty() };
            client.send(flags, wire::command::READ, 1, 0, 8192).await;
            assert_eq!(client.errno(1).await, 5);
            assert_eq!(client.read(2, 8192, 512).await, [0; 512]);
            client.bye().await;
        });
    }
}

#[test]
fn long_structured_reads_tell_holes_and_df_does_not() {
    Sim::new(2).run(|rt| async move {
        let mem = Mem::new(Sectors::exact(SIZE).unwrap());
        mem.poke(1 << 20, &pattern(1 << 20, 65_536));
        let client = connect(&hall(&rt, Look::new("disk"), &mem), 70_000).negotiate(true).await;
        let mut want = vec![0; 3 << 20];
        want[1 << 20..(1 << 20) + 65_536].copy_from_slice(&pattern(1 << 20, 65_536));
        assert!(client.read(1, 0, 3 << 20).await == want);
        let told = client.hall.stats.read_bytes.get();
        assert!(told < 1 << 20, "{told} bytes of data were sent for 64 KiB");
        client.send(CommandFlags::DF, wire::command::READ, 2, 0, 3 << 20).await;
        let Frame::Data { cookie: 2, offset: 0, data, done: true } = client.frame(0).await else {
            panic!("DF means one chunk");
        };
        assert!(data == want);
        client.bye().await;
    });
}

#[test]
fn block_status_tells_runs_that_cover_the_request_from_its_start() {
    Sim::new(2).run(|rt| async move {
        let mem = Mem::new(Sectors::exact(SIZE).unwrap());
        mem.poke(1 << 20, &pattern(1 << 20, 65_536));
        let client = connect(&hall(&rt, Look::new("disk"), &mem), 70_000).negotiate(true).await;
        let status = async |flags, offset, length| {
            client.send(flags, wire::command::BLOCK_STATUS, 1, offset, length).await;
            match client.frame(0).await {
                Frame::Status { cookie: 1, id: 1, extents, done: true } => extents,
                other => panic!("{other:?}"),
            }
        };
        let (zero, data, rest) = ((1 << 20, 3), (65_536, 0), (u32::try_from(SIZE).unwrap(), 3));
        let rest = (rest.0 - zero.0 - data.0, 3);
        let all = status(CommandFlags::empty(), 0, u32::try_from(SIZE).unwrap()).await;
        assert_eq!(all, [zero, data, rest]);
        let one = status(CommandFlags::REQ_ONE, 0, u32::try_from(SIZE).unwrap()).await;
        assert_eq!(one, [zero]);
        let odd = status(CommandFlags::empty(), (1 << 20) - 3, 5).await;
        assert_eq!(odd, [(3, 3), (2, 0)]);
        client.bye().await;
    });
}

#[test]
fn trim_and_write_zeroes_read_back_as_zeroes() {
    talk(|client, _| async move {
        client.send(CommandFlags::FUA, wire::command::WRITE_ZEROES, 1, 1000, 300_000).await;
        assert_eq!(client.errno(1).await, 0);
        assert!(client.read(2, 1000, 300_000).await == vec![0; 300_000]);
        assert_eq!(client.read(3, 0, 1000).await, pattern(0, 1000));
        assert_eq!(client.read(4, 301_000, 600).await, pattern(301_000, 600));
        for (cookie, kind) in [(5, wire::command::TRIM), (6, wire::command::CACHE)] {
            client.send(CommandFlags::FUA, kind, cookie, 1 << 20, 65_536).await;
            assert_eq!(client.errno(cookie).await, 0);
        }
        client.bye().await;
    });
}

// ---- Random clients. ----

/// Many requests in flight at random places; each writer owns its stripe, so that the model knows
/// what every read must return. Every request is answered exactly once.
fn storm(seed: u64) {
    const STRIPE: u64 = 70_000;
    Sim::new(seed).run(move |rt| async move {
        let mem = Mem::new(Sectors::exact(SIZE).unwrap());
        let hall = hall(&rt, Look::new("disk"), &mem);
        let client =
            connect(&hall, 1 + rt.prng().index(200_000)).negotiate(seed.is_multiple_of(2)).await;
        let client = Rc::new(client);
        let sender = Rc::clone(&client);
        let mut model = vec![0_u8; usize::try_from(STRIPE).unwrap() * 16];
        // Round by round: all stripes are written at once, then read at once.
        for round in 0..4_u8 {
            let mut asked = Vec::new();
            for stripe in 0..16_u64 {
                let length = 1 + rt.prng().below(STRIPE);
                let offset = stripe * STRIPE + rt.prng().below(STRIPE - length + 1);
                let start = usize::try_from(offset).unwrap();
                let bytes = vec![
                    round * 16 + u8::try_from(stripe).unwrap() + 1;
                    usize::try_from(length).unwrap()
                ];
                model[start..start + bytes.len()].copy_from_slice(&bytes);
                asked.push((stripe, offset, bytes));
            }
            let from = Rc::clone(&sender);
            let writing = rt.spawn(async move {
                for (cookie, offset, bytes) in asked {
                    from.write(cookie, offset, &bytes).await;
                }
            });
            let mut left: Vec<u64> = (0..16).collect();
            while !left.is_empty() {
                match client.frame(0).await {
                    Frame::Simple { error: 0, cookie, .. } => {
                        let at = left.iter().position(|c| *c == cookie).expect("asked, once");
                        left.remove(at);
                    }
                    other => panic!("{other:?}"),
                }
            }
            writing.await;
            let from = Rc::clone(&sender);
            let reading = rt.spawn(async move {
                for stripe in 0..16 {
                    let length = u32::try_from(STRIPE).unwrap();
                    from.ask(wire::command::READ, stripe, stripe * STRIPE, length).await;
                }
            });
            let mut left: Vec<u64> = (0..16).collect();
            while !left.is_empty() {
                let (cookie, data) = match client.frame(usize::try_from(STRIPE).unwrap()).await {
                    Frame::Simple { error: 0, cookie, data } => (cookie, data),
                    Frame::Data { cookie, data, done: true, .. } => (cookie, data),
                    other => panic!("{other:?}"),
                };
                let at = left.iter().position(|c| *c == cookie).expect("asked, once");
                left.remove(at);
                let start = usize::try_from(cookie * STRIPE).unwrap();
                assert!(data == model[start..start + data.len()], "stripe {cookie}, seed {seed}");
            }
            reading.await;
        }
        drop(sender);
        Rc::into_inner(client).expect("all tasks have ended").bye().await;
    });
}

#[test]
fn storms_of_requests_are_answered_once_each_and_rightly() {
    (0..40).for_each(storm);
}

/// Any bytes at all, in any pieces, behind a good handshake: the server ends cleanly, holds
/// nothing, and nothing but whole writes has changed the device.
#[test]
fn any_bytes_behind_a_handshake_leave_nothing_behind() {
    for seed in 0..150 {
        Sim::new(seed).run(move |rt| async move {
            let mem = Mem::new(Sectors(512));
            let hall = hall(&rt, Look::new("disk"), &mem);
            let client = connect(&hall, 5000).negotiate(seed.is_multiple_of(2)).await;
            let mut bytes = Vec::new();
            for _ in 0..rt.prng().below(30) {
                let r = rt.prng();
                let mut raw = request(
                    u16::try_from(r.below(70)).unwrap(),
                    u16::try_from(r.below(10)).unwrap(),
                    r.next_u64(),
                    r.below(300_000),
                    u32::try_from(r.below(5000)).unwrap(),
                );
                if r.chance(1, 20) {
                    let at = r.index(raw.len());
                    raw[at] ^= 1 << r.below(8);
                }
                bytes.extend(raw);
                bytes.extend(std::iter::repeat_n(7, r.index(6000)));
            }
            // Both ways at once, or a full pipe would stop both sides.
            let end = Rc::new(client.end);
            let reader = Rc::clone(&end);
            let draining = rt.spawn(async move { while !reader.read(1).await.is_empty() {} });
            let _ = end.write(&bytes).await; // it may be closed on the way
            end.finish();
            draining.await;
            client.task.await;
            assert_eq!(client.conn.in_flight.requests(), 0);
            drop(client.conn);
            assert_eq!((hall.pool.lent(), hall.budget.available()), (0, 1 << 30));
        });
    }
}
