//! Broken, hostile and merely unusual headers that others made, each with what must happen to it.
//!
//! The images are not part of the repository: they are looked for in `$VARVE_SHARED/corpora/crypt`, or
//! in `../shared/corpora/crypt` beside the project. Without them, or without `xz`, the tests say so and pass.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use varve_block::dev::Mem;
use varve_block::{BlockDevice, Sim};
use varve_crypt::{Error, Header, HeaderCopy, Key, UnlockOptions, test};

fn corpus() -> Option<PathBuf> {
    let shared = std::env::var_os("VARVE_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    let folder = shared.join("corpora/crypt");
    if !folder.is_dir() {
        println!("skipped: no corpus at {}", folder.display());
        return None;
    }
    if Command::new("xz").arg("--version").output().is_err() {
        println!("skipped: no xz to unpack the corpus with");
        return None;
    }
    Some(folder)
}

fn unpack(path: &Path) -> Vec<u8> {
    let out = Command::new("xz").arg("-dc").arg(path).output().expect("xz runs");
    assert!(out.status.success(), "{}", path.display());
    out.stdout
}

fn parse(image: &[u8]) -> Result<Header, Error> {
    Header::parse(image, image.len() as u64, None)
}

/// The slot that the secret opens; the image stays as it is.
fn tested(image: &[u8], secret: &[u8]) -> Result<u32, Error> {
    let (disk, secret) = (Mem::from_bytes(image), Arc::new(Key::copy_from(secret)));
    let before = image.to_vec();
    Sim::new(1).run(|rt| async move {
        let report = test(&rt, &disk, &UnlockOptions::default(), &secret).await;
        assert!(disk.to_vec()[..before.len()] == before[..], "opening must not write");
        Ok(report?.slot)
    })
}

/// Which check refuses each hostile header. `VERDICTS.txt` says that it must be refused.
const REFUSED_BY: &[(&str, u8)] = &[
    ("luks2-invalid-json-size-c1", 11),
    ("luks2-invalid-keyslots-size-c0", 11),
    ("luks2-invalid-keyslots-size-c2", 33),
    ("luks2-invalid-object-type-json0", 7),
    ("luks2-invalid-tokens", 10),
    ("luks2-keyslot-invalid-af", 23),
    ("luks2-keyslot-invalid-area", 33),
    ("luks2-keyslot-missing-digest", 16),
    ("luks2-metadata-size-64k-inv-area-c1", 33),
    ("luks2-metadata-size-invalid", 3),
    ("luks2-missing-keyslot-referenced-in-digest", 16),
    ("luks2-missing-segment-referenced-in-digest", 16),
    ("luks2-missing-trailing-null-byte-json0", 7),
    ("luks2-non-null-bytes-beyond-json0", 7),
    ("luks2-overlapping-areas-c0-json0", 33),
    ("luks2-overlapping-areas-c2-json0", 33),
    ("luks2-segment-crypt-empty-encryption", 39),
    ("luks2-segment-crypt-missing-ivoffset", 9),
    ("luks2-segment-crypt-wrong-encryption", 39),
    ("luks2-segment-crypt-wrong-sectorsize-0", 35),
    ("luks2-segment-crypt-wrong-sectorsize-2", 9),
    ("luks2-segment-missing-size", 34),
    ("luks2-segment-wrong-backup-key-0", 34),
    ("luks2-segment-wrong-flags-element", 34),
    ("luks2-segment-wrong-offset", 9),
    ("luks2-segment-wrong-size-1", 9),
    ("luks2-segment-wrong-type", 34),
    ("luks2-uint64-overflow-segment-size", 9),
];

#[test]
fn hostile_headers_get_their_verdicts() {
    let Some(corpus) = corpus() else { return };
    let verdicts = std::fs::read_to_string(corpus.join("hostile/VERDICTS.txt")).expect("verdicts");
    let mut wrong = Vec::new();
    let mut seen = 0;
    for line in verdicts.lines().filter(|l| !l.starts_with('#')) {
        let Some((name, verdict)) = line.split_once(' ') else { continue };
        let path = corpus.join("hostile").join(format!("{name}.xz"));
        let result = parse(&unpack(&path));
        seen += 1;
        let stem = name.trim_end_matches(".img");
        let expected = REFUSED_BY.iter().find(|(n, _)| *n == stem).map(|(_, check)| *check);
        match (verdict, &result) {
            ("R" | "W", Ok(_)) => {}
            ("F", Err(Error::Corrupt(c))) if expected.is_none_or(|e| e == c.check) => {}
            _ => wrong.push(format!("{name}: should be {verdict} {expected:?}, is {result:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let images = std::fs::read_dir(corpus.join("hostile"))
        .expect("folder")
        .filter(|e| e.as_ref().is_ok_and(|e| e.path().extension().is_some_and(|x| x == "xz")));
    assert_eq!(seen, images.count(), "every image has its verdict");
}

/// `W`: a change writes a header that is whole again, whatever the text of the old one looked like.
#[test]
fn a_token_removed_from_a_header_with_blanks_leaves_none_behind() {
    let Some(corpus) = corpus() else { return };
    let image = unpack(&corpus.join("hostile/luks2-non-compact-json-token-0.img.xz"));
    let disk = Mem::from_bytes(&image);
    let held = disk.clone();
    Sim::new(1)
        .run(|_| async move { varve_crypt::remove_token(held, None, 0).await })
        .expect("token 0 is removed");
    let after = disk.to_vec();
    for copy in [HeaderCopy::Primary, HeaderCopy::Secondary] {
        let header = Header::parse(&after, after.len() as u64, Some(copy));
        let Ok(Header::Luks2(h)) = header else { panic!("{copy:?}: {header:?}") };
        assert!(!h.metadata.tokens.contains_key(&0), "{copy:?}");
    }
}

#[test]
fn recovered_headers_say_which_copy_they_came_from() {
    let Some(corpus) = corpus() else { return };
    for (name, copy) in [
        ("luks2-invalid-checksum-hdr0", HeaderCopy::Secondary),
        ("luks2-corrupted-hdr1-with-correct-chks", HeaderCopy::Primary),
        ("luks2-metadata-size-4m-secondary", HeaderCopy::Secondary),
        ("luks2-metadata-size-2m", HeaderCopy::Primary),
    ] {
        let image = unpack(&corpus.join(format!("hostile/{name}.img.xz")));
        let Ok(Header::Luks2(h)) = parse(&image) else { panic!("{name}") };
        assert_eq!(h.copy, copy, "{name}");
        assert!(!h.notes.is_empty(), "{name}: the other copy is gone, and nobody says so");
    }
}

#[test]
fn damaged_luks1_headers_are_refused_by_their_check() {
    let Some(corpus) = corpus() else { return };
    for (name, check) in [
        ("evil_hdr-luks_hdr_damage", 32),
        ("evil_hdr-keyslot_overlap", 32),
        ("evil_hdr-payload_overwrite", 32),
        ("evil_hdr-small_luks_device", 32),
        ("evil_hdr-stripes_payload_dmg", 23),
    ] {
        let path = corpus.join(format!("images/{name}.xz"));
        if !path.exists() {
            continue;
        }
        match parse(&unpack(&path)) {
            Err(Error::Corrupt(c)) => assert_eq!(c.check, check, "{name}: {c}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    let valid = unpack(&corpus.join("images/valid_header_file.xz"));
    // A header file alone is shorter than the keyslots it names; on a device they are there.
    assert!(Header::parse(&valid, 64 << 20, None).is_ok());
}

#[test]
fn volumes_open_with_their_secret() {
    let Some(corpus) = corpus() else { return };
    let image = |name: &str| unpack(&corpus.join(format!("images/{name}.xz")));
    let keyfile = std::fs::read(corpus.join("images/luks1-images_keyfile1")).expect("key file");

    for name in [
        "luks1_aes-cbc-essiv-sha256-sha1",
        "luks1_aes-xts-essiv-wp256-whirlpool",
        "luks1_serpent-xts-plain64-sha1",
        "luks1_serpent-xts-plain64-whirlpool",
        "luks1_twofish-xts-plain64-sha256",
        "luks1_aes-xts-plain64-sha256",
    ] {
        let image = image(&format!("luks1-images_{name}.img"));
        tested(&image, &keyfile).unwrap_or_else(|e| panic!("{name}: {e}"));
    }

    for name in ["compatimage.img", "compatimage2.img"] {
        tested(&image(name), b"compatkey").unwrap_or_else(|e| panic!("{name}: {e}"));
    }

    for size in [16, 64, 256, 1024, 4096] {
        let image = image(&format!("test_image_{size}"));
        let Ok(Header::Luks2(h)) = parse(&image) else { panic!("{size}") };
        assert_eq!(h.hdr_size, size * 1024);
        tested(&image, b"Qx3qn46vq0v").unwrap_or_else(|e| panic!("{size}: {e}"));
    }
}

#[test]
fn dumps_of_the_corpus_are_printable() {
    let Some(corpus) = corpus() else { return };
    for folder in ["images", "hostile"] {
        for entry in std::fs::read_dir(corpus.join(folder)).expect("folder") {
            let path = entry.expect("entry").path();
            if path.extension().is_none_or(|e| e != "xz") {
                continue;
            }
            let image = unpack(&path);
            let device_len = Mem::from_bytes(&image).geometry().len.bytes();
            if let Ok(header) = Header::parse(&image, device_len, None) {
                let text = header.to_string();
                assert!(text.is_ascii() && !text.contains('\x1b'), "{}", path.display());
                assert!(header.to_json()["version"].is_u64());
            }
        }
    }
}
