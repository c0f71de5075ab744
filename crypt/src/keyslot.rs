//! From a secret to the volume key: which slots are tried, in which order, and what proves the key.
//!
//! A keyslot's area holds the volume key, split by [`af`](crate::af) and encrypted under a key that is
//! derived from the secret. A wrong secret, a damaged area and a wrong parameter all give *some* key;
//! only the digest tells, and only [`Verified`] carries a key further.
//!
//! Slots that cannot be tried (unknown derivation, above the price limit, area too small for its key)
//! are skipped and listed, so that "wrong passphrase" never hides "not tried".

use base64::prelude::{BASE64_STANDARD, Engine as _};
use zeroize::Zeroizing;

use crate::af;
use crate::cipher::CipherSpec;
use crate::error::{Error, Result, Skipped, printable};
use crate::format::luks1::{self, Luks1};
use crate::format::luks2::Luks2;
use crate::format::metadata::{DigestKind, KeyslotKind, Luks2Slot, Priority, SlotKdf};
use crate::hash::Hash;
use crate::header::Header;
use crate::kdf::{Argon2Kind, Kdf, Limits, SALT_LEN};
use crate::key::{Key, same};
use crate::xts::{Engine, SectorSize, Xts, XtsParams};

/// Longest key of a slot or an area (check 24).
const KEY_SIZE_MAX: u64 = 512;

/// A slot that can be tried, with everything the attempt needs but the area's bytes.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) slot: u32,
    /// First byte of the area, and how many of them are needed.
    pub(crate) area_offset: u64,
    pub(crate) area_len: u64,
    key_len: usize,
    kdf: Kdf,
    area_key_len: usize,
    area_cipher: CipherSpec,
    af_hash: Hash,
    digest: KeyDigest,
}

/// What a digest says of the key it recognises.
#[derive(Clone, Debug)]
struct KeyDigest {
    /// Number of a LUKS2 digest.
    id: Option<u32>,
    hash: Hash,
    iterations: u32,
    salt: [u8; SALT_LEN],
    digest: Vec<u8>,
}

/// A volume key that matched its digest in full. Nothing else makes one (check 18).
pub(crate) struct Verified {
    pub(crate) key: Key,
    pub(crate) slot: Option<u32>,
    /// Digest that recognised the key; `None` for LUKS1, which has one only.
    pub(crate) digest: Option<u32>,
}

/// The order in which slots are tried, and those that are not.
pub(crate) struct Candidates {
    pub(crate) list: Vec<Candidate>,
    pub(crate) skipped: Vec<Skipped>,
}

impl Header {
    /// Slots to try, in order: preferred ones, normal ones; ignored ones only when named.
    pub(crate) fn candidates(&self, only: Option<u32>, limits: &Limits) -> Result<Candidates> {
        let (mut list, mut skipped) = (Vec::new(), Vec::new());
        let slots = self.slots_in_order();
        if let Some(slot) = only
            && !slots.iter().any(|(id, _)| *id == slot)
        {
            return Err(Error::Options(format!("there is no keyslot {slot} in use")));
        }
        for (slot, priority) in slots {
            if only.is_some_and(|o| o != slot) {
                continue;
            }
            if only.is_none() && priority == Priority::Ignore {
                skipped.push(Skipped { slot, why: "its priority says: only when named".into() });
                continue;
            }
            let candidate = match self {
                Header::Luks1(h) => luks1_candidate(h, slot),
                Header::Luks2(h) => luks2_candidate(h, slot),
            };
            match candidate.and_then(|c| c.affordable(limits)) {
                Ok(candidate) => list.push(candidate),
                Err(why) => skipped.push(Skipped { slot, why }),
            }
        }
        Ok(Candidates { list, skipped })
    }

    fn slots_in_order(&self) -> Vec<(u32, Priority)> {
        match self {
            Header::Luks1(h) => (0u32..)
                .zip(&h.slots)
                .filter(|(_, s)| s.active)
                .map(|(id, _)| (id, Priority::Normal))
                .collect(),
            Header::Luks2(h) => {
                let mut slots: Vec<(u32, Priority)> = h
                    .metadata
                    .keyslots
                    .iter()
                    .filter(|(_, s)| !matches!(s.kind, KeyslotKind::Reencrypt { .. }))
                    .map(|(id, s)| (*id, s.priority))
                    .collect();
                // An unbound slot may have the same secret as the volume's own: the volume's first.
                let unbound =
                    |slot| h.metadata.digest_of(slot).is_some_and(|(_, d)| d.segments.is_empty());
                slots.sort_by_key(|(id, priority)| {
                    (unbound(*id), std::cmp::Reverse(*priority), *id)
                });
                slots
            }
        }
    }
}

impl Candidate {
    fn affordable(self, limits: &Limits) -> Result<Candidate, String> {
        if let Some(why) = self.kdf.out_of_bounds().or_else(|| self.kdf.too_expensive(limits)) {
            return Err(why);
        }
        if self.digest.iterations > limits.pbkdf2_iterations {
            return Err(format!(
                "{} digest iterations are above the limit",
                self.digest.iterations
            ));
        }
        Ok(self)
    }

