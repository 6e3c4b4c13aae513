// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What a socket is: its kind, its local address, and by which number the kernel knows it.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6},
};

/// The kinds of socket that cross: each is one domain, type and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// `AF_UNIX`, `SOCK_STREAM`.
    UnixStream = 1,
    /// `AF_UNIX`, `SOCK_DGRAM`.
    UnixDatagram = 2,
    /// `AF_UNIX`, `SOCK_SEQPACKET`.
    UnixSeqpacket = 3,
    /// `AF_INET`, `SOCK_STREAM`, `IPPROTO_TCP`.
    TcpV4 = 4,
    /// `AF_INET6`, `SOCK_STREAM`, `IPPROTO_TCP`.
    TcpV6 = 5,
    /// `AF_INET`, `SOCK_DGRAM`, `IPPROTO_UDP`.
    UdpV4 = 6,
    /// `AF_INET6`, `SOCK_DGRAM`, `IPPROTO_UDP`.
    UdpV6 = 7,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::UnixStream,
        Self::UnixDatagram,
        Self::UnixSeqpacket,
        Self::TcpV4,
        Self::TcpV6,
        Self::UdpV4,
        Self::UdpV6,
    ];

    /// Which family of addresses it has.
    const fn family(self) -> Family {
        match self {
            Self::UnixStream | Self::UnixDatagram | Self::UnixSeqpacket => Family::Unix,
            Self::TcpV4 | Self::UdpV4 => Family::V4,
            Self::TcpV6 | Self::UdpV6 => Family::V6,
        }
    }

    /// Whether such a socket can listen.
    const fn can_listen(self) -> bool {
        !matches!(self, Self::UnixDatagram | Self::UdpV4 | Self::UdpV6)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnixStream => "Unix stream",
            Self::UnixDatagram => "Unix datagram",
            Self::UnixSeqpacket => "Unix seqpacket",
            Self::TcpV4 => "TCP (IPv4)",
            Self::TcpV6 => "TCP (IPv6)",
            Self::UdpV4 => "UDP (IPv4)",
            Self::UdpV6 => "UDP (IPv6)",
        })
    }
}

#[derive(PartialEq, Eq)]
enum Family {
    Unix,
    V4,
    V6,
}

/// Bytes that the name of a Unix socket has room for: `sun_path` of `struct sockaddr_un`.
pub const NAME_MAX: usize = 108;

/// The local address, as `getsockname(2)` reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket that was not bound.
    Unnamed,
    /// The path of a Unix socket, at least one byte, without zeros.
    Path(Box<[u8]>),
    /// The name of a Unix socket that is not in the file system.
    Abstract(Box<[u8]>),
    /// Of IPv4.
    V4(SocketAddrV4),
    /// Of IPv6. The flow label belongs to what is sent, and is zero here.
    V6(SocketAddrV6),
}

impl Address {
    /// Whether a socket of `kind` can have it.
    fn suits(&self, kind: Kind) -> bool {
        match self {
            Self::Unnamed => kind.family() == Family::Unix,
            Self::Path(name) => {
                kind.family() == Family::Unix
                    && (1..=NAME_MAX).contains(&name.len())
                    && !name.contains(&0)
            }
            Self::Abstract(name) => kind.family() == Family::Unix && name.len() < NAME_MAX,
            Self::V4(_) => kind.family() == Family::V4,
            Self::V6(address) => kind.family() == Family::V6 && address.flowinfo() == 0,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unnamed => f.write_str("(unnamed)"),
            Self::Path(name) => write!(f, "{}", name.escape_ascii()),
            Self::Abstract(name) => write!(f, "@{}", name.escape_ascii()),
            Self::V4(address) => address.fmt(f),
            Self::V6(address) => address.fmt(f),
        }
    }
}

impl From<(Ipv4Addr, u16)> for Address {
    fn from((ip, port): (Ipv4Addr, u16)) -> Self {
        Self::V4(SocketAddrV4::new(ip, port))
    }
}

impl From<(Ipv6Addr, u16, u32)> for Address {
    /// Address, port and scope.
    fn from((ip, port, scope): (Ipv6Addr, u16, u32)) -> Self {
        Self::V6(SocketAddrV6::new(ip, port, 0, scope))
    }
}

/// A socket, without what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Domain, type and protocol.
    pub kind: Kind,
    /// Whether it listens: `SO_ACCEPTCONN`.
    pub listening: bool,
    /// `SO_COOKIE`: the kernel gives no other socket this number until it is rebooted.
    pub cookie: u64,
    /// Where it is bound.
    pub address: Address,
}

