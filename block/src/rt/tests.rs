//! The two real engines, by the same tests.

use super::*;
use crate::buf::{BufPool, IoView};
use crate::sync::{Either, select};
use crate::units::Sectors;
use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Runs `test` with each engine that this host allows.
fn each_engine<F: Future<Output = ()> + 'static>(lanes: usize, test: impl Fn(Rt) -> F) {
    for engine in [Engine::Ring, Engine::Threads] {
        if engine == Engine::Ring
            && let Err(e) = probe_ring()
        {
            println!("skipped: no ring on this host: {e}");
            continue;
        }
        run(Config { engine, lanes }, &test).unwrap();
    }
}

fn view(pool: &BufPool, bytes: &[u8]) -> IoView {
    let mut buf = pool.try_take(sectors(bytes)).unwrap();
    buf.truncate(bytes.len());
    buf.copy_from_slice(bytes);
    buf.freeze()
}

fn sectors(bytes: &[u8]) -> Sectors {
    Sectors((bytes.len() as u64).div_ceil(512))
}

fn temp_file(len: u64) -> OwnedFd {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    file.into()
}

#[test]
fn timers_fire_in_order_and_a_cancelled_one_does_not() {
    each_engine(1, |rt| async move {
        let log = Rc::new(RefCell::new(Vec::new()));
        let tasks: Vec<_> = [30u64, 10, 20]
            .into_iter()
            .map(|ms| {
                let (rt, log) = (rt.clone(), Rc::clone(&log));
                rt.clone().spawn(async move {
                    rt.sleep(Duration::from_millis(ms)).await;
                    log.borrow_mut().push(ms);
                })
            })
            .collect();
        let before = rt.now();
        let short = rt.sleep(Duration::from_millis(1));
        let long = rt.sleep(Duration::from_secs(3600));
        assert_eq!(select(long, short).await, Either::Right(()));
        for task in tasks {
            task.await;
        }
        assert_eq!(*log.borrow(), [10, 20, 30]);
        assert!(rt.now() - before >= Duration::from_millis(30));
    });
}

#[test]
fn lanes_are_threads_that_wake_each_other() {
    each_engine(3, |rt| async move {
        // A ball goes round the lanes: each hop finds a lane asleep or on its way there.
        let (done, mut result) = rt.mailbox::<u32>(1);
        let mut next = done;
        for lane in (0..3).rev() {
            let (tx, mut rx) = rt.mailbox::<u32>(1);
            let to = std::mem::replace(&mut next, tx);
            rt.spawn_on(LaneId(lane), move |rt| async move {
                assert_eq!(rt.lane(), LaneId(lane));
                while let Some(n) = rx.recv().await {
                    to.send(n + 1).await.unwrap();
                }
            });
        }
        for n in 0..2000 {
            next.send(n).await.unwrap();
            assert_eq!(result.recv().await, Some(n + 3));
        }
        assert_eq!(rt.offload(|| 6 * 7).await, 42);
    });
}

#[test]
fn many_senders_lose_no_message() {
    each_engine(4, |rt| async move {
        let (tx, mut rx) = rt.mailbox::<u64>(7);
        for lane in 1..4 {
            for _ in 0..5 {
                let tx = tx.clone();
                rt.spawn_on(LaneId(lane), move |rt| async move {
                    for n in 1..=500 {
                        tx.send(n).await.unwrap();
                        if n % 50 == 0 {
                            rt.sleep(Duration::from_micros(rt.prng().below(80))).await;
                        }
                    }
                });
            }
        }
        drop(tx);
        let mut sum = 0;
        while let Some(n) = rx.recv().await {
            sum += n;
        }
        assert_eq!(sum, 15 * 500 * 501 / 2);
    });
}

