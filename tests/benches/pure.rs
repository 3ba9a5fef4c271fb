//! Micro-benchmarks of what knows no kernel: parsing, rewriting, checksums, scheduling, states, the scaling policy.
//!
//! They run as host code, so they compare one version of a function with another; what a function costs in the kernel's
//! programs is what `lb-bench packet` measures.

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Range,
    time::Duration,
};

use criterion::{BatchSize, BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime};
use lb_ebpf::{
    abi::{Address, FlowKey, Lifetimes, Port, Proto, Scheduler},
    checksum::Delta,
    nat::{self, Hops},
    packet::{Headers, PacketWindow},
    sched,
    tcp_state::{Direction, Flags, Seen, State},
};
use lb_tests::frames::{self, ACK, FIN, SYN, Side};
use lb_user::{
    control::{
        BackendName, Command, ContainerId, Controller, CpuLoad, Event, Family, Scaling, Settings, Sighting, Terms,
        Timestamp,
        policy::{self, Bounds, Law, Memory},
    },
    datapath::layout::{self, Share},
};

const CLIENT: Side = ([198, 18, 1, 2], 40_000);
const FRONTEND: Side = ([198, 18, 1, 1], 80);
const BACKEND: Side = ([198, 18, 2, 11], 5000);

/// A frame in memory.
struct Frame(Vec<u8>);

// SAFETY: the window is the vector, which nobody resizes while it is looked at.
unsafe impl PacketWindow for Frame {
    fn start(&self) -> usize {
        self.0.as_ptr().expose_provenance()
    }
    fn end(&self) -> usize {
        self.start() + self.0.len()
    }
    fn frame_len(&self) -> usize {
        self.0.len()
    }
}

impl Frame {
    fn tcp() -> Self {
        Self(frames::tcp(CLIENT, FRONTEND, ACK, 1001, 5001, &[7; 10]))
    }

    fn udp() -> Self {
        Self(frames::udp(CLIENT, FRONTEND, &[7; 18]))
    }

    fn headers(&self) -> Headers {
        Headers::parse(self).expect("the frame is whole")
    }
}

fn key(from: Side, to: Side, proto: Proto) -> FlowKey {
    let (source, destination) = (Address::from_v4(from.0), Address::from_v4(to.0));
    FlowKey::new(source, Port::new(from.1), destination, Port::new(to.1), proto)
}

fn parse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    for (name, frame) in [("tcp", Frame::tcp()), ("udp", Frame::udp())] {
        group.bench_function(name, |bencher| bencher.iter(|| Headers::parse(black_box(&frame))));
    }
    let mut stranger = Frame::tcp();
    stranger.0[12..14].copy_from_slice(&[0x08, 0x06]);
    group.bench_function("arp", |bencher| bencher.iter(|| Headers::parse(black_box(&stranger))));
    let half = Frame(Frame::tcp().0[..40].to_vec());
    group.bench_function("cut short", |bencher| bencher.iter(|| Headers::parse(black_box(&half))));
    group.finish();
}

/// Where IPv4 keeps what every router changes: from the time to live to the checksum.
const TTL_AND_CHECK: Range<usize> = 22..26;

/// To the backend and back again, so that every iteration meets the frame that it expects.
fn rewrite(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rewrite");
    for (name, frame, proto) in
        [("tcp, there and back", Frame::tcp(), Proto::Tcp), ("udp, there and back", Frame::udp(), Proto::Udp)]
    {
        let (before, after) = (key(CLIENT, FRONTEND, proto), key(CLIENT, BACKEND, proto));
        let there = frame.headers();
        let back = Headers { key: after, ..there };
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let there = nat::apply_whole(&frame, black_box(&there), black_box(&after), Hops::ONE);
                let back = nat::apply_whole(&frame, black_box(&back), black_box(&before), Hops::ONE);
                (there, back)
            });
        });
        let mut expected = if proto == Proto::Tcp { Frame::tcp().0 } else { Frame::udp().0 };
        expected[TTL_AND_CHECK].copy_from_slice(&frame.0[TTL_AND_CHECK]); // a router's work, which is not undone
        assert_eq!(frame.0, expected, "{name}");
    }
    group.finish();
}

fn checksum(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    let (old, new) = (u32::from_ne_bytes(FRONTEND.0), u32::from_ne_bytes(BACKEND.0));
    group.bench_function("an address and a port", |bencher| {
        bencher.iter(|| {
            let delta = Delta::ZERO.replace32(black_box(old), black_box(new));
            delta.replace16(black_box(FRONTEND.1), black_box(BACKEND.1)).apply(black_box(0x1234))
        });
    });
    group.bench_function("as the kernel's helpers take it", |bencher| {
        bencher.iter(|| Delta::ZERO.replace32(black_box(old), black_box(new)).wsum());
    });
    group.finish();
}

