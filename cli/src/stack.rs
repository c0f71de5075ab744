//! The only file that knows all layers: from a [`StackConfig`] to an open device.
//!
//! Layers are generic; each of the few concrete stacks is erased once, here, into a [`Dyn`]. A
//! [`Probe`] stands above every layer, so that the live line and `--json` can say where time goes.

mod bottom;
mod gone;
mod integrity;

pub(crate) use bottom::Bottom;
pub(crate) use gone::while_there;

use crate::args::CacheModeArg;
use crate::config::{CryptConfig, SecretSource, StackConfig};
use crate::failure::usage;
use crate::place::Place;
use crate::{secret, signature};
use anyhow::{Context, bail};
use std::rc::Rc;
use std::sync::Arc;
use varve_block::dev::{Overlay, Window};
use varve_block::sync::RangeLock;
use varve_block::{BlockDevice, BufPool, Dyn, Extent, Rt, Sector, Sectors};
use varve_cache::format::{BackingState, BackingSuper, CacheMode, DeviceFacts, Superblock};
use varve_cache::{Cache, CacheView, OpenOptions};
use varve_crypt::reencrypt::{Devices, Reencryption};
use varve_crypt::{
    Crypt, CryptOptions, Hashed, Key, MapOptions, PlainSpec, Replayed, Sealed, UnlockOptions,
    Volume, VolumeHandle, VolumeKind,
};

/// Memory of the encryption layer: what requests whose buffers are shared are encrypted into.
const CRYPT_POOL: usize = 64 << 20;

/// Most bytes that a recovery in memory may keep. The longest zone that other programs make has 1 GiB; theirs
/// and ours have 64 MiB, unless somebody asks for more.
const RECOVERED_MAX: u64 = 256 << 20;

/// The cache layer of a served stack.
pub(crate) type LiveCache = Rc<Cache<Bottom, Bottom>>;

/// The encryption layer of a served stack whose sectors are authenticated.
pub(crate) type LiveSealed = Rc<Sealed<Dyn>>;

/// The dm-integrity layer of a stack.
pub(crate) type LiveHashed = Rc<Hashed<Dyn>>;

/// The encryption layer of a served stack, and what unlocking it again takes. No secret is in it.
#[derive(Clone)]
pub(crate) struct LiveCrypt {
    pub(crate) handle: VolumeHandle,
    /// What requests take for reading, where the key may change under them.
    pub(crate) ranges: Option<RangeLock>,
    below: Dyn,
    config: StackConfig,
}

impl LiveCrypt {
    /// Header and data, to be changed.
    pub(crate) async fn devices(&self, rt: &Rt) -> anyhow::Result<Devices<Dyn>> {
        devices(rt, &self.config, &self.below, false).await
    }

    /// What opening any of its keyslots may cost: what the server was started with.
    pub(crate) fn unlock_options(&self) -> UnlockOptions {
        self.config.allowed.options(None)
    }
}

/// An open stack.
pub(crate) struct Stack {
    pub(crate) top: Dyn,
    pub(crate) cache: Option<LiveCache>,
    pub(crate) crypt: Option<LiveCrypt>,
    /// The encryption layer, where it keeps a journal of its own.
    pub(crate) sealed: Option<LiveSealed>,
    pub(crate) hashed: Option<LiveHashed>,
    /// What stands on what, bottom first, for people.
    pub(crate) layers: Vec<String>,
}

impl Stack {
    /// A device, and nothing over it that has to be stopped.
    fn of(top: Dyn, layers: Vec<String>) -> Stack {
        Stack { top, cache: None, crypt: None, sealed: None, hashed: None, layers }
    }

    /// Ends background work and leaves everything durable. Every stack that was opened for writing
    /// must end here; one that does not is a crash, which the formats survive.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        if let Some(sealed) = &self.sealed {
            sealed.close().await.context("the integrity journal could not be emptied")?;
        }
        if let Some(hashed) = &self.hashed {
            hashed.close().await.context("the integrity volume could not be closed")?;
        }
        if let Some(cache) = &self.cache {
            cache.stop().await.context("the cache could not be stopped cleanly")?;
            return Ok(());
        }
        if !self.top.geometry().read_only {
            self.top.flush().await?;
        }
        Ok(())
    }
}

