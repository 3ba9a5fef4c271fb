//! Packets through the real object: tables of what goes in and what comes out, for both front doors and the reply door.

use std::{process::ExitCode, thread, time::Duration};

use lb_ebpf::{
    abi::{Address, Backend, Guard, HandOff, Handshakes, Lifetimes, Port, Proto, RateLimit},
    tcp_state::State,
    verdict::{DropReason, Event, PassReason},
};
use lb_tests::{
    frames::{
        self, ACK, Dice, FIN, Judged, JudgedError, RST, SYN, Side, fragment, icmp_error, judge, judge_error,
        later_fragment, tcp, udp, with_ip_options, with_ttl,
    },
    object::{Action, Door, NOTE_MARK, Object, action},
    suite::{self, Case, Need},
};

#[path = "packets/cookies.rs"]
mod cookies;
#[path = "packets/local.rs"]
mod local;
#[path = "packets/response.rs"]
mod response;
#[path = "packets/schedulers.rs"]
mod schedulers;
#[path = "packets/snat.rs"]
mod snat;
#[path = "packets/v6.rs"]
mod v6;
#[path = "packets/wake.rs"]
mod wake;
#[path = "packets/way.rs"]
mod way;

const CLIENT: Side = ([198, 18, 1, 2], 40_000);
const FRONTEND: Side = ([198, 18, 1, 1], 80);
const DATAGRAMS: Side = ([198, 18, 1, 1], 53);
const BACKENDS: [Side; 3] = [([198, 18, 2, 11], 5000), ([198, 18, 2, 12], 5000), ([198, 18, 2, 13], 5001)];
const FRONT_DOORS: [Door; 2] = [Door::Tc, Door::Xdp];

fn main() -> ExitCode {
    let case = |name, run| Case { name, needs: &[Need::Root], run };
    let mut cases = vec![
        case("connections_take_backends_strictly_in_turn", connections_take_backends_strictly_in_turn),
        case("tickets_of_two_processors_have_no_gap", tickets_of_two_processors_have_no_gap),
        case("a_connection_lives_from_syn_to_fin", a_connection_lives_from_syn_to_fin),
        case("a_retransmitted_syn_keeps_its_backend", a_retransmitted_syn_keeps_its_backend),
        case("only_the_right_acknowledgement_proves_a_client", only_the_right_acknowledgement_proves_a_client),
        case("a_port_used_again_draws_the_next_ticket", a_port_used_again_draws_the_next_ticket),
        case("a_refused_connection_may_be_tried_again", a_refused_connection_may_be_tried_again),
        case("how_a_backend_answers_is_counted", how_a_backend_answers_is_counted),
        case("a_guessed_reset_ends_nothing", a_guessed_reset_ends_nothing),
        case("a_guessed_end_does_not_count", a_guessed_end_does_not_count),
        case("an_end_that_proves_the_client_is_not_lost", an_end_that_proves_the_client_is_not_lost),
        case("a_second_acceptance_is_the_one_to_acknowledge", a_second_acceptance_is_the_one_to_acknowledge),
        case("a_silent_backend_loses_a_repeated_syn", a_silent_backend_loses_a_repeated_syn),
        case("late_segments_of_a_former_backend_end_here", late_segments_of_a_former_backend_end_here),
        case("a_reply_half_that_was_pushed_out_returns", a_reply_half_that_was_pushed_out_returns),
        case("merged_segments_count_as_they_came", merged_segments_count_as_they_came),
        case("notes_are_left_where_the_backend_takes_no_frames", notes_are_left_where_the_backend_takes_no_frames),
        case("datagrams_of_a_client_stay_with_a_backend", datagrams_of_a_client_stay_with_a_backend),
        case("who_may_not_begin_is_dropped_and_counted", who_may_not_begin_is_dropped_and_counted),
        case("a_network_begins_no_more_than_it_may", a_network_begins_no_more_than_it_may),
        case("a_flow_lives_as_long_as_it_is_told_to", a_flow_lives_as_long_as_it_is_told_to),
        case("a_datagram_without_checksum_stays_without", a_datagram_without_checksum_stays_without),
        case("two_frontends_on_one_backend_never_share_a_port", two_frontends_on_one_backend_never_share_a_port),
        case("a_backend_that_is_its_own_client_sees_the_host", a_backend_that_is_its_own_client_sees_the_host),
        case("a_freed_backend_ends_its_flows", a_freed_backend_ends_its_flows),
        case("a_new_generation_inherits_nothing", a_new_generation_inherits_nothing),
        case("a_direct_connection_is_not_hijacked", a_direct_connection_is_not_hijacked),
        case("a_direct_connection_that_was_there_goes_on", a_direct_connection_that_was_there_goes_on),
        case(
            "a_client_whose_port_is_remembered_tries_again_at_once",
            a_client_whose_port_is_remembered_tries_again_at_once,
        ),
        case("a_client_that_gave_up_may_try_again", a_client_that_gave_up_may_try_again),
        case("a_remembered_port_is_not_given_to_another", a_remembered_port_is_not_given_to_another),
        case(
            "what_comes_late_is_not_judged_by_another_connection",
            what_comes_late_is_not_judged_by_another_connection,
        ),
        case("replies_follow_only_who_knows_the_connection", replies_follow_only_who_knows_the_connection),
        case("the_fallback_hands_over_to_routing", the_fallback_hands_over_to_routing),
        case("sizes_and_options_survive", sizes_and_options_survive),
        case("what_is_not_ours_is_left_untouched", what_is_not_ours_is_left_untouched),
        case("fragments_follow_the_first_of_their_datagram", fragments_follow_the_first_of_their_datagram),
        case("errors_reach_the_backend_that_they_are_about", errors_reach_the_backend_that_they_are_about),
        case("errors_reach_the_client_that_they_are_about", errors_reach_the_client_that_they_are_about),
        case("errors_about_others_are_left_untouched", errors_about_others_are_left_untouched),
        case("a_packet_at_its_end_is_answered", a_packet_at_its_end_is_answered),
        case("answers_have_a_budget", answers_have_a_budget),
        case("what_is_too_big_for_the_way_is_told_so", way::what_is_too_big_for_the_way_is_told_so),
        case("routing_cuts_what_may_be_cut", way::routing_cuts_what_may_be_cut),
        case("a_redirect_into_a_container_asks_for_no_mtu", way::a_redirect_into_a_container_asks_for_no_mtu),
        case("who_has_no_room_for_a_note_is_left_as_it_came", way::who_has_no_room_for_a_note_is_left_as_it_came),
        case("routing_takes_its_own_hop", way::routing_takes_its_own_hop),
        case("a_server_of_the_host_is_a_backend", local::a_server_of_the_host_is_a_backend),
        case("a_server_of_the_host_is_a_backend_over_ipv6", local::a_server_of_the_host_is_a_backend_over_ipv6),
        case("what_else_the_host_sends_is_left_untouched", local::what_else_the_host_sends_is_left_untouched),
        case("fragments_of_the_host_follow_their_first", local::fragments_of_the_host_follow_their_first),
        case("errors_of_the_host_speak_of_the_frontend", local::errors_of_the_host_speak_of_the_frontend),
        case("what_ends_here_needs_no_more_routers", local::what_ends_here_needs_no_more_routers),
        case("a_listener_of_the_host_is_asked_for_cookies", local::a_listener_of_the_host_is_asked_for_cookies),
        case("a_million_mutated_packets_through_tc_local", local::mutated),
        case("clients_are_hidden_from_syn_to_fin", snat::clients_are_hidden_from_syn_to_fin),
        case("hidden_datagrams_fragments_and_errors_find_home", snat::hidden_datagrams_fragments_and_errors_find_home),
        case("clients_of_ipv6_are_hidden", snat::clients_of_ipv6_are_hidden),
        case("a_reply_to_the_port_of_a_frontend_is_no_clients", snat::a_reply_to_the_port_of_a_frontend_is_no_clients),
        case("routing_hides_nobody", snat::routing_hides_nobody),
        case("who_begins_wakes_a_backend_that_is_asleep", wake::who_begins_wakes_a_backend_that_is_asleep),
        case("a_flood_wakes_a_backend_but_now_and_then", wake::a_flood_wakes_a_backend_but_now_and_then),
        case("wakings_that_nobody_reads_end_nothing", wake::wakings_that_nobody_reads_end_nothing),
        case("the_answer_to_a_first_request_is_timed_once", response::the_answer_to_a_first_request_is_timed_once),
        case(
            "a_request_that_comes_again_does_not_start_the_clock_again",
            response::a_request_that_comes_again_does_not_start_the_clock_again,
        ),
        case("a_server_that_speaks_first_answers_nothing", response::a_server_that_speaks_first_answers_nothing),
        case("what_is_no_request_starts_no_clock", response::what_is_no_request_starts_no_clock),
        case(
            "a_request_may_ride_on_the_acknowledgement_that_proves",
            response::a_request_may_ride_on_the_acknowledgement_that_proves,
        ),
        case(
            "where_there_is_no_room_for_the_proven_requests_are_timed_as_well",
            response::where_there_is_no_room_for_the_proven_requests_are_timed_as_well,
        ),
        case("a_flood_pushes_out_no_proven_flow", a_flood_pushes_out_no_proven_flow),
        case("a_full_table_of_flows_still_serves", a_full_table_of_flows_still_serves),
        case("a_million_mutated_packets_through_tc_ingress", || mutated(Door::Tc)),
        case("a_million_mutated_packets_through_xdp_ingress", || mutated(Door::Xdp)),
        case("a_million_mutated_packets_through_tc_reply", || mutated(Door::Reply)),
        case(
            "a_syn_is_answered_by_a_cookie_and_leaves_nothing",
            cookies::a_syn_is_answered_by_a_cookie_and_leaves_nothing,
        ),
        case(
            "an_acknowledged_cookie_is_a_connection_from_its_beginning",
            cookies::an_acknowledged_cookie_is_a_connection_from_its_beginning,
        ),
        case(
            "a_port_used_again_after_a_cookie_begins_another_connection",
            cookies::a_port_used_again_after_a_cookie_begins_another_connection,
        ),
        case("xdp_answers_by_itself_where_devices_send_back", cookies::xdp_answers_by_itself_where_devices_send_back),
        case(
            "mutated_syns_are_answered_rightly_or_not_at_all",
            cookies::mutated_syns_are_answered_rightly_or_not_at_all,
        ),
        case("a_first_segment_with_data_or_an_end_is_taken", cookies::a_first_segment_with_data_or_an_end_is_taken),
        case("only_a_cookie_of_the_listener_is_taken", cookies::only_a_cookie_of_the_listener_is_taken),
        case("what_no_cookie_can_answer_is_dropped", cookies::what_no_cookie_can_answer_is_dropped),
        case("a_network_is_sent_no_more_cookies_than_it_may", cookies::a_network_is_sent_no_more_cookies_than_it_may),
        case("a_listener_with_room_gets_its_syns_in_turn", cookies::a_listener_with_room_gets_its_syns_in_turn),
        case(
            "nobody_is_asked_where_it_is_forbidden_or_cannot_be",
            cookies::nobody_is_asked_where_it_is_forbidden_or_cannot_be,
        ),
        case("a_cookie_outlives_one_publication", cookies::a_cookie_outlives_one_publication),
        case("a_cookie_whose_port_is_taken_is_refused", cookies::a_cookie_whose_port_is_taken_is_refused),
        case("a_full_table_of_flows_takes_no_cookies", cookies::a_full_table_of_flows_takes_no_cookies),
        case("connections_over_ipv6_live_from_syn_to_fin", v6::connections_over_ipv6_live_from_syn_to_fin),
        case("answers_over_ipv6_are_timed", v6::answers_over_ipv6_are_timed),
        case("datagrams_over_ipv6_stay_with_a_backend", v6::datagrams_over_ipv6_stay_with_a_backend),
        case("the_families_never_meet", v6::the_families_never_meet),
        case("every_scheduler_serves_ipv6", v6::every_scheduler_serves_ipv6),
        case("a_client_of_ipv6_keeps_its_backend", v6::a_client_of_ipv6_keeps_its_backend),
        case("who_may_not_begin_over_ipv6_is_dropped", v6::who_may_not_begin_over_ipv6_is_dropped),
        case("extension_headers_are_carried_along", v6::extension_headers_are_carried_along),
        case("what_is_not_ours_over_ipv6_is_left_untouched", v6::what_is_not_ours_over_ipv6_is_left_untouched),
        case(
            "a_backend_of_ipv6_that_is_its_own_client_sees_the_host",
            v6::a_backend_of_ipv6_that_is_its_own_client_sees_the_host,
        ),
        case(
            "fragments_of_ipv6_follow_the_first_of_their_datagram",
            v6::fragments_of_ipv6_follow_the_first_of_their_datagram,
        ),
        case("errors_of_icmpv6_reach_whom_they_are_about", v6::errors_of_icmpv6_reach_whom_they_are_about),
        case("a_packet_of_ipv6_at_its_end_is_answered", v6::a_packet_of_ipv6_at_its_end_is_answered),
        case("mutated_packets_of_ipv6_through_tc_ingress", || v6::mutated(Door::Tc)),
        case("mutated_packets_of_ipv6_through_xdp_ingress", || v6::mutated(Door::Xdp)),
        case("mutated_packets_of_ipv6_through_tc_reply", || v6::mutated(Door::Reply)),
    ];
    cases.extend(schedulers::cases());
    suite::run(cases)
}

