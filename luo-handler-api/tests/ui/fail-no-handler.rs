// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Only a handler can be registered.

struct Handler;

luo_handler_api::register_handler!(HANDLER: Handler = Handler);

fn main() {}
