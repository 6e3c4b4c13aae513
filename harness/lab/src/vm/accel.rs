// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! How QEMU runs the guest's instructions.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A working KVM boots the lab's kernel in about a second.
const KVM_DEADLINE: Duration = Duration::from_secs(15);
/// Without one it takes some seconds, more for the debug kernel on a busy machine.
const TCG_DEADLINE: Duration = Duration::from_secs(180);

/// How QEMU runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Accel {
    /// On the processor, by the host's kernel.
    Kvm,
    /// Translated, by QEMU itself.
    Tcg,
}

impl Accel {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    pub(crate) fn qemu_arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max"],
        }
    }

    /// A guest that shows no life in this time never will.
    pub(crate) fn deadline(self) -> Duration {
        match self {
            Self::Kvm => KVM_DEADLINE,
            Self::Tcg => TCG_DEADLINE,
        }
    }
}