fn schedule(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("schedule");
    let connection = key(CLIENT, FRONTEND, Proto::Tcp);
    group.bench_function("hash of a client", |bencher| bencher.iter(|| sched::client_hash(black_box(&connection))));
    group.bench_function("hash of a connection", |bencher| bencher.iter(|| sched::tuple_hash(black_box(&connection))));
    for backends in [10_u32, 1_000] {
        let share = |number| Share {
            backend: number,
            endpoint: SocketAddr::new(IpAddr::V4(Ipv4Addr::from(0xc612_0800 + number)), 80),
            weight: 1 + number % 4,
        };
        let shares: Vec<Share> = (0..backends).map(share).collect();
        for scheduler in [Scheduler::Weighted, Scheduler::Maglev] {
            group.bench_function(format!("layout, {}, {backends} backends", scheduler.name()), |bencher| {
                bencher.iter(|| layout::lay_out(scheduler, black_box(&shares), layout::room(1)));
            });
        }
    }
    group.finish();
}

fn states(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("tcp state");
    let life = [
        (Direction::Ingress, SYN),
        (Direction::Egress, SYN | ACK),
        (Direction::Ingress, ACK),
        (Direction::Egress, ACK),
        (Direction::Ingress, FIN | ACK),
        (Direction::Egress, FIN | ACK),
    ];
    group.bench_function("one segment", |bencher| {
        bencher.iter(|| {
            let client = black_box(Seen(Seen::PROVEN)).after(Direction::Ingress, Flags(black_box(ACK)));
            State::of(client, black_box(Seen(Seen::ANSWERED)))
        });
    });
    group.bench_function("a connection of six segments, with lifetimes", |bencher| {
        bencher.iter(|| {
            let (mut client, mut backend, mut longest) = (Seen(0), Seen(0), 0);
            for (direction, flags) in black_box(life) {
                match direction {
                    Direction::Ingress => client = client.after(direction, Flags(flags)),
                    Direction::Egress => backend = backend.after(direction, Flags(flags)),
                }
                longest = longest.max(Lifetimes::DEFAULT.of(State::of(client, backend)));
            }
            longest
        });
    });
    group.finish();
}

fn law() -> Law {
    Law::new(Bounds::new(2, 1_000).expect("bounds in order"))
}

/// A load that swings within the range where nothing is to change, sample after sample.
fn steady(turn: u64) -> f64 {
    0.5 + (turn % 7) as f64 * 1e-5
}

fn policy_decides(group: &mut BenchmarkGroup<'_, WallTime>) {
    let law = law();
    let mut memory = Memory::default();
    let mut turn = 0_u64;
    group.bench_function("decide, windows full", |bencher| {
        bencher.iter(|| {
            turn += 1;
            policy::decide(&law, &mut memory, black_box(steady(turn)), 500, Timestamp::from_millis(turn * 1_000))
        });
    });
    group.bench_function("decide, the first sample", |bencher| {
        bencher.iter_batched_ref(
            Memory::default,
            |memory| policy::decide(&law, memory, black_box(0.9), 2, Timestamp::from_millis(1)),
            BatchSize::SmallInput,
        );
    });
}

/// Returns a controller all of whose backends are ready and published, and what time it is for it.
fn settled(backends: u32) -> (Controller, Timestamp) {
    let mut settings = Settings::new(Scaling::Auto(Law::new(Bounds::new(backends, 1_000).expect("bounds in order"))));
    // What is probed all the time is another benchmark's.
    settings.probe_interval = Duration::from_secs(1_000_000_000);
    let sighting = |ordinal: u32| Sighting {
        id: ContainerId(format!("{ordinal:012x}")),
        name: BackendName(format!("lb-default-{ordinal}")),
        ordinal,
        address: Some(IpAddr::V4(Ipv4Addr::from(0xac11_0000 + ordinal)).into()),
        running: true,
        created: u64::from(ordinal),
        outdated: false,
        terms: Terms::default(),
    };
    let mut controller = Controller::new(settings);
    let mut now = Timestamp::from_millis(1);
    let mut due = controller.handle(Event::Resynced((1..=backends).map(sighting).collect()), now);
    while !due.is_empty() {
        let mut next = Vec::new();
        for command in due {
            now = now + Duration::from_millis(1);
            next.extend(match command {
                Command::Probe { id, .. } => {
                    controller.handle(Event::BackendProbed { id, outcome: Ok([(Family::V4, Ok(()))].into()) }, now)
                }
                Command::Publish(publication) => {
                    controller.handle(Event::Published { generation: publication.generation }, now)
                }
                other => panic!("nothing else is to be done: {other:?}"),
            });
        }
        due = next;
    }
    assert_eq!(controller.snapshot(now).backends.len(), backends as usize);
    (controller, now)
}

fn controller_handles(group: &mut BenchmarkGroup<'_, WallTime>) {
    for backends in [10, 1_000] {
        let (mut controller, mut now) = settled(backends);
        let mut turn = 0;
        group.bench_function(format!("a load sample, {backends} backends"), |bencher| {
            bencher.iter(|| {
                turn += 1;
                now = now + Duration::from_secs(1);
                // The smallest number of backends is the number that there is, so that little load changes nothing.
                let load = CpuLoad::new(black_box(steady(turn) / 100.0)).expect("a share");
                let commands = controller.handle(Event::LoadSampled(load), now);
                assert!(commands.is_empty(), "nothing is to be done: {commands:?}");
                controller.take_news()
            });
        });
    }
}

fn control(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("control");
    policy_decides(&mut group);
    controller_handles(&mut group);
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = parse, rewrite, checksum, schedule, states, control
}
criterion_main!(benches);
