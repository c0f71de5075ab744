# Opens a pair with LUKS and btrfs on it, uses the file system as a user would, and checks it.
set -eu
. /host/bcache.sh
modprobe btrfs
modprobe dm-crypt
bcache_register /dev/vda /dev/vdb
cryptsetup open --key-file /host/key /dev/bcache0 plain
btrfs check --readonly --check-data-csum /dev/mapper/plain
mkdir -p /mnt
mount /dev/mapper/plain /mnt
echo "written by the kernel" >/mnt/from-the-kernel
cp -r /etc /mnt/etc
btrfs subvolume create /mnt/sub
btrfs subvolume snapshot /mnt /mnt/snap
rm -r /mnt/etc
sync
btrfs scrub start -B /mnt
umount /mnt
btrfs check --readonly /dev/mapper/plain
cryptsetup close plain
# An orderly stop: the set is closed and the backing device says so.
echo 1 >/sys/block/bcache0/bcache/stop
for set in /sys/fs/bcache/*-*; do echo 1 >"$set/stop"; done
while [ -e /sys/block/bcache0 ]; do sleep 0.1; done
sync
