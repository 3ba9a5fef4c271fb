//! Random sequences of packets through the real object, and what a balancer as plain as can be would have done with them:
//! the same verdict, the same bytes, the same backend, no reply that two flows share, and counters that add up.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    process::ExitCode,
    time::{Duration, Instant},
};

use lb_ebpf::{
    abi::{BackendId, FrontendId, Proto},
    verdict::{DropReason, Event, PassReason},
};
use lb_tests::{
    frames::{ACK, FIN, RST, SYN, Side, judge, tcp, udp, with_ttl},
    model::{Carrier, Fate, FlowName, Model, Packet, Server, Sum},
    object::{Action, Door, Object},
    suite::{self, Case, Need},
};
use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner},
};

/// How long sequences are made.
const BUDGET: Duration = Duration::from_secs(6);
/// For longer than this, the model's time would not stand still.
const STANDSTILL: Duration = Duration::from_millis(900);

const FRONT: [u8; 4] = [198, 18, 1, 1];
const HOST: [u8; 4] = [198, 18, 2, 1];
const FRONTENDS: [(Side, Carrier, &[BackendId]); 4] = [
    ((FRONT, 80), Carrier::Tcp, &[0, 1, 2]),
    ((FRONT, 81), Carrier::Tcp, &[3, 4]),
    ((FRONT, 53), Carrier::Udp, &[5, 6]),
    ((FRONT, 54), Carrier::Udp, &[7]),
];
/// Some servers stand behind two frontends, so that their replies to a client could be taken for each other.
const BACKENDS: [(FrontendId, Side); 8] = [
    (0, ([198, 18, 2, 11], 5000)),
    (0, ([198, 18, 2, 12], 5000)),
    (0, ([198, 18, 2, 13], 5001)),
    (1, ([198, 18, 2, 11], 5000)),
    (1, ([198, 18, 2, 12], 5000)),
    (2, ([198, 18, 2, 11], 5000)),
    (2, ([198, 18, 2, 12], 5353)),
    (3, ([198, 18, 2, 11], 5000)),
];
/// Nobody's.
const ELSEWHERE: Side = (FRONT, 82);
const CLIENTS: usize = 4;
const EVENTS: [Event; 6] = [
    Event::Proven,
    Event::FlowTableFull,
    Event::SynRetransmitted,
    Event::OrphanReply,
    Event::Rescheduled,
    Event::OutOfWindow,
];

fn main() -> ExitCode {
    suite::run(vec![Case {
        name: "the_object_does_what_the_model_does",
        needs: &[Need::Root],
        run: the_object_does_what_the_model_does,
    }])
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    /// A client sends.
    Client {
        door: Door,
        client: usize,
        frontend: usize,
        flags: u8,
        sequence: Number,
        acknowledgement: Number,
        len: usize,
    },
    /// The backend of a client's flow sends, or, where there is none, any.
    Backend { client: usize, frontend: usize, stray: Option<usize>, flags: u8, acknowledgement: Number, len: usize },
    /// New connections go to some of a frontend's backends.
    Publish { frontend: usize, members: u8 },
    /// A backend is no more.
    Free(usize),
    /// Another takes its place.
    Replace(usize),
}

/// A sequence or acknowledgement number.
#[derive(Clone, Copy, Debug)]
enum Number {
    /// The one that the connection is at.
    Right,
    /// One so far ahead of it.
    Ahead(u32),
}

