//! The ABI, byte by byte: what one version of the agent writes, the kernel object and other versions read.

use lb_ebpf::abi::{
    Address, AffinityEntry, AffinityKey, AgentRecord, Backend, Endpoint, FlowEntry, FlowKey, FragmentEntry,
    FragmentKey, Frontend, Guard, HandOff, Handshakes, Histogram, LATENCY_BUCKETS, Lifetimes, LocalFlow, LocalKey,
    NETNS_HERE, Port, Proto, RateKey, RateLimit, ReplyEntry, Scheduler, Slot, SlotRange, Source, Tally, Traffic, Wake,
    map,
};
use lb_ebpf::tcp_state::State;

fn bytes<T: aya::Pod>(value: &T) -> Vec<u8> {
    // SAFETY: a `Pod` has no padding but what is named, so every byte is written.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }.to_vec()
}

fn mapped(last: u8) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 18, 1, last]
}

fn address(last: u8) -> Address {
    Address::from_v4([198, 18, 1, last])
}

fn key() -> FlowKey {
    FlowKey::new(address(2), Port::new(40_000), address(1), Port::new(80), Proto::Tcp)
}

#[test]
fn an_endpoint_is_address_port_protocol() {
    let endpoint = Endpoint::new(address(1), Port::new(80), Proto::Udp);

    assert_eq!(bytes(&endpoint), [&mapped(1)[..], &[0, 80], &[17, 0]].concat());
}

#[test]
fn a_flow_key_is_source_destination_ports_protocol() {
    assert_eq!(bytes(&key()), [&mapped(2)[..], &mapped(1), &[0x9c, 0x40], &[0, 80], &[6, 0, 0, 0]].concat());
}

#[test]
fn a_frontend_is_a_slot_range_in_one_word_and_how_to_choose() {
    let range = SlotRange { base: 7, len: 3 };
    let (word, former): (u64, u64) = (7 << 32 | 3, 4 << 32 | 2);
    let plain = Frontend::new(range, Scheduler::RoundRobin);
    assert_eq!(bytes(&plain), [&word.to_ne_bytes()[..], &[0; 24]].concat());

    let numbers = Scheduler::ALL.map(|scheduler| (scheduler.name(), scheduler as u8));
    let expected = ["round-robin", "weighted", "least-conn", "random-two", "source-hash", "maglev"];
    assert_eq!(numbers.to_vec(), expected.into_iter().zip(0..).collect::<Vec<_>>());
    let all = Frontend::new(range, Scheduler::Maglev).keeping_clients(90_000).limited_to(700).rolling(2);
    let all = all.after(SlotRange { base: 4, len: 2 });
    let numbers = [u32::from_ne_bytes([5, 0, 0, 0]), 90_000, 700, 2].map(u32::to_ne_bytes).concat();
    assert_eq!(bytes(&all), [&word.to_ne_bytes()[..], &former.to_ne_bytes(), &numbers].concat());
    assert_eq!((all.roll(), all.places()), (SlotRange { base: 10, len: 2 }, SlotRange { base: 7, len: 5 }));
    assert_eq!((plain.roll(), plain.places()), (range, range), "a layout may have each backend once");

    assert_eq!(bytes(&Slot { backend: 9, weight: 3 }), [9_u32.to_ne_bytes(), 3_u32.to_ne_bytes()].concat());
}

#[test]
fn a_wake_is_of_a_backend_and_its_generation() {
    assert_eq!(bytes(&Wake { backend: 7, generation: 5 }), [7_u32.to_ne_bytes(), 5_u32.to_ne_bytes()].concat());
}

#[test]
fn a_tally_is_what_has_begun_and_what_is_held() {
    assert_eq!(bytes(&Tally { active: 7, held: 5 }), [7_u64.to_ne_bytes(), 5_u64.to_ne_bytes()].concat());
}

#[test]
fn a_kept_backend_is_of_a_client_at_a_frontend() {
    assert_eq!(bytes(&AffinityKey::new(address(2), 5)), [&mapped(2)[..], &5_u32.to_ne_bytes()].concat());

    let entry = AffinityEntry { seen: 77, backend: 3, generation: 4 };
    let parts: [&[u8]; 3] = [&77_u64.to_ne_bytes(), &3_u32.to_ne_bytes(), &4_u32.to_ne_bytes()];
    assert_eq!(bytes(&entry), parts.concat());
}

