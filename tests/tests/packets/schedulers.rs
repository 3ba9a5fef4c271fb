//! Every scheduler's law, over both front doors: connections begin, and where they go is compared with what the law says.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use lb_ebpf::{
    abi::{Address, Backend, BackendId, FlowKey, FrontendId, Lifetimes, Port, Proto, Scheduler, Slot},
    sched::{client_hash, tuple_hash},
    tcp_state::State,
    verdict::{DropReason, Event},
};
use lb_tests::{
    frames::{ACK, RST, SYN, Side, tcp, udp},
    object::{Door, Object},
    suite::{Case, Need},
};
use lb_user::datapath::{
    clock,
    layout::{Share, lay_out},
};

use super::{BACKENDS, CLIENT, DATAGRAMS, FRONT_DOORS, FRONTEND, client, close, dropped, forwarded, object, open};

/// Places of a hash table in these tests.
const PLACES: u32 = 1_021;

pub fn cases() -> Vec<Case> {
    let case = |name, run| Case { name, needs: &[Need::Root], run };
    vec![
        case("every_program_passes_the_verifier", every_program_passes_the_verifier),
        case("weights_are_exact_over_every_cycle", weights_are_exact_over_every_cycle),
        case("two_processors_keep_the_weights", two_processors_keep_the_weights),
        case("the_fewest_connections_for_the_weight_get_the_next", the_fewest_connections_for_the_weight_get_the_next),
        case("a_sweep_sets_right_what_is_under_way", a_sweep_sets_right_what_is_under_way),
        case("the_busier_of_two_is_never_chosen", the_busier_of_two_is_never_chosen),
        case("a_client_hashes_to_one_backend", a_client_hashes_to_one_backend),
        case("another_machine_hashes_alike", another_machine_hashes_alike),
        case("an_unknown_scheduler_is_round_robin", an_unknown_scheduler_is_round_robin),
        case("a_silent_backend_is_passed_over_by_every_scheduler", a_silent_backend_is_passed_over_by_every_scheduler),
        case("a_client_keeps_its_backend_for_a_while", a_client_keeps_its_backend_for_a_while),
        case("nobody_keeps_a_backend_that_is_gone_or_leaves", nobody_keeps_a_backend_that_is_gone_or_leaves),
        case("a_client_keeps_a_backend_at_each_frontend", a_client_keeps_a_backend_at_each_frontend),
        case("a_full_backend_is_passed_over_by_every_scheduler", a_full_backend_is_passed_over_by_every_scheduler),
        case("a_syn_waits_while_all_backends_are_full", a_syn_waits_while_all_backends_are_full),
        case("one_of_many_that_has_room_is_found", one_of_many_that_has_room_is_found),
        case("a_client_does_not_keep_a_full_backend", a_client_does_not_keep_a_full_backend),
        case("nobody_is_full_while_nobody_counts", nobody_is_full_while_nobody_counts),
        case("connections_without_an_answer_keep_nobody_out", connections_without_an_answer_keep_nobody_out),
        case("what_another_replaces_is_held_no_longer", what_another_replaces_is_held_no_longer),
        case("a_client_goes_on_waiting_where_all_others_are_full", a_client_goes_on_waiting_where_all_others_are_full),
        case("every_backend_is_found_whatever_its_weight", every_backend_is_found_whatever_its_weight),
        case("nobody_keeps_a_backend_that_it_could_not_reach", nobody_keeps_a_backend_that_it_could_not_reach),
        case("who_cannot_be_its_own_server_has_another", who_cannot_be_its_own_server_has_another),
    ]
}

/// The layout of the first backends with these weights, as the agent makes it.
fn layout(scheduler: Scheduler, weights: &[u32]) -> Vec<Slot> {
    let share = |((backend, weight), (ip, port)): ((BackendId, &u32), Side)| Share {
        backend,
        endpoint: SocketAddr::from((ip, port)),
        weight: *weight,
    };
    let shares: Vec<Share> = (0..).zip(weights).zip(BACKENDS).map(share).collect();
    lay_out(scheduler, &shares, PLACES)
}

/// An object whose first frontend has these backends.
fn scheduled(scheduler: Scheduler, weights: &[u32]) -> Object {
    let mut object = object();
    schedule(&mut object, scheduler, weights);
    object
}

