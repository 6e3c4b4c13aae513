// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The reasons of failures: reported during a call of a handler, returned with its error. What is
//! reported during a call that succeeds is returned with its result, if somebody asks for it.

use std::cell::RefCell;

use luo_handler_api::Errno;

thread_local! {
    /// The last reason of the call under way; a handler is called and reports on one thread.
    static REPORTED: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Why a handler failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cause {
    pub(crate) errno: Errno,
    /// In words, if there was a report.
    pub(crate) reason: Option<String>,
}

impl From<Errno> for Cause {
    fn from(errno: Errno) -> Self {
        Self {
            errno,
            reason: None,
        }
    }
}

/// Reports why the call under way is about to fail.
pub(crate) fn report(reason: &str) {
    REPORTED.set(Some(reason.to_owned()));
}

/// Makes a call of a handler, and adds what was reported to its error.
pub(crate) fn explained<T>(call: impl FnOnce() -> Result<T, Errno>) -> Result<T, Cause> {
    REPORTED.set(None);
    call().map_err(|errno| Cause {
        errno,
        reason: REPORTED.take(),
    })
}

/// As [`explained`], with what was reported by a call that succeeded.
pub(crate) fn with_report<T>(
    call: impl FnOnce() -> Result<T, Errno>,
) -> Result<(T, Option<String>), Cause> {
    let value = explained(call)?;
    Ok((value, REPORTED.take()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_reported_in_a_call_that_failed_is_returned() {
        report("something old");
        assert_eq!(
            explained(|| Err::<(), _>(Errno::EIO)),
            Err(Cause::from(Errno::EIO))
        );
        assert_eq!(
            explained(|| {
                report("unimportant");
                Ok(())
            }),
            Ok(())
        );
        let call = || {
            report("the file grew");
            Ok(1)
        };
        let grew = Some("the file grew".to_owned());
        assert_eq!(with_report(call), Ok((1, grew)));
        assert_eq!(with_report(|| Ok(2)), Ok((2, None)));
        let cause = explained(|| {
            report("the device is gone");
            Err::<(), _>(Errno::ENODEV)
        })
        .unwrap_err();
        assert_eq!(cause.reason.as_deref(), Some("the device is gone"));
    }
}
