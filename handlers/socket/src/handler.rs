// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The policy: what happens to a socket in each phase.

use std::os::fd::{AsFd, OwnedFd};

use luo_handler_api::{
    record, Compatible, Crossed, Errno, FileHandler, FileRef, Host, Hosts, OwnedFile, Pairs,
    Prepared, Preserved,
};

use crate::{
    backend::{Seen, SocketBackend},
    description::Description,
    record::{SocketRecord, MAGIC},
};

/// Preserves sockets across a live update, through the backend `B`.
#[derive(Debug)]
pub struct SocketHandler<B>(pub B);

/// What has to be given back if a prepared socket does not cross after all.
#[derive(Clone, Copy, Debug)]
pub struct Private {
    /// Handle of the record: what prepare or the last freeze returned.
    record: u64,
    /// Handle of the open socket.
    file: u64,
}

impl<B: SocketBackend> SocketHandler<B> {
    /// The socket as it is now, if it is of a kind that crosses.
    fn look(&self, file: FileRef<'_>, host: Host<'_>) -> Result<Description, Errno> {
        let seen = self.0.look(file).map_err(|errno| {
            host.refuse(
                errno,
                format_args!("the kernel does not describe the socket"),
            )
        })?;
        match seen {
            Seen::Known(description) => Ok(description),
            Seen::Foreign {
                domain,
                socket_type,
                protocol,
            } => Err(host.refuse(
                Errno::EOPNOTSUPP,
                format_args!(
                    "domain {domain}, type {socket_type}, protocol {protocol}: \
                     only Unix sockets, TCP and UDP cross"
                ),
            )),
        }
    }

    /// Has the host hold a record of the socket as it is now.
    fn record(&self, socket: FileRef<'_>, file: u64, host: Host<'_>) -> Result<u64, Errno> {
        let description = self.look(socket, host)?;
        SocketRecord { description, file }.keep(host)
    }
}

impl<B: SocketBackend> FileHandler for SocketHandler<B> {
    const COMPATIBLE: Compatible = Compatible::new("luo-handlers,socket-v1");
    const HOSTS: Hosts = Hosts::Hosted;
    type Private = Private;

    /// All sockets, so that those that do not cross are refused with a reason.
    fn can_preserve(&self, file: FileRef<'_>) -> bool {
        self.0.is_socket(file)
    }

    /// # Errors
    ///
    /// `EOPNOTSUPP` for a socket of another kind, or on a host where files do not cross by
    /// themselves.
    fn prepare(&self, file: FileRef<'_>, host: Host<'_>) -> Result<Prepared<Private>, Errno> {
        self.look(file, host)?;
        let handle = host.preserve_file(file).map_err(|errno| match errno {
            Errno::EOPNOTSUPP => host.refuse(
                errno,
                format_args!("a socket only crosses where it is inherited: exec, spawn, fdstore"),
            ),
            _ => errno,
        })?;
        match self.record(file, handle, host) {
            Ok(record) => Ok(Prepared {
                data: record,
                private: Private {
                    record,
                    file: handle,
                },
            }),
            Err(errno) => {
                host.release_file(handle);
                Err(errno)
            }
        }
    }

    /// A socket may have been bound, or begun to listen, since prepare.
    fn freeze(&self, file: Preserved<'_, Private>) -> Result<u64, Errno> {
        let record = self.record(file.file, file.private.file, file.host)?;
        file.host.release_bytes(file.private.record);
        file.private.record = record;
        Ok(record)
    }

    fn cancel(&self, file: Preserved<'_, Private>) {
        file.host.release_bytes(file.private.record);
        file.host.release_file(file.private.file);
    }

    /// # Errors
    ///
    /// As [`SocketRecord`] lists them; `ENOENT` if the socket did not cross, or is another one than
    /// was recorded.
    fn retrieve(&self, data: u64, host: Host<'_>) -> Result<OwnedFile, Errno> {
        let record = SocketRecord::read(host, data)
            .map_err(|errno| host.refuse(errno, format_args!("record {data:#x} is unsound")))?;
        let was = &record.description;
        let socket = host
            .take_file(record.file)
            .map(OwnedFd::from)
            .map_err(|errno| {
                let (kind, address) = (was.kind, &was.address);
                host.refuse(
                    errno,
                    format_args!("the {kind} socket {address} did not cross"),
                )
            })?;
        let now = self.look(socket.as_fd().into(), host)?;
        if let Some(difference) = was.difference(&now) {
            return Err(host.refuse(
                Errno::ENOENT,
                format_args!("not the socket that was preserved: {difference}"),
            ));
        }
        Ok(socket.into())
    }

