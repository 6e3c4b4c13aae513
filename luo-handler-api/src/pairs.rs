// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What a handler reports about something it knows, for people and for programs.

#![allow(unsafe_code)] // an edge: the C form of a closure

use core::{ffi::c_void, fmt, marker::PhantomData};

use crate::{c::slice, panics::caught, text::Text};

/// Bytes that the value of a pair has room for; the rest is cut off.
pub const VALUE_MAX: usize = 256;

/// Takes pairs of a key and a value, as [`FileHandler::describe`](crate::FileHandler::describe)
/// writes them.
///
/// A key is a lower case word with its unit, such as `size_bytes`. One that ends in `[]` may come
/// several times: its values are a list. A value of decimal digits is a number to programs.
///
/// ```
/// use luo_handler_api::Pairs;
///
/// let mut lines = Vec::new();
/// let mut sink = |key: &str, value: &str| lines.push(format!("{key} {value}"));
/// let mut pairs = Pairs::new(&mut sink);
/// pairs.put("position_bytes", 4096);
/// pairs.put("region_bytes[]", 64);
/// assert_eq!(lines, ["position_bytes 4096", "region_bytes[] 64"]);
/// ```
///
/// # Invariants
///
/// `raw.put` may be called with `raw.context`, by one caller at a time.
#[derive(Debug)]
pub struct Pairs<'a> {
    raw: RawPairs,
    lent: PhantomData<&'a mut ()>,
}

/// [`Pairs`] in C form: `struct luo_pairs`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RawPairs {
    pub(crate) put: Put,
    pub(crate) context: *mut c_void,
}

type Put = unsafe extern "C" fn(
    context: *mut c_void,
    key: *const u8,
    key_len: usize,
    value: *const u8,
    value_len: usize,
);

impl<'a> Pairs<'a> {
    /// Calls `sink` with each pair.
    pub fn new<F: FnMut(&str, &str)>(sink: &'a mut F) -> Self {
        Self {
            raw: RawPairs {
                put: put::<F>,
                context: core::ptr::from_mut(sink).cast(),
            },
            lent: PhantomData,
        }
    }

    /// Reports one pair.
    pub fn put(&mut self, key: &str, value: impl fmt::Display) {
        let value = Text::<VALUE_MAX>::of(format_args!("{value}"));
        let (key, value) = (key.as_bytes(), value.as_str().as_bytes());
        // SAFETY: by the invariant the function may be called with its context, and `&mut self` is
        // the one caller; both texts are borrowed until it returns.
        unsafe {
            (self.raw.put)(
                self.raw.context,
                key.as_ptr(),
                key.len(),
                value.as_ptr(),
                value.len(),
            )
        }
    }
}

#[cfg(not(luo_kernel))]
impl Pairs<'_> {
    /// The pairs that a C form stands for.
    ///
    /// # Safety
    ///
    /// `raw.put` may be called with `raw.context` as long as the value is used, and nobody else
    /// does.
    pub(crate) const unsafe fn from_raw(raw: RawPairs) -> Self {
        Self {
            raw,
            lent: PhantomData,
        }
    }

    /// The C form.
    #[cfg(feature = "std")]
    pub(crate) const fn as_raw(&self) -> RawPairs {
        self.raw
    }
}

/// # Safety
///
/// `context` is a `&mut F` that nobody else uses during the call; `key` and `value` are valid for
/// reads of `key_len` and `value_len` bytes.
unsafe extern "C" fn put<F: FnMut(&str, &str)>(
    context: *mut c_void,
    key: *const u8,
    key_len: usize,
    value: *const u8,
    value_len: usize,
) {
    // SAFETY: by the safety section the context is a `&mut F` of this call alone, and the texts
    // have these lengths.
    let (sink, key, value) = unsafe {
        (
            &mut *context.cast::<F>(),
            slice(key, key_len),
            slice(value, value_len),
        )
    };
    if let (Ok(key), Ok(value)) = (core::str::from_utf8(key), core::str::from_utf8(value)) {
        let _ = caught(|| sink(key, value));
    }
}