    /// Tries the secret on the area's bytes. `None`: it does not open this slot.
    pub(crate) fn attempt(
        &self,
        area: &[u8],
        secret: &Key,
        limits: &Limits,
    ) -> Result<Option<Verified>> {
        let derived = self.kdf.derive(secret, self.area_key_len, limits)?;
        let mut split = Zeroizing::new(area.to_vec());
        self.area_xts(&derived)?.decrypt(0, &mut split);
        let key = af::merge(self.af_hash, &split, self.key_len, af::STRIPES);
        let Some(digest) = self.digest.recognises(&key, limits)? else { return Ok(None) };
        Ok(Some(Verified { key, slot: Some(self.slot), digest }))
    }

    /// Bytes of a fresh area that holds `key` under `secret`: the reverse of [`Candidate::attempt`].
    fn area_xts(&self, derived: &Key) -> Result<Xts> {
        area_xts(&self.area_cipher, derived)
    }
}

/// The cipher of keyslot areas: 512-byte sectors whatever the volume has, counted from the area.
/// Equal halves of a *derived* key are nobody's choice, so they are no reason to refuse.
pub(crate) fn area_xts(spec: &CipherSpec, derived: &Key) -> Result<Xts> {
    let params = XtsParams {
        engine: Engine::Auto,
        allow_weak_key: true,
        ..XtsParams::new(spec.clone(), SectorSize::S512)
    };
    Xts::new(&params, derived)
}

/// The encrypted, split key as it lies in an area: whole sectors.
pub(crate) fn fill_area(
    spec: &CipherSpec,
    af_hash: Hash,
    key: &Key,
    derived: &Key,
    random: &mut dyn FnMut(&mut [u8]) -> Result<()>,
) -> Result<Zeroizing<Vec<u8>>> {
    let mut split = af::split(af_hash, key, af::STRIPES, random)?;
    area_xts(spec, derived)?.encrypt(0, &mut split);
    Ok(split)
}

impl KeyDigest {
    /// `Some(digest id)` when the key's digest equals the stored one in every byte.
    fn recognises(&self, key: &Key, limits: &Limits) -> Result<Option<Option<u32>>> {
        let found = self.compute(key, limits)?;
        Ok(same(&found, &self.digest).then_some(self.id))
    }

    fn compute(&self, key: &Key, limits: &Limits) -> Result<Vec<u8>> {
        let mut out = vec![0; self.digest.len()];
        let stop = || limits.stopped();
        if !self.hash.pbkdf2(key.bytes(), &self.salt, self.iterations, &mut out, &stop) {
            return Err(Error::Interrupted);
        }
        Ok(out)
    }
}

impl Header {
    /// Takes a volume key as it is, if a digest recognises it: the way in without a keyslot.
    pub(crate) fn verify_volume_key(&self, key: Key, limits: &Limits) -> Result<Verified> {
        let mut digests = Vec::new();
        match self {
            Header::Luks1(h) if key.len() == h.key_bytes as usize => digests.push(luks1_digest(h)?),
            Header::Luks1(_) => {}
            Header::Luks2(h) => {
                digests
                    .extend(h.metadata.digests.keys().filter_map(|&id| luks2_digest(h, id).ok()));
            }
        }
        for digest in digests {
            if let Some(digest) = digest.recognises(&key, limits)? {
                return Ok(Verified { key, slot: None, digest });
            }
        }
        Err(Error::WrongKey { skipped: Vec::new() })
    }
}

fn hash_named(name: &str) -> Result<Hash, String> {
    Hash::named(name).ok_or_else(|| format!("hash \"{}\" is not implemented", printable(name)))
}

fn luks1_candidate(h: &Luks1, slot: u32) -> Result<Candidate, String> {
    let raw = h.slots.get(slot as usize).ok_or("no such slot")?;
    let hash = h.hash().map_err(|e| e.to_string())?;
    let area_cipher = h.cipher_spec().map_err(|e| e.to_string())?;
    area_cipher.check_supported().map_err(|e| e.to_string())?;
    Ok(Candidate {
        slot,
        area_offset: u64::from(raw.material_offset) * 512,
        area_len: h.area_sectors() * 512,
        key_len: h.key_bytes as usize,
        kdf: Kdf::Pbkdf2 { hash, iterations: raw.iterations, salt: raw.salt },
        area_key_len: h.key_bytes as usize,
        area_cipher,
        af_hash: hash,
        digest: luks1_digest(h).map_err(|e| e.to_string())?,
    })
}

fn luks1_digest(h: &Luks1) -> Result<KeyDigest> {
    Ok(KeyDigest {
        id: None,
        hash: h.hash()?,
        iterations: h.digest_iterations,
        salt: h.digest_salt,
        digest: h.digest.to_vec(),
    })
}

