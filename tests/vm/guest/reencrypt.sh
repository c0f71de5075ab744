# A re-encryption by cryptsetup over dm-crypt, under a file system that is mounted and written to, until it
# is done or the power goes. In: CALLS, lines that call these; TURN, a word of its own for each boot; BYTES, how
# long the payload is; /host/key; /host/sums, the files that were durable so far. The volume is /dev/vda; a header
# that is detached lies on /dev/vdb.
set -eu
export DM_DISABLE_UDEV=1
modprobe dm-crypt
mkdir -p /mnt
# Where cryptsetup puts a header that is being made: it wants to bypass the page cache, which /host does not.
cd /tmp
touch /host/sums

# open WORDS...: recovers a zone in which the power went
open() {
  cryptsetup open --key-file /host/key "$@" /dev/vda v
}

# make DEVICE KIB: a file system of that size, with files that stay as they are
make() {
  mkfs.ext4 -q -b 4096 "$1" "$2k"
  mount "$1" /mnt
  mkdir /mnt/still
  for n in 1 2 3 4 5 6 7 8; do
    dd if=/dev/urandom of=/mnt/still/$n bs=64k count=24 status=none
  done
  sync
  (cd /mnt && sha256sum ./still/*) >/host/sums
}

# use [DEVICE]: mounts it, and finds every file that was durable
use() {
  mount "${1:-/dev/mapper/v}" /mnt
  check
}

check() {
  (cd /mnt && sha256sum --quiet -c /host/sums)
}

# write: one file after the other, each known to the host once it is durable; returns when the first one is.
# A long turn must not fill the file system.
write() {
  (
    n=0
    until [ -e /tmp/enough ] || [ $n -ge 200 ]; do
      n=$((n + 1))
      dd if=/dev/urandom of="/mnt/$TURN-$n" bs=16k count=$((1 + n % 7)) conv=fsync status=none
      (cd /mnt && sha256sum "./$TURN-$n") >>/host/sums
    done
  ) &
  until grep -q "$TURN-1$" /host/sums; do sleep 0.1; done
}

# work WORDS...
work() {
  cryptsetup reencrypt -q --key-file /host/key --hotzone-size 2M "$@"
}

# begin_decryption WORDS...: the header goes to its own disk, nothing is done yet
begin_decryption() {
  work --decrypt --header /tmp/head.img --init-only "$@" /dev/vda
  dd if=/tmp/head.img of=/dev/vdb bs=1M conv=fsync status=none
}

# close [DEVICE]: everything is as it must be; tells the sum of the payload. Behind a decryption the mapping goes
# by itself, and the payload is the disk's.
close() {
  touch /tmp/enough
  wait
  check
  umount /mnt
  # Past the page cache, which knows one device at a time.
  direct="iflag=direct,count_bytes bs=1M status=none"
  # shellcheck disable=SC2086
  echo "sum $(dd if="${1:-/dev/mapper/v}" count="$BYTES" $direct | sha256sum | cut -d' ' -f1)"
  [ $# -gt 0 ] || cryptsetup close v
}

eval "$CALLS"
