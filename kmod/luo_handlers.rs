// SPDX-License-Identifier: GPL-2.0-only
//! Registers every handler of the section `luo_handlers` with the Live Update Orchestrator.
//!
//! That is all it does: what mainline calls is forwarded to the handler, and what a handler asks of
//! its host is answered. Which handlers there are is decided by Kconfig, which of them take files by
//! the boot parameter `luo_handlers.disable`.
//!
//! # Map
//!
//! - `dispatch`: mainline's ops, forwarded
//! - `host`: bytes that cross the jump, for handlers
//! - `counters`: calls, errors and time of each phase, shown in debugfs
//! - `shim`: what C does for us

mod counters;
mod dispatch;
mod host;
mod shim;

use core::ffi::CStr;

use kernel::{
    debugfs,
    prelude::*,
    str::CString,
    sync::atomic::{Atomic, Relaxed},
};
use luo_handler_api::{kernel::Handler, HandlerOps};

use counters::Counters;

module! {
    type: LuoHandlers,
    name: "luo_handlers",
    authors: ["The luo-handlers developers"],
    description: "File handlers for live update",
    license: "GPL v2",
}

/// A handler that is registered; it stays so for good.
struct Registered {
    handler: Handler,
    /// Takes no new files, because the boot parameter says so.
    disabled: bool,
    counters: Counters,
}

impl Registered {
    /// The handler's name in parameters and debugfs: its compatible without the version.
    fn name(&self) -> &str {
        name_of(self.handler.compatible().as_str())
    }
}

/// Prints what the api can print: the kernel's own macros know only the kernel's types.
struct Shown<'a, T>(&'a T);

impl<T: core::fmt::Display> kernel::fmt::Display for Shown<'_, T> {
    fn fmt(&self, f: &mut kernel::fmt::Formatter<'_>) -> kernel::fmt::Result {
        self.0.fmt(f)
    }
}

/// `memfd` of `memfd-v1`.
fn name_of(compatible: &str) -> &str {
    match compatible.rsplit_once("-v") {
        Some((name, version))
            if !name.is_empty() && version.bytes().all(|b| b.is_ascii_digit()) =>
        {
            name
        }
        _ => compatible,
    }
}

/// Whether a list such as `memfd,vfio` names `name`.
fn is_listed(list: &str, name: &str) -> bool {
    list.split(',').any(|listed| listed.trim() == name)
}

type CountersFile = Pin<KBox<debugfs::File<&'static Registered>>>;

/// What lives as long as the kernel.
struct LuoHandlers {
    _counters: KVec<CountersFile>,
    _kept_bytes: Pin<KBox<debugfs::File<&'static Atomic<u64>>>>,
    _directory: debugfs::Dir,
}

impl kernel::Module for LuoHandlers {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let directory = debugfs::Dir::new(c"luo_handlers");
        let mut files = KVec::new();
        for ops in section() {
            match register(ops, disabled_handlers()) {
                Ok(Some(registered)) => files.push(show(&directory, registered)?, GFP_KERNEL)?,
                Ok(None) => {}
                // One that cannot be registered is logged, and costs the others nothing.
                Err(error) => pr_err!("{}: not registered: {:?}\n", ops.origin(), error),
            }
        }
        Ok(Self {
            _counters: files,
            _kept_bytes: show_kept_bytes(&directory)?,
            _directory: directory,
        })
    }
}

/// The handlers that were linked in.
fn section() -> &'static [&'static HandlerOps] {
    let (mut start, mut stop) = (core::ptr::null(), core::ptr::null());
    // SAFETY: both are ours to write.
    unsafe { shim::luo_section(&mut start, &mut stop) };
    let count = (stop as usize).saturating_sub(start as usize) / size_of::<&HandlerOps>();
    if start.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: between the two symbols the linker has put the statics that register_handler! makes,
    // references all of them, one after the other; they are never written.
    unsafe { core::slice::from_raw_parts(start.cast(), count) }
}

/// The boot parameter.
fn disabled_handlers() -> &'static str {
    // SAFETY: the text of a parameter that cannot be written lives as long as the kernel.
    let list = unsafe { CStr::from_ptr(shim::luo_disabled()) };
    list.to_str().unwrap_or("")
}

/// Registers one handler; `None` if live update is switched off.
fn register(ops: &'static HandlerOps, disabled: &str) -> Result<Option<&'static Registered>> {
    let handler = Handler::new(ops).map_err(|invalid| {
        pr_err!("{}\n", Shown(&invalid));
        EINVAL
    })?;
    let registered: &'static Registered = KBox::leak(KBox::new(
        Registered {
            handler,
            disabled: is_listed(disabled, name_of(handler.compatible().as_str())),
            counters: Counters::new(),
        },
        GFP_KERNEL,
    )?);
    let compatible = registered.handler.compatible().as_bytes().as_ptr().cast();
    // SAFETY: the compatible ends with a NUL and, as the rest of it, lives as long as the kernel.
    let status = unsafe { shim::luo_register(compatible, core::ptr::from_ref(registered).cast()) };
    match kernel::error::to_result(status) {
        Ok(()) => {
            let taking = if registered.disabled {
                ", takes no new files (luo_handlers.disable)"
            } else {
                ""
            };
            pr_info!(
                "{} of {} is registered{}\n",
                registered.handler.compatible().as_str(),
                registered.handler.origin(),
                taking
            );
            Ok(Some(registered))
        }
        Err(error) => {
            // SAFETY: the shim keeps nothing of a handler that it did not register.
            drop(unsafe { KBox::from_raw(core::ptr::from_ref(registered).cast_mut()) });
            if error == EOPNOTSUPP {
                pr_info!("live update is off (liveupdate=on switches it on)\n");
                return Ok(None);
            }
            Err(error)
        }
    }
}

/// Shows in debugfs how many bytes are kept for the next kernel beside the files' contents.
fn show_kept_bytes(
    directory: &debugfs::Dir,
) -> Result<Pin<KBox<debugfs::File<&'static Atomic<u64>>>>> {
    let file = directory.read_callback_file(c"kept_bytes", &host::KEPT_BYTES, &|bytes, f| {
        writeln!(f, "{}", bytes.load(Relaxed))
    });
    KBox::pin_init(file, GFP_KERNEL)
}

/// Shows the counters of a handler in debugfs.
fn show(directory: &debugfs::Dir, registered: &'static Registered) -> Result<CountersFile> {
    let name = CString::try_from_fmt(fmt!("{}", registered.name()))?;
    let file = directory.read_callback_file(&name, registered, &|registered, f| {
        registered.counters.fmt(f)
    });
    KBox::pin_init(file, GFP_KERNEL)
}
