"""Fills a mounted btrfs with one of everything a reader can meet. Argument: the mount point."""
import os, random, socket, stat, subprocess, sys

os.chdir(sys.argv[1])
rng = random.Random(20)
words = [rng.randbytes(rng.randint(3, 9)).hex().encode() for _ in range(400)]


def text(size):
    out = bytearray()
    while len(out) < size:
        out += rng.choice(words) + b" "
    return bytes(out[:size])


def put(name, data):
    with open(name, "wb") as f:
        f.write(data)


def run(*args, check=True):
    return subprocess.run(args, check=check, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


# Sizes around every border: inline, sector, compressed unit, window.
os.mkdir("sizes")
for size in [0, 1, 2047, 2048, 2049, 4095, 4096, 4097, 8191, 131071, 131072, 131073, 400000]:
    put(f"sizes/text-{size}", text(size))
    put(f"sizes/noise-{size}", rng.randbytes(size))
put("zeroes", bytes(1500000))
put("big-noise", rng.randbytes(5000000))
put("big-text", text(3300000))
os.sync()

# Names.
os.mkdir("names")
for n in range(400):
    put(f"names/file {n}", text(n * 7))
put("names/" + "x" * 255, b"longest")
put(b"names/\xff\xfe\n\x01", b"any byte")
for name in ["4mcqpb1w9r", "ymgbw34tsy", "ox1fbphpbi", "2w7e9g8wft"]:
    put("names/" + name, name.encode())
for n in range(1, 400, 3):
    os.unlink(f"names/file {n}")
deep = "deep"
for _ in range(30):
    os.mkdir(deep)
    deep += "/d"
put(deep, b"bottom")

# More links than an INODE_REF holds, and two of one hash.
put("linked", b"many names")
os.mkdir("links")
for n in range(300):
    os.link("linked", f"links/hardlink-{n:04}-" + "n" * 60)
for name in ["lbls90t6ws", "62bxy490uf"]:
    os.link("linked", name)

# Kinds.
os.symlink("sizes/text-4096", "symlink")
os.symlink("/names", "absolute")
os.symlink("t" * 2000, "long-symlink")
os.symlink("loop", "loop")
os.mkfifo("fifo")
os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
os.mknod("disk", stat.S_IFBLK | 0o600, os.makedev(259, 1048575))
socket.socket(socket.AF_UNIX).bind("socket")

# Holes, preallocation, overwriting, truncation.
with open("holes", "wb") as f:
    f.truncate(3000000)
    f.seek(1000000)
    f.write(text(70000))
    f.seek(2999990)
    f.write(b"end")
run("fallocate", "-l", "2000000", "prealloc")
put("keep-size", b"")
run("fallocate", "-n", "-o", "8192", "-l", "500000", "keep-size")
with open("prealloc", "r+b") as f:
    for at in range(0, 1900000, 300000):
        f.seek(at)
        f.write(rng.randbytes(10000))
put("patched", text(1200000))
os.sync()
with open("patched", "r+b") as f:
    for at in range(5000, 1200000, 90001):
        f.seek(at)
        f.write(rng.randbytes(4000))
    f.flush()
    os.fsync(f.fileno())
    f.seek(600000)
    f.truncate(1100001)
run("fallocate", "-p", "-o", "131072", "-l", "262144", "patched")
put("inline-then-longer", b"short")
os.sync()
os.truncate("inline-then-longer", 100000)

# Reflinks into the middle of extents.
run("cp", "--reflink=always", "big-text", "reflink")
os.sync()
with open("reflink", "r+b") as f:
    f.seek(1000000)
    f.write(b"different")

# No checksums, no copy on write.
put("nocow", b"")
run("chattr", "+C", "nocow", check=False)
put("nocow", rng.randbytes(300000))

# Attributes: small, long, one hash, an ACL, capabilities by hand, and times before 1970.
os.mkdir("attrs")
put("attrs/file", b"x")
for n in range(40):
    os.setxattr("attrs/file", f"user.name{n}", rng.randbytes(n * 5))
os.setxattr("attrs/file", "user.o953q73mvm", b"one")
os.setxattr("attrs/file", "user.r51x0gag3f", b"two")
os.setxattr("attrs/file", "user.large", rng.randbytes(3000))
os.setxattr("attrs", "trusted.on.directory", b"\0\1\2")
owner, user, group, mask, other = (
    "01000600ffffffff", "02000400e8030000", "04000400ffffffff", "10000400ffffffff", "20000400ffffffff"
)
acl = bytes.fromhex("02000000" + owner + user + group + mask + other)
os.setxattr("attrs/file", "system.posix_acl_access", acl)
os.chmod("attrs/file", 0o4751)
os.chown("attrs/file", 12345, 4000000000)
os.utime("attrs/file", ns=(-5_000_000_001, 4_000_000_000_123_456_789))

# Subvolumes: nested, snapshotted twice, changed in between.
run("btrfs", "subvolume", "create", "sub")
put("sub/file", text(500000))
run("btrfs", "subvolume", "create", "sub/nested")
put("sub/nested/inside", b"nested")
run("btrfs", "subvolume", "snapshot", "-r", "sub", "snap1")
put("sub/file2", text(30000))
os.unlink("sub/file")
run("btrfs", "subvolume", "snapshot", "sub", "snap2")
put("snap2/only-here", rng.randbytes(20000))
os.sync()
