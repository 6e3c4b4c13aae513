// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The two ways of calling a handler, as its trait and in its C form, as one; and a count of the
//! private states that are alive.

use std::{
    boxed::Box,
    os::fd::{BorrowedFd, OwnedFd},
    sync::{
        atomic::{AtomicIsize, Ordering::Relaxed},
        Arc,
    },
};

use crate::{
    hosted::{Handler, PreparedFile},
    Compatible, Crossed, Errno, FileHandler, FileRef, Host, Hosts, OwnedFile, Pairs, Prepared,
    Preserved, Retrieved,
};

/// A handler that counts its private states.
pub(super) struct Counted<H: 'static> {
    handler: &'static H,
    alive: Arc<AtomicIsize>,
}

/// A private state that counts itself.
pub(super) struct CountedPrivate<P> {
    private: P,
    alive: Arc<AtomicIsize>,
}

impl<H> Counted<H> {
    pub(super) fn new(handler: &'static H) -> Self {
        Self {
            handler,
            alive: Arc::default(),
        }
    }

    /// How many were made and not dropped; below zero if one was dropped twice.
    pub(super) fn alive(&self) -> isize {
        self.alive.load(Relaxed)
    }
}

impl<P> Drop for CountedPrivate<P> {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Relaxed);
    }
}

fn uncounted<'a, P>(file: Preserved<'a, CountedPrivate<P>>) -> Preserved<'a, P> {
    Preserved {
        file: file.file,
        data: file.data,
        private: &mut file.private.private,
        host: file.host,
    }
}

impl<H: FileHandler> FileHandler for Counted<H> {
    const COMPATIBLE: Compatible = H::COMPATIBLE;
    const HOSTS: Hosts = H::HOSTS;
    type Private = CountedPrivate<H::Private>;

    fn init(&self, host: Host<'_>) -> Result<(), Errno> {
        self.handler.init(host)
    }

    fn can_preserve(&self, file: FileRef<'_>) -> bool {
        self.handler.can_preserve(file)
    }

    fn file_id(&self, file: FileRef<'_>) -> Option<u64> {
        self.handler.file_id(file)
    }

    fn prepare(&self, file: FileRef<'_>, host: Host<'_>) -> Result<Prepared<Self::Private>, Errno> {
        let Prepared { data, private } = self.handler.prepare(file, host)?;
        self.alive.fetch_add(1, Relaxed);
        let alive = self.alive.clone();
        let private = CountedPrivate { private, alive };
        Ok(Prepared { data, private })
    }

    fn freeze(&self, file: Preserved<'_, Self::Private>) -> Result<u64, Errno> {
        self.handler.freeze(uncounted(file))
    }

    fn unfreeze(&self, file: Preserved<'_, Self::Private>) {
        self.handler.unfreeze(uncounted(file));
    }

    fn cancel(&self, file: Preserved<'_, Self::Private>) {
        self.handler.cancel(uncounted(file));
    }

    fn retrieve(&self, data: u64, host: Host<'_>) -> Result<OwnedFile, Errno> {
        self.handler.retrieve(data, host)
    }

    fn can_finish(&self, file: Crossed<'_>) -> bool {
        self.handler.can_finish(file)
    }

    fn finish(&self, file: Crossed<'_>) {
        self.handler.finish(file);
    }

    fn describe(&self, data: u64, host: Host<'_>, pairs: &mut Pairs<'_>) -> Result<(), Errno> {
        self.handler.describe(data, host, pairs)
    }
}

