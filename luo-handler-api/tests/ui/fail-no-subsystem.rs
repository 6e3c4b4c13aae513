// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Only a subsystem can be registered as one.

struct Clock;

luo_handler_api::register_subsystem!(CLOCK: Clock = Clock);

fn main() {}