/// Gives the first frontend these backends, none of which has a connection.
fn schedule(object: &mut Object, scheduler: Scheduler, weights: &[u32]) {
    object.lay_out(0, scheduler, 0, &layout(scheduler, weights));
    (0..3).for_each(|id| object.set_active(id, 0));
}

/// Returns a client whom no other door has seen.
fn at_door(door: Door, port: u16) -> Side {
    ([198, 18, 5, if door == Door::Xdp { 2 } else { 1 }], port)
}

/// Begins a connection and returns the number of its backend.
fn begin(object: &Object, door: Door, from: Side) -> BackendId {
    let to = forwarded(object, door, &tcp(from, FRONTEND, SYN, 1, 0, &[])).to;
    number(to)
}

fn number(at: Side) -> BackendId {
    BACKENDS.iter().position(|backend| *backend == at).expect("a backend") as BackendId
}

fn key(from: Side) -> FlowKey {
    let (client, frontend) = (Address::from_v4(from.0), Address::from_v4(FRONTEND.0));
    FlowKey::new(client, Port::new(from.1), frontend, Port::new(FRONTEND.1), Proto::Tcp)
}

/// What a layout has at the place of a hash: the hash's share of all numbers.
fn at(layout: &[Slot], hash: u32) -> BackendId {
    layout[((u64::from(hash) * layout.len() as u64) >> 32) as usize].backend
}

fn counted(chosen: impl IntoIterator<Item = BackendId>) -> BTreeMap<BackendId, u32> {
    chosen.into_iter().fold(BTreeMap::new(), |mut counts, id| {
        *counts.entry(id).or_default() += 1;
        counts
    })
}

/// Those of sockets choose backends as well, and are run by real sockets alone.
fn every_program_passes_the_verifier() {
    let mut ebpf = aya::EbpfLoader::new().load(lb_user::datapath::OBJECT).expect("the object loads");
    lb_user::datapath::doors::load_all(&mut ebpf).unwrap_or_else(|error| panic!("{error}"));
    let most = ebpf
        .programs()
        .filter_map(|(name, program)| Some((program.info().ok()?.verified_instruction_count()?, name.to_owned())));
    let most = most.max().expect("the kernel tells what it has verified");
    eprintln!("{most:?}");
    // The verifier of Linux 6.1 forgets more states: it follows twice as many instructions of the same program.
    let limit = if lb_user::datapath::doors::is_by_link(lb_user::config::TcAttach::Auto) { 500_000 } else { 800_000 };
    assert!(most.0 < limit, "{most:?}: the verifier follows a million instructions, and other kernels some more");
}

fn weights_are_exact_over_every_cycle() {
    let smooth: [BackendId; 7] = [0, 0, 1, 0, 2, 0, 0];
    let object = scheduled(Scheduler::Weighted, &[5, 1, 1]);
    for door in FRONT_DOORS {
        let chosen: Vec<_> = (0..21).map(|number| begin(&object, door, at_door(door, 10_000 + number))).collect();

        assert_eq!(chosen, smooth.repeat(3), "{door:?}");
    }
}

fn two_processors_keep_the_weights() {
    let object = scheduled(Scheduler::Weighted, &[3, 2, 1]);
    let object = &object;
    std::thread::scope(|scope| {
        for half in 0..2_u16 {
            scope.spawn(move || {
                (0..1500).for_each(|number| _ = begin(object, Door::Tc, client(10_000 + half * 20_000 + number)));
            });
        }
    });

    assert_eq!([0, 1, 2].map(|id| object.traffic(id).connections), [1500, 1000, 500]);
}

fn the_fewest_connections_for_the_weight_get_the_next() {
    let mut object = object();
    let active = |object: &Object| [0, 1, 2].map(|id| object.active(id));
    for door in FRONT_DOORS {
        schedule(&mut object, Scheduler::LeastConn, &[1, 1, 1]);
        let client = |port| at_door(door, port);
        for port in 0..6 {
            open(&object, door, client(10_000 + port), FRONTEND);
        }
        assert_eq!(active(&object), [2; 3], "{door:?}: equals take turns");

        let idle = number(open(&object, door, client(20_000), FRONTEND));
        close(&object, door, client(20_000), FRONTEND, BACKENDS[idle as usize]);
        assert_eq!(active(&object), [2; 3], "{door:?}: an end is seen");
        let ended = object.flow(client(10_000), FRONTEND, Proto::Tcp).expect("it is proven").backend;
        forwarded(&object, door, &tcp(client(10_000), FRONTEND, RST, 101, 0, &[]));
        assert_eq!(object.active(ended), 1, "{door:?}: and a reset");
        assert_eq!(begin(&object, door, client(30_000)), ended, "{door:?}");

        schedule(&mut object, Scheduler::LeastConn, &[1, 2, 5]);
        (0..80).for_each(|port| _ = begin(&object, door, client(40_000 + port)));
        assert_eq!(active(&object), [10, 20, 50], "{door:?}: by weight");
    }
}

