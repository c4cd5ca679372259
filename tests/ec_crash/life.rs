//! One array from its making to its last crash.

use std::fs::OpenOptions;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use longshore_reactor::sim::Random;
use serde_json::{Value, json};

use super::members::Members;
use super::served::{Daemon, Place, rpc, text};
use super::{FILES, K, M, N, PATIENCE, ROUNDS, Tally};

#[path = "heal.rs"]
mod heal;
#[path = "judge.rs"]
mod judge;
#[path = "mishaps.rs"]
mod mishaps;

/// What the array is called.
const NAME: &str = "E";
/// The largest request that a controller takes.
const LARGEST: u64 = 128 << 10;
/// The longest that load runs before a kill, in microseconds.
const LONGEST: u64 = 240_000;
/// The latest moment of a start at which it is killed, in microseconds.
const START: u64 = 60_000;

/// Whether a member is lost to the array.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// It must be in sync.
    None,
    /// It may be in sync, or not.
    Open,
    /// It is not, but may be brought up to date at any time.
    Stale,
    /// There is none until a device is given to the slot.
    Gone,
}

/// A kind of writes, with a part of the array and a journal of its own.
struct Kind {
    name: &'static str,
    options: String,
}

pub(crate) struct Life<'a> {
    number: u64,
    volatile: bool,
    place: Place,
    members: Members,
    /// By file.
    blocks: [u32; FILES],
    strip: u64,
    kinds: [Kind; 3],
    losses: [Loss; N],
    /// Strips were spoiled: a scrub has to find them before anybody reads.
    spoiled: bool,
    /// The present start has nothing to wait for.
    plain: bool,
    /// What happened so far, a line a round.
    story: Vec<String>,
    tally: &'a mut Tally,
}

impl Drop for Life<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let kept = self.place.dir.with_file_name(format!("ec-crash-failed-{}", self.number));
        let _ = std::fs::remove_dir_all(&kept);
        let _ = std::fs::rename(&self.place.dir, &kept);
        let log = std::fs::read_to_string(kept.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        eprintln!(
            "the last lines that daemons logged:\n{}\n\nmembers of {K}+{M}, strips of {} KiB, blocks {:?}, {}:\n{}\n\n\
             EC_CRASH={} runs it again, with the same choices; all files are in {}",
            lines[lines.len().saturating_sub(25)..].join("\n"),
            self.strip >> 10,
            self.blocks,
            if self.volatile { "power cuts" } else { "kills" },
            self.story.join("\n"),
            self.number,
            kept.display()
        );
    }
}

