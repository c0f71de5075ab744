//! What the connections of one lane share: exports, memory, counters, and the word to stop.

use crate::admit::InFlight;
use crate::nbd::facts::{Catalog, Facts};
use crate::nbd::wire::{STRING_MAX, TransmissionFlags};
use crate::stats::Stats;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use varve_block::sync::{Either, LocalSemaphore, Notify, select};
use varve_block::{BlockDevice, BufPool, Dyn, Export, Geometry, Rt, chain};

/// Longest payload that is told to clients, in bytes. The reference integrity test moves single
/// requests of 49 865 728 bytes, so the usual 32 MiB would fail it.
pub(crate) const PAYLOAD_MAX: u32 = 64 << 20;

/// How one export looks to clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// At most 4096 bytes, without NUL. The empty name is a name like any other.
    pub name: String,
    /// Further names that lead here; they are not listed.
    pub aliases: Vec<String>,
    /// One line for people.
    pub description: Option<String>,
    /// No client may change anything, whatever the device would allow.
    pub read_only: bool,
    /// Clients that asked for the block sizes are held to them.
    pub strict_block_size: bool,
}

impl Look {
    /// A writable export that accepts requests of any alignment.
    pub fn new(name: impl Into<String>) -> Look {
        Look {
            name: name.into(),
            aliases: Vec::new(),
            description: None,
            read_only: false,
            strict_block_size: false,
        }
    }

    pub(crate) fn check(&self) -> Result<(), &'static str> {
        for text in self.aliases.iter().chain(&self.description).chain([&self.name]) {
            if text.len() > STRING_MAX {
                return Err("a name or description is longer than 4096 bytes");
            }
            if text.contains('\0') {
                return Err("a name or description contains a NUL byte");
            }
        }
        Ok(())
    }

    fn facts(&self, geometry: &Geometry) -> Facts {
        let block = geometry.block.byte_len();
        // Smaller requests than the device's blocks are read, modified and written back here, so 512 is
        // the truth for everybody who is not held to the blocks. Clients that refuse what the server
        // did not promise (nbdfuse under a loop device, whose direct I/O is in units of 512) need it.
        let minimum = match self.strict_block_size {
            true => block.next_power_of_two(),
            false => block.next_power_of_two().min(512),
        };
        let small = |n: usize| u32::try_from(n.min(64 << 10)).expect("at most 64 KiB");
        let preferred = geometry.preferred.byte_len().next_power_of_two().max(4096);
        let preferred = u32::try_from(preferred).unwrap_or(PAYLOAD_MAX).min(PAYLOAD_MAX);
        Facts {
            name: self.name.clone(),
            description: self.description.clone(),
            size: geometry.len.bytes(),
            flags: self.flags(geometry),
            block_minimum: small(minimum),
            block_preferred: preferred,
            payload_max: PAYLOAD_MAX,
            strict_block_size: self.strict_block_size,
        }
    }

    fn flags(&self, geometry: &Geometry) -> TransmissionFlags {
        use TransmissionFlags as F;
        // FLUSH also on read-only exports: harmless. A client that was not told of it would never
        // send one, and would lose durability without a word.
        let mut flags = F::HAS_FLAGS | F::SEND_FLUSH | F::CAN_MULTI_CONN | F::SEND_CACHE;
        flags.set(F::ROTATIONAL, geometry.rotational);
        if self.read_only || geometry.read_only {
            return flags | F::READ_ONLY;
        }
        flags.set(F::SEND_TRIM, geometry.can_discard);
        flags | F::SEND_FUA | F::SEND_WRITE_ZEROES | F::SEND_FAST_ZERO
    }
}

/// The exports of a server, as one lane holds them.
pub(crate) struct Exports {
    by_name: BTreeMap<String, (Look, Export<Dyn>)>,
    /// Names and aliases to canonical names.
    names: BTreeMap<String, String>,
    stopping: Rc<Cell<bool>>,
}

impl Exports {
    /// The first export is the default one.
    pub(crate) fn new(exports: Vec<(Look, Export<Dyn>)>, stopping: Rc<Cell<bool>>) -> Exports {
        let mut names = BTreeMap::new();
        for (n, (look, _)) in exports.iter().enumerate() {
            names.insert(look.name.clone(), look.name.clone());
            for alias in &look.aliases {
                names.entry(alias.clone()).or_insert_with(|| look.name.clone());
            }
            if n == 0 {
                names.entry(String::new()).or_insert_with(|| look.name.clone());
            }
        }
        let by_name = exports.into_iter().map(|e| (e.0.name.clone(), e)).collect();
        Exports { by_name, names, stopping }
    }

