//! Metadata values: scalars, strings and (nested) arrays.

use std::fmt;

macro_rules! values {
    ($($variant:ident($t:ty) = $id:literal, $name:literal;)*) => {
        /// A metadata value.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs, reason = "each variant is its type's name")]
        pub enum Value { $($variant($t),)* Array(Array) }

        /// An array of one element type.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs, reason = "each variant is its element type's name")]
        pub enum Array { $($variant(Vec<$t>),)* Array(Vec<Array>) }

        /// The type numbers of the format.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "each variant is its type's name")]
        pub enum ValueType { $($variant,)* Array }

        impl ValueType {
            /// The number stored in files.
            #[must_use]
            pub fn id(self) -> u32 {
                match self { $(ValueType::$variant => $id,)* ValueType::Array => 9 }
            }

            /// By the number stored in files.
            #[must_use]
            pub fn from_id(id: u32) -> Option<Self> {
                match id { $($id => Some(ValueType::$variant),)* 9 => Some(ValueType::Array), _ => None }
            }

            /// The specification's name, e.g. `uint32`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(ValueType::$variant => $name,)* ValueType::Array => "array" }
            }
        }

        impl Value {
            /// The value's type.
            #[must_use]
            pub fn value_type(&self) -> ValueType {
                match self { $(Value::$variant(_) => ValueType::$variant,)* Value::Array(_) => ValueType::Array }
            }
        }

        impl Array {
            /// The elements' type.
            #[must_use]
            pub fn element_type(&self) -> ValueType {
                match self { $(Array::$variant(_) => ValueType::$variant,)* Array::Array(_) => ValueType::Array }
            }

            /// Number of elements.
            #[must_use]
            pub fn len(&self) -> usize {
                match self { $(Array::$variant(v) => v.len(),)* Array::Array(v) => v.len() }
            }

            /// Whether there are no elements.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }
        }

        $(
            impl From<$t> for Value {
                fn from(value: $t) -> Self {
                    Value::$variant(value)
                }
            }

            impl From<Vec<$t>> for Value {
                fn from(values: Vec<$t>) -> Self {
                    Value::Array(Array::$variant(values))
                }
            }
        )*
    };
}

values! {
    U8(u8) = 0, "uint8";
    I8(i8) = 1, "int8";
    U16(u16) = 2, "uint16";
    I16(i16) = 3, "int16";
    U32(u32) = 4, "uint32";
    I32(i32) = 5, "int32";
    F32(f32) = 6, "float32";
    Bool(bool) = 7, "bool";
    String(String) = 8, "string";
    U64(u64) = 10, "uint64";
    I64(i64) = 11, "int64";
    F64(f64) = 12, "float64";
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::String(value.to_string())
    }
}

impl Value {
    /// The text of a string.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(s) => Some(s),
            _ => None,
        }
    }

    /// Any integer that fits.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U64(v) => Some(v),
            _ => self.as_i64().and_then(|v| v.try_into().ok()),
        }
    }

    /// Any integer that fits.
    #[must_use]
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::I8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::I16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::I32(v) => Some(v.into()),
            Value::U64(v) => v.try_into().ok(),
            Value::I64(v) => Some(v),
            _ => None,
        }
    }

    /// Any float; integers are converted.
    #[must_use]
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => Some(v.into()),
            Value::F64(v) => Some(v),
            Value::U64(v) => Some(v as f64),
            _ => self.as_i64().map(|v| v as f64),
        }
    }

    /// A boolean.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Value::Bool(v) => Some(v),
            _ => None,
        }
    }

    /// An array.
    #[must_use]
    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Value::Array(array) => Some(array),
            _ => None,
        }
    }

    /// An array of strings.
    #[must_use]
    pub fn as_strings(&self) -> Option<&[String]> {
        match self {
            Value::Array(Array::String(v)) => Some(v),
            _ => None,
        }
    }

    /// An array of float32.
    #[must_use]
    pub fn as_f32s(&self) -> Option<&[f32]> {
        match self {
            Value::Array(Array::F32(v)) => Some(v),
            _ => None,
        }
    }

    /// An array of int32.
    #[must_use]
    pub fn as_i32s(&self) -> Option<&[i32]> {
        match self {
            Value::Array(Array::I32(v)) => Some(v),
            _ => None,
        }
    }
}

impl fmt::Display for Value {
    /// Short form for listings: arrays show their type and length.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::U8(v) => write!(f, "{v}"),
            Value::I8(v) => write!(f, "{v}"),
            Value::U16(v) => write!(f, "{v}"),
            Value::I16(v) => write!(f, "{v}"),
            Value::U32(v) => write!(f, "{v}"),
            Value::I32(v) => write!(f, "{v}"),
            Value::F32(v) => write!(f, "{v}"),
            Value::Bool(v) => write!(f, "{v}"),
            Value::String(v) => write!(f, "{v}"),
            Value::U64(v) => write!(f, "{v}"),
            Value::I64(v) => write!(f, "{v}"),
            Value::F64(v) => write!(f, "{v}"),
            Value::Array(array) => write!(f, "[{}; {}]", array.element_type().name(), array.len()),
        }
    }
}
