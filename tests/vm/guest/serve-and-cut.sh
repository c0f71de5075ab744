# Serves the pair with Varve, inside the guest, to the kernel's NBD client; makes a btrfs on it, notes the
# sums of what was synced, and cuts the power in the middle of further writes. In: MODE.
set -eu
. /host/bcache.sh
cp /host/varve /tmp/varve
/tmp/varve --version || { echo "cannot run here"; exit 0; }
modprobe nbd nbds_max=1
modprobe btrfs
cp /host/key /tmp/key
/tmp/varve serve --backing /dev/vda --cache /dev/vdb --cache-mode "$MODE" --key-file /tmp/key \
  --listen unix:/run/varve.sock >/host/varve.log 2>&1 &
tries=0
until [ -S /run/varve.sock ]; do
  tries=$((tries + 1))
  [ $tries -lt 300 ] || { cat /host/varve.log >&2; exit 1; }
  sleep 0.1
done
nbd-client -unix /run/varve.sock /dev/nbd0 -N ""
mkfs.btrfs -q -f /dev/nbd0
mkdir -p /mnt
mount /dev/nbd0 /mnt
cp -r /etc /mnt/etc
head -c 4000000 /dev/urandom >/mnt/noise
sync
(cd /mnt && find . -type f -exec sha256sum {} +) >/host/sums.part
# One more file, made durable by its own fsync: it lives in the log tree alone.
dd if=/dev/urandom of=/mnt/fsynced bs=4k count=9 conv=fsync status=none
(cd /mnt && sha256sum ./fsynced) >>/host/sums.part
mv /host/sums.part /host/sums
# Writers in full flight when the power goes.
for n in 1 2 3; do
  (while :; do dd if=/dev/urandom of=/mnt/later$n bs=64k count=40 status=none; sync -d /mnt/later$n; done) &
done
sleep 4
power_cut
