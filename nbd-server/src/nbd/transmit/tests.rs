//! Each row of the catalogue of malformed requests that is decided by looking, by name; the rows
//! that need a device or a clock are tested with the server. Then what must hold for any bytes.

use super::super::testing::*;
use super::*;
use proptest::prelude::*;

const SIZE: u64 = 1 << 30;

fn plain() -> Transmission {
    Transmission::new(negotiate(&Shelf::new(), "disk", false))
}

fn structured() -> Transmission {
    Transmission::new(negotiate(&Shelf::new(), "disk", true))
}

fn read_only() -> Transmission {
    let mut shelf = Shelf::new();
    let flags = &mut shelf.exports[0].flags;
    flags.remove(
        TransmissionFlags::SEND_FUA
            | TransmissionFlags::SEND_TRIM
            | TransmissionFlags::SEND_WRITE_ZEROES
            | TransmissionFlags::SEND_FAST_ZERO,
    );
    flags.insert(TransmissionFlags::READ_ONLY);
    Transmission::new(negotiate(&shelf, "disk", true))
}

/// All events of a stream; payloads that belong to the caller are skipped here.
fn events(machine: &mut Transmission, bytes: &[u8], piece: usize) -> Vec<Event> {
    let mut all = Vec::new();
    let mut skip = 0;
    for part in bytes.chunks(piece) {
        let mut input = part;
        loop {
            let n = skip.min(input.len());
            skip -= n;
            input = &input[n..];
            if skip > 0 {
                break;
            }
            let Some(event) = machine.next(&mut input) else {
                break;
            };
            all.push(event);
            match event {
                Event::Execute(request) => skip = request.payload() as usize,
                Event::Refuse(_) => {}
                Event::Disconnect | Event::Close(_) => return all,
            }
        }
    }
    all
}

/// The verdict on one request, and proof that the stream is aligned behind it.
fn judge(mut machine: Transmission, raw: &[u8]) -> Result<Command, Errno> {
    let probe = request(0, command::READ, 77, 4096, 512);
    let events = events(&mut machine, &[raw, &probe].concat(), usize::MAX);
    let [first, second] = events[..] else { panic!("{events:?}") };
    let Event::Execute(after) = second else { panic!("out of step: {second:?}") };
    assert_eq!((after.cookie, after.offset, after.length), (77, 4096, 512));
    match first {
        Event::Execute(request) => {
            assert_eq!(request.cookie, 5);
            Ok(request.command)
        }
        Event::Refuse(refusal) => {
            assert_eq!(refusal.cookie, 5);
            assert!(!refusal.text.is_empty());
            Err(refusal.error)
        }
        other => panic!("{other:?}"),
    }
}

fn req(flags: CommandFlags, kind: u16, offset: u64, length: u32) -> Vec<u8> {
    let mut raw = request(flags.bits(), kind, 5, offset, length);
    if kind == command::WRITE {
        raw.resize(raw.len() + length as usize, 0xee);
    }
    raw
}

fn bare(kind: u16, offset: u64, length: u32) -> Vec<u8> {
    req(CommandFlags::empty(), kind, offset, length)
}

fn close(mut machine: Transmission, raw: &[u8]) -> Close {
    match events(&mut machine, raw, usize::MAX)[..] {
        [Event::Close(why)] => why,
        ref other => panic!("{other:?}"),
    }
}

// ---- Section 8 of the specification, second table, row by row. ----

#[test]
fn bad_request_magic_closes() {
    let mut raw = bare(command::READ, 0, 512);
    raw[3] ^= 1;
    assert_eq!(close(plain(), &raw), Close::BadMagic(0x2560_9512));
    // The magics of other protocols and other modes are no better.
    for magic in [0x1256_0953_u32, 0x21e4_1c71, 0x2560_9514] {
        raw[..4].copy_from_slice(&magic.to_be_bytes());
        assert_eq!(close(structured(), &raw), Close::BadMagic(magic));
    }
}

