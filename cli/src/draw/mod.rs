//! Pictures of devices: what each stretch of a line of bytes is, along a Hilbert curve, with a legend;
//! as SVG and as PNG, of the same layout.

mod hilbert;
mod page;
mod png;
mod svg;
#[cfg(test)]
mod tests;

pub(crate) use page::Page;
pub(crate) use png::png;
pub(crate) use svg::svg;

/// Red, green, blue.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Rgb(pub u8, pub u8, pub u8);

impl Rgb {
    /// From `self` to `other`: 0 is `self`, `whole` is `other`.
    pub(crate) fn towards(self, other: Rgb, part: u64, whole: u64) -> Rgb {
        let whole = whole.max(1);
        let part = part.min(whole);
        let mix = |a: u8, b: u8| {
            let sum = u128::from(a) * u128::from(whole - part) + u128::from(b) * u128::from(part);
            u8::try_from((sum + u128::from(whole / 2)) / u128::from(whole)).unwrap_or(b)
        };
        Rgb(mix(self.0, other.0), mix(self.1, other.1), mix(self.2, other.2))
    }
}

/// Devices beside each other.
pub(crate) struct Picture {
    pub title: String,
    pub panels: Vec<Panel>,
}

/// One device.
pub(crate) struct Panel {
    pub name: String,
    /// Bytes.
    pub len: u64,
    /// In order, and of every byte one says what it is.
    pub spans: Vec<Span>,
    pub legend: Vec<Entry>,
    /// Lines between spans.
    pub borders: bool,
}

/// A stretch of the device.
pub(crate) struct Span {
    pub start: u64,
    pub end: u64,
    /// Of the legend.
    pub entry: usize,
    pub used: u64,
    /// What `used` is a part of.
    pub of: u64,
    pub label: String,
}

/// One kind of span.
pub(crate) struct Entry {
    pub name: String,
    pub note: String,
    /// The colours of a span with nothing used, and of a full one.
    pub empty: Rgb,
    pub full: Rgb,
}

impl Panel {
    pub(crate) fn colour(&self, span: &Span) -> Rgb {
        let entry = &self.legend[span.entry];
        entry.empty.towards(entry.full, span.used, span.of)
    }
}

/// How often a panel's line is folded: fine enough that a cell is at most 4 MiB, as far as a screen
/// goes.
pub(crate) fn order_for(len: u64) -> u32 {
    const CELL: u64 = 4 << 20;
    (ORDER_MIN..ORDER_MAX).find(|order| len.div_ceil(1 << (2 * order)) <= CELL).unwrap_or(ORDER_MAX)
}

/// Cells of 64 KiB on a device of 1 GiB; more than anybody's screen shows.
const ORDER_MIN: u32 = 7;
const ORDER_MAX: u32 = 10;
