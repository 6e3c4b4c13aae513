// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The handler as a plugin.

#![allow(unsafe_code)] // an edge: a symbol that hosts look for

luo_handler_api::export_plugin!(crate::user::SAMPLE);
