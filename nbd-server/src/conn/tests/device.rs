//! What a device adds: lengths of all kinds, holes, status, and reads that fail.

use super::*;

#[test]
fn reads_and_writes_of_all_lengths_come_back() {
    talk(|client, _| async move {
        let mut cookie = 0;
        for length in [1_u32, 511, 512, 4096, 5000, 70_000, 300_000, (1 << 20) + 3, 3 << 20] {
            let offset = client.rt.prng().below(SIZE - u64::from(length));
            let mut bytes = vec![0; length as usize];
            client.rt.prng().fill(&mut bytes);
            cookie += 1;
            client.write(cookie, offset, &bytes).await;
            assert_eq!(client.errno(cookie).await, 0);
            assert!(client.read(cookie, offset, length).await == bytes, "{length}");
        }
        client.bye().await;
    });
}

#[test]
fn a_read_only_export_refuses_every_change_and_reads() {
    world(1).run(|rt| async move {
        let mem = Mem::new(Sectors(64));
        let look = Look { read_only: true, ..Look::new("disk") };
        let client = connect(&hall(&rt, look, &mem), 9000).negotiate(true).await;
        client.write(1, 0, &[1; 512]).await;
        assert_eq!(client.errno(1).await, 1);
        for (cookie, kind) in [(2, wire::command::TRIM), (3, wire::command::WRITE_ZEROES)] {
            client.ask(kind, cookie, 0, 512).await;
            assert_eq!(client.errno(cookie).await, 1);
        }
        assert_eq!(client.read(4, 0, 512).await, [0; 512]);
        client.bye().await;
        assert!(mem.to_vec().iter().all(|&b| b == 0));
    });
}

#[test]
fn a_failed_structured_read_tells_the_good_part_and_the_place() {
    for (offset, length) in [(0_u32, 1 << 20), (100, 300_000), (65_536 * 3, 4096), (0, 200_001)] {
        world(1).run(move |rt| async move {
            let mem = Mem::new(Sectors::exact(SIZE).unwrap());
            mem.poke(0, &pattern(0, u32::try_from(SIZE).unwrap()));
            let bad = Extent::new(Sector::containing(200_000), Sectors(1));
            let hall = hall_of(&rt, Look::new("disk"), Dyn::new(Odd::new(mem).bad(bad)));
            let client = connect(&hall, 70_000).negotiate(true).await;
            client.ask(wire::command::READ, 1, offset.into(), length).await;
            let Frame::Data { cookie: 1, offset: at, data, done: false } = client.frame(0).await
            else {
                panic!("no content before the error");
            };
            let Frame::ErrorAt { cookie: 1, error: 5, text, offset: broken } =
                client.frame(0).await
            else {
                panic!("no error");
            };
            assert_eq!(client.frame(0).await, Frame::None { cookie: 1 });
            assert!(text.contains("disk7") && text.contains("390"), "{text}");
            assert_eq!(at, u64::from(offset));
            let good = u32::try_from(broken - at).unwrap();
            assert!(broken <= 199_680 && 199_680 - broken < 4096, "{broken}");
            assert!(broken >= at && broken < at + data.len() as u64, "covered by content");
            assert!(data[..good as usize] == pattern(at, good));
            assert!(data[good as usize..].iter().all(|&b| b == 0), "padding");
            // Elsewhere it still reads, and the stream is in step.
            assert!(client.read(2, 300_000, 5000).await == pattern(300_000, 5000));
            assert_eq!(hall.stats.requests_failed.get(), 1);
            client.bye().await;
        });
    }
}

#[test]
fn a_failed_simple_or_whole_read_is_one_error() {
    for structured in [false, true] {
        world(1).run(move |rt| async move {
            let bad = Extent::new(Sector(0), Sectors(1));
            let mem = Mem::new(Sectors(64));
            let hall = hall_of(&rt, Look::new("disk"), Dyn::new(Odd::new(mem).bad(bad)));
            let client = connect(&hall, 7000).negotiate(structured).await;
            let flags = if structured { CommandFlags::DF } else { CommandFlags::empty() };
            client.send(flags, wire::command::READ, 1, 0, 8192).await;
            assert_eq!(client.errno(1).await, 5);
            assert_eq!(client.read(2, 8192, 512).await, [0; 512]);
            client.bye().await;
        });
    }
}

