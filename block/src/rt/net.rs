//! Connections: sockets of the host, and pipes of memory that look the same.

use super::engine::Engine;
use super::op::{Fd, Op, Outcome};
use super::{Rt, pipe};
use crate::buf::{IoBuf, IoView};
use rustix::net::{Shutdown, shutdown};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const BACKLOG: i32 = 128;

/// One end of a connection, on one lane. Clones are the same end, so that one task can receive while
/// another sends; the last one to drop closes it.
#[derive(Clone)]
pub struct Stream(Kind);

#[derive(Clone)]
enum Kind {
    Socket { rt: Rt, fd: Fd },
    Pipe(pipe::End),
}

/// A connection on its way to another lane: [`Stream::detach`] there, [`Conn::attach`] here.
pub struct Conn(Detached);

enum Detached {
    Socket(Fd),
    Pipe(pipe::End),
}

impl Conn {
    /// A connected stream socket that somebody else made.
    pub fn from_fd(fd: OwnedFd) -> Conn {
        Conn(Detached::Socket(Arc::new(fd)))
    }

    pub fn attach(self, rt: &Rt) -> Stream {
        Stream(match self.0 {
            Detached::Socket(fd) => Kind::Socket { rt: rt.clone(), fd },
            Detached::Pipe(end) => Kind::Pipe(end),
        })
    }
}

impl Stream {
    /// Two ends joined by memory: `capacity` bytes fit each way, and a small one makes short
    /// transfers. Needs no host.
    pub fn pair(capacity: usize) -> (Stream, Stream) {
        let (a, b) = pipe::pair(capacity);
        (Stream(Kind::Pipe(a)), Stream(Kind::Pipe(b)))
    }

    pub async fn connect_unix(rt: &Rt, path: impl AsRef<Path>) -> io::Result<Stream> {
        Stream::connect(rt, Domain::UNIX, SockAddr::unix(path)?).await
    }

    pub async fn connect_tcp(rt: &Rt, addr: SocketAddr) -> io::Result<Stream> {
        let stream = Stream::connect(rt, Domain::for_address(addr), addr.into()).await?;
        if let Kind::Socket { fd, .. } = &stream.0 {
            SockRef::from(fd).set_tcp_nodelay(true)?;
        }
        Ok(stream)
    }

    async fn connect(rt: &Rt, domain: Domain, to: SockAddr) -> io::Result<Stream> {
        let socket = Socket::new(domain, Type::STREAM, None)?;
        socket.set_nonblocking(rt.engine() == Some(Engine::Threads))?;
        let fd: Fd = Arc::new(socket.into());
        let op = Op::Connect { socket: Arc::clone(&fd), to: Box::new(to) };
        rt.submit(op).await.1?;
        let rt = rt.clone();
        Ok(Stream(Kind::Socket { rt, fd }))
    }

    pub fn detach(self) -> Conn {
        Conn(match self.0 {
            Kind::Socket { fd, .. } => Detached::Socket(fd),
            Kind::Pipe(end) => Detached::Pipe(end),
        })
    }

    /// Waits for bytes and puts them at the start of `buf[part]`: how many; 0 is the end of the
    /// stream.
    ///
    /// # Cancellation
    /// Dropping the future may lose bytes that had just come.
    pub async fn recv(&self, buf: IoBuf, part: Range<usize>) -> io::Result<(usize, IoBuf)> {
        self.recv_some(buf, part, false).await
    }

    /// Fills the whole of `buf[part]`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the stream ends before.
    pub async fn recv_exact(&self, mut buf: IoBuf, mut part: Range<usize>) -> io::Result<IoBuf> {
        while !part.is_empty() {
            let n;
            (n, buf) = self.recv_some(buf, part.clone(), true).await?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            part.start += n;
        }
        Ok(buf)
    }

