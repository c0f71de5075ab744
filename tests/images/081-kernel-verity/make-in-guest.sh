set -eu
# FS_IOC_ENABLE_VERITY: version 1, SHA-256 (1) or SHA-512 (2), blocks of 4096 bytes, and a salt.
verity() { # FILE ALGORITHM [SALT]
    perl -e '
        open my $f, "<", $ARGV[0] or die "$ARGV[0]: $!";
        my $salt = $ARGV[2] // "";
        my $pointer = unpack "J", pack "p", $salt;
        my $args = pack "LLLLQLLQQ11", 1, $ARGV[1], 4096, length $salt, $pointer, 0, 0, 0, (0) x 11;
        ioctl $f, 0x40806685, $args or die "$ARGV[0]: $!";' "$@"
}
mkdir -p /mnt; mount -o noatime /dev/vda /mnt; cd /mnt
mkdir d; echo plain > plain
: > d/empty; echo small > d/small; seq 100000 > d/large; seq 300000 > d/salted; seq 50000 > d/packed
btrfs property set d/packed compression zstd; seq 50000 > d/packed; sync
truncate -s 1M d/holes; echo end >> d/holes; sync
verity d/empty 1; verity d/small 1; verity d/large 1; verity d/salted 2 "a salt"; verity d/packed 1; verity d/holes 1
btrfs subvolume snapshot -r . snap
find . -type f | LC_ALL=C sort | xargs sha256sum > /host/expect.txt
lsattr -R d > /host/lsattr 2>&1 || true
cd /; umount /mnt