fn a_sweep_sets_right_what_is_under_way() {
    let mut object = scheduled(Scheduler::LeastConn, &[1, 1, 1]);
    (0..30).for_each(|port| _ = begin(&object, Door::Tc, client(10_000 + port)));
    assert_eq!([0, 1, 2].map(|id| object.active(id)), [10; 3]);

    // Of those of the last one, seven were pushed out.
    object.set_active(2, 3);
    assert_eq!(counted((0..7).map(|port| begin(&object, Door::Tc, client(20_000 + port)))), [(2, 7)].into());

    // More ends may be seen than beginnings: that is none, and not a great many.
    object.set_active(1, -1);
    assert_eq!(begin(&object, Door::Tc, client(30_000)), 1);
}

fn the_busier_of_two_is_never_chosen() {
    let mut object = object();
    for door in FRONT_DOORS {
        schedule(&mut object, Scheduler::RandomTwo, &[1, 1, 1]);
        let even = counted((0..300).map(|port| begin(&object, door, at_door(door, 10_000 + port))));
        assert!(even.values().all(|times| (90..=110).contains(times)), "{door:?}: {even:?}");

        object.set_active(1, 1000);
        let others = counted((0..300).map(|port| begin(&object, door, at_door(door, 20_000 + port))));
        assert_eq!(others.keys().copied().collect::<Vec<_>>(), [0, 2], "{door:?}");

        schedule(&mut object, Scheduler::RandomTwo, &[1, 1, 8]);
        let weighted = counted((0..500).map(|port| begin(&object, door, at_door(door, 30_000 + port))));
        assert!((370..=430).contains(&weighted[&2]), "{door:?}: {weighted:?}");
    }
}

fn a_client_hashes_to_one_backend() {
    let layout = layout(Scheduler::SourceHash, &[1, 1, 1]);
    let object = scheduled(Scheduler::SourceHash, &[1, 1, 1]);
    for door in FRONT_DOORS {
        let mut all = Vec::new();
        for host in 0..60 {
            for port in [1024, 40_000, 65_000].map(|port| port + u16::from(door == Door::Xdp)) {
                let from = ([198, 18, 7, host], port);
                let chosen = begin(&object, door, from);
                assert_eq!(chosen, at(&layout, client_hash(&key(from))), "{door:?} {from:?}");
                all.push(chosen);
            }
        }
        assert!(counted(all).values().all(|times| (30..=90).contains(times)), "{door:?}");
    }
}

fn another_machine_hashes_alike() {
    let told = layout(Scheduler::Maglev, &[2, 1, 1]);
    let here = scheduled(Scheduler::Maglev, &[2, 1, 1]);
    // Another machine has given the same backends other numbers, and knows nothing of the connections here.
    let mut there = object();
    (0..3).for_each(|id| there.backend(20 + (id + 1) % 3, 0, 7, BACKENDS[id as usize]));
    let renumbered = |slot: &Slot| Slot { backend: 20 + (slot.backend + 1) % 3, ..*slot };
    let layout: Vec<Slot> = told.iter().map(renumbered).collect();
    there.lay_out(0, Scheduler::Maglev, 0, &layout);
    for door in FRONT_DOORS {
        let mut all = Vec::new();
        for port in 0..400 {
            let from = at_door(door, 10_000 + port);
            let chosen = begin(&here, door, from);
            assert_eq!(chosen, at(&told, tuple_hash(&key(from))), "{door:?} {from:?}");
            assert_eq!(begin(&there, door, from), chosen, "{door:?} {from:?}");
            all.push(chosen);
        }
        let all = counted(all);
        assert!((160..=240).contains(&all[&0]) && all[&1].abs_diff(all[&2]) <= 50, "{door:?}: {all:?}");
    }

    // One backend is gone. Those that are known here stay; machines that know none move its own, and hardly any other.
    let left: Vec<Slot> = self::layout(Scheduler::Maglev, &[2, 1]).iter().map(renumbered).collect();
    there.lay_out(0, Scheduler::Maglev, 0, &left);
    let (mut others, mut moved) = (0, 0);
    for port in 0..600 {
        let from = at_door(Door::Tc, 30_000 + port);
        let (before, after) = (begin(&here, Door::Tc, from), begin(&there, Door::Tc, from));
        assert_ne!(after, 2);
        others += u32::from(before != 2);
        moved += u32::from(before != 2 && before != after);
    }
    assert!(moved * 20 <= others, "{moved} of {others} others have moved, too");
}

