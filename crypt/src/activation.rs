//! dm-crypt's activation flags: what the operator says, what the header keeps, and what holds.
//!
//! The operator's word comes first, in both directions; then what a LUKS2 header keeps under
//! `config.flags`; then no. So a header that somebody else wrote can turn on discards only for an
//! operator who said nothing about them (check 45).
//!
//! Words of `config.flags` that are not in the table below belong to others and stay as they are.

use serde_json::json;
use varve_block::BlockDevice;

use crate::error::{Error, Result};
use crate::format::luks2::HeaderCopy;
use crate::header::Header;
use crate::manage::MetadataEditor;

/// One value per flag: `Option<bool>` for what somebody said, `bool` for what holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Activation<T = Option<bool>> {
    /// Discards are passed on. Shows an observer of the device which parts are free.
    pub allow_discards: T,
    /// Encryption stays on the core that took the request: no worker, in either direction.
    pub same_cpu_crypt: T,
    /// Writes go down from where they were encrypted. They always do: there is no thread that sorts.
    pub submit_from_crypt_cpus: T,
    /// Reads are decrypted on their lane.
    pub no_read_workqueue: T,
    /// Writes are encrypted on their lane.
    pub no_write_workqueue: T,
}

impl<T: Copy> Activation<T> {
    /// Every flag under the name that it has in a LUKS2 header.
    fn named(&self) -> [(&'static str, T); 5] {
        [
            ("allow-discards", self.allow_discards),
            ("same-cpu-crypt", self.same_cpu_crypt),
            ("submit-from-crypt-cpus", self.submit_from_crypt_cpus),
            ("no-read-workqueue", self.no_read_workqueue),
            ("no-write-workqueue", self.no_write_workqueue),
        ]
    }
}

impl Activation {
    /// Nobody said anything.
    pub fn is_silent(&self) -> bool {
        *self == Activation::default()
    }

    /// What holds for a volume whose header keeps `kept`.
    pub fn over(&self, kept: &[String]) -> Activation<bool> {
        let names = Activation::<()>::default().named().map(|(name, ())| name);
        let [allow_discards, same_cpu_crypt, submit_from_crypt_cpus, no_read, no_write] =
            std::array::from_fn(|i| {
                self.named()[i].1.unwrap_or_else(|| kept.iter().any(|k| k == names[i]))
            });
        Activation {
            allow_discards,
            same_cpu_crypt,
            submit_from_crypt_cpus,
            no_read_workqueue: no_read,
            no_write_workqueue: no_write,
        }
    }

    /// `kept` after the operator's words: what is said is there or not, the rest as it was.
    fn merged(&self, kept: &[String]) -> Vec<String> {
        let mut all = kept.to_vec();
        for (name, said) in self.named() {
            match said {
                Some(true) if !all.iter().any(|k| k == name) => all.push(name.to_owned()),
                Some(false) => all.retain(|k| k != name),
                _ => {}
            }
        }
        all
    }
}

impl Activation<bool> {
    /// The names of the flags that hold.
    pub fn names(&self) -> Vec<&'static str> {
        self.named().into_iter().filter(|(_, holds)| *holds).map(|(name, _)| name).collect()
    }
}

/// Keeps what the operator said in the LUKS2 header on `device`. Says whether something was written: a
/// header that keeps it already is left alone.
pub async fn persist<D: BlockDevice>(
    device: D,
    copy: Option<HeaderCopy>,
    said: &Activation,
) -> Result<bool> {
    if let Header::Luks1(_) = Header::read(&device, copy).await? {
        return Err(Error::unsupported("a LUKS1 header keeps no flags: convert it to LUKS2"));
    }
    let mut editor = MetadataEditor::open(device, copy).await?;
    let kept = &editor.header().metadata.config.flags;
    let flags = said.merged(kept);
    if flags == *kept {
        return Ok(false);
    }
    editor
        .update(|draft| {
            match (flags.is_empty(), draft.json["config"].as_object_mut()) {
                (true, Some(config)) => drop(config.shift_remove("flags")),
                _ => draft.json["config"]["flags"] = json!(flags),
            }
            Ok(())
        })
        .await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::images;
    use varve_block::Sim;
    use varve_block::dev::Mem;

    fn kept(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn the_operator_comes_before_the_header_and_the_header_before_no() {
        let header = kept(&["allow-discards", "no-read-workqueue", "never-heard-of"]);
        let said = Activation {
            allow_discards: Some(false),
            no_write_workqueue: Some(true),
            ..Activation::default()
        };
        assert_eq!(said.over(&header).names(), ["no-read-workqueue", "no-write-workqueue"]);
        assert_eq!(
            Activation::default().over(&header).names(),
            ["allow-discards", "no-read-workqueue"]
        );
        assert!(Activation::default().over(&[]).names().is_empty());
        let merged = said.merged(&header);
        assert_eq!(merged, ["no-read-workqueue", "never-heard-of", "no-write-workqueue"]);
    }

    #[test]
    fn what_is_kept_is_there_for_the_next_reader_and_nothing_else_changes() {
        Sim::new(1).run(|_| async {
            let disk = Mem::from_bytes(&images::luks2_a());
            let flags = async || match Header::read(&disk, None).await.unwrap() {
                Header::Luks2(h) => (h.metadata.config.flags.clone(), h.seqid),
                Header::Luks1(_) => unreachable!("a LUKS2 image"),
            };
            let (none, seqid) = flags().await;
            assert!(none.is_empty());
            let said = Activation {
                allow_discards: Some(true),
                same_cpu_crypt: Some(true),
                ..Activation::default()
            };
            assert!(persist(disk.clone(), None, &said).await.unwrap());
            assert_eq!(flags().await, (kept(&["allow-discards", "same-cpu-crypt"]), seqid + 1));
            // Again: nothing to write.
            let before = disk.to_vec();
            assert!(!persist(disk.clone(), None, &said).await.unwrap());
            assert_eq!(disk.to_vec(), before);
            let off = Activation {
                allow_discards: Some(false),
                same_cpu_crypt: Some(false),
                ..Activation::default()
            };
            assert!(persist(disk.clone(), None, &off).await.unwrap());
            assert!(flags().await.0.is_empty());

            let old = Mem::from_bytes(&images::luks1());
            let before = old.to_vec();
            assert!(persist(old.clone(), None, &said).await.is_err());
            assert_eq!(old.to_vec(), before);
        });
    }
}
