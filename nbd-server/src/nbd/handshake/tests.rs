//! Each row of the catalogue of malformed handshakes by name, then what must hold for any bytes.

use super::super::testing::*;
use super::*;
use proptest::prelude::*;

const FLAGS: [u8; 4] = [0, 0, 0, 3];

/// Flags and options, all at once.
fn talk(options: &[Vec<u8>]) -> (Vec<Answer>, End) {
    let (out, end, _) =
        handshake(&[&FLAGS[..], &options.concat()].concat(), 1 << 20, &Shelf::new());
    (answers(&out), end)
}

/// The kinds of all replies to these options; the connection must still be open.
fn kinds(options: &[Vec<u8>]) -> Vec<u32> {
    let (answers, end) = talk(options);
    assert!(matches!(end, End::Open), "{end:?}");
    answers.iter().map(|a| a.kind).collect()
}

fn closed(options: &[Vec<u8>]) -> Close {
    match talk(options) {
        (answers, End::Closed(why)) if answers.is_empty() => why,
        other => panic!("not closed in silence: {other:?}"),
    }
}

const ACK: u32 = Rep::Ack as u32;
const SERVER: u32 = Rep::Server as u32;
const INFO: u32 = Rep::Info as u32;
const META: u32 = Rep::MetaContext as u32;
const UNSUP: u32 = Rep::ErrUnsup as u32;
const POLICY: u32 = Rep::ErrPolicy as u32;
const INVALID: u32 = Rep::ErrInvalid as u32;
const UNKNOWN: u32 = Rep::ErrUnknown as u32;
const SHUTDOWN: u32 = Rep::ErrShutdown as u32;
const TOO_BIG: u32 = Rep::ErrTooBig as u32;

fn structured() -> Vec<u8> {
    option(option::STRUCTURED_REPLY, &[])
}

fn set_meta(name: &str, queries: &[&str]) -> Vec<u8> {
    option(option::SET_META_CONTEXT, &meta_data(name, queries))
}

fn list_meta(name: &str, queries: &[&str]) -> Vec<u8> {
    option(option::LIST_META_CONTEXT, &meta_data(name, queries))
}

fn info(data: &[u8]) -> Vec<u8> {
    option(option::INFO, data)
}

// ---- Section 8 of the specification, first table, row by row. ----

#[test]
fn unknown_client_flag_closes() {
    let (out, end, _) = handshake(&[0, 0, 0, 7], 4, &Shelf::new());
    assert!(out.is_empty());
    assert!(matches!(end, End::Closed(Close::UnknownClientFlags(7))), "{end:?}");
}

#[test]
fn client_flags_zero_then_list_closes() {
    let bytes = [&[0; 4][..], &option(option::LIST, &[])].concat();
    let (out, end, _) = handshake(&bytes, 64, &Shelf::new());
    assert!(out.is_empty());
    assert!(matches!(end, End::Closed(Close::NotFixedNewstyle(3))), "{end:?}");
}

#[test]
fn bad_option_magic_closes() {
    let mut bad = option(option::LIST, &[]);
    bad[0] ^= 1;
    assert!(matches!(closed(&[bad]), Close::BadMagic(_)));
}

#[test]
fn unknown_option_with_data_is_unsup() {
    assert_eq!(kinds(&[option(4242, b"data"), structured()]), [UNSUP, ACK]);
}

#[test]
fn peek_export_and_extended_headers_are_unsup() {
    assert_eq!(kinds(&[option(4, b"disk"), option(11, &[])]), [UNSUP, UNSUP]);
}

#[test]
fn a_mebibyte_on_an_unknown_option_is_drained_and_too_big() {
    assert_eq!(kinds(&[option(4242, &vec![1; 1 << 20]), structured()]), [TOO_BIG, ACK]);
    assert_eq!(kinds(&[option(4242, &vec![1; 64 << 10]), structured()]), [UNSUP, ACK]);
    assert!(matches!(
        closed(&[option(4242, &vec![1; (1 << 20) + 1])]),
        Close::OptionTooLong { .. }
    ));
}

