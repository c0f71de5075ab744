//! The table, the same as JSON, and a plot of the ratios.

use super::Candidate;
use super::measure::Run;
use serde_json::{Value, json};
use std::fmt::Write;

/// All runs of one candidate.
pub(crate) struct Row {
    load: &'static str,
    name: &'static str,
    ours: bool,
    runs: Vec<Run>,
    failed: Option<String>,
}

impl Row {
    pub(crate) fn of(candidate: &Candidate) -> Row {
        let Candidate { load, name, ours, .. } = *candidate;
        Row { load, name, ours, runs: Vec::new(), failed: None }
    }

    pub(crate) fn add(&mut self, run: Result<Run, String>) {
        match run {
            Ok(run) => self.runs.push(run),
            Err(why) => self.failed = Some(why),
        }
    }

    /// The fastest run, unless one failed.
    fn best(&self) -> Option<f64> {
        let times = self.runs.iter().map(|run| run.seconds);
        times.reduce(f64::min).filter(|_| self.failed.is_none())
    }

    fn slowest(&self) -> f64 {
        self.runs.iter().map(|run| run.seconds).fold(0.0, f64::max)
    }

    fn peak_mib(&self) -> Option<f64> {
        let peak = self.runs.iter().filter_map(|run| run.peak_kib).max()?;
        Some(peak as f64 / 1024.0)
    }
}

/// Of ours: how many times as fast as the rival of the load.
fn ratio(rows: &[Row], row: &Row) -> Option<(&'static str, f64)> {
    let rival = rows.iter().find(|other| !other.ours && other.load == row.load && row.ours)?;
    Some((rival.name, rival.best()? / row.best()?))
}

pub(crate) fn text(rows: &[Row]) -> String {
    let mut out = String::new();
    for same in rows.chunk_by(|a, b| a.load == b.load) {
        let _ = writeln!(out, "\n{}", same[0].load);
        for row in same {
            let _ = write!(out, "  {:<16}", row.name);
            match row.best() {
                None => {
                    let _ = write!(out, "failed: {}", row.failed.as_deref().unwrap_or("no run"));
                }
                Some(best) => {
                    let _ = write!(out, "{best:>8.3} s (slowest {:.3})", row.slowest());
                }
            }
            if let Some(peak) = row.peak_mib() {
                let _ = write!(out, "  {peak:>7.1} MiB");
            }
            if let Some((rival, ratio)) = ratio(rows, row) {
                let _ = write!(out, "  {ratio:.2} x {rival}");
            }
            out.push('\n');
        }
    }
    out
}

pub(crate) fn json(rows: &[Row]) -> Value {
    rows.iter()
        .map(|row| {
            json!({
                "load": row.load, "by": row.name, "seconds": row.best(),
                "runs": row.runs.iter().map(|run| run.seconds).collect::<Vec<_>>(),
                "peak_mib": row.peak_mib(), "error": row.failed,
                "ratio": ratio(rows, row).map(|(to, ratio)| json!({ "to": to, "ratio": ratio })),
            })
        })
        .collect()
}

/// A bar for each ratio, and lines at one and at two.
pub(crate) fn plot(rows: &[Row]) -> String {
    const LEFT: f64 = 330.0;
    const UNIT: f64 = 110.0;
    const LINE: f64 = 26.0;
    let bars: Vec<_> = rows
        .iter()
        .filter_map(|row| ratio(rows, row).map(|(to, ratio)| (row, to, ratio)))
        .collect();
    let most = bars.iter().map(|bar| bar.2).fold(2.0, f64::max);
    let (width, height) = (LEFT + most * UNIT + 60.0, LINE * (bars.len() as f64 + 2.0));
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         font-family=\"monospace\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    for (n, (row, to, ratio)) in (1u32..).zip(&bars) {
        let y = LINE * f64::from(n);
        let colour = if *ratio >= 2.0 {
            "#1b7a2b"
        } else if *ratio >= 1.0 {
            "#1255a8"
        } else {
            "#c74a0a"
        };
        let _ = writeln!(
            out,
            "<text x=\"8\" y=\"{:.0}\">{}: {}</text>\n<rect x=\"{LEFT}\" y=\"{y:.0}\" width=\"{:.1}\" height=\"18\" \
             fill=\"{colour}\"/>\n<text x=\"{:.1}\" y=\"{:.0}\">{ratio:.2} x {to}</text>",
            y + 14.0,
            row.load,
            row.name,
            ratio * UNIT,
            LEFT + ratio * UNIT + 6.0,
            y + 14.0,
        );
    }
    for mark in [1.0, 2.0] {
        let x = LEFT + mark * UNIT;
        let _ = writeln!(
            out,
            "<line x1=\"{x:.0}\" x2=\"{x:.0}\" y1=\"16\" y2=\"{:.0}\" stroke=\"#888\"/>\n\
             <text x=\"{:.0}\" y=\"12\" fill=\"#888\">{mark:.0} x</text>",
            height - 10.0,
            x - 10.0,
        );
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(load: &'static str, name: &'static str, times: &[f64]) -> Row {
        let runs = times.iter().map(|seconds| Run { seconds: *seconds, peak_kib: Some(2048) });
        Row { load, name, ours: name == "varve", runs: runs.collect(), failed: None }
    }

    #[test]
    fn ratios_are_of_the_best_runs_of_one_load() {
        let mut rows = vec![
            row("check", "btrfs check", &[3.0, 2.0]),
            row("check", "varve", &[0.5, 0.9]),
            row("export", "btrfs restore", &[1.0]),
            row("export", "varve", &[2.0]),
        ];
        assert_eq!(ratio(&rows, &rows[1]), Some(("btrfs check", 4.0)));
        assert_eq!(ratio(&rows, &rows[0]), None);
        assert!(text(&rows).contains("0.50 x btrfs restore"), "{}", text(&rows));
        assert_eq!(json(&rows)[1]["ratio"]["ratio"], 4.0);
        assert_eq!(plot(&rows).matches("<rect").count(), 3);
        rows[2].add(Err("no space".into()));
        assert_eq!(ratio(&rows, &rows[3]), None, "a failure is no rival");
        assert!(text(&rows).contains("failed: no space"));
    }
}
