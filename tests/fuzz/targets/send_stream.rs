//! A send stream from anybody: commands until the end or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use varve_fs::send::Reader;

fuzz_target!(|data: &[u8]| {
    let mut whole = b"btrfs-stream\0".to_vec();
    whole.extend_from_slice(data);
    for stream in [data, &whole[..]] {
        let Ok(mut reader) = Reader::start(stream) else { continue };
        while let Ok(Some(received)) = reader.next_command() {
            for (attr, _) in &received.attrs {
                let _ = received.number(*attr);
            }
        }
    }
});