const OUTSIDE: [(u64, u32); 5] = [
    (SIZE, 512),
    (SIZE - 512, 1024),
    (u64::MAX - 511, 512),
    (u64::MAX, u32::MAX >> 6),
    (SIZE + 1, 0),
];

#[test]
fn read_past_the_end_straddling_or_near_two_to_the_64_is_einval() {
    for (offset, length) in OUTSIDE {
        let verdict = judge(plain(), &bare(command::READ, offset, length));
        assert_eq!(verdict, Err(Errno::Inval), "{offset}+{length}");
    }
}

#[test]
fn write_and_write_zeroes_past_the_end_are_enospc() {
    for (offset, length) in OUTSIDE {
        for kind in [command::WRITE, command::WRITE_ZEROES] {
            let verdict = judge(plain(), &bare(kind, offset, length));
            assert_eq!(verdict, Err(Errno::NoSpc), "{kind}: {offset}+{length}");
        }
    }
}

#[test]
fn trim_cache_and_block_status_past_the_end_are_einval() {
    for (offset, length) in OUTSIDE {
        for kind in [command::TRIM, command::CACHE, command::BLOCK_STATUS] {
            let verdict = judge(structured(), &bare(kind, offset, length));
            assert_eq!(verdict, Err(Errno::Inval), "{kind}: {offset}+{length}");
        }
    }
}

#[test]
fn zero_length_is_valid_for_everything_but_block_status() {
    for offset in [0, 1, SIZE] {
        for kind in [0, 1, 4, 5, 6] {
            assert!(judge(structured(), &bare(kind, offset, 0)).is_ok(), "{kind} at {offset}");
        }
    }
}

#[test]
fn block_status_of_length_zero_is_einval() {
    assert_eq!(judge(structured(), &bare(command::BLOCK_STATUS, 0, 0)), Err(Errno::Inval));
}

#[test]
fn read_at_offset_1_length_3_is_valid() {
    let verdict = judge(plain(), &bare(command::READ, 1, 3));
    assert_eq!(verdict, Ok(Command::Read { whole: false }));
}

#[test]
fn read_of_40_mebibytes_is_valid() {
    assert!(judge(plain(), &bare(command::READ, 512, 40 << 20)).is_ok());
}

#[test]
fn read_of_all_ones_is_einval_as_a_simple_reply() {
    let mut shelf = Shelf::new();
    shelf.exports[0].size = 1 << 40;
    let machine = |structured| Transmission::new(negotiate(&shelf, "disk", structured));
    let raw = bare(command::READ, 0, u32::MAX);
    assert_eq!(judge(machine(false), &raw), Err(Errno::Inval));
    // Chunks can carry it; one chunk cannot.
    assert_eq!(judge(machine(true), &raw), Ok(Command::Read { whole: false }));
    let whole = req(CommandFlags::DF, command::READ, 0, u32::MAX);
    assert_eq!(judge(machine(true), &whole), Err(Errno::Overflow));
}

#[test]
fn df_without_structured_replies_is_einval() {
    let raw = req(CommandFlags::DF, command::READ, 0, 512);
    assert_eq!(judge(plain(), &raw), Err(Errno::Inval));
    assert_eq!(judge(structured(), &raw), Ok(Command::Read { whole: true }));
}

#[test]
fn fua_on_read_and_flush_is_valid() {
    let fua = |kind, length| judge(plain(), &req(CommandFlags::FUA, kind, 0, length));
    assert_eq!(fua(command::READ, 512), Ok(Command::Read { whole: false }));
    assert_eq!(fua(command::FLUSH, 0), Ok(Command::Flush));
    assert_eq!(fua(command::CACHE, 512), Ok(Command::Cache));
    assert_eq!(fua(command::WRITE, 512), Ok(Command::Write { fua: true }));
    assert_eq!(fua(command::TRIM, 512), Ok(Command::Trim { fua: true }));
}

