//! Random clients: sensible ones against a model, and senseless ones.

use super::*;

/// Many requests in flight at random places; each writer owns its stripe, so that the model knows
/// what every read must return. Every request is answered exactly once.
fn storm(seed: u64) {
    const STRIPE: u64 = 70_000;
    world(seed).run(move |rt| async move {
        let mem = Mem::new(Sectors::exact(SIZE).unwrap());
        let hall = hall(&rt, Look::new("disk"), &mem);
        let client =
            connect(&hall, 1 + rt.prng().index(200_000)).negotiate(seed.is_multiple_of(2)).await;
        let client = Rc::new(client);
        let sender = Rc::clone(&client);
        let mut model = vec![0_u8; usize::try_from(STRIPE).unwrap() * 16];
        // Round by round: all stripes are written at once, then read at once.
        for round in 0..4_u8 {
            let mut asked = Vec::new();
            for stripe in 0..16_u64 {
                let length = 1 + rt.prng().below(STRIPE);
                let offset = stripe * STRIPE + rt.prng().below(STRIPE - length + 1);
                let start = usize::try_from(offset).unwrap();
                let bytes = vec![
                    round * 16 + u8::try_from(stripe).unwrap() + 1;
                    usize::try_from(length).unwrap()
                ];
                model[start..start + bytes.len()].copy_from_slice(&bytes);
                asked.push((stripe, offset, bytes));
            }
            let from = Rc::clone(&sender);
            let writing = rt.spawn(async move {
                for (cookie, offset, bytes) in asked {
                    from.write(cookie, offset, &bytes).await;
                }
            });
            let mut left: Vec<u64> = (0..16).collect();
            while !left.is_empty() {
                match client.frame(0).await {
                    Frame::Simple { error: 0, cookie, .. } => {
                        let at = left.iter().position(|c| *c == cookie).expect("asked, once");
                        left.remove(at);
                    }
                    other => panic!("{other:?}"),
                }
            }
            writing.await;
            let from = Rc::clone(&sender);
            let reading = rt.spawn(async move {
                for stripe in 0..16 {
                    let length = u32::try_from(STRIPE).unwrap();
                    from.ask(wire::command::READ, stripe, stripe * STRIPE, length).await;
                }
            });
            let mut left: Vec<u64> = (0..16).collect();
            while !left.is_empty() {
                let (cookie, data) = match client.frame(usize::try_from(STRIPE).unwrap()).await {
                    Frame::Simple { error: 0, cookie, data } => (cookie, data),
                    Frame::Data { cookie, data, done: true, .. } => (cookie, data),
                    other => panic!("{other:?}"),
                };
                let at = left.iter().position(|c| *c == cookie).expect("asked, once");
                left.remove(at);
                let start = usize::try_from(cookie * STRIPE).unwrap();
                assert!(data == model[start..start + data.len()], "stripe {cookie}, seed {seed}");
            }
            reading.await;
        }
        drop(sender);
        Rc::into_inner(client).expect("all tasks have ended").bye().await;
    });
}

#[test]
fn storms_of_requests_are_answered_once_each_and_rightly() {
    (0..40).for_each(storm);
}

/// Any bytes at all, in any pieces, behind a good handshake: the server ends cleanly, holds
/// nothing, and nothing but whole writes has changed the device.
#[test]
fn any_bytes_behind_a_handshake_leave_nothing_behind() {
    for seed in 0..150 {
        world(seed).run(move |rt| async move {
            let mem = Mem::new(Sectors(512));
            let hall = hall(&rt, Look::new("disk"), &mem);
            let client = connect(&hall, 5000).negotiate(seed.is_multiple_of(2)).await;
            let mut bytes = Vec::new();
            for _ in 0..rt.prng().below(30) {
                let r = rt.prng();
                let mut raw = request(
                    u16::try_from(r.below(70)).unwrap(),
                    u16::try_from(r.below(10)).unwrap(),
                    r.next_u64(),
                    r.below(300_000),
                    u32::try_from(r.below(5000)).unwrap(),
                );
                if r.chance(1, 20) {
                    let at = r.index(raw.len());
                    raw[at] ^= 1 << r.below(8);
                }
                bytes.extend(raw);
                bytes.extend(std::iter::repeat_n(7, r.index(6000)));
            }
            // Both ways at once, or a full pipe would stop both sides.
            let end = Rc::new(client.end);
            let reader = Rc::clone(&end);
            let draining = rt.spawn(async move { while !reader.read(1).await.is_empty() {} });
            let _ = end.write(&bytes).await; // it may be closed on the way
            end.finish();
            draining.await;
            client.task.await;
            assert_eq!(client.conn.in_flight.requests(), 0);
            drop(client.conn);
            assert_eq!((hall.pool.lent(), hall.budget.available()), (0, 1 << 30));
        });
    }
}
