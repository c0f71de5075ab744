//! A page as PNG.

use super::Rgb;
use super::page::{Canvas, Page, size};
use font8x8::UnicodeFonts;

/// The bytes of a PNG file.
///
/// # Errors
/// When the page is larger than a PNG can be.
pub(crate) fn png(page: &Page<'_>) -> anyhow::Result<Vec<u8>> {
    let (w, h) = size(page);
    let (width, height) = (usize::try_from(w)?, usize::try_from(h)?);
    let mut on = Raster { width, height, bytes: vec![0xFF; width * height * 3] };
    page.draw(&mut on);
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, u32::try_from(w)?, u32::try_from(h)?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header()?.write_image_data(&on.bytes)?;
    Ok(out)
}

struct Raster {
    width: usize,
    height: usize,
    bytes: Vec<u8>,
}

impl Canvas for Raster {
    fn rect(&mut self, x: u64, y: u64, w: u64, h: u64, Rgb(r, g, b): Rgb) {
        let within = |at: u64, end: usize| usize::try_from(at).unwrap_or(end).min(end);
        let (left, right) = (within(x, self.width), within(x + w, self.width));
        for row in within(y, self.height)..within(y + h, self.height) {
            let row = row * self.width;
            for pixel in self.bytes[(row + left) * 3..(row + right) * 3].chunks_exact_mut(3) {
                pixel.copy_from_slice(&[r, g, b]);
            }
        }
    }

    fn text(&mut self, x: u64, y: u64, text: &str, colour: Rgb) {
        for (column, letter) in (0u64..).zip(text.chars()) {
            let latin = || font8x8::LATIN_FONTS.get(letter);
            let unknown = || font8x8::BASIC_FONTS.get('?');
            let glyph = font8x8::BASIC_FONTS.get(letter).or_else(latin).or_else(unknown);
            for (row, bits) in (0u64..).zip(glyph.unwrap_or_default()) {
                for bit in (0..8).filter(|bit| bits >> bit & 1 == 1) {
                    self.rect(x + column * 8 + bit, y + row, 1, 1, colour);
                }
            }
        }
    }
}
