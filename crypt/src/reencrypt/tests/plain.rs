//! Plain data get a key, and lose it, with the header elsewhere.

use super::*;
use crate::cipher::CipherSpec;

/// Header file and disk, and the plan over them.
fn worlds(mode: Mode, direction: Direction, header: &Mem, data: &Mem) -> Result<Ended> {
    let devices = Devices { header: header.clone(), data: data.clone(), detached: true };
    let plan = Start {
        mode,
        direction,
        cipher: CipherSpec::parse("aes-xts-plain64").unwrap(),
        sector_size: SectorSize::new(4096),
        ..plan()
    };
    Sim::new(9).run(|rt| async move {
        let work = start(&rt, &devices, &options(), &plan).await?;
        // Half of it, and the rest taken up from the header.
        let mut asked = 0;
        let ended = work
            .with_zone(16 << 10)?
            .run(&mut |_| {
                asked += 1;
                if asked == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .await?;
        assert!(matches!(ended, Ended::Interrupted(Progress { done: 32768, .. })), "{ended:?}");
        let work = Reencryption::resume(&rt, &devices, &options(), &[key(SECRET)]).await?;
        work.run(&mut |_| ControlFlow::Continue(())).await
    })
}

#[test]
fn a_plain_disk_is_encrypted_under_a_detached_header_and_decrypted_again() {
    let plain = noise(96 << 10);
    for direction in [Direction::Forward, Direction::Backward] {
        let header = Mem::from_bytes(&vec![0; 16 << 20]);
        let data = Mem::from_bytes(&plain);
        assert_eq!(worlds(Mode::Encrypt, direction, &header, &data).unwrap(), Ended::Finished);
        assert_ne!(data.to_vec(), plain);
        let (head, len) = (header.clone(), data.geometry().len);
        let volume = Sim::new(1).run(|rt| async move {
            crate::unlock_detached(&rt, &head, len, &options(), &key(SECRET)).await
        });
        let mut clear = data.to_vec();
        volume.unwrap().segments[0].xts.decrypt(0, &mut clear);
        assert!(clear == plain);
        assert_eq!(worlds(Mode::Decrypt, direction, &header, &data).unwrap(), Ended::Finished);
        assert!(data.to_vec() == plain);
        let head = header.clone();
        let refused = Sim::new(1).run(|rt| async move {
            crate::unlock_detached(&rt, &head, len, &options(), &key(SECRET)).await
        });
        assert!(refused.is_err(), "no key opens what is plain");
    }
}

#[test]
fn without_a_detached_header_nothing_is_written() {
    let disk = Recorder::new(&volume(&noise(16 << 10), 512));
    for mode in [Mode::Encrypt, Mode::Decrypt] {
        let (held, plan) = (disk.clone(), Start { mode, ..plan() });
        let refused = Sim::new(9)
            .run(|rt| async move { start(&rt, &on(&held), &options(), &plan).await.map(drop) });
        assert!(refused.unwrap_err().to_string().contains("detached header"));
    }
    assert!(!disk.has_written());
}