fn an_unknown_scheduler_is_round_robin() {
    let mut object = object();
    object.set_scheduler_number(0, 200);
    for door in FRONT_DOORS {
        let chosen: Vec<_> = (0..6).map(|number| begin(&object, door, at_door(door, 10_000 + number))).collect();

        assert_eq!(chosen, [0, 1, 2, 0, 1, 2], "{door:?}");
    }
}

fn a_silent_backend_is_passed_over_by_every_scheduler() {
    let mut object = object();
    let at = |number: FrontendId| (FRONTEND.0, 8000 + number as u16);
    let frontends: Vec<(FrontendId, Scheduler)> = (10..).zip(Scheduler::ALL).collect();
    for &(id, scheduler) in &frontends {
        (0..3).for_each(|number| object.backend(id * 10 + number, id, 1, BACKENDS[number as usize]));
        object.serve(id, at(id), Proto::Tcp, &[]);
        let own = |slot: Slot| Slot { backend: id * 10 + slot.backend, ..slot };
        let layout: Vec<Slot> = layout(scheduler, &[1, 1, 1]).into_iter().map(own).collect();
        // Even a client that keeps its backend is not kept by a dead one.
        object.lay_out(id, scheduler, 60_000, &layout);
    }
    let syn = |id| tcp(CLIENT, at(id), SYN, 100, 0, &[]);
    let first: Vec<Side> = frontends.iter().map(|(id, _)| forwarded(&object, Door::Tc, &syn(*id)).to).collect();
    std::thread::sleep(Duration::from_millis(2_600));

    for (&(id, scheduler), first) in frontends.iter().zip(&first) {
        let second = forwarded(&object, Door::Tc, &syn(id)).to;
        assert_ne!(second, *first, "{scheduler:?}");
        let next = forwarded(&object, Door::Tc, &tcp(client(50_000), at(id), SYN, 1, 0, &[])).to;
        assert_eq!(next, second, "{scheduler:?}: the client keeps the other");
    }
    assert_eq!(object.count(Event::Rescheduled.index()), frontends.len() as u64);
}

fn a_client_keeps_its_backend_for_a_while() {
    let mut object = object();
    object.lay_out(0, Scheduler::RoundRobin, 1_500, &layout(Scheduler::RoundRobin, &[1, 1, 1]));
    let begin = |door, from| begin(&object, door, from);
    let own = FRONT_DOORS.map(|door| begin(door, at_door(door, 10_000)));
    assert_eq!(own, [0, 1], "others take their turns");
    // Each connection counts anew from its beginning.
    for port in 1..5 {
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(FRONT_DOORS.map(|door| begin(door, at_door(door, 10_000 + port))), own);
    }

    std::thread::sleep(Duration::from_millis(1_600));
    let next = FRONT_DOORS.map(|door| begin(door, at_door(door, 20_000)));
    assert_eq!(next, [2, 0], "after that, they are scheduled like all others");
}

fn nobody_keeps_a_backend_that_is_gone_or_leaves() {
    let mut object = object();
    for door in FRONT_DOORS {
        let client = |port| at_door(door, port);
        (0..3).for_each(|id| object.backend(id, 0, 1, BACKENDS[id as usize]));
        let slots = layout(Scheduler::RoundRobin, &[1, 1, 1]);
        object.lay_out(0, Scheduler::RoundRobin, 60_000, &slots);
        let first = begin(&object, door, client(10_000));

        object.leave(first);
        let left: Vec<Slot> = slots.iter().filter(|slot| slot.backend != first).copied().collect();
        object.lay_out(0, Scheduler::RoundRobin, 60_000, &left);
        let second = begin(&object, door, client(10_001));
        assert_ne!(second, first, "{door:?}: it drains");
        assert_eq!(begin(&object, door, client(10_000)), first, "{door:?}: and keeps the connections that it has");
        assert_eq!(begin(&object, door, client(10_002)), second, "{door:?}: the other is kept instead");

        object.free(second);
        let third = begin(&object, door, client(10_003));
        assert!(third != second && third != first, "{door:?}: it is gone");
        // The number is another server's.
        object.backend(third, 0, 2, BACKENDS[third as usize]);
        object.lay_out(0, Scheduler::RoundRobin, 60_000, &[Slot { backend: 9, weight: 1 }]);
        object.backend(9, 0, 1, BACKENDS[first as usize]);
        assert_eq!(begin(&object, door, client(10_004)), first, "{door:?}: nothing of the former one is inherited");
    }
}

