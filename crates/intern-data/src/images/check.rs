//! What is in a picture file: format, size, damage, and its perceptual hash.

use std::io::Cursor;
use std::sync::LazyLock;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, ImageDecoder, ImageFormat, ImageReader};
use serde::{Deserialize, Serialize};

/// Limits a picture must keep. A limit of 0 is none.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ImageRules {
    /// Formats allowed: `jpeg`, `png`, `webp`, `gif`, `bmp`, `tiff`.
    pub formats: Vec<String>,
    /// Smallest file, bytes.
    pub min_bytes: u64,
    /// Largest file, bytes.
    pub max_bytes: u64,
    /// Smallest shorter side, pixels.
    pub min_side: u32,
    /// Largest longer side, pixels; larger pictures are not decoded.
    pub max_side: u32,
    /// Most that the longer side may be of the shorter one.
    pub max_aspect: f64,
    /// Smallest entropy of the brightness of its pixels, bits (0 for one colour, at most 8).
    pub min_entropy: f64,
}

impl Default for ImageRules {
    fn default() -> Self {
        Self {
            formats: ["jpeg", "png", "webp", "gif", "bmp", "tiff"].map(String::from).into(),
            min_bytes: 0,
            max_bytes: 50_000_000,
            min_side: 1,
            max_side: 20_000,
            max_aspect: 0.0,
            min_entropy: 0.0,
        }
    }
}

/// Why something is left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drop {
    /// The rule, in one word.
    pub rule: String,
    /// The value and the limit.
    pub why: String,
}

impl Drop {
    pub(super) fn new(rule: &str, why: impl Into<String>) -> Self {
        Self { rule: rule.into(), why: why.into() }
    }
}

/// What was found in a picture file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Picture {
    /// Format by its content; empty if unknown.
    pub format: String,
    /// Size of the file.
    pub bytes: u64,
    /// Pixels across, as shown.
    pub width: u32,
    /// Pixels down, as shown.
    pub height: u32,
    /// Entropy of the brightness, bits.
    pub entropy: f32,
    /// First 16 bytes of the file's BLAKE3, in hexadecimal digits.
    pub hash: String,
    /// Perceptual hash, in hexadecimal digits.
    pub phash: String,
    /// Why it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop: Option<Drop>,
}

const FORMATS: [(ImageFormat, &str); 6] = [
    (ImageFormat::Jpeg, "jpeg"),
    (ImageFormat::Png, "png"),
    (ImageFormat::WebP, "webp"),
    (ImageFormat::Gif, "gif"),
    (ImageFormat::Bmp, "bmp"),
    (ImageFormat::Tiff, "tiff"),
];

/// Memory a decoder may take beside the picture, bytes.
const MAX_ALLOC: u64 = 2 << 30;

/// Looks at a picture; the picture itself comes with it if no rule drops it.
#[must_use]
pub fn look(bytes: &[u8], rules: &ImageRules) -> (Picture, Option<DynamicImage>) {
    let mut picture = Picture { bytes: bytes.len() as u64, ..Picture::default() };
    match measure(bytes, rules, &mut picture) {
        Ok(image) => (picture, Some(image)),
        Err(drop) => {
            picture.drop = Some(drop);
            (picture, None)
        }
    }
}

