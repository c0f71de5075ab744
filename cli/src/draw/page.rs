//! Where everything stands on the page, drawn onto whatever is a [`Canvas`].

use super::hilbert::{self, squares};
use super::{Panel, Picture, Rgb, order_for};
use crate::size::Size;
use std::collections::BTreeMap;

/// Side of a panel in pixels, unless there are more cells than that.
const SIDE: u64 = 512;
const MARGIN: u64 = 24;
/// Height of a line of text.
const LINE: u64 = 22;
/// Width of a colour sample.
const SAMPLE: u64 = 48;
/// Panels beside each other.
const COLUMNS: usize = 3;

const INK: Rgb = Rgb(0x22, 0x22, 0x22);
const FRAME: Rgb = Rgb(0x88, 0x88, 0x88);
const BORDER: Rgb = Rgb(0x44, 0x44, 0x44);

/// Something to draw on, in pixels from the upper left corner.
pub(crate) trait Canvas {
    fn rect(&mut self, x: u64, y: u64, w: u64, h: u64, colour: Rgb);
    /// `y` is the top of the letters.
    fn text(&mut self, x: u64, y: u64, text: &str, colour: Rgb);
    /// What is drawn until [`Canvas::end`] is one thing: of this kind, with this name.
    fn begin(&mut self, _kind: &str, _label: &str) {}
    fn end(&mut self) {}
}

/// The layout of a picture.
pub(crate) struct Page<'a> {
    picture: &'a Picture,
    pub places: Vec<Place>,
}

/// Where a panel's cells are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub x: u64,
    pub y: u64,
    /// The panel has `2^order` cells on each side.
    pub order: u32,
    /// Pixels on each side of a cell.
    pub pixels: u64,
    /// Bytes that a cell stands for.
    pub cell: u64,
}

impl Place {
    fn of(panel: &Panel, order: Option<u32>) -> Place {
        let order = order.unwrap_or_else(|| order_for(panel.len));
        let cell = panel.len.div_ceil(1 << (2 * order)).max(1);
        Place { x: 0, y: 0, order, pixels: (SIDE >> order).max(1), cell }
    }

    fn side(&self) -> u64 {
        self.pixels << self.order
    }
}

impl<'a> Page<'a> {
    /// `order`: how often every panel is folded; by default as fits its size.
    pub(crate) fn new(picture: &'a Picture, order: Option<u32>) -> Page<'a> {
        let mut places: Vec<Place> =
            picture.panels.iter().map(|panel| Place::of(panel, order)).collect();
        let mut top = MARGIN + 2 * LINE;
        for (panels, places) in picture.panels.chunks(COLUMNS).zip(places.chunks_mut(COLUMNS)) {
            let mut left = MARGIN;
            let mut height = 0;
            for (panel, place) in panels.iter().zip(places) {
                (place.x, place.y) = (left, top);
                left += place.side() + 2 * MARGIN;
                height = height.max(place.side() + LINE * (panel.legend.len() as u64 + 2));
            }
            top += height + MARGIN + LINE;
        }
        Page { picture, places }
    }

    fn panels(&self) -> impl Iterator<Item = (&'a Panel, &Place)> {
        self.picture.panels.iter().zip(&self.places)
    }

    pub(crate) fn draw(&self, on: &mut impl Canvas) {
        on.text(MARGIN, MARGIN - LINE / 4, &self.picture.title, INK);
        for (panel, place) in self.panels() {
            let side = place.side();
            on.text(place.x, place.y - LINE, &panel.name, INK);
            on.rect(place.x - 1, place.y - 1, side + 2, side + 2, FRAME);
            on.rect(place.x, place.y, side, side, Rgb(255, 255, 255));
            let cells = cells(panel, place);
            draw_cells(panel, place, &cells, on);
            // A cell that is too small shows nothing beside a line.
            if panel.borders && place.pixels > 1 {
                draw_borders(place, &cells, on);
            }
            draw_legend(panel, place, on);
        }
    }
}

/// Width and height of the page in pixels.
pub(crate) fn size(page: &Page<'_>) -> (u64, u64) {
    let right = page.panels().map(|(_, place)| place.x + place.side()).max().unwrap_or(0);
    let below = page
        .panels()
        .map(|(panel, place)| place.y + place.side() + LINE * (panel.legend.len() as u64 + 2))
        .max();
    let title = MARGIN + 8 * page.picture.title.chars().count() as u64;
    (right.max(title) + MARGIN, below.unwrap_or(MARGIN) + MARGIN)
}

/// What a cell shows: the span that has most of it, and its colour where it is not that span's alone.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Cell {
    span: usize,
    mixed: Option<Rgb>,
}

