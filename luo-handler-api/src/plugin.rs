// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Handlers in a shared object that a host opens while it runs.
//!
//! A shared object has its own copy of this crate, whose slices the host never sees. It therefore
//! exports one C symbol, [`PLUGIN_SYMBOL`], made by [`export_plugin!`](crate::export_plugin), or in
//! C as `include/luo_handler.h` has it. The rules for versions and sizes are those of
//! [`ops`](crate::ops).

#![allow(unsafe_code)] // an edge: reads what a plugin exports

use core::mem::{offset_of, MaybeUninit};

use crate::{HandlerOps, SubsystemOps, ABI_VERSION};

/// The symbol that a plugin exports: a [`PluginDescriptor`].
pub const PLUGIN_SYMBOL: &str = "LUO_PLUGIN";

/// What a plugin brings: `struct luo_plugin`.
///
/// # Invariants
///
/// `handlers` leads to `count` pointers and `subsystems` to `subsystem_count`, unless they are
/// NULL; each of these to ops that live as long as the plugin stays open. A host never closes one.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PluginDescriptor {
    abi_version: u32,
    /// Bytes of this struct, as it was built.
    size: u32,
    handlers: *const *const HandlerOps,
    count: usize,
    // The first size ends here.
    subsystems: *const *const SubsystemOps,
    subsystem_count: usize,
}

// SAFETY: the pointers lead to static ops, which nobody writes.
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
    /// Bytes of the first layout of this version.
    const FIRST_SIZE: usize = offset_of!(Self, subsystems);

    /// Describes a plugin with these handlers and subsystems.
    pub const fn new(
        handlers: &'static [&'static HandlerOps],
        subsystems: &'static [&'static SubsystemOps],
    ) -> Self {
        Self {
            abi_version: ABI_VERSION,
            size: size_of::<Self>() as u32,
            handlers: handlers.as_ptr().cast(),
            count: handlers.len(),
            subsystems: subsystems.as_ptr().cast(),
            subsystem_count: subsystems.len(),
        }
    }

    /// Copies the descriptor of a plugin that was just opened.
    ///
    /// # Errors
    ///
    /// [`ForeignPlugin`] if it was built for another version of the C form.
    ///
    /// # Safety
    ///
    /// `descriptor` is aligned and leads to a `struct luo_plugin` of any version: the first two
    /// fields are there, in this version as many bytes as `size` counts. It meets the contract of
    /// `include/luo_handler.h`, and the plugin stays open.
    pub unsafe fn read(descriptor: *const Self) -> Result<Self, ForeignPlugin> {
        // SAFETY: the safety section has these two fields there in every version. They are read one
        // by one, without a reference to more than them.
        let (abi_version, size) = unsafe {
            (
                (&raw const (*descriptor).abi_version).read(),
                (&raw const (*descriptor).size).read(),
            )
        };
        if abi_version != ABI_VERSION || (size as usize) < Self::FIRST_SIZE {
            return Err(ForeignPlugin { abi_version, size });
        }
        // What is there in part is absent, and what is absent is zero: no subsystems.
        let known = match size as usize >= size_of::<Self>() {
            true => size_of::<Self>(),
            false => Self::FIRST_SIZE,
        };
        let mut copy = MaybeUninit::<Self>::zeroed();
        // SAFETY: the safety section has `size` bytes at `descriptor`; `known` is at most that and
        // at most the size of `copy`. The fields after it may be zero: a pointer and a count.
        Ok(unsafe {
            let bytes = descriptor.cast::<u8>();
            core::ptr::copy_nonoverlapping(bytes, copy.as_mut_ptr().cast(), known);
            copy.assume_init()
        })
    }
}

