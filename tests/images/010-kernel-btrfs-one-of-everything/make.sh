set -eu
truncate -s 112M disk; mkfs.btrfs -q -L varve-020 -U 02002002-0020-4020-8020-020020020020 disk >/dev/null
D=$(losetup -f --show disk); mkdir -p m
remount() { umount m 2>/dev/null || true; mount -o "noatime,$1" "$D" m; }
remount compress=no; cd m
mkdir plain; seq 20000 > plain/text; head -c 20000 /dev/urandom > plain/noise; printf x > plain/tiny
seq 700 > plain/inline-2k; : > plain/empty
truncate -s 500000 plain/hole; printf end >> plain/hole; fallocate -l 300000 plain/prealloc
printf written | dd of=plain/prealloc bs=1 seek=100000 conv=notrunc status=none
ln plain/text plain/text-again; ln -s ../plain/text plain/link; mknod plain/null c 1 3; mkfifo plain/fifo
python3 -c "
import os
os.setxattr('plain/tiny','user.colour',b'blue'); os.setxattr('plain','user.empty',b'')
for n in range(200): open('plain/file %d'%n,'w').write('content %d'%n)"
cd ..
for how in zlib lzo zstd; do
  remount compress-force=$how; mkdir m/$how; seq 60000 > m/$how/text; head -c 9000 /dev/urandom > m/$how/noise
  sync; printf patch | dd of=m/$how/text bs=1 seek=150000 conv=notrunc status=none; seq 300 > m/$how/inline
done
remount compress=no
btrfs -q subvolume create m/sub; seq 5000 > m/sub/file; btrfs -q subvolume create m/sub/nested; printf deep > m/sub/nested/f
btrfs -q subvolume snapshot -r m/sub m/snap; seq 10 > m/sub/file
cp --reflink=always m/zstd/text m/reflink; sync
( cd m; find . -type f -print0 | sort -z | xargs -0 sha256sum ) > expect.txt
umount m; losetup -d "$D"; btrfs check disk 2>&1 | grep -q "no error found"
zstd -q -f --ultra -22 disk -o image.zst
