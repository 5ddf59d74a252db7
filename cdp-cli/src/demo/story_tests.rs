//! The story on a replica that keeps every write in memory: it must hold there, and must not where writes get lost.

use super::story::{DemoEvent, Ending, Plan, tell};
use super::{Layout, Port};
use crate::engine::{DiffSpec, Engine, MountSpec, ProtectSpec, RestoreSpec};
use crate::exit::Failure;
use crate::json::{DiffEvent, Export, Inspected, MountEvent, ProtectEvent, Restored, State, Status, Stopped, Verified};
use crate::place::Way;
use crate::progress::Progress;
use crate::stop::Stop;
use bytes::Bytes;
use cdp_core::types::{Lsn, WallTime};
use cdp_core::when::When;
use cdp_net::clock;
use cdp_net::device::{Device, ZeroFlags};
use cdp_net::nbd::{self, Address, Server, ServerOptions};
use cdp_net::owner::{Connection, ControlServer, Handler, Owner, Request, reply};
use cdp_net::report::{At, Problem, ProblemClass, Range, RangeKind};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

/// Every write since the beginning.
#[derive(Default)]
struct Journal {
    first: Vec<u8>,
    now: Vec<u8>,
    writes: Vec<(WallTime, u64, Vec<u8>)>,
    labels: BTreeMap<String, u64>,
}

impl Journal {
    fn change(&mut self, offset: u64, data: Vec<u8>) {
        self.now[offset as usize..][..data.len()].copy_from_slice(&data);
        self.writes.push((clock::wall(), offset, data));
    }

    fn at(&self, lsn: u64) -> At {
        let time = self.writes.get((lsn as usize).wrapping_sub(1)).map_or(WallTime(0), |(time, _, _)| *time);
        At { timeline: "00112233445566ff".parse().unwrap(), lsn: Lsn(lsn), time, point: None }
    }

    fn resolve(&self, when: &When) -> u64 {
        match when {
            When::Latest => self.writes.len() as u64,
            When::Lsn { lsn, .. } => lsn.0,
            When::Label(label) => self.labels[label.as_str()],
            When::Time(time) => self.writes.partition_point(|(stamp, _, _)| stamp <= time) as u64,
            other => panic!("{other}"),
        }
    }

    /// The disk after so many writes, but for `lost`.
    fn image(&self, lsn: u64, lost: Option<usize>) -> Vec<u8> {
        let mut image = self.first.clone();
        let kept = self.writes[..lsn as usize].iter().enumerate().filter(|(at, _)| Some(*at) != lost);
        kept.for_each(|(_, (_, offset, data))| image[*offset as usize..][..data.len()].copy_from_slice(data));
        image
    }
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Journal>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Journal> {
        self.0.lock().unwrap()
    }
}

struct Disk(Shared, fs::File);

impl Device for Disk {
    fn size(&self) -> u64 {
        self.0.lock().now.len() as u64
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        Port::read(&mut self.0.lock().now, offset, buffer)
    }
    fn write(&self, offset: u64, data: Bytes, _: bool) -> io::Result<()> {
        let mut journal = self.0.lock();
        self.1.write_all_at(&data, offset)?;
        journal.change(offset, data.to_vec());
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        self.write(offset, vec![0; length as usize].into(), fua)
    }
    fn write_zeroes(&self, offset: u64, length: u64, zero: ZeroFlags) -> io::Result<()> {
        self.trim(offset, length, zero.fua)
    }
}

impl Handler for Shared {
    fn handle(&self, request: Request, _: &Connection) -> Result<Value, Problem> {
        let mut journal = self.lock();
        let latest = journal.writes.len() as u64;
        match request {
            Request::Mark { label, .. } => {
                journal.labels.insert(label.to_string(), latest);
                reply(journal.at(latest))
            }
            Request::Status => {
                let At { timeline, time, lsn, .. } = journal.at(latest);
                let range = Range {
                    timeline,
                    kind: RangeKind::Every,
                    from_lsn: Lsn(0),
                    to_lsn: lsn,
                    from_time: WallTime(0),
                    to_time: time,
                };
                reply(Status { state: State::Protecting, ranges: vec![range], rpo_ms: Some(7), ..Status::default() })
            }
            _ => Err(Problem::new(ProblemClass::Failed, "unknown", "not part of the story")),
        }
    }
}

/// A replica in memory that loses one write of each restored moment, if it is `careless`.
#[derive(Default)]
struct InMemory {
    journal: Shared,
    careless: bool,
    owner: OnceLock<()>,
}

impl InMemory {
    fn image(&self, when: &When) -> (At, Vec<u8>) {
        let journal = self.journal.lock();
        let lsn = journal.resolve(when);
        // An intent a little before the moment, with everything that followed from it still there.
        let intent = |at: &usize| journal.writes[*at].2.starts_with(b"LINT");
        let lost = (0..(lsn as usize).saturating_sub(30)).rev().find(intent);
        (journal.at(lsn), journal.image(lsn, lost.filter(|_| self.careless)))
    }
}

impl Engine for InMemory {
    fn open(&self, _: Owner) -> Result<Box<dyn Handler>, Failure> {
        Ok(Box::new(self.journal.clone()))
    }