#[cfg(test)]
impl PluginDescriptor {
    /// What the header has in C, and where it is here.
    pub(crate) fn layout() -> impl Iterator<Item = (&'static str, usize)> {
        [
            ("sizeof(struct luo_plugin)", size_of::<Self>()),
            (
                "offsetof(struct luo_plugin, abi_version)",
                offset_of!(Self, abi_version),
            ),
            ("offsetof(struct luo_plugin, size)", offset_of!(Self, size)),
            (
                "offsetof(struct luo_plugin, handlers)",
                offset_of!(Self, handlers),
            ),
            (
                "offsetof(struct luo_plugin, count)",
                offset_of!(Self, count),
            ),
            (
                "offsetof(struct luo_plugin, subsystems)",
                offset_of!(Self, subsystems),
            ),
            (
                "offsetof(struct luo_plugin, subsystem_count)",
                offset_of!(Self, subsystem_count),
            ),
        ]
        .into_iter()
    }
}

#[cfg(feature = "std")]
mod hosted {
    use super::PluginDescriptor;
    use crate::{
        c::slice,
        hosted::{Handler, SubsystemRef},
        InvalidHandler,
    };
    use std::vec::Vec;

    impl PluginDescriptor {
        /// The handlers of a plugin, validated.
        ///
        /// # Errors
        ///
        /// [`InvalidHandler`], for the first that cannot be used.
        pub fn handlers(&self) -> Result<Vec<Handler>, InvalidHandler> {
            // SAFETY: by the type's invariant `handlers` leads to `count` pointers or is NULL.
            let handlers = unsafe { listed(self.handlers, self.count) };
            let usable = handlers.iter().map(|&ops| {
                // SAFETY: by the type's invariant the pointer leads to ops of a plugin that stays
                // open.
                unsafe { Handler::from_raw(ops) }
            });
            usable.collect()
        }

        /// The subsystems of a plugin, validated.
        ///
        /// # Errors
        ///
        /// [`InvalidHandler`], for the first that cannot be used.
        pub fn subsystems(&self) -> Result<Vec<SubsystemRef>, InvalidHandler> {
            // SAFETY: by the type's invariant `subsystems` leads to `subsystem_count` pointers or
            // is NULL.
            let subsystems = unsafe { listed(self.subsystems, self.subsystem_count) };
            let usable = subsystems.iter().map(|&ops| {
                // SAFETY: by the type's invariant the pointer leads to ops of a plugin that stays
                // open.
                unsafe { SubsystemRef::from_raw(ops) }
            });
            usable.collect()
        }
    }

    /// A list in C form, where NULL is an empty one.
    ///
    /// # Safety
    ///
    /// `start` is NULL or leads to `count` items that live for `'a`.
    unsafe fn listed<'a, T>(start: *const T, count: usize) -> &'a [T] {
        // SAFETY: without NULL there are `count` items by the safety section.
        unsafe { slice(start, if start.is_null() { 0 } else { count }) }
    }
}

impl core::fmt::Display for ForeignPlugin {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "built for version {} of the handler ABI ({} bytes), this host has {ABI_VERSION} \
             (at least {} bytes); rebuild it",
            self.abi_version,
            self.size,
            PluginDescriptor::FIRST_SIZE
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
///
/// Subsystems come after the handlers: `export_plugin!(MEMFD; subsystems: CLOCK)`.
#[cfg(feature = "std")]
#[macro_export]
macro_rules! export_plugin {
    ($($handler:path),+ $(,)? $(; subsystems: $($subsystem:path),+ $(,)?)?) => {
        /// What this plugin brings.
        #[no_mangle]
        pub static LUO_PLUGIN: $crate::plugin::PluginDescriptor =
            $crate::plugin::PluginDescriptor::new(
                &[$($crate::__static_ops!(HandlerOps, $handler)),+],
                &[$($($crate::__static_ops!(SubsystemOps, $subsystem)),+)?],
            );
    };
}

/// The C form of a static, as a static.
#[doc(hidden)]
#[macro_export]
macro_rules! __static_ops {
    ($ops:ident, $value:path) => {{
        static OPS: $crate::$ops =
            $crate::$ops::of(&$value, $crate::registry::crate_of(::core::module_path!()));
        &OPS
    }};
}

/// Exports the handlers of a `cdylib`; it takes this crate's feature `std`.
#[cfg(not(feature = "std"))]
#[macro_export]
macro_rules! export_plugin {
    ($($any:tt)*) => {
        ::core::compile_error!(
            "a plugin catches its panics: switch on luo-handler-api's feature std"
        );
    };
}
