//! Making a volume: every byte of it as a list of writes, in an order that survives a crash.
//!
//! ```text
//! 1. zero both headers                 from here to step 4 there is no volume, old or new
//! 2. fill the keyslot region with noise, put the first slot's area into it
//! 3. flush
//! 4. the primary header; flush         now the volume exists
//! 5. the secondary header; flush       now it survives the loss of a header
//! ```
//!
//! The plan is made in memory first (benchmark, key, derivation, header, and the same checks that a
//! reader makes), so that nothing is written when anything about it is wrong.

mod sealed;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use varve_block::{BlockDevice, Extent, Geometry, Rt, Sector, Sectors};
use zeroize::Zeroizing;

use crate::af;
use crate::cipher::CipherSpec;
use crate::error::{Error, Result};
use crate::format::luks1::{self, DIGEST_LEN, Luks1, Luks1Slot};
use crate::format::luks2::{self, HDR_SIZES, HeaderCopy, LABEL_MAX, Luks2, OtherCopy};
use crate::format::metadata::{KEYSLOTS_SIZE_MAX, Metadata};
use crate::hash::Hash;
use crate::header::Header;
use crate::integrity::AeadSpec;
use crate::io::Fill;
use crate::kdf::{
    self, Argon2Kind, Clock, Cost, Kdf, Limits, PBKDF2_ITERATIONS_MIN, Pbkdf, SALT_LEN,
};
use crate::key::Key;
use crate::keyslot::fill_area;
use crate::manage::tree;
use crate::xts::SectorSize;

pub use sealed::{Wiped, format_sealed};

/// Which format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LuksVersion {
    Luks1,
    Luks2,
}

/// What a new volume should be. The defaults are those of the reference.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    pub version: LuksVersion,
    pub cipher: CipherSpec,
    pub key_bits: u32,
    /// Hash of AF and digest; of everything in LUKS1.
    pub hash: Hash,
    /// Derivation of the first keyslot. LUKS1 knows PBKDF2 only.
    pub pbkdf: Pbkdf,
    pub cost: Cost,
    /// Encryption sector; `None`: 4096 where the device prefers it and its length allows it.
    pub sector_size: Option<SectorSize>,
    pub label: String,
    pub subsystem: String,
    /// `None`: a random one.
    pub uuid: Option<uuid::Uuid>,
    /// Bytes of each LUKS2 header copy: one of nine sizes.
    pub header_size: u64,
    /// Bytes of the LUKS2 keyslot region; `None`: all up to the payload.
    pub keyslots_size: Option<u64>,
    /// First byte of the payload; `None`: 16 MiB for LUKS2, 2 MiB for LUKS1, 0 when detached.
    pub data_offset: Option<u64>,
    /// The payload lies on another device.
    pub detached: bool,
    /// Flags kept in the LUKS2 header, as `allow-discards`.
    pub flags: Vec<String>,
    /// Every sector is authenticated: `hmac-sha256`, `aead`, `poly1305`. [`format_sealed`] makes it.
    pub integrity: Option<String>,
}

impl Default for FormatOptions {
    fn default() -> FormatOptions {
        FormatOptions::new(LuksVersion::Luks2)
    }
}

impl FormatOptions {
    /// The reference's defaults for that version.
    pub fn new(version: LuksVersion) -> FormatOptions {
        FormatOptions {
            version,
            cipher: CipherSpec::parse("aes-xts-plain64").expect("a well-formed cipher"),
            key_bits: 512,
            hash: Hash::Sha256,
            pbkdf: match version {
                LuksVersion::Luks1 => Pbkdf::Pbkdf2(Hash::Sha256),
                LuksVersion::Luks2 => Pbkdf::Argon2(Argon2Kind::Id),
            },
            cost: Cost::default(),
            sector_size: None,
            label: String::new(),
            subsystem: String::new(),
            uuid: None,
            header_size: HDR_SIZES[0],
            keyslots_size: None,
            data_offset: None,
            detached: false,
            flags: Vec::new(),
            integrity: None,
        }
    }

