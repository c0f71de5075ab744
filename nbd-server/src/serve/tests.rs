//! Real sockets, both engines: coming, serving, the limits, the end.

use super::*;
use crate::nbd::testing::*;
use crate::nbd::wire::{self, info, option};
use std::os::unix::fs::FileExt;
use std::path::Path;
use varve_block::dev::Mem;
use varve_block::rt::{Config, Engine, run};
use varve_block::{
    BlockDevice, Data, DevId, Durability, Error, ErrorKind, ExportOptions, ExportShared, Extent,
    Geometry, IoBuf, Op, Result, Sector, Sectors, Zero,
};

const SECTORS: Sectors = Sectors(4096);

fn engines(f: impl AsyncFn(Rt) + Copy + 'static) {
    for engine in [Engine::Threads, Engine::Ring] {
        if engine == Engine::Ring
            && let Err(error) = varve_block::rt::probe_ring()
        {
            eprintln!("skipped: io_uring cannot be used here: {error}");
            continue;
        }
        let config = Config { engine, ..Config::default() };
        run(config, move |rt| async move { f(rt).await }).expect("an engine");
    }
}

fn exported(rt: &Rt, shared: &Arc<ExportShared>, name: &str, mem: &Mem) -> Exported {
    let export = Export::new(rt.clone(), Arc::clone(shared), Dyn::new(mem.clone()));
    (Look::new(name), export)
}

fn ram(rt: &Rt, name: &str) -> Exported {
    let shared = ExportShared::new(ExportOptions::default());
    exported(rt, &shared, name, &Mem::new(SECTORS))
}

fn start(rt: &Rt, listen: &Listen, options: Options) -> std::result::Result<Server, StartError> {
    Server::start(rt, std::slice::from_ref(listen), vec![ram(rt, "one"), ram(rt, "two")], options)
}

/// A client of a few words.
struct Client {
    stream: Stream,
    pool: BufPool,
}

impl Client {
    async fn connect(rt: &Rt, address: &Address) -> io::Result<Client> {
        let stream = match address {
            Address::Unix(path) => Stream::connect_unix(rt, path).await?,
            Address::Tcp(address) => Stream::connect_tcp(rt, *address).await?,
        };
        Ok(Client { stream, pool: BufPool::new(0) })
    }

    async fn say(&self, bytes: &[u8]) -> io::Result<()> {
        let mut buf = self.pool.take_bytes(bytes.len()).await;
        buf.copy_from_slice(bytes);
        self.stream.send(&[buf.freeze()]).await
    }

    /// Exactly `n` bytes, or fewer at the end of the stream.
    async fn hear(&self, n: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < n {
            let buf = self.pool.take_bytes(n - all.len()).await;
            let room = buf.len();
            match self.stream.recv(buf, 0..room).await {
                Ok((0, _)) | Err(_) => break,
                Ok((got, buf)) => all.extend_from_slice(&buf[..got]),
            }
        }
        all
    }

    async fn go(rt: &Rt, address: &Address, name: &str) -> Client {
        let client = Client::connect(rt, address).await.expect("the server answers");
        let go = option(option::GO, &go_data(name, &[info::BLOCK_SIZE]));
        client.say(&[&[0, 0, 0, 3][..], &go].concat()).await.expect("the server reads");
        assert_eq!(client.hear(18).await.len(), 18);
        loop {
            let head = client.hear(20).await;
            assert_eq!(head.len(), 20, "an answer");
            let length = u32::from_be_bytes(head[16..20].try_into().unwrap());
            client.hear(length as usize).await;
            if head[8..16] == [0, 0, 0, 7, 0, 0, 0, 1] {
                return client;
            }
        }
    }

    async fn write(&self, offset: u64, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).unwrap();
        let head = request(0, wire::command::WRITE, 1, offset, length);
        self.say(&[&head, bytes].concat()).await.unwrap();
        assert_eq!(self.hear(16).await[4..8], [0; 4]);
    }

    async fn read(&self, offset: u64, length: u32) -> Vec<u8> {
        self.say(&request(0, wire::command::READ, 2, offset, length)).await.unwrap();
        assert_eq!(self.hear(16).await[4..8], [0; 4]);
        self.hear(length as usize).await
    }
}

