//! The rows of the catalogue of odd input that need a device or a clock, by name.

use super::*;

#[test]
fn read_at_offset_1_length_3_returns_those_three_bytes() {
    talk(|client, _| async move {
        assert_eq!(client.read(1, 1, 3).await, [1, 2, 3]);
        client.bye().await;
    });
}

#[test]
fn write_at_offset_1_length_3_changes_those_three_bytes() {
    talk(|client, mem| async move {
        client.write(1, 1, b"xyz").await;
        assert_eq!(client.errno(1).await, 0);
        let mut bytes = [0; 6];
        mem.peek(0, &mut bytes);
        assert_eq!(bytes, [0, b'x', b'y', b'z', 4, 5]);
        client.bye().await;
    });
}

#[test]
fn zero_length_requests_succeed_and_change_nothing() {
    talk(|client, mem| async move {
        for (cookie, kind) in [(1, 0), (2, 1), (3, 4), (4, 5), (5, 6)] {
            client.ask(kind, cookie, SIZE, 0).await;
            assert_eq!(client.errno(cookie).await, 0, "{kind}");
        }
        assert!(mem.to_vec() == pattern(0, u32::try_from(SIZE).unwrap()));
        client.bye().await;
    });
}

#[test]
fn a_structured_read_of_nothing_is_a_lone_none_chunk() {
    talk(|client, _| async move {
        client.ask(wire::command::READ, 9, 0, 0).await;
        let want = match client.structured {
            true => Frame::None { cookie: 9 },
            false => Frame::Simple { error: 0, cookie: 9, data: Vec::new() },
        };
        assert_eq!(client.frame(0).await, want);
        client.bye().await;
    });
}

#[test]
fn refused_requests_are_answered_in_the_negotiated_style() {
    talk(|client, _| async move {
        client.ask(wire::command::READ, 7, SIZE, 512).await;
        match client.frame(512).await {
            Frame::Simple { error: 22, cookie: 7, .. } => assert!(!client.structured),
            Frame::Error { error: 22, cookie: 7, text } => {
                assert!(client.structured && text.contains("end of the export"), "{text}");
            }
            other => panic!("{other:?}"),
        }
        client.write(8, SIZE - 1, &[7; 5000]).await;
        assert_eq!(client.errno(8).await, 28);
        client.ask(wire::command::BLOCK_STATUS, 9, 0, 0).await;
        assert_eq!(client.errno(9).await, 22);
        client.bye().await;
    });
}

#[test]
fn disc_sent_right_behind_a_read_comes_after_its_answer() {
    talk(|client, _| async move {
        client.ask(wire::command::READ, 1, 4096, 100_000).await;
        client.ask(wire::command::DISC, 2, 0, 0).await;
        assert!(client.content(1, 4096, 100_000).await == pattern(4096, 100_000));
        client.ends().await;
    });
}

#[test]
fn the_end_of_the_stream_behind_requests_is_as_good_as_disc() {
    talk(|client, mem| async move {
        client.write(1, 0, &[9; 3000]).await;
        client.ask(wire::command::READ, 2, 4096, 512).await;
        client.end.finish();
        let mut answers = Vec::new();
        while answers.len() < 2 {
            let frame = client.frame_of(|cookie| if cookie == 2 { 512 } else { 0 }).await;
            answers.push(match frame {
                Frame::Simple { error: 0, cookie, .. } | Frame::Data { cookie, done: true, .. } => {
                    cookie
                }
                other => panic!("{other:?}"),
            });
        }
        answers.sort_unstable();
        assert_eq!(answers, [1, 2]);
        client.ends().await;
        let mut bytes = [0; 3000];
        mem.peek(0, &mut bytes);
        assert_eq!(bytes, [9; 3000]);
    });
}

#[test]
fn the_same_cookie_twice_in_flight_is_answered_twice() {
    talk(|client, _| async move {
        client.ask(wire::command::FLUSH, 5, 0, 0).await;
        client.ask(wire::command::FLUSH, 5, 0, 0).await;
        assert_eq!(client.errno(5).await, 0);
        assert_eq!(client.errno(5).await, 0);
        client.bye().await;
    });
}

#[test]
fn bad_magic_closes_after_what_was_begun_is_answered() {
    talk(|client, _| async move {
        client.ask(wire::command::READ, 1, 0, 512).await;
        client.end.write(&[0xab; 28]).await.unwrap();
        assert_eq!(client.content(1, 0, 512).await, pattern(0, 512));
        assert_eq!(client.hall.stats.streams_broken.get(), 1);
        client.ends().await;
    });
}

#[test]
fn payload_cut_by_the_end_of_the_stream_writes_nothing() {
    for cut in [0_usize, 1, 4095, 150_000] {
        talk(move |client, mem| async move {
            let length = 4096.max(u32::try_from(cut).unwrap() + 1);
            client.ask(wire::command::WRITE, 1, 0, length).await;
            client.end.write(&vec![7; cut]).await.unwrap();
            client.end.finish();
            client.ends().await;
            assert!(mem.to_vec() == pattern(0, u32::try_from(SIZE).unwrap()));
        });
    }
}