    /// How sectors are authenticated, and the name of it in a header.
    fn aead(&self) -> Result<Option<(AeadSpec, String)>> {
        self.integrity.as_ref().map(|name| AeadSpec::named(&self.cipher, name)).transpose()
    }

    /// Cipher and key length of keyslot areas: the volume's, but for those that authenticate.
    fn area(&self) -> (CipherSpec, usize) {
        match self.integrity {
            None => (self.cipher.clone(), self.key_bits as usize / 8),
            Some(_) => (CipherSpec::parse("aes-xts-plain64").expect("a well-formed cipher"), 64),
        }
    }
}

/// One step of a plan.
#[derive(Debug)]
pub enum Step {
    /// These bytes at this byte.
    Write(u64, Zeroizing<Vec<u8>>),
    /// Noise or zeroes; whole 4096-byte blocks.
    Fill(u64, u64, Fill),
    /// Everything before is durable before anything after is written.
    Flush,
}

/// All writes of a new volume, in order.
#[derive(Debug)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// The header that the writes make.
    pub header: Header,
    /// The volume key.
    pub key: Key,
    /// How many of the steps, from the last one back, make the header.
    header_steps: usize,
}

type Random<'a> = &'a mut dyn FnMut(&mut [u8]) -> Result<()>;

/// How often a weak volume key is drawn again before the generator is declared broken.
pub(crate) const DRAWS_MAX: u32 = 4;
/// What a digest's PBKDF2 takes on this machine.
pub(crate) const DIGEST_TIME: Duration = Duration::from_millis(125);
/// Areas start and end on these.
pub(crate) const AREA_ALIGN: u64 = 4096;
const LUKS1_DATA_OFFSET: u64 = 2 << 20;
const LUKS2_DATA_OFFSET: u64 = 16 << 20;

impl Plan {
    /// Makes a key and the plan of a volume on a device of that geometry. Takes as long as the key
    /// derivation and its benchmark.
    pub fn make(
        options: &FormatOptions,
        geometry: &Geometry,
        secret: &Key,
        clock: Clock<'_>,
    ) -> Result<Plan> {
        Plan::make_with(options, geometry, secret, clock, &mut crate::key::fill_random)
    }

    fn make_with(
        options: &FormatOptions,
        geometry: &Geometry,
        secret: &Key,
        clock: Clock<'_>,
        random: Random<'_>,
    ) -> Result<Plan> {
        check_options(options)?;
        let key = draw_key(options, random)?;
        let len = geometry.len.bytes();
        let plan = match options.version {
            LuksVersion::Luks1 => luks1_plan(options, key, secret, clock, random, len)?,
            LuksVersion::Luks2 => luks2_plan(options, geometry, key, secret, clock, random)?,
        };
        plan.check_places(len)?;
        Ok(plan)
    }

    /// Carries the plan out.
    pub async fn run<D: BlockDevice>(&self, device: &D) -> Result<()> {
        carry_out(device, &self.steps).await
    }

    /// The steps up to the header, after which there is no volume, and those that make it.
    fn parts(&self) -> (&[Step], &[Step]) {
        self.steps.split_at(self.steps.len() - self.header_steps)
    }

    /// The header device must hold everything the plan writes.
    fn check_places(&self, len: u64) -> Result<()> {
        let end = self.steps.iter().map(|step| match step {
            Step::Write(at, bytes) => at + bytes.len() as u64,
            Step::Fill(at, len, _) => at + len,
            Step::Flush => 0,
        });
        match end.max() {
            Some(end) if end > len => Err(too_small(end, len)),
            _ => Ok(()),
        }
    }
}

