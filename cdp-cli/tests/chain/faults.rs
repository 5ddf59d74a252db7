//! Each part in turn is killed, stopped and continued; cables are cut and fall silent; a proxy is lost for good.

use crate::Dice;
use crate::chain::{Chain, GUESTS_WAIT_MAX, PARTS, Part, Sites, check_gaps};
use crate::support::{Place, cdp, hash, installed, restore, times};
use crate::wan::{Wan, Weather};
use crate::writers::{LOADED, Load, Writers};
use rustix::process::Signal;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What the writers rest for after every few writes: parts of a debug build share two cores with them.
const REST: Duration = Duration::from_millis(40);
/// fio's disk.
const FIO_BYTES: u64 = 8 << 20;

#[derive(Clone, Copy, Debug)]
enum Cable {
    /// Between source proxy and gateway.
    Near,
    /// Between gateway and target proxy.
    Far,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// `kill -9`, and started again.
    Kill(Part),
    /// SIGSTOP, and SIGCONT.
    Freeze(Part),
    Cut(Cable),
    Silence(Cable),
    /// The source proxy that the filter sends to is killed for good.
    Replace,
}

/// In this order, [`Part::First`] being the source proxy that the filter sends to; those of the filter at the end, when fio has ended, which has no second connection.
const FAULTS: [Fault; 14] = [
    Fault::Kill(Part::First),
    Fault::Kill(Part::Gateway),
    Fault::Cut(Cable::Far),
    Fault::Kill(Part::Target),
    Fault::Freeze(Part::Host),
    Fault::Kill(Part::Host),
    Fault::Freeze(Part::Target),
    Fault::Cut(Cable::Near),
    Fault::Freeze(Part::Gateway),
    Fault::Silence(Cable::Near),
    Fault::Freeze(Part::First),
    Fault::Silence(Cable::Far),
    Fault::Freeze(Part::Filter),
    Fault::Kill(Part::Filter),
];

struct Drill {
    chain: Chain,
    writers: Writers,
    load: Option<Load>,
    source: PathBuf,
    fio: Option<Child>,
    /// What the source held at each mark.
    marks: Vec<(String, blake3::Hash)>,
    kills_of_filter: usize,
}

impl Drill {
    fn start(seed: u64) -> Self {
        let place = Place::new();
        let (source, checked) = (place.path("data.img"), place.path("fio.img"));
        let writers = Writers::new(seed);
        std::fs::write(&source, writers.initial()).unwrap();
        std::fs::File::create(&checked).unwrap().set_len(FIO_BYTES).unwrap();
        let chain = Chain::start(place, Sites::loopback(), &[&source, &checked]);
        chain.near.as_ref().unwrap().set(Weather { delay: Duration::from_millis(1), rate: 100 << 20, loss_ppm: 100 });
        let fio = installed("fio").then(|| {
            let mut fio = fio_on(&["--ioengine=nbd", &format!("--uri={}", chain.uri("fio"))]);
            fio.args(["--do_verify=0", "--iodepth=4", "--rate=512k"]).current_dir(chain.place.path(""));
            fio.stdout(Stdio::null()).spawn().unwrap()
        });
        let mut drill = Self { chain, writers, load: None, source, fio, marks: Vec::new(), kills_of_filter: 0 };
        drill.go_on();
        drill
    }

    fn go_on(&mut self) {
        self.load = Some(self.writers.begin_paced(&self.chain.uri("").parse().unwrap(), REST));
    }

    fn cable(&self, cable: Cable) -> &Wan {
        match cable {
            Cable::Near => self.chain.near.as_ref().unwrap(),
            Cable::Far => self.chain.far.as_ref().unwrap(),
        }
    }

    /// The fault lasts for so long: guests are answered at its beginning, and at its end still.
    fn last(&self, fault: Fault, length: Duration) {
        let load = self.load.as_ref().unwrap();
        let first = load.goes_on(&format!("when {fault:?} begins"), GUESTS_WAIT_MAX);
        std::thread::sleep(length);
        let then = load.goes_on(&format!("{length:?} into {fault:?}"), GUESTS_WAIT_MAX);
        println!("{fault:?}: every guest was answered after {first:.1?}, and later after {then:.1?}");
    }