#[test]
fn option_length_all_ones_closes() {
    let mut bad = option(option::LIST, &[]);
    bad[12..16].fill(0xff);
    assert!(matches!(closed(&[bad]), Close::OptionTooLong { option: 3, length: u32::MAX }));
}

#[test]
fn a_hundred_unknown_options_are_unsup_until_the_limit_then_close() {
    let (answers, end) = talk(&vec![option(4242, &[]); 100]);
    assert!(matches!(end, End::Closed(Close::TooManyOptions)), "{end:?}");
    assert_eq!(answers.len(), 64);
    assert!(answers.iter().all(|a| a.kind == UNSUP));
}

#[test]
fn list_raises_the_option_limit_once_by_sixteen_per_export() {
    let mut options = vec![option(option::LIST, &[]); 3];
    options.extend(vec![option(4242, &[]); 200]);
    let (answers, end) = talk(&options);
    assert!(matches!(end, End::Closed(Close::TooManyOptions)), "{end:?}");
    let unsup = answers.iter().filter(|a| a.kind == UNSUP).count();
    assert_eq!(unsup, 64 + 2 * 16 - 3);
}

#[test]
fn list_with_data_is_invalid() {
    assert_eq!(kinds(&[option(option::LIST, b"x"), structured()]), [INVALID, ACK]);
}

#[test]
fn starttls_with_data_is_invalid() {
    assert_eq!(kinds(&[option(option::STARTTLS, b"x"), structured()]), [INVALID, ACK]);
}

#[test]
fn structured_reply_with_data_is_invalid_and_selects_nothing() {
    let refused = option(option::STRUCTURED_REPLY, b"x");
    assert_eq!(kinds(&[refused, set_meta("disk", &[])]), [INVALID, INVALID]);
}

#[test]
fn abort_with_data_is_acknowledged() {
    for len in [0, 5, 100_000] {
        let (answers, end) = talk(&[option(option::ABORT, &vec![9; len])]);
        assert!(matches!(end, End::Closed(Close::Abort)), "{end:?}");
        assert_eq!(answers.iter().map(|a| a.kind).collect::<Vec<_>>(), [ACK]);
    }
}

#[test]
fn starttls_without_tls_is_policy() {
    assert_eq!(kinds(&[option(option::STARTTLS, &[]), structured()]), [POLICY, ACK]);
}

#[test]
fn structured_reply_twice_is_acknowledged_twice() {
    assert_eq!(kinds(&[structured(), structured()]), [ACK, ACK]);
}

#[test]
fn info_with_empty_data_is_invalid() {
    assert_eq!(kinds(&[info(&[]), structured()]), [INVALID, ACK]);
}

#[test]
fn info_name_length_beyond_the_data_is_invalid() {
    for length in [5_u32, 7, 0x7fff_ffff, u32::MAX - 5, u32::MAX] {
        let mut data = go_data("disk", &[]);
        data[..4].copy_from_slice(&length.to_be_bytes());
        assert_eq!(kinds(&[info(&data), structured()]), [INVALID, ACK], "{length}");
    }
}

#[test]
fn info_name_of_4097_bytes_is_invalid_and_of_4096_is_only_unknown() {
    let long = "x".repeat(4097);
    assert_eq!(kinds(&[info(&go_data(&long, &[])), structured()]), [INVALID, ACK]);
    assert_eq!(kinds(&[info(&go_data(&long[1..], &[])), structured()]), [UNKNOWN, ACK]);
}

#[test]
fn info_count_mismatch_is_invalid() {
    for count in [0_u16, 1, 3, u16::MAX] {
        let mut data = go_data("disk", &[0, 1]);
        data[8..10].copy_from_slice(&count.to_be_bytes());
        assert_eq!(kinds(&[info(&data), structured()]), [INVALID, ACK], "{count}");
    }
}

#[test]
fn info_name_with_nul_is_invalid() {
    assert_eq!(kinds(&[info(&go_data("di\0k", &[])), structured()]), [INVALID, ACK]);
}