fn a_client_keeps_a_backend_at_each_frontend() {
    let mut object = object();
    let slots = layout(Scheduler::RoundRobin, &[1, 1, 1]);
    object.lay_out(0, Scheduler::RoundRobin, 60_000, &slots);
    let datagram_slots: Vec<Slot> = slots.iter().map(|slot| Slot { backend: slot.backend + 3, ..*slot }).collect();
    object.lay_out(1, Scheduler::RoundRobin, 60_000, &datagram_slots);
    // One turn ahead at the other frontend.
    forwarded(&object, Door::Tc, &udp(([198, 18, 1, 9], 1), DATAGRAMS, b"q"));
    for door in FRONT_DOORS {
        let datagram = |port| number(forwarded(&object, door, &udp(at_door(door, port), DATAGRAMS, b"q")).to);
        let own = (begin(&object, door, at_door(door, 10_000)), datagram(10_000));
        assert_ne!(own.0, own.1, "{door:?}");

        for port in 10_001..10_004 {
            assert_eq!((begin(&object, door, at_door(door, port)), datagram(port)), own, "{door:?}");
        }
        // The end of a connection does not end that.
        let backend = open(&object, door, at_door(door, 20_000), FRONTEND);
        close(&object, door, at_door(door, 20_000), FRONTEND, backend);
        assert_eq!((number(backend), begin(&object, door, at_door(door, 20_001))), (own.0, own.0), "{door:?}");
    }
}

/// Says that a sweep was right now, and how many connections each backend of the first frontend may have.
fn limit(object: &mut Object, max_connections: u32) {
    object.sweep_at(clock::ktime());
    object.limit(0, max_connections);
}

fn full_syn(object: &Object, door: Door, from: Side) {
    dropped(object, door, &tcp(from, FRONTEND, SYN, 1, 0, &[]), DropReason::BackendsFull);
}

fn a_full_backend_is_passed_over_by_every_scheduler() {
    for scheduler in Scheduler::ALL {
        for door in FRONT_DOORS {
            let mut object = object();
            schedule(&mut object, scheduler, &[1, 1, 1]);
            limit(&mut object, 40);
            object.set_active(1, 40);
            object.set_active(2, 30);

            let opened = |host| number(open(&object, door, ([198, 18, 7, host], 10_000), FRONTEND));
            let chosen = counted((0..50).map(opened));
            assert_eq!(chosen, [(0, 40), (2, 10)].into(), "{scheduler:?}, {door:?}: each gets what it has room for");
            full_syn(&object, door, client(30_000));
        }
    }
}

fn a_syn_waits_while_all_backends_are_full() {
    for door in FRONT_DOORS {
        let mut object = object();
        schedule(&mut object, Scheduler::RoundRobin, &[1, 1, 1]);
        limit(&mut object, 2);
        let opened: Vec<(Side, Side)> = (0..6)
            .map(|number| {
                let from = at_door(door, 10_000 + number);
                (from, open(&object, door, from, FRONTEND))
            })
            .collect();
        let waiting = at_door(door, 20_000);
        full_syn(&object, door, waiting);
        full_syn(&object, door, waiting);
        assert_eq!(object.count(DropReason::BackendsFull.index()), 2, "{door:?}");
        // Those that are under way go on.
        forwarded(&object, door, &tcp(opened[3].0, FRONTEND, ACK, 101, 901, b"more"));

        let (from, backend) = opened[4];
        close(&object, door, from, FRONTEND, backend);
        assert_eq!(open(&object, door, waiting, FRONTEND), backend, "{door:?}: the place that became free");
        full_syn(&object, door, at_door(door, 20_001));

        limit(&mut object, 3);
        open(&object, door, at_door(door, 20_001), FRONTEND);
        object.limit(0, 0);
        (0..30).for_each(|number| _ = begin(&object, door, at_door(door, 30_000 + number)));
    }
}