#[test]
fn what_was_written_reads_back() {
    each_engine(1, |rt| async move {
        let file = File::new(&rt, temp_file(1 << 20));
        let pool = BufPool::new(0);
        let mut buf = pool.take(Sectors(100)).await;
        rt.prng().fill(&mut buf);
        let sent = buf.to_vec();
        let view = buf.freeze();
        file.write_at(512, view.clone().into(), true).await.unwrap();
        file.fdatasync().await.unwrap();
        let back = file.read_at(512, pool.take(Sectors(100)).await).await;
        assert_eq!(back.unwrap()[..], sent);
        file.fallocate(Allocate::PunchHole, 512, 51_200).await.unwrap();
        let back = file.read_at(512, pool.take(Sectors(100)).await).await;
        assert!(back.unwrap().iter().all(|&b| b == 0));
        let end = file.read_at((1 << 20) - 512, pool.take(Sectors(2)).await);
        assert_eq!(end.await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(view[..], sent);
    });
}

/// At depth 1 the lane parks over and over just while its request ends: a wake-up that is lost is a
/// test that hangs.
#[test]
fn an_end_that_is_reported_while_the_lane_parks_is_heard() {
    each_engine(1, |rt| async move {
        let file = File::new(&rt, temp_file(4096));
        let mut buf = BufPool::new(0).take(Sectors(1)).await;
        for _ in 0..8000 {
            buf = file.read_at(0, buf).await.unwrap();
        }
    });
}

#[test]
fn more_requests_than_any_queue_holds_all_end() {
    each_engine(1, |rt| async move {
        const N: usize = 6000;
        let file = File::new(&rt, temp_file(N as u64 * 512));
        let pool = BufPool::new(32 << 20);
        let tasks: Vec<_> = (0..N)
            .map(|n| {
                let (file, pool) = (file.clone(), pool.clone());
                rt.spawn(async move {
                    let buf = pool.take(Sectors(1)).await;
                    file.read_at(n as u64 * 512, buf).await.unwrap().len()
                })
            })
            .collect();
        let mut bytes = 0;
        for task in tasks {
            bytes += task.await;
        }
        assert_eq!((bytes, pool.lent()), (N * 512, 0));
    });
}

#[test]
fn a_unix_socket_appears_when_it_answers_and_goes_with_its_listener() {
    each_engine(1, |rt| async move {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let listener = Listener::unix(&rt, &path).unwrap();
        let second = Listener::unix(&rt, &path).map(drop).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        let pool = BufPool::new(64 << 20);
        let client = rt.spawn(echo_client(rt.clone(), path.clone(), pool.clone()));
        // The connection that looked whether somebody answers comes first.
        drop(listener.accept().await.unwrap());
        let server = listener.accept().await.unwrap();
        echo(&server, &pool).await;
        drop(server);
        client.await;
        drop(listener);
        assert!(!path.exists());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        // A stale socket is replaced, anything else is not.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        drop(Listener::unix(&rt, &path).unwrap());
        std::fs::write(&path, "precious").unwrap();
        let file = Listener::unix(&rt, &path).map(drop).unwrap_err();
        assert_eq!(file.kind(), io::ErrorKind::AlreadyExists);
    });
}

/// After a `kill -9` the kernel goes on accepting for the dead server until its ring is gone. Here a
/// child listens on our socket and ends, so that the socket outlives whoever listened.
#[test]
fn a_unix_socket_whose_listener_is_dead_is_replaced_although_it_still_accepts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    socket.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    let mut child = std::process::Command::new("perl");
    child.args(["-e", "listen(STDIN, 5) or die"]);
    let status = child.stdin(std::os::fd::OwnedFd::from(socket.try_clone().unwrap())).status();
    if !status.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no perl here to be the server that dies");
        return;
    }
    drop(std::os::unix::net::UnixStream::connect(&path).expect("it still accepts"));
    each_engine(1, |rt| {
        let path = path.clone();
        async move { drop(Listener::unix(&rt, &path).expect("its listener is dead")) }
    });
}

async fn echo(stream: &Stream, pool: &BufPool) {
    loop {
        let buf = pool.take_bytes(10_000).await;
        let (n, buf) = stream.recv(buf, 5..9000).await.unwrap();
        if n == 0 {
            return;
        }
        stream.send(&[buf.freeze().slice(5..5 + n)]).await.unwrap();
    }
}

async fn echo_client(rt: Rt, path: std::path::PathBuf, pool: BufPool) {
    let stream = Stream::connect_unix(&rt, path).await.unwrap();
    check_echo(&rt, stream, &pool).await;
}