/// A frontend for TCP and one for UDP, with three backends each.
fn object() -> Object {
    let mut object = Object::load();
    set_up(&mut object);
    object
}

fn set_up(object: &mut Object) {
    set_up_at(object, 0);
}

/// The same beside others, whose frontends and backends have lower numbers.
fn set_up_at(object: &mut Object, from: u32) {
    for (id, at) in (from..).zip(BACKENDS) {
        object.backend(id, from, 1, at);
        object.backend(id + 3, from + 1, 1, at);
    }
    object.serve(from, FRONTEND, Proto::Tcp, &[from, from + 1, from + 2]);
    object.serve(from + 1, DATAGRAMS, Proto::Udp, &[from + 3, from + 4, from + 5]);
}

fn client(port: u16) -> Side {
    (CLIENT.0, port)
}

/// Sends a packet that has to be redirected with right checksums, and returns what came out.
fn forwarded(object: &Object, door: Door, frame: &[u8]) -> Judged {
    let (did, out) = object.run(door, frame);
    assert_eq!(did, Action::Redirect, "{door:?}: {:?}", judge(frame));
    assert_eq!(out.len(), frame.len());
    let out = judge(&out).expect("what was whole stays whole");
    assert!(out.ip_sum && out.transport_sum, "{door:?}: wrong checksum: {out:?}");
    let before = judge(frame).unwrap();
    assert_eq!(out.payload, before.payload);
    assert_eq!(out.ttl, before.ttl - 1, "{door:?}: as by a router");
    out
}

/// Sends a packet that has to be passed, untouched, for a reason. What XDP passes is counted by TC, which sees it next.
fn passed(object: &Object, door: Door, frame: &[u8], reason: PassReason) {
    let before = object.count(reason.index());
    let (did, out) = object.run(door, frame);
    assert_eq!(did, Action::Pass, "{door:?} {reason:?}");
    assert_eq!(out, frame, "{door:?} {reason:?}: changed");
    let counted = u64::from(door != Door::Xdp);
    assert_eq!(object.count(reason.index()), before + counted, "{door:?}: not counted as {reason:?}");
}

/// Sends a packet that has to be ended, for a reason.
fn dropped(object: &Object, door: Door, frame: &[u8], reason: DropReason) {
    let before = object.count(reason.index());
    assert_eq!(object.run(door, frame).0, Action::Drop, "{door:?} {reason:?}");
    assert_eq!(object.count(reason.index()), before + 1, "{door:?}: not counted as {reason:?}");
}

/// Opens a connection and returns its backend.
fn open(object: &Object, door: Door, from: Side, to: Side) -> Side {
    let syn = forwarded(object, door, &tcp(from, to, SYN, 100, 0, &[]));
    assert_eq!(syn.from, from);
    let backend = syn.to;
    let accepted = forwarded(object, Door::Reply, &tcp(backend, from, SYN | ACK, 900, 101, &[]));
    assert_eq!((accepted.from, accepted.to), (to, from));
    let ack = forwarded(object, door, &tcp(from, to, ACK, 101, 901, &[]));
    assert_eq!(ack.to, backend);
    backend
}

fn close(object: &Object, door: Door, from: Side, to: Side, backend: Side) {
    forwarded(object, door, &tcp(from, to, FIN | ACK, 101, 901, &[]));
    forwarded(object, Door::Reply, &tcp(backend, from, FIN | ACK, 901, 102, &[]));
    forwarded(object, door, &tcp(from, to, ACK, 102, 902, &[]));
}

fn connections_take_backends_strictly_in_turn() {
    for door in FRONT_DOORS {
        let object = object();
        for number in 0..999_u16 {
            let out = forwarded(&object, door, &tcp(client(10_000 + number), FRONTEND, SYN, 1, 0, &[]));
            assert_eq!(out.to, BACKENDS[usize::from(number) % 3], "{door:?}, connection {number}");
        }
        assert_eq!((0..3).map(|id| object.traffic(id).connections).collect::<Vec<_>>(), [333; 3]);
    }
}

fn tickets_of_two_processors_have_no_gap() {
    let object = object();
    let object = &object;
    std::thread::scope(|scope| {
        for half in 0..2_u16 {
            scope.spawn(move || {
                for number in 0..3000 {
                    let from = client(10_000 + half * 20_000 + number);
                    forwarded(object, Door::Tc, &tcp(from, FRONTEND, SYN, 1, 0, &[]));
                }
            });
        }
    });

    assert_eq!((0..3).map(|id| object.traffic(id).connections).collect::<Vec<_>>(), [2000; 3]);
}

fn a_connection_lives_from_syn_to_fin() {
    for door in FRONT_DOORS {
        let object = object();
        let state = || object.flow(CLIENT, FRONTEND, Proto::Tcp).map(|flow| flow.state());
        let half_open = || object.half_open(CLIENT, FRONTEND, Proto::Tcp).map(|flow| flow.state());

        forwarded(&object, door, &tcp(CLIENT, FRONTEND, SYN, 100, 0, &[]));
        assert_eq!((half_open(), state()), (Some(State::SynSent), None));
        forwarded(&object, Door::Reply, &tcp(BACKENDS[0], CLIENT, SYN | ACK, 900, 101, &[]));
        assert_eq!((half_open(), state()), (Some(State::SynReceived), None));
        forwarded(&object, door, &tcp(CLIENT, FRONTEND, ACK, 101, 901, &[]));
        assert_eq!((half_open(), state()), (None, Some(State::Established)));
        assert!(object.reply(BACKENDS[0], CLIENT, Proto::Tcp).is_some());
        forwarded(&object, door, &tcp(CLIENT, FRONTEND, ACK, 101, 901, b"GET / HTTP/1.1\r\n\r\n"));
        forwarded(&object, Door::Reply, &tcp(BACKENDS[0], CLIENT, ACK, 901, 119, b"HTTP/1.1 200 OK\r\n\r\n"));
        forwarded(&object, Door::Reply, &tcp(BACKENDS[0], CLIENT, FIN | ACK, 920, 119, &[]));
        assert_eq!(state(), Some(State::BackendClosed));
        forwarded(&object, door, &tcp(CLIENT, FRONTEND, FIN | ACK, 119, 921, &[]));
        assert_eq!((half_open(), state()), (Some(State::Closed), None), "what is over leaves the proven");
        assert!(object.reply(BACKENDS[0], CLIENT, Proto::Tcp).is_none());
        forwarded(&object, Door::Reply, &tcp(BACKENDS[0], CLIENT, ACK, 921, 120, &[]));

        let traffic = object.traffic(0);
        assert_eq!((traffic.ingress_packets, traffic.egress_packets, traffic.connections), (4, 4, 1), "{door:?}");
        assert_eq!((traffic.ingress_bytes, traffic.egress_bytes), (54 * 4 + 18, 54 * 4 + 19), "{door:?}");
        assert_eq!(object.count(Event::Proven.index()), 1);
    }
}