/// Opens a file, a device or an export at the bottom of a stack.
pub(crate) async fn open_device(rt: &Rt, place: &Place, read_only: bool) -> anyhow::Result<Bottom> {
    Ok(Bottom::open(rt, place, read_only).await?)
}

/// Opens everything `config` names, bottom up.
///
/// # Errors
/// With one line that says which device, and what is wrong with it. Nothing was written then, but
/// what recovery of a dirty cache set itself writes.
pub(crate) async fn open(rt: &Rt, config: &StackConfig) -> anyhow::Result<Stack> {
    let Some(source) = secret_source(&config.crypt) else {
        return open_below_crypt(rt, config).await;
    };
    // The key first: a wrong file name must not cost a journal replay.
    let secret = read_key(source)?;
    // A wrong key writes nothing, not even what a recovery would: with a cache or a dm-integrity volume
    // that is going to be written, the volume is unlocked through a view of them that only reads.
    let recovers = config.cache.is_some() || config.integrity.is_some();
    let volume = match recovers && !config.read_only {
        true => {
            let view = open_below_crypt(rt, &config.clone().reading()).await?;
            match unlock(rt, config, &secret, &view.top).await {
                // The key is the right one; what it opens is known once the zone is settled.
                Err(error) if is_hot_zone(&error) => None,
                volume => Some(volume?),
            }
        }
        false => None,
    };
    let mut stack = open_below_crypt(rt, config).await?;
    match add_crypt(rt, config, &secret, volume, &stack).await {
        Ok(added) => {
            stack.top = added.top;
            stack.crypt = Some(added.live);
            stack.sealed = added.sealed;
            stack.layers.push(added.what);
            Ok(stack)
        }
        Err(error) => {
            stack.stop().await?;
            Err(error)
        }
    }
}

/// Opens a stack whose top is going to be formatted. Without `force`, one that holds something known
/// is refused; with it, a disk that was a bcache backing device stops being one.
pub(crate) async fn open_to_format(
    rt: &Rt,
    config: &StackConfig,
    force: bool,
) -> anyhow::Result<Stack> {
    let bare = config.cache.is_none() && config.integrity.is_none();
    if !bare || config.crypt != CryptConfig::None {
        let stack = open(rt, config).await?;
        let free = signature::refuse_known(&stack.top, force).await;
        if free.is_err() {
            stack.stop().await?;
            free?;
            unreachable!("just seen to be an error");
        }
        return Ok(stack);
    }
    let device = open_device(rt, &config.backing, false).await?;
    signature::refuse_known(&device, force).await?;
    signature::wipe_bcache(&device).await?;
    let layers = vec![format!("disk {}", config.backing)];
    Ok(Stack::of(Dyn::new(device), layers))
}

fn secret_source(crypt: &CryptConfig) -> Option<&SecretSource> {
    match crypt {
        CryptConfig::None => None,
        CryptConfig::Luks { secret, .. } | CryptConfig::Plain { secret, .. } => Some(secret),
    }
}

/// The secret in the crypt layer's locked memory.
pub(crate) fn read_key(source: &SecretSource) -> anyhow::Result<Arc<Key>> {
    Ok(Arc::new(secret::read(source)?))
}

async fn open_below_crypt(rt: &Rt, config: &StackConfig) -> anyhow::Result<Stack> {
    let stack = open_below_integrity(rt, config).await?;
    match &config.integrity {
        None => Ok(stack),
        Some(wanted) => integrity::add(rt, wanted, stack).await,
    }
}

