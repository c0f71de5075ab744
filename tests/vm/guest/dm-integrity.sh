# dm-integrity by itself on the guest's disks. FORMAT and OPEN: options of integritysetup for each disk,
# separated by `;`; FORMAT is empty to take what is there. END: close, cut, or now: closed again at once,
# with the recalculation under way.
set -eu
. /host/tags.sh
modprobe dm-integrity
dmesg -n 7
# The N-th of a list.
nth() { echo "$2" | cut -d';' -f"$1"; }
# How far the tags of a device are computed; nothing when all are: "0 LEN integrity MISMATCHES PROVIDED RECALCULATED"
computed() {
  dmsetup status "$1" | awk '$6 != "-" && $6 < $5 {print $6}'
}
n=0
for disk in $(disks); do
  n=$((n + 1))
  # shellcheck disable=SC2046
  [ -z "$FORMAT" ] || integritysetup format -q $(nth $n "$FORMAT") "$disk" >&2
  # shellcheck disable=SC2046
  integritysetup open $(nth $n "$OPEN") "$disk" v$n
  dmsetup status v$n >/host/status$n
  if [ "$END" = now ]; then
    until [ "$(computed v$n)" != 0 ]; do sleep 0.1; done
    integritysetup close v$n
    integritysetup dump "$disk" >/host/dump$n
    continue
  fi
  # However long it takes: the host has a limit.
  while [ -n "$(computed v$n)" ]; do sleep 0.1; done
  fill $n
done
[ $n -gt 0 ]
[ "$END" != cut ] || cut_power $n
if [ "$END" = close ]; then
  for i in $(seq $n); do
    after "$i"
    integritysetup close "v$i"
    integritysetup dump "$(disks | sed -n "${i}p")" >"/host/dump$i"
  done
fi
fits
