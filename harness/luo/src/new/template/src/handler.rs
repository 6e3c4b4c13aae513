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
    /// Has the host preserve what the file is now; it stands still meanwhile.
    fn keep(&self, file: FileRef<'_>, host: Host<'_>) -> Result<Prepared<SampleRecord>, Errno> {
        let private = self.0.look(file, host)?;
        let data = if private.is_possible() {
            private.keep(host)
        } else {
            let errno = Errno::EOPNOTSUPP;
            Err(host.refuse(errno, format_args!("{private:?} is not supported")))
        };
        match data {
            Ok(data) => Ok(Prepared { data, private }),
            Err(errno) => {
                self.0.release(private, host);
                Err(errno)
            }
        }
    }

    /// Gives back what [`keep`](Self::keep) had the host preserve.
    fn release(&self, data: u64, record: SampleRecord, host: Host<'_>) {
        self.0.release(record, host);
        host.release_bytes(data);
    }
}

impl<B: SampleBackend> FileHandler for SampleHandler<B> {
    const COMPATIBLE: Compatible = Compatible::new("vendor,sample-v1");
    const HOSTS: Hosts = Hosts::Both;
    /// The record that the host preserves.
    type Private = SampleRecord;

    fn can_preserve(&self, file: FileRef<'_>) -> bool {
        self.0.is_known(file)
    }

    fn file_id(&self, file: FileRef<'_>) -> Option<u64> {
        self.0.id(file)
    }

    fn prepare(&self, file: FileRef<'_>, host: Host<'_>) -> Result<Prepared<SampleRecord>, Errno> {
        self.0.stop(file)?;
        let kept = self.keep(file, host);
        self.0.resume(file);
        kept
    }

    /// The file may have changed since prepare. What prepare preserved is given back last: if this
    /// fails, the file is as prepare left it.
    fn freeze(&self, file: Preserved<'_, SampleRecord>) -> Result<u64, Errno> {
        self.0.stop(file.file)?;
        match self.keep(file.file, file.host) {
            Ok(kept) => {
                self.release(file.data, *file.private, file.host);
                *file.private = kept.private;
                Ok(kept.data)
            }
            Err(errno) => {
                self.0.resume(file.file);
                Err(errno)
            }
        }
    }

    fn unfreeze(&self, file: Preserved<'_, SampleRecord>) {
        self.0.resume(file.file);
    }

    fn cancel(&self, file: Preserved<'_, SampleRecord>) {
        self.release(file.data, *file.private, file.host);
    }

    fn retrieve(&self, data: u64, host: Host<'_>) -> Result<OwnedFile, Errno> {
        let record = SampleRecord::read(host, data)
            .map_err(|errno| host.refuse(errno, format_args!("its record cannot be used")))?;
        self.0.make(record, host)
    }

    fn finish(&self, file: Crossed<'_>) {
        if let Ok(record) = SampleRecord::read(file.host, file.data) {
            self.0.release(record, file.host);
        }
        SampleRecord::release(file.host, file.data);
    }

    /// For `luo inspect`.
    fn describe(&self, data: u64, host: Host<'_>, pairs: &mut Pairs<'_>) -> Result<(), Errno> {
        let record = SampleRecord::read(host, data)?;
        pairs.put("status", record.status);
        Ok(())
    }
}