fn luks2_candidate(h: &Luks2, slot: u32) -> Result<Candidate, String> {
    let keyslot = h.metadata.keyslots.get(&slot).ok_or("no such slot")?;
    let luks2 = match &keyslot.kind {
        KeyslotKind::Luks2(s) => s,
        KeyslotKind::Reencrypt { .. } => return Err("it holds no key".into()),
        KeyslotKind::Unknown(kind) => return Err(format!("unknown type \"{}\"", printable(kind))),
    };
    for (name, size) in [("key_size", keyslot.key_size), ("area key_size", luks2.area_key_size)] {
        if !(1..=KEY_SIZE_MAX).contains(&size) {
            return Err(format!("{name} {size} is above {KEY_SIZE_MAX} bytes (check 24)"));
        }
    }
    if luks2.stripes != u64::from(af::STRIPES) {
        return Err(format!("{} stripes instead of 4000 (check 23)", luks2.stripes));
    }
    let needed = af::area_len(keyslot.key_size, af::STRIPES).ok_or("key_size")?;
    if keyslot.area_size < needed {
        let has = keyslot.area_size;
        return Err(format!("its area has {has} bytes, the key needs {needed} (check 25)"));
    }
    let area_cipher = CipherSpec::parse(&luks2.area_encryption).map_err(|e| e.to_string())?;
    area_cipher.check_supported().map_err(|e| e.to_string())?;
    if !usize::try_from(luks2.area_key_size).is_ok_and(|len| area_cipher.takes_key(len)) {
        return Err(format!("area key_size {} does not fit {area_cipher}", luks2.area_key_size));
    }
    let (digest, _) = h.metadata.digest_of(slot).ok_or("no digest")?;
    let small = |n: u64| usize::try_from(n).expect("at most 512");
    Ok(Candidate {
        slot,
        area_offset: keyslot.area_offset,
        area_len: needed,
        key_len: small(keyslot.key_size),
        kdf: luks2_kdf(luks2)?,
        area_key_len: small(luks2.area_key_size),
        area_cipher,
        af_hash: hash_named(&luks2.af_hash)?,
        digest: luks2_digest(h, digest)?,
    })
}

fn luks2_kdf(slot: &Luks2Slot) -> Result<Kdf, String> {
    let u32_of = |name: &str, n: u64| {
        u32::try_from(n).map_err(|_| format!("{name} {n} is outside the bounds of the format"))
    };
    Ok(match &slot.kdf {
        SlotKdf::Pbkdf2 { hash, iterations, salt } => Kdf::Pbkdf2 {
            hash: hash_named(hash)?,
            iterations: u32_of("iterations", *iterations)?,
            salt: decode_salt(salt)?,
        },
        SlotKdf::Argon2 { id, time, memory, cpus, salt } => Kdf::Argon2 {
            kind: if *id { Argon2Kind::Id } else { Argon2Kind::I },
            time: u32_of("time", *time)?,
            memory_kib: u32_of("memory", *memory)?,
            lanes: u32_of("cpus", *cpus)?,
            salt: decode_salt(salt)?,
        },
        SlotKdf::Unknown(kind) => {
            return Err(format!("unknown key derivation \"{}\"", printable(kind)));
        }
    })
}

fn decode_salt(text: &str) -> Result<[u8; SALT_LEN], String> {
    let bytes = BASE64_STANDARD.decode(text).map_err(|_| "its salt is not base64 (check 29)")?;
    bytes.try_into().map_err(|_| "its salt is not 32 bytes (check 29)".into())
}

/// Whether digest `id` recognises `key`. The key may be any byte string that a digest was made of.
pub(crate) fn recognised_by(h: &Luks2, id: u32, key: &Key, limits: &Limits) -> Result<bool> {
    let digest = luks2_digest(h, id).map_err(Error::unsupported)?;
    Ok(digest.recognises(key, limits)?.is_some())
}

/// A digest that could recognise a key. Anything odd about it is a failure to verify (check 18).
fn luks2_digest(h: &Luks2, id: u32) -> Result<KeyDigest, String> {
    let digest = h.metadata.digests.get(&id).ok_or("no such digest")?;
    let (hash, iterations, salt, stored) = match &digest.kind {
        DigestKind::Pbkdf2 { hash, iterations, salt, digest } => (hash, *iterations, salt, digest),
        DigestKind::Unknown(kind) => {
            return Err(format!("digest {id} has the unknown type \"{}\"", printable(kind)));
        }
    };
    let hash = hash_named(hash)?;
    let iterations = u32::try_from(iterations)
        .ok()
        .filter(|&n| n <= 1 << 31)
        .ok_or_else(|| format!("digest {id} has {iterations} iterations"))?;
    let stored = BASE64_STANDARD
        .decode(stored)
        .ok()
        .filter(|d| d.len() == hash.size() || d.len() == luks1::DIGEST_LEN)
        .ok_or_else(|| format!("digest {id} is not a digest of {} (check 18)", hash.name()))?;
    Ok(KeyDigest { id: Some(id), hash, iterations, salt: decode_salt(salt)?, digest: stored })
}

#[cfg(test)]
mod tests;