#[test]
fn long_structured_reads_tell_holes_and_df_does_not() {
    world(2).run(|rt| async move {
        let mem = Mem::new(Sectors::exact(SIZE).unwrap());
        mem.poke(1 << 20, &pattern(1 << 20, 65_536));
        let client = connect(&hall(&rt, Look::new("disk"), &mem), 70_000).negotiate(true).await;
        let mut want = vec![0; 3 << 20];
        want[1 << 20..(1 << 20) + 65_536].copy_from_slice(&pattern(1 << 20, 65_536));
        assert!(client.read(1, 0, 3 << 20).await == want);
        let told = client.hall.stats.read_bytes.get();
        assert!(told < 1 << 20, "{told} bytes of data were sent for 64 KiB");
        client.send(CommandFlags::DF, wire::command::READ, 2, 0, 3 << 20).await;
        let Frame::Data { cookie: 2, offset: 0, data, done: true } = client.frame(0).await else {
            panic!("DF means one chunk");
        };
        assert!(data == want);
        client.bye().await;
    });
}

#[test]
fn block_status_tells_runs_that_cover_the_request_from_its_start() {
    world(2).run(|rt| async move {
        let mem = Mem::new(Sectors::exact(SIZE).unwrap());
        mem.poke(1 << 20, &pattern(1 << 20, 65_536));
        let client = connect(&hall(&rt, Look::new("disk"), &mem), 70_000).negotiate(true).await;
        let status = async |flags, offset, length| {
            client.send(flags, wire::command::BLOCK_STATUS, 1, offset, length).await;
            match client.frame(0).await {
                Frame::Status { cookie: 1, id: 1, extents, done: true } => extents,
                other => panic!("{other:?}"),
            }
        };
        let (zero, data, rest) = ((1 << 20, 3), (65_536, 0), (u32::try_from(SIZE).unwrap(), 3));
        let rest = (rest.0 - zero.0 - data.0, 3);
        let all = status(CommandFlags::empty(), 0, u32::try_from(SIZE).unwrap()).await;
        assert_eq!(all, [zero, data, rest]);
        let one = status(CommandFlags::REQ_ONE, 0, u32::try_from(SIZE).unwrap()).await;
        assert_eq!(one, [zero]);
        let odd = status(CommandFlags::empty(), (1 << 20) - 3, 5).await;
        assert_eq!(odd, [(3, 3), (2, 0)]);
        client.bye().await;
    });
}

#[test]
fn trim_and_write_zeroes_read_back_as_zeroes() {
    talk(|client, _| async move {
        client.send(CommandFlags::FUA, wire::command::WRITE_ZEROES, 1, 1000, 300_000).await;
        assert_eq!(client.errno(1).await, 0);
        assert!(client.read(2, 1000, 300_000).await == vec![0; 300_000]);
        assert_eq!(client.read(3, 0, 1000).await, pattern(0, 1000));
        assert_eq!(client.read(4, 301_000, 600).await, pattern(301_000, 600));
        for (cookie, kind) in [(5, wire::command::TRIM), (6, wire::command::CACHE)] {
            client.send(CommandFlags::FUA, kind, cookie, 1 << 20, 65_536).await;
            assert_eq!(client.errno(cookie).await, 0);
        }
        client.bye().await;
    });
}

#[test]
fn a_disk_without_holes_is_not_asked_for_them_all_the_time_but_again_later() {
    const LEN: u32 = 256 << 10;
    world(2).run(|rt| async move {
        let mem = Mem::new(Sectors::exact(SIZE).unwrap());
        mem.poke(0, &pattern(0, LEN));
        let odd = Rc::new(Odd::new(mem));
        let hall = hall_of(&rt, Look::new("disk"), Dyn::new(Rc::clone(&odd)));
        let client = connect(&hall, 70_000).negotiate(true).await;
        for cookie in 0..64 {
            assert!(client.read(cookie, 0, LEN).await == pattern(0, LEN));
        }
        assert!((8..16).contains(&odd.looks.get()), "{} looks", odd.looks.get());
        let before = hall.stats.read_bytes.get();
        for cookie in 0..40 {
            assert!(client.read(cookie, 1 << 20, LEN).await == vec![0; LEN as usize]);
        }
        let sent = hall.stats.read_bytes.get() - before;
        assert!(sent < 40 * u64::from(LEN), "no read found the hole");
        client.bye().await;
    });
}