    async fn recv_some(
        &self,
        mut buf: IoBuf,
        part: Range<usize>,
        all: bool,
    ) -> io::Result<(usize, IoBuf)> {
        let room = buf[part.clone()].len();
        if room == 0 {
            return Ok((0, buf));
        }
        let (rt, fd) = match &self.0 {
            Kind::Socket { rt, fd } => (rt, fd),
            Kind::Pipe(end) => {
                let n = end.recv(&mut buf[part]).await;
                return Ok((n, buf));
            }
        };
        loop {
            let op = Op::Recv { socket: Arc::clone(fd), buf, part: part.clone(), all };
            let (op, result) = rt.submit(op).await;
            let Op::Recv { buf: back, .. } = op else {
                unreachable!("an operation comes back as it went");
            };
            buf = back;
            match moved(result, room) {
                Ok(n) => return Ok((n, buf)),
                Err(e) => not_now(e, || rt.readable(fd)).await?,
            }
        }
    }

    /// Sends all bytes of `parts`, in order.
    ///
    /// # Errors
    /// After any error, and when the future is dropped, some of them may have been sent.
    pub async fn send(&self, parts: &[IoView]) -> io::Result<()> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let mut done = 0;
        while done < total {
            done += self.send_from(parts, done).await?;
        }
        Ok(())
    }

    /// Sends bytes from the front of `parts`, at least one unless there is none: how many.
    pub async fn send_some(&self, parts: &[IoView]) -> io::Result<usize> {
        self.send_from(parts, 0).await
    }

    async fn send_from(&self, parts: &[IoView], from: usize) -> io::Result<usize> {
        let left = parts.iter().map(|part| part.len()).sum::<usize>() - from;
        if left == 0 {
            return Ok(0);
        }
        let (rt, fd) = match &self.0 {
            Kind::Socket { rt, fd } => (rt, fd),
            Kind::Pipe(end) => return end.send(parts, from).await,
        };
        loop {
            let op = Op::Send { socket: Arc::clone(fd), parts: parts.to_vec(), from };
            match moved(rt.submit(op).await.1, left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => return Ok(n),
                Err(e) => not_now(e, || rt.writable(fd)).await?,
            }
        }
    }

    /// The socket, for setting its options; a pipe of memory has none.
    pub fn socket(&self) -> Option<SockRef<'_>> {
        match &self.0 {
            Kind::Socket { fd, .. } => Some(SockRef::from(fd)),
            Kind::Pipe(_) => None,
        }
    }

    /// Ends both directions. Whoever waits in `recv` or `send`, here or there, returns.
    pub fn shutdown(&self) {
        match &self.0 {
            // It fails only when the peer was faster.
            Kind::Socket { fd, .. } => drop(shutdown(fd, Shutdown::Both)),
            Kind::Pipe(end) => end.shutdown(),
        }
    }

    /// Ends our direction: the peer reads what was sent, then the end of the stream.
    pub fn shutdown_send(&self) {
        match &self.0 {
            Kind::Socket { fd, .. } => drop(shutdown(fd, Shutdown::Write)),
            Kind::Pipe(end) => end.shutdown_send(),
        }
    }
}

fn moved(result: io::Result<Outcome>, most: usize) -> io::Result<usize> {
    match result? {
        Outcome::Count(n) => {
            assert!(n <= most, "the host moved {n} of {most} bytes");
            Ok(n)
        }
        Outcome::Socket(_) => unreachable!("a transfer returns a count"),
    }
}

/// Waits until it is worth while to try again after `error`, or gives it back.
async fn not_now<F: Future<Output = io::Result<()>>>(
    error: io::Error,
    ready: impl FnOnce() -> F,
) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(()),
        // The engines wait by themselves; a descriptor that was made non-blocking may still say so.
        io::ErrorKind::WouldBlock => ready().await,
        _ => Err(error),
    }
}

/// Where connections come from, on one lane. Dropping it stops listening and removes its path.
pub struct Listener {
    rt: Rt,
    fd: Fd,
    bound: Option<BoundPath>,
}

/// A socket's place in the file system, with the inode that was put there.
struct BoundPath {
    path: PathBuf,
    dev: u64,
    ino: u64,
}

impl Drop for BoundPath {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|now| (now.dev(), now.ino()) == (self.dev, self.ino));
        if ours {
            // Somebody else may have removed it since: that is what we wanted.
            drop(std::fs::remove_file(&self.path));
        }
    }
}