async fn open_below_integrity(rt: &Rt, config: &StackConfig) -> anyhow::Result<Stack> {
    let hdd = open_device(rt, &config.backing, config.read_only).await?;
    let Some(ssd_place) = &config.cache else {
        return uncached(config, hdd).await;
    };
    let ssd = open_device(rt, ssd_place, config.read_only).await?;
    let mut layers = vec![format!("disk {}", config.backing), format!("cache {}", ssd_place)];
    if let Some(wanted) = config.volume {
        let found = backing_super(&hdd).await?;
        if found.as_ref().is_none_or(|sb| sb.uuid != wanted) {
            bail!("{} is not volume {wanted}", config.backing);
        }
    }
    if config.read_only {
        let view = CacheView::open(ssd, hdd).await?;
        layers.push("journal replayed in memory, read-only".to_owned());
        return Ok(Stack::of(Dyn::new(view), layers));
    }
    let options = OpenOptions { mode: config.cache_mode.map(mode), ..OpenOptions::default() };
    let cache = Rc::new(Cache::open(rt, ssd, hdd, options).await?);
    Ok(Stack { cache: Some(Rc::clone(&cache)), ..Stack::of(Dyn::new(cache), layers) })
}

/// A disk without its cache: what is on it decides whether that is safe.
async fn uncached(config: &StackConfig, hdd: Bottom) -> anyhow::Result<Stack> {
    let name = &config.backing;
    let mut layers = vec![format!("disk {name}")];
    if varve_fs::is_dump(&hdd).await? {
        return metadata_dump(config, hdd).await;
    }
    let Some(sb) = backing_super(&hdd).await? else {
        return Ok(Stack::of(Dyn::new(hdd), layers));
    };
    match sb.state() {
        BackingState::None => {}
        state if config.allow_stale => {
            tracing::warn!(dev = %name, ?state, "served without its cache: data may be old");
            layers.push("WITHOUT its cache: data may be old".to_owned());
        }
        BackingState::Dirty => bail!(
            "{name} has newer data in cache set {} that is not given: name it with --cache, or look \
             at the old data with --read-only --allow-stale",
            sb.set_uuid
        ),
        state => bail!(
            "{name} belongs to cache set {} ({state:?}): name the cache with --cache, or look at \
             the disk alone with --read-only --allow-stale",
            sb.set_uuid
        ),
    }
    let start = Sector(sb.data_offset);
    let end = Sector(hdd.geometry().len.0);
    let window = Window::new(hdd, Extent::between(start, end))?;
    Ok(Stack::of(Dyn::new(window), layers))
}

/// A dump of a file system's metadata, seen as the device that it was made of.
async fn metadata_dump(config: &StackConfig, file: Bottom) -> anyhow::Result<Stack> {
    let name = &config.backing;
    if !config.read_only {
        bail!("{name} is a metadata dump: it can be read (--read-only), not written");
    }
    let layers = vec![format!("metadata dump {name}")];
    let device = varve_fs::DumpDevice::open(file).await?;
    Ok(Stack::of(Dyn::new(device), layers))
}

/// The bcache superblock of a disk, if it has one.
pub(crate) async fn backing_super(hdd: &Bottom) -> anyhow::Result<Option<BackingSuper>> {
    let geometry = hdd.geometry();
    if geometry.len < Sectors(24) {
        return Ok(None);
    }
    let page = hdd.read(Sector(8), BufPool::new(0).take(Sectors(8)).await).await?;
    if !Superblock::looks_like_one(&page) {
        return Ok(None);
    }
    let facts = DeviceFacts {
        sectors: geometry.len.0,
        logical_block: u32::try_from(geometry.block.bytes())?,
    };
    match Superblock::parse(&page, facts) {
        Ok(Superblock::Backing(sb)) => Ok(Some(sb)),
        Ok(Superblock::Cache(_)) => {
            bail!("{} is a cache device, not a disk: name it with --cache", geometry.dev)
        }
        Err(why) => Err(why).context(format!("{}: the bcache superblock is damaged", geometry.dev)),
    }
}

/// What the encryption layer adds to a stack.
struct Added {
    top: Dyn,
    live: LiveCrypt,
    sealed: Option<LiveSealed>,
    what: String,
}