/// A handler, in whatever form. A call without an error of its own has one in the C form: what it
/// returned was garbage, or it panicked.
pub(super) trait Form {
    /// For messages.
    fn name(&self) -> &'static str;
    fn can_preserve(&self, file: BorrowedFd<'_>) -> Result<bool, Errno>;
    fn file_id(&self, file: BorrowedFd<'_>) -> Result<Option<u64>, Errno>;
    fn prepare(&self, file: BorrowedFd<'_>, host: Host<'_>) -> Result<Box<dyn Held + '_>, Errno>;
    fn retrieve(&self, data: u64, host: Host<'_>) -> Result<OwnedFd, Errno>;
    fn can_finish(
        &self,
        data: u64,
        retrieved: Retrieved<'_>,
        host: Host<'_>,
    ) -> Result<bool, Errno>;
    fn finish(&self, data: u64, retrieved: Retrieved<'_>, host: Host<'_>) -> Result<(), Errno>;
    /// What it reports is dropped.
    fn describe(&self, data: u64, host: Host<'_>) -> Result<(), Errno>;
}

/// A prepared file.
pub(super) trait Held {
    fn data(&self) -> u64;
    fn freeze(&mut self, file: BorrowedFd<'_>, host: Host<'_>) -> Result<(), Errno>;
    fn unfreeze(&mut self, file: BorrowedFd<'_>, host: Host<'_>) -> Result<(), Errno>;
    fn cancel(self: Box<Self>, file: BorrowedFd<'_>, host: Host<'_>) -> Result<(), Errno>;
}

/// The trait.
pub(super) struct Direct<H: 'static>(pub(super) &'static H);

/// What the trait's `prepare` made.
struct DirectHeld<H: FileHandler> {
    handler: &'static H,
    prepared: Prepared<H::Private>,
}

impl<H: FileHandler> Form for Direct<H> {
    fn name(&self) -> &'static str {
        "called directly"
    }

    fn can_preserve(&self, file: BorrowedFd<'_>) -> Result<bool, Errno> {
        Ok(self.0.can_preserve(file.into()))
    }

    fn file_id(&self, file: BorrowedFd<'_>) -> Result<Option<u64>, Errno> {
        Ok(self.0.file_id(file.into()))
    }

    fn prepare(&self, file: BorrowedFd<'_>, host: Host<'_>) -> Result<Box<dyn Held + '_>, Errno> {
        let prepared = self.0.prepare(file.into(), host)?;
        Ok(Box::new(DirectHeld {
            handler: self.0,
            prepared,
        }))
    }

    fn retrieve(&self, data: u64, host: Host<'_>) -> Result<OwnedFd, Errno> {
        self.0.retrieve(data, host).map(OwnedFd::from)
    }

    fn can_finish(
        &self,
        data: u64,
        retrieved: Retrieved<'_>,
        host: Host<'_>,
    ) -> Result<bool, Errno> {
        Ok(self.0.can_finish(Crossed {
            data,
            retrieved,
            host,
        }))
    }

    fn finish(&self, data: u64, retrieved: Retrieved<'_>, host: Host<'_>) -> Result<(), Errno> {
        self.0.finish(Crossed {
            data,
            retrieved,
            host,
        });
        Ok(())
    }

    fn describe(&self, data: u64, host: Host<'_>) -> Result<(), Errno> {
        self.0.describe(data, host, &mut Pairs::new(&mut |_, _| ()))
    }
}

impl<H: FileHandler> DirectHeld<H> {
    fn preserved<'a>(
        &'a mut self,
        file: BorrowedFd<'a>,
        host: Host<'a>,
    ) -> Preserved<'a, H::Private> {
        Preserved {
            file: file.into(),
            data: self.prepared.data,
            private: &mut self.prepared.private,
            host,
        }
    }
}

impl<H: FileHandler> Held for DirectHeld<H> {
    fn data(&self) -> u64 {
        self.prepared.data
    }

    fn freeze(&mut self, file: BorrowedFd<'_>, host: Host<'_>) -> Result<(), Errno> {
        let handler = self.handler;
        self.prepared.data = handler.freeze(self.preserved(file, host))?;
        Ok(())
    }

    fn unfreeze(&mut self, file: BorrowedFd<'_>, host: Host<'_>) -> Result<(), Errno> {
        let handler = self.handler;
        handler.unfreeze(self.preserved(file, host));
        Ok(())
    }

    fn cancel(mut self: Box<Self>, file: BorrowedFd<'_>, host: Host<'_>) -> Result<(), Errno> {
        let handler = self.handler;
        handler.cancel(self.preserved(file, host));
        Ok(())
    }
}

impl Form for Handler {
    fn name(&self) -> &'static str {
        "called through the C form"
    }

    fn can_preserve(&self, file: BorrowedFd<'_>) -> Result<bool, Errno> {
        self.can_preserve(file)
    }

    fn file_id(&self, file: BorrowedFd<'_>) -> Result<Option<u64>, Errno> {
        self.file_id(file)
    }

    fn prepare(&self, file: BorrowedFd<'_>, host: Host<'_>) -> Result<Box<dyn Held + '_>, Errno> {
        Ok(Box::new(self.prepare(file, host)?))
    }

    fn retrieve(&self, data: u64, host: Host<'_>) -> Result<OwnedFd, Errno> {
        self.retrieve(data, host)
    }

    fn can_finish(
        &self,
        data: u64,
        retrieved: Retrieved<'_>,
        host: Host<'_>,
    ) -> Result<bool, Errno> {
        self.can_finish(data, retrieved, host)
    }

    fn finish(&self, data: u64, retrieved: Retrieved<'_>, host: Host<'_>) -> Result<(), Errno> {
        self.finish(data, retrieved, host)
    }

    fn describe(&self, data: u64, host: Host<'_>) -> Result<(), Errno> {
        self.describe(data, host).1
    }
}

impl Held for PreparedFile {
    fn data(&self) -> u64 {
        self.data()
    }

    fn freeze(&mut self, file: BorrowedFd<'_>, host: Host<'_>) -> Result<(), Errno> {
        self.freeze(file, host)
    }

    fn unfreeze(&mut self, file: BorrowedFd<'_>, host: Host<'_>) -> Result<(), Errno> {
        self.unfreeze(file, host)
    }

    fn cancel(self: Box<Self>, file: BorrowedFd<'_>, host: Host<'_>) -> Result<(), Errno> {
        (*self).cancel(file, host)
    }
}
