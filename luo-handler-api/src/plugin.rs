// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Handlers in a shared object that a host opens while it runs.
//!
//! A shared object has its own copy of this crate, whose slices the host never sees. It therefore
//! exports one C symbol, [`PLUGIN_SYMBOL`], made by [`export_plugin!`](crate::export_plugin).

use crate::{HandlerOps, ABI_VERSION};

/// The symbol that a plugin exports: a [`PluginDescriptor`].
pub const PLUGIN_SYMBOL: &str = "LUO_PLUGIN";

/// What a plugin brings.
///
/// # Invariants
///
/// `handlers` points to `count` references that live as long as the plugin stays open. A host never
/// closes one.
#[repr(C)]
#[derive(Debug)]
pub struct PluginDescriptor {
    abi_version: u32,
    /// Bytes of this struct.
    size: u32,
    handlers: *const &'static HandlerOps,
    count: usize,
}

// SAFETY: the pointer leads to static references, which are never written.
unsafe impl Sync for PluginDescriptor {}

/// A plugin was built for another version of the C form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignPlugin {
    /// The version it was built for.
    pub abi_version: u32,
    /// The bytes its descriptor claims to have.
    pub size: u32,
}

impl PluginDescriptor {
    /// Describes a plugin with these handlers.
    pub const fn new(handlers: &'static [&'static HandlerOps]) -> Self {
        Self {
            abi_version: ABI_VERSION,
            size: size_of::<Self>() as u32,
            handlers: handlers.as_ptr(),
            count: handlers.len(),
        }
    }

    /// The handlers, not yet validated.
    ///
    /// # Errors
    ///
    /// [`ForeignPlugin`] if the plugin was built for another version of the C form.
    pub fn handlers(&self) -> Result<&'static [&'static HandlerOps], ForeignPlugin> {
        if self.abi_version != ABI_VERSION || (self.size as usize) < size_of::<Self>() {
            return Err(ForeignPlugin {
                abi_version: self.abi_version,
                size: self.size,
            });
        }
        // SAFETY: by the type's invariant, in the version that was just checked.
        Ok(unsafe { core::slice::from_raw_parts(self.handlers, self.count) })
    }
}

impl core::fmt::Display for ForeignPlugin {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "built for version {} of the handler ABI ({} bytes), this host has {ABI_VERSION} ({} bytes); rebuild it",
            self.abi_version,
            self.size,
            size_of::<PluginDescriptor>()
        )
    }
}

impl core::error::Error for ForeignPlugin {}

/// Exports the handlers of a `cdylib` to hosts that open it; the names are those of statics.
///
/// It takes this crate's feature `std`: without it a panic in the plugin would end the host.
///
/// ```ignore
/// register_handler!(MEMFD: MemfdHandler = MemfdHandler);
/// luo_handler_api::export_plugin!(MEMFD);
/// ```
#[cfg(feature = "std")]
#[macro_export]
macro_rules! export_plugin {
    ($($handler:path),+ $(,)?) => {
        /// What this plugin brings.
        #[no_mangle]
        pub static LUO_PLUGIN: $crate::plugin::PluginDescriptor =
            $crate::plugin::PluginDescriptor::new(&[$({
                static OPS: $crate::HandlerOps = $crate::HandlerOps::of(
                    &$handler,
                    $crate::registry::crate_of(::core::module_path!()),
                );
                &OPS
            }),+]);
    };
}

/// Exports the handlers of a `cdylib`; it takes this crate's feature `std`.
#[cfg(not(feature = "std"))]
#[macro_export]
macro_rules! export_plugin {
    ($($handler:path),+ $(,)?) => {
        ::core::compile_error!(
            "a plugin catches its panics: switch on luo-handler-api's feature std"
        );
    };
}
