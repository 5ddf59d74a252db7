//! What the kernel says seldom: short writes, disturbances, refusals, and a ring that is lost.

use super::*;
use cdp_core::media::{Disk, Storage};

/// A worker with one write of `length` bytes, which goes past the page cache where it may, cut and not handed over.
struct Rig {
    storage: Arc<dyn Storage>,
    worker: Worker,
    content: Vec<u8>,
    _place: tempfile::TempDir,
}

impl Rig {
    /// None where the kernel has no ring for us.
    fn new(length: usize) -> Option<Self> {
        let Ok(system) = system() else {
            println!("skipped: the kernel gives us no io_uring");
            return None;
        };
        let place = tempfile::tempdir().unwrap();
        let storage: Arc<dyn Storage> = Arc::new(Disk::create(place.path()).unwrap());
        let file = storage.create_streamed("segment").unwrap();
        let content: Vec<u8> = (0..length).map(|at| (at / 7 + at / 512 + 1) as u8).collect();
        let done = Done::new(Box::new(|| {}));
        let shared = Shared { queue: Mutex::default(), alarm: system.alarm(), done };
        let mut worker = Worker::new(Arc::new(shared), system);
        let data = content.chunks(10_000).map(Bytes::copy_from_slice).collect();
        worker.begin(Together { ids: vec![EffectId(1), EffectId(2)], file, offset: 4096, data });
        Some(Self { storage, worker, content, _place: place })
    }

    /// The first portion, as if the kernel had it.
    fn portion(&mut self) -> Write {
        let job = self.worker.jobs.get_mut(&0).unwrap();
        let cut = job.cut.as_mut().unwrap();
        let (way, portion) = (cut.way(), cut.next(job.data.as_slice()).unwrap());
        job.underway += 1;
        self.worker.portions += 1;
        Write { file: Arc::clone(&job.file), way, portion, data: Arc::clone(&job.data), done: 0 }
    }

    fn answer(&mut self, disturbed: u32, write: Write, answer: Answer) {
        self.worker.answered(0, disturbed, write, answer);
    }

    /// Goes on as the thread does, until nothing is left; gives what was told.
    fn settle(&mut self) -> Vec<(EffectId, Outcome)> {
        let mut done = Vec::new();
        self.worker.feed();
        while !self.worker.system.is_idle() {
            self.worker.system.wait(&mut done).unwrap();
            for (tag, operation, answer) in done.drain(..) {
                let (Tag::Write { job, disturbed }, Operation::Write(write)) = (tag, operation) else { panic!() };
                self.worker.answered(job, disturbed, write, answer);
            }
            self.worker.feed();
        }
        assert_eq!(self.worker.portions, 0);
        self.worker.shared.done.take()
    }

    fn written(&self) -> Vec<u8> {
        let file = self.storage.open("segment", false).unwrap();
        let mut bytes = vec![0; 4096 + self.content.len()];
        let _ = file.read_at(0, &mut bytes).unwrap();
        bytes.split_off(4096)
    }
}

fn fine() -> Vec<(EffectId, Outcome)> {
    vec![(EffectId(1), Ok(())), (EffectId(2), Ok(()))]
}

#[test]
fn a_short_write_is_gone_on_with_where_it_ended() {
    // In whole sectors and in the middle of one, from the page cache's side and past it.
    for length in [20_000, 64 << 10, 3 << 20] {
        for short in [1, 512, 4096, 10_000, 10_001] {
            let Some(mut rig) = Rig::new(length) else { return };
            let write = rig.portion();
            rig.answer(0, write, Ok(short));
            assert_eq!(rig.settle(), fine());
            let written = rig.written();
            assert!(written[..short].iter().all(|byte| *byte == 0), "said to be written, and not handed over again");
            assert!(written[short..] == rig.content[short..], "{short} of {length}");
        }
    }
}

#[test]
fn a_disturbed_write_is_tried_again_and_not_for_ever() {
    for errno in [libc::EINTR, libc::EAGAIN] {
        let Some(mut rig) = Rig::new(20_000) else { return };
        let write = rig.portion();
        rig.answer(ATTEMPTS - 1, write, Err(errno));
        assert_eq!(rig.settle(), fine());
        assert!(rig.written() == rig.content);
        let Some(mut rig) = Rig::new(20_000) else { return };
        let write = rig.portion();
        rig.answer(ATTEMPTS, write, Err(errno));
        let told = rig.settle();
        assert!(told.len() == 2 && told.iter().all(|(_, outcome)| outcome.is_err()), "{told:?}");
    }
}

#[test]
fn what_is_refused_past_the_page_cache_goes_through_it_from_then_on() {
    let Some(mut rig) = Rig::new(3 << 20) else { return };
    let write = rig.portion();
    if write.way == Way::Cached {
        println!("skipped: nothing goes past the page cache here");
        return;
    }
    let file = Arc::clone(&write.file);
    rig.answer(0, write, Err(libc::EINVAL));
    assert_eq!(rig.settle(), fine());
    assert!(rig.written() == rig.content);
    assert_eq!(file.raw().unwrap().cut(0, 1 << 20).way(), Way::Cached);
}

#[test]
fn a_failure_is_told_once_for_all_with_its_place_and_nothing_more_is_handed_over() {
    for (answer, kind) in [
        (Ok(0), MediaErrorKind::NoSpace),
        (Err(libc::ENOSPC), MediaErrorKind::NoSpace),
        (Err(libc::EIO), MediaErrorKind::Io),
    ] {
        let Some(mut rig) = Rig::new(3 << 20) else { return };
        let (first, mut second) = (rig.portion(), rig.portion());
        let at = second.portion.offset() + 512;
        second.done = 512;
        rig.answer(0, second, answer);
        assert!(rig.worker.shared.done.take().is_empty(), "the kernel still has a portion of it");
        rig.answer(0, first, Err(libc::EIO));
        let told = rig.settle();
        assert_eq!(told.iter().map(|(id, _)| id.0).collect::<Vec<_>>(), [1, 2]);
        for (_, outcome) in told {
            let error = outcome.unwrap_err();
            assert_eq!((error.kind, error.operation, error.offset), (kind, media::Operation::Write, at));
            assert!(error.path.ends_with("segment"));
        }
        assert!(rig.written().iter().all(|byte| *byte == 0));
    }
}

#[test]
fn when_the_ring_is_lost_everything_is_told_and_nobody_waits() {
    let Some(rig) = Rig::new(20_000) else { return };
    let (shared, storage) = (Arc::clone(&rig.worker.shared), Arc::clone(&rig.storage));
    let file = storage.open("segment", true).unwrap();
    let append =
        |id, offset| Append { id: EffectId(id), file: Arc::clone(&file), offset, data: vec![Bytes::from_static(b"x")] };
    shared.write(append(3, 0));
    shared.write(append(4, 100));
    shared.sync(EffectId(5), Arc::clone(&file));
    rig.worker.give_up("it was taken away");
    shared.write(append(6, 200));
    shared.sync(EffectId(7), Arc::clone(&file));
    let mut told = shared.done.take();
    told.sort_by_key(|(id, _)| *id);
    assert_eq!(told.iter().map(|(id, _)| id.0).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7]);
    for (id, outcome) in told {
        let error = outcome.unwrap_err();
        let sync = [5, 7].contains(&id.0);
        assert_eq!(error.operation, if sync { media::Operation::Sync } else { media::Operation::Write });
        assert!(error.path.ends_with("segment") && error.message.contains("taken away"), "{error}");
    }
}