async fn add_crypt(
    rt: &Rt,
    config: &StackConfig,
    secret: &Arc<Key>,
    volume: Option<Volume>,
    stack: &Stack,
) -> anyhow::Result<Added> {
    let below = stack.top.clone();
    let (below, volume) = match volume {
        Some(volume) => (below, volume),
        None => match unlock(rt, config, secret, &below).await {
            Err(error) if is_hot_zone(&error) => recover_zone(rt, config, secret, below).await?,
            volume => (below, volume?),
        },
    };
    let data = below.geometry();
    for note in volume.notes_over(&data) {
        tracing::warn!(dev = %data.dev, "{note}");
    }
    if config.persistent {
        keep_flags(rt, config, &below).await?;
    }
    let flags = config.activation.over(&volume.flags);
    let mut what = format!("crypt {} {}", volume.cipher.text(), volume.uuid);
    if !flags.names().is_empty() {
        what.push_str(&format!(" ({})", flags.names().join(", ")));
    }
    if volume.seal.is_some() {
        return add_sealed(rt, config, volume, below, what).await;
    }
    let mut options = CryptOptions::new(&flags, config.workers);
    if config.live && !config.read_only && volume.kind == VolumeKind::Luks2 {
        options.ranges = Some(RangeLock::new());
    }
    let ranges = options.ranges.clone();
    let crypt = crypt_over(rt, below.clone(), volume, &options)?;
    let handle = crypt.volume().clone();
    let live = LiveCrypt { handle, ranges, below, config: config.clone() };
    Ok(Added { top: Dyn::new(crypt), live, sealed: None, what })
}

/// The encryption layer of a volume with integrity.
async fn add_sealed(
    rt: &Rt,
    config: &StackConfig,
    volume: Volume,
    below: Dyn,
    mut what: String,
) -> anyhow::Result<Added> {
    let handle = VolumeHandle::new(volume);
    let pool = BufPool::new(CRYPT_POOL);
    let sealed = Rc::new(Sealed::open(rt, below.clone(), handle.clone(), pool).await?);
    what.push_str(", integrity");
    match sealed.replayed() {
        Replayed { blocks: 0, .. } => {}
        Replayed { sections, .. } => {
            what.push_str(&format!(", {sections} sections of its journal replayed"));
        }
    }
    let live = LiveCrypt { handle, ranges: None, below, config: config.clone() };
    Ok(Added { top: Dyn::new(Rc::clone(&sealed)), live, sealed: Some(sealed), what })
}

/// Header and data of a LUKS volume on `below`.
async fn devices(
    rt: &Rt,
    config: &StackConfig,
    below: &Dyn,
    read_only: bool,
) -> anyhow::Result<Devices<Dyn>> {
    let data = below.clone();
    match &config.crypt {
        CryptConfig::Luks { header: Some(place), .. } => {
            let header = Dyn::new(open_device(rt, place, read_only).await?);
            Ok(Devices { header, data, detached: true })
        }
        CryptConfig::Luks { header: None, .. } => {
            Ok(Devices { header: data.clone(), data, detached: false })
        }
        _ => bail!("a plain mapping has no header to keep the state in"),
    }
}

/// A volume that opens once a zone of its re-encryption was recovered.
fn is_hot_zone(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(varve_crypt::Error::HotZone))
}

/// Recovers the zone that a cut left with blocks of both keys: on the disk, or in memory where nothing may be
/// written. Gives the device that the volume lies on.
async fn recover_zone(
    rt: &Rt,
    config: &StackConfig,
    secret: &Arc<Key>,
    below: Dyn,
) -> anyhow::Result<(Dyn, Volume)> {
    let mut devices = devices(rt, config, &below, config.read_only).await?;
    let options = config.allowed.options(None);
    let secrets = [Arc::clone(secret)];
    let what = || format!("recovering the interrupted zone of {}", below.geometry().dev);
    if !config.read_only {
        tracing::warn!("{}", what());
        let mut work = Reencryption::resume(rt, &devices, &options, &secrets).await?;
        work.settle().await.with_context(what)?;
        return Ok((below.clone(), work.volume()?));
    }
    tracing::warn!("{} in memory", what());
    let overlay = Rc::new(Overlay::new(below.clone(), RECOVERED_MAX));
    devices.data = Dyn::new(Rc::clone(&overlay));
    let mut work = Reencryption::resume(rt, &devices, &options, &secrets).await?;
    work.settle_in_memory().await.with_context(what)?;
    overlay.seal();
    Ok((devices.data, work.volume()?))
}

