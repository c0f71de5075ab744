//! An NBD server over RAM, to try clients and to measure what the server itself costs.
//!
//! ```text
//! cargo run --release -p varve-nbd-server --example ram -- unix:/tmp/ram.sock [MiB] [ring|threads]
//! nbdinfo 'nbd+unix:///?socket=/tmp/ram.sock'
//! ```
//!
//! Ctrl-C, or SIGTERM, stops it the way a server should stop.

use varve_block::dev::Mem;
use varve_block::rt::{Config, Engine, run};
use varve_block::{Dyn, Export, ExportOptions, ExportShared, Sectors};
use varve_nbd_server::{Listen, Look, Options, Server};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let listen: Listen =
        args.next().ok_or("where to listen: unix:PATH or tcp:HOST:PORT")?.parse()?;
    let mebibytes: u64 = args.next().map_or(Ok(1024), |text| text.parse())?;
    let engine = match args.next().as_deref() {
        None => Engine::Auto,
        Some("ring") => Engine::Ring,
        Some("threads") => Engine::Threads,
        Some(other) => return Err(format!("{other}: neither ring nor threads").into()),
    };
    run(Config { engine, ..Config::default() }, async move |rt| {
        let mut signals = rt.signals()?;
        let mem = Mem::new(Sectors(mebibytes << 11));
        let shared = ExportShared::new(ExportOptions::default());
        let export = Export::new(rt.clone(), shared, Dyn::new(mem));
        let look = Look { description: Some("memory".to_owned()), ..Look::new("ram") };
        let server = Server::start(&rt, &[listen], vec![(look, export)], Options::default())?;
        for address in server.addresses() {
            println!("{address}");
        }
        signals.next().await?;
        let stats = server.stats().snapshot();
        server.stop().await;
        println!("{stats:#?}");
        Ok(())
    })?
}
