// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Handlers out of shared objects that are opened while the program runs.
//!
//! A plugin exports one descriptor, made by [`luo_handler_api::export_plugin!`]. It is never
//! closed: files, private states and panics of its handlers may refer to its code until the process
//! ends.

#![allow(unsafe_code)] // an edge: opens shared objects

use std::io;
use std::mem::forget;
use std::path::{Path, PathBuf};

use libloading::{Library, Symbol};
use luo_handler_api::plugin::{ForeignPlugin, PluginDescriptor, PLUGIN_SYMBOL};
use luo_handler_api::{Compatible, InvalidHandler};
use thiserror::Error;

use crate::registry::Registry;

/// A plugin that cannot be used; nothing of it was registered.
#[derive(Debug, Error)]
#[error("cannot use the plugin {}: {cause}", path.display())]
pub struct PluginError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub cause: PluginErrorCause,
}

/// Why a plugin cannot be used.
#[derive(Debug, Error)]
pub enum PluginErrorCause {
    /// There is no such file, or it may not be read.
    #[error("{0}")]
    NotFound(io::Error),
    /// It is not a shared object of this machine.
    #[error("{0}; a plugin is a crate of type cdylib, built for this machine")]
    NotLoadable(libloading::Error),
    /// It is a shared object, but not a plugin.
    #[error("it has no symbol {PLUGIN_SYMBOL}; luo_handler_api::export_plugin! makes it")]
    NotAPlugin,
    /// It was built for another version of the handler ABI.
    #[error("{0}")]
    Foreign(ForeignPlugin),
    /// One of its handlers cannot be used, or another one of that name is registered.
    #[error("{0}")]
    Handler(Box<InvalidHandler>),
}

/// Opens the plugin at `path` and adds its handlers to `registry`, all or none; returns their
/// names.
///
/// Opening runs the plugin's code with all rights of this process: name only files that you would
/// run as a program.
///
/// # Errors
///
/// [`PluginError`], which names the file and what is wrong with it.
pub fn load(path: &Path, registry: &Registry) -> Result<Vec<Compatible>, PluginError> {
    let failed = |cause| PluginError {
        path: path.to_owned(),
        cause,
    };
    let invalid = |invalid| failed(PluginErrorCause::Handler(Box::new(invalid)));
    let descriptor = descriptor_of(path).map_err(failed)?;
    let handlers = descriptor.handlers().map_err(invalid)?;
    let subsystems = descriptor.subsystems().map_err(invalid)?;
    registry
        .register_all(&handlers, &subsystems)
        .map_err(invalid)?;
    Ok(handlers
        .iter()
        .map(|handler| *handler.compatible())
        .collect())
}

fn descriptor_of(path: &Path) -> Result<PluginDescriptor, PluginErrorCause> {
    // A bare name would be looked for among the system's libraries.
    let path = path.canonicalize().map_err(PluginErrorCause::NotFound)?;
    // SAFETY: whoever names a plugin asks for its code to be run, as with a program.
    let library = unsafe { Library::new(path) }.map_err(PluginErrorCause::NotLoadable)?;
    // SAFETY: by the definition of a plugin, what has this name is a PluginDescriptor.
    let symbol: Result<Symbol<'_, *const PluginDescriptor>, _> =
        unsafe { library.get(PLUGIN_SYMBOL) };
    let descriptor = symbol.map(|symbol| *symbol);
    forget(library);
    let descriptor = descriptor.map_err(|_| PluginErrorCause::NotAPlugin)?;
    if descriptor.is_null() || !descriptor.is_aligned() {
        return Err(PluginErrorCause::NotAPlugin);
    }
    // SAFETY: it is aligned and leads to a descriptor, of whatever version, in a library that is
    // never closed: `forget` saw to that.
    unsafe { PluginDescriptor::read(descriptor) }.map_err(PluginErrorCause::Foreign)
}
