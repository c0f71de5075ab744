//! The encryption layer: AES-XTS of every engine beside OpenSSL's and the kernel's, then served volumes beside
//! rivals'.

use crate::suite::{self, Options, Select};
use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

/// Encryption sectors that volumes have.
const SECTORS: [u64; 2] = [512, 4096];
/// Volume keys in bits, and what OpenSSL calls XTS with such a key.
const KEYS: [(u64, &str); 2] = [(512, "aes-256-xts"), (256, "aes-128-xts")];
/// What `cryptsetup benchmark` encrypts at a time.
const KERNEL_UNIT: u64 = 64 << 10;
/// The engine that ratios are of.
const BASE: &str = "aws-lc";

/// One engine with one key and one size of sectors.
#[derive(Debug, PartialEq)]
struct Speed {
    engine: String,
    key_bits: u64,
    sector: u64,
    encrypt_mib_s: f64,
    decrypt_mib_s: f64,
}

pub(crate) fn run(varve: &Path, options: &Options) -> anyhow::Result<()> {
    let varve = varve.canonicalize().context("no varve binary; use bench/run")?;
    let mut speeds = Vec::new();
    for (key_bits, name) in KEYS {
        for sector in SECTORS {
            eprintln!("measuring AES-XTS, key {key_bits}, sector {sector}");
            speeds.extend(own(&varve, key_bits, sector)?);
            match openssl(name, key_bits, sector) {
                Ok(speed) => speeds.push(speed),
                Err(e) => eprintln!("no figures of OpenSSL: {e:#}"),
            }
        }
        match kernel(key_bits) {
            Ok(speed) => speeds.push(speed),
            Err(e) => eprintln!("no figures of the kernel: {e:#}"),
        }
    }
    print!("{}", text(&speeds));
    let rows = suite::run(&varve, options, Select::Crypt)?;
    if let Some(path) = options.json() {
        let both = json!({ "xts": as_json(&speeds), "served": rows });
        std::fs::write(path, serde_json::to_string_pretty(&both)?)?;
    }
    Ok(())
}

