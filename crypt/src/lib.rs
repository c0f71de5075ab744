//! Disk encryption as Linux does it: dm-crypt mappings, LUKS1 and LUKS2, in user space.
//!
//! # What is on the disk
//!
//! A *plain* mapping is nothing but ciphertext; key, cipher and place are the user's to remember. LUKS
//! puts a header before it, which holds the random *volume key* several times, each time under another
//! passphrase:
//!
//! ```text
//! LUKS1   0        4096                                    2 MiB                              end
//!         | header | slot 0 | slot 1 | ... | slot 7 |      | payload                            |
//!
//! LUKS2   0         16 KiB      32 KiB                     16 MiB                             end
//!         | primary | secondary | keyslot areas, anywhere  | payload                            |
//!         | 4096 bytes + JSON, twice: one copy survives any crash while they are written
//! ```
//!
//! # From a passphrase to a sector
//!
//! ```text
//! passphrase --PBKDF2 or Argon2, with the slot's salt--> derived key
//! slot area  --AES-XTS with the derived key-----------> split key
//! split key  --anti-forensic merge, 4000 stripes------> volume key  --PBKDF2--> equals the digest?
//! sector n   --AES-XTS with the volume key, tweak n---> plaintext
//! ```
//!
//! Only the digest tells a right key from a wrong one, and only a full match gives a key that can be
//! used. The tweak counts 512-byte sectors from the start of the payload, also where encryption sectors
//! have 4096 bytes.
//!
//! XTS hides contents, and not that a block returned to an old value: whoever can write to the device
//! can put back an old sector, or damage 16 bytes of a known place. Nothing here detects that.
//!
//! # The life of a request
//!
//! [`Crypt`] stands on a block device that holds ciphertext. A write encrypts in the buffer that the
//! caller gave away, or from a shared one into a buffer of this layer's own pool; a read is decrypted
//! in its private buffer before anybody sees it. There is no queue, and a request whose parts are computed
//! on several threads is whole again before it goes on, so no flush and no later write overtakes anything:
//! `device.rs` and `device/spread.rs` have the details. Because a write takes its buffer,
//! a caller cannot send ciphertext down twice:
//!
//! ```compile_fail
//! use varve_block::{BlockDevice, Data, Durability, Sector};
//! async fn retry<D: BlockDevice>(device: &D, data: Data) {
//!     if device.write(Sector(0), data, Durability::Cached).await.is_err() {
//!         let _ = device.write(Sector(0), data, Durability::Cached).await; // use of a moved value
//!     }
//! }
//! ```
//!
//! # What a crash leaves
//!
//! Data: what the device below leaves, in whole encryption sectors where that device keeps blocks of
//! that size whole. A new volume: nothing, or the volume ([`Plan`]). Opening writes nothing at all, also
//! when a header copy is damaged: that is noted in [`Volume::notes`].
//!
//! # Changing a LUKS2 header
//!
//! All changes of LUKS2 metadata go through [`MetadataEditor`] (`manage/editor.rs`): the JSON tree is
//! edited and parsed again, `seqid` grows by one, and the copies are written one after the other so that
//! a cut leaves the old state or the new one. What metadata promise (a keyslot's area) is written and
//! flushed before them; what they no longer name is wiped as the operation's own file says.
//!
//! # Another key for the data
//!
//! [`reencrypt`] converts a volume in place, zone by zone, in LUKS2's own protocol: a cut at any write
//! leaves a state that we and cryptsetup can take up again.
//!
//! # Hostile headers
//!
//! Everything in a header may have been chosen by somebody who does not know a passphrase. Every rule
//! has a number, which errors name:
//!
//! | Checks | About |
//! |---|---|
//! | 1 to 15 | framing: magic, sizes, checksum, JSON, the choice between the copies |
//! | 16 to 22 | keys: who names whom, digests, weak keys |
//! | 23 to 31 | costs, all bounded before work starts: [`Limits`] |
//! | 32 to 38 | places: areas and segments inside the device and apart from each other |
//! | 39 to 51 | meaning: ciphers, the null cipher, re-encryption, flags, tokens, key files |
//!
//! *Why is the JSON tree kept beside the typed view?* Other programs own fields in it. A change edits the
//! tree and parses it again, so that what is written passed the checks of what is read, and nothing that
//! we do not know is lost.
//!
//! *Why several AES engines?* Our own encrypts the tweaks of many sectors together, which a library that is
//! called once per sector cannot, and needs a processor with AES instructions; AWS-LC is the next best
//! and knows AES-256-XTS with unequal key halves only; pure Rust does the rest. They are each other's
//! oracles.

mod activation;
mod af;
mod cipher;
mod create;
mod device;
mod dump;
mod error;
mod format;
mod hash;
mod header;
mod integrity;
mod io;
mod kdf;
mod key;
mod keyfile;
mod keyslot;
mod manage;
mod plain;
pub mod reencrypt;
pub mod speed;
#[cfg(test)]
mod testing;
mod unlock;
mod volume;
mod xts;

pub use activation::{Activation, persist};
pub use cipher::{Chain, CipherSpec, IvMode};
pub use create::{FormatOptions, LuksVersion, Plan, Step, Wiped, format, format_sealed};
pub use device::{Crypt, CryptOptions, Suspended, VolumeHandle, WORKERS_MAX, Workers};
#[cfg(any(test, feature = "mutations"))]
pub use device::{Mutation, Observer};
pub use error::{Corrupt, Error, Result, Skipped, printable};
pub use format::luks1::{Luks1, Luks1Slot};
pub use format::luks2::{HeaderCopy, Luks2, OtherCopy};
pub use format::metadata::{
    Config, Digest, DigestKind, Keyslot, KeyslotKind, Luks2Slot, Metadata, Priority, Segment,
    SegmentIntegrity, SegmentKind, SlotKdf, Token,
};
pub use hash::Hash;
pub use header::{HEAD_LEN, Header};
pub use integrity::{
    AeadSpec, FirstTags, HashSpec, Hashed, HashedFormat, HashedOptions, IntegrityInfo, Journaling,
    Replayed, Seal, Sealed, Verified, format_hashed, integrity_info, integrity_place,
};
pub use io::Fill;
pub use kdf::{
    ARGON2_MEMORY_MAX_KIB, ARGON2_MEMORY_MIN_KIB, ARGON2_TIME_MIN, Argon2Kind, Clock, Cost, Kdf,
    Limits, PBKDF2_ITERATIONS_MIN, Pbkdf,
};
pub use key::Key;
pub use keyfile::{
    KEY_FILE_MAX, KeyFilePart, PASSPHRASE_MAX, read_key, read_key_file, read_passphrase,
};
pub use manage::{
    Backup, Changed, Damage, Draft, MetadataEditor, NewKey, PERSISTENT_FLAGS, Proof, Protection,
    Settings, add_key, add_unbound_key, backup, before_repair, can_convert, change_key, configure,
    convert_to_luks1, convert_to_luks2, damage, erase, import_token, kill_slot, remove_key,
    remove_token, repair, set_uuid,
};
pub use plain::PlainSpec;
pub use unlock::{
    TestReport, UnlockOptions, test, unlock, unlock_detached, unlock_with_volume_key,
};
pub use volume::{MapOptions, Mapping, Volume, VolumeKind};
pub use xts::{Engine, SectorSize, Xts, XtsParams};
