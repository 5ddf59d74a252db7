//! Thousands of effects in an order that a seed gives.

use super::{Driven, Kind, create, directory, pieces};
use crate::dice::{Dice, count};
use cdp_core::journal::{Effect, EffectId, FileId};
use cdp_core::media::{MediaErrorKind, Memory, Storage};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Room that is reserved in files that are written like segments.
const RESERVED: u64 = 4 << 20;

/// A file as it must be in the end.
struct Model {
    file: FileId,
    bytes: Vec<u8>,
    /// How long it is, if longer than what was written.
    reserved: u64,
    underway: Vec<EffectId>,
}

struct Game {
    dice: Dice,
    driven: Driven,
    storage: Arc<dyn Storage>,
    open: BTreeMap<String, Model>,
    closed: BTreeMap<String, Vec<u8>>,
    /// Effects of no file, and whether they must succeed.
    others: Vec<(EffectId, Option<MediaErrorKind>)>,
    names: u64,
}

pub(super) fn thousands_of_effects_in_random_order_give_one_completion_each_and_the_right_bytes(kind: Kind) {
    for seed in 0..count("CDP_DRIVER_SEEDS", 3) {
        let (_place, storage) = directory();
        let Some(driven) = Driven::new(kind, storage.clone()) else { return };
        play(driven, storage, seed);
    }
}

pub(super) fn the_same_on_storage_without_descriptors(kind: Kind) {
    for seed in 0..count("CDP_DRIVER_SEEDS", 3) {
        let storage = Arc::new(Memory::new());
        let Some(driven) = Driven::new(kind, storage.clone()) else { return };
        play(driven, storage, seed);
    }
}

fn play(driven: Driven, storage: Arc<dyn Storage>, seed: u64) {
    let (dice, open, closed) = (Dice::new(seed), BTreeMap::new(), BTreeMap::new());
    let mut game = Game { dice, driven, storage, open, closed, others: Vec::new(), names: 0 };
    for _ in 0..2000 {
        game.step();
    }
    println!("seed {seed}: {} effects", game.driven.next);
    while let Some(name) = game.open.keys().next().cloned() {
        game.close(&name);
    }
    game.settle_others();
    for (name, expected) in &game.closed {
        let found = read(game.storage.as_ref(), name);
        assert!(found == *expected, "seed {seed}: {name} is not what was written");
    }
    let names: Vec<_> = game.closed.keys().cloned().collect();
    assert_eq!(game.storage.list("").unwrap(), names, "seed {seed}");
    assert!(game.driven.underway.is_empty());
}

fn read(storage: &dyn Storage, name: &str) -> Vec<u8> {
    let file = storage.open(name, false).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(0, &mut bytes).unwrap();
    bytes
}

impl Game {
    fn step(&mut self) {
        match self.dice.below(100) {
            0..6 if self.open.len() < 5 => self.create(),
            0..70 => self.on_a_file(Self::write),
            70..82 => self.on_a_file(|game, name| {
                let file = game.open[name].file;
                game.start_on(name, Effect::Sync { file });
            }),
            82..84 => self.on_a_file(Self::cut),
            84..87 => self.on_a_file(Self::close),
            87..89 => self.rename(),
            89..91 => self.remove(),
            91..93 => self.refused(),
            93..95 => {
                let id = self.driven.start(Effect::SyncDir { name: String::new() });
                self.others.push((id, None));
            }
            _ => self.on_a_file(Self::settle),
        }
    }

    fn on_a_file(&mut self, step: impl Fn(&mut Self, &str)) {
        let count = self.open.len() as u64;
        if count > 0 {
            let at = self.dice.below(count) as usize;
            let name = self.open.keys().nth(at).unwrap().clone();
            step(self, &name);
        }
    }

    fn new_name(&mut self) -> String {
        self.names += 1;
        format!("{:05}", self.names)
    }