#[test]
fn a_unix_socket_serves_two_exports_to_several_clients_and_goes_without_a_trace() {
    engines(async |rt| {
        let dir = tempfile::tempdir().unwrap();
        let listen = Listen::Unix(dir.path().join("s"));
        let server = start(&rt, &listen, Options::default()).unwrap();
        let address = server.addresses()[0].clone();
        let a = Client::go(&rt, &address, "one").await;
        let b = Client::go(&rt, &address, "").await;
        let other = Client::go(&rt, &address, "two").await;
        let bytes: Vec<u8> = (0..1_500_000).map(|n: u32| n.to_le_bytes()[1]).collect();
        a.write(7, &bytes).await;
        assert!(b.read(7, 1_500_000).await == bytes);
        assert_eq!(other.read(7, 100).await, [0; 100]);
        let stats = server.stats().snapshot();
        assert_eq!((stats.connections, stats.connections_open, stats.requests), (3, 3, 3));
        server.stop().await;
        for client in [a, b, other] {
            assert_eq!(client.hear(1).await, []);
        }
        assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
        assert!(Client::connect(&rt, &address).await.is_err());
    });
}

#[test]
fn tcp_takes_a_port_of_the_hosts_choice() {
    engines(async |rt| {
        let listen = "tcp:127.0.0.1:0".parse().unwrap();
        let server = start(&rt, &listen, Options::default()).unwrap();
        let address = server.addresses()[0].clone();
        assert!(address.to_string().starts_with("nbd://127.0.0.1:"));
        let client = Client::go(&rt, &address, "one").await;
        client.write(0, &[7; 300_000]).await;
        assert!(client.read(0, 300_000).await == [7; 300_000]);
        server.stop().await;
        assert_eq!(client.hear(1).await, []);
    });
}

#[test]
fn an_accepted_tcp_connection_is_watched() {
    engines(async |rt| {
        let listener = varve_block::rt::Listener::tcp(&rt, "127.0.0.1:0".parse().unwrap()).unwrap();
        let address = Address::Tcp(listener.tcp_addr().unwrap());
        let (_client, accepted) =
            varve_block::sync::join(Client::connect(&rt, &address), listener.accept()).await;
        let accepted = accepted.unwrap();
        tune(&accepted).unwrap();
        let socket = accepted.socket().unwrap();
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(10));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 5);
    });
}

#[test]
fn a_place_that_is_taken_is_refused_and_a_stale_one_replaced() {
    engines(async |rt| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap()); // its name stays
        let listen = Listen::Unix(path.clone());
        let first = start(&rt, &listen, Options::default()).unwrap();
        let refused = start(&rt, &listen, Options::default()).err().expect("taken");
        assert!(refused.to_string().contains(path.to_str().unwrap()), "{refused}");
        Client::go(&rt, &first.addresses()[0], "one").await;
        first.stop().await;
        std::fs::write(&path, "precious").unwrap();
        assert!(start(&rt, &listen, Options::default()).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    });
}

#[test]
fn too_many_connections_are_closed_at_once_and_room_comes_back() {
    engines(async |rt| {
        let dir = tempfile::tempdir().unwrap();
        let listen = Listen::Unix(dir.path().join("s"));
        let options = Options { connections_max: 2, ..Options::default() };
        let server = start(&rt, &listen, options).unwrap();
        let address = server.addresses()[0].clone();
        let one = Client::go(&rt, &address, "").await;
        let two = Client::go(&rt, &address, "").await;
        let three = Client::connect(&rt, &address).await.unwrap();
        assert_eq!(three.hear(18).await, []);
        assert_eq!(server.stats().snapshot().connections_refused, 1);
        drop(one);
        while server.stats().snapshot().connections_open == 2 {
            rt.sleep(Duration::from_millis(1)).await;
        }
        rt.sleep(Duration::from_millis(10)).await;
        Client::go(&rt, &address, "").await;
        assert_eq!(two.read(0, 512).await, [0; 512]);
        server.stop().await;
    });
}

