// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What handlers say about their failures: heard during a call, told with its error.

use std::cell::RefCell;

use luo_handler_api::Errno;

thread_local! {
    /// The last thing that was said in the call under way; a handler is called and answers on one thread.
    static SAID: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Why a handler failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cause {
    pub(crate) errno: Errno,
    /// In the handler's words, if it said anything.
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

/// A handler says why it is about to fail.
pub(crate) fn say(reason: &str) {
    SAID.set(Some(reason.to_owned()));
}

/// Makes a call of a handler and listens.
pub(crate) fn heard<T>(call: impl FnOnce() -> Result<T, Errno>) -> Result<T, Cause> {
    SAID.set(None);
    call().map_err(|errno| Cause {
        errno,
        reason: SAID.take(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_said_in_a_call_that_failed_is_told() {
        say("something old");
        assert_eq!(
            heard(|| Err::<(), _>(Errno::EIO)),
            Err(Cause::from(Errno::EIO))
        );
        assert_eq!(
            heard(|| {
                say("unimportant");
                Ok(())
            }),
            Ok(())
        );
        let cause = heard(|| {
            say("the device is gone");
            Err::<(), _>(Errno::ENODEV)
        })
        .unwrap_err();
        assert_eq!(cause.reason.as_deref(), Some("the device is gone"));
    }
}
