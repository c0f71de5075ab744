# dm-crypt over dm-integrity on the guest's disks. FORMAT: luksFormat options for each disk, separated by
# `;`, empty to take what is there. END: close, or cut.
set -eu
modprobe dm-integrity
modprobe dm-crypt
dmesg -n 7
n=0
for letter in a b c d; do
  disk=/dev/vd$letter
  # The guest's own root comes last, and is no volume.
  if [ "$(cat /sys/block/vd$letter/serial 2>/dev/null)" = varve-root ] || [ ! -b $disk ]; then break; fi
  n=$((n + 1))
  if [ -n "$FORMAT" ]; then
    options=$(echo "$FORMAT" | cut -d';' -f$n)
    # shellcheck disable=SC2086
    cryptsetup luksFormat -q --type luks2 --key-file /host/key --pbkdf pbkdf2 \
      --pbkdf-force-iterations 1000 $options $disk
  fi
  cryptsetup open --key-file /host/key $disk v$n
  # Every sector verifies, or this fails.
  sha256sum </dev/mapper/v$n | cut -d' ' -f1 >/host/before$n
  dd if=/dev/urandom of=/host/written$n bs=4096 count=300 2>/dev/null
  dd if=/host/written$n of=/dev/mapper/v$n bs=4096 seek=100 oflag=direct conv=fsync 2>/dev/null
  # Over a part of it again, so that the journal has two versions.
  dd if=/host/written$n of=/dev/mapper/v$n bs=4096 seek=100 count=40 oflag=direct conv=fsync 2>/dev/null
done
[ $n -gt 0 ]
if [ "$END" = cut ]; then
  # Not flushed: these may be there or not, each sector for itself.
  for i in $(seq $n); do
    dd if=/dev/urandom of=/dev/mapper/v$i bs=4096 seek=500 count=100 oflag=direct 2>/dev/null
  done
  touch /host/ready
  echo b >/proc/sysrq-trigger
fi
for i in $(seq $n); do
  sha256sum </dev/mapper/v$i | cut -d' ' -f1 >/host/after$i
  cryptsetup close v$i
done
if dmesg | grep -E "INTEGRITY AEAD ERROR|Checksum failed|journal commit id"; then exit 1; fi