#[test]
fn a_backend_has_its_parts_where_they_are_documented() {
    let backend = Backend::new(5, 9, address(3), Port::new(5000))
        .reached_by(HandOff::Peer, 42, [1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1])
        .beside(address(1))
        .taking_xdp()
        .leaving()
        .hiding_clients()
        .asleep()
        .listening_in(6);

    let parts: [&[u8]; 12] = [
        &mapped(3),
        &mapped(1),
        &5_u32.to_ne_bytes(),
        &9_u32.to_ne_bytes(),
        &42_u32.to_ne_bytes(),
        &5000_u16.to_be_bytes(),
        &[1, 1],
        &[1, 2, 3, 4, 5, 6],
        &[6, 5, 4, 3, 2, 1],
        &[15],
        &[0],
        &7_u16.to_ne_bytes(),
    ];
    assert_eq!(bytes(&backend), parts.concat());
    assert_eq!(backend.netns(), Some(6));
    assert_eq!(backend.listening_in(0).netns(), Some(0), "a number like others");
    assert_eq!(backend.listening_in(0xffff).netns(), None, "there is no room for it");
    assert_eq!(backend.listening_in(NETNS_HERE).netns(), None, "it says something else");
    assert_eq!(bytes(&backend.listening_here())[62..], 0xffff_u16.to_ne_bytes());
    assert_eq!(backend.listening_here().netns(), Some(NETNS_HERE));
}

#[test]
fn hand_offs_have_numbers_that_stay() {
    let numbers = [HandOff::Routing, HandOff::Peer, HandOff::Neighbour, HandOff::Local].map(|hand_off| hand_off as u8);
    assert_eq!(numbers, [0, 1, 2, 3]);
    assert_eq!(HandOff::from_number(3), HandOff::Local);
    assert_eq!(HandOff::from_number(4), HandOff::Routing, "what no version knows is the kernel's");
}

#[test]
fn a_flow_has_its_parts_where_they_are_documented() {
    let mut flow = FlowEntry::new(&key(), (3, 4), 7, 0x10, 77).seen_as(Port::new(40_000));
    flow.awaited_ack = 901;
    flow.egress = 2;

    let parts: [&[u8]; 9] = [
        &77_u64.to_ne_bytes(),
        &3_u32.to_ne_bytes(),
        &4_u32.to_ne_bytes(),
        &901_u32.to_ne_bytes(),
        &7_u32.to_ne_bytes(),
        &key().tag().to_ne_bytes(),
        &[0x9c, 0x40],
        &[0x10],
        &[2],
    ];
    assert_eq!(bytes(&flow), parts.concat());
}

#[test]
fn a_reply_half_has_its_parts_where_they_are_documented() {
    let mut reply = ReplyEntry::new(&key().reversed(), key(), (3, 4, 7), 101, 77);
    (reply.flags, reply.request, reply.requested_at) = (1, 2, 78);

    let parts: [&[u8]; 11] = [
        &77_u64.to_ne_bytes(),
        &bytes(&key()),
        &3_u32.to_ne_bytes(),
        &4_u32.to_ne_bytes(),
        &7_u32.to_ne_bytes(),
        &101_u32.to_ne_bytes(),
        &key().reversed().tag().to_ne_bytes(),
        &[1],
        &[2],
        &[0; 2],
        &78_u64.to_ne_bytes(),
    ];
    assert_eq!(bytes(&reply), parts.concat());
}

#[test]
fn fragments_have_their_parts_where_they_are_documented() {
    let known_by = FragmentKey::of_v4(address(1), address(2), 0x1234, Proto::Udp);
    let parts: [&[u8]; 5] = [&mapped(1), &mapped(2), &0x1234_u32.to_ne_bytes(), &[17], &[0; 3]];
    assert_eq!(bytes(&known_by), parts.concat());

    let [one, other] = [1, 2].map(|last| Address::from(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last)));
    let v6 = |last: u8| [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    let known_by = FragmentKey::of_v6(one, other, 0x0123_4567);
    assert_eq!(bytes(&known_by), [&v6(1)[..], &v6(2), &0x0123_4567_u32.to_ne_bytes(), &[0; 4]].concat());

    let to = FlowKey::new(address(3), Port::new(1), address(4), Port::new(2), Proto::Udp);
    let entry = FragmentEntry::new(77, &to, (3, 4, 7));
    let parts: [&[u8]; 7] = [
        &77_u64.to_ne_bytes(),
        &mapped(3),
        &mapped(4),
        &3_u32.to_ne_bytes(),
        &4_u32.to_ne_bytes(),
        &7_u32.to_ne_bytes(),
        &[0; 4],
    ];
    assert_eq!(bytes(&entry), parts.concat());
}