    fn create(&mut self) {
        let (file, reserved) = (self.driven.new_file(), if self.dice.permille(700) { RESERVED } else { 0 });
        // One that takes another's place, now and then.
        let old = self.closed.keys().next().cloned().filter(|_| self.dice.permille(200));
        let replace = old.is_some();
        let name = old.unwrap_or_else(|| self.new_name());
        self.closed.remove(&name);
        self.driven
            .run(Effect::Create { file, name: name.clone(), preallocate: reserved, keep_free: 1, replace })
            .unwrap();
        self.open.insert(name, Model { file, bytes: Vec::new(), reserved, underway: Vec::new() });
    }

    /// Mostly what follows, at once with what is under way; now and then something in the middle anew.
    fn write(&mut self, name: &str) {
        let length = match self.dice.below(4) {
            0 => 1 + self.dice.below(3000),
            1 => 512 * (1 + self.dice.below(100)),
            2 => (64 << 10) + 512 * self.dice.below(3) - 512,
            _ => 4096 * (1 + self.dice.below(64)),
        };
        let again = self.dice.permille(150);
        if again {
            self.settle(name);
        }
        let model = &self.open[name];
        let (file, end) = (model.file, model.bytes.len());
        let offset = if again { self.dice.below(end as u64 + 1) as usize } else { end };
        let data = pieces(&mut self.dice, length as usize);
        let model = self.open.get_mut(name).unwrap();
        model.bytes.resize(end.max(offset + length as usize), 0);
        model.bytes[offset..offset + length as usize].copy_from_slice(&data.concat());
        self.start_on(name, Effect::Write { file, offset: offset as u64, data });
        if again {
            // Who writes the same place again waits for this.
            self.settle(name);
        }
    }

    fn start_on(&mut self, name: &str, effect: Effect) {
        let id = self.driven.start(effect);
        self.open.get_mut(name).unwrap().underway.push(id);
    }

    /// Waits for everything of a file.
    fn settle(&mut self, name: &str) {
        for id in std::mem::take(&mut self.open.get_mut(name).unwrap().underway) {
            self.driven.wait(id).unwrap();
        }
    }

    fn cut(&mut self, name: &str) {
        self.settle(name);
        let model = &self.open[name];
        let (file, length) = (model.file, self.dice.below(model.bytes.len() as u64 + 1000));
        self.start_on(name, Effect::SetLength { file, length });
        self.settle(name);
        let model = self.open.get_mut(name).unwrap();
        model.bytes.resize(length as usize, 0);
        model.reserved = 0;
    }

    fn close(&mut self, name: &str) {
        self.settle(name);
        let Model { file, mut bytes, reserved, .. } = self.open.remove(name).unwrap();
        self.driven.run(Effect::Close { file }).unwrap();
        bytes.resize(bytes.len().max(reserved as usize), 0);
        assert!(read(self.storage.as_ref(), name) == bytes, "{name} is not what was written");
        self.closed.insert(name.to_owned(), bytes);
    }

    fn rename(&mut self) {
        let Some((from, bytes)) = self.closed.pop_first() else { return };
        let to = self.new_name();
        self.driven.run(Effect::Rename { from, to: to.clone() }).unwrap();
        self.closed.insert(to, bytes);
    }

    fn remove(&mut self) {
        let Some((name, _)) = self.closed.pop_first() else { return };
        self.driven.run(Effect::Remove { name }).unwrap();
    }

    fn refused(&mut self) {
        let nobody = FileId(1_000_000 + self.names);
        let gone = "gone".to_owned();
        let (effect, kind) = match self.dice.below(4) {
            0 => (Effect::Sync { file: nobody }, MediaErrorKind::NotFound),
            1 => (Effect::Rename { from: gone.clone(), to: gone }, MediaErrorKind::NotFound),
            2 => {
                let data = pieces(&mut self.dice, 5000);
                (Effect::Write { file: nobody, offset: 0, data }, MediaErrorKind::NotFound)
            }
            _ => match self.open.keys().next() {
                Some(taken) => (create(nobody, taken, 0), MediaErrorKind::Exists),
                None => return,
            },
        };
        let id = self.driven.start(effect);
        self.others.push((id, Some(kind)));
    }

    fn settle_others(&mut self) {
        for (id, refused) in std::mem::take(&mut self.others) {
            assert_eq!(self.driven.wait(id).err().map(|error| error.kind), refused);
        }
    }
}
