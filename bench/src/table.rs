//! The table: a row per server and load, and Varve's ratio to the rivals that served the same thing.

use crate::fio::{Figures, Load};
use crate::suite::MEDIUM;
use serde_json::{Value, json};
use std::fmt::Write;

pub(crate) struct Row {
    /// What was served: "memory", "file", "file + LUKS", "full stack".
    pub(crate) class: &'static str,
    pub(crate) server: String,
    pub(crate) ours: bool,
    pub(crate) figures: Vec<(Load, Result<Figures, String>)>,
}

fn rate(load: Load, f: &Figures) -> f64 {
    if load.large { f.bytes_per_s } else { f.iops }
}

fn shown(load: Load, f: &Figures) -> String {
    if load.large {
        format!("{:.2} GB/s", f.bytes_per_s / 1e9)
    } else {
        format!("{:.1} k", f.iops / 1e3)
    }
}

pub(crate) fn text(rows: &[Row]) -> String {
    let mut out = String::new();
    for row in rows {
        let _ = writeln!(out, "\n{}: {}", row.class, row.server);
        for (load, figures) in &row.figures {
            match figures {
                Ok(f) => {
                    let _ = write!(
                        out,
                        "  {:<18} {:>10}  p50 {:>7.0} us  p99 {:>7.0} us  p99.9 {:>7.0} us  cpu {:>6.1} us/op",
                        load.name,
                        shown(*load, f),
                        f.p50_us,
                        f.p99_us,
                        f.p999_us,
                        f.cpu_us
                    );
                    for (name, ratio) in ratios(rows, row, *load, f) {
                        let _ = write!(out, "  {ratio:.2} x {name}");
                    }
                    out.push('\n');
                }
                Err(why) => {
                    let _ = writeln!(out, "  {:<18} failed: {why}", load.name);
                }
            }
        }
    }
    out
}

/// Ours against each rival of the class, and against the bare medium; the full stack and LUKS2 against the
/// rivals of `file + LUKS`.
fn ratios(rows: &[Row], row: &Row, load: Load, f: &Figures) -> Vec<(String, f64)> {
    if !row.ours {
        return Vec::new();
    }
    let encrypted = ["full stack", crate::suite::LUKS2].contains(&row.class);
    let class = if encrypted { "file + LUKS" } else { row.class };
    let rivals = rows.iter().filter(|r| !r.ours && (r.class == class || r.server == MEDIUM));
    let rate_of = |r: &Row| {
        let same = r.figures.iter().find(|(l, _)| *l == load)?;
        same.1.as_ref().ok().map(|rf| (r.server.clone(), rate(load, f) / rate(load, rf)))
    };
    rivals.filter_map(rate_of).collect()
}

pub(crate) fn json(rows: &[Row]) -> Value {
    let figures = |row: &Row| {
        row.figures
            .iter()
            .map(|(load, f)| match f {
                Ok(f) => json!({
                    "load": load.name, "iops": f.iops, "bytes_per_s": f.bytes_per_s,
                    "p50_us": f.p50_us, "p99_us": f.p99_us, "p999_us": f.p999_us,
                    "cpu_us_per_op": f.cpu_us,
                    "ratios": ratios(rows, row, *load, f).into_iter()
                        .map(|(name, ratio)| json!({ "to": name, "ratio": ratio }))
                        .collect::<Vec<_>>(),
                }),
                Err(why) => json!({ "load": load.name, "error": why }),
            })
            .collect::<Vec<_>>()
    };
    rows.iter()
        .map(|r| json!({ "class": r.class, "server": r.server, "figures": figures(r) }))
        .collect()
}
