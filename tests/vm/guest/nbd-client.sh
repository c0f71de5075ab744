# Connects the kernel's NBD client to the host's server, with two connections, and uses a btrfs on it.
# In: PORT.
set -eu
modprobe virtio_net
busybox ip link set eth0 up
busybox ip addr add 10.0.2.15/24 dev eth0
modprobe nbd nbds_max=1
modprobe btrfs
nbd-client 10.0.2.2 "$PORT" /dev/nbd0 -N "" -C 2 -timeout 60
mkfs.btrfs -q -f /dev/nbd0
mkdir -p /mnt
mount -o discard=sync /dev/nbd0 /mnt
cp -r /usr/bin /usr/sbin /mnt/
head -c 3000000 /dev/urandom >/mnt/noise
rm -r /mnt/sbin
cp -r /usr/sbin /mnt/
(cd /mnt && find . -type f -exec sha256sum {} +) >/tmp/sums
sync
umount /mnt
echo 3 >/proc/sys/vm/drop_caches
mount /dev/nbd0 /mnt
(cd /mnt && sha256sum --quiet -c /tmp/sums) && echo "all sums right"
umount /mnt
btrfs check --readonly --check-data-csum /dev/nbd0
nbd-client -d /dev/nbd0
