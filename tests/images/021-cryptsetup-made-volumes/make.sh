#!/bin/sh
# Makes the images of this folder with the cryptsetup that is installed. Salts and keys are new each time.
set -eu
cd "$(dirname "$0")"
make() {
    name=$1
    shift
    truncate -s 0 "$name.img"
    truncate -s $((3 * 1024 * 1024)) "$name.img"
    cryptsetup luksFormat -q --key-file key "$@" "$name.img"
}
pack() {
    zstd -q -f -19 --rm "$1.img" -o "$1.img.zst"
}
small="--luks2-keyslots-size 256k --offset 2048"

make luks1 --type luks1 --hash sha512 --key-size 256 --pbkdf-force-iterations 1000
pack luks1
make luks2-argon2id --type luks2 $small --pbkdf argon2id --pbkdf-memory 1024 --pbkdf-force-iterations 4 \
    --pbkdf-parallel 2 --sector-size 4096 --label varve --subsystem images
cryptsetup config luks2-argon2id.img --key-slot 0 --priority prefer
cryptsetup token add luks2-argon2id.img --key-description varve:image --key-slot 0
pack luks2-argon2id
make luks2-lost-primary --type luks2 $small --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --sector-size 512
dd if=/dev/zero of=luks2-lost-primary.img bs=4096 count=1 conv=notrunc status=none
pack luks2-lost-primary
