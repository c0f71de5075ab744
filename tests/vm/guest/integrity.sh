# dm-crypt over dm-integrity on the guest's disks. FORMAT: luksFormat options for each disk, separated by
# `;`, empty to take what is there. END: close, or cut.
set -eu
. /host/tags.sh
modprobe dm-integrity
modprobe dm-crypt
dmesg -n 7
n=0
for disk in $(disks); do
  n=$((n + 1))
  if [ -n "$FORMAT" ]; then
    options=$(echo "$FORMAT" | cut -d';' -f$n)
    # shellcheck disable=SC2086
    cryptsetup luksFormat -q --type luks2 --key-file /host/key --pbkdf pbkdf2 \
      --pbkdf-force-iterations 1000 $options "$disk"
  fi
  cryptsetup open --key-file /host/key "$disk" v$n
  fill $n
done
[ $n -gt 0 ]
[ "$END" = close ] || cut_power $n
for i in $(seq $n); do
  after "$i"
  cryptsetup close "v$i"
done
fits