/// The cells of a panel, along the line.
fn cells(panel: &Panel, place: &Place) -> Vec<Cell> {
    let mut cells: Vec<Cell> = Vec::new();
    let mut first = 0;
    for n in 0..panel.len.div_ceil(place.cell) {
        let (from, to) = (n * place.cell, ((n + 1) * place.cell).min(panel.len));
        while panel.spans.get(first).is_some_and(|span| span.end <= from) {
            first += 1;
        }
        let inside = panel.spans[first..].iter().take_while(|span| span.start < to);
        let shares: Vec<(usize, u64)> = (first..)
            .zip(inside)
            .map(|(at, span)| (at, span.end.min(to) - span.start.max(from)))
            .collect();
        let Some((span, _)) = shares.iter().max_by_key(|(_, share)| *share) else { break };
        let mixed = (shares.len() > 1).then(|| {
            let mut seen = 0;
            shares.iter().fold(Rgb(0, 0, 0), |colour, (at, share)| {
                seen += share;
                colour.towards(panel.colour(&panel.spans[*at]), *share, seen)
            })
        });
        cells.push(Cell { span: *span, mixed });
    }
    cells
}

fn draw_cells(panel: &Panel, place: &Place, cells: &[Cell], on: &mut impl Canvas) {
    let mut from = 0;
    for run in cells.chunk_by(|a, b| a.span == b.span) {
        let Some(span) = run.first().map(|cell| &panel.spans[cell.span]) else { continue };
        on.begin(&format!("k{}", span.entry), &span.label);
        for same in run.chunk_by(|a, b| a == b) {
            let to = from + same.len() as u64;
            let colour = same[0].mixed.unwrap_or_else(|| panel.colour(span));
            for square in squares(place.order, from, to) {
                let (x, y) = (square.x * place.pixels, square.y * place.pixels);
                let side = square.side * place.pixels;
                on.rect(place.x + x, place.y + y, side, side, colour);
            }
            from = to;
        }
        on.end();
    }
}

/// Lines between spans, along the upper and left edges of cells.
fn draw_borders(place: &Place, cells: &[Cell], on: &mut impl Canvas) {
    let side = 1u64 << place.order;
    let spans: BTreeMap<(u64, u64), usize> = (0u64..)
        .zip(cells)
        .map(|(at, cell)| (hilbert::place(place.order, at), cell.span))
        .collect();
    on.begin("border", "");
    for a in 1..side {
        // Runs of edges: above the cells of row `a`, and left of those of column `a`.
        for (from, to) in runs(side, |b| spans.get(&(b, a)) != spans.get(&(b, a - 1))) {
            let (x, y) = (place.x + from * place.pixels, place.y + a * place.pixels);
            on.rect(x, y, (to - from) * place.pixels, 1, BORDER);
        }
        for (from, to) in runs(side, |b| spans.get(&(a, b)) != spans.get(&(a - 1, b))) {
            let (x, y) = (place.x + a * place.pixels, place.y + from * place.pixels);
            on.rect(x, y, 1, (to - from) * place.pixels, BORDER);
        }
    }
    on.end();
}

/// Maximal runs of numbers below `end` for which `is` holds.
fn runs(end: u64, is: impl Fn(u64) -> bool) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for at in (0..end).filter(|at| is(*at)) {
        match runs.last_mut() {
            Some(run) if run.1 == at => run.1 = at + 1,
            _ => runs.push((at, at + 1)),
        }
    }
    runs
}

fn draw_legend(panel: &Panel, place: &Place, on: &mut impl Canvas) {
    const STEPS: u64 = 6;
    let mut y = place.y + place.side() + LINE / 2;
    for entry in &panel.legend {
        on.rect(place.x - 1, y - 1, SAMPLE + 2, LINE - 4, FRAME);
        for step in 0..STEPS {
            let colour = entry.empty.towards(entry.full, step, STEPS - 1);
            on.rect(place.x + step * SAMPLE / STEPS, y, SAMPLE / STEPS, LINE - 6, colour);
        }
        on.text(place.x + SAMPLE + 10, y + 4, &format!("{}  {}", entry.name, entry.note), INK);
        y += LINE;
    }
    let cell = Size(place.cell);
    on.text(
        place.x,
        y + 4,
        &format!("a cell is {cell}; the curve begins at the upper left"),
        FRAME,
    );
}
