//! Requests at any byte, of any length, on the whole stack, against a plain array of bytes.

use varve_tests::client::Server;
use varve_tests::disk::noise;
use varve_tests::nbd::{Nbd, Request};
use varve_tests::varve::make_stack;

/// Where the requests go: over several buckets, with encryption sectors and cache blocks cut everywhere.
const SPAN: usize = 3 << 20;
const REQUESTS: u64 = 600;

struct Disk {
    nbd: Nbd,
    model: Vec<u8>,
    seed: u64,
    step: u64,
}

impl Disk {
    fn random(&mut self, bound: usize) -> usize {
        self.step += 1;
        let bytes = noise(self.seed ^ self.step.rotate_left(32), 8);
        let number = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        usize::try_from(number % bound as u64).expect("below a usize")
    }

    /// A range of bytes; mostly short, some aligned, a few long.
    fn range(&mut self) -> (usize, usize) {
        let longest = [600, 9000, 70_000, 400_000][self.random(4)];
        let unit = [1, 512, 4096][self.random(3)];
        let len = (1 + self.random(longest)).next_multiple_of(unit);
        let start = self.random(SPAN - len) / unit * unit;
        (start, len)
    }

    fn step(&mut self) {
        let (start, len) = self.range();
        let (at, len32) = (start as u64, u32::try_from(len).expect("a short request"));
        match self.random(10) {
            0..=4 => {
                let data = noise(self.step, len);
                let flags = u16::from(self.random(5) == 0);
                self.ask(Request::Write { at, data: &data, flags });
                self.model[start..start + len].copy_from_slice(&data);
            }
            5 => {
                self.ask(Request::WriteZeroes { at, len: len32 });
                self.model[start..start + len].fill(0);
            }
            6 => self.ask(Request::Flush),
            _ => self.compare(start, len),
        }
    }

    fn ask(&mut self, request: Request<'_>) {
        let step = self.step;
        let answer = self.nbd.ask(request).expect("the server stays");
        answer.unwrap_or_else(|errno| panic!("step {step}: {errno:?}"));
    }

    fn compare(&mut self, start: usize, len: usize) {
        let (step, seed) = (self.step, self.seed);
        let len32 = u32::try_from(len).expect("a short request");
        let found = self.nbd.read(start as u64, len32).expect("the server stays").expect("a read");
        let expected = &self.model[start..start + len];
        let at = found.iter().zip(expected).position(|(a, b)| a != b);
        assert_eq!(at, None, "seed {seed}, step {step}: differs in [{start}, {start}+{len}) there");
    }
}

fn matches_the_model(mode: &str, key: Option<&str>, seed: u64) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let stack = make_stack(dir.path(), 96 << 20, 36 << 20, mode, key);
    let server = Server::start(dir.path(), &stack);
    let mut nbd = server.connect();
    // Encrypted space that was never written reads as noise: take what is there for the model.
    let span = u32::try_from(SPAN).expect("a few MiB");
    let model = nbd.read(0, span).expect("the server stays").expect("a first read");
    let mut disk = Disk { nbd, model, seed, step: 0 };
    for _ in 0..REQUESTS {
        disk.step();
    }
    disk.compare(0, SPAN);
    disk.ask(Request::Flush);
    server.kill();
    let server = Server::start(dir.path(), &stack);
    disk.nbd = server.connect();
    disk.compare(0, SPAN);
    server.stop();
}

#[test]
fn unaligned_requests_match_an_array_in_writeback_mode() {
    matches_the_model("writeback", Some("key"), 1);
}

#[test]
fn unaligned_requests_match_an_array_in_writethrough_mode() {
    matches_the_model("writethrough", Some("key"), 2);
}

#[test]
fn unaligned_requests_match_an_array_without_encryption() {
    matches_the_model("writeback", None, 3);
    matches_the_model("writearound", None, 4);
}
