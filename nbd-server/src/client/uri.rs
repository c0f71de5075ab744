//! Where an export is, as people write it: an NBD URI.
//!
//! ```text
//!   nbd://HOST[:PORT]/[EXPORT]            nbd://[::1]:10809/disk
//!   nbd+unix:///[EXPORT]?socket=PATH      nbd+unix:///disk?socket=/run/s.sock
//! ```
//!
//! Export and path are percent-encoded where a character would mean something in a URI. What is
//! not understood is refused: to leave out a key that asks for encryption would be a leak.

use crate::nbd::wire::STRING_MAX;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The port that IANA gave to NBD.
const PORT: u16 = 10809;

/// An export of a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NbdUri {
    pub(super) server: ServerAt,
    /// Empty: the default export.
    pub(super) export: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum ServerAt {
    Unix(PathBuf),
    Tcp { host: String, port: u16 },
}

/// Why a text is no NBD URI that can be opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{uri}: {why}")]
pub struct NotAnExport {
    uri: String,
    why: Why,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
enum Why {
    #[error("{0}:// needs TLS, which Varve does not speak")]
    Tls(String),
    #[error("{0}:// is neither nbd:// nor nbd+unix://")]
    Scheme(String),
    #[error("a user name belongs to TLS, which Varve does not speak")]
    User,
    #[error("no host is named")]
    NoHost,
    #[error("{0:?} is no port")]
    Port(String),
    #[error("a bracket is left open")]
    Bracket,
    #[error("nbd+unix:// has three slashes, and the socket behind ?socket=")]
    HostOfSocket,
    #[error("the socket is not named: ?socket=PATH")]
    NoSocket,
    #[error("a socket is for nbd+unix://")]
    SocketOfHost,
    #[error("the key {0:?} is not known")]
    Key(String),
    #[error("the key socket comes twice")]
    Twice,
    #[error("a fragment (#) means nothing here")]
    Fragment,
    #[error("a percent sign is followed by no two hexadecimal digits")]
    Percent,
    #[error("the export's name is no UTF-8, longer than 4096 bytes, or holds a NUL")]
    Export,
}

impl NbdUri {
    /// Whether people mean a URI by it, be it one that is understood or not; otherwise it is a file's name.
    pub fn is_meant_by(text: &OsStr) -> bool {
        let scheme = text.as_bytes().split(|b| *b == b':').next().unwrap_or_default();
        let rest = text.as_bytes().get(scheme.len()..).unwrap_or_default();
        rest.starts_with(b"://") && scheme.get(..3).is_some_and(|n| n.eq_ignore_ascii_case(b"nbd"))
    }

    /// The same with a relative socket path taken to be relative to `folder`.
    pub fn beside(self, folder: &Path) -> NbdUri {
        let server = match self.server {
            ServerAt::Unix(path) => ServerAt::Unix(folder.join(path)),
            tcp @ ServerAt::Tcp { .. } => tcp,
        };
        NbdUri { server, ..self }
    }
}

impl FromStr for NbdUri {
    type Err = NotAnExport;

    fn from_str(text: &str) -> Result<NbdUri, NotAnExport> {
        parse(text).map_err(|why| NotAnExport { uri: text.to_owned(), why })
    }
}

fn parse(text: &str) -> Result<NbdUri, Why> {
    let (scheme, rest) = text.split_once("://").ok_or_else(|| Why::Scheme(String::new()))?;
    let scheme = scheme.to_ascii_lowercase();
    if rest.contains('#') {
        return Err(Why::Fragment);
    }
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = place.split_once('/').unwrap_or((place, ""));
    if authority.contains('@') {
        return Err(Why::User);
    }
    let socket = socket_of(query)?;
    let server = match scheme.as_str() {
        "nbd" if socket.is_some() => return Err(Why::SocketOfHost),
        "nbd" => tcp(authority)?,
        "nbd+unix" if !authority.is_empty() => return Err(Why::HostOfSocket),
        "nbd+unix" => ServerAt::Unix(socket.ok_or(Why::NoSocket)?),
        scheme if scheme.starts_with("nbds") => return Err(Why::Tls(scheme.to_owned())),
        scheme => return Err(Why::Scheme(scheme.to_owned())),
    };
    let export = String::from_utf8(decoded(path)?).map_err(|_| Why::Export)?;
    if export.len() > STRING_MAX || export.contains('\0') {
        return Err(Why::Export);
    }
    Ok(NbdUri { server, export })
}

fn tcp(authority: &str) -> Result<ServerAt, Why> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or(Why::Bracket)?;
            match port.strip_prefix(':') {
                None if !port.is_empty() => return Err(Why::Port(port.to_owned())),
                port => (host, port),
            }
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    // RFC 3986 allows a colon without a port.
    let port = match port {
        None | Some("") => PORT,
        Some(text) => text.parse().ok().filter(|n| *n != 0).ok_or(Why::Port(text.to_owned()))?,
    };
    let host = String::from_utf8(decoded(host)?).map_err(|_| Why::NoHost)?;
    if host.is_empty() {
        return Err(Why::NoHost);
    }
    Ok(ServerAt::Tcp { host, port })
}

fn socket_of(query: &str) -> Result<Option<PathBuf>, Why> {
    let mut socket = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if key != "socket" {
            return Err(Why::Key(key.to_owned()));
        }
        let path = OsString::from_vec(decoded(value)?);
        if path.is_empty() || path.as_bytes().contains(&0) {
            return Err(Why::NoSocket);
        }
        if socket.replace(PathBuf::from(path)).is_some() {
            return Err(Why::Twice);
        }
    }
    Ok(socket)
}

