//! Servers that keep the protocol, in all the ways it allows.

use super::*;
use varve_block::sync::{join, poll_once};

/// Runs `f` with a device whose server agreed to `offer` and then does what `server` says.
fn with<S, F>(
    offer: Offer,
    server: impl Fn(Peer) -> S + Copy + 'static,
    f: impl Fn(NbdDevice) -> F + Copy + 'static,
) where
    S: Future<Output = Peer> + 'static,
    F: Future<Output = ()> + 'static,
{
    for seed in 0..4 {
        world(seed).run(move |rt| async move {
            let (peer, stream) = pair();
            let serving = rt.spawn(async move {
                peer.agree(offer).await;
                server(peer).await
            });
            f(open(&rt, stream).await.expect("it is granted")).await;
            drop(serving.await);
        });
    }
}

#[test]
fn chunks_come_in_any_order_and_holes_are_zeroes() {
    let server = |peer: Peer| async move {
        let (kind, _, cookie, offset, length) = peer.request().await;
        assert_eq!((kind, offset, length), (command::READ, 512, 2048));
        peer.say(&data(0, cookie, 2048, &[3; 512])).await;
        peer.say(&hole(0, cookie, 1024, 1024)).await;
        peer.say(&data(0, cookie, 512, &[1; 512])).await;
        peer.say(&chunk(0, CHUNK_DONE, cookie, &[])).await;
        peer
    };
    with(offer(true), server, |device| async move {
        let read = device.read(Sector(1), buf(4).await).await.expect("it is all there");
        assert_eq!(read[..], [[1; 512], [0; 512], [0; 512], [3; 512]].concat());
    });
}

#[test]
fn an_error_behind_data_is_an_error_and_the_connection_goes_on() {
    let server = |peer: Peer| async move {
        let (_, _, cookie, offset, _) = peer.request().await;
        peer.say(&data(0, cookie, offset, &[3; 512])).await;
        let at = 512_u64.to_be_bytes();
        peer.say(&error(0x8002, 0, cookie, 5, "bad\nsector", &at)).await;
        peer.say(&error(0x8001, 0, cookie, 28, "and more", &[])).await;
        peer.say(&chunk(0, CHUNK_DONE, cookie, &[])).await;
        let (_, _, cookie, ..) = peer.request().await;
        peer.say(&error(0x80FF, CHUNK_DONE, cookie, 99, "", b"of the future")).await;
        let (_, _, cookie, ..) = peer.request().await;
        peer.say(&hole(CHUNK_DONE, cookie, 0, 512)).await;
        peer
    };
    with(offer(true), server, |device| async move {
        let error = device.read(Sector(0), buf(2).await).await.map(drop).expect_err("EIO");
        let says = "read sector 0+2 on nbd://test/disk: I/O error: the server says EIO: bad sector";
        assert_eq!((told(&error).as_str(), error.kind), (says, ErrorKind::Io));
        let error = device.read(Sector(0), buf(2).await).await.map(drop).expect_err("error 99");
        assert!(told(&error).ends_with("the server says error 99"), "{}", told(&error));
        assert_eq!(device.read(Sector(0), buf(1).await).await.expect("zeroes")[..], [0; 512]);
    });
}

#[test]
fn simple_replies_come_in_any_order() {
    let server = |peer: Peer| async move {
        let (.., first, one, _) = peer.request().await;
        let (.., second, two, _) = peer.request().await;
        for (cookie, offset) in [(second, two), (first, one)] {
            let fill = u8::try_from(offset / 512).unwrap();
            peer.say(&[simple(0, cookie), vec![fill; 512]].concat()).await;
        }
        let (.., cookie, _, _) = peer.request().await;
        peer.say(&simple(5, cookie)).await;
        peer
    };
    with(offer(false), server, |device| async move {
        let (one, two) = (buf(1).await, buf(1).await);
        let (one, two) = join(device.read(Sector(4), one), device.read(Sector(9), two)).await;
        assert_eq!((one.unwrap()[0], two.unwrap()[511]), (4, 9));
        let error = device.read(Sector(0), buf(1).await).await.map(drop).expect_err("EIO");
        assert!(told(&error).ends_with("the server says EIO"));
    });
}

#[test]
fn an_old_server_grants_by_name_and_says_no_block_sizes() {
    let old = Offer { by_name: true, size: SIZE + 100, ..offer(false) };
    let server = |peer: Peer| async move { peer };
    with(old, server, |device| async move {
        let geometry = device.geometry();
        assert_eq!(geometry.len, Sectors(SIZE / 512), "the ragged end is left away");
        assert_eq!((geometry.block, geometry.preferred), (Sectors(1), Sectors(8)));
    });
}

