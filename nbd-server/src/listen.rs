//! Where a server listens, as people write it.

use crate::client::Encoded;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use varve_block::Rt;
use varve_block::rt::Listener;

/// Where to listen: `unix:PATH` or `tcp:HOST:PORT`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Listen {
    Unix(PathBuf),
    /// Port 0 lets the host choose.
    Tcp {
        host: String,
        port: u16,
    },
}

/// What is wrong with the text of a [`Listen`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is neither unix:PATH nor tcp:HOST:PORT")]
pub struct NotAPlace(String);

impl FromStr for Listen {
    type Err = NotAPlace;

    fn from_str(text: &str) -> Result<Listen, NotAPlace> {
        let wrong = || NotAPlace(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            let named = Path::new(path).file_name().is_some();
            return if named { Ok(Listen::Unix(path.into())) } else { Err(wrong()) };
        }
        let rest = text.strip_prefix("tcp:").ok_or_else(wrong)?;
        let (host, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().map_err(|_| wrong())?;
        if host.is_empty() {
            return Err(wrong());
        }
        Ok(Listen::Tcp { host: host.to_owned(), port })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
            Listen::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
        }
    }
}

/// Where clients find a server, as they write it: an NBD URI.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => {
                write!(f, "nbd+unix:///?socket={}", Encoded(path.as_os_str().as_bytes()))
            }
            Address::Tcp(address) => write!(f, "nbd://{address}"),
        }
    }
}

impl Listen {
    /// Listens, at every address that the name means.
    pub(crate) fn open(&self, rt: &Rt) -> io::Result<Vec<(Listener, Address)>> {
        let (host, port) = match self {
            Listen::Unix(path) => {
                let listener = Listener::unix(rt, path)?;
                return Ok(vec![(listener, Address::Unix(std::path::absolute(path)?))]);
            }
            Listen::Tcp { host, port } => (host.as_str(), *port),
        };
        let mut places = Vec::new();
        let mut refused = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in (host, port).to_socket_addrs()? {
            match Listener::tcp(rt, address) {
                Ok(listener) => {
                    let bound = listener.tcp_addr().unwrap_or(address);
                    places.push((listener, Address::Tcp(bound)));
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
                // `localhost` often means an IPv6 address that the host does not have.
                Err(error) => refused = error,
            }
        }
        if places.is_empty() { Err(refused) } else { Ok(places) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_are_written() {
        for text in ["unix:s.sock", "unix:/run/a b", "tcp:localhost:10809", "tcp:10.0.0.1:0"] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        let v6 = Listen::Tcp { host: "::1".into(), port: 10809 };
        assert_eq!("tcp:[::1]:10809".parse(), Ok(v6));
        for text in ["", "unix:", "unix:/", "tcp:", "tcp:h", "tcp::1", "tcp:h:70000", "s.sock"] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
    }
}
