//! AES-XTS over encryption sectors: one data unit, one tweak start, per sector of 512 to 4096 bytes.
//!
//! Several engines compute the same bytes. The [`fused`] ones are our own and the fastest, on processors
//! with AES instructions; [`Engine::AwsLc`] is the next best, for AES-256 with unequal key halves;
//! [`Engine::Soft`] is pure Rust and knows everything. All expand the key once per volume; a request only
//! starts tweaks. Whichever is not used is the oracle of the one that is.
//!
//! # Numbers
//! Every method takes `n`, the number of the *first 512-byte sector* of the data, counted from the
//! start of the segment and with the segment's IV offset already added. Without `large` the IV of
//! consecutive 4096-byte sectors steps by 8, as LUKS2 wants; with it, by 1.
//!
//! # Concurrency
//! [`Xts`] is `Sync`, and threads that share one do not wait for each other.

mod aws;
#[cfg(target_arch = "x86_64")]
mod fused;
#[cfg(not(target_arch = "x86_64"))]
#[path = "xts/portable.rs"]
mod fused;
mod old;
mod soft;

use crate::cipher::{Chain, CipherSpec, IvMode, essiv_hash};
use crate::error::{Error, Result};
use crate::key::Key;
use aws::AwsLc;
use fused::{Fused, Isa};
use old::{Block, Old};
use soft::Soft;

/// Which code computes AES.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Engine {
    /// The fastest that can do the key.
    #[default]
    Auto,
    /// Our own, on VAES and AVX-512.
    Vaes512,
    /// Our own, on VAES and AVX2.
    Vaes256,
    /// Our own, on AES-NI.
    AesNi,
    /// AWS-LC: AES-256 with unequal halves.
    AwsLc,
    /// RustCrypto.
    Soft,
}

impl Engine {
    /// Every engine that this processor runs, from the fastest to the slowest.
    pub fn available() -> Vec<Engine> {
        let own = Isa::ALL.into_iter().filter(|isa| isa.is_here()).map(Engine::own);
        own.chain([Engine::AwsLc, Engine::Soft]).collect()
    }

    /// The name on command lines and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Auto => "auto",
            Engine::Vaes512 => "vaes512",
            Engine::Vaes256 => "vaes256",
            Engine::AesNi => "aesni",
            Engine::AwsLc => "aws-lc",
            Engine::Soft => "soft",
        }
    }

    fn own(isa: Isa) -> Engine {
        match isa {
            Isa::Vaes512 => Engine::Vaes512,
            Isa::Vaes256 => Engine::Vaes256,
            Isa::AesNi => Engine::AesNi,
        }
    }

    fn isa(self) -> Option<Isa> {
        Isa::ALL.into_iter().find(|&isa| Engine::own(isa) == self)
    }
}

/// Size of an encryption sector in bytes: 512, 1024, 2048 or 4096.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SectorSize(u32);

impl SectorSize {
    /// The size of a block-layer sector, and of every keyslot area's sectors.
    pub const S512: SectorSize = SectorSize(512);
    /// The size a new volume has where nothing speaks against it.
    pub const S4096: SectorSize = SectorSize(4096);

    /// One of the four legal sizes (check 35).
    pub fn new(bytes: u64) -> Option<SectorSize> {
        matches!(bytes, 512 | 1024 | 2048 | 4096)
            .then(|| SectorSize(u32::try_from(bytes).expect("at most 4096")))
    }

    /// In bytes.
    pub fn bytes(self) -> usize {
        self.0 as usize
    }

    /// In 512-byte sectors: 1, 2, 4 or 8.
    pub fn sectors(self) -> u64 {
        u64::from(self.0 / 512)
    }
}