    /// The export behind a canonical name.
    pub(crate) fn open(&self, name: &str) -> Option<Export<Dyn>> {
        self.by_name.get(name).map(|(_, export)| export.clone())
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Export<Dyn>> {
        self.by_name.values().map(|(_, export)| export)
    }
}

impl Catalog for Exports {
    fn find(&self, name: &str) -> Option<Facts> {
        let (look, export) = self.by_name.get(self.names.get(name)?)?;
        Some(look.facts(&export.geometry()))
    }

    fn list(&self) -> Option<Vec<(String, Option<String>)>> {
        let looks = self.by_name.values();
        Some(looks.map(|(look, _)| (look.name.clone(), look.description.clone())).collect())
    }

    fn stopping(&self) -> bool {
        self.stopping.get()
    }
}

/// One lane's share of a server.
pub(crate) struct Hall {
    pub(crate) rt: Rt,
    pub(crate) exports: Exports,
    /// Data on its way in and out.
    pub(crate) pool: BufPool,
    /// Bytes that all requests on this lane may hold.
    pub(crate) budget: LocalSemaphore,
    pub(crate) stats: Arc<Stats>,
    stopping: Rc<Cell<bool>>,
    /// The connections, by the order of their coming.
    guests: RefCell<BTreeMap<u64, Guest>>,
    next_guest: Cell<u64>,
    changed: Notify,
}

/// What a stop needs of a connection.
pub(crate) struct Guest {
    pub(crate) in_flight: Rc<InFlight>,
    pub(crate) shutdown: Box<dyn Fn()>,
}

/// A connection's entry in the hall, until it is dropped.
pub(crate) struct Entry {
    hall: Rc<Hall>,
    key: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let guest = self.hall.guests.borrow_mut().remove(&self.key);
        drop(guest); // outside the borrow: it holds the connection
        self.hall.stats.connections_open.sub(1);
        self.hall.changed.notify_all();
    }
}

impl Hall {
    pub(crate) fn new(
        rt: Rt,
        exports: Exports,
        pool: BufPool,
        budget: LocalSemaphore,
        stats: Arc<Stats>,
        stopping: Rc<Cell<bool>>,
    ) -> Hall {
        Hall {
            rt,
            exports,
            pool,
            budget,
            stats,
            stopping,
            guests: RefCell::default(),
            next_guest: Cell::new(0),
            changed: Notify::new(),
        }
    }

    /// New requests are refused from now on.
    pub(crate) fn stopping(&self) -> bool {
        self.stopping.get()
    }

    pub(crate) fn enter(self: &Rc<Hall>, guest: Guest) -> Entry {
        let key = self.next_guest.get();
        self.next_guest.set(key + 1);
        self.guests.borrow_mut().insert(key, guest);
        self.stats.connections_open.add(1);
        Entry { hall: Rc::clone(self), key }
    }

    /// Finishes what was begun, flushes, closes. What still hangs after `drain` is left behind.
    pub(crate) async fn stop(&self, drain: Duration) {
        self.stopping.set(true);
        let all: Vec<_> =
            self.guests.borrow().values().map(|guest| Rc::clone(&guest.in_flight)).collect();
        let begun = async {
            for in_flight in all {
                in_flight.answered().await;
            }
        };
        if let Either::Right(()) = select(begun, self.rt.sleep(drain)).await {
            tracing::warn!(?drain, "requests are still in flight; closing their connections");
        }
        for export in self.exports.all().filter(|export| !export.is_read_only()) {
            if let Err(error) = export.flush().await {
                tracing::error!(error = %chain(&error), "flush at the end failed");
            }
        }
        // The entries stay: a connection leaves by itself, when its last request has ended.
        for guest in self.guests.borrow().values() {
            (guest.shutdown)();
        }
        let gone = async {
            while !self.guests.borrow().is_empty() {
                self.changed.notified().await;
            }
        };
        if let Either::Right(()) = select(gone, self.rt.sleep(drain)).await {
            tracing::warn!("a request does not end; leaving it behind");
        }
    }
}