/// Sends a lot in awkward parts while it receives, and compares.
async fn check_echo(rt: &Rt, stream: Stream, pool: &BufPool) {
    const TOTAL: usize = 3 << 20;
    let mut parts = Vec::new();
    let mut all = Vec::new();
    while all.len() < TOTAL {
        let len = 1 + rt.prng().index(if parts.len() % 7 == 0 { 60_000 } else { 900 });
        let mut buf = pool.take_bytes(len.min(TOTAL - all.len())).await;
        rt.prng().fill(&mut buf);
        all.extend_from_slice(&buf);
        parts.push(buf.freeze());
    }
    let sender = stream.clone();
    let send = rt.spawn(async move {
        sender.send(&parts).await.unwrap();
        sender.shutdown_send();
    });
    let mut got = pool.take_bytes(TOTAL).await;
    got = stream.recv_exact(got, 0..1000).await.unwrap();
    got = stream.recv_exact(got, 1000..TOTAL).await.unwrap();
    assert!(got[..] == all);
    let (end, got) = stream.recv(got, 0..1).await.unwrap();
    assert_eq!(end, 0);
    let more = stream.recv_exact(got, 0..1).await.unwrap_err();
    assert_eq!(more.kind(), io::ErrorKind::UnexpectedEof);
    send.await;
}

#[test]
fn a_tcp_connection_moves_to_another_lane() {
    each_engine(2, |rt| async move {
        let listener = Listener::tcp(&rt, ([127, 0, 0, 1], 0).into()).unwrap();
        let addr = listener.tcp_addr().unwrap();
        let pool = BufPool::new(64 << 20);
        let client_pool = pool.clone();
        let client_rt = rt.clone();
        let client = rt.spawn(async move {
            let stream = Stream::connect_tcp(&client_rt, addr).await.unwrap();
            check_echo(&client_rt, stream, &client_pool).await;
        });
        let conn = listener.accept().await.unwrap().detach();
        rt.spawn_on(LaneId(1), move |rt| async move {
            echo(&conn.attach(&rt), &pool).await;
        });
        client.await;
    });
}

#[test]
fn a_pipe_of_memory_is_a_stream_in_every_world() {
    let test = |rt: Rt| async move {
        let pool = BufPool::new(64 << 20);
        let (a, b) = Stream::pair(1000);
        let server_pool = pool.clone();
        let server = rt.spawn(async move { echo(&b, &server_pool).await });
        check_echo(&rt, a, &pool).await;
        server.await;
        let (a, b) = Stream::pair(10);
        b.shutdown();
        let sent = a.send(&[view(&pool, &[1; 20])]).await.unwrap_err();
        assert_eq!(sent.kind(), io::ErrorKind::BrokenPipe);
        let buf = pool.take_bytes(10).await;
        assert_eq!(a.recv(buf, 0..10).await.unwrap().0, 0);
    };
    Sim::new(4).run(test);
    each_engine(1, test);
}

#[test]
fn shutdown_ends_those_who_wait() {
    each_engine(1, |rt| async move {
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        let a = Conn::from_fd(a.into()).attach(&rt);
        let pool = BufPool::new(0);
        let buf = pool.take_bytes(512).await;
        let waiting = a.clone();
        let recv = rt.spawn(async move { waiting.recv(buf, 0..512).await.unwrap().0 });
        rt.sleep(Duration::from_millis(5)).await;
        a.shutdown();
        assert_eq!(recv.await, 0);
        let sent = a.send(&[view(&pool, b"x")]).await.unwrap_err();
        assert_eq!(sent.kind(), io::ErrorKind::BrokenPipe);
        drop(b);
    });
}

#[test]
fn a_refused_connection_is_an_error() {
    each_engine(1, |rt| async move {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nobody");
        let gone = Stream::connect_unix(&rt, &path).await.map(drop).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        drop(listener);
        let refused = Stream::connect_tcp(&rt, addr).await.map(drop).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    });
}