/// What a cipher needs to know besides its key.
#[derive(Clone, Debug)]
pub struct XtsParams {
    /// The parsed cipher text.
    pub spec: CipherSpec,
    /// Size of a data unit.
    pub sector_size: SectorSize,
    /// `iv_large_sectors`: the IV counts encryption sectors instead of 512-byte sectors.
    pub iv_large_sectors: bool,
    /// Which code to use.
    pub engine: Engine,
    /// Accept equal key halves and an all-zero key, to rescue what somebody made with one (check 22).
    pub allow_weak_key: bool,
}

impl XtsParams {
    /// The usual parameters around a cipher text.
    pub fn new(spec: CipherSpec, sector_size: SectorSize) -> XtsParams {
        XtsParams {
            spec,
            sector_size,
            iv_large_sectors: false,
            engine: Engine::Auto,
            allow_weak_key: false,
        }
    }
}

/// An expanded volume key: encrypts and decrypts whole encryption sectors. Named after what nearly every
/// volume has; the modes and ciphers of old ones ([`old`]) stand behind the same methods.
pub struct Xts {
    engine: Expanded,
    iv: IvSource,
    sector_size: SectorSize,
    large: bool,
    /// The keys behind the first, where a sector's number chooses its key.
    others: Vec<Xts>,
}

enum Expanded {
    Fused(Fused),
    AwsLc(AwsLc),
    Soft(Soft),
    Old(Old),
    /// Bytes stay as they are.
    Clear,
}

impl std::fmt::Debug for Xts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Xts({:?}, {} bytes, {:?})", self.engine(), self.sector_size.0, self.iv.mode)
    }
}

impl Xts {
    /// Expands a key. A wrong length, a weak key and a cipher that is not implemented are errors.
    pub fn new(params: &XtsParams, key: &Key) -> Result<Xts> {
        params.spec.check_supported()?;
        let count = params.spec.key_count as usize;
        if !params.spec.takes_key(key.len()) {
            let lengths =
                if params.spec.chain == Chain::Xts { "256 or 512" } else { "128, 192 or 256" };
            let times = if count > 1 { format!(", {count} times") } else { String::new() };
            return Err(Error::unsupported(format!(
                "a key of {} bits for {}: it takes {lengths}{times}",
                key.len() * 8,
                params.spec
            )));
        }
        let one = XtsParams { spec: params.spec.of_one_key(), ..params.clone() };
        let mut keys = key.bytes().chunks(key.len() / count).map(Key::copy_from);
        let mut first = Xts::of_one(&one, &keys.next().expect("at least one"))?;
        first.others = keys.map(|key| Xts::of_one(&one, &key)).collect::<Result<_>>()?;
        Ok(first)
    }

    fn of_one(params: &XtsParams, key: &Key) -> Result<Xts> {
        let weak = (params.spec.chain == Chain::Xts && key.halves_equal()) || key.is_zero();
        if weak && !params.allow_weak_key {
            return Err(Error::refused(
                22,
                "the key is zero, or the two halves of the XTS key are equal; allow a weak key to rescue the data",
            ));
        }
        let engine = Expanded::new(params, key, weak)?;
        Ok(Xts {
            engine,
            iv: IvSource::new(&params.spec, key)?,
            sector_size: params.sector_size,
            large: params.iv_large_sectors,
            others: Vec::new(),
        })
    }

    /// The key of a data unit: by the number of its first 512-byte sector, also where the IV counts larger ones.
    fn of(&self, n: u64) -> &Xts {
        let index = n & self.others.len() as u64;
        match usize::try_from(index).expect("fewer than 64") {
            0 => self,
            index => &self.others[index - 1],
        }
    }

    /// What leaves bytes as they are: for a part of a volume that is not encrypted yet, or not any more. No
    /// header and no option leads here but a re-encryption whose digest was proven.
    pub(crate) fn clear(sector_size: SectorSize) -> Xts {
        let iv = IvSource { mode: IvMode::None, cipher: None };
        Xts { engine: Expanded::Clear, iv, sector_size, large: false, others: Vec::new() }
    }

