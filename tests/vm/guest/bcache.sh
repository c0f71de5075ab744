# Sourced by guest scripts: bcache the kernel's way. Disks are /dev/vda (backing) and /dev/vdb (cache).

bcache_register() { # devices...: registers them and waits until /dev/bcache0 answers
  modprobe bcache || return 1
  for disk; do
    echo "$disk" >/sys/fs/bcache/register || return 1
  done
  tries=0
  until [ -b /dev/bcache0 ] && [ "$(cat /sys/block/bcache0/size)" -gt 0 ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] || { echo "bcache0 did not appear" >&2; dmesg | tail -20 >&2; return 1; }
    sleep 0.1
  done
}

bcache_state() { cat /sys/block/bcache0/bcache/state; }

power_cut() { # never returns: nothing in flight in this kernel reaches the disks any more
  echo b >/proc/sysrq-trigger
  sleep 60
}
