#!/bin/bash
# Makes the dumps of this folder. As root, with btrfs-progs and a kernel that has btrfs.
set -eu
out=$(pwd)
dir=$(mktemp -d)
cd "$dir"
loops=()
for n in 1 2 3; do truncate -s 128M "dev$n.img"; loops+=("$(losetup -f --show "dev$n.img")"); done
trap 'umount mnt 2>/dev/null; losetup -d "${loops[@]}"; rm -rf "$dir"' EXIT
mkdir mnt
fill() {
    mount "$1" mnt
    mkdir mnt/folder
    for n in $(seq 1 300); do echo "secret $n" > "mnt/folder/file-number-$n"; done
    head -c 3M /dev/zero | tr '\0' x > mnt/large
    ln -s folder/file-number-1 mnt/link
    setfattr -n user.colour -v green mnt/large
    btrfs -q subvolume create mnt/subvolume
    btrfs -q subvolume snapshot mnt/subvolume mnt/snapshot
    umount mnt
}
mkfs.btrfs -q -U 60606060-0000-4000-8000-000000000001 -d single -m dup "${loops[0]}"
fill "${loops[0]}"
btrfs-image -c 0 "${loops[0]}" plain.dump
btrfs-image -c 9 "${loops[0]}" packed.dump
btrfs-image -c 9 -s "${loops[0]}" sanitised.dump
wipefs -qa "${loops[@]}"
mkfs.btrfs -q -U 60606060-0000-4000-8000-000000000002 -d raid0 -m raid1 "${loops[@]}"
btrfs device scan "${loops[@]}"
fill "${loops[0]}"
btrfs-image -c 9 "${loops[0]}" three-devices.dump
zstd -q -19 -f plain.dump -o "$out/plain.dump.zst"
cp packed.dump sanitised.dump three-devices.dump "$out"
