// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Where handlers register and hosts find them: one macro, three ways of collecting.

#[cfg(all(any(feature = "linkme", feature = "inventory"), not(luo_kernel)))]
use crate::SubsystemOps;
#[cfg(not(luo_kernel))]
use crate::{HandlerOps, InvalidHandler, InvalidReason};

/// Every handler that [`register_handler!`](crate::register_handler) put into this program, by
/// linkme.
#[cfg(all(feature = "linkme", not(feature = "inventory"), not(luo_kernel)))]
#[linkme::distributed_slice]
pub static HANDLERS: [&'static HandlerOps];

/// Every subsystem that [`register_subsystem!`](crate::register_subsystem) put into this program,
/// by linkme.
#[cfg(all(feature = "linkme", not(feature = "inventory"), not(luo_kernel)))]
#[linkme::distributed_slice]
pub static SUBSYSTEMS: [&'static SubsystemOps];

/// A handler as inventory collects it.
#[cfg(feature = "inventory")]
#[derive(Debug)]
pub struct RegisteredHandler(pub &'static HandlerOps);

/// A subsystem as inventory collects it.
#[cfg(feature = "inventory")]
#[derive(Debug)]
pub struct RegisteredSubsystem(pub &'static SubsystemOps);

#[cfg(feature = "inventory")]
inventory::collect!(RegisteredHandler);
#[cfg(feature = "inventory")]
inventory::collect!(RegisteredSubsystem);

/// The handlers of this program, unchecked and in an order that depends on the linker: validate
/// each, sort by compatible, and refuse duplicates.
#[cfg(all(any(feature = "linkme", feature = "inventory"), not(luo_kernel)))]
pub fn registered_handlers() -> impl Iterator<Item = &'static HandlerOps> {
    #[cfg(feature = "inventory")]
    return inventory::iter::<RegisteredHandler>().map(|entry| entry.0);
    #[cfg(not(feature = "inventory"))]
    return HANDLERS.iter().copied();
}

/// The subsystems of this program; the same rules as for [`registered_handlers`].
#[cfg(all(any(feature = "linkme", feature = "inventory"), not(luo_kernel)))]
pub fn registered_subsystems() -> impl Iterator<Item = &'static SubsystemOps> {
    #[cfg(feature = "inventory")]
    return inventory::iter::<RegisteredSubsystem>().map(|entry| entry.0);
    #[cfg(not(feature = "inventory"))]
    return SUBSYSTEMS.iter().copied();
}

/// Looks for the first handler whose compatible an earlier one has.
///
/// # Errors
///
/// [`InvalidHandler`] with [`InvalidReason::Duplicate`], which names it.
#[cfg(not(luo_kernel))]
pub fn refuse_duplicates(handlers: &[&HandlerOps]) -> Result<(), InvalidHandler> {
    for (index, ops) in handlers.iter().enumerate() {
        if handlers[..index]
            .iter()
            .any(|earlier| earlier.header.compatible == ops.header.compatible)
        {
            return Err(InvalidHandler {
                compatible: ops.compatible().ok(),
                reason: InvalidReason::Duplicate,
            });
        }
    }
    Ok(())
}

/// The crate at the beginning of what `module_path!()` returns.
#[doc(hidden)]
pub const fn crate_of(module_path: &'static str) -> &'static str {
    let bytes = module_path.as_bytes();
    let mut length = 0;
    while length < bytes.len() && bytes[length] != b':' {
        length += 1;
    }
    match core::str::from_utf8(bytes.split_at(length).0) {
        Ok(name) => name,
        Err(_) => module_path,
    }
}

/// Registers a handler with every host that this code is linked into.
///
/// Makes a static of the handler, from a const expression:
///
/// ```
/// # use luo_handler_api::*;
/// # struct Null;
/// # impl FileHandler for Null {
/// #     const COMPATIBLE: Compatible = Compatible::new("null-v1");
/// #     type Private = ();
/// #     fn can_preserve(&self, _: FileRef<'_>) -> bool { false }
/// #     fn prepare(&self, _: FileRef<'_>, _: Host<'_>) -> Result<Prepared<()>, Errno> {
/// #         Err(Errno::EOPNOTSUPP)
/// #     }
/// #     fn cancel(&self, _: Preserved<'_, ()>) {}
/// #     fn retrieve(&self, _: u64, _: Host<'_>) -> Result<OwnedFile, Errno> {
/// #         Err(Errno::EOPNOTSUPP)
/// #     }
/// #     fn finish(&self, _: Crossed<'_>) {}
/// # }
/// register_handler!(NULL: Null = Null);
/// ```
///
/// A crate that is only named in `Cargo.toml` is dropped by the linker, handlers and all: a program
/// that wants them has `use luo_handler_memfd as _;`.
///
/// Only a [`FileHandler`](crate::FileHandler) can be registered:
///
/// ```compile_fail
/// luo_handler_api::register_handler!(NUMBER: u32 = 7);
/// ```
#[macro_export]
macro_rules! register_handler {
    ($(#[$attribute:meta])* $visibility:vis $name:ident: $type:ty = $value:expr) => {
        $(#[$attribute])*
        $visibility static $name: $type = $value;
        const _: () = {
            $crate::__collect!(handler $name: $type);
            $crate::__note!($type);
        };
    };
}

/// Registers a [`Subsystem`](crate::Subsystem), as [`register_handler!`] does a handler.
#[macro_export]
macro_rules! register_subsystem {
    ($(#[$attribute:meta])* $visibility:vis $name:ident: $type:ty = $value:expr) => {
        $(#[$attribute])*
        $visibility static $name: $type = $value;
        const _: () = {
            $crate::__collect!(subsystem $name: $type);
        };
    };
}

// A cfg inside a macro is asked in the crate that uses it, so there is one macro for each way.

#[cfg(luo_kernel)]
#[doc(hidden)]
#[macro_export]
macro_rules! __collect {
    (handler $name:ident: $type:ty) => {
        $crate::__collect!("luo_handlers" HandlerEntry $name: $type);
    };
    (subsystem $name:ident: $type:ty) => {
        $crate::__collect!("luo_subsystems" SubsystemEntry $name: $type);
    };
    ($section:literal $entry:ident $name:ident: $type:ty) => {
        struct Place;
        impl $crate::kernel::Static for Place {
            type Value = $type;
            fn value() -> &'static $type {
                &$name
            }
        }
        static OPS: $crate::kernel::$entry = $crate::kernel::$entry::of::<Place>(
            $crate::registry::crate_of(::core::module_path!()),
        );
        #[used]
        #[link_section = $section]
        static ENTRY: &$crate::kernel::$entry = &OPS;
    };
}

#[cfg(all(feature = "inventory", not(luo_kernel)))]
#[doc(hidden)]
#[macro_export]
macro_rules! __collect {
    (handler $name:ident: $type:ty) => {
        static OPS: &$crate::HandlerOps = $crate::__static_ops!(HandlerOps, $name);
        $crate::__private::inventory::submit!($crate::registry::RegisteredHandler(OPS));
    };
    (subsystem $name:ident: $type:ty) => {
        static OPS: &$crate::SubsystemOps = $crate::__static_ops!(SubsystemOps, $name);
        $crate::__private::inventory::submit!($crate::registry::RegisteredSubsystem(OPS));
    };
}

#[cfg(all(feature = "linkme", not(feature = "inventory"), not(luo_kernel)))]
#[doc(hidden)]
#[macro_export]
macro_rules! __collect {
    (handler $name:ident: $type:ty) => {
        #[$crate::__private::linkme::distributed_slice($crate::registry::HANDLERS)]
        #[linkme(crate = $crate::__private::linkme)]
        static ENTRY: &$crate::HandlerOps = $crate::__static_ops!(HandlerOps, $name);
    };
    (subsystem $name:ident: $type:ty) => {
        #[$crate::__private::linkme::distributed_slice($crate::registry::SUBSYSTEMS)]
        #[linkme(crate = $crate::__private::linkme)]
        static ENTRY: &$crate::SubsystemOps = $crate::__static_ops!(SubsystemOps, $name);
    };
}

#[cfg(not(any(feature = "linkme", feature = "inventory", luo_kernel)))]
#[doc(hidden)]
#[macro_export]
macro_rules! __collect {
    ($kind:ident $name:ident: $type:ty) => {
        ::core::compile_error!(
            "nothing collects handlers: switch on luo-handler-api's feature linkme or inventory"
        );
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crate_is_the_first_part_of_a_module_path() {
        assert_eq!(crate_of("luo_handler_memfd::user"), "luo_handler_memfd");
        assert_eq!(crate_of("luo"), "luo");
    }
}