fn decoded(text: &str) -> Result<Vec<u8>, Why> {
    let mut bytes = text.bytes();
    let mut all = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            all.push(byte);
            continue;
        }
        let mut digit = || {
            let digit = char::from(bytes.next()?).to_digit(16)?;
            u8::try_from(digit).ok()
        };
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err(Why::Percent) };
        all.push(high << 4 | low);
    }
    Ok(all)
}

/// Bytes as a URI writes them.
pub(crate) struct Encoded<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => write!(f, "{}", char::from(*byte))?,
                b'-' | b'.' | b'_' | b'~' | b'/' | b':' => write!(f, "{}", char::from(*byte))?,
                _ => write!(f, "%{byte:02X}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = Encoded(self.export.as_bytes());
        match &self.server {
            ServerAt::Unix(path) => {
                write!(f, "nbd+unix:///{export}?socket={}", Encoded(path.as_os_str().as_bytes()))
            }
            ServerAt::Tcp { host, port } => {
                let host = Encoded(host.as_bytes());
                // Only an address of IPv6 has colons.
                match host.0.contains(&b':') {
                    true => write!(f, "nbd://[{host}]")?,
                    false => write!(f, "nbd://{host}")?,
                }
                if *port != PORT {
                    write!(f, ":{port}")?;
                }
                write!(f, "/{export}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tcp(host: &str, port: u16, export: &str) -> NbdUri {
        NbdUri { server: ServerAt::Tcp { host: host.into(), port }, export: export.into() }
    }

    fn unix(path: &str, export: &str) -> NbdUri {
        NbdUri { server: ServerAt::Unix(path.into()), export: export.into() }
    }

    #[test]
    fn exports_are_named_as_everybody_names_them() {
        for (text, means) in [
            ("nbd://localhost", tcp("localhost", PORT, "")),
            ("nbd://localhost/", tcp("localhost", PORT, "")),
            ("nbd://10.0.0.1:1234/disk", tcp("10.0.0.1", 1234, "disk")),
            ("NBD://host:/a/b", tcp("host", PORT, "a/b")),
            ("nbd://host//abs", tcp("host", PORT, "/abs")),
            ("nbd://[::1]/x", tcp("::1", PORT, "x")),
            ("nbd://[fe80::1%25eth0]:99/x", tcp("fe80::1%eth0", 99, "x")),
            ("nbd+unix:///?socket=s.sock", unix("s.sock", "")),
            ("nbd+unix://?socket=s.sock", unix("s.sock", "")),
            ("nbd+unix:///d%20e?socket=/run/a%3Fb", unix("/run/a?b", "d e")),
        ] {
            assert_eq!(text.parse(), Ok(means), "{text}");
            assert!(NbdUri::is_meant_by(text.as_ref()), "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (text, why) in [
            ("nbds://host/x", Why::Tls("nbds".into())),
            ("nbds+unix:///?socket=s", Why::Tls("nbds+unix".into())),
            ("nbd+vsock:///x", Why::Scheme("nbd+vsock".into())),
            ("nbd:///x", Why::NoHost),
            ("nbd://u@host/", Why::User),
            ("nbd://host:0/", Why::Port("0".into())),
            ("nbd://host:70000/", Why::Port("70000".into())),
            ("nbd://[::1/", Why::Bracket),
            ("nbd://[::1]9/", Why::Port("9".into())),
            ("nbd://host/?socket=s", Why::SocketOfHost),
            ("nbd://host/?tls-certificates=d", Why::Key("tls-certificates".into())),
            ("nbd+unix:///", Why::NoSocket),
            ("nbd+unix:///?socket=", Why::NoSocket),
            ("nbd+unix://host/?socket=s", Why::HostOfSocket),
            ("nbd+unix:///?socket=a&socket=b", Why::Twice),
            ("nbd+unix:///x#y?socket=a", Why::Fragment),
            ("nbd+unix:///%2?socket=a", Why::Percent),
            ("nbd+unix:///%zz?socket=a", Why::Percent),
            ("nbd+unix:///%FF?socket=a", Why::Export),
            ("nbd+unix:///%00?socket=a", Why::Export),
        ] {
            let refused = text.parse::<NbdUri>().expect_err(text);
            assert_eq!(refused.why, why, "{text}");
            assert!(NbdUri::is_meant_by(text.as_ref()), "{text}");
            assert!(refused.to_string().starts_with(text));
        }
    }

    #[test]
    fn files_are_files() {
        for text in ["disk.img", "/dev/sdb", "nbd", "nbd:", "nbd:/x", "./nbd://x", "http://nbd"] {
            assert!(!NbdUri::is_meant_by(text.as_ref()), "{text}");
        }
    }

    #[test]
    fn a_relative_socket_lies_beside_the_file_that_names_it() {
        let uri: NbdUri = "nbd+unix:///x?socket=s.sock".parse().unwrap();
        assert_eq!(uri.beside("/etc/varve".as_ref()), unix("/etc/varve/s.sock", "x"));
        let uri: NbdUri = "nbd+unix:///x?socket=/run/s".parse().unwrap();
        assert_eq!(uri.clone().beside("/etc/varve".as_ref()), uri);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(export in "[^\0]{0,20}", path in "[^\0]{1,20}", port in 1_u16..) {
            for uri in [unix(&path, &export), tcp("a.b", port, &export), tcp("::1", port, &export)] {
                prop_assert_eq!(uri.to_string().parse(), Ok(uri));
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in "nbd(s|\\+unix)?://.{0,40}") {
            if let Ok(uri) = text.parse::<NbdUri>() {
                prop_assert_eq!(uri.to_string().parse(), Ok(uri));
            }
        }
    }
}