fn one_of_many_that_has_room_is_found() {
    const MANY: BackendId = 60;
    for scheduler in Scheduler::ALL {
        let mut object = object();
        let slots: Vec<Slot> = (10..10 + MANY).map(|backend| Slot { backend, weight: 1 }).collect();
        for id in 10..10 + MANY {
            object.backend(id, 0, 1, ([198, 18, 2, id as u8], 5000));
            object.set_active(id, 5);
        }
        object.lay_out(0, scheduler, 0, &slots);
        limit(&mut object, 5);
        for (number, free) in (0..).zip([10, 33, 69]) {
            object.set_active(free, 4);
            let to = open(&object, Door::Tc, client(10_000 + number), FRONTEND);
            assert_eq!(to.0[3], free as u8, "{scheduler:?}");
            full_syn(&object, Door::Tc, client(20_000 + number));
        }
    }
}

fn a_client_does_not_keep_a_full_backend() {
    let mut object = object();
    for door in FRONT_DOORS {
        object.lay_out(0, Scheduler::RoundRobin, 60_000, &layout(Scheduler::RoundRobin, &[1, 1, 1]));
        limit(&mut object, 10);
        let own = begin(&object, door, at_door(door, 10_000));
        assert_eq!(begin(&object, door, at_door(door, 10_001)), own);

        object.set_active(own, 10);
        let other = begin(&object, door, at_door(door, 10_002));
        assert_ne!(other, own, "{door:?}");
        object.set_active(own, 0);
        assert_eq!(begin(&object, door, at_door(door, 10_003)), other, "{door:?}: it keeps the other from then on");
    }
}

fn nobody_is_full_while_nobody_counts() {
    let mut object = object();
    schedule(&mut object, Scheduler::LeastConn, &[1, 1, 1]);
    object.limit(0, 5);
    (0..3).for_each(|id| object.set_active(id, 50));
    begin(&object, Door::Tc, client(10_000));

    // An agent that swept a moment ago may be followed by another.
    object.sweep_at(clock::ktime() - 50_000_000_000);
    full_syn(&object, Door::Tc, client(10_001));
    object.sweep_at(clock::ktime() - 70_000_000_000);
    begin(&object, Door::Tc, client(10_002));
}

/// Whoever forges addresses gets as far as this.
fn connections_without_an_answer_keep_nobody_out() {
    for scheduler in Scheduler::ALL {
        for door in FRONT_DOORS {
            let mut object = object();
            schedule(&mut object, scheduler, &[1, 1, 1]);
            limit(&mut object, 2);
            let syn = |host| begin(&object, door, ([198, 18, 8, host], 10_000));
            let begun = counted((0..60).map(syn));
            assert_eq!(begun.values().sum::<u32>(), 60, "{scheduler:?}, {door:?}");
            assert_eq!([0, 1, 2].map(|id| object.held(id)), [0; 3]);
            assert_eq!((0..3).map(|id| object.active(id)).sum::<i64>(), 60, "a load they are");

            let opened = |host| number(open(&object, door, ([198, 18, 7, host], 10_000), FRONTEND));
            assert_eq!(counted((0..6).map(opened)), [(0, 2), (1, 2), (2, 2)].into(), "{scheduler:?}, {door:?}");
            full_syn(&object, door, client(30_000));
        }
    }
}

fn what_another_replaces_is_held_no_longer() {
    let mut object = object();
    object.live_for(Lifetimes::DEFAULT.with(State::Established, 1));
    for door in FRONT_DOORS {
        let from = at_door(door, 10_000);
        open(&object, door, from, FRONTEND);
        let held = |object: &Object| (0..3).map(|id| object.held(id)).sum::<i64>();
        assert_eq!(held(&object), 1, "{door:?}");
        std::thread::sleep(Duration::from_millis(1_200));

        begin(&object, door, from);
        assert_eq!(held(&object), 0, "{door:?}: it had idled out");
        (0..3).for_each(|id| object.set_active(id, 0));
    }

    // The number is another server's: what went with the former one is not that one's.
    let backend = number(open(&object, Door::Tc, client(20_000), FRONTEND));
    object.backend(backend, 0, 2, BACKENDS[backend as usize]);
    object.set_active(backend, 5);
    begin(&object, Door::Tc, client(20_000));
    assert_eq!(object.held(backend), 5);
}

