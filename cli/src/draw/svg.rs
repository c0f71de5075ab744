//! A page as SVG. Each span is a group with its kind as class and what it is as a tooltip.

use super::Rgb;
use super::page::{Canvas, Page, size};
use std::fmt::Write;

pub(crate) fn svg(page: &Page<'_>) -> String {
    let (w, h) = size(page);
    let mut on = Svg(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\" \
         font-family=\"monospace\" font-size=\"13\" shape-rendering=\"crispEdges\">\n\
         <rect width=\"{w}\" height=\"{h}\" fill=\"#ffffff\"/>\n"
    ));
    page.draw(&mut on);
    on.0.push_str("</svg>\n");
    on.0
}

struct Svg(String);

impl Svg {
    fn put(&mut self, what: std::fmt::Arguments<'_>) {
        self.0.write_fmt(what).expect("a string takes everything");
    }
}

fn hex(Rgb(r, g, b): Rgb) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// Text without the letters that mean something to a reader of XML, or nothing at all.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push('?'),
            c => out.push(c),
        }
    }
    out
}

impl Canvas for Svg {
    fn rect(&mut self, x: u64, y: u64, w: u64, h: u64, colour: Rgb) {
        let fill = hex(colour);
        self.put(format_args!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" fill=\"{fill}\"/>\n"
        ));
    }

    fn text(&mut self, x: u64, y: u64, text: &str, colour: Rgb) {
        let (y, fill, text) = (y + 9, hex(colour), escaped(text));
        self.put(format_args!(
            "<text x=\"{x}\" y=\"{y}\" fill=\"{fill}\" xml:space=\"preserve\">{text}</text>\n"
        ));
    }

    fn begin(&mut self, kind: &str, label: &str) {
        self.put(format_args!("<g class=\"{kind}\">"));
        if !label.is_empty() {
            self.put(format_args!("<title>{}</title>", escaped(label)));
        }
        self.0.push('\n');
    }

    fn end(&mut self) {
        self.0.push_str("</g>\n");
    }
}
