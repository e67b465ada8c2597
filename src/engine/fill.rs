//! Copies a slice of an Arrow array into a DuckDB vector: the types of the page views and no others.

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, PrimitiveArray, StringArray};
use arrow::datatypes::{DataType, Date32Type, Int16Type, Int32Type, Int64Type};
use duckdb::ffi;

use crate::base::error::{Error, Result};

/// DuckDB's type for a column, if it can be copied.
pub(super) fn duckdb_type(data_type: &DataType) -> Option<ffi::duckdb_type> {
    match data_type {
        DataType::Int16 => Some(ffi::DUCKDB_TYPE_DUCKDB_TYPE_SMALLINT),
        DataType::Int32 => Some(ffi::DUCKDB_TYPE_DUCKDB_TYPE_INTEGER),
        DataType::Int64 => Some(ffi::DUCKDB_TYPE_DUCKDB_TYPE_BIGINT),
        DataType::Date32 => Some(ffi::DUCKDB_TYPE_DUCKDB_TYPE_DATE),
        DataType::Utf8 => Some(ffi::DUCKDB_TYPE_DUCKDB_TYPE_VARCHAR),
        _ => None,
    }
}

/// Fills the first rows of a vector that DuckDB has just reset.
///
/// # Safety
/// The vector must be valid, of the type that [`duckdb_type`] gives for the array, and have room for its rows.
pub(super) unsafe fn fill(vector: ffi::duckdb_vector, array: &ArrayRef) -> Result<()> {
    // SAFETY: the caller vouches for the vector; each arm copies the type that `duckdb_type` declared for it.
    unsafe {
        match array.data_type() {
            DataType::Int16 => copy_values(vector, array.as_primitive::<Int16Type>()),
            DataType::Int32 => copy_values(vector, array.as_primitive::<Int32Type>()),
            DataType::Int64 => copy_values(vector, array.as_primitive::<Int64Type>()),
            DataType::Date32 => copy_values(vector, array.as_primitive::<Date32Type>()),
            DataType::Utf8 => {
                let own = TextVector::new()?;
                copy_strings(own.0, array.as_string::<i32>());
                copy_nulls(own.0, array);
                ffi::duckdb_vector_reference_vector(vector, own.0);
                return Ok(());
            }
            other => {
                return Err(Error::internal(format!(
                    "a column of type {other} cannot be handed to DuckDB"
                )));
            }
        }
        copy_nulls(vector, array);
    }
    Ok(())
}

/// A vector of our own for text, which the scan's vector then shares. The heap of the scan's own vector counts
/// against DuckDB's memory limit, and reports that it is full with a C++ exception, which must not cross
/// Rust; this one's is allocated plainly, and lives as long as the vector of rows that is being passed on.
struct TextVector(ffi::duckdb_vector);

impl TextVector {
    fn new() -> Result<Self> {
        // SAFETY: the type is made here and destroyed once; a vector is made or null.
        let vector = unsafe {
            let mut text = ffi::duckdb_create_logical_type(ffi::DUCKDB_TYPE_DUCKDB_TYPE_VARCHAR);
            let vector = ffi::duckdb_create_vector(text, ffi::duckdb_vector_size());
            ffi::duckdb_destroy_logical_type(&mut text);
            vector
        };
        if vector.is_null() {
            Err(Error::internal("DuckDB gave no vector for text"))
        } else {
            Ok(Self(vector))
        }
    }
}

impl Drop for TextVector {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once; what the scan's vector shares stays.
        unsafe { ffi::duckdb_destroy_vector(&mut self.0) };
    }
}

/// # Safety
/// The vector's values must have the width of `T::Native`, and there must be room for all of the array's.
unsafe fn copy_values<T: ArrowPrimitiveType>(vector: ffi::duckdb_vector, array: &PrimitiveArray<T>) {
    let values = array.values();
    // SAFETY: source and target are distinct buffers of at least `values.len()` values of the same width.
    unsafe {
        let target = ffi::duckdb_vector_get_data(vector).cast::<T::Native>();
        std::ptr::copy_nonoverlapping(values.as_ptr(), target, values.len());
    }
}

/// Copies all text of the array's rows at once, as if it were one value, and points the rows into the copy.
///
/// # Safety
/// The vector must be a VARCHAR vector with room for all of the array's values.
unsafe fn copy_strings(vector: ffi::duckdb_vector, array: &StringArray) {
    let offsets = array.value_offsets();
    let (Some(&first), Some(&last)) = (offsets.first(), offsets.last()) else {
        return;
    };
    // Offsets into Arrow's text are never negative, and never decrease.
    let (start, end) = (first as usize, last as usize);
    let text = &array.value_data()[start..end];
    // SAFETY: a VARCHAR vector holds `duckdb_string_t` values: up to 12 bytes are stored in the value itself,
    // longer text is pointed to, here in the vector's heap. Arrow's text is valid UTF-8 already.
    unsafe {
        let target = ffi::duckdb_vector_get_data(vector).cast::<ffi::duckdb_string_t>();
        let mut heap = std::ptr::null_mut();
        if text.len() > INLINED {
            ffi::duckdb_unsafe_vector_assign_string_element_len(vector, 0, text.as_ptr().cast(), text.len() as u64);
            heap = (*target).value.pointer.ptr;
        }
        for (row, bounds) in offsets.windows(2).enumerate() {
            let (from, to) = (bounds[0] as usize - start, bounds[1] as usize - start);
            *target.add(row) = text_value(&text[from..to], heap.wrapping_add(from));
        }
    }
}

/// Text of up to so many bytes is part of DuckDB's value; longer text is pointed to.
const INLINED: usize = 12;

/// DuckDB's value for text that is stored, where it is longer than [`INLINED`], at `stored`.
fn text_value(text: &[u8], stored: *mut std::ffi::c_char) -> ffi::duckdb_string_t {
    let length = text.len() as u32;
    let value = if let Some(bytes) = first_bytes::<4>(text).filter(|_| text.len() > INLINED) {
        let pointer = ffi::duckdb_string_t__bindgen_ty_1__bindgen_ty_1 {
            length,
            prefix: bytes,
            ptr: stored,
        };
        ffi::duckdb_string_t__bindgen_ty_1 { pointer }
    } else {
        let mut inlined = [0; INLINED];
        for (target, byte) in inlined.iter_mut().zip(text) {
            *target = *byte as std::ffi::c_char;
        }
        let inlined = ffi::duckdb_string_t__bindgen_ty_1__bindgen_ty_2 { length, inlined };
        ffi::duckdb_string_t__bindgen_ty_1 { inlined }
    };
    ffi::duckdb_string_t { value }
}

fn first_bytes<const N: usize>(text: &[u8]) -> Option<[std::ffi::c_char; N]> {
    text.first_chunk::<N>()
        .map(|bytes| bytes.map(|byte| byte as std::ffi::c_char))
}

/// # Safety
/// The vector must have room for the array's rows.
unsafe fn copy_nulls(vector: ffi::duckdb_vector, array: &ArrayRef) {
    let Some(nulls) = array.nulls().filter(|nulls| nulls.null_count() > 0) else {
        return;
    };
    // SAFETY: the mask has one bit a row, in words of 64 and in Arrow's order, for the vector's capacity.
    unsafe {
        ffi::duckdb_vector_ensure_validity_writable(vector);
        let mask = ffi::duckdb_vector_get_validity(vector);
        for (index, word) in nulls
            .inner()
            .bit_chunks()
            .iter_padded()
            .take(nulls.len().div_ceil(64))
            .enumerate()
        {
            *mask.add(index) = word;
        }
    }
}