fn measure(bytes: &[u8], rules: &ImageRules, picture: &mut Picture) -> Result<DynamicImage, Drop> {
    if bytes.is_empty() {
        return Err(Drop::new("missing", "there is no such file"));
    }
    picture.hash = blake3::hash(bytes).to_hex()[..32].to_string();
    let size = bytes.len() as u64;
    if size < rules.min_bytes {
        return Err(Drop::new("min_bytes", format!("{size} bytes, at least {}", rules.min_bytes)));
    }
    if rules.max_bytes > 0 && size > rules.max_bytes {
        return Err(Drop::new("max_bytes", format!("{size} bytes, at most {}", rules.max_bytes)));
    }
    let guessed = image::guess_format(bytes).ok();
    let Some((format, name)) = FORMATS.into_iter().find(|(f, _)| Some(*f) == guessed) else {
        return Err(Drop::new("format", "no picture format this reads"));
    };
    picture.format = name.into();
    if !rules.formats.iter().any(|f| f == name) {
        return Err(Drop::new("format", format!("{name}, allowed {}", rules.formats.join(", "))));
    }
    let corrupt = |e: image::ImageError| Drop::new("corrupt", e.to_string());
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(MAX_ALLOC);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(corrupt)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let (width, height) = decoder.dimensions();
    let turned = matches!(
        orientation,
        Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH
    );
    (picture.width, picture.height) = if turned { (height, width) } else { (width, height) };
    let (short, long) = (width.min(height), width.max(height));
    let sides = |bound: &str, limit: u32| format!("{width} x {height} pixels, {bound} {limit} a side");
    if short < rules.min_side.max(1) {
        return Err(Drop::new("min_side", sides("at least", rules.min_side)));
    }
    if rules.max_side > 0 && long > rules.max_side {
        return Err(Drop::new("max_side", sides("at most", rules.max_side)));
    }
    let aspect = f64::from(long) / f64::from(short);
    if rules.max_aspect > 0.0 && aspect > rules.max_aspect {
        return Err(Drop::new("max_aspect", format!("{aspect:.2} to 1, at most {}", rules.max_aspect)));
    }
    let mut image = DynamicImage::from_decoder(decoder).map_err(corrupt)?;
    if format == ImageFormat::Jpeg && !jpeg_ends(bytes) {
        return Err(Drop::new("corrupt", "the file ends within the picture"));
    }
    image.apply_orientation(orientation);
    let gray = luma(&image);
    picture.entropy = entropy(&gray);
    if f64::from(picture.entropy) < rules.min_entropy {
        return Err(Drop::new(
            "min_entropy",
            format!("{:.2} bits, at least {}", picture.entropy, rules.min_entropy),
        ));
    }
    picture.phash = format!("{:016x}", phash(&gray));
    Ok(image)
}

/// Whether an end-of-image marker follows the picture's first scan; decoders fill up what is missing.
fn jpeg_ends(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[0xff, marker, a, b]) = bytes.get(at..at + 4).and_then(|b| b.first_chunk::<4>()) {
        if marker == 0xda {
            return bytes[at..].windows(2).rev().any(|w| w == [0xff, 0xd9]);
        }
        // Padding may stand before a marker.
        at += if marker == 0xff { 1 } else { 2 + usize::from(u16::from_be_bytes([a, b])) };
    }
    false
}

/// Brightness by the weights of ITU-R BT.601, transparent parts on white.
fn luma(image: &DynamicImage) -> GrayImage {
    let mut gray = GrayImage::new(image.width(), image.height());
    if image.color().has_alpha() {
        let rgba = image.to_rgba8();
        for (out, p) in gray.iter_mut().zip(rgba.pixels()) {
            let [r, g, b, a] = p.0.map(u32::from);
            let light = (19_595 * r + 38_470 * g + 7_471 * b + 0x8000) >> 16;
            *out = ((light * a + 255 * (255 - a) + 127) / 255) as u8;
        }
    } else if let DynamicImage::ImageLuma8(luma) = image {
        return luma.clone();
    } else {
        let rgb = image.to_rgb8();
        for (out, p) in gray.iter_mut().zip(rgb.pixels()) {
            let [r, g, b] = p.0.map(u32::from);
            *out = ((19_595 * r + 38_470 * g + 7_471 * b + 0x8000) >> 16) as u8;
        }
    }
    gray
}

fn entropy(gray: &GrayImage) -> f32 {
    let mut counts = [0_u64; 256];
    gray.iter().for_each(|&v| counts[usize::from(v)] += 1);
    let all = gray.len() as f64;
    let bits = counts.iter().filter(|&&n| n > 0).map(|&n| n as f64 / all).map(|p| -p * p.log2());
    bits.sum::<f64>().abs() as f32
}

const SIDE: usize = 32;

/// `cos(π (2x + 1) u / 64)` for the eight lowest frequencies `u`.
static COSINES: LazyLock<[[f64; SIDE]; 8]> = LazyLock::new(|| {
    std::array::from_fn(|u| {
        std::array::from_fn(|x| (std::f64::consts::PI * (2 * x + 1) as f64 * u as f64 / 64.0).cos())
    })
});

/// Scales to 32 × 32 by Lanczos' filter.
fn shrink(gray: &GrayImage) -> Vec<u8> {
    let mut small = Image::new(SIDE as u32, SIDE as u32, PixelType::U8);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3));
    let large = ImageRef::new(gray.width(), gray.height(), gray.as_raw(), PixelType::U8);
    let done = large.map(|large| Resizer::new().resize(&large, &mut small, &options));
    debug_assert!(matches!(done, Ok(Ok(()))), "both are pictures of one byte a pixel");
    small.into_vec()
}

