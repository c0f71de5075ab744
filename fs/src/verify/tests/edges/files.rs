//! Items of file trees and checksums: A.3 to A.6, A.10.

use super::*;

pub(super) fn edges(edges: &mut Edges) {
    file_extents(edges);
    checksums(edges);
    entries(edges);
    lengths_of_entries(edges);
    names(edges);
    inodes(edges);
}

fn extent(offset: u64, data: impl AsRef<[u8]>) -> NewItem {
    item(257, T::EXTENT_DATA, offset, data)
}

fn file_extents(edges: &mut Edges) {
    let good = regular(place(1 << 20, 8192));
    let key = Key::new(257, T::EXTENT_DATA, 0);
    edges.items(17, 5, |at| vec![extent(at, &good)], &[0, 4096], &[1, 4095, 4097]);
    for kind in
        [T::EXTENT_DATA, T::INODE_REF, T::INODE_EXTREF, T::DIR_ITEM, T::DIR_INDEX, T::XATTR_ITEM]
    {
        let name = InodeRef { parent: 256, index: 2, name: b"n" };
        let (kind_of_entry, location) = match kind {
            T::XATTR_ITEM => (8, Key::MIN),
            _ => (1, Key::new(257, T::INODE_ITEM, 0)),
        };
        let entry = DirItem { location, transid: 9, kind: kind_of_entry, name: b"n", data: b"" };
        let (offset, data) = match kind {
            T::EXTENT_DATA => (0, good.clone()),
            T::INODE_REF => (256, name.encode()),
            T::INODE_EXTREF => (256, name.encode_ext()),
            _ => (name_hash(b"n"), entry.encode()),
        };
        let before = |ino| {
            let inode = Inode { generation: 9, mode: 0o100_644, nlink: 1, ..Inode::default() };
            vec![item(ino, T::INODE_ITEM, 0, inode.encode()), item(258, kind, offset, data.clone())]
        };
        edges.items(18, 5, before, &[258], &[257]);
    }
    edges.data(19, 5, key, &[inline(b"")], &[inline(b"")[..20].to_vec()]);
    edges.data(20, 5, key, &[patch(&good, 20, &[2])], &[patch(&good, 20, &[3])]);
    edges.data(21, 5, key, &[patch(&good, 16, &[3])], &[patch(&good, 16, &[4])]);
    edges.data(22, 5, key, &[&good], &[patch(&good, 17, &[1])]);
    edges.items(23, 5, |at| vec![extent(at, inline(b"x"))], &[0], &[4096]);
    let ram = |n: u8| patch(inline(b"hello"), 8, &[n]);
    edges.data(24, 5, key, &[ram(5)], &[ram(4), ram(6)]);
    // A packed one may be longer than its item.
    edges.data(24, 5, key, &[patch(ram(200), 16, &[1])], &[ram(200)]);
    let longer = [&good[..], &[0]].concat();
    edges.data(25, 5, key, &[&good], &[good[..52].to_vec(), longer]);
    for (rule, at) in [(26, 8), (27, 0x15), (28, 0x1d), (29, 0x25), (30, 0x2d)] {
        let with = |n: u64| patch(&good, at, &n.to_le_bytes());
        edges.data(rule, 5, key, &[with(4096), with(8192)], &[with(4095), with(4097), with(1)]);
    }
    let long = |len: u64| vec![extent(1 << 63, patch(&good, 0x2d, &len.to_le_bytes()))];
    edges.items(31, 5, long, &[(1 << 63) - 4096], &[1 << 63]);
    let two = |first: Vec<u8>| move |next| vec![extent(0, &first), extent(next, &good)];
    edges.items(32, 5, two(regular(place(1 << 20, 8192))), &[8192, 12288], &[4096]);
    // An inline extent reaches to the end of its last sector.
    edges.items(
        32,
        5,
        |len| vec![extent(0, inline(&vec![1; len])), extent(4096, regular(place(1 << 20, 4096)))],
        &[1, 4096],
        &[4097],
    );
}