async fn carry_out<D: BlockDevice>(device: &D, steps: &[Step]) -> Result<()> {
    for step in steps {
        match step {
            Step::Write(at, bytes) => crate::io::write_bytes(device, *at, bytes).await?,
            Step::Fill(at, len, how) => {
                let range = Extent::new(Sector(at / 512), Sectors(len / 512));
                crate::io::fill(device, range, *how).await?;
            }
            Step::Flush => device.flush().await?,
        }
    }
    Ok(())
}

/// Makes a volume on `device`. What was on it is lost.
pub async fn format<D: BlockDevice>(
    rt: &Rt,
    device: &D,
    options: &FormatOptions,
    secret: &Arc<Key>,
) -> Result<Header> {
    if options.integrity.is_some() {
        return Err(Error::Options("a volume with integrity is made with its sectors".into()));
    }
    let plan = make(rt, device.geometry(), options, secret).await?;
    plan.run(device).await?;
    Ok(plan.header)
}

/// The plan, computed off the lane.
async fn make(
    rt: &Rt,
    geometry: Geometry,
    options: &FormatOptions,
    secret: &Arc<Key>,
) -> Result<Plan> {
    let (options, secret) = (options.clone(), Arc::clone(secret));
    rt.offload(move || Plan::make(&options, &geometry, &secret, &wall_clock())).await
}

/// The machine's own clock: a benchmark measures the machine, also when the rest is simulated.
pub(crate) fn wall_clock() -> impl Fn() -> Duration {
    #[expect(clippy::disallowed_methods, reason = "a benchmark measures this machine")]
    let start = std::time::Instant::now();
    move || start.elapsed()
}

fn too_small(needed: u64, len: u64) -> Error {
    Error::Options(format!("the device has {len} bytes, this volume needs at least {needed}"))
}

fn check_options(o: &FormatOptions) -> Result<()> {
    sealed::check_options(o)?;
    if o.integrity.is_none() {
        o.cipher.check_creatable()?;
    }
    if o.integrity.is_none() && !matches!(o.key_bits, 256 | 512) {
        return Err(Error::Options(format!(
            "a key of {} bits; AES-XTS takes 256 or 512",
            o.key_bits
        )));
    }
    for (name, text) in [("label", &o.label), ("subsystem", &o.subsystem)] {
        if text.len() > LABEL_MAX || text.contains('\0') {
            return Err(Error::Options(format!("{name}: at most {LABEL_MAX} bytes of text")));
        }
    }
    match o.version {
        LuksVersion::Luks1 => {
            if !matches!(o.pbkdf, Pbkdf::Pbkdf2(h) if h == o.hash) {
                return Err(Error::Options(
                    "LUKS1 knows PBKDF2 only, with one hash for all".into(),
                ));
            }
            if o.sector_size.is_some_and(|s| s != SectorSize::S512) {
                return Err(Error::Options("LUKS1 has sectors of 512 bytes only".into()));
            }
            if !o.label.is_empty() || !o.subsystem.is_empty() || !o.flags.is_empty() {
                return Err(Error::Options("LUKS1 has no label, subsystem or flags".into()));
            }
        }
        LuksVersion::Luks2 => {
            if !HDR_SIZES.contains(&o.header_size) {
                return Err(Error::Options(format!(
                    "header size {}: not one of nine",
                    o.header_size
                )));
            }
        }
    }
    Ok(())
}

fn draw_key(o: &FormatOptions, random: Random<'_>) -> Result<Key> {
    let encrypt = o.key_bits as usize / 8;
    let mac = o.aead()?.map_or(0, |(spec, _)| spec.mac_key_len());
    for _ in 0..DRAWS_MAX {
        let mut key = Key::zeroed(encrypt + mac);
        random(key.bytes_mut())?;
        let halves = Key::copy_from(&key.bytes()[..encrypt]);
        if !halves.halves_equal() && !halves.is_zero() {
            return Ok(key);
        }
    }
    Err(Error::Random("it gives keys with equal halves".into()))
}

