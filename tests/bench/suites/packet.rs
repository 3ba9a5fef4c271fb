//! `packet`: what a packet costs in the programs, beside a program that does nothing and one that looks up once.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, anyhow, ensure};
use lb_ebpf::abi::FlowEntry;
use lb_tests::object::{Action, Door};

use crate::{
    bed::{Bed, Kind, Size},
    interrupt,
    record::{Metric, Values},
    session::{Session, caught},
    stats::Spread,
    yardstick::{Called, Yardstick, stay_on},
};

const SUITE: &str = "packet";
/// The name of the yardstick in tables.
pub const LOOKUP: &str = "one LRU look-up";
/// Packets of a measurement: a tenth of a second or so.
const TIMES: u32 = SLICE * SLICES;
/// Packets between two runs of the program that does nothing, so that the processor's moods meet both.
const SLICE: u32 = 50_000;
const SLICES: u32 = 10;
/// Runs before it, for caches and branch predictors.
const WARM_UP: u32 = 20_000;
/// Flows where their number is not what is looked at: enough that all backends and frontends are met.
const SOME_FLOWS: u32 = 16_384;

const KINDS: [(Door, Kind); 15] = [
    (Door::Xdp, Kind::Established),
    (Door::Xdp, Kind::NewSyn),
    (Door::Xdp, Kind::Datagram),
    (Door::Xdp, Kind::NotOurs),
    (Door::Xdp, Kind::Ipv6),
    (Door::Xdp, Kind::Dropped),
    (Door::Tc, Kind::Established),
    (Door::Tc, Kind::NewSyn),
    (Door::Tc, Kind::Datagram),
    (Door::Tc, Kind::NotOurs),
    (Door::Tc, Kind::Ipv6),
    (Door::Tc, Kind::Dropped),
    (Door::Reply, Kind::Reply),
    (Door::Reply, Kind::NotOurs),
    (Door::Local, Kind::NotOurs),
];
/// What is looked at where the number of something grows.
const GROWING: [(&str, Door, Kind); 3] = [
    ("XDP, established TCP", Door::Xdp, Kind::Established),
    ("TC, established TCP", Door::Tc, Kind::Established),
    ("TC, reply", Door::Reply, Kind::Reply),
];
const SYNS: (&str, Door, Kind) = ("XDP, new SYN", Door::Xdp, Kind::NewSyn);

/// Something that grows, with its sizes.
struct Growth {
    what: &'static str,
    sizes: Vec<(String, Bed)>,
}

/// Returns the name of what a size is compared with: the smallest.
pub fn reference(case: &str, system: &str) -> Option<&'static str> {
    let smallest = match case.rsplit_once(" by ") {
        Some((_, "flows")) => "1,000 flows",
        Some((_, "backends")) => "1 backends",
        Some((_, "frontends")) => "1 frontends",
        Some(_) | None => LOOKUP,
    };
    (system != smallest).then_some(smallest)
}

/// Runs the suite.
pub fn run(session: &mut Session) -> Result<()> {
    // On a thread of its own, which stays on its processor; nothing else shall.
    let outcome = thread::scope(|scope| scope.spawn(|| caught(|| measure(session))).join());
    if let Err(error) = outcome.unwrap_or_else(|_| Err(anyhow!("it panicked"))) {
        interrupt::check()?;
        session.leave_out(SUITE, "the rest", &format!("{error:#}"));
    }
    Ok(())
}

fn measure(session: &mut Session) -> Result<()> {
    let rounds = session.options.rounds;
    let growing = GROWING.len() * 11 + 2 * 4;
    session.expect(rounds as usize * (KINDS.len() + 1 + growing));
    session.say("packet: opening a million connections");
    stay_on(0)?;
    let mut yardstick = Yardstick::load(SOME_FLOWS * 2)?;
    let mut bed = Bed::new(Size { flows: SOME_FLOWS, frontends: 1, backends: 2 }, &mut yardstick)?;
    yardstick.fill_table((0..SOME_FLOWS).map(|flow| {
        let key = bed.key(flow);
        (key, FlowEntry::new(&key, (1, 1), 1, 0, 1))
    }))?;
    let mut growths = growths(&mut yardstick)?;
    for round in 1..=rounds {
        kinds(session, round, &mut bed, &mut yardstick)?;
        for growth in &mut growths {
            grow(session, round, growth, &mut yardstick)?;
        }
    }
    Ok(())
}