#[test]
fn info_name_not_utf8_is_invalid() {
    let data = [&string(&[b'd', 0xff])[..], &[0, 0]].concat();
    assert_eq!(kinds(&[info(&data), structured()]), [INVALID, ACK]);
}

#[test]
fn info_duplicate_or_unknown_types_are_accepted_and_answered_once() {
    let asked = [info::NAME, 4242, info::NAME, info::BLOCK_SIZE, info::BLOCK_SIZE, info::EXPORT];
    let (answers, end) = talk(&[info(&go_data("disk", &asked))]);
    assert!(matches!(end, End::Open));
    let told: Vec<_> = answers[..answers.len() - 1].iter().map(|a| a.data[..2].to_vec()).collect();
    assert_eq!(told, [[0, 0], [0, 1], [0, 3]]);
    assert_eq!(answers.last().unwrap().kind, ACK);
}

#[test]
fn export_name_unknown_closes() {
    assert_eq!(closed(&[option(option::EXPORT_NAME, b"nosuch")]), Close::NoSuchExport);
    assert_eq!(closed(&[option(option::EXPORT_NAME, &[0xff])]), Close::NoSuchExport);
}

#[test]
fn export_name_of_4097_bytes_closes() {
    let long = option(option::EXPORT_NAME, &[b'x'; 4097]);
    assert!(matches!(closed(&[long]), Close::OptionTooLong { option: 1, length: 4097 }));
}

#[test]
fn list_meta_before_structured_replies_is_answered() {
    assert_eq!(kinds(&[list_meta("disk", &[])]), [META, ACK]);
}

#[test]
fn set_meta_before_structured_replies_is_invalid() {
    assert_eq!(kinds(&[set_meta("disk", &["base:allocation"]), structured()]), [INVALID, ACK]);
}

#[test]
fn set_meta_of_wildcards_and_unknown_names_selects_nothing() {
    for query in ["base:", "base:nosuch", "nocolon", "x-foo:bar", ":", ""] {
        assert_eq!(kinds(&[structured(), set_meta("disk", &[query])]), [ACK, ACK], "{query}");
    }
}

#[test]
fn set_meta_duplicated_query_selects_once() {
    let twice = set_meta("disk", &["base:allocation", "base:allocation"]);
    assert_eq!(kinds(&[structured(), twice]), [ACK, META, ACK]);
}

#[test]
fn set_meta_query_count_too_large_is_invalid_with_no_context_before_it() {
    for count in [2_u32, 3, u32::MAX] {
        let mut data = meta_data("disk", &["base:allocation"]);
        data[8..12].copy_from_slice(&count.to_be_bytes());
        let bad = option(option::SET_META_CONTEXT, &data);
        assert_eq!(kinds(&[structured(), bad]), [ACK, INVALID], "{count}");
    }
}

#[test]
fn set_meta_query_length_overflow_is_invalid() {
    for length in [14_u32, 16, u32::MAX - 15, u32::MAX] {
        let mut data = meta_data("disk", &["base:allocation"]);
        data[12..16].copy_from_slice(&length.to_be_bytes());
        let bad = option(option::SET_META_CONTEXT, &data);
        assert_eq!(kinds(&[structured(), bad]), [ACK, INVALID], "{length}");
    }
}

#[test]
fn set_meta_unknown_export_is_unknown() {
    let options = [structured(), set_meta("nosuch", &["base:allocation"]), structured()];
    assert_eq!(kinds(&options), [ACK, UNKNOWN, ACK]);
}

#[test]
fn two_options_pipelined_are_answered_in_order() {
    let (answers, _) = talk(&[option(4242, &[]), option(option::LIST, &[]), structured()]);
    let order: Vec<_> = answers.iter().map(|a| (a.option, a.kind)).collect();
    assert_eq!(order, [(4242, UNSUP), (3, SERVER), (3, SERVER), (3, ACK), (8, ACK)]);
}

// ---- What the options promise beyond the table. ----