fn draw<const N: usize>(random: Random<'_>) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    random(&mut bytes)?;
    Ok(bytes)
}

/// A digest costs what 125 ms cost here; when the operator forces the price, the least there is. The
/// volume key is random: its digest needs no price.
fn digest_iterations(o: &FormatOptions, len: usize, clock: Clock<'_>) -> u32 {
    match o.cost {
        Cost::Benchmark { .. } => kdf::benchmark_pbkdf2(o.hash, len, DIGEST_TIME, clock),
        Cost::Forced { .. } => PBKDF2_ITERATIONS_MIN,
    }
}

fn digest(o: &FormatOptions, key: &Key, salt: &[u8], iterations: u32, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    let done = o.hash.pbkdf2(key.bytes(), salt, iterations, &mut out, &|| false);
    assert!(done, "nobody stops a digest");
    out
}

fn first_area(
    o: &FormatOptions,
    kdf: &Kdf,
    key: &Key,
    secret: &Key,
    random: Random<'_>,
) -> Result<Zeroizing<Vec<u8>>> {
    let (cipher, len) = o.area();
    let derived = kdf.derive(secret, len, &Limits::format_maximum())?;
    fill_area(&cipher, o.hash, key, &derived, random)
}

fn luks1_plan(
    o: &FormatOptions,
    key: Key,
    secret: &Key,
    clock: Clock<'_>,
    random: Random<'_>,
    len: u64,
) -> Result<Plan> {
    let kdf = kdf::choose(o.pbkdf, o.cost, key.len(), clock)?;
    let Kdf::Pbkdf2 { iterations, salt, .. } = kdf else { unreachable!("options were checked") };
    let step = area_step(key.len());
    let first = AREA_ALIGN;
    let end = first + step * luks1::SLOTS as u64;
    let data_offset = match o.data_offset {
        _ if o.detached => 0,
        Some(at) => at,
        None => LUKS1_DATA_OFFSET.max(end),
    };
    if !data_offset.is_multiple_of(512) || (!o.detached && data_offset < end) {
        let why = format!("payload at byte {data_offset}: a multiple of 512, at least {end}");
        return Err(Error::Options(why));
    }
    let (cipher, mode) = o
        .cipher
        .luks1_fields()
        .filter(|(c, m)| c.len() < 32 && m.len() < 32)
        .ok_or_else(|| Error::Options(format!("LUKS1 cannot name the cipher {}", o.cipher)))?;
    let digest_iterations = digest_iterations(o, DIGEST_LEN, clock);
    let digest_salt = draw(random)?;
    let sector =
        |at: u64| u32::try_from(at / 512).map_err(|_| Error::Options("payload above 2 TiB".into()));
    let slot = |i: usize| Luks1Slot {
        active: i == 0,
        iterations: if i == 0 { iterations } else { 0 },
        salt: if i == 0 { salt } else { [0; SALT_LEN] },
        material_offset: u32::try_from((first + step * i as u64) / 512).expect("below 16 MiB"),
        stripes: af::STRIPES,
    };
    let header = Luks1 {
        cipher: cipher.into(),
        mode: mode.into(),
        hash: o.hash.name().into(),
        payload_offset: sector(data_offset)?,
        key_bytes: o.key_bits / 8,
        digest: digest(o, &key, &digest_salt, digest_iterations, DIGEST_LEN)
            .try_into()
            .expect("20 bytes were asked for"),
        digest_salt,
        digest_iterations,
        uuid: o.uuid.unwrap_or_else(uuid::Uuid::new_v4).to_string(),
        slots: std::array::from_fn(slot),
    };
    let bytes = header.encode();
    Luks1::parse(&bytes, len.max(end))?;
    if !o.detached && len < data_offset + 512 {
        return Err(too_small(data_offset + 512, len));
    }
    let area = first_area(o, &kdf, &key, secret, random)?;
    let mut steps = wipe(0, first, end, data_offset, len, o.detached);
    steps.push(Step::Write(first, area));
    steps.push(Step::Flush);
    steps.push(Step::Write(0, Zeroizing::new(bytes)));
    steps.push(Step::Flush);
    Ok(Plan { steps, header: Header::Luks1(Box::new(header)), key, header_steps: 2 })
}