fn growths(yardstick: &mut Yardstick) -> Result<Vec<Growth>> {
    let some = Size { flows: SOME_FLOWS, frontends: 1, backends: 1 };
    let mut growths = Vec::new();
    for (what, numbers) in [
        ("flows", &[1_000, 100_000, 1_000_000][..]),
        ("backends", &[1, 10, 100, 1_000]),
        ("frontends", &[1, 10, 100, 1_000]),
    ] {
        let mut sizes = Vec::new();
        for &number in numbers {
            let size = match what {
                "flows" => Size { flows: number, ..some },
                "backends" => Size { backends: number, ..some },
                _ => Size { frontends: number, ..some },
            };
            interrupt::check()?;
            sizes.push((format!("{} {what}", thousands(number)), Bed::new(size, yardstick)?));
        }
        growths.push(Growth { what, sizes });
    }
    Ok(growths)
}

/// Returns what a packet costs beside one that is only laid, in ns.
fn net(door: Door, kind: Kind, bed: &mut Bed, yardstick: &mut Yardstick) -> Result<f64> {
    // Both programs take packets from the same row.
    yardstick.lay(bed.pattern(kind, 2 * (WARM_UP + TIMES)))?;
    let run = |times, yardstick: &mut Yardstick| bed.run(door, times, kind.expected(), yardstick);
    over_empty(door, run, yardstick).with_context(|| format!("{door:?}, {}", kind.name()))
}

/// Returns how much more a program takes per packet than one that does nothing: the median of slices, so that an
/// interrupt or a neighbour spoils a slice and no more.
fn over_empty(
    door: Door,
    run: impl Fn(u32, &mut Yardstick) -> Result<Duration>,
    yardstick: &mut Yardstick,
) -> Result<f64> {
    let (empty, nothing) = match door {
        Door::Xdp => (Called::XdpEmpty, Action::Pass),
        Door::Tc | Door::Reply | Door::Local => (Called::TcEmpty, Action::Route),
    };
    run(WARM_UP, yardstick)?;
    yardstick.run(empty, WARM_UP, nothing)?;
    let mut differences = Vec::new();
    for _ in 0..SLICES {
        let whole = run(SLICE, yardstick)?.as_nanos() as f64;
        differences.push(whole - yardstick.run(empty, SLICE, nothing)?.as_nanos() as f64);
    }
    Ok(Spread::of(differences).map_or(0.0, |spread| spread.median.max(0.0)))
}

fn kinds(session: &mut Session, round: u32, bed: &mut Bed, yardstick: &mut Yardstick) -> Result<()> {
    let mut lookup = 0.0;
    session.turn((SUITE, "by kind"), LOOKUP, round, || {
        yardstick.lay(bed.pattern(Kind::Established, TIMES))?;
        let missed = yardstick.sunk()?;
        lookup =
            over_empty(Door::Xdp, |times, yardstick| yardstick.run(Called::Lookup, times, Action::Pass), yardstick)?;
        ensure!(yardstick.sunk()? == missed, "the table that is looked into lacks flows");
        Ok(Values::from([(Metric::PerPacket, lookup), (Metric::Lookups, 1.0)]))
    })?;
    for (door, kind) in KINDS {
        let name = format!("{}, {}", door_name(door), kind.name());
        session.turn((SUITE, "by kind"), &name, round, || {
            let cost = net(door, kind, bed, yardstick)?;
            Ok(Values::from([(Metric::PerPacket, cost), (Metric::Lookups, cost / lookup.max(1.0))]))
        })?;
    }
    Ok(())
}

fn grow(session: &mut Session, round: u32, growth: &mut Growth, yardstick: &mut Yardstick) -> Result<()> {
    let syns = (growth.what != "flows").then_some(SYNS);
    for (name, door, kind) in GROWING.into_iter().chain(syns) {
        for (size, bed) in &mut growth.sizes {
            session.turn((SUITE, &format!("{name}, by {}", growth.what)), size, round, || {
                Ok(Values::from([(Metric::PerPacket, net(door, kind, bed, yardstick)?)]))
            })?;
        }
    }
    Ok(())
}

const fn door_name(door: Door) -> &'static str {
    match door {
        Door::Tc => "TC",
        Door::Xdp => "XDP",
        Door::Reply => "TC reply",
        Door::Local => "TC egress",
    }
}

/// Returns a number with commas.
pub fn thousands(number: u32) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_commas() {
        assert_eq!([1, 1_000, 100_000, 1_000_000].map(thousands), ["1", "1,000", "100,000", "1,000,000"]);
    }

    #[test]
    fn sizes_are_compared_with_the_smallest() {
        assert_eq!(reference("XDP, new SYN, by backends", "10 backends"), Some("1 backends"));
        assert_eq!(reference("XDP, established TCP, by flows", "1,000 flows"), None);
        assert_eq!(reference("by kind", "XDP, UDP"), Some(LOOKUP));
    }
}
