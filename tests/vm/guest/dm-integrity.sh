# dm-integrity by itself on the guest's disks. FORMAT and OPEN: options of integritysetup for each disk,
# separated by `;`; FORMAT is empty to take what is there. END: close, cut, or now: closed again at once,
# with the recalculation under way.
set -eu
modprobe dm-integrity
dmesg -n 7
# The N-th of a list.
nth() { echo "$2" | cut -d';' -f"$1"; }
# Waits until every tag of a device is computed.
settled() {
  for _ in $(seq 300); do
    # "0 LEN integrity MISMATCHES PROVIDED RECALCULATED"
    set -- "$1" $(dmsetup status "$1")
    [ "$7" != - ] && [ "$7" -lt "$6" ] || return 0
    sleep 0.1
  done
  return 1
}
n=0
for letter in a b c d; do
  disk=/dev/vd$letter
  # The guest's own root comes last, and is no volume.
  if [ "$(cat /sys/block/vd$letter/serial 2>/dev/null)" = varve-root ] || [ ! -b $disk ]; then break; fi
  n=$((n + 1))
  # shellcheck disable=SC2046
  [ -z "$FORMAT" ] || integritysetup format -q $(nth $n "$FORMAT") $disk >&2
  # shellcheck disable=SC2046
  integritysetup open $(nth $n "$OPEN") $disk v$n
  dmsetup status v$n >/host/status$n
  if [ "$END" = now ]; then
    integritysetup close v$n
    integritysetup dump $disk >/host/dump$n
    continue
  fi
  settled v$n
  # Every sector verifies, or this fails.
  sha256sum </dev/mapper/v$n | cut -d' ' -f1 >/host/before$n
  dd if=/dev/urandom of=/host/written$n bs=4096 count=300 2>/dev/null
  dd if=/host/written$n of=/dev/mapper/v$n bs=4096 seek=100 oflag=direct conv=fsync 2>/dev/null
  # Over a part of it again, so that a journal has two versions.
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
if [ "$END" = close ]; then
  for i in $(seq $n); do
    sha256sum </dev/mapper/v$i | cut -d' ' -f1 >/host/after$i
    integritysetup close v$i
    integritysetup dump /dev/vd$(nth $i 'a;b;c;d') >/host/dump$i
  done
fi
if dmesg | grep -E "Checksum failed|journal commit id|mismatch"; then exit 1; fi
