//! Safetensors files: a JSON header and raw little-endian tensors, mapped into memory.
//!
//! The header is checked in full before any tensor is handed out: offsets cover the
//! data without gaps or overlaps, as the format demands, and every shape agrees with
//! its byte count. Specification: <https://github.com/huggingface/safetensors>.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::atomic::{AtomicFile, json_error};
use crate::mapped::Mapped;
use crate::{Error, Result};

/// The format's own limit on the header.
const MAX_HEADER: u64 = 100_000_000;

/// Element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// IEEE half.
    F16,
    /// Brain float.
    BF16,
    /// 8-bit float, 4 exponent bits, no infinities.
    F8E4M3,
    /// 8-bit float, 5 exponent bits.
    F8E5M2,
    /// Signed 64-bit.
    I64,
    /// Signed 32-bit.
    I32,
    /// Signed 16-bit.
    I16,
    /// Signed 8-bit.
    I8,
    /// Unsigned 64-bit.
    U64,
    /// Unsigned 32-bit.
    U32,
    /// Unsigned 16-bit.
    U16,
    /// Unsigned 8-bit.
    U8,
    /// One byte, 0 or 1.
    Bool,
}

const DTYPES: [(DType, &str, usize); 15] = [
    (DType::F64, "F64", 8),
    (DType::F32, "F32", 4),
    (DType::F16, "F16", 2),
    (DType::BF16, "BF16", 2),
    (DType::F8E4M3, "F8_E4M3", 1),
    (DType::F8E5M2, "F8_E5M2", 1),
    (DType::I64, "I64", 8),
    (DType::I32, "I32", 4),
    (DType::I16, "I16", 2),
    (DType::I8, "I8", 1),
    (DType::U64, "U64", 8),
    (DType::U32, "U32", 4),
    (DType::U16, "U16", 2),
    (DType::U8, "U8", 1),
    (DType::Bool, "BOOL", 1),
];

impl DType {
    /// Bytes per element.
    #[must_use]
    pub fn size(self) -> usize {
        self.row().2
    }

    /// The name safetensors uses, e.g. `BF16`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// By safetensors name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        DTYPES.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    fn row(self) -> &'static (DType, &'static str, usize) {
        DTYPES.iter().find(|row| row.0 == self).expect("every type is in the table")
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One stored tensor, borrowed from the map. `data` need not be aligned.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorView<'a> {
    /// Element type.
    pub dtype: DType,
    /// Row-major, outermost first.
    pub shape: Vec<usize>,
    /// Little-endian elements.
    pub data: &'a [u8],
}

impl TensorView<'_> {
    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.data.len() / self.dtype.size()
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// All elements as f32, row-major. Integers and f64 are rounded to the nearest f32.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        fn map<const N: usize>(data: &[u8], f: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            data.chunks_exact(N).map(|c| f(c.try_into().expect("chunks of N bytes"))).collect()
        }
        let d = self.data;
        match self.dtype {
            DType::F64 => map(d, |b| f64::from_le_bytes(b) as f32),
            DType::F32 => map(d, f32::from_le_bytes),
            DType::F16 => map(d, |b| f16::from_le_bytes(b).to_f32()),
            DType::BF16 => map(d, |b| bf16::from_le_bytes(b).to_f32()),
            DType::F8E4M3 => map(d, |[b]| f8_e4m3(b)),
            DType::F8E5M2 => map(d, |[b]| f16::from_bits(u16::from(b) << 8).to_f32()),
            DType::I64 => map(d, |b| i64::from_le_bytes(b) as f32),
            DType::I32 => map(d, |b| i32::from_le_bytes(b) as f32),
            DType::I16 => map(d, |b| f32::from(i16::from_le_bytes(b))),
            DType::I8 => map(d, |b| f32::from(i8::from_le_bytes(b))),
            DType::U64 => map(d, |b| u64::from_le_bytes(b) as f32),
            DType::U32 => map(d, |b| u32::from_le_bytes(b) as f32),
            DType::U16 => map(d, |b| f32::from(u16::from_le_bytes(b))),
            DType::U8 | DType::Bool => map(d, |[b]| f32::from(b)),
        }
    }
}

/// E4M3 without infinities (the `fn` variant): bias 7, all ones is NaN.
fn f8_e4m3(b: u8) -> f32 {
    let sign = if b & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(b >> 3 & 0xf), f32::from(b & 7));
    match (exponent, b & 7) {
        (15, 7) => f32::NAN,
        (0, _) => sign * mantissa * 2f32.powi(-9),
        _ => sign * (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    }
}

/// Name, element type, shape (row-major) and little-endian bytes of a tensor to save.
pub type NamedTensor<'a> = (String, DType, Vec<usize>, Cow<'a, [u8]>);

/// What a tensor will be, before its bytes exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Unique within the checkpoint.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Row-major, outermost first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Bytes the tensor takes.
    #[must_use]
    pub fn nbytes(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product::<u64>() * self.dtype.size() as u64
    }
}

