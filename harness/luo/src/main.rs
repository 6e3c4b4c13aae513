// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The `luo` command.

use std::process::ExitCode;

// Names every handler crate that belongs into the program; the linker drops the others.
use luo_handler_ioport as _;
use luo_handler_memfd as _;
use luo_handler_socket as _;
use luo_handler_vfio as _;

fn main() -> ExitCode {
    luo_cli::cli::main()
}