#[test]
fn requests_keep_to_the_servers_block_sizes() {
    let picky = Offer { sizes: Some([4096, 8192, 12288]), ..offer(true) };
    let server = |peer: Peer| async move {
        let mut seen = Vec::new();
        for _ in 0..3 {
            let (_, _, cookie, offset, length) = peer.request().await;
            assert!(offset.is_multiple_of(4096) && length <= 12288);
            seen.push((offset, length));
            let fill = u8::try_from(offset / 4096).unwrap();
            peer.say(&data(CHUNK_DONE, cookie, offset, &vec![fill; length as usize])).await;
        }
        assert_eq!(seen, [(4096, 12288), (16384, 12288), (28672, 4096)]);
        let (kind, .., length) = peer.request().await;
        assert_eq!((kind, length), (command::TRIM, 1 << 20), "no data, no limit");
        peer
    };
    with(picky, server, |device| async move {
        let geometry = device.geometry();
        assert_eq!((geometry.block, geometry.preferred), (Sectors(8), Sectors(16)));
        let odd = device.read(Sector(1), buf(8).await).await.map(drop).expect_err("misaligned");
        assert_eq!(odd.kind, ErrorKind::Misaligned);
        let read = device.read(Sector(8), buf(56).await).await.expect("in three pieces");
        assert_eq!([read[0], read[12287], read[12288], read[28671]], [1, 1, 4, 7]);
        let _ = device.discard(extent(0, 2048)).await;
    });
}

#[test]
fn flags_are_as_the_server_knows_them() {
    let server = |peer: Peer| async move {
        let zero = CommandFlags::FUA | CommandFlags::NO_HOLE;
        for (command, flags) in [
            (command::WRITE, CommandFlags::FUA),
            (command::WRITE_ZEROES, zero),
            (command::WRITE_ZEROES, CommandFlags::empty()),
            (command::FLUSH, CommandFlags::empty()),
        ] {
            let (kind, got, cookie, ..) = peer.request().await;
            assert_eq!((kind, got), (command, flags.bits()));
            peer.say(&simple(0, cookie)).await;
        }
        peer
    };
    with(offer(true), server, |device| async move {
        let data = buf(2).await.into();
        device.write(Sector(3), data, Durability::Fua).await.expect("written");
        let fua = Zero { durability: Durability::Fua, ..Zero::default() };
        device.write_zeroes(extent(0, 8), fua).await.expect("zeroed");
        let hole = Zero { may_unmap: true, ..Zero::default() };
        device.write_zeroes(extent(0, 8), hole).await.expect("zeroed");
        let fast = Zero { only_if_fast: true, ..Zero::default() };
        let slow = device.write_zeroes(extent(0, 8), fast).await.expect_err("not offered");
        assert_eq!(slow.kind, ErrorKind::Unsupported);
        device.flush().await.expect("flushed");
    });
}

#[test]
fn a_server_without_fua_and_zeroes_gets_a_flush_and_bytes() {
    use TransmissionFlags as F;
    let poor = Offer { flags: F::HAS_FLAGS | F::SEND_FLUSH, ..offer(false) };
    let server = |peer: Peer| async move {
        for command in [command::WRITE, command::FLUSH, command::WRITE, command::FLUSH] {
            let (kind, flags, cookie, ..) = peer.request().await;
            assert_eq!((kind, flags), (command, 0));
            peer.say(&simple(0, cookie)).await;
        }
        peer
    };
    with(poor, server, |device| async move {
        device.write(Sector(3), buf(2).await.into(), Durability::Fua).await.expect("written");
        let fua = Zero { durability: Durability::Fua, ..Zero::default() };
        device.write_zeroes(extent(0, 8), fua).await.expect("zeroed");
        let refused = device.discard(extent(0, 8)).await.expect_err("not offered");
        assert_eq!(refused.kind, ErrorKind::Unsupported);
    });
}

