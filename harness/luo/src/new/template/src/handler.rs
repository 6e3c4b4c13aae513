// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The policy: what happens to a file in each phase, on any host.

use luo_handler_api::{
    Compatible, Crossed, Errno, FileHandler, FileRef, Host, Hosts, OwnedFile, Pairs, Prepared,
    Preserved,
};

use crate::{backend::SampleBackend, record::SampleRecord};

/// Preserves such files across a live update, through the backend `B`.
#[derive(Debug)]
pub struct SampleHandler<B>(pub B);

impl<B: SampleBackend> SampleHandler<B> {
    /// Has the host preserve what the file is now; returns the handle of its record.
    fn keep(&self, file: FileRef<'_>, host: Host<'_>) -> Result<u64, Errno> {
        let record = self.0.look(file, host)?;
        if !record.is_possible() {
            let errno = Errno::EOPNOTSUPP;
            return Err(host.refuse(errno, format_args!("{record:?} is not supported")));
        }
        record.keep(host)
    }

    /// Gives back what [`keep`](Self::keep) had the host preserve.
    fn release(&self, data: u64, host: Host<'_>) {
        host.release_bytes(data);
    }
}

impl<B: SampleBackend> FileHandler for SampleHandler<B> {
    const COMPATIBLE: Compatible = Compatible::new("vendor,sample-v1");
    const HOSTS: Hosts = Hosts::Both;
    type Private = ();

    fn can_preserve(&self, file: FileRef<'_>) -> bool {
        self.0.is_known(file)
    }

    fn prepare(&self, file: FileRef<'_>, host: Host<'_>) -> Result<Prepared<()>, Errno> {
        Ok(Prepared {
            data: self.keep(file, host)?,
            private: (),
        })
    }

    /// The file may have changed since prepare. What prepare preserved is given back last: if this
    /// fails, the file is as prepare left it.
    fn freeze(&self, file: Preserved<'_, ()>) -> Result<u64, Errno> {
        let data = self.keep(file.file, file.host)?;
        self.release(file.data, file.host);
        Ok(data)
    }

    fn cancel(&self, file: Preserved<'_, ()>) {
        self.release(file.data, file.host);
    }

    fn retrieve(&self, data: u64, host: Host<'_>) -> Result<OwnedFile, Errno> {
        let record = SampleRecord::read(host, data)
            .map_err(|errno| host.refuse(errno, format_args!("its record cannot be used")))?;
        self.0.make(record, host)
    }

    fn finish(&self, file: Crossed<'_>) {
        self.release(file.data, file.host);
    }

    /// For `luo inspect`.
    fn describe(&self, data: u64, host: Host<'_>, pairs: &mut Pairs<'_>) -> Result<(), Errno> {
        let record = SampleRecord::read(host, data)?;
        pairs.put("status", record.status);
        Ok(())
    }
}
