//! The LUKS1 header on a device, changed in place.
//!
//! There is one copy, and it spans two sectors: slot 6 lies across their boundary. So every change is made
//! of writes to single sectors, in an order in which each prefix is a valid header: a slot gets its salt
//! and cost while it is free, durably, and then its *one* word that says "in use"; it loses them in
//! reverse.

use varve_block::BlockDevice;
use zerocopy::IntoBytes;

use crate::error::{Error, Result};
use crate::format::luks1::{HEADER_LEN, Luks1, Luks1Slot, UUID_AT, slot_at};
use crate::header::Header;

const SECTOR: usize = 512;

pub(super) struct Luks1Editor<D> {
    pub(super) device: D,
    pub(super) header: Luks1,
    /// Both sectors as stored, with what the format does not use.
    bytes: Vec<u8>,
}

impl<D: BlockDevice> Luks1Editor<D> {
    pub(super) async fn open(device: D) -> Result<Luks1Editor<D>> {
        let Header::Luks1(header) = Header::read(&device, None).await? else {
            return Err(Error::unsupported("not a LUKS1 header"));
        };
        let bytes = crate::io::read_bytes(&device, 0, HEADER_LEN as u64).await?.to_vec();
        Ok(Luks1Editor { device, header: *header, bytes })
    }

    /// Fills a free slot and then marks it in use.
    pub(super) async fn activate(&mut self, slot: usize, with: Luks1Slot) -> Result<()> {
        assert!(!self.header.slots[slot].active, "a slot in use is not overwritten");
        self.put(slot, Luks1Slot { active: false, ..with.clone() }).await?;
        self.put(slot, Luks1Slot { active: true, ..with }).await
    }

    /// Marks a slot free and then forgets its salt and cost. Its area is gone before this is called.
    pub(super) async fn free(&mut self, slot: usize) -> Result<()> {
        let now = self.header.slots[slot].clone();
        self.put(slot, Luks1Slot { active: false, ..now.clone() }).await?;
        let empty = Luks1Slot { active: false, iterations: 0, salt: [0; 32], ..now };
        self.put(slot, empty).await
    }

    /// Lets two slots exchange their areas, in the one write of the sector that both lie in.
    pub(super) async fn swap_areas(&mut self, one: usize, two: usize) -> Result<()> {
        let in_first = |slot: usize| slot_at(slot + 1) <= SECTOR;
        assert!(in_first(one), "slots that cross into the second sector are not swapped");
        assert!(in_first(two), "slots that cross into the second sector are not swapped");
        let slots = &self.header.slots;
        let mut bytes = self.bytes.clone();
        for (slot, area) in [(one, two), (two, one)] {
            let material_offset = slots[area].material_offset;
            let raw = Luks1Slot { material_offset, ..slots[slot].clone() }.encode();
            bytes[slot_at(slot)..slot_at(slot + 1)].copy_from_slice(raw.as_bytes());
        }
        self.store(bytes).await
    }

    pub(super) async fn set_uuid(&mut self, uuid: uuid::Uuid) -> Result<()> {
        let (at, room) = UUID_AT;
        let text = uuid.to_string();
        let mut bytes = self.bytes.clone();
        bytes[at..at + room].fill(0);
        bytes[at..at + text.len()].copy_from_slice(text.as_bytes());
        self.store(bytes).await
    }

    async fn put(&mut self, slot: usize, with: Luks1Slot) -> Result<()> {
        let at = slot_at(slot);
        let raw = with.encode();
        let mut bytes = self.bytes.clone();
        bytes[at..at + raw.as_bytes().len()].copy_from_slice(raw.as_bytes());
        self.store(bytes).await
    }

    /// Writes the sectors that change, makes them durable, and reads them back.
    async fn store(&mut self, bytes: Vec<u8>) -> Result<()> {
        let dev = || self.device.geometry().dev;
        let header = Luks1::parse(&bytes, self.device.geometry().len.bytes())?;
        let stored = crate::io::read_bytes(&self.device, 0, HEADER_LEN as u64).await?;
        if *stored != self.bytes {
            return Err(Error::Options(format!(
                "{}: somebody else changed the header; nothing was written",
                dev()
            )));
        }
        for (i, (new, old)) in bytes.chunks(SECTOR).zip(self.bytes.chunks(SECTOR)).enumerate() {
            if new != old {
                crate::io::write_bytes(&self.device, (i * SECTOR) as u64, new).await?;
            }
        }
        self.device.flush().await?;
        if *crate::io::read_bytes(&self.device, 0, HEADER_LEN as u64).await? != bytes {
            return Err(Error::NotStored { dev: dev(), what: "LUKS1 header" });
        }
        (self.bytes, self.header) = (bytes, header);
        Ok(())
    }
}