fn checksums(edges: &mut Edges) {
    let one = |objectid, offset, len: usize| item(objectid, T::EXTENT_CSUM, offset, vec![0; len]);
    let own = id::EXTENT_CSUM;
    edges.items(34, 7, |id| vec![one(id, 0, 4)], &[own], &[own - 1, own + 1]);
    edges.items(35, 7, |at| vec![one(own, at, 4)], &[0, 4096], &[1, 4095, 4097]);
    edges.items(36, 7, |len| vec![one(own, 0, len)], &[4, 16_256], &[3, 5]);
    edges.items(37, 7, |next| vec![one(own, 0, 8), one(own, next, 4)], &[8192], &[4096]);
}

const ENTRY: DirItem<'_> = DirItem {
    location: Key { objectid: 257, kind: T::INODE_ITEM, offset: 0 },
    transid: 9,
    kind: 1,
    name: b"name",
    data: b"",
};
const ATTR: DirItem<'_> = DirItem { location: Key::MIN, kind: 8, name: b"user.a", ..ENTRY };

fn entry(e: DirItem<'_>) -> Vec<NewItem> {
    vec![item(256, T::DIR_ITEM, name_hash(e.name), e.encode())]
}

fn attr(e: DirItem<'_>) -> Vec<NewItem> {
    vec![item(256, T::XATTR_ITEM, name_hash(e.name), e.encode())]
}

/// Rules 39 to 45: a whole entry, and where it leads.
fn entries(edges: &mut Edges) {
    let collide =
        [&b"4mcqpb1w9r"[..], b"ymgbw34tsy"].map(|name| DirItem { name, ..ENTRY }.encode());
    let both = collide.concat();
    let key = Key::new(256, T::DIR_ITEM, name_hash(b"4mcqpb1w9r"));
    let cut = |n: usize| both[..40 + n].to_vec();
    edges.data(39, 5, key, &[cut(0), cut(40)], &[cut(1), cut(29)]);
    edges.data(52, 5, key, &[cut(40)], &[cut(30), cut(39)]);
    let to = |kind| move |id| entry(DirItem { location: Key::new(id, kind, 0), ..ENTRY });
    edges.items(40, 5, to(T::ROOT_ITEM), &[5], &[0]);
    edges.items(41, 5, to(T::ROOT_ITEM), &FILE_TREES, &NO_FILE_TREES);
    edges.items(42, 5, to(T::INODE_ITEM), &INODES, &NO_INODES);
    edges.items(42, 5, to(T::INODE_ITEM), &[6, id::FREE_INO], &[5, 7, id::FREE_INO - 1]);
    let offset = |offset| entry(DirItem { location: Key { offset, ..ENTRY.location }, ..ENTRY });
    edges.items(43, 5, offset, &[0], &[1, u64::MAX]);
    let inode_zero = Key::new(0, T::INODE_ITEM, 0);
    edges.items(44, 5, |location| attr(DirItem { location, ..ATTR }), &[Key::MIN], &[inode_zero]);
    let kind = |kind| entry(DirItem { location: Key::new(257, ItemType(kind), 0), ..ENTRY });
    edges.items(45, 5, kind, &[0, 1, 132], &[2, 131, 133]);
}

/// Rules 46 to 53.
fn lengths_of_entries(edges: &mut Edges) {
    edges.items(46, 5, |kind| entry(DirItem { kind, ..ENTRY }), &[1, 7], &[0, 9]);
    edges.items(47, 5, |kind| attr(DirItem { kind, ..ATTR }), &[8], &[7]);
    edges.items(48, 5, |kind| entry(DirItem { kind, ..ENTRY }), &[7], &[8]);
    let name = [b'x'; 256];
    edges.items(49, 5, |n| entry(DirItem { name: &name[..n], ..ENTRY }), &[1, 255], &[0, 256]);
    let room = 16_228 - ATTR.name.len();
    let value = vec![1; room];
    let largest = DirItem { data: &value, ..ATTR }.encode();
    let claims = u16::try_from(room + 1).expect("it fits").to_le_bytes();
    let key = Key::new(256, T::XATTR_ITEM, name_hash(ATTR.name));
    edges.data(50, 5, key, &[&largest], &[patch(&largest, 25, &claims)]);
    edges.items(51, 5, |n| entry(DirItem { data: &name[..n], ..ENTRY }), &[0], &[1]);
    let hash = name_hash(ENTRY.name);
    let under = |hash| vec![item(256, T::DIR_ITEM, hash, ENTRY.encode())];
    edges.items(53, 5, under, &[hash], &[hash - 1, hash + 1]);
}

