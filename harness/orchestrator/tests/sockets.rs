// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Sockets over a real exec of this very program, and how other transports refuse them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::Arc;

use luo_handler_api::{Errno, Token};
use luo_handler_socket as _;
use luo_orchestrator::orchestrator::Orchestrator;
use luo_orchestrator::registry::Registry;
use luo_orchestrator::testing::cross_exec;
use luo_orchestrator::transport::image::{self, ImageError};

type Anything = Box<dyn std::error::Error>;

fn frozen(sockets: &[OwnedFd]) -> Orchestrator {
    let update = Orchestrator::new(Arc::new(Registry::linked().unwrap()));
    for (socket, token) in sockets.iter().zip(0..) {
        let handler = update.preserve(Token(token), socket).unwrap();
        assert_eq!(handler.as_str(), "luo-handlers,socket-v1");
    }
    update.prepare().unwrap();
    update.freeze().unwrap();
    update
}

#[test]
fn sockets_of_every_kind_cross_an_exec() {
    // The exec changes neither the process id nor where the test runs.
    let path = |name| std::env::temp_dir().join(format!("luo-{}-{name}", std::process::id()));
    cross_exec(
        || -> [OwnedFd; 8] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let connect = || TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let near = connect();
            let (mut far, _) = listener.accept().unwrap();
            far.write_all(b"in flight").unwrap();
            let mut client = connect();
            client.write_all(b"waits to be accepted").unwrap();
            let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
            udp.send_to(b"a datagram", udp.local_addr().unwrap())
                .unwrap();
            let unix_listener = UnixListener::bind(path("stream")).unwrap();
            let unix_datagram = UnixDatagram::bind(path("datagram")).unwrap();
            unix_datagram.send_to(b"another", path("datagram")).unwrap();
            let unix_stream = UnixStream::connect(path("stream")).unwrap();
            [
                listener.into(),
                client.into(),
                near.into(),
                far.into(),
                udp.into(),
                unix_listener.into(),
                unix_datagram.into(),
                unix_stream.into(),
            ]
        },
        |[listener, client, near, far, udp, unix_listener, unix_datagram, unix_stream]| {
            for name in ["stream", "datagram"] {
                std::fs::remove_file(path(name)).unwrap();
            }
            let mut accepted = TcpListener::from(listener).accept().unwrap().0;
            let mut text = [0; 20];
            accepted.read_exact(&mut text).unwrap();
            accepted.write_all(&text).unwrap();
            TcpStream::from(client).read_exact(&mut text).unwrap();
            assert_eq!(&text, b"waits to be accepted");

            let mut text = [0; 9];
            let mut near = TcpStream::from(near);
            near.read_exact(&mut text).unwrap();
            assert_eq!(&text, b"in flight");
            drop(far);
            assert_eq!(near.read(&mut [0]).unwrap(), 0);

            let mut text = [0; 10];
            assert_eq!(UdpSocket::from(udp).recv(&mut text).unwrap(), 10);
            assert_eq!(&text, b"a datagram");

            let (mut near, _) = UnixListener::from(unix_listener).accept().unwrap();
            UnixStream::from(unix_stream).write_all(b"unix").unwrap();
            let mut text = String::new();
            near.read_to_string(&mut text).unwrap();
            assert_eq!(text, "unix");
            let mut text = [0; 7];
            let length = UnixDatagram::from(unix_datagram).recv(&mut text).unwrap();
            assert_eq!((length, &text), (7, b"another"));
        },
    );
}

#[test]
fn a_side_that_fails_fails_the_test_with_what_it_printed() {
    let one = || UnixStream::pair().unwrap().0;
    let failed = std::panic::catch_unwind(|| {
        cross_exec(|| [one()], |[_socket]| panic!("the new side found nothing"));
    });
    // The new side comes here as well, and fails with its own words.
    let message = failed.unwrap_err();
    let message = message.downcast_ref::<String>().expect("a message");
    assert!(message.contains("the new side found nothing"), "{message}");
}

#[test]
fn an_image_refuses_a_socket_with_a_reason_and_the_socket_stays() {
    let (one, other) = UnixStream::pair().unwrap();
    let update = frozen(&[one.try_clone().unwrap().into()]);
    let directory = tempfile::tempdir().unwrap();
    let saved: Result<_, Anything> = update.handover(|handover| {
        Ok(image::save(
            &handover,
            &directory.path().join("image"),
            &|_| (),
        )?)
    });
    let error = saved.unwrap_err();
    assert!(
        matches!(error.downcast_ref(), Some(ImageError::NotAMemfd { .. })),
        "{error}"
    );
    assert!(
        error.to_string().contains("use another transport"),
        "{error}"
    );
    update.cancel().unwrap();
    (&other).write_all(b"on").unwrap();
    let mut text = [0; 2];
    (&one).read_exact(&mut text).unwrap();
}

#[test]
fn a_socket_is_preserved_once() {
    let (one, _other) = UnixStream::pair().unwrap();
    let update = Orchestrator::new(Arc::new(Registry::linked().unwrap()));
    update.preserve(Token(1), &one).unwrap();
    let again = update
        .preserve(Token(2), one.try_clone().unwrap())
        .unwrap_err();
    assert_eq!(again.errno(), Errno::EBUSY);
}