/// C01: futures that go away at any moment, with slots and buffers that are used again at once.
#[test]
fn dropped_futures_leave_their_buffers_to_the_host_until_it_is_done() {
    each_engine(1, |rt| async move {
        let pool = BufPool::new(16 << 20);
        let file = File::new(&rt, temp_file(1 << 20));
        let cancelled = Rc::new(Cell::new(0));
        let tasks: Vec<_> = (0..16)
            .map(|_| {
                let (rt, pool) = (rt.clone(), pool.clone());
                let (file, cancelled) = (file.clone(), Rc::clone(&cancelled));
                rt.clone().spawn(async move {
                    for _ in 0..150 {
                        let gone = one_dropped_request(&rt, &pool, &file).await;
                        cancelled.set(cancelled.get() + u32::from(gone));
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
        assert!(cancelled.get() > 100, "{} were dropped", cancelled.get());
        // Cancelled operations end soon; then every buffer is home.
        let deadline = rt.now() + Duration::from_secs(10);
        while pool.lent() > 0 {
            assert!(rt.now() < deadline, "{} bytes are still out", pool.lent());
            rt.sleep(Duration::from_millis(1)).await;
        }
    });
}

/// One request that is raced with a short timer: true when the timer won.
async fn one_dropped_request(rt: &Rt, pool: &BufPool, file: &File) -> bool {
    let timer = rt.sleep(Duration::from_micros(rt.prng().below(60)));
    let at = rt.prng().below(200) * 4096;
    let mut buf = pool.take(Sectors(8)).await;
    match rt.prng().below(4) {
        0 => {
            // Nobody ever sends.
            let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
            let a = Conn::from_fd(a.into()).attach(rt);
            let gone = matches!(select(a.recv(buf, 0..4096), timer).await, Either::Right(()));
            drop(b);
            gone
        }
        1 => {
            // Every block holds its own number or, where it was not written yet, nothing.
            let read = select(file.read_at(at, buf), timer).await;
            if let Either::Left(read) = &read {
                let read = read.as_ref().unwrap();
                let tag = u8::try_from(at / 4096).unwrap();
                assert!(read.iter().all(|&b| b == tag || b == 0));
            }
            matches!(read, Either::Right(()))
        }
        2 => {
            let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
            let a = Conn::from_fd(a.into()).attach(rt);
            let parts = vec![buf.freeze(); 200];
            let gone = matches!(select(a.send(&parts), timer).await, Either::Right(()));
            drop(b);
            gone
        }
        _ => {
            buf.fill(u8::try_from(at / 4096).unwrap());
            let write = file.write_at(at, buf.into(), false);
            matches!(select(write, timer).await, Either::Right(()))
        }
    }
}

#[test]
fn a_run_ends_with_requests_that_would_never_end() {
    each_engine(2, |rt| async move {
        let dir = tempfile::tempdir().unwrap();
        let listener = Listener::unix(&rt, dir.path().join("s")).unwrap();
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        let pool = BufPool::new(0);
        let buf = pool.take_bytes(512).await;
        rt.spawn_on(LaneId(1), move |rt| async move {
            let a = Conn::from_fd(a.into()).attach(&rt);
            drop(a.recv(buf, 0..512).await);
            drop(b);
        });
        drop(rt.spawn(async move { drop(listener.accept().await) }));
        rt.sleep(Duration::from_millis(5)).await;
    });
}

#[test]
fn a_file_that_outlives_its_run_answers_with_an_error() {
    let mut kept = None;
    for engine in [Engine::Ring, Engine::Threads] {
        if engine == Engine::Ring && probe_ring().is_err() {
            continue;
        }
        let file =
            run(Config { engine, lanes: 1 }, |rt| async move { File::new(&rt, temp_file(4096)) });
        kept = Some(file.unwrap());
        let file = kept.as_ref().unwrap();
        let mut sync = Box::pin(file.fdatasync());
        let Poll::Ready(result) = crate::sync::poll_once(sync.as_mut()) else {
            panic!("nobody would ever end it");
        };
        assert!(result.is_err());
    }
    drop(kept);
}

#[test]
fn a_simulated_world_has_no_host() {
    Sim::new(1).run(|rt| async move {
        let file = File::new(&rt, temp_file(0));
        let denied = file.fdatasync().await.unwrap_err();
        assert_eq!(denied.kind(), io::ErrorKind::Unsupported);
        assert_eq!(rt.engine(), None);
        let fd = Arc::new(temp_file(0));
        assert!(rt.readable(&fd).await.is_err());
    });
}
