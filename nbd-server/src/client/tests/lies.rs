//! Servers that break the protocol: each lie, one row, its error; never a panic, never a hang.

use super::*;
use std::time::Duration;

const GO: u32 = option::GO;
const INFO: u32 = Rep::Info as u32;

/// Behind a greeting: structured replies are refused, then this to `GO`.
fn go(answers: &[u8]) -> Vec<u8> {
    [greeting(3), reply(option::STRUCTURED_REPLY, Rep::ErrUnsup as u32, b""), answers.to_vec()]
        .concat()
}

fn handshakes() -> Vec<(Vec<u8>, &'static str)> {
    let fine = export(SIZE, offer(false).flags);
    let ack = reply(GO, Rep::Ack as u32, &[]);
    let info = |data: &[u8]| reply(GO, INFO, data);
    let sizes = |sizes| go(&[info(&fine), info(&block_size(sizes)), ack.clone()].concat());
    let mut old = greeting(3);
    old[8..16].copy_from_slice(&OLD_STYLE_MAGIC.to_be_bytes());
    let mut other = greeting(3);
    other[9] ^= 1;
    let mut magic = reply(GO, Rep::Ack as u32, &[]);
    magic[0] ^= 1;
    let mut long = reply(GO, INFO, &[]);
    long[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
    let structured = [greeting(3), reply(option::STRUCTURED_REPLY, 1, &[])].concat();
    let context = |name: &[u8]| {
        let granted = [&1_u32.to_be_bytes(), name].concat();
        let granted = reply(option::SET_META_CONTEXT, Rep::MetaContext as u32, &granted);
        [structured.clone(), granted].concat()
    };
    let two = [context(b"base:allocation"), context(b"base:allocation")[38..].to_vec()].concat();
    vec![
        (b"HTTP/1.1 400 Bad Request".to_vec(), "no NBD server"),
        (old, "old-style"),
        (other, "no negotiation there is"),
        (greeting(0), "fixed newstyle"),
        (greeting(3)[..17].to_vec(), "closed the connection in the middle"),
        (Vec::new(), "closed the connection"),
        (go(&magic), "an option reply begins with 0x0103e889045565a9"),
        (go(&reply(GO + 1, 1, &[])), "option 7 is answered as option 8"),
        (go(&long), "option 7 is answered by 4294967295 bytes"),
        (go(&info(&[0, 3]).repeat(1)), "block size information of 2 bytes"),
        (go(&info(&[0])), "nameless information of 1 bytes"),
        (go(&info(&fine[..11])), "export information of 11 bytes"),
        (go(&info(&[0, 1]).repeat(64)), "option 7 is answered without end"),
        (go(&[info(&fine), info(&fine)].concat()), "export information comes twice"),
        (go(&ack), "granted without its size"),
        (go(&reply(GO, 2, &[])), "option 7 is answered by type 2"),
        (go(&[info(&export(u64::MAX, offer(false).flags)), ack.clone()].concat()), "an export of"),
        (
            go(&[info(&export(SIZE, TransmissionFlags::SEND_FUA)), ack.clone()].concat()),
            "do not say that they are flags",
        ),
        (sizes([3, 4096, 1 << 20]), "block sizes 3, 4096, 1048576 cannot be"),
        (sizes([4096, 512, 1 << 20]), "cannot be"),
        (sizes([512, 4096, 1024]), "cannot be"),
        (sizes([1 << 20, 1 << 20, 1 << 20]), "cannot be"),
        (sizes([65536, 65536, 1 << 20]), "moves at least 65536"),
        (sizes([1, 1, 511]), "at most 511 bytes"),
        (context(b"base:other"), "nobody asked for"),
        (two, "nobody asked for"),
        (go(&reply(GO, Rep::ErrTlsReqd as u32, b"")), "asks for TLS"),
        (go(&reply(GO, Rep::ErrUnknown as u32, b"no\n\x1bdisk")), "no such export: no  disk"),
        (go(&reply(GO, Rep::ErrShutdown as u32, b"")), "going down"),
        (go(&reply(GO, Rep::ErrPolicy as u32, b"not you")), "(0x80000002): not you"),
        (go(&reply(GO, Rep::ErrUnsup as u32, b"")), "may have none of this name"),
    ]
}

#[test]
fn a_handshake_that_lies_says_which_lie() {
    for (seed, (bytes, says)) in (0..).zip(handshakes()) {
        let error = world(seed).run(move |rt| async move {
            let (peer, stream) = pair();
            peer.say(&bytes).await;
            peer.stream.shutdown_send();
            let opened = open(&rt, stream).await.map(drop);
            opened.expect_err(says)
        });
        let told = told(&error);
        assert!(told.contains(says) && told.contains("nbd://test/disk"), "{told} / {says}");
    }
}

#[test]
fn a_server_that_never_answers_the_handshake_is_left() {
    for said in [Vec::new(), greeting(3), go(&[])] {
        world(1).run(|rt| async move {
            let (peer, stream) = pair();
            peer.say(&said).await;
            let error = open(&rt, stream).await.map(drop).expect_err("nobody granted it");
            assert!(told(&error).contains("did not grant the export within 15 seconds"));
            assert_eq!(rt.now().0 / 1_000_000_000, 15);
        });
    }
}

/// A request of the client: 1024 bytes at 512, or something without an answer of its own.
#[derive(Clone, Copy)]
enum Ask {
    Read,
    Flush,
    Status,
}

async fn ask(device: &NbdDevice, ask: Ask) -> varve_block::Result<()> {
    match ask {
        Ask::Read => device.read(Sector(1), buf(2).await).await.map(drop),
        Ask::Flush => device.flush().await,
        Ask::Status => device.extents(extent(1, 2), 8).await.map(drop),
    }
}

/// What a server of structured replies says to request 1; then it closes.
fn structured() -> Vec<(Ask, Vec<u8>, &'static str)> {
    use Ask::{Flush, Read, Status};
    let half = data(0, 1, 512, &[1; 512]);
    let both = |tail: Vec<u8>| [half.clone(), tail].concat();
    vec![
        (Read, vec![1, 2, 3, 4], "a reply begins with 0x01020304"),
        (Read, Vec::new(), "the server closed the connection"),
        (Read, half[..300].to_vec(), "in the middle of an answer"),
        (Read, simple(0, 1), "although structured ones were agreed on"),
        (Read, simple(0, 2), "cookie 2"),
        (Read, chunk(0, 1, u64::MAX, &[]), "cookie 18446744073709551615"),
        (Read, chunk(0, 3, 1, &[]), "unknown flags 0x0003"),
        (Read, chunk(0, 0, 1, &[]), "type 0 with 0 bytes"),
        (Read, chunk(0, 1, 1, &[9]), "type 0 with 1 bytes"),
        (Read, chunk(1, 1, 1, &[0; 8]), "type 1 with 8 bytes"),
        (Read, chunk(2, 1, 1, &[0; 11]), "type 2 with 11 bytes"),
        (Read, hole(1, 1, 512, 0), "type 2 with 0 bytes"),
        (Read, status(1, 1, 7, &[(512, 0)]), "type 5 answers a read"),
        (Read, chunk(77, 1, 1, &[]), "type 77 answers a read"),
        (Read, data(1, 1, 511, &[1; 512]), "511+512 answers a read of 512+1024"),
        (Read, data(1, 1, 1025, &[1; 512]), "1025+512 answers a read of"),
        (Read, data(1, 1, u64::MAX, &[1; 2]), "answers a read of"),
        (Read, hole(1, 1, 512, u32::MAX), "512+4294967295 answers a read of"),
        (Read, both(data(1, 1, 1023, &[1; 10])), "byte 1023 comes twice"),
        (Read, both(hole(1, 1, 512, 512)), "byte 512 comes twice"),
        (Read, both(chunk(0, 1, 1, &[])), "ends without byte 1024"),
        (Read, data(1, 1, 1024, &[1; 512]), "ends without byte 512"),
        (Read, chunk(0, 1, 1, &[]), "ends without byte 512"),
        (Read, error(0x8001, 1, 1, 0, "", &[]), "an error chunk without an error"),
        (Read, error(0x8001, 1, 1, 5, "", &[1]), "type 32769 with 7 bytes"),
        (Read, error(0x8002, 1, 1, 5, "ab", &[1; 7]), "type 32770 with 15 bytes"),
        (Read, chunk(0x8001, 1, 1, &[0, 0, 0, 5]), "type 32769 with 4 bytes"),
        (Read, chunk(0x8001, 1, 1, &[0, 0, 0, 5, 255, 255]), "type 32769 with 6 bytes"),
        (Read, chunk(0x8001, 1, 1, &[1; 5000]), "type 32769 with 5000 bytes"),
        (Read, error(0x8001, 0, 1, 5, "", &[]).repeat(65), "in too many pieces"),
        (Flush, data(1, 1, 0, &[1; 512]), "answers a request without an answer of its own"),
        (Status, simple(0, 1), "without any extent"),
        (Status, chunk(0, 1, 1, &[]), "without any extent"),
        (Status, status(1, 1, 7, &[]), "type 5 with 4 bytes"),
        (Status, chunk(5, 1, 1, &[0; 13]), "type 5 with 13 bytes"),
        (Status, status(1, 1, 8, &[(512, 0)]), "metadata context 8"),
        (Status, status(1, 1, 7, &[(512, 0), (0, 0)]), "an extent of no length"),
        (Status, status(1, 1, 7, &[(1024, 0), (1, 0)]), "behind what was asked about"),
        (Status, status(0, 1, 7, &[(512, 0)]).repeat(2), "two lists"),
        (Status, data(1, 1, 512, &[1; 512]), "answers a question about block status"),
    ]
}

/// The same for a server of simple replies.
fn plain() -> Vec<(Ask, Vec<u8>, &'static str)> {
    use Ask::{Flush, Read};
    vec![
        (Read, data(1, 1, 512, &[1; 1024]), "although none were agreed on"),
        (Read, simple(0, 1), "in the middle of an answer"),
        (Read, [simple(0, 1), vec![0; 1023]].concat(), "in the middle of an answer"),
        (Flush, simple(0, 0), "cookie 0"),
        (Flush, simple(0, 1)[..9].to_vec(), "in the middle of an answer"),
    ]
}

#[test]
fn a_reply_that_lies_ends_the_connection_and_says_which_lie() {
    let rows = structured().into_iter().map(|row| (true, row));
    let rows = rows.chain(plain().into_iter().map(|row| (false, row)));
    for (seed, (is_structured, (asked, bytes, says))) in (0..).zip(rows) {
        world(seed).run(move |rt| async move {
            let (peer, stream) = pair();
            let server = rt.spawn(async move {
                peer.agree(offer(is_structured)).await;
                peer.request().await;
                peer.say(&bytes).await;
                peer.stream.shutdown_send();
                peer
            });
            let device = open(&rt, stream).await.expect("it is granted");
            let error = ask(&device, asked).await.expect_err(says);
            let first = told(&error);
            assert!(first.contains(says), "{first} / {says}");
            assert!(first.contains("nbd://test/disk"), "{first}");
            assert_eq!(device.link().in_flight(), 0);
            // Nothing more goes over it, and everybody hears why.
            for again in [Ask::Read, Ask::Flush] {
                let error = ask(&device, again).await.expect_err("the connection is gone");
                assert!(told(&error).contains(says), "{} / {says}", told(&error));
            }
            drop(server.await);
        });
    }
}

#[test]
fn chunks_that_never_join_are_bounded() {
    world(3).run(|rt| async move {
        let (peer, stream) = pair();
        let server = rt.spawn(async move {
            peer.agree(offer(true)).await;
            let (_, _, cookie, offset, _) = peer.request().await;
            // Every other byte: 4096 stretches for a request of 8192 bytes.
            for n in 0..4096 {
                peer.say(&data(0, cookie, offset + 2 * n, &[1])).await;
            }
            peer
        });
        let device = open(&rt, stream).await.expect("it is granted");
        let error = device.read(Sector(0), buf(16).await).await.map(drop).expect_err("too many");
        assert!(told(&error).contains("in too many pieces"), "{}", told(&error));
        drop(server.await);
    });
}

#[test]
fn a_server_that_owes_an_answer_and_is_silent_is_left() {
    for begun in [Vec::new(), simple(0, 1)[..7].to_vec(), data(1, 1, 512, &[0; 1024])[..99].into()]
    {
        world(2).run(|rt| async move {
            let (peer, stream) = pair();
            let server = rt.spawn(async move {
                peer.agree(offer(true)).await;
                peer.request().await;
                peer.say(&begun).await;
                peer
            });
            let device = open(&rt, stream).await.expect("it is granted");
            // Silence is no fault while nothing is owed.
            rt.sleep(Duration::from_secs(5000)).await;
            let before = rt.now();
            let error = ask(&device, Ask::Read).await.expect_err("no answer");
            assert!(told(&error).contains("has said nothing for 300 seconds"), "{}", told(&error));
            assert!(rt.now() - before < Duration::from_secs(306));
            drop(server.await);
        });
    }
}

/// Frames that are nearly right, in any order, with bits that are wrong: every request ends.
#[test]
fn nearly_right_replies_end_every_request() {
    for seed in 0..400 {
        world(seed).run(move |rt| async move {
            let (peer, stream) = pair();
            let chance = rt.clone();
            let server = rt.spawn(async move {
                peer.agree(offer(seed % 4 != 0)).await;
                for _ in 0..3 {
                    peer.request().await;
                }
                let r = chance.prng();
                for _ in 0..r.below(12) {
                    let cookie = 1 + r.below(3);
                    let done = u16::from(r.chance(1, 2));
                    let at = 512 * (1 + r.below(2));
                    let mut frame = match r.below(7) {
                        0 => data(done, cookie, at, &vec![1; 512 * (1 + r.index(2))]),
                        1 => hole(done, cookie, at, 512),
                        2 => chunk(0, 1, cookie, &[]),
                        3 => error(0x8001, done, cookie, 5, "why", &[]),
                        4 => status(done, cookie, 7, &[(512, 0), (512, 3)]),
                        5 => [simple(0, cookie), vec![2; 1024]].concat(),
                        _ => simple(u32::from(r.chance(1, 2)) * 28, cookie),
                    };
                    if r.chance(1, 8) {
                        let at = r.index(frame.len());
                        frame[at] ^= 1 << r.below(8);
                    }
                    peer.say(&frame).await;
                }
                if r.chance(1, 2) {
                    peer.stream.shutdown_send();
                }
                peer
            });
            let device = Rc::new(open(&rt, stream).await.expect("it is granted"));
            let asks = [Ask::Read, Ask::Status, Ask::Read].map(|asked| {
                let device = Rc::clone(&device);
                rt.spawn(async move {
                    // Without structured replies there is no status to ask for.
                    let asked = if seed % 4 == 0 { Ask::Read } else { asked };
                    let _ = ask(&device, asked).await;
                })
            });
            for asked in asks {
                asked.await;
            }
            assert_eq!(device.link().in_flight(), 0);
            drop(server.await);
        });
    }
}