#[test]
fn extents_are_the_servers_where_it_has_them() {
    let server = |peer: Peer| async move {
        let (kind, flags, cookie, offset, length) = peer.request().await;
        assert_eq!((kind, flags, offset, length), (command::BLOCK_STATUS, 0, 512, 4096));
        peer.say(&status(CHUNK_DONE, cookie, 7, &[(1024, 3), (512, 0), (1 << 20, 1)])).await;
        let (_, flags, cookie, ..) = peer.request().await;
        assert_eq!(flags, CommandFlags::REQ_ONE.bits());
        peer.say(&status(CHUNK_DONE, cookie, 7, &[(512, 2)])).await;
        peer
    };
    with(offer(true), server, |device| async move {
        let runs = device.extents(extent(1, 8), 9).await.expect("three runs");
        let runs: Vec<_> = runs.iter().map(|r| (r.range, r.hole, r.zero)).collect();
        let (first, second) = ((extent(1, 2), true, true), (extent(3, 1), false, false));
        assert_eq!(runs, [first, second, (extent(4, 5), true, false)]);
        let one = device.extents(extent(1, 8), 1).await.expect("one run");
        assert_eq!((one.len(), one[0].range, one[0].zero), (1, extent(1, 1), true));
    });
    let server = |peer: Peer| async move { peer };
    with(offer(false), server, |device| async move {
        let runs = device.extents(extent(1, 8), 9).await.expect("all of it is data");
        assert_eq!((runs.len(), runs[0].range, runs[0].hole), (1, extent(1, 8), false));
    });
}

#[test]
fn a_dropped_read_keeps_its_buffer_until_its_reply_has_come() {
    world(7).run(|rt| async move {
        let (peer, stream) = pair();
        let serving = rt.spawn(async move {
            peer.agree(offer(true)).await;
            peer
        });
        let device = open(&rt, stream).await.expect("it is granted");
        let peer = serving.await;
        let pool = BufPool::new(0);
        let mut reading = Box::pin(device.read(Sector(0), pool.take(Sectors(8)).await));
        assert!(poll_once(reading.as_mut()).is_pending());
        drop(reading);
        assert_eq!((device.link().in_flight(), pool.lent()), (1, 4096));
        let (_, _, cookie, ..) = peer.request().await;
        peer.say(&data(CHUNK_DONE, cookie, 0, &[5; 4096])).await;
        let next = device.read(Sector(8), buf(1).await);
        let answer = async {
            let (_, _, cookie, ..) = peer.request().await;
            peer.say(&hole(CHUNK_DONE, cookie, 4096, 512)).await;
        };
        let (next, ()) = join(next, answer).await;
        assert_eq!(next.expect("the stream is in step")[..], [0; 512]);
        assert_eq!((device.link().in_flight(), pool.lent()), (0, 0));
    });
}

#[test]
fn requests_in_flight_are_bounded_and_a_goodbye_is_the_last_word() {
    world(8).run(|rt| async move {
        let (peer, stream) = pair();
        let serving = rt.spawn(async move {
            peer.agree(offer(true)).await;
            peer
        });
        let device = Rc::new(open(&rt, stream).await.expect("it is granted"));
        let peer = serving.await;
        let reads: Vec<_> = (0..200)
            .map(|n| {
                let device = Rc::clone(&device);
                rt.spawn(async move { device.read(Sector(n), buf(1).await).await.map(drop) })
            })
            .collect();
        for _ in 0..200 {
            assert!(device.link().in_flight() <= 64);
            let (_, _, cookie, offset, _) = peer.request().await;
            peer.say(&hole(CHUNK_DONE, cookie, offset, 512)).await;
        }
        for read in reads {
            read.await.expect("answered");
        }
        let end = device.lost();
        drop(device);
        assert_eq!(end.await, None);
        assert_eq!(peer.request().await.0, command::DISC);
        assert_eq!(peer.stream.recv(buf(1).await, 0..1).await.map(|r| r.0).unwrap_or(0), 0);
    });
}

#[test]
fn a_failed_flush_is_final() {
    let server = |peer: Peer| async move {
        for errno in [5, 0] {
            let (_, _, cookie, _, length) = peer.request().await;
            peer.say(&[simple(errno, cookie), vec![1; length as usize]].concat()).await;
        }
        peer
    };
    with(offer(false), server, |device| async move {
        assert_eq!(device.flush().await.expect_err("EIO").kind, ErrorKind::Io);
        assert_eq!(device.flush().await.expect_err("again").kind, ErrorKind::Poisoned);
        let write = device.write(Sector(0), buf(1).await.into(), Durability::Cached).await;
        assert_eq!(write.map(drop).expect_err("too").kind, ErrorKind::Poisoned);
        assert_eq!(device.read(Sector(0), buf(1).await).await.expect("reads go on")[0], 1);
    });
}