/// All engines of the binary, in turn, in requests of a mebibyte.
fn own(varve: &Path, key_bits: u64, sector: u64) -> anyhow::Result<Vec<Speed>> {
    let (key, size) = (key_bits.to_string(), sector.to_string());
    let args = ["crypt", "bench", "--only", "cipher", "--cipher", "aes-xts-plain64", "--json"];
    let more = ["--request", "1M", "--rounds", "200", "--key-size", &key, "--sector-size", &size];
    let out = Command::new(varve).args(args).args(more).output().context("cannot start varve")?;
    if !out.status.success() {
        bail!("varve crypt bench: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    let json: Value = serde_json::from_slice(&out.stdout).context("varve printed no JSON")?;
    let ciphers = json["ciphers"].as_array().context("no ciphers in it")?;
    let number = |v: &Value| v.as_f64().context("not a number");
    ciphers
        .iter()
        .map(|c| {
            Ok(Speed {
                engine: c["engine"].as_str().context("an engine without a name")?.to_owned(),
                key_bits,
                sector,
                encrypt_mib_s: number(&c["encrypt_mib_s"])?,
                decrypt_mib_s: number(&c["decrypt_mib_s"])?,
            })
        })
        .collect()
}

/// OpenSSL over one sector again and again: it sets no new tweak, so it does a little less than a disk
/// needs.
fn openssl(name: &str, key_bits: u64, sector: u64) -> anyhow::Result<Speed> {
    let one = |direction: &[&str]| -> anyhow::Result<f64> {
        let out = Command::new("openssl")
            .args(["speed", "-mr", "-elapsed", "-seconds", "1", "-bytes", &sector.to_string()])
            .args(direction)
            .args(["-evp", name])
            .output()
            .context("cannot start openssl")?;
        if !out.status.success() {
            bail!("openssl speed: {}", String::from_utf8_lossy(&out.stderr).trim());
        }
        figure(&String::from_utf8_lossy(&out.stdout))
    };
    Ok(Speed {
        engine: "openssl".into(),
        key_bits,
        sector,
        encrypt_mib_s: one(&[])?,
        decrypt_mib_s: one(&["-decrypt"])?,
    })
}

/// Bytes per second at the end of the line `+F:number:name:bytes`, as MiB/s.
fn figure(output: &str) -> anyhow::Result<f64> {
    let line = output.lines().find(|l| l.starts_with("+F:")).context("openssl gave no figure")?;
    let bytes: f64 = line.rsplit(':').next().unwrap_or("").parse().context("not a number")?;
    Ok(bytes / f64::from(1 << 20))
}

/// The kernel's own XTS, through a socket, as `cryptsetup benchmark` measures it: one data unit of 64 KiB
/// at a time, so it sets fewer tweaks than a disk needs, and pays for two calls into the kernel.
fn kernel(key_bits: u64) -> anyhow::Result<Speed> {
    let out = Command::new("cryptsetup")
        .args(["benchmark", "--cipher", "aes-xts-plain64", "--key-size", &key_bits.to_string()])
        .output()
        .context("cannot start cryptsetup")?;
    if !out.status.success() {
        bail!("cryptsetup benchmark: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    let (encrypt_mib_s, decrypt_mib_s) = rates(&String::from_utf8_lossy(&out.stdout))?;
    let engine = "kernel".into();
    Ok(Speed { engine, key_bits, sector: KERNEL_UNIT, encrypt_mib_s, decrypt_mib_s })
}

/// Both rates of the line `aes-xts 512b 1000.0 MiB/s 1000.0 MiB/s`.
fn rates(output: &str) -> anyhow::Result<(f64, f64)> {
    let line = output.lines().find(|l| l.trim_start().starts_with("aes-xts"));
    let words: Vec<_> = line.context("cryptsetup gave no figure")?.split_whitespace().collect();
    let [_, _, encrypt, "MiB/s", decrypt, "MiB/s"] = words[..] else {
        bail!("cryptsetup gave other figures: {}", words.join(" "));
    };
    let rate = |word: &str| word.parse().with_context(|| format!("not a rate: {word}"));
    Ok((rate(encrypt)?, rate(decrypt)?))
}

fn base<'a>(speeds: &'a [Speed], of: &Speed) -> Option<&'a Speed> {
    // AWS-LC has no AES-128-XTS; there the ratios are of OpenSSL.
    let sector = of.sector.min(SECTORS[1]);
    let with = |name| {
        let same = |s: &&Speed| (s.key_bits, s.sector) == (of.key_bits, sector);
        speeds.iter().filter(same).find(|s| s.engine == name)
    };
    with(BASE).or_else(|| with("openssl"))
}

fn text(speeds: &[Speed]) -> String {
    let mut out =
        "\nAES-XTS on one core: encrypt and decrypt, MiB/s, as multiples of aws-lc (key 256: of openssl; kernel: of 4096)\n".to_owned();
    for s in speeds {
        let _ = write!(
            out,
            "  key {:>3} sector {:>5} {:<8} {:>7.0} {:>7.0}",
            s.key_bits, s.sector, s.engine, s.encrypt_mib_s, s.decrypt_mib_s
        );
        if let Some(base) = base(speeds, s) {
            let (e, d) =
                (s.encrypt_mib_s / base.encrypt_mib_s, s.decrypt_mib_s / base.decrypt_mib_s);
            let _ = write!(out, "   x{e:.2} x{d:.2}");
        }
        out.push('\n');
    }
    out
}

fn as_json(speeds: &[Speed]) -> Vec<Value> {
    speeds
        .iter()
        .map(|s| {
            let base = base(speeds, s);
            json!({
                "engine": s.engine, "key_bits": s.key_bits, "sector_size": s.sector,
                "encrypt_mib_s": s.encrypt_mib_s, "decrypt_mib_s": s.decrypt_mib_s,
                "to": base.map(|b| &b.engine),
                "encrypt_ratio": base.map(|b| s.encrypt_mib_s / b.encrypt_mib_s),
                "decrypt_ratio": base.map(|b| s.decrypt_mib_s / b.decrypt_mib_s),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openssl_s_line_is_read_as_bytes_per_second() {
        let line = "+H:512\n+F:25:AES-256-XTS:1048576000.00\n";
        assert_eq!(figure(line).unwrap(), 1000.0);
        assert!(figure("+H:512\n").is_err());
        assert!(figure("+F:25:AES-256-XTS:fast\n").is_err());
    }

    #[test]
    fn cryptsetup_s_line_is_read_as_two_rates() {
        let text = "# Tests are approximate.\n# Algorithm |  Key | Encryption | Decryption\n        aes-xts        512b      4058.1 MiB/s      3954.3 MiB/s\n";
        assert_eq!(rates(text).unwrap(), (4058.1, 3954.3));
        assert!(rates("# Tests are approximate.\n").is_err());
        assert!(rates("aes-xts 512b N/A N/A\n").is_err());
    }

    #[test]
    fn ratios_are_of_the_same_key_and_sector() {
        let speed = |engine: &str, key_bits, sector, mib| Speed {
            engine: engine.into(),
            key_bits,
            sector,
            encrypt_mib_s: mib,
            decrypt_mib_s: mib,
        };
        let all = [
            speed("aws-lc", 512, 512, 10.0),
            speed("aws-lc", 512, 4096, 20.0),
            speed("soft", 512, 4096, 5.0),
            speed("openssl", 256, 512, 8.0),
            speed("soft", 256, 512, 4.0),
            speed("kernel", 512, KERNEL_UNIT, 30.0),
        ];
        assert_eq!(base(&all, &all[2]), Some(&all[1]));
        assert_eq!(base(&all, &all[4]), Some(&all[3]));
        assert_eq!(base(&all, &all[5]), Some(&all[1]));
        assert!(text(&all).contains("x0.25 x0.25"));
    }
}
