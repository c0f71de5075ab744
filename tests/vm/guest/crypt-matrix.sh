# Encrypted volumes in slices of one disk, each opened by dm-crypt. In: CALLS, lines that call these.
set -eu
export DM_DISABLE_UDEV=1
modprobe dm-mod
modprobe dm-crypt

# slice NAME FIRST_BYTE BYTES: /dev/mapper/slice-NAME
slice() {
  echo "0 $(($3 / 512)) linear /dev/vda $(($2 / 512))" | dmsetup create "slice-$1"
}

# format NAME WORDS...: a volume of the kernel's own tools
format() {
  name=$1
  shift
  cryptsetup luksFormat -q --key-file "/host/key-$name" "$@" "/dev/mapper/slice-$name"
}

open() {
  name=$1
  shift
  cryptsetup open --key-file "/host/key-$name" "$@" "/dev/mapper/slice-$name" "$name"
}

# fill NAME FILE FIRST_KIB WORDS...: writes the file through dm-crypt
fill() {
  name=$1 file=$2 at=$3
  shift 3
  open "$name" "$@"
  dd if="/host/$file" of="/dev/mapper/$name" bs=64k seek=$((at / 64)) conv=fsync,notrunc status=none
  cryptsetup close "$name"
}

# show NAME WORDS...: the sum of what is in it
show() {
  name=$1
  shift
  open "$name" "$@"
  echo "sum $name $(sha256sum <"/dev/mapper/$name" | cut -d' ' -f1)"
  cryptsetup close "$name"
}

eval "$CALLS"
