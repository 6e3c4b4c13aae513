// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What a process sees of its sockets.

use std::{
    io,
    os::{
        fd::AsFd,
        linux::net::SocketAddrExt,
        unix::{ffi::OsStrExt, net::UnixDatagram},
    },
};

use luo_handler_api::{register_handler, Errno, FileRef};
use rustix::{
    fs::{fstat, FileType},
    net::{getsockname, ipproto, sockopt, AddressFamily, Protocol},
    net::{SocketAddrV4, SocketAddrV6, SocketType},
};

use crate::{
    backend::{Seen, SocketBackend},
    description::{Address, Description, Kind},
    handler::SocketHandler,
};

register_handler!(
    /// The handler of this process.
    pub SOCKET: SocketHandler<UserBackend> = SocketHandler(UserBackend)
);

/// A process.
#[derive(Clone, Copy, Debug)]
pub struct UserBackend;

impl SocketBackend for UserBackend {
    fn is_socket(&self, file: FileRef<'_>) -> bool {
        fstat(file.as_fd()).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_socket())
    }

    fn look(&self, file: FileRef<'_>) -> Result<Seen, Errno> {
        Ok(look(file)?)
    }
}

fn look(file: FileRef<'_>) -> io::Result<Seen> {
    let domain = sockopt::socket_domain(file.as_fd())?;
    let socket_type = sockopt::socket_type(file.as_fd())?;
    let protocol = sockopt::socket_protocol(file.as_fd())?;
    let address = address(file, domain)?;
    let (Some(kind), Some(address)) = (kind(domain, socket_type, protocol), address) else {
        return Ok(Seen::Foreign {
            domain: u32::from(domain.as_raw()),
            socket_type: socket_type.as_raw(),
            protocol: protocol.map_or(0, |protocol| protocol.as_raw().get()),
        });
    };
    Ok(Seen::Known(Description {
        kind,
        listening: sockopt::socket_acceptconn(file.as_fd())?,
        cookie: sockopt::socket_cookie(file.as_fd())?,
        address,
    }))
}

fn kind(
    domain: AddressFamily,
    socket_type: SocketType,
    protocol: Option<Protocol>,
) -> Option<Kind> {
    Some(match (domain, socket_type, protocol) {
        (AddressFamily::UNIX, SocketType::STREAM, None) => Kind::UnixStream,
        (AddressFamily::UNIX, SocketType::DGRAM, None) => Kind::UnixDatagram,
        (AddressFamily::UNIX, SocketType::SEQPACKET, None) => Kind::UnixSeqpacket,
        (AddressFamily::INET, SocketType::STREAM, Some(ipproto::TCP)) => Kind::TcpV4,
        (AddressFamily::INET6, SocketType::STREAM, Some(ipproto::TCP)) => Kind::TcpV6,
        (AddressFamily::INET, SocketType::DGRAM, Some(ipproto::UDP)) => Kind::UdpV4,
        (AddressFamily::INET6, SocketType::DGRAM, Some(ipproto::UDP)) => Kind::UdpV6,
        _ => return None,
    })
}

/// `None` for an address of another family.
fn address(file: FileRef<'_>, family: AddressFamily) -> io::Result<Option<Address>> {
    Ok(match family {
        AddressFamily::UNIX => Some(unix_address(file)?),
        AddressFamily::INET => {
            let address = SocketAddrV4::try_from(getsockname(file.as_fd())?)?;
            Some((*address.ip(), address.port()).into())
        }
        AddressFamily::INET6 => {
            let address = SocketAddrV6::try_from(getsockname(file.as_fd())?)?;
            Some((*address.ip(), address.port(), address.scope_id()).into())
        }
        _ => None,
    })
}

