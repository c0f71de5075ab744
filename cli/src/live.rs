//! The live line: what the export does right now, once a second, on a terminal.

use crate::size::Size;
use crate::stack::LiveCache;
use std::convert::Infallible;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;
use varve_block::export::Stats;
use varve_block::{ExportShared, Op, Rt};
use varve_cache::Status;

const EVERY: Duration = Duration::from_secs(1);

/// Prints until it is dropped. Nothing is printed where nobody looks.
pub(crate) async fn watch(
    rt: Rt,
    export: Arc<ExportShared>,
    cache: Option<LiveCache>,
) -> Infallible {
    if !std::io::stderr().is_terminal() {
        return std::future::pending().await;
    }
    let mut before = (export.stats(), rt.now(), cache.as_ref().map(|c| c.status()));
    loop {
        rt.sleep(EVERY).await;
        let now = (export.stats(), rt.now(), cache.as_ref().map(|c| c.status()));
        let seconds = (now.1 - before.1).as_secs_f64().max(0.001);
        let mut line = rates(&now.0.since(&before.0), seconds);
        if let (Some(status), Some(earlier)) = (&now.2, &before.2) {
            line.push_str(&cache_part(status, earlier));
        }
        let _ = write!(std::io::stderr(), "\r{line}\x1b[K");
        before = now;
    }
}

/// Ends the line, so that what is printed next starts on its own.
pub(crate) fn finish() {
    if std::io::stderr().is_terminal() {
        let _ = writeln!(std::io::stderr());
    }
}

fn rates(stats: &Stats, seconds: f64) -> String {
    let side = |op| {
        let s = stats.of(op);
        let iops = per_second(s.count(), seconds);
        (iops, per_second(s.bytes(), seconds) / 1e6)
    };
    let ((r_iops, r_mb), (w_iops, w_mb)) = (side(Op::Read), side(Op::Write));
    let mut line =
        format!("read {r_iops:.0} IOPS {r_mb:.1} MB/s | write {w_iops:.0} IOPS {w_mb:.1} MB/s");
    let errors = stats.of(Op::Read).errors() + stats.of(Op::Write).errors();
    if errors > 0 {
        line.push_str(&format!(" | {errors} ERRORS"));
    }
    line
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn per_second(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds
}

fn cache_part(status: &Status, earlier: &Status) -> String {
    let hits = status.requests.hits - earlier.requests.hits;
    let misses = status.requests.misses - earlier.requests.misses;
    let ratio = match (hits * 100).checked_div(hits + misses) {
        Some(percent) => format!("{percent}%"),
        None => "-".to_owned(),
    };
    let dirty = Size(status.dirty_sectors * 512);
    let mut part = format!(" | hits {ratio} | dirty {dirty} | {:?}", status.mode).to_lowercase();
    if let Some(why) = &status.safe_mode {
        part.push_str(&format!(" | SAFE MODE: {why}"));
    }
    part
}
