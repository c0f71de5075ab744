//! `varve fs map`: areas in the picture are the bytes that `fs usage` and `cache show` count.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use varve_tests::client::Server;
use varve_tests::disk::{noise, sparse};
use varve_tests::loop_mount;
use varve_tests::nbd::{FUA, Request};
use varve_tests::process;
use varve_tests::varve::{make_stack, varve};

fn json(dir: &Path, line: &str) -> Value {
    serde_json::from_str(&varve(dir, line).ok()).expect("JSON")
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("a number")
}

/// Bytes that the cells of each kind stand for, panel by panel: from the rectangles of the SVG.
fn drawn(svg: &str, map: &Value) -> Vec<Vec<u64>> {
    let mut sums = Vec::new();
    let mut class = None;
    for panel in map["panels"].as_array().expect("panels") {
        sums.push(vec![0; panel["kinds"].as_array().expect("kinds").len()]);
    }
    for line in svg.lines() {
        let value = |name: &str| {
            let from = line.find(&format!(" {name}=\"")).expect("an attribute") + name.len() + 3;
            line[from..].split('"').next().expect("its value")
        };
        if line.starts_with("<g") {
            class = value("class").strip_prefix('k').map(|n| n.parse::<usize>().expect("a kind"));
        } else if line.starts_with("</g") {
            class = None;
        } else if let Some(kind) = class
            && line.starts_with("<rect")
        {
            let [x, side] = ["x", "width"].map(|name| value(name).parse::<u64>().expect("pixels"));
            let y: u64 = value("y").parse().expect("pixels");
            let (at, panel) = map["panels"]
                .as_array()
                .expect("panels")
                .iter()
                .enumerate()
                .find(|(_, panel)| {
                    let place = &panel["picture"];
                    let whole = number(&place["pixels"]) << number(&place["order"]);
                    let inside = |at: u64, from: u64| (from..from + whole).contains(&at);
                    inside(x, number(&place["x"])) && inside(y, number(&place["y"]))
                })
                .expect("in a panel");
            let cells = (side / number(&panel["picture"]["pixels"])).pow(2);
            sums[at][kind] += cells * number(&panel["cell_bytes"]);
        }
    }
    sums
}

#[test]
fn areas_are_the_sizes_that_usage_counts() {
    if !loop_mount::available() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    // 256 MiB and 1 GiB are whole numbers of cells, and chunks begin and end at cells.
    for (name, len) in [("a.img", 256 << 20), ("b.img", 1 << 30)] {
        sparse(&dir.join(name), len);
    }
    let mkfs = "mkfs.btrfs -q -m raid1 -d single a.img b.img";
    process::run(Command::new("bash").current_dir(dir).args(["-ec", mkfs])).ok();
    let line = "fs map a.img --device b.img --svg map.svg --png map.png --json";
    let map = json(dir, line);
    let usage = json(dir, "fs usage a.img --device b.img --json");
    let svg = std::fs::read_to_string(dir.join("map.svg")).expect("the SVG");
    let sums = drawn(&svg, &map);
    let panels = map["panels"].as_array().expect("panels");
    assert_eq!(panels.len(), 2);
    let mut kinds = 0;
    for (n, (panel, sums)) in panels.iter().zip(&sums).enumerate() {
        let device = &usage["devices"][n];
        for (kind, sum) in panel["kinds"].as_array().expect("kinds").iter().zip(sums) {
            let (kind, devid) = (kind.as_str().expect("a name"), &device["devid"]);
            let wanted = match kind.split_once(", ") {
                None => number(&device["size"]) - number(&device["allocated"]),
                Some((name, profile)) => usage["groups"]
                    .as_array()
                    .expect("groups")
                    .iter()
                    .filter(|group| group["type"] == name && group["profile"] == profile)
                    .flat_map(|group| group["devices"].as_array().expect("devices"))
                    .filter(|on| on["devid"] == *devid)
                    .map(|on| number(&on["bytes"]))
                    .sum(),
            };
            assert_eq!(*sum, wanted, "device {devid}: {kind}");
            kinds += 1;
        }
        assert_eq!(sums.iter().sum::<u64>(), number(&device["size"]));
    }
    assert!(kinds >= 6, "{map}");
    let png = std::fs::read(dir.join("map.png")).expect("the PNG");
    assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"));
    // What is there is not written over, unless that is said.
    assert!(varve(dir, line).exits_with(3).contains("map.svg is there already"));
    varve(dir, &format!("{line} --force")).ok();
    varve(dir, "fs map a.img").exits_with(2);
}

#[test]
fn a_cache_is_drawn_with_what_it_holds_of_the_disk() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    let stack = make_stack(dir, 160 << 20, 36 << 20, "writeback", Some("key"));
    varve(dir, "fs mkfs --backing hdd --cache ssd --key-file key --label attic").ok();
    let server = Server::start(dir, &stack);
    let mut nbd = server.connect();
    let data = noise(1, 1 << 20);
    let at = nbd.size() - (4 << 20);
    nbd.ask(Request::Write { at, data: &data, flags: FUA })
        .expect("the server stays")
        .expect("a write");
    server.kill();

    let map = json(dir, "fs map --backing hdd --cache ssd --key-file key --svg m.svg --json");
    let show = json(dir, "cache show --backing hdd --cache ssd --json");
    let volume = &show["content"]["volumes"][0];
    let panel = map["panels"].as_array().expect("panels").last().expect("of the cache");
    let counted = |kind: &str| -> u64 {
        let spans = panel["spans"].as_array().expect("spans").iter();
        spans.filter(|span| span["kind"] == kind).map(|span| number(&span["length"])).sum()
    };
    let dirty = number(&volume["dirty_sectors"]) * 512;
    assert!(dirty >= 1 << 20, "{show}");
    assert_eq!(counted("Cached, dirty"), dirty);
    let clean = number(&volume["cached_sectors"]) * 512 - dirty;
    // What a kill has left in doubt is not shown as clean.
    assert!(counted("Cached, clean") <= clean, "{panel}");
    let svg = std::fs::read_to_string(dir.join("m.svg")).expect("the SVG");
    let sums = drawn(&svg, &map);
    let sums = sums.last().expect("of the cache");
    let spans = panel["spans"].as_array().expect("spans").len() as u64;
    let near = spans * number(&panel["cell_bytes"]);
    assert!(sums[2].abs_diff(dirty) <= near && sums[2] > 0, "{sums:?} {dirty}");
    assert_eq!(sums.iter().sum::<u64>().abs_diff(160 << 20) / number(&panel["cell_bytes"]), 0);
}