#[test]
fn half_a_header_then_silence_closes_after_sixty_seconds() {
    talk(|client, _| async move {
        let start = client.rt.now();
        client.end.write(&request(0, 0, 1, 0, 512)[..11]).await.unwrap();
        assert_eq!(client.end.read(1).await, []);
        let waited = client.rt.now() - start;
        assert!(waited >= STALL_TIMEOUT && waited <= STALL_TIMEOUT + STALL_TICK, "{waited:?}");
        assert_eq!(client.hall.stats.stalls.get(), 1);
        client.ends().await;
    });
}

#[test]
fn half_a_payload_then_silence_closes_after_sixty_seconds() {
    talk(|client, mem| async move {
        client.ask(wire::command::WRITE, 1, 0, 100_000).await;
        client.end.write(&[7; 60_000]).await.unwrap();
        assert_eq!(client.end.read(1).await, []);
        assert_eq!(client.hall.stats.stalls.get(), 1);
        client.ends().await;
        assert!(mem.to_vec() == pattern(0, u32::try_from(SIZE).unwrap()));
    });
}

#[test]
fn silence_between_requests_is_no_stall() {
    talk(|client, _| async move {
        client.rt.sleep(Duration::from_secs(100_000)).await;
        assert_eq!(client.read(1, 0, 512).await, pattern(0, 512));
        client.rt.sleep(Duration::from_secs(100_000)).await;
        client.bye().await;
    });
}

#[test]
fn a_slow_payload_that_keeps_coming_is_no_stall() {
    talk(|client, _| async move {
        client.ask(wire::command::WRITE, 1, 0, 20).await;
        for byte in 0..20 {
            client.rt.sleep(Duration::from_secs(50)).await;
            client.end.write(&[byte]).await.unwrap();
        }
        assert_eq!(client.errno(1).await, 0);
        client.bye().await;
    });
}

#[test]
fn a_client_that_stops_reading_is_pushed_back_then_closed_and_others_go_on() {
    world(3).run(|rt| async move {
        let mem = Mem::new(Sectors::exact(SIZE).unwrap());
        let hall = hall(&rt, Look::new("disk"), &mem);
        let stuck = connect(&hall, 10_000).negotiate(true).await;
        let fine = connect(&hall, 10_000).negotiate(true).await;
        let start = rt.now();
        // It asks for far more than may be in flight, and takes nothing.
        let asked = rt.spawn(async move {
            let mut asked = 0;
            for cookie in 0..100_000 {
                if stuck.end.write(&request(0, 0, cookie, 0, 1 << 20)).await.is_err() {
                    break;
                }
                asked += 1;
                let bytes = stuck.conn.hall.budget.available();
                assert!(bytes >= (1 << 30) - (65 << 20), "{bytes}");
            }
            (stuck, asked)
        });
        for cookie in 0..50 {
            rt.sleep(Duration::from_secs(1)).await;
            assert_eq!(fine.read(cookie, 0, 4096).await, vec![0; 4096]);
        }
        let (stuck, asked) = asked.await;
        assert!(asked < 2000, "{asked} requests were taken from a client that reads nothing");
        let waited = rt.now() - start;
        assert!(waited >= STALL_TIMEOUT && waited <= STALL_TIMEOUT + STALL_TICK * 2, "{waited:?}");
        assert_eq!(hall.stats.stalls.get(), 1);
        stuck.task.await;
        assert_eq!(stuck.conn.in_flight.requests(), 0);
        fine.bye().await;
    });
}

#[test]
fn a_flood_of_refused_requests_is_pushed_back_too() {
    world(4).run(|rt| async move {
        let mem = Mem::new(Sectors::exact(SIZE).unwrap());
        let hall = hall(&rt, Look::new("disk"), &mem);
        let client = connect(&hall, 10_000).negotiate(true).await;
        let mut asked = 0;
        while asked < 5000 && client.end.write(&request(0, 4242, asked, 0, 0)).await.is_ok() {
            asked += 1;
        }
        assert!(asked < 2000, "{asked}");
        client.task.await;
        assert_eq!(client.conn.in_flight.requests(), 0);
    });
}

#[test]
fn silence_after_the_greeting_closes_after_fifteen_seconds() {
    world(1).run(|rt| async move {
        let hall = hall(&rt, Look::new("disk"), &Mem::new(Sectors(8)));
        let client = connect(&hall, 1000);
        let start = rt.now();
        assert_eq!(client.end.read(100).await.len(), 18);
        let waited = rt.now() - start;
        assert!(waited >= HANDSHAKE_TIMEOUT && waited.as_secs() < 16, "{waited:?}");
        assert_eq!(hall.stats.handshakes_failed.get(), 1);
        client.ends().await;
    });
}

#[test]
fn a_handshake_that_trickles_is_closed_after_fifteen_seconds_too() {
    world(1).run(|rt| async move {
        let hall = hall(&rt, Look::new("disk"), &Mem::new(Sectors(8)));
        let client = connect(&hall, 1000);
        let bytes = [&[0, 0, 0, 3][..], &option(option::LIST, &[]).repeat(50)].concat();
        let mut sent = 0;
        for byte in bytes {
            if client.end.write(&[byte]).await.is_err() {
                break;
            }
            sent += 1;
            rt.sleep(Duration::from_millis(500)).await;
        }
        assert!((29..=31).contains(&sent), "{sent}");
    });
}