#[test]
fn go_ends_the_handshake_without_padding_and_leaves_the_first_request() {
    let bytes = [&FLAGS[..], &option(option::GO, &go_data("", &[])), b"first request"].concat();
    let (out, end, left) = handshake(&bytes, bytes.len(), &Shelf::new());
    assert_eq!(left, b"first request");
    let End::Agreed(agreed) = end else { panic!("{end:?}") };
    assert_eq!(agreed.facts.name, "disk");
    assert!(!agreed.structured && !agreed.block_size_asked);
    let answers = answers(&out);
    // The default export was reached by another name than its own, so NAME is told unasked.
    let told: Vec<_> = answers.iter().map(|a| (a.kind, a.data.first_chunk().copied())).collect();
    let info = |kind: u8| (INFO, Some([0, kind]));
    assert_eq!(told, [info(0), info(1), info(3), (ACK, None)]);
    assert_eq!(answers[1].data[2..], *b"disk");
}

#[test]
fn go_with_zero_information_requests_is_never_locked_out() {
    let (answers, end) = talk(&[option(option::GO, &go_data("disk", &[]))]);
    assert!(matches!(end, End::Agreed(_)), "{end:?}");
    let sizes = answers.iter().find(|a| a.data.starts_with(&[0, 3])).expect("block sizes");
    assert_eq!(sizes.data, [0, 3, 0, 0, 2, 0, 0, 0, 0x10, 0, 4, 0, 0, 0]);
}

#[test]
fn info_then_go_tell_the_same() {
    let data = go_data("alias", &[info::NAME, info::DESCRIPTION, info::BLOCK_SIZE]);
    let (answers, end) = talk(&[structured(), info(&data), option(option::GO, &data)]);
    let End::Agreed(agreed) = end else { panic!("{end:?}") };
    assert!(agreed.block_size_asked && agreed.structured);
    let told = |option| {
        let mine = answers.iter().filter(move |a| a.option == option);
        mine.map(|a| (a.kind, a.data.clone())).collect::<Vec<_>>()
    };
    assert_eq!(told(option::INFO), told(option::GO));
    assert_eq!(told(option::GO).len(), 5);
}

#[test]
fn df_is_offered_with_structured_replies_only() {
    let flags = |options: &[Vec<u8>]| {
        let (answers, _) = talk(options);
        let export = answers.into_iter().find(|a| a.data.starts_with(&[0, 0])).unwrap();
        let raw = u16::from_be_bytes(export.data[10..12].try_into().unwrap());
        TransmissionFlags::from_bits(raw).unwrap()
    };
    let go = option(option::GO, &go_data("disk", &[]));
    let plain = flags(std::slice::from_ref(&go));
    assert!(plain.contains(TransmissionFlags::HAS_FLAGS | TransmissionFlags::CAN_MULTI_CONN));
    assert!(!plain.contains(TransmissionFlags::SEND_DF));
    assert!(flags(&[structured(), go]).contains(TransmissionFlags::SEND_DF));
}

#[test]
fn export_name_answers_with_or_without_zeroes() {
    for (flags, padding) in [(0_u8, 124), (1, 124), (3, 0), (2, 0)] {
        let bytes = [&[0, 0, 0, flags][..], &option(option::EXPORT_NAME, b"disk"), b"req"].concat();
        let (out, end, left) = handshake(&bytes, bytes.len(), &Shelf::new());
        assert!(matches!(end, End::Agreed(_)), "{end:?}");
        assert_eq!(out.len(), 10 + padding);
        assert_eq!(out[..8], (1_u64 << 30).to_be_bytes());
        assert!(out[10..].iter().all(|&b| b == 0));
        assert_eq!(left, b"req");
    }
}