/// Of a write that has to be durable: which failures are the flush's.
#[test]
fn a_failed_fua_write_poisons_unless_the_server_refused_to_begin() {
    for (answers, poisons) in [
        (vec![5], true),
        (vec![1], false),
        (vec![108], false),
        // No room: without the flush there is none either, or there is.
        (vec![28, 28], false),
        (vec![28, 0], true),
    ] {
        world(9).run(|rt| async move {
            let (peer, stream) = pair();
            let serving = rt.spawn(async move {
                peer.agree(offer(false)).await;
                for errno in answers {
                    let (kind, _, cookie, ..) = peer.request().await;
                    assert_eq!(kind, command::WRITE);
                    peer.say(&simple(errno, cookie)).await;
                }
                peer
            });
            let device = open(&rt, stream).await.expect("it is granted");
            let write = device.write(Sector(0), buf(1).await.into(), Durability::Fua).await;
            assert_ne!(write.map(drop).expect_err("it failed").kind, ErrorKind::Poisoned);
            let peer = serving.await;
            let mut flush = Box::pin(device.flush());
            let poisoned = match poll_once(flush.as_mut()) {
                std::task::Poll::Ready(flushed) => flushed.is_err(),
                std::task::Poll::Pending => false,
            };
            assert_eq!(poisoned, poisons);
            drop(peer);
        });
    }
}

#[test]
fn a_connection_that_is_lost_with_writes_not_flushed_poisons() {
    for flushed in [false, true] {
        world(10).run(move |rt| async move {
            let (peer, stream) = pair();
            let serving = rt.spawn(async move {
                peer.agree(offer(false)).await;
                for _ in 0..1 + usize::from(flushed) {
                    let (_, _, cookie, ..) = peer.request().await;
                    peer.say(&simple(0, cookie)).await;
                }
                peer.request().await;
            });
            let device = open(&rt, stream).await.expect("it is granted");
            let end = device.lost();
            let data = buf(1).await.into();
            device.write(Sector(0), data, Durability::Cached).await.expect("written");
            if flushed {
                device.flush().await.expect("flushed");
            }
            let lost = device.read(Sector(0), buf(1).await).await.map(drop).expect_err("gone");
            assert_eq!(lost.kind, ErrorKind::Io);
            serving.await;
            let write = device.write(Sector(0), buf(1).await.into(), Durability::Cached).await;
            let kind = if flushed { ErrorKind::Io } else { ErrorKind::Poisoned };
            let error = write.map(drop).expect_err("gone");
            assert_eq!(error.kind, kind);
            let why = "the server closed the connection";
            assert!(told(&error).ends_with(why));
            drop(device);
            assert_eq!(end.await.as_deref(), Some(why));
        });
    }
}

#[test]
fn an_export_that_may_only_be_read_is_opened_for_reading() {
    let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY;
    let locked = Offer { flags, ..offer(true) };
    for read_only in [false, true] {
        world(11).run(move |rt| async move {
            let (peer, stream) = pair();
            let serving = rt.spawn(async move {
                peer.agree(locked).await;
                peer
            });
            let options = NbdOptions { read_only, ..NbdOptions::default() };
            match open_with(&rt, stream, options).await {
                Ok(device) => {
                    assert!(read_only && device.geometry().read_only);
                    device.flush().await.expect("there is nothing to flush");
                    let write = device.write(Sector(0), buf(1).await.into(), Durability::Cached);
                    let refused = write.await.map(drop).expect_err("read-only");
                    assert_eq!(refused.kind, ErrorKind::ReadOnly);
                }
                Err(error) => {
                    assert!(!read_only);
                    assert_eq!(error.kind, ErrorKind::ReadOnly);
                }
            }
            drop(serving.await);
        });
    }
}

#[test]
fn names_are_sent_as_they_are() {
    world(12).run(|rt| async move {
        let (peer, stream) = pair();
        let serving = rt.spawn(async move {
            peer.say(&greeting(1)).await;
            assert_eq!(peer.hear(4).await, [0, 0, 0, 1], "no flag that was not offered");
            peer.hear(16).await;
            peer.say(&reply(option::STRUCTURED_REPLY, Rep::ErrUnsup as u32, &[])).await;
            let data = [string(b"disk"), vec![0, 1, 0, 3]].concat();
            assert_eq!(peer.hear(16 + data.len()).await[16..], data);
            peer.say(&reply(option::GO, Rep::ErrUnsup as u32, &[])).await;
            assert_eq!(peer.hear(20).await[16..], *b"disk");
            let facts = export(SIZE, TransmissionFlags::HAS_FLAGS);
            peer.say(&[&facts[2..], &[0; EXPORT_NAME_PADDING]].concat()).await;
            let (_, _, cookie, ..) = peer.request().await;
            peer.say(&[simple(0, cookie), vec![4; 512]].concat()).await;
            peer
        });
        let options = NbdOptions { read_only: true, ..NbdOptions::default() };
        let device = open_with(&rt, stream, options).await.expect("granted by name");
        assert_eq!(device.read(Sector(0), buf(1).await).await.expect("in step")[0], 4);
        drop(serving.await);
    });
}
