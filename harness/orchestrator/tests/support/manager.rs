// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A small service manager: what systemd does with its file descriptor store, and no more. Each
//! test program uses a part of it.
#![allow(dead_code)]

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use command_fds::{CommandFdExt, FdMapping};
use rustix::net::{recvmsg, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

/// A manager with one service, and what that service stored.
pub struct Manager {
    directory: tempfile::TempDir,
    store: Arc<Mutex<Vec<(String, OwnedFd)>>>,
    /// `FileDescriptorStoreMax=`.
    pub room: usize,
    /// Whether it passes that on as `$FDSTORE`, as systemd does since 254.
    pub reports_room: bool,
    /// Whether it obeys FDSTOREREMOVE: a service that crashes may not come so far.
    pub removes: bool,
}

impl Manager {
    pub fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            store: Arc::default(),
            room: 64,
            reports_room: true,
            removes: true,
        }
    }

    /// Names in the store, sorted.
    pub fn names(&self) -> Vec<String> {
        let store = self.store.lock().unwrap();
        let mut names: Vec<_> = store.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    pub fn add(&self, name: &str, file: OwnedFd) {
        self.store.lock().unwrap().push((name.into(), file));
    }

    pub fn remove(&self, name: &str) {
        self.store
            .lock()
            .unwrap()
            .retain(|(stored, _)| stored != name);
    }

    /// Runs the service to its end. It gets `activated` descriptors, then those of the store.
    pub fn start(&self, command: &mut Command, activated: Vec<(&str, OwnedFd)>) -> Output {
        let path = self.directory.path().join("notify");
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).unwrap();
        let mut passed: Vec<(String, OwnedFd)> = activated
            .into_iter()
            .map(|(name, file)| (name.to_owned(), file))
            .collect();
        for (name, file) in &*self.store.lock().unwrap() {
            passed.push((name.clone(), file.try_clone().unwrap()));
        }
        let names: Vec<String> = passed.iter().map(|(name, _)| name.clone()).collect();
        command
            .env("NOTIFY_SOCKET", &path)
            .env("LISTEN_FDS", passed.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"));
        if self.reports_room {
            command.env("FDSTORE", self.room.to_string());
        }
        let files = passed.into_iter().map(|(_, file)| file);
        let mappings = files.zip(3..).map(|(parent_fd, child_fd)| FdMapping {
            parent_fd,
            child_fd,
        });
        command.fd_mappings(mappings.collect()).unwrap();
        std::thread::scope(|scope| {
            let listener = scope.spawn(|| self.listen(&socket));
            let output = command.output().unwrap();
            UnixDatagram::unbound()
                .unwrap()
                .send_to(b"END", &path)
                .unwrap();
            listener.join().unwrap();
            output
        })
    }

    /// Works off messages until the service has ended.
    fn listen(&self, socket: &UnixDatagram) {
        loop {
            let (message, files) = receive(socket);
            if message == "END" {
                return;
            }
            let fields: Vec<&str> = message.lines().collect();
            let name = fields
                .iter()
                .find_map(|field| field.strip_prefix("FDNAME="));
            if fields.contains(&"FDSTOREREMOVE=1") {
                if self.removes {
                    self.remove(name.unwrap());
                }
            } else if fields.contains(&"FDSTORE=1") {
                assert!(
                    fields.contains(&"FDPOLL=0"),
                    "systemd would drop connections"
                );
                files
                    .into_iter()
                    .for_each(|file| self.keep(name.unwrap(), file));
            } else {
                // Closing the descriptor answers it.
                assert_eq!(fields, ["BARRIER=1"]);
            }
        }
    }

    /// A file that is there already is ignored, as is one for which there is no room.
    fn keep(&self, name: &str, file: OwnedFd) {
        let mut store = self.store.lock().unwrap();
        let inode = |file: &OwnedFd| {
            let stat = rustix::fs::fstat(file).unwrap();
            (stat.st_dev, stat.st_ino)
        };
        let is_there = store
            .iter()
            .any(|(_, stored)| inode(stored) == inode(&file));
        if !is_there && store.len() < self.room {
            store.push((name.into(), file));
        }
    }
}

fn receive(socket: &UnixDatagram) -> (String, Vec<OwnedFd>) {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(socket, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            files.extend(rights);
        }
    }
    let message = String::from_utf8(bytes[..received.bytes].to_vec()).unwrap();
    (message, files)
}