    /// The engine that computes.
    pub fn engine(&self) -> Engine {
        match self.engine {
            Expanded::Fused(ref fused) => Engine::own(fused.isa()),
            Expanded::AwsLc(_) => Engine::AwsLc,
            Expanded::Soft(_) | Expanded::Old(_) | Expanded::Clear => Engine::Soft,
        }
    }

    /// Size of a data unit.
    pub fn sector_size(&self) -> SectorSize {
        self.sector_size
    }

    /// Encrypts in place.
    ///
    /// # Panics
    /// When `data` is not whole encryption sectors: alignment is checked at the device's door.
    pub fn encrypt(&self, n: u64, data: &mut [u8]) {
        self.in_place(Direction::Encrypt, n, data);
    }

    /// Decrypts in place.
    ///
    /// # Panics
    /// As [`Xts::encrypt`].
    pub fn decrypt(&self, n: u64, data: &mut [u8]) {
        self.in_place(Direction::Decrypt, n, data);
    }

    /// Encrypts one buffer into another of the same length, which spares the copy where the source
    /// is shared and must not change.
    ///
    /// # Panics
    /// As [`Xts::encrypt`], and when the lengths differ.
    pub fn encrypt_into(&self, n: u64, from: &[u8], to: &mut [u8]) {
        assert_eq!(from.len(), to.len(), "source and target have one length");
        if !self.others.is_empty() {
            to.copy_from_slice(from);
            return self.encrypt(n, to);
        }
        let (ivs, size) = (self.units(n, from.len()), self.sector_size.bytes());
        match &self.engine {
            Expanded::Fused(fused) => fused.encrypt_into(ivs, size, from, to),
            Expanded::AwsLc(aws) => aws.encrypt_into(ivs.map(u128::to_le_bytes), size, from, to),
            Expanded::Soft(_) | Expanded::Old(_) | Expanded::Clear => {
                to.copy_from_slice(from);
                self.encrypt(n, to);
            }
        }
    }

    fn in_place(&self, direction: Direction, n: u64, data: &mut [u8]) {
        let ivs = self.units(n, data.len());
        if self.others.is_empty() {
            return self.run(direction, ivs, data);
        }
        let mut n = n;
        for unit in data.chunks_exact_mut(self.sector_size.bytes()) {
            let xts = self.of(n);
            xts.run(direction, xts.units(n, unit.len()), unit);
            n = n.wrapping_add(self.sector_size.sectors());
        }
    }

    /// Whole data units, the next of `ivs` for each.
    fn run(&self, direction: Direction, ivs: impl Iterator<Item = u128>, data: &mut [u8]) {
        let size = self.sector_size.bytes();
        if let Expanded::Fused(fused) = &self.engine {
            return fused.in_place(direction, ivs, size, data);
        }
        let ivs = ivs.map(u128::to_le_bytes);
        match &self.engine {
            Expanded::AwsLc(aws) => aws.in_place(direction, ivs, size, data),
            Expanded::Soft(soft) => {
                let encrypt = matches!(direction, Direction::Encrypt);
                for (iv, unit) in ivs.zip(data.chunks_exact_mut(size)) {
                    soft.sector(encrypt, iv, unit);
                }
            }
            Expanded::Old(old) => {
                for (iv, unit) in ivs.zip(data.chunks_exact_mut(size)) {
                    old.sector(direction, iv, unit);
                }
            }
            Expanded::Fused(_) | Expanded::Clear => {}
        }
    }

    /// The IVs of a run of encryption sectors.
    fn units(&self, n: u64, len: usize) -> Units<'_> {
        let size = self.sector_size.bytes();
        assert!(len.is_multiple_of(size), "{len} bytes are not whole {size}-byte sectors");
        let per_unit = self.sector_size.sectors();
        let (next, step) = if self.large { (n / per_unit, 1) } else { (n, per_unit) };
        Units { iv: &self.iv, next, step, size }
    }
}

/// AES-XTS under IVs that the caller keeps, one data unit at a time.
pub(crate) struct LooseXts(Soft);

