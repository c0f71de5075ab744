# Says what the kernel sees on a pair, as expect.txt: the state, sums of the cached device and of the
# decrypted one, then of every file. The disks are given as snapshots, so the images stay untouched.
# In: LUKS (none, or anything else), FS (btrfs, or none: no files). /host/key holds the passphrase.
set -eu
. /host/bcache.sh

bcache_register /dev/vda /dev/vdb
state=$(bcache_state)
# The kernel starts to write back at once: freeze, so that nothing moves while we read.
echo 0 >/sys/block/bcache0/bcache/writeback_running
{
  echo "$state"
  printf 'device '; sha256sum </dev/bcache0
  disk=/dev/bcache0
  if [ "$LUKS" != none ]; then
    modprobe dm-crypt
    cryptsetup open --readonly --key-file /host/key "$disk" plain
    disk=/dev/mapper/plain
    printf 'plain '; sha256sum <"$disk"
    # From here on writable: btrfs refuses to replay its log on a read-only device, even into memory.
    cryptsetup close plain
    cryptsetup open --key-file /host/key /dev/bcache0 plain
  fi
  if [ "$FS" != none ]; then
    mkdir -p /mnt
    mount -o ro "$disk" /mnt
    cd /mnt
    find . -type f | LC_ALL=C sort | while read -r file; do sha256sum "$file"; done
  fi
} >/host/expect.part
echo "rc=0" >>/host/expect.part
mv /host/expect.part /host/expect.txt