fn a_retransmitted_syn_keeps_its_backend() {
    for door in FRONT_DOORS {
        let object = object();
        let syn = tcp(CLIENT, FRONTEND, SYN, 100, 0, &[]);
        for _ in 0..5 {
            assert_eq!(forwarded(&object, door, &syn).to, BACKENDS[0]);
        }
        assert_eq!(object.count(Event::SynRetransmitted.index()), 4);
        assert_eq!(forwarded(&object, door, &tcp(client(41_000), FRONTEND, SYN, 1, 0, &[])).to, BACKENDS[1]);
    }
}

fn only_the_right_acknowledgement_proves_a_client() {
    for door in FRONT_DOORS {
        let object = object();
        forwarded(&object, door, &tcp(CLIENT, FRONTEND, SYN, 100, 0, &[]));
        forwarded(&object, door, &tcp(CLIENT, FRONTEND, ACK, 101, 901, &[]));
        assert!(object.flow(CLIENT, FRONTEND, Proto::Tcp).is_none(), "nothing was answered yet");
        forwarded(&object, Door::Reply, &tcp(BACKENDS[0], CLIENT, SYN | ACK, 900, 101, &[]));
        forwarded(&object, door, &tcp(CLIENT, FRONTEND, ACK, 101, 777, &[]));
        assert!(object.flow(CLIENT, FRONTEND, Proto::Tcp).is_none(), "a blind guess proves nothing");
        forwarded(&object, door, &tcp(CLIENT, FRONTEND, RST | ACK, 101, 901, &[]));
        assert!(object.flow(CLIENT, FRONTEND, Proto::Tcp).is_none(), "nor does a reset");
    }
}

fn a_port_used_again_draws_the_next_ticket() {
    for door in FRONT_DOORS {
        let object = object();
        for turn in 0..9 {
            let backend = open(&object, door, CLIENT, FRONTEND);
            assert_eq!(backend, BACKENDS[turn % 3], "{door:?}, turn {turn}");
            close(&object, door, CLIENT, FRONTEND, backend);
        }
    }
}

fn a_refused_connection_may_be_tried_again() {
    let object = object();
    let first = forwarded(&object, Door::Tc, &tcp(CLIENT, FRONTEND, SYN, 100, 0, &[]));
    let refusal = forwarded(&object, Door::Reply, &tcp(first.to, CLIENT, RST | ACK, 0, 101, &[]));
    assert_eq!(refusal.from, FRONTEND);
    assert_eq!(object.half_open(CLIENT, FRONTEND, Proto::Tcp).unwrap().state(), State::Reset);

    let second = open(&object, Door::Tc, CLIENT, FRONTEND);
    assert_eq!((first.to, second), (BACKENDS[0], BACKENDS[1]));
}

fn how_a_backend_answers_is_counted() {
    const WAIT: Duration = Duration::from_millis(20);
    for door in FRONT_DOORS {
        let object = object();
        let syn = tcp(CLIENT, FRONTEND, SYN, 100, 0, &[]);
        let backend = forwarded(&object, door, &syn).to;
        forwarded(&object, door, &syn);
        thread::sleep(WAIT);
        for _ in 0..2 {
            forwarded(&object, Door::Reply, &tcp(backend, CLIENT, SYN | ACK, 900, 101, &[]));
        }
        // The answer is lost on its way to the client: that is no matter of the backend.
        forwarded(&object, door, &syn);
        assert_eq!(object.count(Event::SynRetransmitted.index()), 2, "{door:?}");
        forwarded(&object, door, &tcp(CLIENT, FRONTEND, ACK, 101, 901, &[]));
        let counted = object.handshakes(0);
        assert_eq!((counted.accepted(), counted.retransmitted), (1, 1), "{door:?}: {counted:?}");
        assert!(
            counted.latency.quantile_us(500).is_some_and(|us| us > WAIT.as_micros() as u64),
            "{door:?}: {counted:?}"
        );

        forwarded(&object, Door::Reply, &tcp(backend, CLIENT, RST, 901, 0, &[]));
        let refused = forwarded(&object, door, &tcp(client(41_000), FRONTEND, SYN, 7, 0, &[])).to;
        forwarded(&object, Door::Reply, &tcp(refused, client(41_000), RST | ACK, 0, 8, &[]));

        assert_eq!((object.handshakes(0).reset, object.handshakes(0).refused), (1, 0), "{door:?}");
        let expected = Handshakes { refused: 1, ..Handshakes::default() };
        assert_eq!(object.handshakes(1), expected, "{door:?}");
    }
}

fn a_guessed_reset_ends_nothing() {
    for door in FRONT_DOORS {
        let object = object();
        let backend = open(&object, door, CLIENT, FRONTEND);
        for guess in [0, 100, 101 + (1 << 20), 1 << 31, u32::MAX] {
            forwarded(&object, door, &tcp(CLIENT, FRONTEND, RST, guess, 0, &[]));
            assert_eq!(object.flow(CLIENT, FRONTEND, Proto::Tcp).unwrap().state(), State::Established, "{guess}");
        }
        assert_eq!(object.count(Event::OutOfWindow.index()), 5);
        // Whoever adds a SYN to it still meets the connection, and its backend knows what to answer.
        assert_eq!(forwarded(&object, door, &tcp(CLIENT, FRONTEND, SYN, 7, 0, &[])).to, backend);
        assert_eq!(forwarded(&object, door, &tcp(CLIENT, FRONTEND, ACK, 101, 901, b"on")).to, backend);

        forwarded(&object, door, &tcp(CLIENT, FRONTEND, RST, 103, 0, &[]));
        assert_eq!(object.half_open(CLIENT, FRONTEND, Proto::Tcp).unwrap().state(), State::Reset);
        assert_ne!(open(&object, door, CLIENT, FRONTEND), backend, "a real one frees the port");
    }
}

fn a_guessed_end_does_not_count() {
    let object = object();
    open(&object, Door::Tc, CLIENT, FRONTEND);
    forwarded(&object, Door::Tc, &tcp(CLIENT, FRONTEND, FIN | ACK, 101 + (1 << 24), 901, &[]));
    assert_eq!(object.flow(CLIENT, FRONTEND, Proto::Tcp).unwrap().state(), State::Established);

    // Ten megabytes may well be on their way before it.
    forwarded(&object, Door::Tc, &tcp(CLIENT, FRONTEND, FIN | ACK, 101 + 10_000_000, 901, &[]));
    assert_eq!(object.flow(CLIENT, FRONTEND, Proto::Tcp).unwrap().state(), State::ClientClosed);
}

fn an_end_that_proves_the_client_is_not_lost() {
    for door in FRONT_DOORS {
        let object = object();
        forwarded(&object, door, &tcp(CLIENT, FRONTEND, SYN, 100, 0, &[]));
        forwarded(&object, Door::Reply, &tcp(BACKENDS[0], CLIENT, SYN | ACK, 900, 101, &[]));

        // The first acknowledgement was lost; this one ends the connection, too.
        forwarded(&object, door, &tcp(CLIENT, FRONTEND, FIN | ACK, 101, 901, &[]));

        assert_eq!(object.flow(CLIENT, FRONTEND, Proto::Tcp).unwrap().state(), State::ClientClosed, "{door:?}");
    }
}

fn a_second_acceptance_is_the_one_to_acknowledge() {
    let object = object();
    forwarded(&object, Door::Tc, &tcp(CLIENT, FRONTEND, SYN, 100, 0, &[]));
    forwarded(&object, Door::Reply, &tcp(BACKENDS[0], CLIENT, SYN | ACK, 900, 101, &[]));
    forwarded(&object, Door::Reply, &tcp(BACKENDS[0], CLIENT, SYN | ACK, 5000, 101, &[]));

    forwarded(&object, Door::Tc, &tcp(CLIENT, FRONTEND, ACK, 101, 5001, &[]));

    assert_eq!(object.flow(CLIENT, FRONTEND, Proto::Tcp).unwrap().state(), State::Established);
}

fn a_silent_backend_loses_a_repeated_syn() {
    let object = object();
    let syn = tcp(CLIENT, FRONTEND, SYN, 100, 0, &[]);
    assert_eq!(forwarded(&object, Door::Tc, &syn).to, BACKENDS[0]);
    std::thread::sleep(Duration::from_millis(1_000));
    assert_eq!(forwarded(&object, Door::Tc, &syn).to, BACKENDS[0], "it may be slow");
    std::thread::sleep(Duration::from_millis(2_000));

    assert_eq!(forwarded(&object, Door::Tc, &syn).to, BACKENDS[1], "it is dead");

    assert_eq!(object.count(Event::Rescheduled.index()), 1);
    // Should it wake up after all, its answer is none that the client waits for.
    dropped(&object, Door::Reply, &tcp(BACKENDS[0], CLIENT, SYN | ACK, 900, 101, &[]), DropReason::StaleReply);
    forwarded(&object, Door::Reply, &tcp(BACKENDS[1], CLIENT, SYN | ACK, 7, 101, &[]));
    assert_eq!(forwarded(&object, Door::Tc, &tcp(CLIENT, FRONTEND, ACK, 101, 8, &[])).to, BACKENDS[1]);
}