    fn protect(
        &self,
        spec: &ProtectSpec,
        stop: &Stop,
        events: &mut dyn FnMut(ProtectEvent),
    ) -> Result<Stopped, Failure> {
        self.owner.set(()).unwrap();
        let source = &spec.sources[0];
        let content = fs::read(&source.path).unwrap();
        *self.journal.lock() = Journal { first: content.clone(), now: content, ..Journal::default() };
        fs::create_dir(&spec.replica).unwrap();
        fs::write(spec.replica.join("MANIFEST"), "").unwrap();
        let owner = Owner::acquire(&spec.replica).unwrap();
        let _control = ControlServer::start(&owner, Arc::new(self.journal.clone())).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&source.path).unwrap();
        let export = nbd::Export::new("disk", Arc::new(Disk(self.journal.clone(), file)));
        let server = Server::start(ServerOptions::new(spec.listen.address.clone(), vec![export])).unwrap();
        let uri = server.uris().remove(0).to_string();
        events(ProtectEvent::Ready { exports: vec![Export { name: "disk".into(), uri, size: 0 }] });
        while !stop.wait(Duration::from_secs(1)) {}
        Ok(Stopped { drained: true, ..Stopped::default() })
    }

    fn mount(&self, _: Way, spec: &MountSpec, stop: &Stop, events: &mut dyn FnMut(MountEvent)) -> Result<(), Failure> {
        let (at, image) = self.image(spec.at.as_ref().unwrap());
        let journal = Shared(Arc::new(Mutex::new(Journal { now: image, ..Journal::default() })));
        let null = fs::File::open("/dev/null").unwrap();
        let export = nbd::Export::new("disk", Arc::new(Disk(journal, null)));
        let address: Address = spec.listen.as_ref().unwrap().address.clone();
        let server = Server::start(ServerOptions::new(address, vec![export])).unwrap();
        let uri = server.uris().remove(0).to_string();
        let exports = vec![Export { name: "disk".into(), uri, size: 0 }];
        events(MountEvent::Ready { at, exports, session: None, writable: false, incomplete: Vec::new(), behind: None });
        while !stop.wait(Duration::from_secs(1)) {}
        Ok(())
    }

    fn restore(&self, _: Way, spec: &RestoreSpec, _: &Stop, _: &mut dyn FnMut(Progress)) -> Result<Restored, Failure> {
        let (at, image) = self.image(&spec.at);
        fs::write(&spec.output, image).unwrap();
        Ok(Restored { at, outputs: vec![], incomplete: vec![], behind: None })
    }

    fn diff(
        &self,
        _: Way,
        _: &DiffSpec,
        _: &Stop,
        _: &mut dyn FnMut(Progress),
        _: &mut dyn FnMut(DiffEvent),
    ) -> Result<(), Failure> {
        unreachable!("not part of the story")
    }

    fn verify(&self, _: Way, _: &Stop, _: &mut dyn FnMut(Progress)) -> Result<Verified, Failure> {
        Ok(Verified { ok: true, ..Verified::default() })
    }

    fn inspect(&self, _: &Path) -> Result<Inspected, Failure> {
        unreachable!("not part of the story")
    }
}

fn happen(careless: bool) -> (Ending, Vec<DemoEvent>) {
    let dir = tempfile::tempdir().unwrap();
    let small = Layout { documents: 4, document_bytes: 32 << 10, ..Layout::standard(0, 3) };
    let plan = Plan {
        dir: dir.path().to_owned(),
        size: 48 << 20,
        files: 4 << 20,
        layout: small,
        work: Duration::from_millis(300),
        rpo: Duration::from_secs(1),
        moments: 4,
        seed: 5,
    };
    let engine = InMemory { careless, ..InMemory::default() };
    let mut events = Vec::new();
    let ending = tell(&engine, &plan, &Stop::new(), &mut |event| events.push(event)).unwrap();
    assert_eq!(events.last(), Some(&DemoEvent::Done(ending.clone())));
    (ending, events)
}

#[test]
fn it_holds_on_a_replica_that_keeps_every_write() {
    let (ending, events) = happen(false);
    let wrong: Vec<_> = events.iter().filter(|event| matches!(event, DemoEvent::Check(check) if !check.ok)).collect();
    assert!(ending.ok && wrong.is_empty(), "{wrong:#?}");
    // Ruined, latest, three marks, four moments, served, stopped, verified.
    assert_eq!((ending.checks, ending.rpo_worst_ms), (12, 7));
    assert!(ending.movements > 0 && ending.written_bytes > 0);
}

#[test]
fn it_does_not_hold_where_a_write_is_lost() {
    let (ending, events) = happen(true);
    assert!(!ending.ok);
    let checks = events.iter().filter_map(|event| match event {
        DemoEvent::Check(check) => Some(check),
        _ => None,
    });
    let wrong: Vec<_> = checks.filter(|check| !check.ok).collect();
    assert!(wrong.iter().any(|check| check.what.starts_with("mark before the ruin")), "{wrong:#?}");
    assert!(wrong.iter().any(|check| check.what.starts_with("served")), "{wrong:#?}");
}
