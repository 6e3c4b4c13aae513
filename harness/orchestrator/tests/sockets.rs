// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Sockets over a real exec of this very program, and how other transports refuse them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use luo_handler_api::{Errno, Token};
use luo_handler_socket as _;
use luo_orchestrator::orchestrator::Orchestrator;
use luo_orchestrator::registry::Registry;
use luo_orchestrator::transport::image::ImageError;
use luo_orchestrator::transport::{exec, image, program::Program};

const TASK: &str = "LUO_TEST_TASK";
const DIRECTORY: &str = "LUO_TEST_DIRECTORY";

type Anything = Box<dyn std::error::Error>;

/// The sockets of both sides, in this order.
const TOKENS: [u64; 7] = [0, 1, 2, 3, 4, 5, 6];

/// Where the old side is bound, in a directory of the test.
fn path(name: &str) -> std::path::PathBuf {
    Path::new(&std::env::var_os(DIRECTORY).unwrap()).join(name)
}

fn frozen(sockets: &[OwnedFd]) -> Orchestrator {
    let update = Orchestrator::new(Arc::new(Registry::linked().unwrap()));
    for (socket, token) in sockets.iter().zip(TOKENS) {
        let handler = update.preserve(Token(token), socket).unwrap();
        assert_eq!(handler.as_str(), "luo-handlers,socket-v1");
    }
    update.prepare().unwrap();
    update.freeze().unwrap();
    update
}

#[test]
fn sockets_of_every_kind_cross_an_exec() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "old_side",
            "--exact",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(TASK, "cross")
        .env(DIRECTORY, directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The exec comes when everything is connected that is to be.
    let ready = directory.path().join("ready");
    while !ready.exists() {
        assert!(child.try_wait().unwrap().is_none(), "the old side ended");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let port: u16 = std::fs::read_to_string(&ready).unwrap().parse().unwrap();
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.write_all(b"waits to be accepted").unwrap();
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "waits to be accepted");
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("this is the new side"),
        "{text}"
    );
}

#[test]
#[ignore = "another test starts it"]
fn old_side() {
    if std::env::var(TASK).as_deref() != Ok("cross") {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let near = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    far.write_all(b"in flight").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.send_to(b"a datagram", udp.local_addr().unwrap())
        .unwrap();
    let unix_listener = UnixListener::bind(path("stream")).unwrap();
    let unix_datagram = UnixDatagram::bind(path("datagram")).unwrap();
    unix_datagram.send_to(b"another", path("datagram")).unwrap();
    let unix_stream = UnixStream::connect(path("stream")).unwrap();
    let sockets: [OwnedFd; 7] = [
        listener.into(),
        near.into(),
        far.into(),
        udp.into(),
        unix_listener.into(),
        unix_datagram.into(),
        unix_stream.into(),
    ];
    std::fs::write(path("port"), port.to_string()).unwrap();
    std::fs::rename(path("port"), path("ready")).unwrap();
    std::io::stdin().read_line(&mut String::new()).unwrap();

    let update = frozen(&sockets);
    let mut program = Program::new(std::env::current_exe().unwrap());
    program.args([
        "new_side",
        "--exact",
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
    let failed = update.handover(|handover| {
        exec::Departure::new(&handover, &mut program)?.jump()?;
        Ok::<_, Anything>(())
    });
    panic!("the exec failed: {failed:?}");
}

#[test]
#[ignore = "another test starts it"]
fn new_side() {
    if std::env::var(TASK).as_deref() != Ok("cross") {
        return;
    }
    println!("\nthis is the new side");
    let arrival = exec::arrive().unwrap().unwrap();
    let new = Orchestrator::arrived(Arc::new(Registry::linked().unwrap()), arrival);
    let [listener, near, far, udp, unix_listener, unix_datagram, unix_stream] =
        TOKENS.map(|token| new.retrieve(Token(token)).unwrap().try_clone().unwrap());
    assert_eq!(new.finish().unwrap(), []);

    let mut accepted = TcpListener::from(listener).accept().unwrap().0;
    let mut text = [0; 20];
    accepted.read_exact(&mut text).unwrap();
    accepted.write_all(&text).unwrap();

    let mut text = [0; 9];
    TcpStream::from(near).read_exact(&mut text).unwrap();
    assert_eq!(&text, b"in flight");
    // Its other end has crossed and was closed here.
    assert_eq!(TcpStream::from(far).read(&mut [0]).unwrap(), 0);

    let mut text = [0; 10];
    assert_eq!(UdpSocket::from(udp).recv(&mut text).unwrap(), 10);
    assert_eq!(&text, b"a datagram");

    let (mut near, _) = UnixListener::from(unix_listener).accept().unwrap();
    UnixStream::from(unix_stream).write_all(b"unix").unwrap();
    let mut text = String::new();
    near.read_to_string(&mut text).unwrap();
    assert_eq!(text, "unix");
    let mut text = [0; 7];
    assert_eq!(
        UnixDatagram::from(unix_datagram).recv(&mut text).unwrap(),
        7
    );
    assert_eq!(&text, b"another");
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