fn late_segments_of_a_former_backend_end_here() {
    let object = object();
    assert_eq!(open(&object, Door::Tc, CLIENT, FRONTEND), BACKENDS[0]);
    close(&object, Door::Tc, CLIENT, FRONTEND, BACKENDS[0]);
    assert_eq!(forwarded(&object, Door::Tc, &tcp(CLIENT, FRONTEND, SYN, 5000, 0, &[])).to, BACKENDS[1]);

    let late = tcp(BACKENDS[0], CLIENT, FIN | ACK, 901, 102, &[]);
    dropped(&object, Door::Reply, &late, DropReason::StaleReply);

    // Had it come through, the client would have answered with this; it must not harm the new connection.
    forwarded(&object, Door::Tc, &tcp(CLIENT, FRONTEND, RST, 102, 0, &[]));
    forwarded(&object, Door::Reply, &tcp(BACKENDS[1], CLIENT, SYN | ACK, 7, 5001, &[]));
    forwarded(&object, Door::Tc, &tcp(CLIENT, FRONTEND, ACK, 5001, 8, &[]));
    assert_eq!(object.flow(CLIENT, FRONTEND, Proto::Tcp).unwrap().state(), State::Established);
}

fn a_reply_half_that_was_pushed_out_returns() {
    let mut object = object();
    let question = udp(CLIENT, DATAGRAMS, b"question");
    forwarded(&object, Door::Tc, &question);
    object.push_out_datagram_reply(BACKENDS[0], CLIENT);
    passed(&object, Door::Reply, &udp(BACKENDS[0], CLIENT, b"answer"), PassReason::NotReply);
    std::thread::sleep(Duration::from_millis(1_100));

    forwarded(&object, Door::Tc, &question);

    assert_eq!(forwarded(&object, Door::Reply, &udp(BACKENDS[0], CLIENT, b"answer")).from, DATAGRAMS);
}

fn merged_segments_count_as_they_came() {
    let object = object();
    let backend = open(&object, Door::Tc, CLIENT, FRONTEND);
    let before = object.traffic(0);

    let merged = tcp(CLIENT, FRONTEND, ACK, 101, 901, &[7; 3 * 500]);
    assert_eq!(object.run_merged(Door::Tc, &merged, 3, 500), Action::Redirect);
    let merged = tcp(backend, CLIENT, ACK, 901, 101, &[7; 2 * 500]);
    assert_eq!(object.run_merged(Door::Reply, &merged, 2, 500), Action::Redirect);

    let after = object.traffic(0);
    assert_eq!(after.ingress_packets - before.ingress_packets, 3);
    assert_eq!(after.ingress_bytes - before.ingress_bytes, 3 * (54 + 500));
    assert_eq!(after.egress_packets - before.egress_packets, 2);
    assert_eq!(after.egress_bytes - before.egress_bytes, 2 * (54 + 500));
}

fn notes_are_left_where_the_backend_takes_no_frames() {
    let mut object = object();
    let backend = Backend::new(0, 1, Address::from_v4(BACKENDS[0].0), Port::new(BACKENDS[0].1)).reached_by(
        HandOff::Peer,
        1,
        [6, 0, 0, 0, 0, 1],
        [6, 0, 0, 0, 1, 0],
    );
    object.write_backend(0, backend);
    object.publish(0, &[0]);
    let syn = tcp(CLIENT, FRONTEND, SYN, 1, 0, &[]);

    let (did, out) = object.run(Door::Xdp, &syn);

    assert_eq!(did, Action::Pass, "up to TC");
    let (note, frame) = out.split_at(out.len() - syn.len());
    assert_eq!(note, [NOTE_MARK.to_ne_bytes(), [0; 4], [0; 4]].concat());
    let judged = judge(frame).unwrap();
    assert!(judged.to == BACKENDS[0] && judged.ip_sum && judged.transport_sum);
    assert_eq!(frame[..12], [[6, 0, 0, 0, 0, 1], [6, 0, 0, 0, 1, 0]].concat());
}

fn datagrams_of_a_client_stay_with_a_backend() {
    for door in FRONT_DOORS {
        let object = object();
        for number in 0..6_u16 {
            let from = client(50_000 + number);
            let backend = BACKENDS[usize::from(number) % 3];
            for payload in [b"one".as_slice(), b"three".as_slice()] {
                assert_eq!(forwarded(&object, door, &udp(from, DATAGRAMS, payload)).to, backend);
            }
            let answer = forwarded(&object, Door::Reply, &udp(backend, from, b"answer"));
            assert_eq!((answer.from, answer.to), (DATAGRAMS, from));
            assert_eq!(forwarded(&object, door, &udp(from, DATAGRAMS, b"more")).to, backend);
            assert_eq!(object.datagrams(from, DATAGRAMS).unwrap().state(), State::UdpReplied);
            assert!(object.flow(from, DATAGRAMS, Proto::Udp).is_none(), "none of TCP's room is taken");
        }
        assert_eq!((3..6).map(|id| object.traffic(id).connections).collect::<Vec<_>>(), [2; 3]);
    }
}

