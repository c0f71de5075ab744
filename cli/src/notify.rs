//! Tells the service manager how far the server is (`Type=notify`): a datagram to `NOTIFY_SOCKET`, as
//! sd_notify(3) describes it. Without that variable nothing is sent.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The sockets answer.
pub(crate) fn ready() {
    tell("READY=1\n");
}

/// The server drains and stops.
pub(crate) fn stopping() {
    tell("STOPPING=1\n");
}

fn tell(state: &str) {
    let Some(place) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&place, state) {
        tracing::warn!(%error, place = %place.to_string_lossy(), "the service manager was not told");
    }
}

fn send(place: &OsStr, state: &str) -> io::Result<()> {
    let address = match place.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(place)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_abstract_names_are_both_places() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("varve-notify-{}", std::process::id());
        let there = UnixDatagram::bind(&path).unwrap();
        let hidden =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send(path.as_os_str(), "READY=1\n").unwrap();
        send(OsStr::new(&format!("@{name}")), "STOPPING=1\n").unwrap();
        let mut said = [0; 32];
        let n = there.recv(&mut said).unwrap();
        assert_eq!(&said[..n], b"READY=1\n");
        let n = hidden.recv(&mut said).unwrap();
        assert_eq!(&said[..n], b"STOPPING=1\n");
        assert!(send(OsStr::new("/absent/notify"), "READY=1\n").is_err());
    }
}