#[derive(Debug)]
struct Entry {
    dtype: DType,
    shape: Vec<usize>,
    begin: usize,
    end: usize,
}

/// An open safetensors file.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    map: Mapped,
    /// In the order of their bytes.
    names: Vec<String>,
    entries: HashMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

impl SafetensorsFile {
    /// Maps the file and checks its header.
    pub fn open(path: &Path) -> Result<Self> {
        let map = Mapped::open(path)?;
        let header = Header::parse(path, &map)?;
        Ok(Self {
            path: path.to_path_buf(),
            map,
            names: header.names,
            entries: header.entries,
            metadata: header.metadata,
        })
    }

    /// Takes what was read so far out of memory; tensors are read again when looked at.
    pub fn release(&self) {
        self.map.release(0..self.map.len());
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tensor names in the order of their bytes in the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Whether a tensor is there.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The `__metadata__` strings, e.g. `format = pt`.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// One tensor by name; [`Error::Missing`] names the nearest name there is.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        let Some(entry) = self.entries.get(name) else {
            return Err(missing_tensor(&self.path, name, self.names()));
        };
        Ok(TensorView {
            dtype: entry.dtype,
            shape: entry.shape.clone(),
            data: &self.map[entry.begin..entry.end],
        })
    }
}

/// [`Error::Missing`] for a tensor, with a name that ends alike as a hint.
pub(crate) fn missing_tensor<'a>(path: &Path, name: &str, names: impl Iterator<Item = &'a str>) -> Error {
    let common =
        |other: &str| name.bytes().rev().zip(other.bytes().rev()).take_while(|(a, b)| a == b).count();
    let error = Error::missing(path, format!("tensor `{name}`"));
    match names.max_by_key(|other| common(other)) {
        Some(other) if common(other) >= 4 => {
            error.with_hint(format!("there is a tensor `{other}`; is this the right architecture?"))
        }
        _ => error.with_hint("is this the right architecture?"),
    }
}

/// Checks a whole file given as bytes, as [`SafetensorsFile::open`] does. For fuzzing.
pub fn check_bytes(bytes: &[u8]) -> Result<usize> {
    let header = Header::parse(Path::new("(bytes)"), bytes)?;
    for entry in header.entries.values() {
        let view = TensorView {
            dtype: entry.dtype,
            shape: entry.shape.clone(),
            data: &bytes[entry.begin..entry.end],
        };
        if view.to_f32().len() != view.len() {
            return Err(Error::corrupt("(bytes)", "data", "one f32 per element", "another count"));
        }
    }
    Ok(header.names.len())
}

struct Header {
    names: Vec<String>,
    /// Offsets are into the file.
    entries: HashMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

impl Header {
    fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let not_ours =
            |error: Error| error.with_hint("is this a safetensors file, and was it fetched whole?");
        let size = bytes.len() as u64;
        let Some(prefix) = bytes.first_chunk::<8>() else {
            return Err(not_ours(Error::corrupt(
                path,
                "byte 0",
                "an 8-byte header length",
                format!("a file of {size} bytes"),
            )));
        };
        let length = u64::from_le_bytes(*prefix);
        if length > MAX_HEADER || length > size - 8 {
            let expected = format!("a header length of at most {}", (size - 8).min(MAX_HEADER));
            return Err(not_ours(Error::corrupt(path, "byte 0", expected, length.to_string())));
        }
        let data_start = 8 + length as usize;
        let text = &bytes[8..data_start];
        if text.first() != Some(&b'{') {
            let found = text.first().map_or("nothing".into(), |b| format!("byte 0x{b:02x}"));
            return Err(not_ours(Error::corrupt(
                path,
                "byte 8",
                "a JSON header that starts with `{`",
                found,
            )));
        }
        let RawHeader(raw) = serde_json::from_slice(text).map_err(|e| not_ours(json_error(path, &e, 1)))?;
        Self::check(path, raw, data_start, bytes.len() - data_start)
    }

