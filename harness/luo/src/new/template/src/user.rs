// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The handler's backend in a process, where the open file itself crosses. Of another type of file
//! only `is_known` is another.

use std::os::fd::{AsFd, OwnedFd};

use luo_handler_api::{register_handler, status, Errno, FileRef, Host, OwnedFile};
use rustix::fs::{fcntl_getfl, fcntl_setfl, fstat, makedev, FileType, OFlags};

use crate::{backend::SampleBackend, handler::SampleHandler, record::SampleRecord};

register_handler!(
    /// The handler of this process.
    pub SAMPLE: SampleHandler<UserBackend> = SampleHandler(UserBackend)
);

/// A process.
#[derive(Clone, Copy, Debug)]
pub struct UserBackend;

/// `MEM_MAJOR` of `include/uapi/linux/major.h`, and the minor of `/dev/full` there.
const DEVICE: (u32, u32) = (1, 7);

impl SampleBackend for UserBackend {
    fn is_known(&self, file: FileRef<'_>) -> bool {
        fstat(file.as_fd()).is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode).is_char_device()
                && stat.st_rdev == makedev(DEVICE.0, DEVICE.1)
        })
    }

    fn look(&self, file: FileRef<'_>, host: Host<'_>) -> Result<SampleRecord, Errno> {
        let flags = fcntl_getfl(file.as_fd())?;
        Ok(SampleRecord {
            status: status::from_flags(flags.bits()),
            contents: host.preserve_file(file)?,
        })
    }

    fn release(&self, record: SampleRecord, host: Host<'_>) {
        host.release_file(record.contents);
    }

    fn make(&self, record: SampleRecord, host: Host<'_>) -> Result<OwnedFile, Errno> {
        let file = OwnedFd::from(host.take_file(record.contents)?);
        if !self.is_known(file.as_fd().into()) {
            return Err(host.refuse(Errno::EINVAL, format_args!("it is a file of another type")));
        }
        let flags = status::to_flags(record.status);
        fcntl_setfl(&file, OFlags::from_bits_retain(flags))?;
        Ok(file.into())
    }
}
