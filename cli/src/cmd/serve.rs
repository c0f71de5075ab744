//! `varve serve`: a stack, served over NBD until somebody says stop.

use crate::args::Serve;
use crate::config::StackConfig;
use crate::control::Control;
use crate::failure::{Outcome, usage};
use crate::stack::{self, Stack};
use crate::{live, notify, size::Size};
use std::path::PathBuf;
use std::sync::Arc;
use varve_block::rt::Signals;
use varve_block::sync::{Either, select};
use varve_block::{BlockDevice, Export, ExportOptions, ExportShared, Rt};
use varve_nbd_server::{Listen, Look, Options, Server};

pub(crate) async fn run(rt: &Rt, args: Serve) -> anyhow::Result<Outcome> {
    let mut config = StackConfig::new(&args.stack, None)?;
    // Only then can anybody ask for what needs the locks.
    config.live = args.control.is_some();
    let control = match &args.control {
        None => None,
        Some(Listen::Unix(path)) => Some(path.clone()),
        Some(Listen::Tcp { .. }) => return usage("--control is a Unix socket: unix:PATH"),
    };
    // Before anything is opened: a Ctrl-C during a long recovery must not cut it.
    let signals = rt.signals()?;
    let stack = stack::open(rt, &config).await?;
    let intro = format!("serving {}", stack.layers.join(" > "));
    let plan = Plan { listen: args.listen, name: args.name, intro, quiet: args.quiet, control };
    serve(rt, stack, signals, plan).await
}

/// What is served where, and what people are told about it.
pub(crate) struct Plan {
    pub(crate) listen: Vec<Listen>,
    pub(crate) name: String,
    pub(crate) intro: String,
    pub(crate) quiet: bool,
    /// Place of the control socket.
    pub(crate) control: Option<PathBuf>,
}

/// Serves `stack` until a signal, then drains, flushes and stops it.
pub(crate) async fn serve(
    rt: &Rt,
    stack: Stack,
    mut signals: Signals,
    plan: Plan,
) -> anyhow::Result<Outcome> {
    let geometry = stack.top.geometry();
    let options = ExportOptions { read_only: geometry.read_only, ..ExportOptions::default() };
    let shared = ExportShared::new(options);
    let export = Export::new(rt.clone(), Arc::clone(&shared), stack.top.clone());
    let look = Look { read_only: geometry.read_only, ..Look::new(plan.name) };
    let control = plan.control.map(|path| Control::start(rt, &path, &shared, &stack)).transpose();
    let started = control.and_then(|control| {
        let exports = vec![(look, export)];
        Ok((control, Server::start(rt, &plan.listen, exports, Options::default())?))
    });
    let (control, server) = match started {
        Ok(both) => both,
        Err(error) => {
            stack.stop().await?;
            return Err(error);
        }
    };
    let release = control.as_ref().map(Control::release);
    // Ends, and takes its socket away, when it is dropped.
    let control = control.map(|control| rt.spawn(control.run()));
    if !plan.quiet {
        eprintln!("{} ({})", plan.intro, Size(geometry.len.bytes()));
        for address in server.addresses() {
            eprintln!("  {address}");
        }
    }
    let watched = async {
        match plan.quiet {
            true => std::future::pending().await,
            false => live::watch(rt.clone(), shared, stack.cache.clone()).await,
        }
    };
    notify::ready();
    let ended = select(signals.next(), watched).await;
    notify::stopping();
    live::finish();
    if let Some(control) = control {
        control.cancel().await;
    }
    if let Some(release) = release {
        release.settle(rt).await;
        release.now();
    }
    server.stop().await;
    stack.stop().await?;
    match ended {
        Either::Left(signal) => drop(signal?),
        Either::Right(never) => match never {},
    }
    Ok(Outcome::Fine)
}
