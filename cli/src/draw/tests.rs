//! One picture, both ways.

use super::page::size;
use super::*;

fn picture() -> Picture {
    let span = |start, end, entry, used| Span {
        start,
        end,
        entry,
        used,
        of: 100,
        label: format!("<{start}>"),
    };
    let entry = |name: &str, full| Entry {
        name: name.into(),
        note: "& more".into(),
        empty: Rgb(255, 255, 255),
        full,
    };
    // 1 MiB in 128 x 128 cells of 64 bytes: the first border lies inside a cell.
    let spans = vec![
        span(0, 100_032, 0, 100),
        span(100_032, 524_288, 1, 100),
        span(524_288, 1_000_000, 0, 50),
    ];
    let legend = vec![entry("red", Rgb(200, 0, 0)), entry("blue", Rgb(0, 0, 200))];
    Picture {
        title: "a \"title\"".into(),
        panels: vec![Panel { name: "dev".into(), len: 1 << 20, spans, legend, borders: true }],
    }
}

/// `(class, x, y, side, fill)` of every rectangle inside a span's group.
fn rects(svg: &str) -> Vec<(String, u64, u64, u64, String)> {
    let mut class = String::new();
    let mut found = Vec::new();
    for line in svg.lines() {
        let value = |name: &str| {
            let from = line.find(&format!(" {name}=\"")).expect("an attribute") + name.len() + 3;
            line[from..].split('"').next().expect("its value").to_owned()
        };
        if line.starts_with("<g") {
            class = value("class");
        } else if line.starts_with("</g") {
            class.clear();
        } else if line.starts_with("<rect") && class.starts_with('k') {
            let n = |name| value(name).parse().expect("a number");
            found.push((class.clone(), n("x"), n("y"), n("width"), value("fill")));
        }
    }
    found
}

#[test]
fn areas_in_the_svg_are_bytes() {
    let picture = picture();
    let page = Page::new(&picture, None);
    let place = page.places[0];
    assert_eq!((place.order, place.cell, place.pixels), (7, 64, 4));
    let svg = svg(&page);
    assert!(svg.contains("<title>&lt;0&gt;</title>") && svg.contains("&amp; more"));
    let bytes = |class: &str| -> u64 {
        let of = rects(&svg).into_iter().filter(|rect| rect.0 == class);
        of.map(|rect| rect.3 * rect.3 / 16 * 64).sum()
    };
    // Cells count for the span that has most of them.
    assert!(bytes("k0").abs_diff(100_032 + 475_712) <= 128, "{}", bytes("k0"));
    assert!(bytes("k1").abs_diff(424_256) <= 128, "{}", bytes("k1"));
}

#[test]
fn the_png_has_the_colours_of_the_svg() {
    let picture = picture();
    let page = Page::new(&picture, None);
    let bytes = png(&page).expect("a small page");
    let mut reader = ::png::Decoder::new(std::io::Cursor::new(&bytes)).read_info().expect("a PNG");
    let mut pixels = vec![0; reader.output_buffer_size().expect("small")];
    let info = reader.next_frame(&mut pixels).expect("pixels");
    assert_eq!((u64::from(info.width), u64::from(info.height)), size(&page));
    let mut compared = 0;
    for (_, x, y, side, fill) in rects(&svg(&page)) {
        // The last pixel of a cell is on no border line.
        let (x, y) = (x + side - 1, y + side - 1);
        let at = usize::try_from(y * u64::from(info.width) + x).unwrap() * 3;
        let hex: String = pixels[at..at + 3].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(format!("#{hex}"), fill, "{x},{y}");
        compared += 1;
    }
    assert!(compared > 10);
    assert!(pixels.chunks(3).any(|pixel| pixel == [0x44; 3]), "border lines");
}

#[test]
fn the_curve_is_folded_as_fits_the_device() {
    assert_eq!(order_for(1 << 20), 7);
    assert_eq!(order_for(64 << 30), 7);
    assert_eq!(order_for((64 << 30) + 1), 8);
    assert_eq!(order_for(u64::MAX), 10);
    assert_eq!(Rgb(0, 100, 200).towards(Rgb(200, 100, 0), 1, 2), Rgb(100, 100, 100));
}
