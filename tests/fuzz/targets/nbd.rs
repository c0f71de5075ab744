//! What an NBD client may say: options and their data, a handshake, then requests, in pieces of any length.
#![no_main]

use libfuzzer_sys::fuzz_target;
use varve_nbd_server::nbd::facts::{Catalog, Facts};
use varve_nbd_server::nbd::handshake::{Handshake, Phase};
use varve_nbd_server::nbd::option::{Go, Meta};
use varve_nbd_server::nbd::transmit::{Event, Transmission};
use varve_nbd_server::nbd::wire::TransmissionFlags;

struct One;

impl Catalog for One {
    fn find(&self, name: &str) -> Option<Facts> {
        name.is_empty().then(|| Facts {
            name: String::new(),
            description: None,
            size: 1 << 30,
            flags: TransmissionFlags::all(),
            block_minimum: 512,
            block_preferred: 4096,
            payload_max: 32 << 20,
            strict_block_size: false,
        })
    }

    fn list(&self) -> Option<Vec<(String, Option<String>)>> {
        Some(vec![(String::new(), None)])
    }

    fn stopping(&self) -> bool {
        false
    }
}

fuzz_target!(|data: &[u8]| {
    let _ = (Go::parse(data), Meta::parse(data));
    let Some((&step, said)) = data.split_first() else { return };
    let mut out = Vec::new();
    let mut phase = Phase::Handshake(Handshake::start(&mut out));
    let mut requests = None;
    for piece in said.chunks(usize::from(step).max(1)) {
        let mut input = piece;
        while !input.is_empty() {
            let before = input.len();
            if requests.is_none() {
                phase = match phase {
                    Phase::Handshake(now) => now.step(&mut input, &One, &mut out),
                    Phase::Transmission(agreed) => {
                        requests = Some(Transmission::new(agreed.clone()));
                        Phase::Transmission(agreed)
                    }
                    Phase::Closed(_) => return,
                };
                continue;
            }
            let Some(requests) = &mut requests else { return };
            match requests.next(&mut input) {
                // The caller takes the payload off the stream.
                Some(Event::Execute(request)) => {
                    let n = input.len().min(request.payload() as usize);
                    input = &input[n..];
                }
                Some(Event::Refuse(_)) | None => {}
                Some(_) => return,
            }
            assert!(input.len() <= before);
        }
    }
});
