//! Reading: a cursor that never runs past the file, then checks on the whole table.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::{
    ALIGNMENT_KEY, Array, DEFAULT_ALIGNMENT, GgmlType, MAGIC, MAX_DIMS, TensorInfo, VERSION, Value, ValueType,
};
use crate::mapped::Mapped;
use crate::{Error, Result};

/// Deepest nesting of arrays we follow.
const MAX_DEPTH: usize = 8;
/// Fewest bytes a metadata pair takes: key length, type, one byte.
const MIN_PAIR: u64 = 13;
/// Fewest bytes a tensor row takes: name length, dimension count, type, offset.
const MIN_TENSOR: u64 = 24;

/// An open GGUF file.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    map: Mapped,
    table: Table,
}

/// Everything before the data.
#[derive(Debug)]
struct Table {
    version: u32,
    metadata: Vec<(String, Value)>,
    keys: HashMap<String, usize>,
    tensors: Vec<TensorInfo>,
    names: HashMap<String, usize>,
    alignment: usize,
    data_start: usize,
}

impl Gguf {
    /// Maps a file and checks header, metadata and tensor table.
    pub fn open(path: &Path) -> Result<Self> {
        let map = Mapped::open(path)?;
        let table = Table::parse(path, &map)?;
        Ok(Self { path: path.to_path_buf(), map, table })
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

    /// 2 or 3.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.table.version
    }

    /// Bytes to which tensors are aligned.
    #[must_use]
    pub fn alignment(&self) -> usize {
        self.table.alignment
    }

    /// All metadata, in file order.
    #[must_use]
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.table.metadata
    }

    /// One metadata value.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.table.keys.get(key).map(|&i| &self.table.metadata[i].1)
    }

    /// One metadata value that must be there; [`Error::Missing`] names the key.
    pub fn require(&self, key: &str) -> Result<&Value> {
        self.get(key).ok_or_else(|| Error::missing(&self.path, format!("metadata key `{key}`")))
    }

    /// The tensor table, in file order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.table.tensors
    }

    /// One row of the tensor table by name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.table.names.get(name).map(|&i| &self.table.tensors[i])
    }

    /// The bytes of a tensor of this file. Panics if `info` comes from another one and does not fit.
    #[must_use]
    pub fn data(&self, info: &TensorInfo) -> &[u8] {
        let start = self.table.data_start + info.offset as usize;
        &self.map[start..start + info.nbytes]
    }

    /// Gives back the memory that reading a tensor took, for those who keep their own form of it.
    pub fn release_tensor(&self, info: &TensorInfo) {
        let start = self.table.data_start + info.offset as usize;
        self.map.release(start..start + info.nbytes);
    }
}

/// Checks a whole file given as bytes, as [`Gguf::open`] does; the number of tensors. For fuzzing.
pub fn check_bytes(bytes: &[u8]) -> Result<usize> {
    let table = Table::parse(Path::new("(bytes)"), bytes)?;
    for info in &table.tensors {
        let start = table.data_start + info.offset as usize;
        if bytes[start..start + info.nbytes].len() != info.nbytes {
            return Err(Error::corrupt("(bytes)", "data", "a slice of its length", "another"));
        }
    }
    Ok(table.tensors.len())
}

impl Table {
    fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let mut c = Cursor { path, bytes, pos: 0 };
        if bytes.get(..4) != Some(MAGIC) {
            let start = String::from_utf8_lossy(&bytes[..bytes.len().min(4)]).into_owned();
            return Err(Error::corrupt(path, "byte 0", "the magic GGUF", format!("{start:?}"))
                .with_hint("this is not a GGUF file; `intern serve quantize` writes one from a checkpoint"));
        }
        c.pos = 4;
        let version = c.u32("the version")?;
        match version {
            2 | VERSION => {}
            1 => {
                return Err(Error::unsupported(path, "GGUF version 1")
                    .with_hint("convert it with a current llama.cpp; versions 2 and 3 are read"));
            }
            v if (1..=VERSION).contains(&v.swap_bytes()) => {
                return Err(Error::unsupported(path, "a big-endian GGUF file")
                    .with_hint("convert it with gguf-convert-endian from the gguf package"));
            }
            v => return Err(Error::corrupt(path, "byte 4", "version 2 or 3", v.to_string())),
        }
        let num_tensors = c.count("the tensor count", MIN_TENSOR)?;
        let num_pairs = c.count("the metadata count", MIN_PAIR)?;

        let mut metadata = Vec::new();
        let mut keys = HashMap::new();
        for i in 0..num_pairs {
            let at = c.pos;
            let key = c.string("a metadata key")?;
            let kind = c.value_type()?;
            let value = c.value(kind, &key)?;
            if keys.insert(key.clone(), i).is_some() {
                return Err(Error::corrupt(
                    path,
                    format!("byte {at}"),
                    "each key once",
                    format!("`{key}` again"),
                ));
            }
            metadata.push((key, value));
        }
        let alignment = alignment(path, keys.get(ALIGNMENT_KEY).map(|&i| &metadata[i].1))?;

