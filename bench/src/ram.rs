//! RAM behind Varve's server alone: what the front end costs, without a stack.

use anyhow::Context;
use std::path::Path;
use varve_block::dev::Mem;
use varve_block::rt::{self, Config};
use varve_block::{Dyn, Export, ExportOptions, ExportShared, Sectors};
use varve_nbd_server::{Listen, Look, Options, Server};

/// Serves `mib` MiB of RAM on a Unix socket until SIGINT or SIGTERM.
pub(crate) fn serve(socket: &Path, mib: u64) -> anyhow::Result<()> {
    let len = Sectors::exact(mib << 20).context("whole sectors")?;
    let place = Listen::Unix(socket.to_owned());
    rt::run(Config::default(), move |rt| async move {
        let mut signals = rt.signals()?;
        let shared = ExportShared::new(ExportOptions::default());
        let export = Export::new(rt.clone(), shared, Dyn::new(Mem::new(len)));
        let exports = vec![(Look::new(""), export)];
        let server = Server::start(&rt, &[place], exports, Options::default())?;
        signals.next().await?;
        server.stop().await;
        Ok(())
    })?
}
