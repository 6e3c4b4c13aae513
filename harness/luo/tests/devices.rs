// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Files that stand for devices, through the whole of the hosted side, on a machine without such
//! devices.

#[path = "../../orchestrator/tests/support/mod.rs"]
mod support;

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use luo_cli::inspect::{inspect, text};
use luo_handler_api::{Compatible, Errno, FileRef, OwnedFile, Token};
use luo_handler_ioport::{IoportHandler, PortBackend};
use luo_handler_vfio::description::Description;
use luo_handler_vfio::imagined::{edu, Imagined};
use luo_handler_vfio::{UserBackend, VfioHandler};
use luo_orchestrator::devicetree::{decode, encode};
use luo_orchestrator::error::Error;
use luo_orchestrator::handover::Handover;
use luo_orchestrator::orchestrator::Orchestrator;
use luo_orchestrator::registry::Registry;
use luo_orchestrator::transport::{image, loopback};
use support::{ops, Crossing};

fn null() -> File {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .unwrap()
}

/// A host with a handler of one imagined device, for which any file stands.
struct World {
    device: &'static VfioHandler<UserBackend<Imagined>>,
    registry: Arc<Registry>,
    update: Orchestrator,
}

impl World {
    fn new() -> Self {
        let device: &'static _ =
            Box::leak(Box::new(VfioHandler(UserBackend(Imagined::new(edu())))));
        let registry = Arc::new(Registry::new());
        let ops = luo_handler_api::HandlerOps::of(device, "tests");
        registry.register(Box::leak(Box::new(ops))).unwrap();
        let update = Orchestrator::new(registry.clone());
        Self {
            device,
            registry,
            update,
        }
    }

    fn change(&self, change: impl FnOnce(&mut Description)) {
        self.device.0 .0.change(change);
    }

    /// The new side of an update with the device under token 1.
    fn crossed(&self) -> Orchestrator {
        self.crossed_as("luo-handlers,vfio-v1")
    }

    /// The same, with another name of the format in what crosses.
    fn crossed_as(&self, compatible: &str) -> Orchestrator {
        self.update.preserve(Token(1), null()).unwrap();
        self.update.prepare().unwrap();
        self.update.freeze().unwrap();
        let cross = |handover: Handover<'_>| {
            let mut arrival = loopback::cross(&handover).unwrap();
            let mut tree = decode(&arrival.devicetree).unwrap().tree;
            tree.files[0].compatible = Compatible::new(compatible);
            arrival.devicetree = encode(&tree).unwrap();
            Ok::<_, Error>(arrival)
        };
        let arrival = self.update.handover(cross).unwrap();
        Orchestrator::arrived(self.registry.clone(), arrival)
    }
}

fn errno<T>(result: Result<T, Error>) -> Errno {
    result.map(|_| ()).unwrap_err().errno()
}

#[test]
fn a_device_crosses() {
    let new = World::new().crossed();
    let file = new.retrieve(Token(1)).unwrap();
    let again = new.retrieve(Token(1)).unwrap();
    assert!(Arc::ptr_eq(&file, &again));
    assert_eq!(new.finish().unwrap(), []);
}

/// The format had no vendor once, and somebody else's may have had the same name.
#[test]
fn a_device_crosses_under_its_former_name() {
    let new = World::new().crossed_as("vfio-v1");
    new.retrieve(Token(1)).unwrap();
    assert_eq!(new.finish().unwrap(), []);
    let reason = World::new().crossed_as("vfio-v2").retrieve(Token(1));
    let reason = reason.unwrap_err().to_string();
    assert!(reason.contains("no handler for vfio-v2"), "{reason}");
}

#[test]
fn a_set_can_be_finished_without_its_device() {
    assert_eq!(World::new().crossed().finish().unwrap(), []);
}

#[test]
fn a_device_that_changed_is_an_error_that_says_in_what() {
    let world = World::new();
    let new = world.crossed();
    world.change(|device| device.header[0x2e] = 7);
    for _ in 0..2 {
        let message = new.retrieve(Token(1)).unwrap_err().to_string();
        for part in [
            "retrieve of file 0x1",
            "luo-handlers,vfio-v1",
            "ENODEV",
            "0000:00:04.0",
            "subsystem id was 0x1100, is 0x1107",
        ] {
            assert!(message.contains(part), "{message}");
        }
    }
    assert_eq!(new.finish().unwrap(), []);
}

