# Opens a pair, writes over parts of it in write-back mode, lets some of it drain, and cuts the power.
set -eu
. /host/bcache.sh
bcache_register /dev/vda /dev/vdb
echo writeback >/sys/block/bcache0/bcache/cache_mode
echo 0 >/sys/block/bcache0/bcache/sequential_cutoff
i=0
while [ $i -lt 40 ]; do
  # 20 KiB at odd places: over one block of ours, beside another, across a bucket's edge.
  dd if=/dev/urandom of=/dev/bcache0 bs=4k count=5 seek=$((i * 97)) oflag=direct conv=notrunc status=none
  i=$((i + 1))
done
sync
echo written
echo 10 >/sys/block/bcache0/bcache/writeback_percent
sleep 1
power_cut
