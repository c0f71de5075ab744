# Volumes with tags, v1, v2 and so on, each on one of the guest's disks: what is done to all of them, whoever
# keeps the tags. Sourced.

# disks: all but the guest's own root, which comes last
disks() {
  for letter in a b c d; do
    if [ "$(cat /sys/block/vd$letter/serial 2>/dev/null)" = varve-root ] || [ ! -b /dev/vd$letter ]; then break; fi
    echo /dev/vd$letter
  done
}

# fill N: tells what is in it, and writes to it
fill() {
  # Every sector verifies, or this fails.
  sha256sum <"/dev/mapper/v$1" | cut -d' ' -f1 >"/host/before$1"
  dd if=/dev/urandom of="/host/written$1" bs=4096 count=300 2>/dev/null
  dd if="/host/written$1" of="/dev/mapper/v$1" bs=4096 seek=100 oflag=direct conv=fsync 2>/dev/null
  # Over a part of it again, so that a journal has two versions.
  dd if="/host/written$1" of="/dev/mapper/v$1" bs=4096 seek=100 count=40 oflag=direct conv=fsync 2>/dev/null
}

# cut_power COUNT: the power goes while something is not flushed, which may be there or not, each sector for itself
cut_power() {
  for i in $(seq "$1"); do
    dd if=/dev/urandom of="/dev/mapper/v$i" bs=4096 seek=500 count=100 oflag=direct 2>/dev/null
  done
  touch /host/ready
  echo b >/proc/sysrq-trigger
}

# after N: tells what is in it now
after() {
  sha256sum <"/dev/mapper/v$1" | cut -d' ' -f1 >"/host/after$1"
}

# fits: fails when the kernel met a tag that does not
fits() {
  if dmesg | grep -E "INTEGRITY AEAD ERROR|Checksum failed|journal commit id|mismatch"; then return 1; fi
}