        let mut tensors = Vec::new();
        let mut names = HashMap::new();
        for i in 0..num_tensors {
            let at = c.pos;
            let info = c.tensor_info()?;
            if names.insert(info.name.clone(), i).is_some() {
                let found = format!("`{}` again", info.name);
                return Err(Error::corrupt(path, format!("byte {at}"), "each tensor once", found));
            }
            tensors.push(info);
        }
        // A file without tensors (vocabulary only) may end before the padding.
        let data_start = match tensors.len() {
            0 => c.pos,
            _ => c.pos.next_multiple_of(alignment),
        };
        check_layout(path, &tensors, alignment, data_start, bytes.len())?;
        Ok(Self { version, metadata, keys, tensors, names, alignment, data_start })
    }
}

fn alignment(path: &Path, value: Option<&Value>) -> Result<usize> {
    match value {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(value) => match value.as_u64() {
            Some(n) if n.is_power_of_two() && n <= 1 << 20 => Ok(n as usize),
            _ => Err(Error::corrupt(
                path,
                format!("key `{ALIGNMENT_KEY}`"),
                "a power of two up to 1048576",
                value.to_string(),
            )),
        },
    }
}

/// Tensors lie within the file, aligned, and do not overlap.
fn check_layout(
    path: &Path,
    tensors: &[TensorInfo],
    alignment: usize,
    data_start: usize,
    file_len: usize,
) -> Result<()> {
    let data_len = file_len.saturating_sub(data_start) as u64;
    for info in tensors {
        let at = || format!("tensor `{}`", info.name);
        if info.offset % alignment as u64 != 0 {
            let expected = format!("an offset that is a multiple of {alignment}");
            return Err(Error::corrupt(path, at(), expected, info.offset.to_string()));
        }
        if info.offset.checked_add(info.nbytes as u64).is_none_or(|end| end > data_len) {
            let found = format!("{} bytes at offset {}", info.nbytes, info.offset);
            return Err(Error::corrupt(
                path,
                at(),
                format!("data within the file's {data_len} bytes"),
                found,
            )
            .with_hint("the file is cut short; fetch or write it again"));
        }
    }
    let mut order: Vec<&TensorInfo> = tensors.iter().filter(|info| info.nbytes > 0).collect();
    order.sort_by_key(|info| info.offset);
    for pair in order.windows(2) {
        if pair[0].offset + pair[0].nbytes as u64 > pair[1].offset {
            let found = format!("its data inside that of `{}`", pair[0].name);
            return Err(Error::corrupt(path, format!("tensor `{}`", pair[1].name), "data of its own", found));
        }
    }
    Ok(())
}

struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    pos: usize,
}

impl<'a> Cursor<'a> {
    fn remaining(&self) -> u64 {
        (self.bytes.len() - self.pos) as u64
    }

    fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8]> {
        if n > self.remaining() {
            let found = format!("{} bytes before the end of the file", self.remaining());
            return Err(Error::corrupt(
                self.path,
                format!("byte {}", self.pos),
                format!("{n} bytes of {what}"),
                found,
            )
            .with_hint("the file is cut short; fetch or write it again"));
        }
        let slice = &self.bytes[self.pos..self.pos + n as usize];
        self.pos += n as usize;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        Ok(self.take(N as u64, what)?.try_into().expect("N bytes"))
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A count of things of at least `min_bytes` each, which must still fit in the file.
    fn count(&mut self, what: &str, min_bytes: u64) -> Result<usize> {
        let at = self.pos;
        let count = self.u64(what)?;
        if count > self.remaining() / min_bytes {
            let expected = format!("{what} that the remaining {} bytes can hold", self.remaining());
            return Err(Error::corrupt(self.path, format!("byte {at}"), expected, count.to_string()));
        }
        Ok(count as usize)
    }

    fn string(&mut self, what: &str) -> Result<String> {
        let length = self.u64(what)?;
        let at = self.pos;
        let bytes = self.take(length, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_string()),
            Err(e) => {
                let at = format!("byte {}", at + e.valid_up_to());
                Err(Error::corrupt(
                    self.path,
                    at,
                    format!("UTF-8 text in {what}"),
                    "a byte that is not UTF-8",
                ))
            }
        }
    }

    fn value_type(&mut self) -> Result<ValueType> {
        let at = self.pos;
        let id = self.u32("a value type")?;
        ValueType::from_id(id).ok_or_else(|| {
            Error::corrupt(self.path, format!("byte {at}"), "a value type from 0 to 12", id.to_string())
        })
    }

    fn bool(&mut self, what: &str) -> Result<bool> {
        let at = self.pos;
        match self.array::<1>(what)? {
            [b @ (0 | 1)] => Ok(b == 1),
            [b] => Err(Error::corrupt(self.path, format!("byte {at}"), "a boolean, 0 or 1", b.to_string())),
        }
    }

    fn value(&mut self, kind: ValueType, key: &str) -> Result<Value> {
        let what = key;
        Ok(match kind {
            ValueType::U8 => Value::U8(u8::from_le_bytes(self.array(what)?)),
            ValueType::I8 => Value::I8(i8::from_le_bytes(self.array(what)?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(self.array(what)?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(self.array(what)?)),
            ValueType::U32 => Value::U32(self.u32(what)?),
            ValueType::I32 => Value::I32(i32::from_le_bytes(self.array(what)?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(self.array(what)?)),
            ValueType::Bool => Value::Bool(self.bool(what)?),
            ValueType::String => Value::String(self.string(what)?),
            ValueType::U64 => Value::U64(self.u64(what)?),
            ValueType::I64 => Value::I64(i64::from_le_bytes(self.array(what)?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(self.array(what)?)),
            ValueType::Array => Value::Array(self.array_value(what, 0)?),
        })
    }

    fn array_value(&mut self, key: &str, depth: usize) -> Result<Array> {
        if depth == MAX_DEPTH {
            let expected = format!("arrays at most {MAX_DEPTH} deep in `{key}`");
            return Err(Error::corrupt(self.path, format!("byte {}", self.pos), expected, "deeper ones"));
        }
        let kind = self.value_type()?;
        let min_bytes = match kind {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => 1,
            ValueType::U16 | ValueType::I16 => 2,
            ValueType::U32 | ValueType::I32 | ValueType::F32 => 4,
            ValueType::U64 | ValueType::I64 | ValueType::F64 | ValueType::String => 8,
            ValueType::Array => 12,
        };
        let n = self.count("an array length", min_bytes)?;
        Ok(match kind {
            ValueType::U8 => Array::U8(self.numbers(n, u8::from_le_bytes)?),
            ValueType::I8 => Array::I8(self.numbers(n, i8::from_le_bytes)?),
            ValueType::U16 => Array::U16(self.numbers(n, u16::from_le_bytes)?),
            ValueType::I16 => Array::I16(self.numbers(n, i16::from_le_bytes)?),
            ValueType::U32 => Array::U32(self.numbers(n, u32::from_le_bytes)?),
            ValueType::I32 => Array::I32(self.numbers(n, i32::from_le_bytes)?),
            ValueType::F32 => Array::F32(self.numbers(n, f32::from_le_bytes)?),
            ValueType::U64 => Array::U64(self.numbers(n, u64::from_le_bytes)?),
            ValueType::I64 => Array::I64(self.numbers(n, i64::from_le_bytes)?),
            ValueType::F64 => Array::F64(self.numbers(n, f64::from_le_bytes)?),
            ValueType::Bool => Array::Bool((0..n).map(|_| self.bool(key)).collect::<Result<_>>()?),
            ValueType::String => Array::String((0..n).map(|_| self.string(key)).collect::<Result<_>>()?),
            ValueType::Array => {
                Array::Array((0..n).map(|_| self.array_value(key, depth + 1)).collect::<Result<_>>()?)
            }
        })
    }

    fn numbers<T, const N: usize>(&mut self, n: usize, f: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
        let bytes = self.take((n * N) as u64, "an array")?;
        Ok(bytes.chunks_exact(N).map(|c| f(c.try_into().expect("N bytes"))).collect())
    }

    fn tensor_info(&mut self) -> Result<TensorInfo> {
        let name = self.string("a tensor name")?;
        let at = format!("byte {}, tensor `{name}`", self.pos);
        let dims = self.u32("a dimension count")? as usize;
        if dims == 0 || dims > MAX_DIMS {
            return Err(Error::corrupt(
                self.path,
                at,
                format!("1 to {MAX_DIMS} dimensions"),
                dims.to_string(),
            ));
        }
        let mut shape = Vec::with_capacity(dims);
        for _ in 0..dims {
            shape.push(self.u64("a dimension")? as usize);
        }
        shape.reverse();
        let id = self.u32("a tensor type")?;
        let Some(ggml_type) = GgmlType::from_id(id) else {
            return Err(Error::unsupported(self.path, format!("type number {id} of tensor `{name}`")));
        };
        let Some(nbytes) = ggml_type.nbytes(&shape) else {
            let expected = format!("rows of whole blocks of {} elements", ggml_type.block_size());
            return Err(Error::corrupt(self.path, at, expected, format!("shape {shape:?}")));
        };
        let offset = self.u64("a tensor offset")?;
        Ok(TensorInfo { name, shape, ggml_type, offset, nbytes })
    }
}