#[test]
fn one_device_is_not_preserved_twice_through_two_files() {
    let world = World::new();
    world.update.preserve(Token(1), null()).unwrap();
    assert_eq!(errno(world.update.preserve(Token(2), null())), Errno::EBUSY);
}

#[test]
fn what_the_handler_says_of_a_refusal_is_in_the_error() {
    let world = World::new();
    world.device.0 .0.take_away();
    world.update.preserve(Token(1), null()).unwrap();
    let message = world.update.prepare().unwrap_err().to_string();
    assert!(message.contains("only PCI devices"), "{message}");
}

/// Any file of a device is a port at its position.
struct Ports;

impl PortBackend for Ports {
    fn is_port(&self, _: FileRef<'_>) -> bool {
        true
    }
    fn look(&self, _: FileRef<'_>) -> Result<luo_handler_ioport::PortRecord, Errno> {
        Ok(luo_handler_ioport::PortRecord {
            position: 0x71,
            status: 2,
        })
    }
    fn open(&self, record: luo_handler_ioport::PortRecord) -> Result<OwnedFile, Errno> {
        assert_eq!(record.position, 0x71);
        Ok(OwnedFd::from(null()).into())
    }
}

#[test]
fn each_time_a_device_is_opened_it_is_another_file() {
    let registry = Arc::new(Registry::new());
    registry.register(ops(IoportHandler(Ports))).unwrap();
    let update = Orchestrator::new(registry);
    let (one, other) = (null(), null());
    update.preserve(Token(1), &one).unwrap();
    update.preserve(Token(2), &other).unwrap();
    let duplicate = one.try_clone().unwrap();
    for file in [one.as_fd(), duplicate.as_fd(), other.as_fd()] {
        assert_eq!(errno(update.preserve(Token(3), file)), Errno::EBUSY);
    }
    update.unpreserve(Token(1)).unwrap();
    update.preserve(Token(3), &duplicate).unwrap();
}

/// What `luo inspect` shows of a frozen update with one file: the pairs of its record, and the
/// text.
fn inspected(update: &Orchestrator, registry: &Registry) -> (Vec<(String, String)>, String) {
    let Crossing { devicetree, memory } = Crossing::of(update);
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join(image::DEVICETREE);
    fs::write(&tree, devicetree).unwrap();
    fs::write(directory.path().join(image::MEMORY), memory).unwrap();
    let mut found = inspect(&tree, registry).unwrap();
    let text = text(&found);
    (found.files.remove(0).record, text)
}

fn values<'a>(record: &'a [(String, String)], key: &str) -> Vec<&'a str> {
    let pairs = record.iter().filter(|(found, _)| found == key);
    pairs.map(|(_, value)| &**value).collect()
}

#[test]
fn inspect_shows_the_record_of_a_device() {
    let world = World::new();
    world.crossed();
    let (record, text) = inspected(&world.update, &world.registry);
    assert_eq!(values(&record, "address"), ["0000:00:04.0"]);
    assert_eq!(values(&record, "id"), ["1234:11e8"]);
    assert_eq!(values(&record, "interrupts[]"), ["1", "1", "0", "1", "1"]);
    assert!(text.contains("interrupts 1 1 0 1 1"), "{text}");
    assert!(text.contains("id 1234:11e8"), "{text}");
    assert!(
        text.contains("subsystem_id 1af4:1100, class 00ff00"),
        "{text}"
    );
}

#[test]
fn inspect_shows_the_record_of_a_port() {
    let registry = Arc::new(Registry::new());
    registry.register(ops(IoportHandler(Ports))).unwrap();
    let update = Orchestrator::new(registry.clone());
    update.preserve(Token(1), null()).unwrap();
    update.prepare().unwrap();
    update.freeze().unwrap();
    let (record, text) = inspected(&update, &registry);
    assert_eq!(values(&record, "position"), ["113"]);
    assert_eq!(values(&record, "status"), ["2"]);
    assert!(text.contains("position 113"), "{text}");
}
