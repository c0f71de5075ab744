//! What an NBD server may say: to a handshake, and to requests behind a good one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use varve_block::rt::Stream;
use varve_block::sync::join;
use varve_block::{BlockDevice, BufPool, DevId, Extent, Rt, Sector, Sectors, Sim};
use varve_nbd_server::nbd::facts::{Catalog, Facts};
use varve_nbd_server::nbd::handshake::{Handshake, Phase};
use varve_nbd_server::nbd::wire::TransmissionFlags;
use varve_nbd_server::{NbdDevice, NbdOptions, NbdUri};

struct One;

impl Catalog for One {
    fn find(&self, _: &str) -> Option<Facts> {
        Some(Facts {
            name: String::new(),
            description: None,
            size: 1 << 20,
            flags: TransmissionFlags::all() - TransmissionFlags::READ_ONLY,
            block_minimum: 512,
            block_preferred: 4096,
            payload_max: 32 << 20,
            strict_block_size: false,
        })
    }

    fn list(&self) -> Option<Vec<(String, Option<String>)>> {
        None
    }

    fn stopping(&self) -> bool {
        false
    }
}

async fn say(stream: &Stream, bytes: &[u8]) {
    let mut buf = BufPool::new(0).take_bytes(bytes.len()).await;
    buf.copy_from_slice(bytes);
    let _ = stream.send(&[buf.freeze()]).await;
}

/// Our own server's side of the handshake.
async fn agree(stream: &Stream) -> Option<()> {
    let mut out = Vec::new();
    let mut machine = Handshake::start(&mut out);
    loop {
        say(stream, &out).await;
        out.clear();
        let buf = BufPool::new(0).take_bytes(4096).await;
        let (n, buf) = stream.recv(buf, 0..4096).await.ok().filter(|(n, _)| *n > 0)?;
        let mut input = &buf[..n];
        while !input.is_empty() {
            match machine.step(&mut input, &One, &mut out) {
                Phase::Handshake(next) => machine = next,
                Phase::Transmission(_) => {
                    say(stream, &out).await;
                    return Some(());
                }
                Phase::Closed(_) => return None,
            }
        }
    }
}

async fn serve(stream: Stream, honest: bool, data: &[u8]) {
    if honest {
        if agree(&stream).await.is_none() {
            return;
        }
        // The cookies of what follows are known then: 1, 2 and 3.
        let _ = stream.recv_exact(BufPool::new(0).take_bytes(84).await, 0..84).await;
    }
    say(&stream, data).await;
    stream.shutdown_send();
    let buf = BufPool::new(0).take_bytes(4096).await;
    let mut more = stream.recv(buf, 0..4096).await;
    while let Ok((1.., buf)) = more {
        more = stream.recv(buf, 0..4096).await;
    }
}

async fn client(rt: Rt, stream: Stream) {
    let dev = DevId::new("fuzz");
    let opened = NbdDevice::over(&rt, stream, "", &dev, NbdOptions::default()).await;
    let Ok(device) = opened else { return };
    let block = device.geometry().block.0;
    let buf = BufPool::new(0).take(Sectors(block * 2)).await;
    let read = device.read(Sector(block), buf);
    let status = device.extents(Extent::new(Sector(0), Sectors(block * 8)), 5);
    let (_, (runs, _)) = join(read, join(status, device.flush())).await;
    if let Ok(runs) = runs {
        assert!(!runs.is_empty() && runs.len() <= 5);
    }
}

fuzz_target!(|data: &[u8]| {
    if let Ok(uri) = String::from_utf8_lossy(data).parse::<NbdUri>() {
        assert_eq!(uri.to_string().parse(), Ok(uri));
    }
    let Some((&how, said)) = data.split_first() else { return };
    let said = said[..said.len().min(1 << 16)].to_vec();
    let capacity = [1, 7, 100, 1 << 17][usize::from(how >> 1) % 4];
    Sim::new(how.into()).max_steps(2_000_000).run(move |rt| async move {
        let (near, far) = Stream::pair(capacity);
        let serving = rt.spawn(async move { serve(far, how & 1 == 0, &said).await });
        client(rt, near).await;
        serving.await;
    });
});