fn who_may_not_begin_is_dropped_and_counted() {
    // Which networks are in the list, what becomes of others, who asks, and whether it may.
    type Row = (&'static [([u8; 4], u32, bool)], bool, [u8; 4], bool);
    const ROWS: [Row; 9] = [
        (&[], true, [198, 18, 1, 2], true),
        (&[], false, [198, 18, 1, 2], false),
        (&[([198, 18, 1, 0], 24, true)], false, [198, 18, 1, 2], true),
        (&[([198, 18, 1, 0], 24, true)], false, [198, 18, 3, 2], false),
        (&[([198, 18, 1, 0], 24, true), ([198, 18, 1, 2], 32, false)], false, [198, 18, 1, 2], false),
        (&[([198, 18, 1, 0], 24, true), ([198, 18, 1, 2], 32, false)], false, [198, 18, 1, 3], true),
        (&[([198, 18, 0, 0], 15, false)], true, [198, 19, 1, 2], false),
        (&[([198, 18, 0, 0], 15, false)], true, [203, 0, 113, 9], true),
        (&[([0, 0, 0, 0], 0, false), ([203, 0, 113, 8], 29, true)], true, [203, 0, 113, 9], true),
    ];
    for door in FRONT_DOORS {
        for (networks, others, source, admitted) in ROWS {
            let mut object = object();
            let rows: Vec<_> = networks.iter().map(|&(network, bits, admits)| (network.into(), bits, admits)).collect();
            object.guard(0, Guard::default().with_sources(others), &rows);
            let from = (source, 40_000);

            let (did, out) = object.run(door, &tcp(from, FRONTEND, SYN, 100, 0, &[]));

            let dropped = object.count(DropReason::Denied.index());
            let expected = if admitted { (Action::Redirect, 0) } else { (Action::Drop, 1) };
            assert_eq!((did, dropped), expected, "{door:?} {networks:?} {others} {source:?}");
            assert_eq!(object.half_open(from, FRONTEND, Proto::Tcp).is_some(), admitted, "{out:?}");
            // Another frontend has lists of its own.
            assert_eq!(object.run(door, &udp(from, DATAGRAMS, b"?")).0, Action::Redirect, "{door:?}");
        }
    }
}

fn a_network_begins_no_more_than_it_may() {
    const MINUTE: u32 = 4_000_000_000; // nanoseconds: none comes back while the test runs
    let limit = |v4_mask: [u8; 4]| RateLimit { interval_ns: MINUTE, burst: 3, v4_mask: u32::from_ne_bytes(v4_mask) };
    for door in FRONT_DOORS {
        let mut object = object();
        object.guard(0, Guard::default().with_limit(limit([255; 4])), &[]);
        let syn = |last: u8, port: u16| tcp(([198, 18, 1, last], port), FRONTEND, SYN, 100, 0, &[]);
        let known = open(&object, door, CLIENT, FRONTEND);
        for port in 1..=4 {
            let expected = if port <= 2 { Action::Redirect } else { Action::Drop };
            assert_eq!(object.run(door, &syn(2, port)).0, expected, "{door:?}, connection {}", port + 1);
        }
        assert_eq!(object.run(door, &syn(2, 1)).0, Action::Redirect, "a SYN that comes again begins nothing");
        assert_eq!(object.run(door, &syn(3, 1)).0, Action::Redirect, "another client has another bucket");
        assert_eq!(forwarded(&object, door, &tcp(CLIENT, FRONTEND, ACK, 101, 901, b"on")).to, known);
        assert_eq!(object.count(DropReason::RateLimited.index()), 2);

        object.guard(0, Guard::default().with_limit(limit([255, 255, 255, 0])), &[]);
        let begun = (10..20).filter(|&last| object.run(door, &syn(last, 1)).0 == Action::Redirect).count();
        assert_eq!(begun, 3, "{door:?}: all of a network together");
    }
}

fn a_flow_lives_as_long_as_it_is_told_to() {
    let mut object = object();
    object.live_for(Lifetimes::DEFAULT.with(State::UdpUnreplied, 1).with(State::Established, 1));
    let datagram = udp(CLIENT, DATAGRAMS, b"which");
    let (answered, silent) = (client(40_001), client(40_002));
    let [first, second, third] = [CLIENT, answered, silent].map(|from| {
        let backend = forwarded(&object, Door::Tc, &udp(from, DATAGRAMS, b"which")).to;
        if from == answered {
            forwarded(&object, Door::Reply, &udp(backend, from, b"this one"));
        }
        backend
    });
    assert_eq!([first, second, third], BACKENDS);
    let kept = open(&object, Door::Tc, CLIENT, FRONTEND);

    thread::sleep(Duration::from_millis(1_100));

    assert_eq!(forwarded(&object, Door::Tc, &udp(answered, DATAGRAMS, b"again")).to, second, "UDP with an answer");
    assert_eq!(forwarded(&object, Door::Xdp, &datagram).to, BACKENDS[0], "the next in turn");
    assert_eq!(forwarded(&object, Door::Tc, &udp(silent, DATAGRAMS, b"again")).to, BACKENDS[1], "and the next");
    // What idles goes on until something else is begun; the sweep ends it, too.
    assert_eq!(forwarded(&object, Door::Tc, &tcp(CLIENT, FRONTEND, ACK, 101, 901, b"on")).to, kept);
    thread::sleep(Duration::from_millis(1_100));
    assert_ne!(forwarded(&object, Door::Tc, &tcp(CLIENT, FRONTEND, SYN, 7, 0, &[])).to, kept);
}

fn a_datagram_without_checksum_stays_without() {
    for door in FRONT_DOORS {
        let object = object();
        let mut frame = udp(CLIENT, DATAGRAMS, b"payload");
        frame[40..42].fill(0);

        let (did, out) = object.run(door, &frame);

        assert_eq!((did, &out[40..42]), (Action::Redirect, [0, 0].as_slice()), "{door:?}");
        assert!(judge(&out).unwrap().ip_sum);
    }
}

fn two_frontends_on_one_backend_never_share_a_port() {
    for door in FRONT_DOORS {
        let mut object = object();
        let other = ([198, 18, 1, 1], 81);
        object.backend(9, 2, 1, BACKENDS[0]);
        object.serve(2, other, Proto::Tcp, &[9]);
        assert_eq!(open(&object, door, CLIENT, FRONTEND), BACKENDS[0]);

        let syn = forwarded(&object, door, &tcp(CLIENT, other, SYN, 5, 0, &[]));
        assert_eq!(syn.to, BACKENDS[0]);
        assert_ne!(syn.from, CLIENT, "the backend already knows a connection of that port");
        assert_eq!(object.count(Event::PortRemapped.index()), 1);
        let answer = forwarded(&object, Door::Reply, &tcp(BACKENDS[0], syn.from, SYN | ACK, 7, 6, &[]));
        assert_eq!((answer.from, answer.to), (other, CLIENT));
        assert_eq!(forwarded(&object, door, &tcp(CLIENT, other, ACK, 6, 8, &[])).from, syn.from);
        let first = forwarded(&object, Door::Reply, &tcp(BACKENDS[0], CLIENT, ACK, 901, 101, b"first"));
        assert_eq!((first.from, first.to), (FRONTEND, CLIENT), "{door:?}: the first one is as it was");
    }
}

fn a_backend_that_is_its_own_client_sees_the_host() {
    let mut object = object();
    object.publish(0, &[0]);
    let from = (BACKENDS[0].0, 40_000);

    let syn = forwarded(&object, Door::Tc, &tcp(from, FRONTEND, SYN, 1, 0, &[]));

    assert_eq!((syn.from.0, syn.to), ([198, 18, 2, 1], BACKENDS[0]));
    assert!((1024..32_768).contains(&syn.from.1), "none of the ports that the host gives to its own sockets");
    let answer = forwarded(&object, Door::Reply, &tcp(BACKENDS[0], syn.from, SYN | ACK, 7, 2, &[]));
    assert_eq!((answer.from, answer.to), (FRONTEND, from));

    let backend = Backend::new(0, 1, Address::from_v4(BACKENDS[0].0), Port::new(BACKENDS[0].1));
    object.write_backend(0, backend);
    dropped(&object, Door::Tc, &tcp((from.0, 40_001), FRONTEND, SYN, 1, 0, &[]), DropReason::NoStandIn);
}

fn a_freed_backend_ends_its_flows() {
    for door in FRONT_DOORS {
        let mut object = object();
        let backend = open(&object, door, CLIENT, FRONTEND);
        object.publish(0, &[1, 2]);
        forwarded(&object, door, &tcp(CLIENT, FRONTEND, ACK, 101, 901, b"draining"));
        object.free(0);

        passed(&object, door, &tcp(CLIENT, FRONTEND, ACK, 101, 901, b"gone"), PassReason::BackendGone);
        passed(&object, Door::Reply, &tcp(backend, CLIENT, ACK, 901, 101, b"gone"), PassReason::BackendGone);
        assert_ne!(open(&object, door, CLIENT, FRONTEND), backend, "a SYN begins anew");
        assert_eq!(object.count(Event::Rescheduled.index()), 1);
        object.publish(0, &[]);
        passed(&object, door, &tcp(client(42_000), FRONTEND, SYN, 1, 0, &[]), PassReason::NoBackend);
        object.publish(0, &[0]);
        passed(&object, door, &tcp(client(42_000), FRONTEND, SYN, 1, 0, &[]), PassReason::StaleSlot);
    }
}

fn a_new_generation_inherits_nothing() {
    let mut object = object();
    assert_eq!(open(&object, Door::Tc, CLIENT, FRONTEND), BACKENDS[0]);
    object.backend(0, 0, 2, BACKENDS[0]);

    passed(&object, Door::Tc, &tcp(CLIENT, FRONTEND, ACK, 101, 901, b"old"), PassReason::BackendGone);
    passed(&object, Door::Reply, &tcp(BACKENDS[0], CLIENT, ACK, 901, 101, b"new"), PassReason::BackendGone);
}

fn a_direct_connection_is_not_hijacked() {
    let object = object();
    let backend = open(&object, Door::Tc, CLIENT, FRONTEND);
    close(&object, Door::Tc, CLIENT, FRONTEND, backend);
    passed(&object, Door::Tc, &tcp(CLIENT, backend, SYN, 1, 0, &[]), PassReason::NotOurs);
    passed(&object, Door::Reply, &tcp(backend, CLIENT, SYN | ACK, 7, 2, &[]), PassReason::NotReply);
    passed(&object, Door::Reply, &tcp(backend, CLIENT, ACK, 8, 2, b"direct"), PassReason::NotReply);
}

fn a_direct_connection_that_was_there_goes_on() {
    for door in FRONT_DOORS {
        let mut object = object();
        object.publish(0, &[0]);
        let syn = tcp(CLIENT, FRONTEND, SYN, 100, 0, &[]);
        assert_eq!(forwarded(&object, door, &syn).from, CLIENT, "the direct connection has not been seen");

        // Its data, and its answer to the SYN.
        passed(&object, Door::Reply, &tcp(BACKENDS[0], CLIENT, ACK, 7000, 555, b"direct"), PassReason::NotReply);
        passed(&object, Door::Reply, &tcp(BACKENDS[0], CLIENT, ACK, 7006, 555, &[]), PassReason::NotReply);
        passed(&object, Door::Reply, &tcp(BACKENDS[0], CLIENT, RST, 7006, 0, &[]), PassReason::NotReply);

        let again = forwarded(&object, door, &syn);
        assert_ne!(again.from, CLIENT, "{door:?}: that port is taken at the backend");
        let accepted = forwarded(&object, Door::Reply, &tcp(BACKENDS[0], again.from, SYN | ACK, 900, 101, &[]));
        assert_eq!((accepted.from, accepted.to), (FRONTEND, CLIENT));
        assert_eq!(forwarded(&object, door, &tcp(CLIENT, FRONTEND, ACK, 101, 901, &[])).from, again.from);
        passed(&object, Door::Reply, &tcp(BACKENDS[0], CLIENT, FIN | ACK, 7006, 555, &[]), PassReason::NotReply);
        assert_eq!(object.flow(CLIENT, FRONTEND, Proto::Tcp).unwrap().state(), State::Established);
    }
}

fn a_client_whose_port_is_remembered_tries_again_at_once() {
    for door in FRONT_DOORS {
        let mut object = object();
        object.publish(0, &[0]);
        let syn = tcp(CLIENT, FRONTEND, SYN, 100, 0, &[]);
        assert_eq!(forwarded(&object, door, &syn).from, CLIENT);

        // The backend's stack remembers another connection of that port, and says so.
        let told = forwarded(&object, Door::Reply, &tcp(BACKENDS[0], CLIENT, ACK, 7006, 555, &[]));
        assert_eq!((told.from, told.to), (FRONTEND, CLIENT), "{door:?}: it is its client who has to know");
        let (did, _) = object.run(door, &tcp(CLIENT, FRONTEND, RST, 555, 0, &[]));
        assert_eq!((did, object.count(DropReason::ForeignReset.index())), (Action::Drop, 1), "{door:?}");
        // Should it be a connection past us, that goes on.
        passed(&object, Door::Reply, &tcp(BACKENDS[0], CLIENT, ACK, 7006, 555, &[]), PassReason::NotReply);

        let again = forwarded(&object, door, &syn);
        assert_ne!(again.from, CLIENT, "{door:?}: that port is taken at the backend");
        let accepted = forwarded(&object, Door::Reply, &tcp(BACKENDS[0], again.from, SYN | ACK, 900, 101, &[]));
        assert_eq!((accepted.from, accepted.to), (FRONTEND, CLIENT));
    }
}

fn a_client_that_gave_up_may_try_again() {
    for door in FRONT_DOORS {
        let object = object();
        let backend = forwarded(&object, door, &tcp(CLIENT, FRONTEND, SYN, 100, 0, &[])).to;
        assert_eq!(forwarded(&object, door, &tcp(CLIENT, FRONTEND, SYN, 0x9000_0000, 0, &[])).to, backend);

        let accepted = forwarded(&object, Door::Reply, &tcp(backend, CLIENT, SYN | ACK, 900, 0x9000_0001, &[]));

        assert_eq!((accepted.from, accepted.to), (FRONTEND, CLIENT), "{door:?}");
    }
}

fn a_remembered_port_is_not_given_to_another() {
    let mut object = object();
    let other = ([198, 18, 1, 1], 81);
    object.backend(9, 2, 1, BACKENDS[0]);
    object.serve(2, other, Proto::Tcp, &[9]);
    assert_eq!(open(&object, Door::Tc, CLIENT, FRONTEND), BACKENDS[0]);
    close(&object, Door::Tc, CLIENT, FRONTEND, BACKENDS[0]);

    let syn = forwarded(&object, Door::Tc, &tcp(CLIENT, other, SYN, 5, 0, &[]));

    assert_eq!(syn.to, BACKENDS[0]);
    assert_ne!(syn.from, CLIENT, "the backend is in TIME_WAIT for that port, and may refuse the SYN");
}

fn what_comes_late_is_not_judged_by_another_connection() {
    for door in FRONT_DOORS {
        let mut object = object();
        let other = ([198, 18, 1, 1], 81);
        object.backend(9, 2, 1, BACKENDS[0]);
        object.serve(2, other, Proto::Tcp, &[9]);
        assert_eq!(open(&object, door, CLIENT, FRONTEND), BACKENDS[0]);
        close(&object, door, CLIENT, FRONTEND, BACKENDS[0]);
        // The backend accepts a direct connection of the same port, and forgets it; the client connects to the other.
        passed(&object, Door::Reply, &tcp(BACKENDS[0], CLIENT, SYN | ACK, 7, 6, &[]), PassReason::NotReply);
        assert_eq!(forwarded(&object, door, &tcp(CLIENT, other, SYN, 5000, 0, &[])).from, CLIENT, "{door:?}");
        let before = object.half_open(CLIENT, FRONTEND, Proto::Tcp).unwrap().state();

        forwarded(&object, door, &tcp(CLIENT, FRONTEND, RST, 5001, 0, &[]));
        forwarded(&object, door, &tcp(CLIENT, FRONTEND, RST, 1 << 31, 0, &[]));

        assert_eq!(object.half_open(CLIENT, FRONTEND, Proto::Tcp).unwrap().state(), before, "{door:?}");
        assert_eq!(object.count(Event::OutOfWindow.index()), 0, "{door:?}");
    }
}

fn replies_follow_only_who_knows_the_connection() {
    for door in FRONT_DOORS {
        let mut object = object();
        let backend = open(&object, door, CLIENT, FRONTEND);
        let here = object.reply(backend, CLIENT, Proto::Tcp).unwrap().ifindex;
        object.move_flow((CLIENT, FRONTEND), (backend, CLIENT), here + 76);
        let device = |object: &Object| object.reply(backend, CLIENT, Proto::Tcp).unwrap().ifindex;

        std::thread::sleep(Duration::from_millis(1_100));
        forwarded(&object, door, &tcp(CLIENT, FRONTEND, ACK, 0x7000_0000, 901, &[]));
        assert_eq!(device(&object), here + 76, "{door:?}: a forged segment has drawn the replies to its device");

        std::thread::sleep(Duration::from_millis(1_100));
        forwarded(&object, door, &tcp(CLIENT, FRONTEND, ACK, 101, 901, b"the client's"));
        assert_eq!(device(&object), here, "{door:?}: replies go where the client comes from");
    }
}

fn the_fallback_hands_over_to_routing() {
    let mut object = object();
    let backend = Backend::new(0, 1, Address::from_v4(BACKENDS[0].0), Port::new(BACKENDS[0].1)).reached_by(
        HandOff::Routing,
        0,
        [0; 6],
        [0; 6],
    );
    object.write_backend(0, backend);
    object.publish(0, &[0]);
    let syn = tcp(CLIENT, FRONTEND, SYN, 1, 0, &[]);

    let (did, out) = object.run(Door::Tc, &syn);

    assert_eq!(did, Action::Route);
    assert_eq!(out[..12], syn[..12], "the link header is the host's business");
    let out = judge(&out).unwrap();
    assert!(out.to == BACKENDS[0] && out.ip_sum && out.transport_sum);
}

fn sizes_and_options_survive() {
    for door in FRONT_DOORS {
        let object = object();
        let backend = open(&object, door, CLIENT, FRONTEND);
        for size in (0..64).chain([1000, 1001, 1446, 1447, 1460]) {
            let payload: Vec<u8> = (0..size).map(|byte| byte as u8 ^ 0x5a).collect();
            forwarded(&object, door, &tcp(CLIENT, FRONTEND, ACK, 101, 901, &payload));
            forwarded(&object, Door::Reply, &tcp(backend, CLIENT, ACK, 901, 101, &payload));
            forwarded(&object, door, &udp(client(50_000 + size), DATAGRAMS, &payload));
        }
        for words in 1..=10 {
            let frame = with_ip_options(tcp(CLIENT, FRONTEND, ACK, 101, 901, b"options"), words);
            assert_eq!(forwarded(&object, door, &frame).to, backend, "{door:?}, {words} words");
        }
    }
}

/// Puts VLAN tags into a frame.
fn tag(frame: &mut Vec<u8>, tags: &[u8]) {
    frame.splice(12..12, tags.iter().copied());
}

fn what_is_not_ours_is_left_untouched() {
    type Change = fn(&mut Vec<u8>);
    let changes: [(&str, PassReason, Change); 17] = [
        ("another port", PassReason::NotOurs, |frame| frame[37] = 81),
        ("another address", PassReason::NotOurs, |frame| frame[33] = 9),
        ("ARP", PassReason::NotIp, |frame| frame[12..14].copy_from_slice(&[8, 6])),
        ("IPv4 in an IPv6 frame", PassReason::Malformed, |frame| frame[12..14].copy_from_slice(&[0x86, 0xdd])),
        ("a VLAN tag", PassReason::Vlan, |frame| tag(frame, &[0x81, 0, 0, 5])),
        ("a service tag", PassReason::Vlan, |frame| tag(frame, &[0x88, 0xa8, 0, 100])),
        ("a VLAN inside a service", PassReason::Vlan, |frame| tag(frame, &[0x88, 0xa8, 0, 100, 0x81, 0, 0, 5])),
        ("a priority", PassReason::Vlan, |frame| tag(frame, &[0x81, 0, 0xa0, 0])),
        ("ICMP", PassReason::Protocol, |frame| frame[23] = 1),
        ("GRE", PassReason::Protocol, |frame| frame[23] = 47),
        ("SCTP", PassReason::Protocol, |frame| frame[23] = 132),
        ("a later fragment", PassReason::Fragment, |frame| frame[21] = 9),
        ("a header of four words", PassReason::Malformed, |frame| frame[14] = 0x44),
        ("version 5", PassReason::Malformed, |frame| frame[14] = 0x55),
        ("longer than the frame", PassReason::Malformed, |frame| frame[17] = 200),
        ("a TCP header of four words", PassReason::Malformed, |frame| frame[46] = 0x40),
        ("no flow and no SYN", PassReason::NoFlow, |frame| frame[47] = ACK),
    ];
    for door in FRONT_DOORS {
        let object = object();
        for (what, reason, change) in changes {
            let mut frame = tcp(CLIENT, FRONTEND, SYN, 1, 0, &[]);
            change(&mut frame);
            eprintln!("{door:?}: {what}");
            passed(&object, door, &frame, reason);
        }
        for flags in [SYN | FIN, SYN | RST, SYN | ACK, RST, FIN, 0] {
            passed(&object, door, &tcp(CLIENT, FRONTEND, flags, 1, 1, &[]), PassReason::NoFlow);
        }
        let whole = tcp(CLIENT, FRONTEND, SYN, 1, 0, &[]);
        for len in least(door)..whole.len() {
            passed(&object, door, &whole[..len], PassReason::Malformed);
        }
        let mut short = udp(CLIENT, DATAGRAMS, b"payload");
        short[39] = 7;
        passed(&object, door, &short, PassReason::Malformed);
        passed(&object, Door::Reply, &tcp(BACKENDS[0], CLIENT, ACK, 1, 1, b"?"), PassReason::NotReply);
    }
}

/// A datagram in three fragments, the payload's checksum over all of it.
fn in_fragments(from: Side, to: Side, id: u16) -> [Vec<u8>; 3] {
    let payload: Vec<u8> = (0..2600_u32).map(|byte| (byte * 7) as u8).collect();
    let whole = udp(from, to, &payload);
    let mut first = whole[..34 + 1000].to_vec();
    first[16..18].copy_from_slice(&1020_u16.to_be_bytes());
    [
        fragment(first, id, 0, false),
        later_fragment(from, to, id, 1000, false, &whole[1034..2034]),
        later_fragment(from, to, id, 2000, true, &whole[2034..]),
    ]
}

/// Puts a datagram together again; the kernel's own rules are not asked.
fn together(fragments: &[Vec<u8>]) -> Vec<u8> {
    let mut whole = fragments[0].clone();
    fragments[1..].iter().for_each(|fragment| whole.extend_from_slice(&fragment[34..]));
    let total = (whole.len() - 14) as u16;
    whole[16..18].copy_from_slice(&total.to_be_bytes());
    whole[20..22].fill(0);
    with_ttl(whole, 63)
}

fn fragments_follow_the_first_of_their_datagram() {
    let object = object();
    let sent = |door, frame: &[u8]| {
        let (did, out) = object.run(door, frame);
        assert_eq!((did, out.len()), (Action::Redirect, frame.len()), "{door:?}");
        out
    };
    let [first, second, third] = in_fragments(CLIENT, DATAGRAMS, 77);
    // Before the first one nobody knows the ports.
    passed(&object, Door::Tc, &second, PassReason::Fragment);
    let out = [&first, &third, &second].map(|frame| sent(Door::Tc, frame));
    let [first_out, third_out, second_out] = &out;
    let whole = judge(&together(&[first_out.clone(), second_out.clone(), third_out.clone()])).unwrap();
    assert!(whole.transport_sum && whole.from == CLIENT && BACKENDS.contains(&whole.to), "{whole:?}");
    assert_eq!(whole.payload.len(), 2600);
    for frame in &out {
        assert_eq!(frames::checksum(&[&frame[14..34]]), 0, "each header has a right checksum");
        assert_eq!(frame[30..34], whole.to.0);
    }
    // Another datagram of the client, of another backend's, is told apart by its number alone.
    let [other, other_second, _] = in_fragments(client(40_001), DATAGRAMS, 78);
    let other = sent(Door::Tc, &other);
    assert_ne!(other[30..34], whole.to.0);
    assert_eq!(sent(Door::Tc, &other_second)[30..34], other[30..34]);
    assert_eq!(sent(Door::Tc, &third)[30..34], whole.to.0);

    let answer = in_fragments(whole.to, CLIENT, 5).map(|frame| sent(Door::Reply, &frame));
    let answer = judge(&together(&answer)).unwrap();
    assert!(answer.transport_sum && (answer.from, answer.to) == (DATAGRAMS, CLIENT), "{answer:?}");

    dropped(&object, Door::Tc, &with_ttl(second.clone(), 1), DropReason::TtlExpired);
    // What goes to a frontend is no reply, though it may pass the reply door of a backend that is its client.
    passed(&object, Door::Reply, &second, PassReason::NotReply);

    // A segment of TCP, too; and XDP leaves all of them to TC.
    let backend = open(&object, Door::Tc, CLIENT, FRONTEND);
    let data = fragment(tcp(CLIENT, FRONTEND, ACK, 101, 901, &[7; 64]), 9, 0, false);
    assert_eq!(sent(Door::Tc, &data)[30..34], backend.0);
    for frame in [&first, &second, &data] {
        let (did, out) = object.run(Door::Xdp, frame);
        assert_eq!((did, &out), (Action::Pass, frame));
    }
}

/// Sends an ICMP error that has to be translated, and returns what came out.
fn translated(object: &Object, door: Door, frame: &[u8]) -> JudgedError {
    let before = object.count(Event::IcmpError.index());
    let (did, out) = object.run(door, frame);
    assert_eq!((did, out.len()), (Action::Redirect, frame.len()), "{door:?}: {:?}", judge_error(frame));
    assert_eq!(object.count(Event::IcmpError.index()), before + 1);
    let (before, after) = (judge_error(frame).unwrap(), judge_error(&out).unwrap());
    assert_eq!((after.kind, after.mtu, after.sums), (before.kind, before.mtu, [true; 3]), "{door:?}");
    assert_eq!(after.inner_sum, before.inner_sum);
    after
}

const ROUTER: [u8; 4] = [198, 18, 77, 1];
/// Fragmentation needed.
const TOO_BIG: (u8, u8) = (3, 4);
const PORT_UNREACHABLE: (u8, u8) = (3, 3);

fn errors_reach_the_backend_that_they_are_about() {
    let mut object = object();
    let backend = open(&object, Door::Tc, CLIENT, FRONTEND);
    for (about, quoted) in [
        (tcp(FRONTEND, CLIENT, ACK, 901, 101, &[5; 40]), 8),
        (tcp(FRONTEND, CLIENT, ACK, 901, 101, &[5; 40]), 20),
        (tcp(FRONTEND, CLIENT, ACK, 901, 101, &[5; 40]), 60),
        (tcp(FRONTEND, CLIENT, ACK, 901, 101, &[5; 41]), 61),
        (with_ip_options(tcp(FRONTEND, CLIENT, ACK, 901, 101, &[]), 2), 20),
    ] {
        for kind in [TOO_BIG, (11, 0), (12, 0), PORT_UNREACHABLE] {
            let error = translated(&object, Door::Tc, &icmp_error(ROUTER, FRONTEND.0, kind, &about, quoted));
            assert_eq!(
                (error.from, error.to, error.about),
                (ROUTER, backend.0, (backend, CLIENT)),
                "{kind:?} {quoted}"
            );
        }
    }
    // What the client's own host says, about a connection that is not proven.
    let syn = forwarded(&object, Door::Tc, &tcp(client(40_001), FRONTEND, SYN, 100, 0, &[]));
    let about = tcp(FRONTEND, client(40_001), SYN | ACK, 900, 101, &[]);
    let error = translated(&object, Door::Tc, &icmp_error(CLIENT.0, FRONTEND.0, PORT_UNREACHABLE, &about, 8));
    assert_eq!((error.from, error.to, error.about), (CLIENT.0, syn.to.0, (syn.to, client(40_001))));
    // UDP, with a checksum and without one.
    let asked = forwarded(&object, Door::Tc, &udp(CLIENT, DATAGRAMS, b"?"));
    let mut without = udp(DATAGRAMS, CLIENT, b"an answer");
    without[40..42].fill(0);
    for about in [udp(DATAGRAMS, CLIENT, b"an answer"), without] {
        let error = translated(&object, Door::Tc, &icmp_error(ROUTER, DATAGRAMS.0, TOO_BIG, &about, 17));
        assert_eq!((error.to, error.about), (asked.to.0, (asked.to, CLIENT)));
    }
    // A backend that is its own client, which it knows as the host.
    object.publish(0, &[0]);
    let own = (BACKENDS[0].0, 41_000);
    let stand_in = forwarded(&object, Door::Tc, &tcp(own, FRONTEND, SYN, 1, 0, &[])).from;
    assert_ne!(stand_in.0, own.0);
    let about = tcp(FRONTEND, own, ACK, 901, 101, &[]);
    let error = translated(&object, Door::Tc, &icmp_error(ROUTER, FRONTEND.0, TOO_BIG, &about, 8));
    assert_eq!((error.to, error.about), (BACKENDS[0].0, (BACKENDS[0], stand_in)));
}

fn errors_reach_the_client_that_they_are_about() {
    let object = object();
    let backend = open(&object, Door::Tc, CLIENT, FRONTEND);
    let about = tcp(CLIENT, backend, ACK, 101, 901, &[5; 40]);
    for (who, seen) in [(backend.0, FRONTEND.0), (ROUTER, ROUTER)] {
        for quoted in [8, 60] {
            let error = translated(&object, Door::Reply, &icmp_error(who, CLIENT.0, TOO_BIG, &about, quoted));
            assert_eq!((error.from, error.to, error.about), (seen, CLIENT.0, (CLIENT, FRONTEND)), "{quoted}");
        }
    }
    let asked = forwarded(&object, Door::Tc, &udp(CLIENT, DATAGRAMS, b"?"));
    let about = udp(CLIENT, asked.to, b"?");
    let error = translated(&object, Door::Reply, &icmp_error(asked.to.0, CLIENT.0, PORT_UNREACHABLE, &about, 9));
    assert_eq!((error.from, error.to, error.about), (DATAGRAMS.0, CLIENT.0, (CLIENT, DATAGRAMS)));
    // The client's port was taken on the backend's side.
    let mut object = self::object();
    object.publish(0, &[0]);
    object.serve(2, ([198, 18, 1, 9], 80), Proto::Tcp, &[6]);
    object.backend(6, 2, 1, BACKENDS[0]);
    open(&object, Door::Tc, CLIENT, FRONTEND);
    let other = forwarded(&object, Door::Tc, &tcp(CLIENT, ([198, 18, 1, 9], 80), SYN, 1, 0, &[]));
    assert_ne!(other.from.1, CLIENT.1);
    let about = tcp(other.from, BACKENDS[0], SYN, 1, 0, &[]);
    let error = translated(&object, Door::Reply, &icmp_error(BACKENDS[0].0, CLIENT.0, PORT_UNREACHABLE, &about, 20));
    assert_eq!((error.from, error.about), ([198, 18, 1, 9], (CLIENT, ([198, 18, 1, 9], 80))));
}

fn errors_about_others_are_left_untouched() {
    let mut object = object();
    let backend = open(&object, Door::Tc, CLIENT, FRONTEND);
    let about = tcp(FRONTEND, CLIENT, ACK, 901, 101, &[]);
    let error = icmp_error(ROUTER, FRONTEND.0, TOO_BIG, &about, 8);
    let changed = |at: usize, value: u8| {
        let mut frame = error.clone();
        frame[at] = value;
        frame
    };
    for (what, frame, reason) in [
        ("an echo", changed(34, 8), PassReason::Protocol),
        ("about another connection", changed(65, 9), PassReason::Protocol),
        ("about ICMP", changed(51, 1), PassReason::Protocol),
        ("about a later fragment", changed(49, 1), PassReason::Protocol),
        ("a fragment", changed(20, 0x20), PassReason::Fragment),
        ("about IPv6", changed(42, 0x65), PassReason::Malformed),
        ("shorter than what it has to quote", error[..error.len() - 1].to_vec(), PassReason::Malformed),
    ] {
        eprintln!("{what}");
        passed(&object, Door::Tc, &frame, reason);
    }
    let about = tcp(client(9), backend, ACK, 901, 101, &[]);
    passed(&object, Door::Reply, &icmp_error(backend.0, CLIENT.0, TOO_BIG, &about, 8), PassReason::Protocol);
    assert_eq!(object.run(Door::Xdp, &error).0, Action::Pass, "TC does it");
    dropped(&object, Door::Tc, &with_ttl(error.clone(), 1), DropReason::TtlExpired);
    BACKENDS.iter().zip(0..).for_each(|(_, id)| object.free(id));
    passed(&object, Door::Tc, &error, PassReason::BackendGone);
}

/// Sends a packet that has to be answered, and returns the answer.
fn answered(object: &Object, door: Door, frame: &[u8], reason: DropReason) -> JudgedError {
    let before = object.count(reason.index());
    let (did, out) = object.run(door, frame);
    assert_eq!(did, Action::Redirect, "{door:?}");
    assert_eq!(object.count(reason.index()), before + 1);
    assert_eq!((&out[..6], &out[6..12]), (&frame[6..12], &frame[..6]), "back to where it came from");
    let answer = judge_error(&out).unwrap();
    assert_eq!(answer.sums, [true; 3]);
    let asked = judge(frame).unwrap();
    assert_eq!((answer.to, answer.about), (asked.from.0, (asked.from, asked.to)));
    answer
}

fn a_packet_at_its_end_is_answered() {
    let object = object();
    let backend = open(&object, Door::Tc, CLIENT, FRONTEND);
    for ttl in [0, 1] {
        for frame in [
            tcp(CLIENT, FRONTEND, ACK, 101, 901, b"data"),
            tcp(client(1), FRONTEND, SYN, 1, 0, &[]),
            udp(CLIENT, DATAGRAMS, b"?"),
            udp(CLIENT, DATAGRAMS, &[1; 1400]),
        ] {
            let frame = with_ttl(frame, ttl);
            let answer = answered(&object, Door::Tc, &frame, DropReason::TtlExpired);
            assert_eq!((answer.from, answer.kind), (FRONTEND.0, (11, 0)));
            assert_eq!(object.run(Door::Xdp, &frame), (Action::Pass, frame), "TC does it");
        }
        let answer = answered(
            &object,
            Door::Reply,
            &with_ttl(tcp(backend, CLIENT, ACK, 901, 101, b"data"), ttl),
            DropReason::TtlExpired,
        );
        assert_eq!((answer.from, answer.kind), ([198, 18, 2, 1], (11, 0)), "the backend's router says so");
    }
    assert!(object.half_open(client(1), FRONTEND, Proto::Tcp).is_none(), "no flow begins");
    // Nobody else's packets are judged by it, and nothing is said about headers with options.
    passed(&object, Door::Tc, &with_ttl(tcp(CLIENT, client(80), SYN, 1, 0, &[]), 1), PassReason::NotOurs);
    let frame = with_ip_options(with_ttl(tcp(CLIENT, FRONTEND, ACK, 101, 901, &[]), 1), 1);
    dropped(&object, Door::Tc, &frame, DropReason::TtlExpired);
}

fn answers_have_a_budget() {
    let object = object();
    let frame = with_ttl(udp(CLIENT, DATAGRAMS, b"?"), 1);
    let answers = (0..5000).filter(|_| object.run(Door::Tc, &frame).0 == Action::Redirect).count();
    // As many a second on each processor; the test takes less than a second, or a few.
    assert!((1000..5000).contains(&answers), "{answers}");
    assert_eq!(object.count(DropReason::TtlExpired.index()), 5000);
}

fn a_flood_pushes_out_no_proven_flow() {
    let mut object = Object::load_with(4096, 1024);
    set_up(&mut object);
    let proven: Vec<(Side, Side)> = (0..64)
        .map(|number| (client(20_000 + number), open(&object, Door::Tc, client(20_000 + number), FRONTEND)))
        .collect();
    let mut dice = Dice::new(7);
    for _ in 0..20_000 {
        let spoofed = ([198, 19, dice.below(256) as u8, dice.below(256) as u8], dice.below(65_000) as u16 + 1);
        let (did, _) = object.run(Door::Tc, &tcp(spoofed, FRONTEND, SYN, 1, 0, &[]));
        assert_eq!(did, Action::Redirect);
    }
    for (from, backend) in proven {
        assert_eq!(forwarded(&object, Door::Tc, &tcp(from, FRONTEND, ACK, 101, 901, b"here")).to, backend);
        assert_eq!(forwarded(&object, Door::Reply, &tcp(backend, from, ACK, 901, 105, b"too")).from, FRONTEND);
        // What was kept for when they are over has been pushed out: they find another place.
        forwarded(&object, Door::Tc, &tcp(from, FRONTEND, FIN | ACK, 105, 904, &[]));
        forwarded(&object, Door::Reply, &tcp(backend, from, FIN | ACK, 904, 106, &[]));
        assert_eq!(object.half_open(from, FRONTEND, Proto::Tcp).map(|flow| flow.state()), Some(State::Closed));
        assert!(object.flow(from, FRONTEND, Proto::Tcp).is_none());
        forwarded(&object, Door::Tc, &tcp(from, FRONTEND, ACK, 106, 905, &[]));
    }
}

fn a_full_table_of_flows_still_serves() {
    let mut object = Object::load_with(8, 1024);
    set_up(&mut object);
    for number in 0..32 {
        let from = client(20_000 + number);
        let backend = open(&object, Door::Tc, from, FRONTEND);
        assert_eq!(forwarded(&object, Door::Tc, &tcp(from, FRONTEND, ACK, 101, 901, b"data")).to, backend);
        assert_eq!(forwarded(&object, Door::Reply, &tcp(backend, from, ACK, 901, 105, b"data")).to, from);
    }
    assert!(object.count(Event::FlowTableFull.index()) >= 16);
    assert_eq!(object.count(DropReason::NoMemory.index()), 0);
}

/// Returns the fewest bytes that the kernel takes for a test: to make a socket buffer, it wants the IP header whole.
const fn least(door: Door) -> usize {
    match door {
        Door::Xdp => 14,
        Door::Tc | Door::Reply | Door::Local => 34,
    }
}

/// Mutated and random packets: what comes out is what went in, or a right translation of it.
fn mutated(door: Door) {
    let packets = std::env::var("LB_PACKETS").ok().and_then(|count| count.parse().ok()).unwrap_or(1_000_000);
    let seed = std::env::var("LB_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_124);
    eprintln!("LB_SEED={seed}");
    let object = object();
    let mut dice = Dice::new(seed);
    let mut templates = Vec::new();
    for number in 0..8 {
        let from = client(30_000 + number);
        let backend = open(&object, Door::Tc, from, FRONTEND);
        let payload = vec![number as u8; usize::from(number) * 13];
        if door == Door::Reply {
            templates.push(tcp(backend, from, ACK, 901, 101, &payload));
            templates.push(tcp(backend, from, FIN | ACK, 901, 101, &payload));
            templates.push(with_ip_options(tcp(backend, from, ACK, 901, 101, &payload), 3));
            forwarded(&object, Door::Tc, &udp(from, DATAGRAMS, b"question"));
            templates.extend(BACKENDS.map(|backend| udp(backend, from, &payload)));
        } else {
            templates.push(tcp(from, FRONTEND, SYN, 1, 0, &payload));
            templates.push(tcp(from, FRONTEND, ACK, 101, 901, &payload));
            templates.push(with_ip_options(tcp(from, FRONTEND, ACK, 101, 901, &payload), 2));
            templates.push(udp(from, DATAGRAMS, &payload));
        }
    }
    let mut out = vec![0; 2048];
    let (mut redirected, mut left) = (0, 0);
    for number in 0..packets {
        let mut frame = templates[dice.below(templates.len())].clone();
        match dice.below(8) {
            0 => frame.iter_mut().for_each(|byte| *byte = dice.below(256) as u8),
            1 => frame.truncate(least(door) + dice.below(frame.len() + 1 - least(door))),
            2 => {}
            // Mostly in the headers, where it matters.
            changes => {
                for _ in 0..changes - 2 {
                    let at = dice.below(frame.len().min(60));
                    frame[at] = dice.below(256) as u8;
                }
            }
        }
        if door != Door::Xdp && frame[12..14] == [0x86, 0xdd] && frame.len() < 54 {
            continue; // the kernel makes no such socket buffer
        }
        let (value, len) = object.run_into(door, &frame, &mut out);
        let came = &out[..len];
        match action(door, value) {
            Action::Pass => {
                assert_eq!(came, frame, "packet {number}: passed, but changed");
                left += 1;
            }
            Action::Redirect if frame[22] <= 1 => {
                let answer = judge_error(came).unwrap_or_else(|| panic!("packet {number}: {frame:02x?}"));
                assert!(answer.sums[..2] == [true; 2] && answer.to == frame[26..30], "packet {number}: {answer:?}");
            }
            Action::Redirect if frame[20] & 0x3f != 0 || frame[21] != 0 => {
                let [before, after] = [&frame, came].map(|bytes| frames::checksum(&[&bytes[14..34]]) == 0);
                assert!(len == frame.len() && (after || !before), "packet {number}: a fragment: {frame:02x?}");
            }
            Action::Redirect => {
                redirected += 1;
                assert_eq!(len, frame.len(), "packet {number}");
                let (Some(before), Some(after)) = (judge(&frame), judge(came)) else {
                    panic!("packet {number}: translated, but no whole packet: {frame:02x?}")
                };
                assert_eq!(before.payload, after.payload, "packet {number}");
                assert!(after.ip_sum || !before.ip_sum, "packet {number}: IP checksum broken: {frame:02x?}");
                assert!(after.transport_sum || !before.transport_sum, "packet {number}: checksum broken: {frame:02x?}");
                if door == Door::Reply {
                    assert!([FRONTEND, DATAGRAMS].contains(&after.from), "packet {number}: {after:?}");
                } else {
                    assert!(BACKENDS.contains(&after.to), "packet {number}: {after:?}");
                }
            }
            Action::Drop => {
                let drops: u64 = DropReason::ALL.iter().map(|reason| object.count(reason.index())).sum();
                assert!(drops > 0, "packet {number}: dropped without a reason");
            }
            other @ (Action::Route | Action::Return | Action::Unknown(_)) => {
                panic!("packet {number}: {other:?}: {frame:02x?}")
            }
        }
    }
    eprintln!("{door:?}: {redirected} translated, {left} left alone");
    assert!(redirected > packets / 20 && left > packets / 20, "the mix does not test both");
}