/// By std, for each type of socket: rustix panics on a path of the full length.
fn unix_address(file: FileRef<'_>) -> io::Result<Address> {
    let socket = UnixDatagram::from(file.as_fd().try_clone_to_owned()?);
    let address = socket.local_addr()?;
    Ok(match (address.as_abstract_name(), address.as_pathname()) {
        (Some(name), _) => Address::Abstract(name.into()),
        (_, Some(path)) => Address::Path(path.as_os_str().as_bytes().into()),
        _ => Address::Unnamed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use luo_handler_api::{
        testing::{conformance, Rehearsal},
        FileHandler,
    };
    use rustix::net::{bind, connect, listen, socket, socketpair, AddressFamily as Family};
    use rustix::net::{Ipv4Addr, Ipv6Addr, SocketAddrUnix, SocketFlags};
    use std::fs::File;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn description(socket: impl AsFd) -> Description {
        match look(socket.as_fd().into()).unwrap() {
            Seen::Known(description) => description,
            foreign => panic!("{foreign:?}"),
        }
    }

    fn rehearsal(socket: impl Into<OwnedFd>) -> Rehearsal<SocketHandler<UserBackend>> {
        Rehearsal::new(SocketHandler(UserBackend), socket)
    }

    /// Takes the socket through an update, and closes the descriptor it began with.
    fn cross(socket: impl Into<OwnedFd>) -> OwnedFd {
        let update = rehearsal(socket);
        assert!(update.handler.can_preserve(update.file()));
        let data = update.frozen();
        update.retrieve(data).unwrap()
    }

    #[test]
    fn it_conforms() {
        conformance(
            &SOCKET,
            || {
                let socket = socket(Family::INET, SocketType::STREAM, None).unwrap();
                bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
                socket
            },
            |socket| listen(socket, 1).unwrap(),
            |socket| description(socket),
        );
    }

    #[test]
    fn a_listener_crosses_with_the_connections_that_wait() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = match TcpListener::bind(address) {
                Ok(listener) => listener,
                // A machine without IPv6 has one case less.
                Err(_) if address.starts_with('[') => continue,
                Err(error) => panic!("{error}"),
            };
            let address = listener.local_addr().unwrap();
            let mut waiting = TcpStream::connect(address).unwrap();
            waiting.write_all(b"hello").unwrap();
            let listener = TcpListener::from(cross(listener));
            assert!(description(&listener).listening);
            assert_eq!(listener.local_addr().unwrap(), address);
            let mut text = [0; 5];
            listener.accept().unwrap().0.read_exact(&mut text).unwrap();
            assert_eq!(&text, b"hello");
            TcpStream::connect(address).unwrap();
        }
    }

    #[test]
    fn a_connection_crosses_with_what_is_in_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"half a request").unwrap();
        server.write_all(b"half an answer").unwrap();
        let mut server = TcpStream::from(cross(server));
        let mut text = [0; 14];
        server.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"half a request");
        client.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"half an answer");
    }

    #[test]
    fn a_connection_that_ended_meanwhile_crosses_and_is_at_its_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let reset = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        // What is unread when it is closed makes it a reset.
        (&server).write_all(b"unread").unwrap();
        reset.peek(&mut [0]).unwrap();
        for (client, server) in [
            (OwnedFd::from(reset), OwnedFd::from(server)),
            UnixStream::pair()
                .map(|(a, b)| (a.into(), b.into()))
                .unwrap(),
        ] {
            let update = rehearsal(server);
            let data = update.frozen();
            drop(client);
            let mut server = File::from(update.retrieve(data).unwrap());
            let end = server.read(&mut [0; 8]);
            assert!(matches!(end, Ok(0)) || end.is_err(), "{end:?}");
        }
        // A client's own end of a connection that was reset.
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        (&client).write_all(b"unread").unwrap();
        server.peek(&mut [0]).unwrap();
        let update = rehearsal(client);
        let data = update.frozen();
        drop(server);
        let mut client = File::from(update.retrieve(data).unwrap());
        assert!(client.read(&mut [0]).is_err());
    }

    #[test]
    fn datagram_sockets_cross_with_their_datagrams() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        sender.send(b"one").unwrap();
        let receiver = UdpSocket::from(cross(receiver));
        let sender = UdpSocket::from(cross(sender));
        sender.send(b"two").unwrap();
        for expected in [b"one", b"two"] {
            let mut text = [0; 3];
            receiver.recv(&mut text).unwrap();
            assert_eq!(&text, expected);
        }
        let (one, other) = UnixDatagram::pair().unwrap();
        one.send(b"three").unwrap();
        let mut text = [0; 5];
        UnixDatagram::from(cross(other)).recv(&mut text).unwrap();
        assert_eq!(&text, b"three");
    }

    fn bound(path: &[u8]) -> OwnedFd {
        let socket = socket(Family::UNIX, SocketType::STREAM, None).unwrap();
        bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        socket
    }

    #[test]
    fn unix_sockets_are_known_by_their_names() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let name = Address::Path(path.as_os_str().as_encoded_bytes().into());
        assert_eq!(description(&listener).address, name);
        let listener = UnixListener::from(cross(listener));
        UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();

        // The longest path there is, which ends without a zero.
        let name = directory.path().join("a");
        let room = crate::description::NAME_MAX - name.as_os_str().len();
        let longest = format!("{}{}", name.display(), "a".repeat(room));
        let listener = UnixListener::from(cross(bound(longest.as_bytes())));
        let name = Address::Path(longest.into_bytes().into());
        assert_eq!(description(listener).address, name);

        let unnamed = socket(Family::UNIX, SocketType::SEQPACKET, None).unwrap();
        assert_eq!(description(&unnamed).address, Address::Unnamed);
        let name = format!("luo-test-{}", std::process::id());
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
        bind(&unnamed, &address).unwrap();
        listen(&unnamed, 1).unwrap();
        let expected = Description {
            kind: Kind::UnixSeqpacket,
            listening: true,
            address: Address::Abstract(name.into_bytes().into()),
            cookie: description(&unnamed).cookie,
        };
        assert_eq!(description(cross(unnamed)), expected);
        let client = socket(Family::UNIX, SocketType::SEQPACKET, None).unwrap();
        connect(&client, &address).unwrap_err();
    }

    #[test]
    fn every_kind_is_recognised() {
        let sockets = [
            (Family::UNIX, SocketType::STREAM, None, Kind::UnixStream),
            (Family::UNIX, SocketType::DGRAM, None, Kind::UnixDatagram),
            (
                Family::UNIX,
                SocketType::SEQPACKET,
                None,
                Kind::UnixSeqpacket,
            ),
            (Family::INET, SocketType::STREAM, None, Kind::TcpV4),
            (
                Family::INET6,
                SocketType::STREAM,
                Some(ipproto::TCP),
                Kind::TcpV6,
            ),
            (Family::INET, SocketType::DGRAM, None, Kind::UdpV4),
            (Family::INET6, SocketType::DGRAM, None, Kind::UdpV6),
        ];
        for (family, socket_type, protocol, kind) in sockets {
            let Ok(socket) = socket(family, socket_type, protocol) else {
                assert_eq!(family, Family::INET6, "a machine may lack IPv6 alone");
                continue;
            };
            let found = description(&socket);
            assert_eq!(found.kind, kind);
            assert!(found.is_possible() && !found.listening);
            let unbound = match family {
                Family::UNIX => Address::Unnamed,
                Family::INET => (Ipv4Addr::UNSPECIFIED, 0).into(),
                _ => (Ipv6Addr::UNSPECIFIED, 0, 0).into(),
            };
            assert_eq!(found.address, unbound);
        }
    }

    #[test]
    fn other_sockets_are_refused_and_other_files_are_not_sockets() {
        let netlink = socket(Family::NETLINK, SocketType::RAW, None).unwrap();
        let update = rehearsal(netlink);
        assert!(update.handler.can_preserve(update.file()));
        assert_eq!(update.prepare().unwrap_err(), Errno::EOPNOTSUPP);
        assert!(
            update.host.reason().contains("domain 16"),
            "{}",
            update.host.reason()
        );
        assert!(update.host.is_empty());
        let null = File::open("/dev/null").unwrap();
        assert!(!UserBackend.is_socket(null.as_fd().into()));
    }

    #[test]
    fn another_socket_in_its_place_is_refused() {
        let pair = || socketpair(Family::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let (first, second) = pair().unwrap();
        let update = rehearsal(first);
        let data = update.frozen();
        let file = crate::record::SocketRecord::read(update.host.lend(), data)
            .unwrap()
            .file;
        update.host.replace_file(file, second);
        assert_eq!(update.retrieve(data).unwrap_err(), Errno::ENOENT);
        assert!(
            update.host.reason().contains("cookie"),
            "{}",
            update.host.reason()
        );
        let data = update.frozen();
        let file = crate::record::SocketRecord::read(update.host.lend(), data)
            .unwrap()
            .file;
        update
            .host
            .replace_file(file, File::open("/dev/null").unwrap().into());
        assert!(update.retrieve(data).is_err());
    }
}
