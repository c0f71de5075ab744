"""Random changes to a subvolume, from a seed. Arguments: folder, seed, how many."""
import fcntl, os, random, shutil, struct, subprocess, sys

os.chdir(sys.argv[1])
rng = random.Random(int(sys.argv[2]))
FICLONERANGE = 0x4020940D


def everything():
    folders, files = ["."], []
    for top, dirs, names in os.walk("."):
        folders += [os.path.join(top, d) for d in dirs]
        files += [os.path.join(top, n) for n in names]
    return sorted(folders), sorted(files)


def regular(files):
    return [f for f in files if os.path.isfile(f) and not os.path.islink(f)]


def new_name(folders):
    # Few names, so that they are used again and again.
    return os.path.join(rng.choice(folders), rng.choice("abcdefghijkl"))


def unlinked(path):
    """A link in the way goes: writing through it would change what lies outside the folder."""
    if os.path.islink(path):
        os.unlink(path)
    return path


def write(path):
    unlinked(path)
    with open(path, "r+b" if os.path.exists(path) else "wb") as f:
        f.seek(rng.choice([0, 0, 100, 4096, 8192, 50000, 200000]))
        size = rng.choice([1, 50, 3000, 4096, 9000, 140000])
        data = rng.randbytes(size) if rng.random() < 0.5 else bytes([rng.randrange(256)]) * size
        f.write(data)


def clone(src, dst):
    unlinked(dst)
    size = os.path.getsize(src)
    at = rng.choice([0, 0, 4096, 8192])
    if at >= size:
        return
    length = 0 if rng.random() < 0.6 else min(8192, (size - at) // 4096 * 4096)
    to = rng.choice([0, 0, 4096, 65536])
    with open(src, "rb") as a, open(dst, "r+b" if os.path.exists(dst) else "wb") as b:
        try:
            fcntl.ioctl(b, FICLONERANGE, struct.pack("qQQQ", a.fileno(), at, length, to))
        except OSError:
            pass  # overlapping, or not aligned


def swap(a, b):
    temp = "swap-temp"
    os.rename(a, temp)
    os.rename(b, a)
    os.rename(temp, b)


def inside(folder, other):
    return (other + "/").startswith(folder + "/")


def step():
    folders, files = everything()
    below = [f for f in folders if f != "."]
    plain = regular(files)
    op = rng.choice(
        "mkdir create create write write write truncate rename rename rename-folder rename-folder link "
        "unlink rmdir rmtree symlink mkfifo chmod chown xattr xattr rmxattr clone clone punch prealloc swap "
        "swap-folders replace".split()
    )
    if op == "mkdir":
        os.mkdir(new_name(folders))
    elif op == "create":
        write(new_name(folders))
    elif op == "write" and plain:
        write(rng.choice(plain))
    elif op == "truncate" and plain:
        os.truncate(rng.choice(plain), rng.choice([0, 10, 4096, 5000, 100000, 300000]))
    elif op == "rename" and files:
        os.rename(rng.choice(files), new_name(folders))
    elif op == "rename-folder" and below:
        os.rename(rng.choice(below), new_name(folders))
    elif op == "link" and files:
        os.link(rng.choice(files), new_name(folders), follow_symlinks=False)
    elif op == "unlink" and files:
        os.unlink(rng.choice(files))
    elif op == "rmdir" and below:
        os.rmdir(rng.choice(below))
    elif op == "rmtree" and below and rng.random() < 0.3:
        shutil.rmtree(rng.choice(below))
    elif op == "symlink":
        os.symlink(rng.choice(["a", "../b", "/nowhere"]), new_name(folders))
    elif op == "mkfifo":
        os.mkfifo(new_name(folders))
    elif op == "chmod":
        path = rng.choice(folders + plain)
        os.chmod(path, rng.choice([0o600, 0o644, 0o755, 0o4755, 0o1777]))
    elif op == "chown":
        path = rng.choice(folders + files)
        os.chown(path, rng.randrange(3), rng.randrange(3), follow_symlinks=False)
    elif op == "xattr":
        path = rng.choice(folders + plain)
        os.setxattr(path, "user." + rng.choice("abc"), rng.randbytes(rng.choice([0, 5, 200])))
    elif op == "rmxattr":
        path = rng.choice(folders + plain)
        for name in os.listxattr(path):
            if name.startswith("user."):
                os.removexattr(path, name)
                break
    elif op == "clone" and plain:
        clone(rng.choice(plain), rng.choice([new_name(folders), rng.choice(plain)]))
    elif op == "punch" and plain:
        subprocess.run(["fallocate", "-p", "-o", str(rng.choice([0, 4096])), "-l", "8192",
                        rng.choice(plain)], stderr=subprocess.DEVNULL)
    elif op == "prealloc" and plain:
        subprocess.run(["fallocate", "-l", "70000", rng.choice(plain)], stderr=subprocess.DEVNULL)
    elif op == "swap" and len(files) > 1:
        swap(*rng.sample(files, 2))
    elif op == "swap-folders" and len(below) > 1:
        a, b = rng.sample(below, 2)
        if not inside(a, b) and not inside(b, a):
            swap(a, b)
    elif op == "replace" and below and files:
        # A file where a folder was, and a folder where a file was.
        folder, file = rng.choice(below), rng.choice(files)
        if not inside(folder, file):
            swap(folder, file)


done = 0
while done < int(sys.argv[3]):
    try:
        step()
    except OSError:
        pass  # the name is taken, the folder is not empty: as random as the rest
    done += 1