fn names(edges: &mut Edges) {
    let text = [b'x'; 256];
    let name = |n: usize| InodeRef { parent: 256, index: 2, name: &text[..n] };
    let key = Key::new(257, T::INODE_REF, 256);
    let plain = |n: usize| name(n).encode();
    edges.data(55, 5, key, &[plain(1)], &[plain(1)[..10].to_vec()]);
    let and = |n: usize| [plain(3), plain(1)[..n].to_vec()].concat();
    edges.data(56, 5, key, &[and(0), and(11)], &[and(1), and(9)]);
    edges.data(57, 5, key, &[plain(1), plain(255)], &[[plain(0), plain(1)].concat(), plain(256)]);
    edges.data(58, 5, key, &[plain(4)], &[plain(4)[..13].to_vec()]);
    let key = Key::new(257, T::INODE_EXTREF, 9);
    let ext = |n: usize| name(n).encode_ext();
    let and = |n: usize| [ext(3), ext(1)[..n].to_vec()].concat();
    edges.data(59, 5, key, &[ext(1), and(0), and(19)], &[ext(1)[..17].to_vec(), and(17)]);
    edges.data(60, 5, key, &[ext(1), ext(255)], &[ext(0), ext(256), ext(4)[..21].to_vec()]);
}

fn inodes(edges: &mut Edges) {
    let good = Inode { generation: 9, transid: 9, nlink: 1, mode: 0o40755, ..Inode::default() };
    let at = |ino, offset, i: Inode| vec![item(ino, T::INODE_ITEM, offset, i.encode())];
    edges.items(95, 5, |ino| at(ino, 0, good), &INODES, &NO_INODES);
    let odd = [6, id::FREE_INO];
    edges.items(95, 5, |ino| at(ino, 0, good), &odd, &[5, 7, odd[1] - 1, odd[1] + 1]);
    edges.items(96, 5, |offset| at(256, offset, good), &[0], &[1]);
    let sized =
        |len| vec![item(256, T::INODE_ITEM, 0, &[good.encode().as_ref(), &[0]].concat()[..len])];
    edges.items(97, 5, sized, &[160], &[159, 161]);
    edges.items(98, 5, |generation| at(256, 0, Inode { generation, ..good }), &[0, 10], &[11]);
    edges.items(99, 5, |transid| at(256, 0, Inode { transid, ..good }), &[0, 10], &[11]);
    let mode = |mode| at(256, 0, Inode { mode, ..good });
    edges.items(100, 5, mode, &[0o147_777], &[0o347_777]);
    edges.items(101, 5, mode, &[0o010_000, 0o140_000], &[0, 0o007_777, 0o150_000]);
    edges.items(102, 5, |nlink| at(256, 0, Inode { nlink, ..good }), &[0, 1], &[2]);
    let file = Inode { mode: 0o100_644, nlink: u32::MAX, ..good };
    edges.items(102, 5, |mode| at(256, 0, Inode { mode, ..file }), &[0o100_644], &[0o40_755]);
    let flags = |bit: u32| {
        let flags = InodeFlags::from_bits_retain(1 << bit);
        at(256, 0, Inode { flags, ..good })
    };
    edges.items(103, 5, flags, &[0, 11, 31], &[12, 30]);
    edges.items(104, 5, flags, &[32], &[33, 63]);
}
