//! What the kernel asks, as values.

use super::wire::{RawAccess, RawRead, RawRequest, RawSeek, RawXattr, opcode};
use zerocopy::FromBytes;

/// A request of the kernel.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Request {
    pub(super) unique: u64,
    pub(super) uid: u32,
    pub(super) opcode: u32,
    pub(super) ask: Ask,
}

#[derive(PartialEq, Eq, Debug)]
pub(super) enum Ask {
    Lookup {
        parent: u64,
        name: Vec<u8>,
    },
    Attr {
        node: u64,
    },
    Link {
        node: u64,
    },
    Read {
        node: u64,
        offset: u64,
        len: u32,
    },
    Names {
        node: u64,
        offset: u64,
        room: u32,
    },
    NamesPlus {
        node: u64,
        offset: u64,
        room: u32,
    },
    Xattr {
        node: u64,
        name: Vec<u8>,
        room: u32,
    },
    Xattrs {
        node: u64,
        room: u32,
    },
    Seek {
        node: u64,
        offset: u64,
        data: bool,
    },
    Space,
    Open {
        folder: bool,
    },
    Access {
        mask: u32,
    },
    /// Done as soon as it is asked for.
    Nothing,
    /// Not even an answer is wanted.
    Forget,
    /// It was unmounted.
    Destroy,
    /// What a place in the file is, that is none.
    Beyond,
    /// Something else, which the kernel does without from then on.
    Unknown,
}

impl Request {
    /// `None`: too short to be one.
    pub(super) fn parse(bytes: &[u8]) -> Option<Request> {
        let (head, rest) = RawRequest::read_from_prefix(bytes).ok()?;
        let RawRequest { opcode, unique, node, uid, .. } = head;
        Some(Request { unique, uid, opcode, ask: ask(opcode, node, rest)? })
    }

    /// Whether it may come from anybody: the kernel asks on its own account, and what a file holds was
    /// decided when it was opened.
    pub(super) fn for_all(&self) -> bool {
        use opcode::{BATCH_FORGET, DESTROY, FORGET, FSYNC, READ};
        use opcode::{READDIR, READDIRPLUS, RELEASE, RELEASEDIR};
        let all = [READ, READDIR, READDIRPLUS, RELEASE, RELEASEDIR];
        all.contains(&self.opcode) || [FORGET, BATCH_FORGET, FSYNC, DESTROY].contains(&self.opcode)
    }
}

fn ask(opcode: u32, node: u64, rest: &[u8]) -> Option<Ask> {
    Some(match opcode {
        opcode::LOOKUP => Ask::Lookup { parent: node, name: name(rest)? },
        opcode::GETATTR => Ask::Attr { node },
        opcode::READLINK => Ask::Link { node },
        opcode::READ | opcode::READDIR | opcode::READDIRPLUS => {
            let (RawRead { offset, len, .. }, _) = RawRead::read_from_prefix(rest).ok()?;
            match opcode {
                opcode::READ => Ask::Read { node, offset, len },
                opcode::READDIR => Ask::Names { node, offset, room: len },
                _ => Ask::NamesPlus { node, offset, room: len },
            }
        }
        opcode::GETXATTR => {
            let (RawXattr { room, .. }, rest) = RawXattr::read_from_prefix(rest).ok()?;
            Ask::Xattr { node, name: name(rest)?, room }
        }
        opcode::LISTXATTR => {
            let (RawXattr { room, .. }, _) = RawXattr::read_from_prefix(rest).ok()?;
            Ask::Xattrs { node, room }
        }
        opcode::LSEEK => {
            let (RawSeek { offset, whence, .. }, _) = RawSeek::read_from_prefix(rest).ok()?;
            // The kernel does the other kinds itself. 3 is SEEK_DATA, 4 is SEEK_HOLE.
            match (i64::try_from(offset), whence) {
                (Ok(_), 3 | 4) => Ask::Seek { node, offset, data: whence == 3 },
                (Err(_), 3 | 4) => Ask::Beyond,
                _ => Ask::Unknown,
            }
        }
        opcode::STATFS => Ask::Space,
        opcode::OPEN | opcode::OPENDIR => Ask::Open { folder: opcode == opcode::OPENDIR },
        opcode::ACCESS => {
            let (RawAccess { mask, .. }, _) = RawAccess::read_from_prefix(rest).ok()?;
            Ask::Access { mask }
        }
        opcode::RELEASE | opcode::RELEASEDIR | opcode::FSYNC => Ask::Nothing,
        opcode::FORGET | opcode::BATCH_FORGET => Ask::Forget,
        opcode::DESTROY => Ask::Destroy,
        _ => Ask::Unknown,
    })
}

/// A name, up to the zero that ends it.
fn name(bytes: &[u8]) -> Option<Vec<u8>> {
    Some(std::ffi::CStr::from_bytes_until_nul(bytes).ok()?.to_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, rest: &[u8]) -> Vec<u8> {
        let head = [(40 + rest.len() as u64) | u64::from(opcode) << 32, 7, 300, 1000, 0];
        head.iter().flat_map(|word| word.to_le_bytes()).chain(rest.iter().copied()).collect()
    }

    #[test]
    fn requests_are_read_as_the_kernel_writes_them() {
        let of = |opcode, rest: &[u8]| Request::parse(&request(opcode, rest)).map(|r| r.ask);
        let words = |words: &[u64]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>();
        let read = words(&[0, 8192, 4096, 0, 0]);
        assert_eq!(of(15, &read), Some(Ask::Read { node: 300, offset: 8192, len: 4096 }));
        assert_eq!(of(44, &read), Some(Ask::NamesPlus { node: 300, offset: 8192, room: 4096 }));
        assert_eq!(of(1, b"name\0"), Some(Ask::Lookup { parent: 300, name: b"name".to_vec() }));
        let xattr = [&words(&[64])[..], b"user.a\0"].concat();
        let wanted = Ask::Xattr { node: 300, name: b"user.a".to_vec(), room: 64 };
        assert_eq!(of(22, &xattr), Some(wanted));
        let seek = |offset, whence| of(46, &words(&[0, offset, whence]));
        assert_eq!(seek(5, 4), Some(Ask::Seek { node: 300, offset: 5, data: false }));
        assert_eq!(seek(u64::MAX, 3), Some(Ask::Beyond));
        assert_eq!(of(36, &words(&[1])), Some(Ask::Unknown), "INTERRUPT");
        let whole = Request::parse(&request(15, &read)).unwrap();
        assert_eq!((whole.unique, whole.uid, whole.for_all()), (7, 1000, true));
    }

    #[test]
    fn what_is_cut_short_is_no_request() {
        for (opcode, rest) in [(15, &[0; 39][..]), (1, b"no end"), (22, &[0; 8]), (46, &[0; 23])] {
            assert_eq!(Request::parse(&request(opcode, rest)), None, "{opcode}");
        }
        assert_eq!(Request::parse(&request(15, &[0; 40])[..39]), None);
    }
}