    fn check(path: &Path, raw: Vec<(String, RawItem)>, data_start: usize, data_len: usize) -> Result<Self> {
        let mut metadata = None;
        let mut entries: HashMap<String, Entry> = HashMap::new();
        for (name, item) in raw {
            let raw = match item {
                RawItem::Metadata(map) if metadata.is_none() => {
                    metadata = Some(map);
                    continue;
                }
                RawItem::Metadata(_) => {
                    return Err(Error::corrupt(path, "header", "one `__metadata__`", "several"));
                }
                RawItem::Tensor(raw) => raw,
            };
            let at = || format!("header, tensor `{name}`");
            let Some(dtype) = DType::from_name(&raw.dtype) else {
                return Err(Error::unsupported(path, format!("dtype `{}` of tensor `{name}`", raw.dtype)));
            };
            let (begin, end) = raw.data_offsets;
            if begin > end || end > data_len as u64 {
                let expected = format!("data_offsets in order and within the {data_len} bytes of data");
                return Err(Error::corrupt(path, at(), expected, format!("[{begin}, {end}]"))
                    .with_hint("the file may be cut short; fetch or write it again"));
            }
            let product = raw.shape.iter().try_fold(dtype.size() as u64, |n, &d| n.checked_mul(d));
            if product != Some(end - begin) {
                let expected = format!("the bytes of shape {:?} in {dtype}", raw.shape);
                return Err(Error::corrupt(path, at(), expected, format!("{} bytes", end - begin)));
            }
            let entry = Entry {
                dtype,
                shape: raw.shape.iter().map(|&d| d as usize).collect(),
                begin: data_start + begin as usize,
                end: data_start + end as usize,
            };
            if entries.insert(name.clone(), entry).is_some() {
                return Err(Error::corrupt(path, at(), "each name once", "it twice"));
            }
        }
        let mut names: Vec<String> = entries.keys().cloned().collect();
        names.sort_by_cached_key(|name| (entries[name].begin, entries[name].end, name.clone()));
        let mut expected = data_start;
        for name in &names {
            if entries[name].begin != expected {
                return Err(Error::corrupt(
                    path,
                    format!("header, tensor `{name}`"),
                    format!("data that starts at {}, where the one before ends", expected - data_start),
                    (entries[name].begin - data_start).to_string(),
                ));
            }
            expected = entries[name].end;
        }
        if expected != data_start + data_len {
            return Err(Error::corrupt(
                path,
                format!("byte {expected}"),
                "the end of the file",
                format!("{} bytes that belong to no tensor", data_start + data_len - expected),
            ));
        }
        Ok(Self { names, entries, metadata: metadata.unwrap_or_default() })
    }
}

/// The header as written: pairs rather than a map, so that repeated names are seen.
struct RawHeader(Vec<(String, RawItem)>);

enum RawItem {
    Metadata(BTreeMap<String, String>),
    Tensor(RawTensor),
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawHeader, A::Error> {
                let mut pairs = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    let item = if name == "__metadata__" {
                        RawItem::Metadata(map.next_value()?)
                    } else {
                        RawItem::Tensor(map.next_value()?)
                    };
                    pairs.push((name, item));
                }
                Ok(RawHeader(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// Writes a whole safetensors file, all or nothing.
pub fn save_safetensors(
    path: &Path,
    tensors: &[NamedTensor<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let specs = specs_of(path, tensors)?;
    write_safetensors(path, &specs, metadata, |i, out| out.write_all(&tensors[i].3))
}

/// The specs of tensors that carry their bytes, after checking that shape and bytes agree.
pub(crate) fn specs_of(path: &Path, tensors: &[NamedTensor<'_>]) -> Result<Vec<TensorSpec>> {
    let spec = |(name, dtype, shape, data): &NamedTensor<'_>| {
        let spec = TensorSpec { name: name.clone(), dtype: *dtype, shape: shape.clone() };
        if spec.nbytes() == data.len() as u64 {
            Ok(spec)
        } else {
            Err(Error::corrupt(
                path,
                format!("tensor `{name}`"),
                format!("{} bytes for shape {shape:?} in {dtype}", spec.nbytes()),
                format!("{} bytes", data.len()),
            ))
        }
    };
    tensors.iter().map(spec).collect()
}

/// Writes a safetensors file tensor by tensor: `fill(i, out)` writes the bytes of `specs[i]`.
///
/// `fill` is called once per tensor, in file order: widest elements first, then by name, so
/// that every tensor is aligned. Only what `fill` holds is in memory.
pub fn write_safetensors(
    path: &Path,
    specs: &[TensorSpec],
    metadata: &BTreeMap<String, String>,
    mut fill: impl FnMut(usize, &mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    let mut order: Vec<usize> = (0..specs.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(specs[i].dtype.size()), &specs[i].name));

    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), serde_json::json!(metadata));
    }
    let mut offset = 0u64;
    for &i in &order {
        let spec = &specs[i];
        let end = offset + spec.nbytes();
        let entry = serde_json::json!({
            "dtype": spec.dtype.name(), "shape": spec.shape, "data_offsets": [offset, end],
        });
        if header.insert(spec.name.clone(), entry).is_some() {
            return Err(Error::corrupt(
                path,
                format!("tensor `{}`", spec.name),
                "each name once",
                "it twice",
            ));
        }
        offset = end;
    }
    let mut text = serde_json::Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');

    let io = |e| Error::io(path, e);
    let mut file = AtomicFile::create(path)?;
    file.write_all(&(text.len() as u64).to_le_bytes()).map_err(io)?;
    file.write_all(&text).map_err(io)?;
    for &i in &order {
        let mut counted = Counted { inner: &mut file, written: 0 };
        fill(i, &mut counted).map_err(io)?;
        let (written, wanted) = (counted.written, specs[i].nbytes());
        if written != wanted {
            let at = format!("tensor `{}`", specs[i].name);
            return Err(Error::corrupt(path, at, format!("{wanted} bytes"), format!("{written} bytes")));
        }
    }
    file.commit()
}

struct Counted<'a> {
    inner: &'a mut AtomicFile,
    written: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}