impl LooseXts {
    /// `None` when the key is not two halves of 16 or 32 bytes.
    pub(crate) fn new(key: &Key) -> Option<LooseXts> {
        Soft::new(key).map(LooseXts)
    }

    pub(crate) fn encrypt(&self, iv: [u8; 16], unit: &mut [u8]) {
        self.0.sector(true, iv, unit);
    }

    pub(crate) fn decrypt(&self, iv: [u8; 16], unit: &mut [u8]) {
        self.0.sector(false, iv, unit);
    }
}

impl Expanded {
    /// Expands a key of a right length for the engine that was asked for.
    fn new(params: &XtsParams, key: &Key, weak: bool) -> Result<Expanded> {
        let engine = params.engine;
        let no = |why: &str| Err(Error::unsupported(format!("engine {}: {why}", engine.name())));
        if params.spec.chain != Chain::Xts || params.spec.cipher != "aes" {
            return match engine {
                Engine::Auto | Engine::Soft => Ok(Expanded::Old(Old::new(&params.spec, key)?)),
                _ => no("it does AES-XTS only"),
            };
        }
        let soft = || Expanded::Soft(Soft::new(key).expect("the length was checked"));
        let fast = key.len() == 64 && !weak;
        match engine {
            Engine::Auto => match Isa::best().and_then(|isa| Fused::new(key, isa)) {
                Some(fused) => Ok(Expanded::Fused(fused)),
                None if fast => Ok(Expanded::AwsLc(AwsLc::new(key)?)),
                None => Ok(soft()),
            },
            Engine::Vaes512 | Engine::Vaes256 | Engine::AesNi => {
                match engine.isa().and_then(|isa| Fused::new(key, isa)) {
                    Some(fused) => Ok(Expanded::Fused(fused)),
                    None => no("this processor lacks its instructions"),
                }
            }
            Engine::AwsLc if fast => Ok(Expanded::AwsLc(AwsLc::new(key)?)),
            Engine::AwsLc => no("it takes AES-256-XTS keys with unequal halves only"),
            Engine::Soft => Ok(soft()),
        }
    }
}

/// Endless run of IVs, one per data unit, as numbers whose low byte comes first. Sector numbers wrap, as the
/// kernel's do.
struct Units<'a> {
    iv: &'a IvSource,
    next: u64,
    step: u64,
    size: usize,
}

impl Iterator for Units<'_> {
    type Item = u128;

    #[inline]
    fn next(&mut self) -> Option<u128> {
        let iv = self.iv.get(self.next, self.size);
        self.next = self.next.wrapping_add(self.step);
        Some(iv)
    }
}

/// What makes an IV from a sector's number.
struct IvSource {
    mode: IvMode,
    /// Encrypts the number, in the modes that do that.
    cipher: Option<Box<dyn Block>>,
}

impl IvSource {
    fn new(spec: &CipherSpec, key: &Key) -> Result<IvSource> {
        let cipher = match &spec.iv {
            IvMode::Essiv(name) => {
                let (hash, len) = essiv_hash(name).expect("looked at by `check_supported`");
                let mut digest = hash.digest(&[key.bytes()]);
                let salt = Key::copy_from(&digest[..len]);
                zeroize::Zeroize::zeroize(&mut digest[..]);
                Some(old::block(&spec.cipher, salt.bytes())?)
            }
            IvMode::Eboiv => Some(old::block(&spec.cipher, key.bytes())?),
            _ => None,
        };
        Ok(IvSource { mode: spec.iv.clone(), cipher })
    }

    #[inline]
    fn get(&self, n: u64, sector_size: usize) -> u128 {
        let iv = self.mode.number(n, sector_size);
        let Some(cipher) = &self.cipher else { return iv };
        let mut iv = iv.to_le_bytes();
        cipher.encrypt(&mut iv);
        u128::from_le_bytes(iv)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Encrypt,
    Decrypt,
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;