#[test]
fn local_flows_have_their_parts_where_they_are_documented() {
    let (wanted, given) =
        (Endpoint::new(address(1), Port::new(53), Proto::Udp), Endpoint::new(address(3), Port::new(5353), Proto::Udp));
    let key = LocalKey::answers(0x0102_0304_0506_0708, given);
    let flow = LocalFlow { last_seen: 77, wanted, given, backend: 3, generation: 4 };

    assert_eq!(bytes(&key), [&0x0102_0304_0506_0708_u64.to_ne_bytes()[..], &bytes(&given), &[1, 0, 0, 0]].concat());
    let parts: [&[u8]; 5] =
        [&77_u64.to_ne_bytes(), &bytes(&wanted), &bytes(&given), &3_u32.to_ne_bytes(), &4_u32.to_ne_bytes()];
    assert_eq!(bytes(&flow), parts.concat());
}

#[test]
fn counters_and_the_record_are_plain_words() {
    let traffic = Traffic {
        ingress_packets: 1,
        ingress_bytes: 2,
        egress_packets: 3,
        egress_bytes: 4,
        connections: 5,
        local_connections: 6,
    };
    assert_eq!(bytes(&traffic), [1_u64, 2, 3, 4, 5, 6].map(u64::to_ne_bytes).concat());

    let record = AgentRecord {
        abi_version: 1,
        pid: 2,
        netns_cookie: 3,
        heartbeat: 4,
        interval_ns: 5,
        report_half: 1,
        report_len: 6,
        sequence: 7,
    };
    let parts: [&[u8]; 8] = [
        &1_u32.to_ne_bytes(),
        &2_u32.to_ne_bytes(),
        &3_u64.to_ne_bytes(),
        &4_u64.to_ne_bytes(),
        &5_u64.to_ne_bytes(),
        &1_u32.to_ne_bytes(),
        &6_u32.to_ne_bytes(),
        &7_u64.to_ne_bytes(),
    ];
    assert_eq!(bytes(&record), parts.concat());
}

#[test]
fn names_of_maps_fit_into_the_kernel_and_differ() {
    let mut names = map::ALL.to_vec();
    names.sort_unstable();
    names.dedup();

    assert_eq!(names.len(), map::ALL.len());
    // The kernel shows 15 letters of a name; pins have it whole.
    let mut shown: Vec<&str> = names.iter().map(|name| &name[..name.len().min(15)]).collect();
    shown.dedup();
    assert_eq!(shown.len(), names.len());
}

#[test]
fn handshakes_are_two_histograms_and_three_counters() {
    let mut latency = [0; LATENCY_BUCKETS];
    (latency[0], latency[25]) = (1, 2);
    let mut response = [0; LATENCY_BUCKETS];
    (response[1], response[24]) = (6, 7);
    let (one, two) = (Histogram { counts: latency }, Histogram { counts: response });
    let handshakes = Handshakes { latency: one, retransmitted: 3, refused: 4, reset: 5, response: two };

    let words: Vec<u64> = [&latency[..], &[3, 4, 5], &response[..]].concat();
    assert_eq!(bytes(&handshakes), words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>());
}

#[test]
fn a_guard_is_a_limit_and_flags() {
    let limit = RateLimit { interval_ns: 7, burst: 8, v4_mask: 9 };

    for (admits_others, flags) in [(true, 1), (false, 3)] {
        let guard = Guard::default().with_sources(admits_others).with_limit(limit);
        let words: [u32; 4] = [7, 8, 9, flags];
        assert_eq!(bytes(&guard), words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>());
    }
    assert_eq!(bytes(&Guard::default()), [0; 16]);
}

#[test]
fn a_source_is_a_frontend_and_an_address() {
    let expected = [&5_u32.to_ne_bytes()[..], &mapped(2)].concat();

    assert_eq!(bytes(&Source { frontend: 5, address: address(2) }), expected);
    assert_eq!(bytes(&RateKey::new(5, address(2))), expected);
}

#[test]
fn lifetimes_are_seconds_in_the_order_of_the_states() {
    let lifetimes = Lifetimes::DEFAULT.with(State::Reset, 7);

    let seconds: [u32; 9] = [60, 60, 7440, 240, 240, 120, 7, 30, 120];
    assert_eq!(bytes(&lifetimes), seconds.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>());
    assert_eq!(State::ALL.map(|state| lifetimes.of(state) / 1_000_000_000), seconds.map(u64::from));
}
