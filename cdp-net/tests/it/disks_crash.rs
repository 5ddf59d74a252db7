//! Crashes while disks join, grow, are cut and leave: every moment that was acknowledged has the disks that it had.

use crate::kit::{Place, noise, seeded, wait_for};
use bytes::Bytes;
use cdp_core::replica::Replica;
use cdp_core::when::When;
use cdp_net::device::Device;
use cdp_net::owner::{ControlClient, Request};
use cdp_net::protect::Protector;
use cdp_net::report::{At, DiskChanged, Status};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const LEAST: u64 = 4 * MIB;
const MOST: u64 = 12 * MIB;

struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// A moment that was acknowledged: the disks that were complete then, and what they held.
struct Marked {
    label: String,
    disks: BTreeMap<String, Vec<u8>>,
}

/// Where the protection is until it crashes.
type Slot = Mutex<Option<Protector>>;

/// One life between two crashes. Ends with the first answer that does not come.
struct Life<'a> {
    place: &'a Place,
    client: ControlClient,
    devices: BTreeMap<String, Arc<dyn Device>>,
    dice: Dice,
    round: u64,
}

impl Life<'_> {
    fn change(&mut self, protector: &Slot) -> Option<()> {
        let one = self.place.source("one");
        let size = std::fs::metadata(&one).unwrap().len();
        let has_two = self.devices.contains_key("two");
        let request = match self.dice.below(4) {
            0 if !has_two => Request::AddDisk { name: "two".into(), source: self.place.source("two") },
            1 if has_two => {
                // Its file is free when nobody serves it any more.
                self.devices.remove("two");
                Request::RemoveDisk { name: "two".into() }
            }
            2 if size < MOST => {
                let more = (1 + self.dice.below(4)) * MIB;
                set_len(&one, size + more);
                Request::ResizeDisk { name: "one".into(), size: None, force: false }
            }
            _ if size > LEAST => Request::ResizeDisk { name: "one".into(), size: Some(size - MIB), force: true },
            _ => return Some(()),
        };
        self.client.call::<DiskChanged>(&request).ok()?;
        let exports = protector.lock().unwrap().as_ref()?.exports();
        self.devices = exports.into_iter().map(|export| (export.name, export.device)).collect();
        Some(())
    }

    fn write(&mut self) -> Option<()> {
        for device in self.devices.values() {
            for _ in 0..3 {
                let sector = self.dice.below(device.size() / 512 - 64);
                let data = noise(self.dice.below(1 << 40), 32 << 10);
                device.write(sector * 512, Bytes::from(data), false).ok()?;
            }
        }
        Some(())
    }

    fn mark(&mut self, number: usize) -> Option<Marked> {
        let disks = self.client.call::<Status>(&Request::Status).ok()?.disks;
        let complete = disks.into_iter().filter(|disk| !disk.incomplete).map(|disk| disk.name);
        // Nobody writes now.
        let disks: BTreeMap<_, _> =
            complete.map(|name| (name.clone(), std::fs::read(self.place.source(&name)).unwrap())).collect();
        let label = format!("{}-{number}", self.round);
        let request = Request::Mark { label: label.parse().unwrap(), app_consistent: false };
        self.client.call::<At>(&request).ok()?;
        Some(Marked { label, disks })
    }

    fn live(&mut self, protector: &Slot, marks: &mut Vec<Marked>) -> Option<()> {
        for number in 0.. {
            self.write()?;
            let marked = self.mark(number)?;
            marks.push(marked);
            self.change(protector)?;
        }
        Some(())
    }
}

fn set_len(path: &Path, size: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(size).unwrap();
}

fn content(replica: &Replica, when: &When, name: &str) -> Vec<u8> {
    crate::kit::restored(replica, when, name)
}

#[test]
fn acknowledged_moments_survive_crashes_in_the_midst_of_changes() {
    let place = Place::new();
    std::fs::write(place.source("one"), noise(1, 6 * MIB as usize)).unwrap();
    std::fs::write(place.source("two"), noise(2, 5 * MIB as usize)).unwrap();
    let mut marks: Vec<Marked> = Vec::new();
    let mut names = vec!["one".to_owned()];
    // More of them, and others, where the environment says so.
    let rounds = std::env::var("CDP_DISK_CRASHES").map_or(10, |text| text.parse().expect("a number"));
    for round in 0..rounds {
        let given: Vec<_> = names.iter().map(String::as_str).collect();
        let protector = Protector::start(&place.options(&given), |_| {}).unwrap();
        seeded(protector.protection());
        let mut dice = Dice(round + 7);
        let until = Duration::from_millis(30 + dice.below(700));
        let client = ControlClient::connect(&place.replica()).unwrap();
        let devices = protector.exports().into_iter().map(|export| (export.name, export.device)).collect();
        let protector = Slot::new(Some(protector));
        let mut life = Life { place: &place, client, devices, dice, round };
        std::thread::scope(|scope| {
            // The crash: whoever waits for an answer gets none, and what is not durable stays so.
            let crash = scope.spawn(|| {
                std::thread::sleep(until);
                let crashing = protector.lock().unwrap().take();
                drop(crashing);
            });
            life.live(&protector, &mut marks);
            crash.join().unwrap();
        });
        drop(life);
        names = place.load().disks().into_iter().map(|disk| disk.name).collect();
    }
    let given: Vec<_> = names.iter().map(String::as_str).collect();
    let last = Protector::start(&place.options(&given), |_| {}).unwrap();
    seeded(last.protection());
    wait_for("every copy", || last.host().status().unwrap().disks.iter().all(|disk| !disk.incomplete));
    last.mark(&"end".parse().unwrap()).unwrap();
    assert!(last.stop(Duration::from_secs(20), &|| false).drained);
    let disks = names.iter().map(|name| (name.clone(), std::fs::read(place.source(name)).unwrap())).collect();
    marks.push(Marked { label: "end".into(), disks });
    let replica = place.load();
    let mut with_two = 0;
    for Marked { label, disks } in &marks {
        let when = When::Label(label.parse().unwrap());
        let moment = replica.resolve(&when).unwrap();
        let found = replica.complete_disks(moment.timeline, moment.lsn);
        let found: Vec<_> = found.into_iter().map(|disk| (disk.name, disk.size)).collect();
        let expected: Vec<_> = disks.iter().map(|(name, content)| (name.clone(), content.len() as u64)).collect();
        // One that was being copied may have become complete before the mark.
        assert!(expected.iter().all(|disk| found.contains(disk)), "{label}: {found:?} {expected:?}");
        for (name, expected) in disks {
            assert!(content(&replica, &when, name) == *expected, "{name} at {label}");
        }
        with_two += usize::from(disks.len() > 1);
    }
    println!("{} moments after {rounds} crashes, {with_two} of both disks", marks.len());
    assert!(marks.len() as u64 > rounds / 2, "{} moments after {rounds} crashes", marks.len());
}