impl<'a> Life<'a> {
    pub(crate) fn new(life: u64, volatile: bool, cpu: String, tally: &'a mut Tally) -> Life<'a> {
        let mut r = Random::new(life.wrapping_mul(0x1_0001));
        let strip = 4096 << r.below(5);
        let mut blocks = match r.below(3) {
            0 => [512; FILES],
            1 => [4096; FILES],
            _ => std::array::from_fn(|_| if r.chance(500) { 512 } else { 4096 }),
        };
        // What fits any array.
        blocks[N] = 512;
        let kinds = [
            // a block or so each
            Kind { name: "small", options: "-q 16 -o 4K --offset 0 --span 4M".into() },
            // whole stripes, or as much of one as goes into a request
            Kind {
                name: "whole",
                options: format!("-q 4 -o {} --offset 4M --span 8M", (K as u64 * strip).min(LARGEST)),
            },
            // across the borders of strips and stripes
            Kind { name: "odd", options: format!("-q 8 -o {} --offset 12M --span 6M", strip + 4096) },
        ];
        let mut place = Place::new(&format!("ec-crash-{life}"), "", &[]);
        place.cpu = cpu;
        let members = Members::new(&place.dir);
        Life {
            number: life * ROUNDS,
            volatile,
            place,
            members,
            blocks,
            strip,
            kinds,
            losses: [Loss::None; N],
            spoiled: false,
            plain: false,
            story: Vec::new(),
            tally,
        }
    }

    /// So many rounds, each with a crash, and what must be so after the last.
    pub(crate) fn run(mut self, rounds: u64) {
        let first = self.number;
        for number in first..first + rounds {
            self.number = number;
            self.story.push(format!("{number}:"));
            let mut last = Instant::now();
            let mut took = || std::mem::replace(&mut last, Instant::now()).elapsed().as_millis();
            let daemon = self.start(number != first);
            let start = took();
            self.scrub(number.is_multiple_of(3));
            // What is missing is decoded before it is rebuilt, or is there again.
            let heal_first = self.random(4).chance(500);
            if heal_first {
                self.heal();
            }
            self.check(number.is_multiple_of(5));
            if !heal_first {
                self.heal();
            }
            let check = took();
            self.crash(daemon);
            self.note(&format!(
                "{start} ms to the start, {check} of checks and rebuilds, {} of load and crash",
                took()
            ));
        }
        self.story.push("end:".into());
        if std::env::var("EC_CRASH_STORY").is_ok() {
            println!("{}", self.story.join("\n"));
        }
        self.end();
    }

    fn note(&mut self, what: &str) {
        let line = self.story.last_mut().expect("a round");
        line.push_str(&format!(" {what};"));
    }

    /// Chance of the present round, for one purpose.
    fn random(&self, purpose: u64) -> Random {
        Random::new(self.number.wrapping_mul(0x100).wrapping_add(purpose))
    }

    fn lost(&self) -> usize {
        self.losses.iter().filter(|l| **l != Loss::None).count()
    }

    /// The calls that make the device of a member.
    fn device(&self, slot: usize, seed: u64) -> Vec<Value> {
        let number = self.members.files[slot];
        let (below, above) = (format!("F{number}"), format!("V{number}"));
        let file = json!({"method": "bdev_uring_create", "params": {
            "name": below, "filename": self.members.path(slot), "block_size": self.blocks[number]}});
        let layer = json!({"method": "bdev_volatile_create", "params": {
            "name": above, "base_bdev_name": below, "seed": seed}});
        // In this order the array cannot be found on the device below by RPC, either.
        if self.volatile { vec![layer, file] } else { vec![file] }
    }

    /// The device that a slot's member is, or, last, that stands by.
    fn name(&self, slot: usize) -> String {
        format!("{}{}", if self.volatile { "V" } else { "F" }, self.members.files[slot])
    }

    fn configure(&self, make: bool, r: &mut Random) {
        let mut config = Vec::new();
        // Absent members are not waited for: those that are there are all in the configuration.
        config.push(json!({"method": "bdev_ec_set_options", "params": {"assemble_timeout_sec": 0}}));
        for slot in (0..FILES).filter(|&slot| self.members.path(slot).exists()) {
            config.extend(self.device(slot, r.bits() >> 16));
        }
        if r.chance(500) {
            // Devices before their layers.
            config[1..].sort_by_key(|call| call["method"] != "bdev_uring_create");
        }
        if make {
            let bases: Vec<String> = (0..N).map(|slot| self.name(slot)).collect();
            config.push(json!({"method": "bdev_ec_create", "params": {"name": NAME, "data_chunk_count": K,
                "parity_chunk_count": M, "strip_size_kb": self.strip >> 10, "base_bdevs": bases}}));
        }
        config.push(json!({"method": "bdev_wait_for_examine"}));
        let entries: Vec<String> = config.iter().map(Value::to_string).collect();
        self.place.configure(&entries.join(",\n"), &[NAME]);
    }

    // ------------------------------------------------------------ starts

    fn launch(&self) -> Daemon {
        let log = OpenOptions::new().create(true).append(true).open(self.place.dir.join("log")).expect("a log");
        self.place.launch(&self.place.cpu, &[], Stdio::from(log))
    }

    /// Starts a daemon on what the crash and other mishaps left.
    fn start(&mut self, made: bool) -> Daemon {
        self.members.settle();
        if made {
            self.befall();
        }
        if super::replayed().is_some() {
            self.members.keep(&self.place.dir.join("before"));
        }
        let mut r = self.random(2);
        // Not while the array is made: what is half made is made again, by whoever asked for it.
        let again = if r.chance(300) { 1 + r.below(2) } else { 0 };
        for _ in 0..again {
            self.configure(!made, &mut r);
            let daemon = self.launch();
            std::thread::sleep(Duration::from_micros(r.below(START)));
            drop(daemon); // SIGKILL
            self.members.settle();
            self.tally.starts_killed += 1;
        }
        self.note(&format!("{again} starts killed"));
        self.configure(!made, &mut r);
        let began = Instant::now();
        let mut daemon = self.launch();
        if let Err(said) = daemon.ready() {
            panic!("the array does not start: {said}");
        }
        let took = began.elapsed();
        self.note(&format!("ready after {} ms", took.as_millis()));
        let before = self.losses;
        self.find_spare();
        self.compare_states();
        if self.plain && made && before == self.losses {
            self.tally.starts.push(took);
        }
        daemon
    }

    fn call(&self, method: &str, params: Value) -> Value {
        self.ask(method, params).unwrap_or_else(|e| panic!("{method}: {e}"))
    }

    /// The result of a call, or its error.
    fn ask(&self, method: &str, params: Value) -> Result<Value, Value> {
        rpc(&self.place, method, &params)
    }

    /// The array takes the members that it must take, and no other.
    fn compare_states(&mut self) {
        for (slot, state) in self.states().into_iter().enumerate() {
            match (self.losses[slot], state == "normal") {
                (Loss::None, false) => panic!("the member in slot {slot} is {state}, and nothing has befallen it"),
                (Loss::Gone, true) => panic!("the member in slot {slot} counts as in sync, which it cannot be"),
                (Loss::Open | Loss::Stale, true) => self.losses[slot] = Loss::None,
                (Loss::Open, false) => self.losses[slot] = Loss::Stale,
                (Loss::None, true) | (Loss::Stale | Loss::Gone, false) => {}
            }
        }
    }

    /// What the array says of the member in `slot`.
    fn member(&self, slot: usize) -> Value {
        self.call("bdev_ec_get_bdevs", json!({"name": NAME}))[0]["base_bdevs"][slot].take()
    }

    fn states(&self) -> [String; N] {
        let array = self.call("bdev_ec_get_bdevs", json!({"name": NAME}));
        std::array::from_fn(|slot| array[0]["base_bdevs"][slot]["state"].as_str().expect("a state").to_owned())
    }

    // ------------------------------------------------------------ load and crash

    fn load(&self, kind: &Kind, r: &mut Random) -> Child {
        let (fua, flush) = ([0, 5, 30][r.below(3) as usize], [4, 16, 64][r.below(3) as usize]);
        let options = format!(
            "{} --json -w verify -t 60 --fua {fua} --flush-every {flush} --seed {} --verify-journal",
            kind.options, self.number
        );
        let mut c = self.place.perf("", &options);
        c.arg(self.journal(kind)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the load starts")
    }

    /// Writes until the daemon is killed; on the way a member may go.
    fn crash(&mut self, daemon: Daemon) {
        let mut r = self.random(3);
        let first = r.below(3) as usize;
        let which = if r.chance(400) { vec![first, (first + 1) % 3] } else { vec![first] };
        let written = |life: &Life, i: usize| life.journal(&life.kinds[i]).metadata().map_or(0, |m| m.len());
        let before: Vec<u64> = which.iter().map(|&i| written(self, i).max(32)).collect();
        let mut loads: Vec<Child> = which.iter().map(|&i| self.load(&self.kinds[i], &mut r)).collect();
        let began = Instant::now();
        while which.iter().zip(&before).any(|(&i, before)| written(self, i) <= *before) {
            if began.elapsed() > PATIENCE || loads.iter_mut().any(|l| l.try_wait().expect("wait").is_some()) {
                drop(daemon);
                panic!("no writes: {}", loads.into_iter().map(end).collect::<Vec<_>>().join("\n"));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        let mut left = Duration::from_micros(r.below(LONGEST));
        let slot = r.below(N as u64) as usize;
        let mut chance = self.random(6);
        let spare = chance.chance(500) && self.offer_spare();
        if (spare || r.chance(300)) && self.losses[slot] == Loss::None && self.lost() < M {
            let part = left.mul_f64(0.5);
            std::thread::sleep(part);
            self.remove(slot);
            left -= part;
            if spare {
                // Else the kill may come while it joins.
                if chance.chance(500) {
                    self.wait_for_spare(slot);
                }
                left = Duration::from_micros(chance.below(LONGEST));
            } else if r.chance(500) {
                let part = left.mul_f64(0.2);
                std::thread::sleep(part);
                self.plug_in(slot);
                left -= part;
            }
        }
        std::thread::sleep(left);
        let ended = loads.iter_mut().any(|l| l.try_wait().expect("wait").is_some());
        drop(daemon); // SIGKILL
        let said: Vec<String> = loads.into_iter().map(end).collect();
        assert!(!ended, "the load ended before the kill:\n{}", said.join("\n"));
        for said in said {
            assert!(said.starts_with("3 "), "the load has to find its target gone, and nothing wrong before:\n{said}");
        }
        self.tally.kills += 1;
    }
}

/// Status and words of a load that ends.
fn end(load: Child) -> String {
    let id = load.id();
    let (tx, rx) = std::sync::mpsc::channel();
    std::thread::spawn(move || tx.send(load.wait_with_output()));
    let out = rx.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("the load {id} does not end")).expect("output");
    format!("{} {}", out.status.code().unwrap_or(-1), text(&out))
}