/// Unlocks a suspended volume with any of its secrets. Reads only.
pub(crate) async fn unlock_again(
    rt: &Rt,
    live: &LiveCrypt,
    secret: &Arc<Key>,
) -> anyhow::Result<Volume> {
    let mut config = live.config.clone();
    if let CryptConfig::Luks { key_slot, .. } = &mut config.crypt {
        *key_slot = None;
    }
    match unlock(rt, &config, secret, &live.below).await {
        // What lies below has the zone recovered already, and finds that out.
        Err(error) if is_hot_zone(&error) && config.read_only => {
            Ok(recover_zone(rt, &config, secret, live.below.clone()).await?.1)
        }
        volume => volume,
    }
}

/// Writes what the operator said about the volume into its header.
async fn keep_flags(rt: &Rt, config: &StackConfig, below: &Dyn) -> anyhow::Result<()> {
    let header = match &config.crypt {
        CryptConfig::Luks { header: Some(place), .. } => {
            Dyn::new(open_device(rt, place, false).await?)
        }
        _ => below.clone(),
    };
    varve_crypt::persist(header, None, &config.activation).await?;
    Ok(())
}

/// The key and the mapping of what is encrypted on `below`. Reads only.
async fn unlock(
    rt: &Rt,
    config: &StackConfig,
    secret: &Arc<Key>,
    below: &Dyn,
) -> anyhow::Result<Volume> {
    match &config.crypt {
        CryptConfig::None => unreachable!("asked only with a secret"),
        CryptConfig::Plain { spec, secret: source } => {
            if !matches!(source, SecretSource::KeyFile { .. }) {
                return usage("--plain takes the volume key from --key-file");
            }
            plain(below, spec, secret, config.allowed.allow_weak_key)
        }
        CryptConfig::Luks { key_slot, .. } => {
            let options = UnlockOptions { under_way: true, ..config.allowed.options(*key_slot) };
            let Devices { header, data, detached } = devices(rt, config, below, true).await?;
            Ok(match detached {
                false => varve_crypt::unlock(rt, &data, &options, secret).await?,
                true => {
                    let len = data.geometry().len;
                    varve_crypt::unlock_detached(rt, &header, len, &options, secret).await?
                }
            })
        }
    }
}

/// The encryption layer, with memory of its own.
pub(crate) fn crypt_over<D: BlockDevice>(
    rt: &Rt,
    below: D,
    volume: Volume,
    options: &CryptOptions,
) -> anyhow::Result<Crypt<D>> {
    let pool = BufPool::new(CRYPT_POOL);
    Ok(Crypt::new(rt, below, VolumeHandle::new(volume), pool, options)?)
}

fn plain(below: &Dyn, spec: &str, key: &Key, allow_weak_key: bool) -> anyhow::Result<Volume> {
    let spec = PlainSpec::parse(spec)?;
    let options = MapOptions {
        data_len: below.geometry().len,
        detached: true,
        allow_weak_key,
        engine: varve_crypt::Engine::default(),
    };
    Ok(spec.open(key.duplicate(), &options)?)
}

pub(crate) fn mode(arg: CacheModeArg) -> CacheMode {
    match arg {
        CacheModeArg::Writethrough => CacheMode::Writethrough,
        CacheModeArg::Writeback => CacheMode::Writeback,
        CacheModeArg::Writearound => CacheMode::Writearound,
        CacheModeArg::None => CacheMode::None,
    }
}
