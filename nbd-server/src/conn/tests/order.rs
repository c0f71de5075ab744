//! Several connections, one device: what the order of requests and the shared flush promise.
//!
//! Each promise is first kept, for many seeds, and then broken on purpose: a test that cannot see
//! the bug proves nothing.

use super::*;
use varve_block::dev::SimDisk;
use varve_block::dev::sim::{Effect, Fault, Image, Plan, When};
use varve_block::export::Sabotage;

const SMALL: Sectors = Sectors(256);

fn disk(rt: &Rt, plan: Plan) -> SimDisk {
    let geometry = varve_block::Geometry::new(DevId::new("disk"), SMALL);
    SimDisk::new(rt, geometry, Image::new(SMALL), plan)
}

fn sabotaged(rt: &Rt, disk: &SimDisk, sabotage: Sabotage) -> Rc<Hall> {
    let shared = ExportShared::new(ExportOptions { sabotage, ..ExportOptions::default() });
    let export = Export::new(rt.clone(), shared, Dyn::new(disk.clone()));
    hall_with(rt, Look::new("disk"), export)
}

async fn client(hall: &Rc<Hall>) -> Client {
    connect(hall, 70_000).negotiate(true).await
}

/// A write hangs in the device; its client's connection breaks; the client sends it again elsewhere
/// and then writes something newer to the same place. True if the newer one is what stays.
fn retry_after_a_broken_connection(seed: u64, sabotage: Sabotage) -> bool {
    world(seed).run(move |rt| async move {
        let hang = Fault::new(Op::Write, When::Nth(1), Effect::Delay(Duration::from_secs(5)));
        let disk = disk(&rt, Plan::default().with(hang));
        let hall = sabotaged(&rt, &disk, sabotage);
        let first = client(&hall).await;
        first.write(1, 4096, &[1; 8192]).await;
        rt.sleep(Duration::from_secs(1)).await;
        drop(first.end);
        let second = client(&hall).await;
        second.write(1, 4096, &[1; 8192]).await;
        let third = client(&hall).await;
        third.write(1, 4096 + rt.prng().below(100), &[2; 4096]).await;
        assert_eq!(third.errno(1).await, 0);
        assert_eq!(second.errno(1).await, 0);
        third.write(2, 4096, &[3; 8192]).await;
        assert_eq!(third.errno(2).await, 0);
        let at_once = third.read(3, 4096, 8192).await == [3; 8192];
        first.task.await;
        rt.sleep(Duration::from_secs(10)).await;
        let later = third.read(4, 4096, 8192).await == [3; 8192];
        second.bye().await;
        third.bye().await;
        at_once && later
    })
}

#[test]
fn a_write_sent_again_elsewhere_is_not_overtaken_by_its_first_copy() {
    for seed in 0..30 {
        assert!(retry_after_a_broken_connection(seed, Sabotage::None), "seed {seed}");
    }
    let broken = (0..30).any(|seed| !retry_after_a_broken_connection(seed, Sabotage::NoRangeLock));
    assert!(broken, "without the order of requests the first copy must land last");
}

/// Writes answered on one connection, a flush on another, and the power goes. True if all writes
/// are on the medium.
fn flush_on_another_connection(seed: u64, sabotage: Sabotage) -> bool {
    world(seed).run(move |rt| async move {
        let disk = disk(&rt, Plan::default());
        let hall = sabotaged(&rt, &disk, sabotage);
        let (writer, flusher) = (client(&hall).await, client(&hall).await);
        for cookie in 0..8 {
            writer.write(cookie, cookie * 4096, &[7; 4096]).await;
        }
        for _ in 0..8 {
            assert!(matches!(writer.frame(0).await, Frame::Simple { error: 0, .. }));
        }
        flusher.ask(wire::command::FLUSH, 1, 0, 0).await;
        assert_eq!(flusher.errno(1).await, 0);
        let left = disk.cut(rt.prng());
        let mut bytes = vec![0; 8 * 4096];
        left.peek(Sector(0), &mut bytes);
        bytes.iter().all(|&b| b == 7)
    })
}

#[test]
fn a_flush_on_one_connection_covers_writes_answered_on_another() {
    for seed in 0..60 {
        assert!(flush_on_another_connection(seed, Sabotage::None), "seed {seed}");
    }
    let early = Sabotage::FlushAnswersEarly;
    assert!((0..60).any(|seed| !flush_on_another_connection(seed, early)));
}

/// A write with FUA and the power goes. True if it is on the medium.
fn fua(seed: u64, sabotage: Sabotage) -> bool {
    world(seed).run(move |rt| async move {
        let disk = disk(&rt, Plan::default());
        let hall = sabotaged(&rt, &disk, sabotage);
        let client = client(&hall).await;
        let offset = rt.prng().below(9000);
        client.send(CommandFlags::FUA, wire::command::WRITE, 1, offset, 5000).await;
        client.end.write(&[7; 5000]).await.unwrap();
        assert_eq!(client.errno(1).await, 0);
        let left = disk.cut(rt.prng()).to_vec();
        left.iter().filter(|&&b| b == 7).count() == 5000
    })
}

#[test]
fn a_write_with_fua_is_durable_when_it_is_answered() {
    for seed in 0..60 {
        assert!(fua(seed, Sabotage::None), "seed {seed}");
    }
    assert!((0..60).any(|seed| !fua(seed, Sabotage::FuaIgnored)));
}

#[test]
fn after_a_failed_flush_writes_and_flushes_fail_everywhere_and_connections_stay() {
    world(5).run(|rt| async move {
        let fails = Fault::new(Op::Flush, When::Nth(1), Effect::Fail(ErrorKind::Io));
        let disk = disk(&rt, Plan::default().with(fails));
        let hall = sabotaged(&rt, &disk, Sabotage::None);
        let (one, two) = (client(&hall).await, client(&hall).await);
        one.write(1, 0, &[7; 512]).await;
        assert_eq!(one.errno(1).await, 0);
        one.ask(wire::command::FLUSH, 2, 0, 0).await;
        assert_eq!(one.errno(2).await, 5);
        two.write(3, 0, &[8; 512]).await;
        assert_eq!(two.errno(3).await, 5);
        two.ask(wire::command::FLUSH, 4, 0, 0).await;
        assert_eq!(two.errno(4).await, 5);
        // The simulated disk is dead now; the connections are not.
        for (client, cookie) in [(&one, 5), (&two, 6)] {
            client.ask(wire::command::CACHE, cookie, 0, 0).await;
            assert_eq!(client.errno(cookie).await, 0);
        }
        one.bye().await;
        two.bye().await;
    });
}