#[test]
fn flags_on_the_wrong_command_are_einval_and_the_stream_stays_aligned() {
    use CommandFlags as F;
    let wrong: [(F, &[u16]); 4] = [
        (F::NO_HOLE, &[0, 1, 3, 4, 5, 7]),
        (F::REQ_ONE, &[0, 1, 3, 4, 5, 6]),
        (F::DF, &[1, 3, 4, 5, 6, 7]),
        (F::FAST_ZERO, &[0, 1, 3, 4, 5, 7]),
    ];
    for (flag, kinds) in wrong {
        for &kind in kinds {
            let length = if kind == command::FLUSH { 0 } else { 512 };
            let verdict = judge(structured(), &req(flag, kind, 0, length));
            assert_eq!(verdict, Err(Errno::Inval), "{flag:?} on {kind}");
        }
    }
}

#[test]
fn unknown_flag_bits_are_einval() {
    for bit in 6..16 {
        let flag = CommandFlags::from_bits_retain(1 << bit);
        for kind in [0, 4, 5, 6, 7] {
            assert_eq!(judge(structured(), &req(flag, kind, 0, 512)), Err(Errno::Inval));
        }
    }
}

#[test]
fn payload_len_without_extended_headers_is_einval() {
    for kind in [0, 1, 4, 5, 6, 7] {
        let raw = req(CommandFlags::PAYLOAD_LEN, kind, 0, 512);
        assert_eq!(judge(structured(), &raw), Err(Errno::Inval), "{kind}");
    }
}

#[test]
fn write_with_unknown_flag_is_einval_and_its_payload_eaten() {
    for length in [0, 1, 511, 70_000] {
        let raw = req(CommandFlags::from_bits_retain(0x8000), command::WRITE, 0, length);
        assert_eq!(judge(plain(), &raw), Err(Errno::Inval));
    }
}

#[test]
fn write_of_33_mebibytes_is_valid() {
    let raw = bare(command::WRITE, 512, 33 << 20);
    assert_eq!(judge(plain(), &raw), Ok(Command::Write { fua: false }));
}

#[test]
fn write_beyond_the_maximum_payload_is_eaten_and_einval() {
    let raw = bare(command::WRITE, 0, (64 << 20) + 1);
    assert_eq!(judge(plain(), &raw), Err(Errno::Inval));
}

#[test]
fn write_of_length_all_ones_closes() {
    let raw = request(0, command::WRITE, 5, 0, u32::MAX);
    assert_eq!(close(plain(), &raw), Close::PayloadTooLong(u32::MAX));
    let raw = request(0, command::WRITE, 5, 0, (128 << 20) + 1);
    assert_eq!(close(plain(), &raw), Close::PayloadTooLong((128 << 20) + 1));
}

#[test]
fn flush_with_offset_or_length_is_einval() {
    assert_eq!(judge(plain(), &bare(command::FLUSH, 512, 0)), Err(Errno::Inval));
    assert_eq!(judge(plain(), &bare(command::FLUSH, 0, 512)), Err(Errno::Inval));
    assert_eq!(judge(plain(), &bare(command::FLUSH, 0, 0)), Ok(Command::Flush));
}

#[test]
fn block_status_without_contexts_is_einval() {
    assert_eq!(judge(plain(), &bare(command::BLOCK_STATUS, 0, 512)), Err(Errno::Inval));
    let mut agreed = negotiate(&Shelf::new(), "disk", true);
    agreed.contexts.clear();
    let verdict = judge(Transmission::new(agreed), &bare(command::BLOCK_STATUS, 0, 512));
    assert_eq!(verdict, Err(Errno::Inval));
    let one = req(CommandFlags::REQ_ONE, command::BLOCK_STATUS, 0, 512);
    assert_eq!(judge(structured(), &one), Ok(Command::BlockStatus { one: true }));
}

#[test]
fn resize_and_unknown_commands_are_einval() {
    for kind in [8, 9, 4242, u16::MAX] {
        assert_eq!(judge(structured(), &bare(kind, 0, 512)), Err(Errno::Inval), "{kind}");
    }
}

