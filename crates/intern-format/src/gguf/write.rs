//! Writing: declare everything, then stream tensor by tensor.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::{ALIGNMENT_KEY, Array, DEFAULT_ALIGNMENT, GgmlType, MAGIC, MAX_DIMS, TensorInfo, VERSION, Value};
use crate::atomic::AtomicFile;
use crate::{Error, Result};

/// Writes a GGUF v3 file: [`metadata`](Self::metadata) and [`declare`](Self::declare) first, then
/// [`write_tensor`](Self::write_tensor) (or [`append`](Self::append)) in the order of declaration,
/// then [`finish`](Self::finish).
#[derive(Debug)]
pub struct GgufWriter {
    path: PathBuf,
    file: AtomicFile,
    metadata: Vec<(String, Value)>,
    tensors: Vec<TensorInfo>,
    names: HashSet<String>,
    alignment: usize,
    /// `None` until the first tensor byte; then the tensor being written and its bytes so far.
    progress: Option<(usize, usize)>,
}

impl GgufWriter {
    /// Starts a file; it gets its name on [`finish`](Self::finish).
    pub fn create(path: &Path) -> Result<Self> {
        Ok(Self {
            path: path.to_path_buf(),
            file: AtomicFile::create(path)?,
            metadata: Vec::new(),
            tensors: Vec::new(),
            names: HashSet::new(),
            alignment: DEFAULT_ALIGNMENT,
            progress: None,
        })
    }

    /// Adds a metadata pair, or replaces the value of a key already there. Panics once a tensor
    /// has been declared (the alignment may depend on it) or `general.alignment` is no power of two.
    pub fn metadata(&mut self, key: &str, value: impl Into<Value>) {
        assert!(self.tensors.is_empty(), "metadata comes before tensors");
        let value = value.into();
        if key == ALIGNMENT_KEY {
            let n = value.as_u64().filter(|n| n.is_power_of_two()).expect("alignment is a power of two");
            self.alignment = n as usize;
        }
        match self.metadata.iter_mut().find(|(k, _)| k == key) {
            Some(pair) => pair.1 = value,
            None => self.metadata.push((key.to_string(), value)),
        }
    }

    /// Declares the next tensor; `shape` is row-major, outermost first.
    pub fn declare(&mut self, name: &str, shape: &[usize], ggml_type: GgmlType) -> Result<()> {
        assert!(self.progress.is_none(), "tensors are declared before the first is written");
        let at = || format!("tensor `{name}`");
        if shape.is_empty() || shape.len() > MAX_DIMS {
            let found = format!("shape {shape:?}");
            return Err(Error::corrupt(&self.path, at(), format!("1 to {MAX_DIMS} dimensions"), found));
        }
        let Some(nbytes) = ggml_type.nbytes(shape) else {
            let expected =
                format!("rows of whole {} blocks of {} elements", ggml_type.name(), ggml_type.block_size());
            return Err(Error::corrupt(&self.path, at(), expected, format!("shape {shape:?}"))
                .with_hint("keep this tensor in F16 or Q8_0"));
        };
        if !self.names.insert(name.to_string()) {
            return Err(Error::corrupt(&self.path, at(), "each tensor once", "it twice"));
        }
        let offset = self
            .tensors
            .last()
            .map_or(0, |last| (last.offset as usize + last.nbytes).next_multiple_of(self.alignment) as u64);
        self.tensors.push(TensorInfo {
            name: name.to_string(),
            shape: shape.to_vec(),
            ggml_type,
            offset,
            nbytes,
        });
        Ok(())
    }

    /// The declared tensors.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Writes the whole of the next declared tensor, which must be `name`.
    pub fn write_tensor(&mut self, name: &str, data: &[u8]) -> Result<()> {
        if data.is_empty() && self.tensors.iter().any(|info| info.name == name && info.nbytes == 0) {
            return self.append(data);
        }
        let (next, done) = self.progress.unwrap_or((0, 0));
        let Some(info) = self.tensors.get(next).filter(|info| info.name == name && done == 0) else {
            let expected =
                self.tensors.get(next).map_or("no more tensors".into(), |t| format!("tensor `{}`", t.name));
            return Err(Error::corrupt(&self.path, "data", expected, format!("tensor `{name}`")));
        };
        if data.len() != info.nbytes {
            let (expected, found) = (format!("{} bytes", info.nbytes), format!("{} bytes", data.len()));
            return Err(Error::corrupt(&self.path, format!("tensor `{name}`"), expected, found));
        }
        self.append(data)
    }

    /// Writes the next bytes of the current tensor; a tensor that is full makes the next one current.
    pub fn append(&mut self, data: &[u8]) -> Result<()> {
        if self.progress.is_none() {
            self.write_table().map_err(|e| Error::io(&self.path, e))?;
            self.progress = Some((0, 0));
            self.skip_empty();
        }
        if data.is_empty() {
            return Ok(());
        }
        let (next, done) = self.progress.unwrap_or((0, 0));
        let Some(info) = self.tensors.get(next).filter(|info| info.nbytes - done >= data.len()) else {
            let found = format!("{} bytes more", data.len());
            return Err(Error::corrupt(&self.path, "data", "only what was declared", found));
        };
        let end = done + data.len();
        let padding = if end == info.nbytes { end.next_multiple_of(self.alignment) - end } else { 0 };
        self.progress = Some(if end == info.nbytes { (next + 1, 0) } else { (next, end) });
        let result = self.file.write_all(data).and_then(|()| write_zeros(&mut self.file, padding));
        self.skip_empty();
        result.map_err(|e| Error::io(&self.path, e))
    }

    /// Tensors without elements need no bytes.
    fn skip_empty(&mut self) {
        if let Some((next, 0)) = self.progress {
            let empty = self.tensors[next..].iter().take_while(|info| info.nbytes == 0).count();
            self.progress = Some((next + empty, 0));
        }
    }

    /// Checks that every declared tensor was written and gives the file its name.
    pub fn finish(mut self) -> Result<()> {
        self.append(&[])?;
        let (next, done) = self.progress.unwrap_or((0, 0));
        if let Some(info) = self.tensors.get(next) {
            let at = format!("tensor `{}`", info.name);
            return Err(Error::corrupt(
                &self.path,
                at,
                format!("{} bytes", info.nbytes),
                format!("{done} bytes"),
            ));
        }
        self.file.commit()
    }

    fn write_table(&mut self) -> std::io::Result<()> {
        let mut out = Vec::new();
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_string(&mut out, key);
            out.extend(value.value_type().id().to_le_bytes());
            put_value(&mut out, value);
        }
        for info in &self.tensors {
            put_string(&mut out, &info.name);
            out.extend((info.shape.len() as u32).to_le_bytes());
            for &dim in info.shape.iter().rev() {
                out.extend((dim as u64).to_le_bytes());
            }
            out.extend(info.ggml_type.id().to_le_bytes());
            out.extend(info.offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        self.file.write_all(&out)
    }
}

fn write_zeros(file: &mut AtomicFile, n: usize) -> std::io::Result<()> {
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), n as u64), file).map(|_| ())
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::String(v) => put_string(out, v),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
        Value::Array(array) => put_array(out, array),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend(array.element_type().id().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend(v),
        Array::I8(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::U16(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::I16(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::U32(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::I32(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::F32(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::Bool(v) => out.extend(v.iter().map(|&v| u8::from(v))),
        Array::String(v) => v.iter().for_each(|v| put_string(out, v)),
        Array::U64(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::I64(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::F64(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::Array(v) => v.iter().for_each(|v| put_array(out, v)),
    }
}