fn numbers() -> impl Strategy<Value = Number> {
    let far = prop::sample::select(vec![1, 1000, 1 << 16, 1 << 20, (1 << 24) - 1, 1 << 24, 1 << 31, u32::MAX]);
    prop_oneof![4 => Just(Number::Right), 1 => far.prop_map(Number::Ahead)]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let from_client = prop::sample::select(vec![
        SYN,
        SYN,
        SYN,
        ACK,
        ACK,
        ACK,
        FIN | ACK,
        FIN | ACK,
        RST,
        RST | ACK,
        FIN,
        SYN | ACK,
        SYN | FIN,
        SYN | RST,
        0,
    ]);
    let from_backend = prop::sample::select(vec![
        SYN | ACK,
        SYN | ACK,
        SYN | ACK,
        ACK,
        ACK,
        FIN | ACK,
        FIN | ACK,
        RST,
        RST | ACK,
        SYN,
        FIN,
        SYN | FIN | ACK,
        0,
    ]);
    let from_late = prop::sample::select(vec![ACK, FIN | ACK, RST, SYN | ACK]);
    let door = prop_oneof![2 => Just(Door::Tc), 1 => Just(Door::Xdp)];
    let stray = prop_oneof![6 => Just(None), 1 => (0..BACKENDS.len()).prop_map(Some)];
    let (clients, frontends) = (0..CLIENTS, prop_oneof![12 => 0..FRONTENDS.len(), 1 => Just(FRONTENDS.len())]);
    let client = (door, clients.clone(), frontends, from_client, numbers(), numbers(), 0..40_usize).prop_map(
        |(door, client, frontend, flags, sequence, acknowledgement, len)| Step::Client {
            door,
            client,
            frontend,
            flags,
            sequence,
            acknowledgement,
            len,
        },
    );
    let backend = (clients, 0..FRONTENDS.len(), stray, from_backend, numbers(), 0..40_usize).prop_map(
        |(client, frontend, stray, flags, acknowledgement, len)| Step::Backend {
            client,
            frontend,
            stray,
            flags,
            acknowledgement,
            len,
        },
    );
    let publish = (0..FRONTENDS.len(), any::<u8>()).prop_map(|(frontend, members)| Step::Publish { frontend, members });
    // A whole connection, or a part of one: by chance alone, few would come so far.
    let connection = (0..CLIENTS, 0..2_usize, 1..=STORY.len()).prop_map(|(client, frontend, len)| {
        STORY[..len].iter().map(|part| part.step(client, frontend)).collect::<Vec<_>>()
    });
    // What comes late, of a backend that the client had before.
    let late = (0..CLIENTS, 0..3_usize, from_late).prop_map(|(client, stray, flags)| {
        vec![Step::Backend { client, frontend: 0, stray: Some(stray), flags, acknowledgement: Number::Right, len: 0 }]
    });
    let one = |step: Step| vec![step];
    let steps = prop_oneof![
        30 => client.prop_map(one),
        20 => backend.prop_map(one),
        15 => connection,
        5 => late,
        2 => publish.prop_map(one),
        1 => (0..BACKENDS.len()).prop_map(Step::Free).prop_map(one),
        2 => (0..BACKENDS.len()).prop_map(Step::Replace).prop_map(one),
    ];
    prop::collection::vec(steps, 1..80).prop_map(|steps| steps.concat())
}

/// A segment of a connection: of its client, or of its backend.
#[derive(Clone, Copy)]
enum Part {
    Asks(u8),
    Answers(u8),
}

/// A connection from its first segment to its last.
const STORY: [Part; 8] = [
    Part::Asks(SYN),
    Part::Answers(SYN | ACK),
    Part::Asks(ACK),
    Part::Answers(ACK),
    Part::Asks(FIN | ACK),
    Part::Answers(FIN | ACK),
    Part::Asks(ACK),
    Part::Asks(SYN),
];

impl Part {
    const fn step(self, client: usize, frontend: usize) -> Step {
        let (right, len) = (Number::Right, 0);
        match self {
            Self::Asks(flags) => {
                let door = Door::Tc;
                Step::Client { door, client, frontend, flags, sequence: right, acknowledgement: right, len }
            }
            Self::Answers(flags) => Step::Backend { client, frontend, stray: None, flags, acknowledgement: right, len },
        }
    }
}