#[test]
fn disc_with_nonzero_fields_is_disc() {
    for flags in [0, 1, u16::MAX] {
        let raw =
            [&request(flags, command::DISC, 9, 9, 9)[..], b"what follows is nobody's"].concat();
        let mut machine = plain();
        assert_eq!(events(&mut machine, &raw, 5), [Event::Disconnect]);
        // And that was the end, whatever else comes.
        assert_eq!(machine.next(&mut &b"more"[..]), Some(Event::Disconnect));
    }
}

#[test]
fn disc_right_behind_a_read_comes_after_it() {
    let raw = [bare(command::READ, 0, 512), request(0, command::DISC, 6, 0, 0)].concat();
    let events = events(&mut plain(), &raw, usize::MAX);
    assert!(matches!(events[..], [Event::Execute(_), Event::Disconnect]), "{events:?}");
}

#[test]
fn the_same_cookie_twice_is_two_requests() {
    let raw = [bare(command::READ, 0, 512), bare(command::READ, 512, 512)].concat();
    assert_eq!(events(&mut plain(), &raw, usize::MAX).len(), 2);
}

#[test]
fn half_a_header_and_an_eaten_payload_are_inside_a_frame() {
    let mut machine = read_only();
    assert!(!machine.inside_a_frame());
    let raw = bare(command::WRITE, 0, 512);
    assert_eq!(machine.next(&mut &raw[..14]), None);
    assert!(machine.inside_a_frame());
    assert_eq!(machine.next(&mut &raw[14..400]), None);
    assert!(machine.inside_a_frame());
    assert!(matches!(machine.next(&mut &raw[400..]), Some(Event::Refuse(_))));
    assert!(!machine.inside_a_frame());
}

// ---- The order of the checks and what negotiation changes. ----

#[test]
fn a_read_only_export_refuses_changes_with_eperm_before_looking_at_the_range() {
    for kind in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
        assert_eq!(judge(read_only(), &bare(kind, 0, 512)), Err(Errno::Perm));
        assert_eq!(judge(read_only(), &bare(kind, SIZE, 512)), Err(Errno::Perm));
        // FUA was not offered there, and the flags are looked at first.
        assert_eq!(judge(read_only(), &req(CommandFlags::FUA, kind, 0, 512)), Err(Errno::Inval));
    }
    assert!(judge(read_only(), &bare(command::FLUSH, 0, 0)).is_ok());
    assert!(judge(read_only(), &bare(command::CACHE, 0, 512)).is_ok());
}

#[test]
fn what_was_not_offered_is_einval() {
    let mut shelf = Shelf::new();
    shelf.exports[0].flags.remove(TransmissionFlags::SEND_TRIM | TransmissionFlags::SEND_FAST_ZERO);
    let machine = || Transmission::new(negotiate(&shelf, "disk", true));
    assert_eq!(judge(machine(), &bare(command::TRIM, 0, 512)), Err(Errno::Inval));
    let fast = req(CommandFlags::FAST_ZERO, command::WRITE_ZEROES, 0, 512);
    assert_eq!(judge(machine(), &fast), Err(Errno::Inval));
    let verdict = judge(structured(), &fast);
    let want = Command::WriteZeroes { fua: false, may_unmap: true, only_if_fast: true };
    assert_eq!(verdict, Ok(want));
    let keep = req(CommandFlags::NO_HOLE | CommandFlags::FUA, command::WRITE_ZEROES, 0, 512);
    let want = Command::WriteZeroes { fua: true, may_unmap: false, only_if_fast: false };
    assert_eq!(judge(machine(), &keep), Ok(want));
}