#[test]
fn contexts_count_for_the_export_they_were_selected_for() {
    let contexts = |options: &[Vec<u8>]| match talk(options).1 {
        End::Agreed(agreed) => agreed.contexts,
        end => panic!("{end:?}"),
    };
    let go = |name| option(option::GO, &go_data(name, &[]));
    let set = |name, queries: &[&str]| set_meta(name, queries);
    let base = &["base:allocation"][..];
    assert_eq!(contexts(&[structured(), set("disk", base), go("disk")]), Context::ALL);
    assert_eq!(contexts(&[structured(), set("disk", base), go("alias")]), Context::ALL);
    assert_eq!(contexts(&[structured(), set("", base), go("disk")]), Context::ALL);
    assert_eq!(contexts(&[structured(), set("disk", base), go("other")]), []);
    // Replaced by the next selection, even by one that fails.
    let twice = [structured(), set("disk", base), set("nosuch", base), go("disk")];
    assert_eq!(contexts(&twice), []);
    assert_eq!(contexts(&[structured(), set("disk", base), set("disk", &[]), go("disk")]), []);
    let too_big = option(option::SET_META_CONTEXT, &vec![0; 100_000]);
    assert_eq!(contexts(&[structured(), set("disk", base), too_big, go("disk")]), []);
}

#[test]
fn list_meta_knows_wildcards_and_leaves() {
    for (queries, found) in [
        (&[][..], true),
        (&["base:"], true),
        (&["base:allocation"], true),
        (&["base:alloc"], false),
        (&["x-foo:", "nocolon"], false),
        (&["base:", "base:allocation"], true),
    ] {
        let (answers, _) = talk(&[list_meta("disk", queries)]);
        let want = if found { vec![META, ACK] } else { vec![ACK] };
        assert_eq!(answers.iter().map(|a| a.kind).collect::<Vec<_>>(), want, "{queries:?}");
        if found {
            assert_eq!(answers[0].data, b"\0\0\0\0base:allocation");
        }
    }
    assert_eq!(kinds(&[list_meta("nosuch", &[])]), [UNKNOWN]);
}

#[test]
fn too_many_queries_are_too_big() {
    let queries = vec!["base:x"; 257];
    assert_eq!(kinds(&[structured(), set_meta("disk", &queries)]), [ACK, TOO_BIG]);
}

#[test]
fn list_tells_names_and_descriptions_or_refuses_as_configured() {
    let (answers, _) = talk(&[option(option::LIST, &[])]);
    assert_eq!(answers[0].data, b"\0\0\0\x04diskabout disk");
    assert_eq!(answers[1].data, b"\0\0\0\x05otherabout other");
    let bytes = [&FLAGS[..], &option(option::LIST, &[])].concat();
    let shelf = Shelf { listing: false, ..Shelf::new() };
    let (out, ..) = handshake(&bytes, 64, &shelf);
    assert_eq!(super::super::testing::answers(&out)[0].kind, POLICY);
}

#[test]
fn a_stopping_server_agrees_to_nothing_but_abort() {
    let shelf = Shelf { stopping: true, ..Shelf::new() };
    let go = option(option::GO, &go_data("disk", &[]));
    let bytes = [&FLAGS[..], &go, &structured(), &option(option::ABORT, &[])].concat();
    let (out, end, _) = handshake(&bytes, 7, &shelf);
    assert!(matches!(end, End::Closed(Close::Abort)), "{end:?}");
    let kinds: Vec<_> = answers(&out).iter().map(|a| a.kind).collect();
    assert_eq!(kinds, [SHUTDOWN, SHUTDOWN, ACK]);
    let bytes = [&FLAGS[..], &option(option::EXPORT_NAME, b"disk")].concat();
    let (out, end, _) = handshake(&bytes, 7, &shelf);
    assert!(out.is_empty() && matches!(end, End::Closed(Close::Stopping)), "{end:?}");
}

#[test]
fn a_promised_length_reserves_no_memory() {
    let mut bytes = FLAGS.to_vec();
    bytes.extend(option(option::INFO, &[]));
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&(64_u32 << 10).to_be_bytes());
    let mut out = Vec::new();
    let mut machine = Handshake::start(&mut out);
    let mut input = &bytes[..];
    while !input.is_empty() {
        let Phase::Handshake(next) = machine.step(&mut input, &Shelf::new(), &mut out) else {
            panic!("the option is not complete");
        };
        machine = next;
    }
    assert!(machine.held.capacity() < 1024, "{}", machine.held.capacity());
}