#[test]
fn too_many_handshakes_are_closed_at_once_but_not_those_that_serve() {
    engines(async |rt| {
        let dir = tempfile::tempdir().unwrap();
        let listen = Listen::Unix(dir.path().join("s"));
        let options = Options { handshakes_max: 2, ..Options::default() };
        let server = start(&rt, &listen, options).unwrap();
        let address = server.addresses()[0].clone();
        let serving = Client::go(&rt, &address, "").await;
        let mut waiting = Vec::new();
        for _ in 0..2 {
            let client = Client::connect(&rt, &address).await.unwrap();
            assert_eq!(client.hear(18).await.len(), 18);
            waiting.push(client);
        }
        let late = Client::connect(&rt, &address).await.unwrap();
        assert_eq!(late.hear(18).await, []);
        assert_eq!(serving.read(0, 512).await, [0; 512]);
        server.stop().await;
    });
}

/// A file, read and written on the spot.
struct Plain(std::fs::File);

impl Plain {
    fn open(path: &Path) -> Plain {
        Plain(std::fs::File::options().read(true).write(true).open(path).expect("just made"))
    }

    fn fail(op: Op, at: Sector, source: io::Error) -> Error {
        Error::host(op, Extent::new(at, Sectors(0)), &DevId::new("plain"), source)
    }
}

impl BlockDevice for Plain {
    fn geometry(&self) -> Geometry {
        Geometry::new(DevId::new("plain"), SECTORS)
    }

    async fn read(&self, at: Sector, mut buf: IoBuf) -> Result<IoBuf> {
        let read = self.0.read_exact_at(&mut buf, at.byte());
        read.map(|()| buf).map_err(|e| Plain::fail(Op::Read, at, e))
    }

    async fn write(&self, at: Sector, data: Data, _: Durability) -> Result<Data> {
        let written = self.0.write_all_at(&data, at.byte());
        written.map(|()| data).map_err(|e| Plain::fail(Op::Write, at, e))
    }

    async fn flush(&self) -> Result<()> {
        self.0.sync_data().map_err(|e| Plain::fail(Op::Flush, Sector(0), e))
    }

    async fn discard(&self, _: Extent) -> Result<()> {
        Ok(())
    }

    async fn write_zeroes(&self, range: Extent, _: Zero) -> Result<()> {
        let dev = DevId::new("plain");
        Err(Error::new(ErrorKind::Unsupported, Op::WriteZeroes, range, &dev))
    }
}

#[test]
fn two_lanes_share_one_export() {
    let config = Config { engine: Engine::Auto, lanes: 2 };
    let done = run(config, |rt| async move {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, vec![0; SECTORS.byte_len()]).unwrap();
        let shared = ExportShared::new(ExportOptions::default());
        // Each lane has its own handle of the same file, as it would have its own ring.
        let open = move |rt: &Rt| {
            let disk = Plain::open(&path);
            (Look::new("disk"), Export::new(rt.clone(), Arc::clone(&shared), Dyn::new(disk)))
        };
        let listen = Listen::Unix(dir.path().join("s"));
        let server = Server::start(&rt, &[listen], vec![open(&rt)], Options::default()).unwrap();
        server.add_lane(LaneId(1), move |rt| vec![open(rt)]);
        let address = server.addresses()[0].clone();
        let mut clients = Vec::new();
        for _ in 0..6 {
            clients.push(Client::go(&rt, &address, "disk").await);
        }
        for (n, client) in (1_u8..).zip(&clients) {
            client.write(u64::from(n) * 1000, &[n; 1000]).await;
        }
        for client in &clients {
            for n in 1..=6_u8 {
                assert!(client.read(u64::from(n) * 1000, 1000).await == [n; 1000]);
            }
        }
        server.stop().await;
        for client in clients {
            assert_eq!(client.hear(1).await, []);
        }
        true
    });
    assert!(done.expect("an engine"));
}

#[test]
fn names_are_checked_before_anything_listens() {
    engines(async |rt| {
        let start = |exports| Server::start(&rt, &[], exports, Options::default()).err();
        let named = |name: &str| ram(&rt, name);
        assert!(matches!(start(vec![]), Some(StartError::NoExport)));
        let twice = start(vec![named("a"), named("b"), named("a")]).expect("refused");
        assert!(twice.to_string().contains("\"a\""), "{twice}");
        assert!(start(vec![named(&"x".repeat(4097))]).is_some());
        assert!(start(vec![named("a\0b")]).is_some());
        let mut alias = named("c");
        alias.0.aliases.push("a".to_owned());
        assert!(start(vec![named("a"), alias]).is_some());
    });
}