#[test]
fn strict_block_size_holds_only_those_who_asked_for_it() {
    let mut shelf = Shelf::new();
    shelf.exports[0].strict_block_size = true;
    let asked = negotiate(&shelf, "disk", true);
    let silent = Negotiated { block_size_asked: false, ..asked.clone() };
    for (offset, length) in [(1, 3), (0, 513), (256, 512)] {
        let raw = bare(command::READ, offset, length);
        assert_eq!(judge(Transmission::new(asked.clone()), &raw), Err(Errno::Inval));
        assert!(judge(Transmission::new(silent.clone()), &raw).is_ok());
    }
    assert!(judge(Transmission::new(asked.clone()), &bare(command::READ, 512, 1024)).is_ok());
    assert!(judge(Transmission::new(asked), &bare(command::FLUSH, 0, 0)).is_ok());
}

#[test]
fn a_stopping_server_answers_eshutdown_and_eats_payloads() {
    for raw in [bare(command::WRITE, 0, 4096), bare(command::READ, SIZE, 1), bare(4242, 0, 0)] {
        let mut machine = plain();
        machine.stop();
        let events = events(&mut machine, &[&raw[..], &raw].concat(), 1000);
        let refused = |e: &Event| matches!(e, Event::Refuse(r) if r.error == Errno::Shutdown);
        assert!(events.len() == 2 && events.iter().all(refused), "{events:?}");
    }
    let mut machine = plain();
    machine.stop();
    let bye = request(0, command::DISC, 0, 0, 0);
    assert_eq!(machine.next(&mut &bye[..]), Some(Event::Disconnect));
}

// ---- What must hold for any bytes. ----

fn any_request() -> impl Strategy<Value = Vec<u8>> {
    let offset = prop_oneof![0..SIZE, SIZE - 4096..SIZE + 4096, any::<u64>(), Just(u64::MAX),];
    let length = prop_oneof![0_u32..10_000, Just(1 << 20), Just(0)];
    let flags = prop_oneof![5 => Just(0_u16), 3 => 0_u16..64, 1 => any::<u16>()];
    let kind = prop_oneof![9 => 0_u16..9, 1 => any::<u16>()];
    (flags, kind, any::<u64>(), offset, length, 0_u8..50).prop_map(
        |(flags, kind, cookie, offset, length, luck)| {
            let mut raw = request(flags, kind, cookie, offset, length);
            if kind == command::WRITE {
                raw.resize(raw.len() + length as usize, 0x25);
            }
            if luck == 0 {
                raw[2] ^= 4;
            }
            raw
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn pieces_of_any_size_give_the_same_events(
        requests in proptest::collection::vec(any_request(), 0..12), piece in 1_usize..5000,
    ) {
        let bytes = requests.concat();
        let whole = events(&mut structured(), &bytes, usize::MAX);
        prop_assert_eq!(&whole, &events(&mut structured(), &bytes, piece));
        if bytes.len() < 100_000 {
            prop_assert_eq!(&whole, &events(&mut structured(), &bytes, 1));
        }
        let ended = |e: &Event| matches!(e, Event::Disconnect | Event::Close(_));
        // One event per request, or the end.
        match whole.last() {
            Some(last) if ended(last) => prop_assert!(whole.len() <= requests.len()),
            _ => prop_assert_eq!(whole.len(), requests.len()),
        }
        for (event, raw) in whole.iter().zip(&requests) {
            let cookie = u64::from_be_bytes(raw[8..16].try_into().unwrap());
            match event {
                Event::Execute(request) => {
                    prop_assert_eq!(request.cookie, cookie);
                    prop_assert!(u64::from(request.length) <= SIZE);
                    prop_assert!(request.offset <= SIZE - u64::from(request.length));
                }
                Event::Refuse(refusal) => prop_assert_eq!(refusal.cookie, cookie),
                Event::Disconnect | Event::Close(_) => {}
            }
        }
    }

    #[test]
    fn any_bytes_end_in_a_close(bytes in proptest::collection::vec(any::<u8>(), 28..300)) {
        let events = events(&mut plain(), &bytes, usize::MAX);
        let closed = matches!(events[..], [Event::Close(Close::BadMagic(_))]);
        prop_assert!(closed, "random bytes carry no magic: {:?}", events);
    }
}
