// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Tables that fit a terminal, and text that does it no harm.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{ContentArrangement, Table};

/// Columns of a terminal.
pub(crate) const WIDTH: u16 = 80;

/// A table without rows; long cells are wrapped.
pub(crate) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH)
        .set_header(header);
    table
}

/// What a hostile previous kernel wrote must not reach a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| match c.is_control() {
            true => c.escape_default().collect::<Vec<_>>(),
            false => vec![c],
        })
        .collect()
}
