#!/usr/bin/env python3
"""Makes the images of this folder: headers that cryptsetup's parser lets pass, and we refuse or bound.

Each is the first 32 KiB (both header copies) of a LUKS2 volume whose volume key is SHA-512 of the text
"varve luks vector volume key 1", with one thing changed. There are no keyslot areas: what a keyslot
would do is decided before its area is read, and the volume key itself opens the rest.
"""
import base64, copy, hashlib, json, subprocess, sys, uuid

KEY = hashlib.sha512(b"varve luks vector volume key 1").digest()
UUID = "77777777-2222-3333-4444-555555555555"
HDR = 16384


def salt(text):
    return hashlib.sha256(text.encode()).digest()


def b64(data):
    return base64.b64encode(data).decode()


def base(key=KEY):
    digest = hashlib.pbkdf2_hmac("sha256", key, salt("digest"), 1000)
    return {
        "keyslots": {"0": {
            "type": "luks2", "key_size": 64,
            "af": {"type": "luks1", "stripes": 4000, "hash": "sha256"},
            "area": {"type": "raw", "offset": "32768", "size": "258048",
                     "encryption": "aes-xts-plain64", "key_size": 64},
            "kdf": {"type": "pbkdf2", "hash": "sha256", "iterations": 1000, "salt": b64(salt("slot"))}}},
        "tokens": {},
        "segments": {"0": {"type": "crypt", "offset": "1048576", "size": "dynamic", "iv_tweak": "0",
                           "encryption": "aes-xts-plain64", "sector_size": 512}},
        "digests": {"0": {"type": "pbkdf2", "keyslots": ["0"], "segments": ["0"], "hash": "sha256",
                          "iterations": 1000, "salt": b64(salt("digest")), "digest": b64(digest)}},
        "config": {"json_size": "12288", "keyslots_size": "262144"},
    }


def header(tree, secondary, seqid=3, ident=UUID):
    head = bytearray(4096)
    head[0:6] = b"SKUL\xba\xbe" if secondary else b"LUKS\xba\xbe"
    head[6:8] = (2).to_bytes(2, "big")
    head[8:16] = HDR.to_bytes(8, "big")
    head[16:24] = seqid.to_bytes(8, "big")
    head[72:78] = b"sha256"
    head[104:136] = salt("secondary" if secondary else "primary")
    head[168:168 + len(ident)] = ident.encode()
    head[256:264] = (HDR if secondary else 0).to_bytes(8, "big")
    text = json.dumps(tree, separators=(",", ":")).encode()
    both = bytes(head) + text + bytes(HDR - 4096 - len(text))
    head[448:480] = hashlib.sha256(both).digest()
    return bytes(head) + both[4096:]


def both(tree):
    return header(tree, False) + header(tree, True)


def changed(path, value, key=KEY):
    tree = base(key)
    *way, last = path.split("/")
    at = tree
    for name in way:
        at = at[name]
    at[last] = value
    return both(tree)


def keyslot_40():
    tree = base()
    tree["keyslots"]["40"] = tree["keyslots"].pop("0")
    tree["digests"]["0"]["keyslots"] = ["40"]
    return both(tree)


def other_json():
    other = base()
    other["config"]["flags"] = ["allow-discards"]
    return header(base(), False) + header(other, True)


IMAGES = {
    "01-key-size": changed("keyslots/0/key_size", 2**32 - 1),
    "02-area-key-size": changed("keyslots/0/area/key_size", 2**32 - 1),
    "03-iterations-negative": changed("keyslots/0/kdf/iterations", -5),
    "04-iterations-one": changed("keyslots/0/kdf/iterations", 1),
    "05-stripes-one": changed("keyslots/0/af/stripes", 1),
    "06-sector-size-1536": changed("segments/0/sector_size", 1536),
    "07-sector-size-65536": changed("segments/0/sector_size", 65536),
    "08-segment-size-huge": changed("segments/0/size", str(2**64 - 512)),
    "09-iv-tweak-huge": changed("segments/0/iv_tweak", str(2**64 - 1)),
    "10-area-too-small": changed("keyslots/0/area/size", "4096"),
    "11-keyslot-40": keyslot_40(),
    "12-one-seqid-two-contents": other_json(),
    "13-foreign-secondary": header(base(), False) + header(base(), True, 9, str(uuid.UUID(int=13))),
    "14-equal-key-halves": both(base(KEY[:32] * 2)),
}

for name, image in IMAGES.items():
    out = f"{name}.img.zst"
    subprocess.run(["zstd", "-q", "-f", "-19", "-o", out], input=image, check=True)
    print(out)