    /// Does it, waits until everything has caught up, and says how long that took.
    fn suffer(&mut self, number: usize, fault: Fault, length: Duration) {
        let fault = match fault {
            Fault::Kill(Part::First) => Fault::Kill(self.chain.source_in_use()),
            Fault::Freeze(Part::First) => Fault::Freeze(self.chain.source_in_use()),
            other => other,
        };
        match fault {
            Fault::Kill(Part::Filter) => {
                // fio would take the end of its only connection for an error.
                self.fio_ends();
                self.chain.kill(Part::Filter);
                self.writers.end_with_server(self.load.take().unwrap());
                self.writers.check(&std::fs::read(&self.source).unwrap());
                std::thread::sleep(length);
                self.kills_of_filter += 1;
            }
            Fault::Freeze(Part::Filter) => {
                // Nobody else is there to answer guests.
                self.chain.signal(Part::Filter, Signal::STOP);
                std::thread::sleep(length);
            }
            Fault::Kill(part) => {
                self.chain.kill(part);
                self.last(fault, length);
            }
            Fault::Freeze(part) => {
                self.chain.signal(part, Signal::STOP);
                self.last(fault, length);
            }
            Fault::Cut(cable) => {
                self.cable(cable).cut();
                self.last(fault, length);
            }
            Fault::Silence(cable) => {
                self.cable(cable).silence();
                self.last(fault, length);
            }
            Fault::Replace => {
                self.chain.kill(self.chain.source_in_use());
                self.last(fault, length);
            }
        }
        let mended = Instant::now();
        match fault {
            Fault::Kill(part) => self.chain.begin(part),
            Fault::Freeze(part) => self.chain.signal(part, Signal::CONT),
            Fault::Cut(cable) | Fault::Silence(cable) => self.cable(cable).mend(),
            Fault::Replace => {}
        }
        if self.load.is_none() {
            self.writers.read_through(&self.chain.uri("").parse().unwrap());
            self.go_on();
            self.chain.wait_protecting();
        }
        self.chain.wait_durable();
        println!("{fault:?} for {length:?}: caught up {:.1} s after it", mended.elapsed().as_secs_f64());
        let label = format!("fault {number}");
        let paused = self.load.as_ref().unwrap().pause();
        self.chain.mark(&label);
        self.marks.push((label, hash(&self.source)));
        drop(paused);
    }

    fn fio_ends(&mut self) {
        if let Some(mut fio) = self.fio.take() {
            let status = fio.wait().unwrap();
            assert!(status.success(), "fio: {status}");
        }
    }
}

/// fio, which writes every block of its disk once, in an order and with contents that it knows again.
fn fio_on(more: &[&str]) -> Command {
    let mut fio = Command::new("fio");
    fio.args([
        "--name=chain",
        "--rw=randwrite",
        "--bs=4k",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
    ]);
    fio.arg(format!("--size={FIO_BYTES}")).args(more);
    fio
}

#[test]
fn whichever_process_is_killed_stopped_or_cut_off_nothing_is_lost_and_each_gap_is_due() {
    let (rounds, seed) = (times("CDP_CHAIN_ROUNDS", 1), times("CDP_CHAIN_SEED", 1));
    println!("CDP_CHAIN_ROUNDS={rounds} CDP_CHAIN_SEED={seed}");
    let (mut drill, mut dice) = (Drill::start(seed), Dice::new(seed));
    for round in 0..rounds {
        for (number, fault) in FAULTS.into_iter().enumerate() {
            // Later rounds go on beyond the time after which a silent side is taken for dead.
            let length = if round == 0 { 500 } else { 200 + dice.below(9_000) };
            drill.suffer(round as usize * FAULTS.len() + number, fault, Duration::from_millis(length));
        }
    }
    drill.suffer(rounds as usize * FAULTS.len(), Fault::Replace, Duration::ZERO);
    drill.fio_ends();
    drill.writers.end(drill.load.take().unwrap());
    let Drill { mut chain, writers, source, marks, kills_of_filter, .. } = drill;
    let content = std::fs::read(&source).unwrap();
    assert_eq!(content.len(), LOADED);
    writers.check(&content);
    chain.stop(Part::Filter);
    let (place, checked) = (chain.place.path(""), chain.place.path("fio.img"));
    // Once as somebody reads it who is at the other site, and once where it is.
    let equal = |restored: &Path| {
        assert!(std::fs::read(restored.join("data.img")).unwrap() == content, "replica and source differ");
        assert_eq!(hash(&restored.join("fio.img")), hash(&checked));
        if installed("fio") {
            let file = format!("--filename={}", restored.join("fio.img").display());
            let mut fio = fio_on(&["--ioengine=sync", "--verify_only", &file]);
            let output = fio.current_dir(&place).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    };
    equal(&chain.restore("latest", "from afar"));
    for part in PARTS.into_iter().filter(|part| *part != Part::Filter) {
        chain.stop(part);
    }
    let replica = chain.replica();
    let output = chain.place.path("restored");
    std::fs::create_dir(&output).unwrap();
    restore(&replica, "latest", &output).done();
    equal(&output);
    for (label, source) in &marks {
        let (at, to) = (format!("label:{label}"), output.join("data.img"));
        let [verb, flag, disk, name, into, force] =
            ["restore", "--at", "--disk", "data", "--output", "--force"].map(OsStr::new);
        cdp(&[verb, replica.as_os_str(), flag, OsStr::new(&at), disk, name, into, to.as_os_str(), force]).done();
        assert_eq!(hash(&output.join("data.img")), *source, "{label}");
    }
    let points = cdp(&["points".as_ref(), replica.as_os_str()]).done();
    check_gaps(&points, kills_of_filter);
    assert_eq!(cdp(&["verify".as_ref(), replica.as_os_str()]).done()["ok"], true);
}
