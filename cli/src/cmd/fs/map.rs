//! `varve fs map`: which chunk every stretch of a device belongs to and how full its block group is;
//! and, with a cache in the stack, which sectors of the disk the cache holds.

use super::show::{kind_of, pretty};
use super::source;
use super::target::Fresh;
use crate::args::FsMap;
use crate::cmd::output;
use crate::config::StackConfig;
use crate::draw::{self, Entry, Page, Panel, Picture, Rgb, Span};
use crate::failure::Outcome;
use crate::place::Place;
use crate::stack;
use anyhow::Context;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use varve_block::{BlockDevice, Rt};
use varve_cache::CacheView;
use varve_fs::usage::{Device, Group};

const NOTHING: Rgb = Rgb(0xEC, 0xEC, 0xEC);

pub(super) async fn run(rt: &Rt, args: FsMap) -> anyhow::Result<Outcome> {
    let config = StackConfig::new(&args.source.stack, args.image.as_ref())?;
    let fs = source::open_at(rt, args.image.as_ref(), &args.source).await?;
    let sb = fs.superblock();
    let groups = fs.groups().await?;
    let mut panels: Vec<Panel> =
        fs.devices().await?.iter().map(|device| device_panel(device, &groups)).collect();
    if let Some(cache) = &config.cache {
        panels.push(cache_panel(rt, &config.backing, cache).await?);
    }
    let mut title = format!("btrfs {}", sb.fsid);
    if !sb.label.as_bytes().is_empty() {
        title = format!("{title} '{}'", sb.label.as_bytes().escape_ascii());
    }
    let picture = Picture { title, panels };
    let page = Page::new(&picture, args.order);
    if let Some(path) = &args.svg {
        write(path, args.force, draw::svg(&page).as_bytes())?;
    }
    if let Some(path) = &args.png {
        write(path, args.force, &draw::png(&page)?)?;
    }
    if args.json {
        let panels = picture.panels.iter().zip(&page.places).map(|(panel, place)| {
            let spans: Vec<_> = panel.spans.iter().map(|span| span_json(panel, span)).collect();
            json!({
                "name": panel.name,
                "bytes": panel.len,
                "cell_bytes": place.cell,
                "picture": { "x": place.x, "y": place.y, "order": place.order, "pixels": place.pixels },
                "kinds": panel.legend.iter().map(|entry| &entry.name).collect::<Vec<_>>(),
                "spans": spans,
            })
        });
        output::json(
            &json!({ "uuid": sb.fsid.to_string(), "panels": panels.collect::<Vec<_>>() }),
        )?;
    }
    Ok(Outcome::Fine)
}

fn write(path: &Path, force: bool, bytes: &[u8]) -> anyhow::Result<()> {
    let mut fresh = Fresh::create(path, force)?;
    fresh
        .file()
        .write_all(bytes)
        .with_context(|| format!("{} cannot be written", path.display()))?;
    fresh.finish()
}

fn span_json(panel: &Panel, span: &Span) -> Value {
    json!({
        "start": span.start,
        "length": span.end - span.start,
        "kind": panel.legend[span.entry].name,
        "used": span.used,
        "of": span.of,
        "what": span.label,
    })
}

/// Colours by what a chunk holds: of an empty one and of a full one. Further profiles of a kind, as
/// there are during a conversion, get the next ones.
fn colours(name: &str, nth: usize) -> (Rgb, Rgb) {
    let known: [(Rgb, Rgb); 3] = match name {
        "Data" => [
            (Rgb(0xD6, 0xE6, 0xF7), Rgb(0x12, 0x55, 0xA8)),
            (Rgb(0xD2, 0xF0, 0xF4), Rgb(0x00, 0x7C, 0x8C)),
            (Rgb(0xE0, 0xDD, 0xF7), Rgb(0x48, 0x38, 0xA8)),
        ],
        "Metadata" => [
            (Rgb(0xD5, 0xEE, 0xD3), Rgb(0x1B, 0x7A, 0x2B)),
            (Rgb(0xE6, 0xEE, 0xC4), Rgb(0x6B, 0x7F, 0x0A)),
            (Rgb(0xCE, 0xEF, 0xE3), Rgb(0x0B, 0x6E, 0x55)),
        ],
        "System" => [
            (Rgb(0xFD, 0xDC, 0xC4), Rgb(0xC7, 0x4A, 0x0A)),
            (Rgb(0xFB, 0xD3, 0xD3), Rgb(0xB0, 0x1E, 0x1E)),
            (Rgb(0xFC, 0xE8, 0xB8), Rgb(0xB0, 0x7A, 0x00)),
        ],
        _ => [
            (Rgb(0xEE, 0xDA, 0xF3), Rgb(0x7A, 0x1F, 0x96)),
            (Rgb(0xF6, 0xD9, 0xE9), Rgb(0xA8, 0x1F, 0x6B)),
            (Rgb(0xE4, 0xDC, 0xD6), Rgb(0x6B, 0x4A, 0x33)),
        ],
    };
    known[nth % known.len()]
}

/// Bytes and used bytes of an entry, and in how many spans.
fn sum(spans: &[Span], entry: usize) -> (u64, u64, usize) {
    let of = spans.iter().filter(|span| span.entry == entry);
    of.fold((0, 0, 0), |(bytes, used, n), span| {
        let len = span.end - span.start;
        let share = u128::from(len) * u128::from(span.used) / u128::from(span.of.max(1));
        (bytes + len, used + u64::try_from(share).unwrap_or(len), n + 1)
    })
}