fn the_object_does_what_the_model_does() {
    let seed = std::env::var("LB_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_126_u64);
    eprintln!("LB_SEED={seed}");
    let bytes: Vec<u8> = seed.to_le_bytes().repeat(4);
    let config = Config { cases: 20, max_shrink_iters: 200, failure_persistence: None, ..Config::default() };
    let mut rounds = TestRunner::new_with_rng(config.clone(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let world = RefCell::new(World::new());
    let begun = Instant::now();
    while begun.elapsed() < BUDGET {
        // A runner counts its cases once and for all.
        let mut round = TestRunner::new_with_rng(config.clone(), rounds.new_rng());
        let outcome = round.run(&steps(), |steps| world.borrow_mut().live(&steps));
        if let Err(error) = outcome {
            panic!("LB_SEED={seed}: {error}");
        }
    }
    let world = world.into_inner();
    eprintln!("{} sequences, {} packets: {:?}", world.lives, world.packets, world.fates);
    // The mix meets everything that can happen while time stands still.
    for what in
        ["sent", "begun", "NotOurs", "NoFlow", "NoBackend", "BackendGone", "StaleSlot", "NotReply", "StaleReply"]
    {
        assert!(world.fates.get(what).is_some_and(|&times| times > 10), "{what} was hardly met: {:?}", world.fates);
    }
}

/// The object and its model, side by side.
struct World {
    object: Object,
    model: Model,
    lives: u32,
    packets: u64,
    fates: BTreeMap<String, u64>,
    /// What was passed or ended, and where it is counted.
    reasons: BTreeMap<u32, u64>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            object: Object::load_with(65_536, 65_536),
            model: Model::new(HOST),
            lives: 0,
            packets: 0,
            fates: BTreeMap::new(),
            reasons: BTreeMap::new(),
        };
        for (id, (frontend, at)) in (0..).zip(BACKENDS) {
            world.put(id, Server { frontend, at, generation: 1, alive: true });
        }
        for (id, (at, carrier, members)) in (0..).zip(FRONTENDS) {
            let proto = if carrier == Carrier::Tcp { Proto::Tcp } else { Proto::Udp };
            world.object.serve(id, at, proto, members);
            world.model.serve(at, carrier, id);
            world.model.publish(id, members);
        }
        world
    }

    fn put(&mut self, id: BackendId, server: Server) {
        self.object.backend(id, server.frontend, server.generation, server.at);
        if !server.alive {
            self.object.free(id);
        }
        self.model.put(id, server);
    }

    /// Goes through a sequence, with clients that nobody has met before.
    fn live(&mut self, steps: &[Step]) -> Result<(), TestCaseError> {
        self.lives += 1;
        self.reasons.clear();
        for id in 0..BACKENDS.len() as BackendId {
            let server = self.model.server(id);
            if !server.alive {
                self.put(id, Server { generation: server.generation + 1, alive: true, ..server });
            }
        }
        let before = self.counted();
        let begun = Instant::now();
        let outcome = steps.iter().enumerate().try_for_each(|(number, step)| {
            self.perform(step).map_err(|error| format!("step {number}, {step:?}: {error}"))
        });
        let outcome = outcome.and_then(|()| before.is_matched_by(&self.counted(), &self.reasons));
        if begun.elapsed() > STANDSTILL {
            *self = Self::new();
            return Err(TestCaseError::reject("time did not stand still"));
        }
        if let Err(error) = outcome {
            // The two have gone different ways.
            *self = Self::new();
            return Err(TestCaseError::fail(error));
        }
        for (frontend, (_, _, members)) in FRONTENDS.iter().enumerate() {
            self.publish(frontend, members);
        }
        Ok(())
    }

    /// Returns a client of this sequence; the last one is a backend itself.
    fn client(&self, number: usize) -> Side {
        let life = self.lives % 50_000;
        match number {
            3 => (BACKENDS[0].1.0, 40_000 + (life % 25_000) as u16),
            _ => ([198, 19, (life / 250) as u8, (1 + life % 250) as u8], 40_000 + number as u16),
        }
    }

    fn publish(&mut self, frontend: usize, members: &[BackendId]) {
        if self.model.slots(frontend as FrontendId) != members {
            self.object.publish(frontend as FrontendId, members);
            self.model.publish(frontend as FrontendId, members);
        }
    }

    fn perform(&mut self, step: &Step) -> Result<(), String> {
        match *step {
            Step::Publish { frontend, members } => {
                let all = FRONTENDS[frontend].2.iter().enumerate();
                let chosen: Vec<BackendId> =
                    all.filter(|(place, _)| members >> place & 1 == 1).map(|(_, &id)| id).collect();
                self.publish(frontend, &chosen);
                Ok(())
            }
            Step::Free(id) => {
                let server = self.model.server(id as BackendId);
                self.put(id as BackendId, Server { alive: false, ..server });
                Ok(())
            }
            Step::Replace(id) => {
                let server = self.model.server(id as BackendId);
                self.put(id as BackendId, Server { generation: server.generation + 1, alive: true, ..server });
                Ok(())
            }
            Step::Client { door, client, frontend, flags, sequence, acknowledgement, len } => {
                let (to, carrier) = FRONTENDS.get(frontend).map_or((ELSEWHERE, Carrier::Tcp), |at| (at.0, at.1));
                let from = self.client(client);
                let name = (from, to, carrier);
                let (expected, awaited) = self.model.numbers(name).unwrap_or((100, 900));
                let numbers = (number(expected, sequence), number(awaited, acknowledgement));
                self.send(door, name, flags, numbers, len)
            }
            Step::Backend { client, frontend, stray, flags, acknowledgement, len } => {
                let (to, carrier, _) = FRONTENDS[frontend];
                let name = (self.client(client), to, carrier);
                let (expected, _) = self.model.numbers(name).unwrap_or((100, 900));
                let (mut backend, seen) = self.model.behind(name).unwrap_or((BACKENDS[0].1, name.0));
                if let Some(stray) = stray {
                    backend = BACKENDS[stray].1;
                }
                self.send(Door::Reply, (backend, seen, carrier), flags, (900, number(expected, acknowledgement)), len)
            }
        }
    }

    fn send(
        &mut self,
        door: Door,
        (from, to, carrier): FlowName,
        flags: u8,
        (sequence, acknowledgement): (u32, u32),
        len: usize,
    ) -> Result<(), String> {
        self.packets += 1;
        let payload = vec![0x5a; len];
        let frame = |from: Side, to: Side| match carrier {
            Carrier::Tcp => tcp(from, to, flags, sequence, acknowledgement, &payload),
            Carrier::Udp => udp(from, to, &payload),
        };
        let sent = frame(from, to);
        let flags = if carrier == Carrier::Tcp { flags } else { 0 };
        let acknowledgement = if flags & ACK == 0 { 0 } else { acknowledgement };
        let packet = Packet { carrier, from, to, flags, sequence, acknowledgement, bytes: sent.len() as u64 };
        let fate = if door == Door::Reply { self.model.from_backend(&packet) } else { self.model.from_client(&packet) };

        let (did, came) = self.object.run(door, &sent);

        let (wanted, name) = match fate {
            Fate::Sent { .. } => (Action::Redirect, "sent".to_owned()),
            Fate::Begun { .. } => (Action::Redirect, "begun".to_owned()),
            Fate::Passed(reason) => (Action::Pass, format!("{reason:?}")),
            Fate::Dropped(reason) => (Action::Drop, format!("{reason:?}")),
        };
        *self.fates.entry(name).or_default() += 1;
        if did != wanted {
            return Err(format!(
                "{from:?} to {to:?} by {door:?}: {fate:?} was to be, {did:?} it was: {:?}",
                judge(&came)
            ));
        }
        let (seen, to, backend) = match fate {
            Fate::Sent { from, to, backend } => (from, to, backend),
            Fate::Begun { client, to, backend, .. } => {
                let port = judge(&came).ok_or("what was whole came out broken")?.from.1;
                self.model.drawn(&packet, &fate, port)?;
                ((client, port), to, backend)
            }
            Fate::Passed(reason) => {
                // What XDP passes is counted by TC, which sees it next.
                if door != Door::Xdp {
                    *self.reasons.entry(reason.index()).or_default() += 1;
                }
                return if came == sent { Ok(()) } else { Err("what was passed has changed".to_owned()) };
            }
            Fate::Dropped(reason) => {
                *self.reasons.entry(reason.index()).or_default() += 1;
                return Ok(());
            }
        };
        let mut wanted = with_ttl(frame(seen, to), 63);
        if door != Door::Reply {
            wanted[..12].copy_from_slice(&[6, 0, 0, 0, 0, backend as u8, 6, 0, 0, 0, 1, 0]);
        }
        let judged = judge(&came).ok_or("what was whole came out broken")?;
        if !judged.ip_sum || !judged.transport_sum {
            return Err(format!("a wrong checksum: {judged:?}"));
        }
        // A sum has two ways to write zero.
        let sums = if carrier == Carrier::Tcp { [24, 50] } else { [24, 40] };
        let without = |mut frame: Vec<u8>| {
            sums.iter().for_each(|&at| frame[at..at + 2].fill(0));
            frame
        };
        let (wanted, came) = (without(wanted), without(came));
        if wanted == came { Ok(()) } else { Err(format!("{wanted:02x?} was to be, {came:02x?} it was")) }
    }

    fn counted(&self) -> Counted {
        let sums = (0..BACKENDS.len() as BackendId).map(|id| {
            let real = self.object.traffic(id);
            let real = Sum {
                ingress: (real.ingress_packets, real.ingress_bytes),
                egress: (real.egress_packets, real.egress_bytes),
                connections: real.connections,
            };
            (real, self.model.sum(id))
        });
        let events = EVENTS.map(|event| (event, self.object.count(event.index()), self.model.events(event)));
        let passes = PassReason::ALL.iter().map(|reason| reason.index());
        let reasons = passes.chain(DropReason::ALL.iter().map(|reason| reason.index()));
        let reasons = reasons.map(|index| (index, self.object.count(index))).collect();
        Counted { sums: sums.collect(), events, reasons }
    }
}

const fn number(right: u32, wanted: Number) -> u32 {
    match wanted {
        Number::Right => right,
        Number::Ahead(by) => right.wrapping_add(by),
    }
}

/// What was counted: by the object, and by the model.
struct Counted {
    sums: Vec<(Sum, Sum)>,
    events: [(Event, u64, u64); EVENTS.len()],
    reasons: BTreeMap<u32, u64>,
}

impl Counted {
    /// Checks that both have counted the same since.
    fn is_matched_by(&self, after: &Self, reasons: &BTreeMap<u32, u64>) -> Result<(), String> {
        let grown = |before: Sum, after: Sum| {
            let pair = |before: (u64, u64), after: (u64, u64)| (after.0 - before.0, after.1 - before.1);
            let connections = after.connections - before.connections;
            (pair(before.ingress, after.ingress), pair(before.egress, after.egress), connections)
        };
        for (id, (before, after)) in self.sums.iter().zip(&after.sums).enumerate() {
            let (real, model) = (grown(before.0, after.0), grown(before.1, after.1));
            if real != model {
                return Err(format!("backend {id} has counted {real:?}, the model {model:?}"));
            }
        }
        for (before, after) in self.events.iter().zip(&after.events) {
            let (real, model) = (after.1 - before.1, after.2 - before.2);
            if real != model {
                return Err(format!("{:?} was counted {real} times, by the model {model} times", before.0));
            }
        }
        for (index, count) in &after.reasons {
            let (real, model) = (count - self.reasons[index], reasons.get(index).copied().unwrap_or_default());
            if real != model {
                return Err(format!("reason {index} was counted {real} times, by the model {model} times"));
            }
        }
        Ok(())
    }
}
