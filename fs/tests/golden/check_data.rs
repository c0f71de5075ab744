//! `check --data`: what is bad is told with its files, its copies and its places; what is good is not.

use crate::devices::{Rig, Rigged};
use crate::image::{golden, in_sim};
use std::rc::Rc;
use varve_block::dev::Mem;
use varve_block::{BlockDevice, Rt};
use varve_fs::check::{CheckOptions, Checked, Code, Finding, Severity, check};

async fn run<D: BlockDevice>(device: D, rt: Option<&Rt>) -> Checked {
    let options = CheckOptions { data: true, rt, ..CheckOptions::default() };
    check(vec![device], &options).await.expect("it opens")
}

/// mkfs leaves traces in the free space tree, which are warnings.
#[track_caller]
fn only_error(checked: &Checked) -> &Finding {
    let errors: Vec<_> =
        checked.findings.iter().filter(|f| f.severity == Severity::Error).collect();
    let [finding] = errors[..] else { panic!("{:#?}", checked.findings) };
    finding
}

/// The byte of the image where `/plain/text` has its second sector.
fn text_at(device: &Mem) -> u64 {
    let whole = device.to_vec();
    let needle = b"\n1500\n1501\n1502\n";
    whole.windows(needle.len()).position(|w| w == needle).expect("the plain text") as u64
}

#[test]
fn good_data_is_good_with_workers_and_without() {
    in_sim(|rt| async move {
        let alone = run(golden(), None).await;
        assert!(alone.is_clean(), "{:#?}", alone.findings);
        let counts = alone.data.expect("data was asked for");
        assert!(counts.verified > 400_000, "{counts:?}");
        assert_eq!(counts.bad, 0);
        assert_eq!(run(golden(), Some(&rt)).await.data, Some(counts));
        let without = check(vec![golden()], &CheckOptions::default()).await.expect("it opens");
        assert_eq!(without.data, None);
    });
}

#[test]
fn a_flipped_byte_names_file_sector_copy_and_device_byte() {
    in_sim(|_| async move {
        let device = golden();
        let at = text_at(&device);
        device.poke(at, b"X");
        let checked = run(device, None).await;
        let finding = only_error(&checked);
        assert_eq!(finding.code, Code::DataCsum);
        assert!(finding.paths.iter().any(|path| path == "/plain/text"), "{finding:#?}");
        assert_eq!(finding.files[0].offset, 4096);
        assert_eq!(finding.place.inode, Some(finding.files[0].inode));
        let copy = finding.copy.expect("a copy is bad");
        let place = copy.place.expect("and it has a place");
        assert_eq!((copy.mirror, place.devid, place.byte), (1, 1, at - at % 4096));
        assert!(finding.message.contains("1 sector: csum 0x"), "{}", finding.message);
        assert_eq!(checked.data.map(|data| data.bad), Some(4096));
    });
}

#[test]
fn an_unreadable_sector_spoils_no_other() {
    in_sim(|rt| async move {
        let below = golden();
        let at = text_at(&below);
        let rig = Rc::new(Rig::default());
        let sector = at - at % 4096;
        rig.broken.borrow_mut().push(sector..sector + 1);
        let checked = run(Rigged { below, rig, rt: rt.clone() }, Some(&rt)).await;
        let finding = only_error(&checked);
        assert_eq!(finding.code, Code::DataUnreadable);
        assert!(finding.paths.iter().any(|path| path == "/plain/text"), "{finding:#?}");
        assert_eq!(checked.data.map(|data| data.bad), Some(4096));
    });
}