impl Listener {
    /// Listens at `path`. The path appears only once the socket answers: it is bound elsewhere in
    /// the folder and renamed. A stale socket there is replaced.
    ///
    /// # Errors
    /// `AddrInUse` when somebody answers there, `AlreadyExists` when something else than a socket
    /// is there.
    pub fn unix(rt: &Rt, path: impl AsRef<Path>) -> io::Result<Listener> {
        let path = path.as_ref();
        match std::fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            Ok(_) if answered_by_the_living(path) => {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            _ => {}
        }
        let fresh = path.with_file_name(format!(".varve.{}", std::process::id()));
        drop(std::fs::remove_file(&fresh));
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(&fresh)?)?;
        let listener = Listener::listen(rt, socket).and_then(|mut listener| {
            let made = std::fs::symlink_metadata(&fresh)?;
            std::fs::rename(&fresh, path)?;
            listener.bound =
                Some(BoundPath { path: path.to_path_buf(), dev: made.dev(), ino: made.ino() });
            Ok(listener)
        });
        if listener.is_err() {
            drop(std::fs::remove_file(&fresh));
        }
        listener
    }

    /// Listens at a TCP address; port 0 lets the host choose, see [`Listener::tcp_addr`].
    pub fn tcp(rt: &Rt, addr: SocketAddr) -> io::Result<Listener> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&addr.into())?;
        Listener::listen(rt, socket)
    }

    fn listen(rt: &Rt, socket: Socket) -> io::Result<Listener> {
        socket.set_nonblocking(rt.engine() == Some(Engine::Threads))?;
        socket.listen(BACKLOG)?;
        Ok(Listener { rt: rt.clone(), fd: Arc::new(socket.into()), bound: None })
    }

    /// Where a TCP listener listens.
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        SockRef::from(&self.fd).local_addr().ok()?.as_socket()
    }

    /// The next connection. One that its peer has given up already is passed over.
    ///
    /// # Errors
    /// When the host is out of descriptors or memory: wait a little before trying again.
    pub async fn accept(&self) -> io::Result<Stream> {
        loop {
            let op = Op::Accept { listener: Arc::clone(&self.fd) };
            let socket = match self.rt.submit(op).await.1 {
                Ok(Outcome::Socket(socket)) => socket,
                Ok(Outcome::Count(_)) => unreachable!("an accept returns a socket"),
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(e) => {
                    not_now(e, || self.rt.readable(&self.fd)).await?;
                    continue;
                }
            };
            if self.tcp_addr().is_some() {
                SockRef::from(&socket).set_tcp_nodelay(true)?;
            }
            return Ok(Conn::from_fd(socket).attach(&self.rt));
        }
    }
}

/// Whether a process that lives listens at `path`. For a moment after a server was killed the kernel
/// goes on accepting for it, while it takes down the dead server's ring: that socket is stale.
fn answered_by_the_living(path: &Path) -> bool {
    let Ok(stream) = std::os::unix::net::UnixStream::connect(path) else { return false };
    match rustix::net::sockopt::socket_peercred(&stream) {
        Ok(who) => !is_dead(who.pid),
        Err(_) => true,
    }
}

/// Whether the process is gone, or a zombie whose end its parent has not heard of yet. When in doubt
/// (a process of another namespace has no number here), it lives.
fn is_dead(pid: rustix::process::Pid) -> bool {
    match std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())) {
        // The state follows the name, which is in parentheses and may hold anything.
        Ok(stat) => stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])),
        Err(error) => {
            error.kind() == io::ErrorKind::NotFound && Path::new("/proc/self/stat").exists()
        }
    }
}

impl Rt {
    /// Ready when `fd` can be read without waiting (or has an error to tell).
    pub async fn readable(&self, fd: &Arc<OwnedFd>) -> io::Result<()> {
        self.poll_fd(fd, rustix::event::PollFlags::IN).await
    }

    /// Ready when `fd` can be written without waiting (or has an error to tell).
    pub async fn writable(&self, fd: &Arc<OwnedFd>) -> io::Result<()> {
        self.poll_fd(fd, rustix::event::PollFlags::OUT).await
    }

    async fn poll_fd(&self, fd: &Fd, events: rustix::event::PollFlags) -> io::Result<()> {
        loop {
            let op = Op::Poll { fd: Arc::clone(fd), events };
            match self.submit(op).await.1 {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(drop),
            }
        }
    }
}