// ---- What must hold for any bytes. ----

/// Mostly sensible options, so that the interesting states are reached; some with a byte flipped.
fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![Just("disk"), Just(""), Just("alias"), Just("other"), Just("nosuch")];
    let query = prop_oneof![
        Just("base:allocation"),
        Just("base:"),
        Just("x-foo:bar"),
        Just("nocolon"),
        Just("")
    ];
    let queries = proptest::collection::vec(query, 0..4);
    let asked = proptest::collection::vec(0_u16..6, 0..4);
    let whole = prop_oneof![
        Just(option(option::STRUCTURED_REPLY, &[])),
        Just(option(option::LIST, &[])),
        Just(option(option::STARTTLS, &[])),
        name.clone().prop_map(|name| option(option::EXPORT_NAME, name.as_bytes())),
        (name.clone(), asked.clone()).prop_map(|(n, a)| option(option::INFO, &go_data(n, &a))),
        (name.clone(), asked).prop_map(|(n, a)| option(option::GO, &go_data(n, &a))),
        (9_u32..11, name, queries).prop_map(|(o, n, q)| option(o, &meta_data(n, &q))),
        (any::<u32>(), proptest::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(o, data)| option(o % 16, &data)),
        Just(option(4242, &[7; 70_000])),
    ];
    (whole, proptest::option::weighted(0.2, (any::<prop::sample::Index>(), 0_u8..8))).prop_map(
        |(mut bytes, flip)| {
            if let Some((at, bit)) = flip {
                let at = at.index(bytes.len().min(64));
                bytes[at] ^= 1 << bit;
            }
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn pieces_of_any_size_give_the_same_answers(
        options in proptest::collection::vec(any_option(), 0..12), piece in 1_usize..40,
        flags in prop_oneof![9 => Just(3_u8), 1 => 0_u8..9],
    ) {
        let bytes = [&[0, 0, 0, flags][..], &options.concat()].concat();
        let shelf = Shelf::new();
        let whole = handshake(&bytes, bytes.len(), &shelf);
        let single = handshake(&bytes, 1, &shelf);
        let pieces = handshake(&bytes, piece, &shelf);
        prop_assert_eq!(format!("{:?}", whole), format!("{:?}", single));
        prop_assert_eq!(format!("{:?}", whole), format!("{:?}", pieces));
    }

    #[test]
    fn any_bytes_are_answered_or_closed(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let bytes = [&FLAGS[..], &bytes].concat();
        let (out, end, _) = handshake(&bytes, bytes.len(), &Shelf::new());
        answers(&out);
        prop_assert!(!matches!(end, End::Agreed(_)), "random bytes carry no magic");
    }

    #[test]
    fn every_option_gets_exactly_one_final_answer(
        options in proptest::collection::vec(any_option(), 0..12),
    ) {
        let (out, end, _) = handshake(&[&FLAGS[..], &options.concat()].concat(), 1 << 20,
                                      &Shelf::new());
        // A success of EXPORT_NAME has no reply frame: only its bare facts, at the very end.
        let bare = matches!(&end, End::Agreed(_)) && !out.windows(8).any(|w| {
            w == [0, 0, 0, 7, 0, 0, 0, 1] // GO, ACK
        });
        let framed = if bare { &out[..out.len() - 10] } else { &out[..] };
        let finals = answers(framed).iter().filter(|a| a.kind == ACK || a.kind >> 31 == 1).count();
        prop_assert!(finals <= options.len());
        let framed = |option: &Vec<u8>| {
            let told = u32::from_be_bytes(option[12..16].try_into().unwrap());
            option.len() == 16 + told as usize
        };
        if matches!(end, End::Open) && options.iter().all(framed) {
            prop_assert_eq!(finals, options.len());
        }
    }
}