/// Bytes from one area to the next.
pub(crate) fn area_step(key_len: usize) -> u64 {
    let len = af::area_len(key_len as u64, af::STRIPES).expect("at most 64 bytes");
    len.next_multiple_of(AREA_ALIGN)
}

/// Destroys what was there: headers first, and durably, then noise where keyslots will be, then every
/// place where an old secondary header could wait for the new primary to be lost.
fn wipe(from: u64, areas: u64, areas_end: u64, data: u64, len: u64, detached: bool) -> Vec<Step> {
    let mut steps = vec![
        Step::Fill(from, areas - from, Fill::Zero),
        Step::Flush,
        Step::Fill(areas, areas_end - areas, Fill::Random),
    ];
    let gap_end = if detached { areas_end } else { data - data % AREA_ALIGN };
    if gap_end > areas_end {
        steps.push(Step::Fill(areas_end, gap_end - areas_end, Fill::Zero));
    }
    let wiped = gap_end.max(areas_end);
    for at in HDR_SIZES {
        if at >= wiped && at + AREA_ALIGN <= len {
            steps.push(Step::Fill(at, AREA_ALIGN, Fill::Zero));
        }
    }
    steps
}

fn luks2_plan(
    o: &FormatOptions,
    geometry: &Geometry,
    key: Key,
    secret: &Key,
    clock: Clock<'_>,
    random: Random<'_>,
) -> Result<Plan> {
    let len = geometry.len.bytes();
    let places = Luks2Places::choose(o, len, key.len())?;
    let sector_size = match o.sector_size {
        Some(size) => size,
        None => default_sector_size(geometry, places.data_offset, o.detached),
    };
    if !o.detached && len < places.data_offset + sector_size.bytes() as u64 {
        return Err(too_small(places.data_offset + sector_size.bytes() as u64, len));
    }
    let kdf = kdf::choose(o.pbkdf, o.cost, key.len(), clock)?;
    let digest_iterations = digest_iterations(o, o.hash.size(), clock);
    let digest_salt: [u8; SALT_LEN] = draw(random)?;
    let digest = digest(o, &key, &digest_salt, digest_iterations, o.hash.size());
    let tree = json!({
        "keyslots": { "0": keyslot_json(o, &kdf, &key, &places) },
        "tokens": {},
        "segments": { "0": segment_json(o, &places, sector_size)? },
        "digests": {
            "0": tree::digest(o.hash, digest_iterations, &digest_salt, &digest, "0", Some("0")),
        },
        "config": config_json(o, &places),
    });
    let header = Luks2 {
        hdr_size: o.header_size,
        seqid: 1,
        label: o.label.clone(),
        subsystem: o.subsystem.clone(),
        uuid: o.uuid.unwrap_or_else(uuid::Uuid::new_v4).to_string(),
        checksum_algorithm: Hash::Sha256.name().into(),
        copy: HeaderCopy::Primary,
        other: OtherCopy::Same,
        metadata: Metadata::parse("new LUKS2 header", tree, o.header_size)?,
        notes: Vec::new(),
    };
    let area = first_area(o, &kdf, &key, secret, random)?;
    let Some([primary, secondary]) = header.encode(random)? else {
        return Err(Error::Options("the metadata do not fit the header size".into()));
    };
    let areas_end = places.areas + places.keyslots_size;
    let mut steps = wipe(0, places.areas, areas_end, places.data_offset, len, o.detached);
    steps.push(Step::Write(places.areas, area));
    steps.push(Step::Flush);
    for (at, bytes) in [primary, secondary] {
        steps.push(Step::Write(at, Zeroizing::new(bytes)));
        steps.push(Step::Flush);
    }
    Ok(Plan { steps, header: Header::Luks2(Box::new(header)), key, header_steps: 4 })
}