fn a_client_goes_on_waiting_where_all_others_are_full() {
    let mut object = object();
    limit(&mut object, 4);
    let first = FRONT_DOORS.map(|door| begin(&object, door, at_door(door, 10_000)));
    std::thread::sleep(Duration::from_millis(2_600));
    for id in 0..3 {
        object.set_active(id, 4);
    }

    let second = FRONT_DOORS.map(|door| begin(&object, door, at_door(door, 10_000)));
    assert_eq!(second, first, "its backend may answer yet");
    assert_eq!(object.count(Event::Rescheduled.index()), 0);
    assert_eq!(object.count(Event::SynRetransmitted.index()), 2);
    assert_eq!(object.count(DropReason::BackendsFull.index()), 0);
    assert_eq!((0..3).map(|id| object.traffic(id).connections).sum::<u64>(), 2, "it is the same connection");

    std::thread::sleep(Duration::from_millis(2_600));
    let free = (0..3).find(|id| !first.contains(id)).unwrap();
    object.set_active(free, 3);
    let third = FRONT_DOORS.map(|door| begin(&object, door, at_door(door, 10_000)));
    assert_eq!(third, [free; 2], "a place became free");
    assert_eq!(object.count(Event::Rescheduled.index()), 2);
}

fn every_backend_is_found_whatever_its_weight() {
    let schedulers = [Scheduler::Weighted, Scheduler::RandomTwo, Scheduler::SourceHash, Scheduler::Maglev];
    for scheduler in schedulers {
        let mut object = object();
        schedule(&mut object, scheduler, &[256, 1, 1]);
        limit(&mut object, 20);
        object.set_active(0, 20);
        let opened = |host| number(open(&object, Door::Tc, ([198, 18, 7, host], 10_000), FRONTEND));
        assert_eq!(counted((0..40).map(opened)), [(1, 20), (2, 20)].into(), "{scheduler:?}");
        full_syn(&object, Door::Tc, client(30_000));
    }

    // And where the heavy one does not answer.
    let mut objects = schedulers.map(|scheduler| scheduled(scheduler, &[256, 1, 1]));
    let clients: Vec<Side> = (0..20).map(|host| ([198, 18, 7, host], 10_000)).collect();
    let all = |object: &Object| clients.iter().map(|from| begin(object, Door::Tc, *from)).collect::<Vec<_>>();
    let first: Vec<_> = objects.iter().map(all).collect();
    std::thread::sleep(Duration::from_millis(2_600));
    for (object, first) in objects.iter_mut().zip(first) {
        assert!(all(object).iter().zip(first).all(|(second, first)| *second != first));
    }
}

fn who_cannot_be_its_own_server_has_another() {
    for scheduler in Scheduler::ALL {
        for affinity_ms in [0, 60_000] {
            let mut object = object();
            object.lay_out(0, scheduler, affinity_ms, &layout(scheduler, &[1, 1, 1]));
            let (ip, port) = BACKENDS[0];
            object.write_backend(0, Backend::new(0, 1, Address::from_v4(ip), Port::new(port)));
            for port in 10_000..10_006 {
                assert_ne!(begin(&object, Door::Tc, (ip, port)), 0, "{scheduler:?}");
            }
        }
    }
}

/// No port is left for the client at the only backend that there was.
fn nobody_keeps_a_backend_that_it_could_not_reach() {
    for door in FRONT_DOORS {
        let mut object = object();
        let only = [Slot { backend: 0, weight: 1 }];
        object.lay_out(0, Scheduler::RoundRobin, 60_000, &only);
        let from = at_door(door, 10_000);
        let syn = tcp(from, FRONTEND, SYN, 1, 0, &[]);
        object.take_all_ports(BACKENDS[0], from, clock::ktime());
        dropped(&object, door, &syn, DropReason::NoSourcePort);

        object.lay_out(0, Scheduler::RoundRobin, 60_000, &layout(Scheduler::RoundRobin, &[1, 1, 1]));
        let others: Vec<_> = (0..3).map(|port| begin(&object, door, at_door(door, 20_000 + port))).collect();
        assert_eq!(others, [others[0]; 3], "{door:?}");
        assert_ne!(others[0], 0, "{door:?}: its turn was the next one's");
    }
}
