//! What we make, cryptsetup opens; what cryptsetup makes, we open; and both say the same about it.
//!
//! cryptsetup works on plain files here: no device mapper is needed to format, dump, test a secret or
//! change keyslots. Without the program the tests say so and pass.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use varve_block::dev::Mem;
use varve_block::{Sectors, Sim};
use varve_crypt::{
    Argon2Kind, Cost, Error, FormatOptions, Hash, Header, Key, LuksVersion, Pbkdf, SectorSize,
    UnlockOptions, Volume, format, test, unlock, unlock_detached,
};

const SECRET: &[u8] = b"a secret with a newline at its end\n";

struct Place {
    folder: tempfile::TempDir,
    key: PathBuf,
}

impl Place {
    /// `None`, with a printed reason, when there is no cryptsetup.
    fn new() -> Option<Place> {
        match Command::new("cryptsetup").arg("--version").output() {
            Ok(out) if out.status.success() => {}
            _ => {
                println!("skipped: no cryptsetup");
                return None;
            }
        }
        let folder = tempfile::tempdir().expect("a folder");
        let key = folder.path().join("key");
        std::fs::write(&key, SECRET).expect("a key file");
        Some(Place { folder, key })
    }

    fn image(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn cryptsetup(args: &[&str]) -> Output {
    Command::new("cryptsetup").args(args).output().expect("cryptsetup runs")
}

#[track_caller]
fn ok(args: &[&str]) -> String {
    let out = cryptsetup(args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("text")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// A blank file on disk, and its length in sectors.
fn blank(path: &Path, sectors: u64) {
    let file = std::fs::File::create(path).expect("an image");
    file.set_len(sectors * 512).expect("its length");
}

fn opened(image: &Path, secret: &[u8], slot: Option<u32>) -> Result<Volume, Error> {
    let disk = Mem::from_bytes(&std::fs::read(image).expect("the image"));
    let secret = Arc::new(Key::copy_from(secret));
    Sim::new(1).run(|rt| async move {
        let options = UnlockOptions { slot, ..UnlockOptions::default() };
        let tested = test(&rt, &disk, &options, &secret).await?;
        let volume = unlock(&rt, &disk, &options, &secret).await?;
        assert_eq!(volume.slot, Some(tested.slot));
        Ok(volume)
    })
}

/// Formats a blank file of `sectors` with our own code.
fn formatted(path: &Path, sectors: u64, options: FormatOptions) -> Header {
    let disk = Mem::new(Sectors(sectors));
    let held = disk.clone();
    let secret = Arc::new(Key::copy_from(SECRET));
    let header = Sim::new(1)
        .run(|rt| async move { format(&rt, &held, &options, &secret).await })
        .expect("formats");
    std::fs::write(path, disk.to_vec()).expect("the image");
    header
}

/// Lines with their blanks made even: field by field, both dumps must say the same.
fn fields(dump: &str) -> Vec<String> {
    let even = |l: &str| l.split_whitespace().collect::<Vec<_>>().join(" ");
    let skip = |l: &String| !l.is_empty() && !l.starts_with("LUKS header information");
    dump.lines().map(even).filter(skip).collect()
}

#[track_caller]
fn same_dump(image: &Path) {
    let theirs = ok(&["luksDump", text(image)]);
    let bytes = std::fs::read(image).expect("the image");
    let header = Header::parse(&bytes, bytes.len() as u64, None).expect("a header");
    assert!(header.notes().is_empty(), "{:?}", header.notes());
    assert_eq!(fields(&header.to_string()), fields(&theirs));
    if let Header::Luks2(h) = &header {
        let json = ok(&["luksDump", "--dump-json-metadata", text(image)]);
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(h.metadata.json, json);
    }
}

const SECTORS: u64 = (20 << 20) / 512;

fn pbkdfs() -> [(&'static str, Pbkdf, Cost); 3] {
    let cost = |iterations| Cost::Forced { iterations, memory_kib: 64, lanes: 1 };
    [
        ("pbkdf2", Pbkdf::Pbkdf2(Hash::Sha256), cost(1000)),
        ("argon2i", Pbkdf::Argon2(Argon2Kind::I), cost(4)),
        ("argon2id", Pbkdf::Argon2(Argon2Kind::Id), cost(4)),
    ]
}

#[test]
fn cryptsetup_opens_what_we_make() {
    let Some(place) = Place::new() else { return };
    let image = place.image("ours");
    let check = |options: FormatOptions| {
        let what = format!("{options:?}");
        let header = formatted(&image, SECTORS, options);
        let path = text(&image);
        ok(&["isLuks", path]);
        assert_eq!(ok(&["luksUUID", path]).trim(), header.uuid(), "{what}");
        ok(&["open", "--test-passphrase", path, "--key-file", text(&place.key)]);
        same_dump(&image);
        let wrong = place.image("wrong");
        std::fs::write(&wrong, b"another").expect("a key file");
        let refused = cryptsetup(&["open", "--test-passphrase", path, "--key-file", text(&wrong)]);
        assert_eq!(refused.status.code(), Some(2), "{what}");
    };
    for hash in [Hash::Sha1, Hash::Sha256, Hash::Sha512] {
        for key_bits in [256, 512] {
            check(FormatOptions {
                hash,
                key_bits,
                pbkdf: Pbkdf::Pbkdf2(hash),
                cost: pbkdfs()[0].2,
                ..FormatOptions::new(LuksVersion::Luks1)
            });
        }
        for (_, pbkdf, cost) in pbkdfs() {
            let pbkdf = if let Pbkdf::Pbkdf2(_) = pbkdf { Pbkdf::Pbkdf2(hash) } else { pbkdf };
            check(FormatOptions { hash, pbkdf, cost, ..FormatOptions::default() });
        }
    }
    for sector_size in [512, 1024, 2048, 4096] {
        check(FormatOptions {
            sector_size: SectorSize::new(sector_size),
            label: "a label".into(),
            subsystem: "varve".into(),
            flags: vec!["allow-discards".into(), "no-read-workqueue".into()],
            header_size: 16384 << (sector_size / 1024),
            key_bits: if sector_size == 1024 { 256 } else { 512 },
            pbkdf: pbkdfs()[0].1,
            cost: pbkdfs()[0].2,
            ..FormatOptions::default()
        });
    }
}

#[test]
fn we_open_what_cryptsetup_makes() {
    let Some(place) = Place::new() else { return };
    let image = place.image("theirs");
    let (path, key) = (text(&image), text(&place.key));
    let check = |sectors: u64, args: &[&str], sector_size: usize| {
        blank(&image, sectors);
        let common = ["luksFormat", "-q", "--key-file", key, path];
        ok(&[&common[..], args].concat());
        let v = opened(&image, SECRET, None).unwrap_or_else(|e| panic!("{args:?}: {e}"));
        assert_eq!(v.sector_size.bytes(), sector_size, "{args:?}");
        assert!(matches!(opened(&image, b"wrong", None), Err(Error::WrongKey { .. })));
        same_dump(&image);
        // The volume key itself is the same: theirs, dumped, opens ours.
        let dumped = place.image("volume-key");
        let _ = std::fs::remove_file(&dumped);
        let file = ["--volume-key-file", text(&dumped)];
        ok(&[&["luksDump", "-q", "--dump-volume-key", "--key-file", key, path][..], &file]
            .concat());
        assert_eq!(Key::copy_from(&std::fs::read(&dumped).expect("the key")), v.key);
    };
    let forced = ["--pbkdf-force-iterations", "1000"];
    for hash in ["sha1", "sha256", "sha512"] {
        for bits in ["256", "512"] {
            let args = ["--type", "luks1", "--hash", hash, "--key-size", bits];
            check(SECTORS, &[&args[..], &forced].concat(), 512);
        }
        for kind in ["argon2i", "argon2id"] {
            let cost = ["--pbkdf-force-iterations", "4", "--pbkdf-memory", "64"];
            let args =
                ["--type", "luks2", "--hash", hash, "--pbkdf", kind, "--pbkdf-parallel", "2"];
            check(SECTORS, &[&args[..], &cost].concat(), 4096);
        }
    }
    for size in ["512", "1024", "2048", "4096"] {
        let args = ["--type", "luks2", "--pbkdf", "pbkdf2", "--sector-size", size, "--label", "x"];
        check(SECTORS, &[&args[..], &forced].concat(), size.parse().expect("a size"));
    }
    let odd = ["--type", "luks2", "--pbkdf", "pbkdf2"];
    check(SECTORS + 1, &[&odd[..], &forced].concat(), 512);
}

#[test]
fn keyslots_that_cryptsetup_adds_and_removes_are_seen() {
    let Some(place) = Place::new() else { return };
    for (version, name) in [(LuksVersion::Luks1, "one"), (LuksVersion::Luks2, "two")] {
        let image = place.image(name);
        let (path, key) = (text(&image), text(&place.key));
        let (pbkdf, cost) = (pbkdfs()[0].1, pbkdfs()[0].2);
        formatted(&image, SECTORS, FormatOptions { pbkdf, cost, ..FormatOptions::new(version) });
        let second = place.image("second");
        std::fs::write(&second, b"second").expect("a key file");
        let add = ["luksAddKey", "-q", "--key-file", key, path, text(&second)];
        ok(&[&add[..], &["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]].concat());
        assert_eq!(opened(&image, b"second", None).expect("added").slot, Some(1));
        assert_eq!(opened(&image, SECRET, None).expect("still there").slot, Some(0));
        assert!(matches!(opened(&image, b"second", Some(0)), Err(Error::WrongKey { .. })));
        same_dump(&image);
        if version == LuksVersion::Luks2 {
            ok(&["config", path, "--key-slot", "1", "--priority", "ignore"]);
            let e = opened(&image, b"second", None).expect_err("ignored");
            assert!(e.to_string().contains("only when named"), "{e}");
            assert_eq!(opened(&image, b"second", Some(1)).expect("named").slot, Some(1));
            ok(&["token", "add", path, "--key-description", "varve:test", "--key-slot", "0"]);
            same_dump_but_for_token_fields(&image);
        }
        ok(&["luksKillSlot", "-q", "--key-file", key, path, "1"]);
        assert!(opened(&image, b"second", None).is_err());
        assert_eq!(opened(&image, SECRET, None).expect("kept").slot, Some(0));
    }
}

/// The reference prints what it knows of its own tokens; we print every token's type and slots.
fn same_dump_but_for_token_fields(image: &Path) {
    let bytes = std::fs::read(image).expect("the image");
    let header = Header::parse(&bytes, bytes.len() as u64, None).expect("a header");
    let dump = header.to_string();
    assert!(dump.contains("0: luks2-keyring"), "{dump}");
    let theirs = fields(&ok(&["luksDump", text(image)]));
    let missing: Vec<String> = theirs.into_iter().filter(|l| !fields(&dump).contains(l)).collect();
    assert!(missing.iter().all(|l| l.contains("escription")), "{missing:?}");
}

#[test]
fn a_backup_restores_what_we_made() {
    let Some(place) = Place::new() else { return };
    let (image, backup) = (place.image("volume"), place.image("backup"));
    let (pbkdf, cost) = (pbkdfs()[0].1, pbkdfs()[0].2);
    let made =
        formatted(&image, SECTORS, FormatOptions { pbkdf, cost, ..FormatOptions::default() });
    ok(&["luksHeaderBackup", text(&image), "--header-backup-file", text(&backup)]);
    ok(&["luksErase", "-q", text(&image)]);
    let e = opened(&image, SECRET, None).expect_err("erased");
    assert!(matches!(e, Error::WrongKey { .. }), "{e}");
    ok(&["luksHeaderRestore", "-q", text(&image), "--header-backup-file", text(&backup)]);
    let v = opened(&image, SECRET, None).expect("restored");
    assert_eq!(v.uuid, made.uuid());
}

#[test]
fn a_volume_converted_from_luks1_opens() {
    let Some(place) = Place::new() else { return };
    let image = place.image("converted");
    let (pbkdf, cost) = (pbkdfs()[0].1, pbkdfs()[0].2);
    let options = FormatOptions { pbkdf, cost, ..FormatOptions::new(LuksVersion::Luks1) };
    formatted(&image, SECTORS, options);
    ok(&["convert", "-q", "--type", "luks2", text(&image)]);
    let v = opened(&image, SECRET, None).expect("digests of twenty bytes verify");
    assert_eq!(v.segments[0].below.byte(), 2 << 20);
    same_dump(&image);
}

/// A header in a file of its own, of either version, made by either side.
#[test]
fn detached_headers_open_and_dump_alike() {
    let Some(place) = Place::new() else { return };
    let (image, header) = (place.image("data"), place.image("header"));
    let (path, head, key) = (text(&image), text(&header), text(&place.key));
    blank(&image, 8192);
    let opened = || {
        let disk = Mem::from_bytes(&std::fs::read(&header).expect("the header"));
        let secret = Arc::new(Key::copy_from(SECRET));
        Sim::new(1).run(|rt| async move {
            let options = UnlockOptions::default();
            unlock_detached(&rt, &disk, Sectors(8192), &options, &secret).await
        })
    };
    for (version, kind) in [(LuksVersion::Luks1, "luks1"), (LuksVersion::Luks2, "luks2")] {
        let (pbkdf, cost) = (pbkdfs()[0].1, pbkdfs()[0].2);
        let options = FormatOptions { pbkdf, cost, detached: true, ..FormatOptions::new(version) };
        formatted(&header, 32768, options);
        ok(&["isLuks", head]);
        ok(&["open", "--test-passphrase", "--header", head, path, "--key-file", key]);
        same_dump(&header);
        assert_eq!(opened().expect("ours").len(), Sectors(8192), "{kind}");

        blank(&header, 32768);
        let args = ["luksFormat", "-q", "--type", kind, "--header", head, path, "--key-file", key];
        let cost = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
        ok(&[&args[..], &cost].concat());
        same_dump(&header);
        let volume = opened().expect("theirs");
        assert_eq!((volume.len(), volume.segments[0].below.0), (Sectors(8192), 0), "{kind}");
    }
}

/// Volumes of the years before XTS. Those whose cipher the reference leaves to device-mapper are met in a
/// guest (tests/vm).
#[test]
fn old_ciphers_open_and_dump_alike() {
    let Some(place) = Place::new() else { return };
    let image = place.image("old");
    let (path, key) = (text(&image), text(&place.key));
    for cipher in ["aes-cbc-essiv:sha256", "camellia-cbc-essiv:sha256", "aes-cbc-plain64"] {
        for kind in ["luks1", "luks2"] {
            blank(&image, SECTORS);
            let what =
                ["luksFormat", "-q", "--type", kind, "--cipher", cipher, "--key-size", "256"];
            let how = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", key];
            let made = cryptsetup(&[&what[..], &how, &[path]].concat());
            if !made.status.success() {
                let why = String::from_utf8_lossy(&made.stderr);
                assert!(why.contains("device-mapper"), "{cipher}: {why}");
                println!("skipped: {cipher} in {kind}: the reference needs device-mapper for it");
                continue;
            }
            let volume = opened(&image, SECRET, None).unwrap_or_else(|e| panic!("{cipher}: {e}"));
            assert_eq!(volume.cipher.text(), cipher);
            same_dump(&image);
        }
    }
}