/// Where the parts of a LUKS2 volume lie.
struct Luks2Places {
    areas: u64,
    keyslots_size: u64,
    data_offset: u64,
}

impl Luks2Places {
    fn choose(o: &FormatOptions, len: u64, key_len: usize) -> Result<Luks2Places> {
        let areas = 2 * o.header_size;
        let bad = |why: String| Err(Error::Options(why));
        let data_offset = match (o.data_offset, o.keyslots_size) {
            (Some(at), _) => at,
            (None, _) if o.detached => 0,
            (None, Some(size)) => (areas + size).next_multiple_of(1 << 20),
            (None, None) => LUKS2_DATA_OFFSET,
        };
        let room = if o.detached { len.min(LUKS2_DATA_OFFSET) } else { data_offset };
        let keyslots_size = match o.keyslots_size {
            Some(size) => size,
            None => room.saturating_sub(areas).min(KEYSLOTS_SIZE_MAX) / AREA_ALIGN * AREA_ALIGN,
        };
        if !keyslots_size.is_multiple_of(AREA_ALIGN)
            || keyslots_size > KEYSLOTS_SIZE_MAX
            || keyslots_size < area_step(key_len)
        {
            let least = area_step(key_len);
            return bad(format!(
                "keyslots size {keyslots_size}: a multiple of 4096, {least} to 128 MiB"
            ));
        }
        let end = areas + keyslots_size;
        if !data_offset.is_multiple_of(AREA_ALIGN) || (!o.detached && data_offset < end) {
            return bad(format!(
                "payload at byte {data_offset}: a multiple of 4096, at least {end}"
            ));
        }
        Ok(Luks2Places { areas, keyslots_size, data_offset })
    }
}

/// 4096 where the device prefers blocks of that size and its payload is made of whole ones. A torn
/// sector then damages one block of the file system, and not eight half-updated ones.
fn default_sector_size(geometry: &Geometry, data_offset: u64, detached: bool) -> SectorSize {
    let start = if detached { 0 } else { data_offset };
    let payload = geometry.len.bytes().saturating_sub(start);
    let large =
        geometry.preferred.is_multiple_of(Sectors(8)) && (detached || payload.is_multiple_of(4096));
    if large { SectorSize::S4096 } else { SectorSize::S512 }
}

fn segment_json(o: &FormatOptions, places: &Luks2Places, size: SectorSize) -> Result<Value> {
    let mut segment = json!({
        "type": "crypt",
        "offset": places.data_offset.to_string(),
        "size": "dynamic",
        "iv_tweak": "0",
        "encryption": o.cipher.text(),
        "sector_size": size.bytes(),
    });
    if let Some((_, name)) = o.aead()? {
        segment["integrity"] = json!({
            "type": name,
            "journal_encryption": "none",
            "journal_integrity": "none",
        });
    }
    Ok(segment)
}

fn keyslot_json(o: &FormatOptions, kdf: &Kdf, key: &Key, places: &Luks2Places) -> Value {
    let (area_cipher, area_key_len) = o.area();
    tree::keyslot(&tree::NewKeyslot {
        kdf,
        af_hash: o.hash,
        key_len: key.len(),
        area_offset: places.areas,
        area_size: area_step(key.len()),
        area_cipher: &area_cipher,
        area_key_len,
    })
}

fn config_json(o: &FormatOptions, places: &Luks2Places) -> Value {
    let mut config = json!({
        "json_size": (o.header_size - luks2::BINARY_LEN).to_string(),
        "keyslots_size": places.keyslots_size.to_string(),
    });
    if !o.flags.is_empty() {
        config["flags"] = json!(o.flags);
    }
    config
}

#[cfg(test)]
mod tests;