    /// If the record cannot be read, only the record itself is released: what it names may belong
    /// to somebody else.
    fn finish(&self, file: Crossed<'_>) {
        if file.retrieved.file().is_none() {
            if let Ok(record) = SocketRecord::read(file.host, file.data) {
                file.host.release_file(record.file);
            }
        }
        record::release(file.host, file.data, &MAGIC);
    }

    fn describe(&self, data: u64, host: Host<'_>, pairs: &mut Pairs<'_>) -> Result<(), Errno> {
        let Description {
            kind,
            listening,
            cookie,
            address,
        } = SocketRecord::read(host, data)?.description;
        pairs.put("kind", kind);
        pairs.put("listening", listening);
        pairs.put("address", address);
        pairs.put("cookie", format_args!("{cookie:#x}"));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        description::{tests::listener, Kind},
        fake::FakeBackend,
    };
    use luo_handler_api::testing::Rehearsal;
    use std::net::Ipv4Addr;

    fn rehearsal() -> Rehearsal<SocketHandler<FakeBackend>> {
        let backend = FakeBackend::default();
        let file = backend.file(Seen::Known(listener()));
        Rehearsal::new(SocketHandler(backend), file)
    }

    #[test]
    fn a_socket_of_another_kind_is_refused_with_a_reason() {
        let update = rehearsal();
        let netlink = Seen::Foreign {
            domain: 16,
            socket_type: 3,
            protocol: 0,
        };
        update.handler.0.set(update.file(), Ok(netlink));
        assert!(update.handler.can_preserve(update.file()));
        assert_eq!(update.prepare().unwrap_err(), Errno::EOPNOTSUPP);
        assert!(
            update.host.reason().contains("domain 16, type 3"),
            "{}",
            update.host.reason()
        );
        assert!(update.host.is_empty());
    }

    #[test]
    fn another_socket_is_not_handed_over_and_the_reason_names_the_difference() {
        let others = [
            (
                Description {
                    kind: Kind::UdpV4,
                    ..listener()
                },
                "expected a TCP (IPv4) socket",
            ),
            (
                Description {
                    address: (Ipv4Addr::LOCALHOST, 81).into(),
                    ..listener()
                },
                ":81",
            ),
            (
                Description {
                    listening: false,
                    ..listener()
                },
                "does not listen",
            ),
            (
                Description {
                    cookie: 1,
                    ..listener()
                },
                "cookie",
            ),
        ];
        for (other, part) in others {
            let update = rehearsal();
            let data = update.frozen();
            update.handler.0.set(update.file(), Ok(Seen::Known(other)));
            assert_eq!(update.retrieve(data).unwrap_err(), Errno::ENOENT);
            let reason = update.host.reason();
            assert!(reason.contains(part), "{reason}");
        }
    }

    #[test]
    fn a_socket_that_did_not_cross_is_named() {
        let update = rehearsal();
        let data = update.frozen();
        update.retrieve(data).unwrap();
        assert_eq!(update.retrieve(data).unwrap_err(), Errno::ENOENT);
        let reason = update.host.reason();
        assert!(reason.contains("127.0.0.1:80 did not cross"), "{reason}");
    }

    #[test]
    fn a_record_describes_itself() {
        let update = rehearsal();
        let data = update.frozen();
        let mut lines = Vec::new();
        let mut sink = |key: &str, value: &str| lines.push(format!("{key}={value}"));
        let mut pairs = Pairs::new(&mut sink);
        let host = update.host.lend();
        update.handler.describe(data, host, &mut pairs).unwrap();
        let unknown = update.handler.describe(data + 1, host, &mut pairs);
        assert_eq!(unknown, Err(Errno::ENOENT));
        let expected = [
            "kind=TCP (IPv4)",
            "listening=true",
            "address=127.0.0.1:80",
            "cookie=0x1234",
        ];
        assert_eq!(lines, expected);
    }
}
