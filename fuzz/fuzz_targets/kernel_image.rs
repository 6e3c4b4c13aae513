// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Reading any file as a kernel's image ends with an answer or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use luo_check::facts::Facts;
use luo_check::image::Image;

fuzz_target!(|bytes: &[u8]| {
    let _ = Image::read(bytes);
    let _ = Facts::from_notes(bytes);
});