fn device_panel(device: &Device, groups: &[Group]) -> Panel {
    let Device { item, name } = device;
    let len = item.total_bytes;
    let mut legend: Vec<Entry> = Vec::new();
    let mut entries = BTreeMap::new();
    let mut names: Vec<_> = groups
        .iter()
        .filter(|group| group.chunk.stripes.iter().any(|stripe| stripe.devid == item.devid))
        .map(|group| kind_of(group.chunk.flags))
        .collect();
    names.sort();
    names.dedup();
    let mut nth: BTreeMap<&str, usize> = BTreeMap::new();
    for kind in names {
        let count = nth.entry(kind.1).or_default();
        let (empty, full) = colours(kind.1, *count);
        *count += 1;
        let name = format!("{}, {}", kind.1, kind.2);
        entries.insert(kind, legend.len());
        legend.push(Entry { name, note: String::new(), empty, full });
    }
    let mut spans = Vec::new();
    for Group { start, chunk, used } in groups {
        let bytes = chunk.stripe_size().unwrap_or(0);
        let entry = entries.get(&kind_of(chunk.flags)).copied().unwrap_or(0);
        let used = used.unwrap_or(0).min(chunk.length);
        for stripe in chunk.stripes.iter().filter(|stripe| stripe.devid == item.devid) {
            let end = stripe.offset.saturating_add(bytes).min(len);
            let label = format!(
                "{}, chunk {start}, {} of {} used, at byte {}",
                legend[entry].name,
                pretty(used),
                pretty(chunk.length),
                stripe.offset,
            );
            spans.push(Span { start: stripe.offset, end, entry, used, of: chunk.length, label });
        }
    }
    let unallocated = legend.len();
    legend.push(Entry {
        name: "Unallocated".into(),
        note: String::new(),
        empty: NOTHING,
        full: NOTHING,
    });
    let spans = with_gaps(spans, len, unallocated, "unallocated");
    for (at, entry) in legend.iter_mut().enumerate() {
        let (bytes, used, n) = sum(&spans, at);
        entry.note = match at == unallocated {
            true => pretty(bytes),
            false => {
                let percent = u128::from(used) * 1000 / u128::from(bytes.max(1));
                let word = if n == 1 { "stripe" } else { "stripes" };
                format!("{}, {}.{}% full, {n} {word}", pretty(bytes), percent / 10, percent % 10)
            }
        };
    }
    let name = name.as_deref().map_or("missing", |name| name.rsplit('/').next().unwrap_or(name));
    let name = format!("device {}: {name}, {}", item.devid, pretty(len));
    Panel { name, len, spans, legend, borders: true }
}

/// The spans in order, what lies between them as spans of the entry `gap`. Of two that overlap, which
/// only damage brings about, the later one is cut.
fn with_gaps(mut spans: Vec<Span>, len: u64, gap: usize, label: &str) -> Vec<Span> {
    spans.sort_by_key(|span| span.start);
    let mut all: Vec<Span> = Vec::new();
    let mut at = 0;
    let between =
        |start, end| Span { start, end, entry: gap, used: 0, of: 1, label: label.to_owned() };
    for mut span in spans {
        span.start = span.start.max(at);
        if span.start >= span.end {
            continue;
        }
        if at < span.start {
            all.push(between(at, span.start));
        }
        at = span.end;
        all.push(span);
    }
    if at < len {
        all.push(between(at, len));
    }
    all
}

/// Which bytes of the disk the cache holds.
async fn cache_panel(rt: &Rt, backing: &Place, cache: &Place) -> anyhow::Result<Panel> {
    let hdd = stack::open_device(rt, backing, true).await?;
    let ssd = stack::open_device(rt, cache, true).await?;
    let len = hdd.geometry().len.bytes();
    let view = CacheView::open(ssd, hdd).await?;
    let entry = |name: &str, colour| Entry {
        name: name.into(),
        note: String::new(),
        empty: colour,
        full: colour,
    };
    const CLEAN: usize = 1;
    const DIRTY: usize = 2;
    const LOST: usize = 3;
    let mut legend = vec![
        entry("Not cached", NOTHING),
        entry("Cached, clean", Rgb(0x2E, 0x8B, 0x6F)),
        entry("Cached, dirty", Rgb(0xD9, 0x4F, 0x1E)),
    ];
    let held = view
        .cached_extents()
        .map(|extent| (extent, if extent.dirty { (DIRTY, "dirty") } else { (CLEAN, "clean") }));
    let lost = view.lost_extents().iter().map(|extent| (extent, (LOST, "lost")));
    let mut spans: Vec<Span> = Vec::new();
    for (extent, (entry, word)) in held.chain(lost) {
        let (start, end) = (extent.start.saturating_mul(512), extent.end.saturating_mul(512));
        let (start, end) = (start.min(len), end.min(len));
        match spans.last_mut().filter(|last| last.end == start && last.entry == entry) {
            Some(last) => last.end = end,
            None => spans.push(Span { start, end, entry, used: 1, of: 1, label: word.into() }),
        }
    }
    if !view.lost_extents().is_empty() {
        legend.push(entry("Lost", Rgb(0, 0, 0)));
    }
    let spans = with_gaps(spans, len, 0, "not cached");
    for (at, entry) in legend.iter_mut().enumerate() {
        entry.note = pretty(sum(&spans, at).0);
    }
    let file = |place: &Place| match place {
        Place::Path(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        Place::Nbd(uri) => uri.to_string(),
    };
    let name = format!("{}, {}: what {} holds of it", file(backing), pretty(len), file(cache));
    Ok(Panel { name, len, spans, legend, borders: false })
}
