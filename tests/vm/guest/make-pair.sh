# Makes a bcache + LUKS + btrfs pair the kernel's own way and cuts the power.
# In: BUCKET, BLOCK (for make-bcache), MODE (writeback or writethrough), LUKS (luks1, luks2 or none),
# SECTOR (encryption sector, luks2 only), MKFS (options of mkfs.btrfs), SCALE (how much data, 1 is least),
# SMALL (yes: spend effort on an image that compresses well).
# /host/key holds the passphrase. Leaves /host/made when all that expect.txt will name was synced.
set -eu
. /host/bcache.sh

modprobe btrfs
# One device per call: given both, make-bcache 1.0.8 trips over its own exclusive open.
set_uuid=$(cat /proc/sys/kernel/random/uuid)
for disk in "-C /dev/vdb" "-B /dev/vda"; do
  make-bcache --bucket "$BUCKET" --block "$BLOCK" --cset-uuid "$set_uuid" $disk >>/host/make-bcache.txt
done
bcache_register /dev/vda /dev/vdb
echo "$MODE" >/sys/block/bcache0/bcache/cache_mode
# Everything through the cache: no bypass of large or of slow requests.
echo 0 >/sys/block/bcache0/bcache/sequential_cutoff
cset=$(ls -d /sys/fs/bcache/*-*)
echo 0 >"$cset/congested_read_threshold_us"
echo 0 >"$cset/congested_write_threshold_us"
if [ "$MODE" = writeback ]; then
  # What is dirty stays dirty: the pair is about what only the cache device knows.
  echo 0 >/sys/block/bcache0/bcache/writeback_running
fi

disk=/dev/bcache0
if [ "$LUKS" != none ]; then
  modprobe dm-crypt
  case $LUKS in
    luks1) kind="--type luks1" ;;
    luks2) kind="--type luks2 --sector-size $SECTOR --luks2-metadata-size 16k --luks2-keyslots-size 256k" ;;
  esac
  # Few iterations: the guest is emulated, and the passphrase is in the README anyway.
  cryptsetup luksFormat -q $kind --cipher aes-xts-plain64 --key-size 512 --pbkdf pbkdf2 \
    --pbkdf-force-iterations 1000 --key-file /host/key "$disk"
  cryptsetup open --key-file /host/key "$disk" plain
  disk=/dev/mapper/plain
fi
if [ "$SMALL" = yes ]; then
  # mkfs.btrfs zeroes 4 MiB, which encryption turns into noise: copy over only what is not zero, in
  # pieces larger than any tree block, because what is left out reads as noise.
  truncate -s "$(blockdev --getsize64 "$disk")" /tmp/fs
  mkfs.btrfs -q -f $MKFS /tmp/fs
  dd if=/tmp/fs of="$disk" bs=64k conv=sparse,notrunc,fsync status=none
  rm /tmp/fs
else
  mkfs.btrfs -q -f $MKFS "$disk"
fi
mkdir -p /mnt
mount -o noatime "$disk" /mnt
cd /mnt

# One of each kind of extent the read side must know.
mkdir -p d/deep/er
echo "a short file lives inside its inode" >inline
: >empty
head -c $((SCALE * 40000)) /dev/urandom >rnd
cp -r /etc/pam.d d/
seq 1 $((SCALE * 3000)) >seq
for kind in zlib lzo zstd; do
  : >"$kind"
  btrfs property set "$kind" compression "$kind"
  seq 1 $((SCALE * 3000)) >>"$kind"
done
truncate -s 3M hole
printf 'after two holes' | dd of=hole bs=1 seek=1000000 conv=notrunc status=none
fallocate -l 100000 prealloc
printf 'head of a preallocated file' | dd of=prealloc conv=notrunc status=none
ln rnd hard
ln -s d/deep link
btrfs subvolume create sub >/dev/null
cp seq sub/seq
cp --reflink=always rnd clone
i=0
while [ $i -lt $((SCALE * 40)) ]; do echo "file $i" >"d/deep/er/f$i"; i=$((i + 1)); done
sync
btrfs subvolume snapshot -r . snap >/dev/null
# Overwrites that the snapshot must not see, with unaligned edges.
head -c 30001 /dev/urandom | dd of=clone bs=4097 seek=3 conv=notrunc status=none
rm -r d/deep/er/f1*
sync
[ "$MODE" = writeback ] || echo 3 >/proc/sys/vm/drop_caches
# Reads fill the cache with clean keys, between and around the dirty ones.
cat d/pam.d/* rnd snap/seq >/dev/null
head -c 20000 /dev/urandom >after
sync
bcache_state >/host/made
power_cut
