#!/bin/sh
# Makes the images of this folder again: sh make.sh FOLDER. Root, loop devices, a kernel from 6.7 on,
# btrfs-progs from 6.8 on (features that are newer than Debian 12's).
set -eu
out=$1; cd "$out"
one() { # NAME MKFS-ARGUMENTS
    name=$1; shift
    rm -f disk; truncate -s 120M disk
    mkfs.btrfs -q "$@" disk
    mkdir -p mnt; mount -o loop,compress=zstd,noatime disk mnt
    (
        cd mnt
        btrfs -q subvolume create sub
        for i in $(seq 90); do seq $i 300 > sub/$i; done
        seq 9000 > sub/packed
        dd if=/dev/zero bs=4096 count=40 2>/dev/null | tr '\0' x > plain; btrfs property set plain compression none
        cat plain > plain2; cp --reflink=always sub/packed clone; ln plain link; ln -s sub sym
        truncate -s 2M holes; echo end >> holes
        mkdir dir; echo small > dir/small; mknod dir/null c 1 3; mkfifo dir/pipe
        setfattr -n user.name -v value dir/small; setfacl -m u:1234:rwx dir/small
        sync
        # Snapshots of which each has a change: blocks that are shared by their address.
        for i in $(seq 9); do btrfs -q subvolume snapshot sub snap$i; touch sub/$i snap$i/packed; sync; done
        rm sub/4*; btrfs -q subvolume delete snap3; btrfs -q subvolume snapshot -r sub ro
        btrfs -q subvolume sync .; sync
    )
    umount mnt; rmdir mnt
    btrfs check disk >/dev/null 2>&1
    btrfs inspect-internal dump-tree disk | zstd -q -19 -f -o "$name.items.zst"
    zstd -q -19 --long=27 -f disk -o "$name.img.zst"; rm disk
}
one block-group-tree -O block-group-tree,^squota
one squota -n 4k -O squota,^block-group-tree
one both -n 4k -O squota,block-group-tree --csum xxhash