/// Which of the 64 lowest frequencies of the picture, scaled to 32 × 32, are above their median
/// (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010). The first
/// bit is the highest.
fn phash(gray: &GrayImage) -> u64 {
    let small = shrink(gray);
    let mut down = [[0.0; SIDE]; 8];
    for (u, row) in down.iter_mut().enumerate() {
        for (x, out) in row.iter_mut().enumerate() {
            *out = (0..SIDE).map(|y| COSINES[u][y] * f64::from(small[y * SIDE + x])).sum();
        }
    }
    let low: Vec<f64> =
        (0..64).map(|i| down[i / 8].iter().zip(&COSINES[i % 8]).map(|(a, b)| a * b).sum()).collect();
    let mut sorted = low.clone();
    sorted.sort_by(f64::total_cmp);
    let median = f64::midpoint(sorted[31], sorted[32]);
    low.iter().fold(0, |bits, &x| bits << 1 | u64::from(x > median))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(width: u32, height: u32) -> DynamicImage {
        let pixel = |x: u32, y: u32| {
            let (x, y) = (f64::from(x) / f64::from(width), f64::from(y) / f64::from(height));
            let v = |k: f64| (127.0 + 120.0 * (k * x + 3.0 * y * y).sin()) as u8;
            image::Rgb([v(9.0), v(5.0), v(2.0)])
        };
        image::RgbImage::from_fn(width, height, pixel).into()
    }

    fn file(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        image.write_to(&mut out, format).unwrap();
        out.into_inner()
    }

    #[test]
    fn copies_in_other_sizes_and_formats_hash_alike() {
        let hash = |bytes: &[u8]| {
            let (picture, _) = look(bytes, &ImageRules::default());
            assert_eq!(picture.drop, None);
            u64::from_str_radix(&picture.phash, 16).unwrap()
        };
        let (large, small) = (wave(640, 480), wave(200, 150));
        let one = hash(&file(&large, ImageFormat::Png));
        for copy in [file(&large, ImageFormat::Jpeg), file(&small, ImageFormat::WebP)] {
            assert!((hash(&copy) ^ one).count_ones() <= 4);
        }
        let other = hash(&file(&large.fliph(), ImageFormat::Png));
        assert!((other ^ one).count_ones() > 16);
    }

    #[test]
    fn every_limit_drops_with_its_value() {
        let png = file(&wave(90, 30), ImageFormat::Png);
        let jpeg = file(&wave(90, 30), ImageFormat::Jpeg);
        let rules = ImageRules::default;
        let rule = |bytes: &[u8], rules: ImageRules| {
            let drop = look(bytes, &rules).0.drop.unwrap();
            format!("{}: {}", drop.rule, drop.why)
        };
        assert_eq!(
            rule(&png, ImageRules { formats: vec!["jpeg".into()], ..rules() }),
            "format: png, allowed jpeg"
        );
        assert_eq!(
            rule(&png, ImageRules { min_side: 64, ..rules() }),
            "min_side: 90 x 30 pixels, at least 64 a side"
        );
        assert_eq!(
            rule(&png, ImageRules { max_side: 64, ..rules() }),
            "max_side: 90 x 30 pixels, at most 64 a side"
        );
        assert_eq!(
            rule(&png, ImageRules { max_aspect: 2.5, ..rules() }),
            "max_aspect: 3.00 to 1, at most 2.5"
        );
        assert!(rule(&png, ImageRules { min_bytes: 1 << 20, ..rules() }).starts_with("min_bytes: "));
        assert!(rule(&png, ImageRules { max_bytes: 10, ..rules() }).starts_with("max_bytes: "));
        assert!(rule(&png[..png.len() / 2], rules()).starts_with("corrupt: "));
        assert_eq!(rule(&jpeg[..jpeg.len() - 40], rules()), "corrupt: the file ends within the picture");
        assert_eq!(rule(b"<html>", rules()), "format: no picture format this reads");
        assert_eq!(rule(b"", rules()), "missing: there is no such file");
        let plain =
            file(&image::RgbImage::from_pixel(50, 50, image::Rgb([9, 9, 9])).into(), ImageFormat::Png);
        assert_eq!(
            rule(&plain, ImageRules { min_entropy: 0.5, ..rules() }),
            "min_entropy: 0.00 bits, at least 0.5"
        );
        // A picture that says it is enormous is not decoded.
        let mut bomb = png.clone();
        bomb[16..24].copy_from_slice(&[0, 0, 255, 255, 0, 0, 255, 255]);
        assert!(
            rule(&bomb, rules()).starts_with("max_side: 65535 x 65535")
                || rule(&bomb, rules()).starts_with("corrupt")
        );
    }
}