impl Description {
    /// Whether there can be such a socket.
    pub fn is_possible(&self) -> bool {
        self.address.suits(self.kind) && (self.kind.can_listen() || !self.listening)
    }

    /// How `found` differs from the socket that was described; `None` if it is the same one.
    pub fn difference<'a>(&'a self, found: &'a Self) -> Option<Difference<'a>> {
        Some(if self.kind != found.kind {
            Difference::Kind(self.kind, found.kind)
        } else if self.address != found.address {
            Difference::Address(&self.address, &found.address)
        } else if self.listening != found.listening {
            Difference::Listening(self.listening)
        } else if self.cookie != found.cookie {
            Difference::Cookie(self.cookie, found.cookie)
        } else {
            return None;
        })
    }
}

/// What makes two sockets different: first what was described, then what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference<'a> {
    /// Another domain, type or protocol.
    Kind(Kind, Kind),
    /// Bound elsewhere.
    Address(&'a Address, &'a Address),
    /// Whether it was to listen.
    Listening(bool),
    /// Another one of the same kind and address.
    Cookie(u64, u64),
}

impl fmt::Display for Difference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(was, now) => write!(f, "expected a {was} socket, found {now}"),
            Self::Address(was, now) => write!(f, "expected local address {was}, found {now}"),
            Self::Listening(true) => f.write_str("it does not listen any more"),
            Self::Listening(false) => f.write_str("it listens now"),
            Self::Cookie(was, now) => write!(f, "expected cookie {was:#x}, found {now:#x}"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A listener on the loopback.
    pub(crate) fn listener() -> Description {
        Description {
            kind: Kind::TcpV4,
            listening: true,
            cookie: 0x1234,
            address: (Ipv4Addr::LOCALHOST, 80).into(),
        }
    }

    fn name(length: impl Into<prop::collection::SizeRange>) -> BoxedStrategy<Box<[u8]>> {
        let bytes = prop::collection::vec(1..=u8::MAX, length);
        bytes.prop_map(Vec::into_boxed_slice).boxed()
    }

    /// Any socket that can be.
    pub(crate) fn possible() -> impl Strategy<Value = Description> {
        let kind = prop::sample::select(Kind::ALL.to_vec());
        (kind, any::<bool>(), any::<u64>()).prop_flat_map(|(kind, listening, cookie)| {
            let address = match kind.family() {
                Family::Unix => prop_oneof![
                    Just(Address::Unnamed),
                    name(1..=NAME_MAX).prop_map(Address::Path),
                    name(0..NAME_MAX).prop_map(Address::Abstract),
                ]
                .boxed(),
                Family::V4 => any::<(u32, u16)>()
                    .prop_map(|(ip, port)| (Ipv4Addr::from(ip), port).into())
                    .boxed(),
                Family::V6 => any::<(u128, u16, u32)>()
                    .prop_map(|(ip, port, scope)| (Ipv6Addr::from(ip), port, scope).into())
                    .boxed(),
            };
            address.prop_map(move |address| Description {
                kind,
                listening: listening && kind.can_listen(),
                cookie,
                address,
            })
        })
    }

    proptest! {
        #[test]
        fn a_socket_is_itself_and_no_other(one in possible(), other in possible()) {
            prop_assert!(one.is_possible());
            prop_assert_eq!(one.difference(&one), None);
            prop_assert_eq!(one.difference(&other).is_none(), one == other);
        }
    }

    #[test]
    fn what_no_socket_is() {
        let unix = |kind, address| Description {
            kind,
            address,
            ..listener()
        };
        let long = Address::Path([b'a'; NAME_MAX + 1].into());
        let flow = SocketAddrV6::new(Ipv6Addr::LOCALHOST, 80, 1, 0);
        for impossible in [
            unix(Kind::UnixStream, listener().address),
            unix(Kind::TcpV4, Address::Unnamed),
            unix(
                Kind::TcpV4,
                Address::V6(SocketAddrV6::new(Ipv6Addr::LOCALHOST, 80, 0, 0)),
            ),
            unix(Kind::TcpV6, Address::V6(flow)),
            unix(Kind::UdpV4, listener().address),
            unix(Kind::UnixDatagram, Address::Unnamed),
            unix(Kind::UnixStream, Address::Path([].into())),
            unix(Kind::UnixStream, Address::Path((*b"a\0b").into())),
            unix(Kind::UnixStream, long),
            unix(Kind::UnixStream, Address::Abstract([0; NAME_MAX].into())),
        ] {
            assert!(!impossible.is_possible(), "{impossible:?}");
        }
    }
}
