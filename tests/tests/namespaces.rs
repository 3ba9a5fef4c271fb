//! Real clients and real servers through real namespaces, on a host whose firewall lets nothing be forwarded.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    process::ExitCode,
    time::{Duration, Instant},
};

use aya::maps::{Array, Map, MapData};
use lb_ebpf::abi::{AgentRecord, LocalFlow, map};
use lb_tests::{
    agent::{Agent, assert_gone, assert_no_failure, binary, detach, lb_user},
    lab::{self, Lab, UPLINK, Wiring, inside, wait_until},
    suite::{self, Case, Need},
};
use lb_user::datapath::{Maps, Pins};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::Signal,
};
use serde_json::{Value, json};

const TOOLS_ALONE: &[Need] = &[
    Need::Alone,
    Need::Root,
    Need::Agent,
    Need::Program("ip"),
    Need::Program("nsenter"),
    Need::Program("nft"),
    Need::Program("curl"),
    Need::Program("nginx"),
    Need::Program("wrk"),
    Need::Program("iperf3"),
    Need::Program("ethtool"),
    Need::Program("tcpdump"),
    Need::Program("redis-server"),
];

/// The same beside others.
const TOOLS: &[Need] = TOOLS_ALONE.split_first().expect("it is not empty").1;

/// Those, and VLANs: where the kernel has none, `cargo xtask test vm` runs the cases.
const TOOLS_AND_VLANS: &[Need] = &[
    Need::Root,
    Need::Agent,
    Need::Program("ip"),
    Need::Program("nsenter"),
    Need::Program("nft"),
    Need::Program("curl"),
    Need::Program("nginx"),
    Need::Program("ethtool"),
    Need::Vlans,
];

#[path = "namespaces/cgroup.rs"]
mod cgroup;
#[path = "namespaces/check.rs"]
mod check;
#[path = "namespaces/flood.rs"]
mod flood;
#[path = "namespaces/local.rs"]
mod local;
#[path = "namespaces/operate.rs"]
mod operate;
#[path = "namespaces/response.rs"]
mod response;
#[path = "namespaces/snat.rs"]
mod snat;
#[path = "namespaces/v6.rs"]
mod v6;
#[path = "namespaces/vlan.rs"]
mod vlan;
#[path = "namespaces/way.rs"]
mod way;

fn main() -> ExitCode {
    let case = |name, run| Case { name, needs: TOOLS, run };
    let vlan_case = |name, run| Case { name, needs: TOOLS_AND_VLANS, run };
    let lone_case = |name, run| Case { name, needs: TOOLS_ALONE, run };
    suite::run(vec![
        case("requests_hit_backends_strictly_in_turn", || in_turn(Wiring::Bridge)),
        case("routed_veths_are_served_alike", || in_turn(Wiring::Routed)),
        case("transfers_survive_checksum_offload_on_and_off", transfers_survive_checksum_offload_on_and_off),
        case("eight_parallel_streams_pass_both_ways", eight_parallel_streams_pass_both_ways),
        case("redis_is_served", redis_is_served),
        case("datagrams_stay_with_their_backend", datagrams_stay_with_their_backend),
        case("a_socket_tells_two_frontends_of_one_server_apart", a_socket_tells_two_frontends_of_one_server_apart),
        case("datagrams_go_on_by_an_uplink_that_was_replaced", datagrams_go_on_by_an_uplink_that_was_replaced),
        case("clients_on_the_host_see_the_frontend", clients_on_the_host_see_the_frontend),
        case("a_backend_reaches_its_own_frontend", a_backend_reaches_its_own_frontend),
        case("a_port_that_a_backend_remembers_costs_no_second", a_port_that_a_backend_remembers_costs_no_second),
        case("no_backend_address_is_seen_on_the_wire", no_backend_address_is_seen_on_the_wire),
        case("a_killed_agent_is_replaced_without_loss", a_killed_agent_is_replaced_without_loss),
        case("a_backend_that_fails_leaves_and_returns", a_backend_that_fails_leaves_and_returns),
        case(
            "a_backend_that_is_deaf_to_clients_alone_is_put_aside",
            a_backend_that_is_deaf_to_clients_alone_is_put_aside,
        ),
        case("slow_answers_are_seen_in_their_place", response::slow_answers_are_seen_in_their_place),
        case("clients_that_are_denied_are_dropped", clients_that_are_denied_are_dropped),
        case("without_backends_clients_are_refused_at_once", without_backends_clients_are_refused_at_once),
        case("instances_live_side_by_side_and_never_share", instances_live_side_by_side_and_never_share),
        case("keep_leaves_it_serving_and_detach_removes_it", keep_leaves_it_serving_and_detach_removes_it),
        case("clsact_serves_where_tcx_is_not_wanted", clsact_serves_where_tcx_is_not_wanted),
        case("a_killed_agent_with_filters_is_replaced", a_killed_agent_with_filters_is_replaced),
        case("instances_with_filters_share_an_uplink", instances_with_filters_share_an_uplink),
        case("filters_are_removed_in_their_namespace_alone", filters_are_removed_in_their_namespace_alone),
        case("xdp_serves_where_checksums_are_complete", xdp_serves_where_checksums_are_complete),
        case("sockets_of_ipv6_reach_the_frontend_by_ipv4", sockets_of_ipv6_reach_the_frontend_by_ipv4),
        case("a_backend_behind_a_router_is_served", a_backend_behind_a_router_is_served),
        case("links_without_addresses_carry_both_ways", links_without_addresses_carry_both_ways),
        case("a_smaller_link_behind_the_client_is_discovered", a_smaller_link_behind_the_client_is_discovered),
        case("a_smaller_uplink_is_discovered", a_smaller_uplink_is_discovered),
        case("static_backends_take_no_orders", operate::static_backends_take_no_orders),
        case("a_narrow_way_to_a_backend_is_discovered", way::a_narrow_way_to_a_backend_is_discovered),
        case("a_narrow_routed_way_is_discovered", way::a_narrow_routed_way_is_discovered),
        case("a_routed_backend_is_one_hop_away", way::a_routed_backend_is_one_hop_away),
        case("other_machines_of_the_network_reply_by_snat", snat::other_machines_of_the_network_reply_by_snat),
        case(
            "containers_on_macvlan_are_reached_by_a_macvlan_of_the_host",
            snat::containers_on_macvlan_are_reached_by_a_macvlan_of_the_host,
        ),
        case("what_cannot_be_balanced_is_told_with_what_to_do", snat::what_cannot_be_balanced_is_told_with_what_to_do),
        case("fragmented_datagrams_arrive_whole", fragmented_datagrams_arrive_whole),
        case("errors_of_the_network_reach_clients", errors_of_the_network_reach_clients),
        case("servers_of_the_host_are_balanced", || local::servers_of_the_host_are_balanced(&[], "tcx")),
        case("servers_of_the_host_are_balanced_by_filters", || {
            local::servers_of_the_host_are_balanced(&["tc-attach = \"clsact\""], "clsact");
        }),
        case("servers_of_the_host_are_balanced_by_xdp", || {
            local::servers_of_the_host_are_balanced(&["hook = \"xdp\"", "complete-checksums = true"], "xdp");
        }),
        case("a_direct_connection_to_a_server_of_the_host_is_let_be", local::a_direct_connection_is_let_be),
        case("a_killed_agent_leaves_servers_of_the_host_served", local::a_killed_agent_leaves_them_served),
        case("servers_of_the_host_come_and_go", local::they_come_and_go),
        case("what_the_host_sends_finds_out_how_big_it_may_be", local::it_finds_out_how_big_it_may_be),
        case("servers_of_the_host_answer_by_a_tunnel", local::they_answer_by_a_tunnel),
        case("what_the_host_cannot_be_for_itself_is_told", local::what_it_cannot_be_is_told),
        Case {
            name: "groups_of_version_2_freeze_and_tell_their_cpu",
            needs: cgroup::NEEDS,
            run: cgroup::groups_of_version_2_freeze_and_tell_their_cpu,
        },
        vlan_case("servers_of_the_host_are_reached_by_vlans", local::they_are_reached_by_vlans),
        vlan_case("vlans_of_an_uplink_are_served", vlan::vlans_of_an_uplink_are_served),
        vlan_case("xdp_leaves_vlans_to_their_devices", vlan::xdp_leaves_vlans_to_their_devices),
        vlan_case("a_vlan_may_be_the_uplink", vlan::a_vlan_may_be_the_uplink),
        case("tags_that_lead_nowhere_are_told_apart", vlan::tags_that_lead_nowhere_are_told_apart),
        case("two_instances_share_an_uplink_and_no_notes", two_instances_share_an_uplink_and_no_notes),
        case("a_vanished_device_keeps_nobody_else_out", a_vanished_device_keeps_nobody_else_out),
        case("a_backend_with_a_new_device_is_followed", a_backend_with_a_new_device_is_followed),
        case("a_frontend_may_change_its_address", a_frontend_may_change_its_address),
        case(
            "a_backend_that_leaves_the_list_keeps_its_connections",
            a_backend_that_leaves_the_list_keeps_its_connections,
        ),
        case(
            "services_share_an_agent_and_a_reload_touches_what_changed",
            services_share_an_agent_and_a_reload_touches_what_changed,
        ),
        case("the_backend_with_the_fewest_connections_is_next", the_backend_with_the_fewest_connections_is_next),
        case("a_client_keeps_its_backend", a_client_keeps_its_backend),
        case("connections_wait_while_all_backends_are_full", connections_wait_while_all_backends_are_full),
        case("a_limit_holds_as_long_as_somebody_sweeps", a_limit_holds_as_long_as_somebody_sweeps),
        case("another_scheduler_takes_over_without_loss", another_scheduler_takes_over_without_loss),
        case("sockets_that_are_gone_are_forgotten", sockets_that_are_gone_are_forgotten),
        case("an_agent_waits_for_no_other_instance", an_agent_waits_for_no_other_instance),
        case("a_takeover_that_fails_breaks_nothing", a_takeover_that_fails_breaks_nothing),
        case("a_start_that_is_killed_keeps_no_other_out", a_start_that_is_killed_keeps_no_other_out),
        case("clients_of_ipv6_are_served", v6::clients_of_ipv6_are_served),
        case("xdp_serves_ipv6", v6::xdp_serves_ipv6),
        case("each_family_is_led_to_its_own_backends", v6::each_family_is_led_to_its_own_backends),
        case("clients_of_ipv6_on_the_host_see_the_frontend", v6::clients_of_ipv6_on_the_host_see_the_frontend),
        case("smaller_links_are_discovered_over_ipv6", v6::smaller_links_are_discovered_over_ipv6),
        case("datagrams_over_ipv6_arrive_whole", v6::datagrams_over_ipv6_arrive_whole),
        case("errors_of_ipv6_reach_clients", v6::errors_of_ipv6_reach_clients),
        lone_case("clients_are_served_in_a_flood", || flood::clients_are_served_in_a_flood(flood::Version::V4, &[])),
        lone_case("clients_of_ipv6_are_served_in_a_flood", || {
            flood::clients_are_served_in_a_flood(flood::Version::V6, &[]);
        }),
        lone_case("clients_are_served_in_a_flood_that_meets_xdp", || {
            flood::clients_are_served_in_a_flood(flood::Version::V4, &["--hook", "xdp", "--complete-checksums"]);
        }),
        lone_case("clients_are_served_in_a_flood_that_xdp_answers", || {
            flood::clients_are_served_in_a_flood(flood::Version::V4, &["--hook", "xdp-generic"]);
        }),
        lone_case(
            "a_flood_is_the_backends_own_where_cookies_are_off",
            flood::a_flood_is_the_backends_own_where_cookies_are_off,
        ),
        case("mistakes_are_explained_and_leave_nothing", mistakes_are_explained_and_leave_nothing),
        lone_case("check_leaves_nothing_on_a_machine", check::check_leaves_nothing_on_a_machine),
        lone_case("check_finds_what_run_refuses", check::check_finds_what_run_refuses),
        lone_case("check_tells_what_keeps_clients_away", check::check_tells_what_keeps_clients_away),
        lone_case("check_tells_of_instances_that_run", check::check_tells_of_instances_that_run),
        lone_case(
            "check_without_root_tells_what_is_out_of_sight",
            check::check_without_root_tells_what_is_out_of_sight,
        ),
    ])
}

/// Arguments for static backends at port 80 and a frontend at port 80.
fn arguments(backends: usize) -> Vec<String> {
    let mut arguments: Vec<String> = ["--publish", "80", "--uplink", "up0"].map(str::to_owned).into();
    for number in 0..backends {
        arguments.extend(["--backend".to_owned(), format!("{}:80", lab::backend(number))]);
    }
    arguments
}

fn start(lab: &Lab, arguments: &[String], more: &[&str]) -> Agent {
    let all: Vec<&str> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
    Agent::start(Some(&lab.balancer()), &lab.instance(), &all)
}

/// A lab with nginx in every backend, and an agent that serves them.
fn served(backends: usize, more: &[&str]) -> (Lab, Agent) {
    let mut lab = Lab::new(backends, Wiring::Bridge);
    lab.start_servers();
    let agent = start(&lab, &arguments(backends), more);
    agent.wait_ready(backends as u64);
    (lab, agent)
}

fn in_turn(wiring: Wiring) {
    let mut lab = Lab::new(3, wiring);
    lab.start_servers();
    let mut agent = start(&lab, &arguments(3), &[]);
    agent.wait_ready(3);

    let answers: Vec<String> = (0..12).map(|_| lab.get("http://198.18.1.1/")).collect();
    let first: usize = answers[0].trim_start_matches("backend ").parse().expect("a backend's number");
    for (turn, answer) in answers.iter().enumerate() {
        assert_eq!(*answer, format!("backend {}", (first + turn) % 3), "{answers:?}");
    }

    let status = agent.status();
    let frontend = &status["frontends"][0];
    assert_eq!((frontend["name"].as_str(), frontend["connections_total"].as_u64()), (Some("80/tcp"), Some(12)));
    for backend in frontend["backends"].as_array().expect("a list") {
        assert_eq!((backend["connections_total"].as_u64(), backend["reach"].as_str()), (Some(4), Some("veth")));
    }
    assert_eq!(lb_user(&["status", "--instance", &lab.instance()]).status.code(), Some(0));

    agent.stop(Signal::SIGTERM);
    assert_gone(&lab.instance());
    let programs = lab::run(lab.command(&lab.balancer(), "tc").args(["filter", "show", "dev", "up0", "ingress"]));
    assert_eq!(programs.trim(), "");
}

fn transfers_survive_checksum_offload_on_and_off() {
    let (lab, _agent) = served(2, &[]);
    for offload in ["on", "off"] {
        let set = |namespace: &str, device: &str| {
            lab::run(lab.command(namespace, "ethtool").args(["-K", device, "tx", offload, "rx", offload]));
        };
        set(&lab.client(), "cl0");
        for number in 0..2 {
            set(&lab.backend(number), "eth0");
        }
        for _ in 0..4 {
            let big = lab.from_client("curl", &["-s", "-m", "20", "http://198.18.1.1/big"]).stdout;
            let wrong = (0..20_000_000_u32)
                .zip(&big)
                .find(|(byte, got)| (byte.wrapping_mul(2_654_435_761) >> 24) as u8 != **got);
            assert_eq!((big.len(), wrong), (20_000_000, None), "offload {offload}");
        }
    }
}

fn eight_parallel_streams_pass_both_ways() {
    let lab = Lab::new(1, Wiring::Bridge);
    let mut server =
        lab.command(&lab.backend(0), "iperf3").arg("-s").stdout(std::process::Stdio::null()).spawn().unwrap();
    let backend = format!("{}:5201", lab::backend(0));
    let arguments = ["--publish", "5201", "--uplink", "up0", "--backend", &backend];
    let agent = Agent::start(Some(&lab.balancer()), &lab.instance(), &arguments);
    agent.wait_ready(1);
    for direction in [&[][..], &["-R"]] {
        let all = [&["-c", UPLINK, "-P", "8", "-t", "2", "--json"], direction].concat();
        let output = lab.from_client("iperf3", &all);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a report");
        let bytes = report["end"]["sum_received"]["bytes"].as_f64().unwrap_or(0.0);
        assert!(output.status.success() && bytes > 10e6, "{direction:?}: {report:#}");
    }
    lab::end(&mut server);
}

fn redis_is_served() {
    let lab = Lab::new(2, Wiring::Bridge);
    let mut servers: Vec<_> = (0..2)
        .map(|number| {
            let mut command = lab.command(&lab.backend(number), "redis-server");
            command.args(["--port", "6379", "--save", "", "--protected-mode", "no"]);
            command.stdout(std::process::Stdio::null()).spawn().expect("redis starts")
        })
        .collect();
    let backends: Vec<String> = (0..2).map(|number| format!("{}:6379", lab::backend(number))).collect();
    let arguments = ["--publish", "6379", "--uplink", "up0", "--backend", &backends[0], "--backend", &backends[1]];
    let agent = Agent::start(Some(&lab.balancer()), &lab.instance(), &arguments);
    agent.wait_ready(2);
    let value = "x".repeat(100_000);
    inside(&lab.client(), || {
        let mut redis = TcpStream::connect((UPLINK, 6379)).unwrap();
        redis.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        write!(redis, "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${}\r\n{value}\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n", value.len())
            .unwrap();
        let mut answer = vec![0; 5 + 9 + value.len() + 2];
        redis.read_exact(&mut answer).unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), format!("+OK\r\n$100000\r\n{value}\r\n"));
    });
    servers.iter_mut().for_each(lab::end);
}

/// Answers datagrams with a backend's number, as long as the test runs.
fn answer_datagrams(lab: &Lab, number: usize) {
    let socket = inside(&lab.backend(number), || UdpSocket::bind("0.0.0.0:53").expect("the port is free"));
    std::thread::spawn(move || {
        let mut room = [0; 2048];
        while let Ok((len, from)) = socket.recv_from(&mut room) {
            let answer = [&[number as u8], &room[..len]].concat();
            let _client_left = socket.send_to(&answer, from);
        }
    });
}

fn datagrams_stay_with_their_backend() {
    let lab = Lab::new(3, Wiring::Bridge);
    (0..3).for_each(|number| answer_datagrams(&lab, number));
    let backends: Vec<String> = (0..3).map(|number| format!("{}:53", lab::backend(number))).collect();
    let mut arguments = vec!["--publish", "53/udp", "--uplink", "up0"];
    backends.iter().for_each(|backend| arguments.extend(["--backend", backend]));
    let agent = Agent::start(Some(&lab.balancer()), &lab.instance(), &arguments);
    agent.wait_ready(3);

    inside(&lab.client(), || {
        for turn in 0..6_u8 {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            for size in [0, 1, 700, 1400] {
                socket.send_to(&vec![7; size], (UPLINK, 53)).unwrap();
                let mut room = [0; 2048];
                let (len, from) = socket.recv_from(&mut room).expect("an answer");
                assert_eq!((from, len), (SocketAddr::from(([198, 18, 1, 1], 53)), size + 1));
                assert_eq!(room[0], turn % 3, "one socket, one backend, and the next socket the next");
            }
        }
    });
    // Sockets of the balancer itself: connected and unconnected, and never the backend's address to be seen.
    inside(&lab.balancer(), || {
        let unconnected = UdpSocket::bind("0.0.0.0:0").unwrap();
        let connected = UdpSocket::bind("0.0.0.0:0").unwrap();
        connected.connect(("127.0.0.1", 53)).unwrap();
        assert_eq!(connected.peer_addr().unwrap(), SocketAddr::from(([127, 0, 0, 1], 53)));
        let mut room = [0; 16];
        for socket in [&unconnected, &connected] {
            socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        }
        let mut senders = Vec::new();
        for _ in 0..3 {
            unconnected.send_to(b"q", ("127.0.0.1", 53)).unwrap();
            let (_, from) = unconnected.recv_from(&mut room).expect("an answer");
            assert_eq!(from, SocketAddr::from(([127, 0, 0, 1], 53)));
            senders.push(room[0]);
        }
        senders.dedup();
        assert_eq!(senders.len(), 1, "one socket, one backend");
        connected.send(b"q").unwrap();
        assert_eq!(connected.recv_from(&mut room).expect("an answer").1, SocketAddr::from(([127, 0, 0, 1], 53)));
    });
}

fn a_socket_tells_two_frontends_of_one_server_apart() {
    let lab = Lab::new(2, Wiring::Bridge);
    (0..2).for_each(|number| answer_datagrams(&lab, number));
    let backends: Vec<String> = (0..2).map(|number| format!("{}:53", lab::backend(number))).collect();
    let mut arguments = vec!["--publish", "53/udp", "--publish", "54/udp", "--uplink", "up0"];
    backends.iter().for_each(|backend| arguments.extend(["--backend", backend]));
    let agent = Agent::start(Some(&lab.balancer()), &lab.instance(), &arguments);
    agent.wait_ready(2);

    inside(&lab.balancer(), || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        for port in [53, 54, 53, 54] {
            socket.send_to(b"q", ("127.0.0.1", port)).unwrap();
            let (_, from) = socket.recv_from(&mut [0; 16]).expect("an answer");
            assert_eq!(from, SocketAddr::from(([127, 0, 0, 1], port)), "the answer is that of whom was asked");
        }
    });
}

fn datagrams_go_on_by_an_uplink_that_was_replaced() {
    let lab = Lab::new(1, Wiring::Bridge);
    answer_datagrams(&lab, 0);
    let backend = format!("{}:53", lab::backend(0));
    let arguments = ["--publish", "53/udp", "--uplink", "up0", "--backend", &backend];
    let agent = Agent::start(Some(&lab.balancer()), &lab.instance(), &arguments);
    agent.wait_ready(1);
    let socket = inside(&lab.client(), || UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let asks = || {
        // While there is no route, it cannot even be sent.
        let _lost = socket.send_to(b"q", (UPLINK, 53));
        socket.recv_from(&mut [0; 16]).is_ok()
    };
    assert!(asks(), "the first is answered");

    lab.replace_uplink();

    // The agent looks at the interfaces every five seconds. The client is never quiet, so that no flow of it idles out.
    let start = Instant::now();
    while !asks() {
        assert!(start.elapsed() < Duration::from_secs(20), "replies go to the device that is gone");
    }
}

fn clients_on_the_host_see_the_frontend() {
    let (lab, agent) = served(3, &[]);
    for address in ["127.0.0.1", UPLINK, "198.18.2.1"] {
        let mut answers: Vec<String> = (0..6)
            .map(|_| {
                inside(&lab.balancer(), || {
                    let mut stream = TcpStream::connect((address, 80)).expect("connected");
                    assert_eq!(stream.peer_addr().unwrap().to_string(), format!("{address}:80"));
                    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
                    let mut text = String::new();
                    stream.read_to_string(&mut text).unwrap();
                    text.rsplit('\n').nth(1).unwrap_or_default().to_owned()
                })
            })
            .collect();
        answers.sort();
        answers.dedup();
        assert_eq!(answers, ["backend 0", "backend 1", "backend 2"], "{address}");
    }
    let frontend = &agent.status()["frontends"][0];
    assert_eq!(frontend["local_connections_total"], 18);
    assert_eq!(frontend["ingress"]["packets"], 0, "their packets pass the programs by");
    // A client elsewhere connects over the wire, whatever cgroup it is in.
    lab.get("http://198.18.1.1/");
    assert_eq!(agent.status()["frontends"][0]["local_connections_total"], 18);
}

fn a_backend_reaches_its_own_frontend() {
    let (lab, _agent) = served(2, &[]);
    let from_backend = || {
        let output =
            lab.command(&lab.backend(0), "curl").args(["-s", "-m", "3", "http://198.18.1.1/"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    };

    let mut answers: Vec<String> = (0..4).map(|_| from_backend()).collect();
    answers.sort();

    assert_eq!(answers, ["backend 0", "backend 0", "backend 1", "backend 1"], "itself included");
}

fn a_port_that_a_backend_remembers_costs_no_second() {
    const PORTS: std::ops::Range<u16> = 33_000..33_032;
    let (lab, agent) = served(1, &[]);
    lab.allow_forwarding();
    // Without time stamps, a stack that remembers a connection takes a new one for it if its sequence begins below.
    lab::run(lab.command(&lab.client(), "sysctl").args(["-qw", "net.ipv4.tcp_timestamps=0"]));
    // The server closes first, so that it remembers the connection and the client does not.
    let ask = |to: &str, port: u16| {
        let mut stream = lab::connect_from(port, format!("{to}:80").parse().expect("an endpoint"));
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("asked");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        assert!(answer.ends_with("backend 0\n"), "{to} from port {port}: {answer}");
    };
    inside(&lab.client(), || PORTS.for_each(|port| ask(&lab::backend(0), port)));

    let took = |port| {
        let started = Instant::now();
        ask("198.18.1.1", port);
        started.elapsed()
    };
    let slowest = inside(&lab.client(), || PORTS.map(took).max());

    assert!(slowest < Some(Duration::from_millis(900)), "a SYN comes again after a second: {slowest:?}");
    let status = agent.status();
    assert!(status["verdicts"]["events"]["rescheduled"].as_u64() > Some(0), "none met what it was to meet: {status}");
}

fn no_backend_address_is_seen_on_the_wire() {
    let (lab, _agent) = served(3, &[]);
    let mut tap = lab
        .command(&lab.client(), "tcpdump")
        .args(["-n", "-i", "cl0", "-U", "-w", "-", "net 198.18.2.0/24"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("tcpdump starts");
    std::thread::sleep(Duration::from_millis(500));
    let report = wrk(&lab, 3, true).wait_with_output().unwrap();
    assert!(assert_no_failure(&String::from_utf8_lossy(&report.stdout)) > 100);
    std::thread::sleep(Duration::from_millis(500));
    lab::end(&mut tap);
    let mut captured = Vec::new();
    tap.stdout.take().unwrap().read_to_end(&mut captured).unwrap();
    // Only the file's header: include/uapi of pcap has 24 bytes there.
    assert!(captured.len() <= 24, "{} bytes of packets with a backend's address", captured.len());
}

fn wrk(lab: &Lab, seconds: u32, closing: bool) -> std::process::Child {
    let mut command = lab.command(&lab.client(), "wrk");
    command.args(["-t1", "-c16", &format!("-d{seconds}")]);
    if closing {
        command.args(["-H", "Connection: close"]);
    }
    command.arg("http://198.18.1.1/").stdout(std::process::Stdio::piped()).spawn().expect("wrk starts")
}

fn a_killed_agent_is_replaced_without_loss() {
    let (lab, agent) = served(3, &[]);
    let loads = [wrk(&lab, 9, true), wrk(&lab, 9, false)];
    let mut held = hold(&lab);
    std::thread::sleep(Duration::from_secs(2));
    agent.crash();

    let output = lb_user(&["status", "--instance", &lab.instance()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("DEAD"));
    std::thread::sleep(Duration::from_secs(1));
    let next = start(&lab, &arguments(3), &[]);
    next.wait_ready(3);
    for load in loads {
        let report = load.wait_with_output().unwrap();
        assert!(assert_no_failure(&String::from_utf8_lossy(&report.stdout)) > 100);
    }
    assert!(ask_held(&mut held).starts_with("backend "));
}

fn a_backend_that_fails_leaves_and_returns() {
    let mut lab = Lab::new(2, Wiring::Bridge);
    lab.start_servers();
    let agent = start(&lab, &arguments(2), &["--health", "http:/", "--health-interval", "200ms"]);
    agent.wait_ready(2);
    lab.stop_server(1);
    agent.wait_for("the failing backend leaves", Duration::from_secs(10), |status| {
        status["frontends"][0]["backends"][1]["state"] == "unhealthy" && status["scaling"]["ready"] == 1
    });
    for _ in 0..4 {
        assert_eq!(lab.get("http://198.18.1.1/"), "backend 0");
    }
    lab.start_server(1);
    agent.wait_ready(2);
}

fn a_backend_that_is_deaf_to_clients_alone_is_put_aside() {
    let (lab, agent) = served(2, &[]);
    let rules =
        "table ip deaf { chain input { type filter hook input priority 0; ip saddr 198.18.1.2 tcp dport 80 drop; }; }";
    lab::run(lab.command(&lab.backend(1), "nft").arg(rules));

    // Half of them meet it. Their second repetition, after three seconds, goes to the other.
    let clients: Vec<_> = (0..12)
        .map(|_| {
            let mut curl = lab.command(&lab.client(), "curl");
            curl.args(["-s", "-f", "--max-time", "10", "-o", "/dev/null", "http://198.18.1.1/"]).spawn().expect("curl")
        })
        .collect();
    let deaf = |status: &Value| {
        let backend = status["frontends"][0]["backends"][1].clone();
        let error = backend["last_error"].as_str().unwrap_or_default().to_owned();
        backend["state"] == "unhealthy" && backend["slot"] == false && error.contains("wait for its answer")
    };
    agent.wait_for("the deaf one is aside", Duration::from_secs(5), deaf);
    for mut client in clients {
        assert!(client.wait().expect("curl ends").success(), "nobody is lost");
    }

    let started = Instant::now();
    (0..20).for_each(|_| assert_eq!(lab.get("http://198.18.1.1/"), "backend 0"));
    assert!(started.elapsed() < Duration::from_secs(3), "nobody waits for it any longer");
    let status = agent.status();
    assert!(deaf(&status), "its checks pass, and are not asked: {status}");
    let answers = &status["frontends"][0]["backends"][0]["handshakes"];
    assert!(answers["accepted"].as_u64() >= Some(26) && answers["p50_us"].is_u64(), "{answers}");
}

fn clients_that_are_denied_are_dropped() {
    let (lab, agent) = served(1, &["--allow", "198.18.1.0/24", "--deny", "198.18.1.2"]);
    let tries = || lab.from_client("curl", &["-s", "--max-time", "0.5", "http://198.18.1.1/"]).status.success();
    assert!(!tries(), "denied");
    let status = agent.status();
    assert!(status["verdicts"]["drops"]["denied"].as_u64() >= Some(1), "{status}");
    assert_eq!(status["frontends"][0]["guard"]["deny"], json!(["198.18.1.2/32"]));
    // Who is on the host is not asked.
    inside(&lab.balancer(), || TcpStream::connect((UPLINK, 80)).expect("connected"));

    agent.crash();
    let agent = start(&lab, &arguments(1), &["--source-rate", "1"]);
    agent.wait_ready(1);

    let answered = (0..15).filter(|_| tries()).count();
    assert!((10..=12).contains(&answered), "ten at once, then one a second: {answered}");
    assert!(agent.status()["verdicts"]["drops"]["rate_limited"].as_u64() >= Some(3));
}

fn without_backends_clients_are_refused_at_once() {
    let lab = Lab::new(1, Wiring::Bridge);
    let agent = start(&lab, &arguments(1), &[]);
    agent.wait_for("the agent reports", Duration::from_secs(10), |status| status["health"] == "degraded");
    assert_eq!(lb_user(&["status", "--instance", &lab.instance()]).status.code(), Some(1));
    let begun = Instant::now();

    let error = inside(&lab.client(), || TcpStream::connect((UPLINK, 80)).map(|_| ())).unwrap_err();

    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(begun.elapsed() < Duration::from_secs(1), "refused, not left hanging");
}

fn instances_live_side_by_side_and_never_share() {
    let (lab, _first) = served(2, &[]);
    let start_other = |name: &str, publish: &str| {
        let backend = format!("{}:80", lab::backend(1));
        let output = lab
            .command(&lab.balancer(), "timeout")
            .args(["10", &binary(), "run", "--instance", name, "--publish", publish, "--backend", &backend])
            .args(["--uplink", "up0"])
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let other = format!("{}z", lab.instance());
    let (code, error) = start_other(&other, "80");
    assert!(code == Some(1) && error.contains("belongs to instance"), "{code:?} {error}");
    assert_gone(&other);
    let (code, error) = start_other(&lab.instance(), "81");
    assert!(code == Some(1) && error.contains("in use by another"), "{code:?} {error}");

    let backend = format!("{}:80", lab::backend(1));
    let arguments = ["--publish", "198.18.1.1:81", "--uplink", "up0", "--backend", &backend];
    let second = Agent::start(Some(&lab.balancer()), &other, &arguments);
    second.wait_ready(1);
    assert_eq!(lab.get("http://198.18.1.1:81/"), "backend 1");
    let mut answers = [lab.get("http://198.18.1.1/"), lab.get("http://198.18.1.1/")];
    answers.sort();
    assert_eq!(answers, ["backend 0", "backend 1"]);
}

fn keep_leaves_it_serving_and_detach_removes_it() {
    let (lab, mut agent) = served(2, &["--keep"]);
    agent.stop(Signal::SIGINT);
    for _ in 0..4 {
        lab.get("http://198.18.1.1/");
    }
    detach(&lab.instance(), false);
    assert_gone(&lab.instance());
    let refused = lab.from_client("curl", &["-s", "-m", "3", "http://198.18.1.1/"]);
    assert_eq!(refused.status.code(), Some(7), "nobody listens any longer");
}

fn clsact_serves_where_tcx_is_not_wanted() {
    let (lab, mut agent) = served(2, &["--tc-attach", "clsact"]);
    let filters = || lab::run(lab.command(&lab.balancer(), "tc").args(["filter", "show", "dev", "up0", "ingress"]));
    assert!(filters().contains("tc_ingress"), "{}", filters());
    let mut answers = [lab.get("http://198.18.1.1/"), lab.get("http://198.18.1.1/")];
    answers.sort();
    assert_eq!(answers, ["backend 0", "backend 1"]);

    agent.stop(Signal::SIGTERM);
    assert_gone(&lab.instance());
    let qdiscs = lab::run(lab.command(&lab.balancer(), "tc").args(["qdisc", "show", "dev", "up0"]));
    assert!(!qdiscs.contains("clsact"), "{qdiscs}");
}

/// Returns how many filters there are at the ingress of a device of the balancer.
fn filters(lab: &Lab, device: &str) -> usize {
    let shown = lab::run(lab.command(&lab.balancer(), "tc").args(["filter", "show", "dev", device, "ingress"]));
    shown.lines().filter(|line| line.contains(" handle ")).count()
}

fn assert_no_clsact(lab: &Lab) {
    let qdiscs = lab::run(lab.command(&lab.balancer(), "tc").args(["qdisc", "show"]));
    assert!(!qdiscs.contains("clsact"), "{qdiscs}");
}

/// A connection of the client whose answer is still to be asked for.
fn hold(lab: &Lab) -> TcpStream {
    hold_at(lab, 80)
}

fn hold_at(lab: &Lab, port: u16) -> TcpStream {
    inside(&lab.client(), || TcpStream::connect((UPLINK, port)).expect("connected"))
}

/// Asks on a connection that was held, and returns which backend answers.
fn ask_held(held: &mut TcpStream) -> String {
    held.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    held.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("the connection lives");
    let mut answer = String::new();
    held.read_to_string(&mut answer).expect("and answers");
    answer.trim_end().rsplit('\n').next().unwrap_or_default().to_owned()
}

fn a_killed_agent_with_filters_is_replaced() {
    let (lab, agent) = served(2, &["--tc-attach", "clsact"]);
    let load = wrk(&lab, 6, true);
    let mut held = hold(&lab);
    std::thread::sleep(Duration::from_secs(1));
    agent.crash();

    let mut next = start(&lab, &arguments(2), &["--tc-attach", "clsact"]);
    next.wait_ready(2);
    let report = load.wait_with_output().unwrap();
    assert!(assert_no_failure(&String::from_utf8_lossy(&report.stdout)) > 100);
    assert!(ask_held(&mut held).starts_with("backend "));
    for device in ["up0", "br0", "be0", "be1"] {
        assert_eq!(filters(&lab, device), 1, "{device}");
    }
    drop(held);

    next.stop(Signal::SIGTERM);
    assert_gone(&lab.instance());
    assert_no_clsact(&lab);
}

fn instances_with_filters_share_an_uplink() {
    let (lab, mut first) = served(2, &["--tc-attach", "clsact"]);
    let backend = format!("{}:80", lab::backend(1));
    let arguments = ["--publish", "81", "--uplink", "up0", "--backend", &backend, "--tc-attach", "clsact"];
    let mut second = Agent::start(Some(&lab.balancer()), &format!("{}z", lab.instance()), &arguments);
    second.wait_ready(1);
    assert_eq!((filters(&lab, "up0"), filters(&lab, "be0"), filters(&lab, "be1")), (2, 1, 2));
    assert_eq!(lab.get("http://198.18.1.1:81/"), "backend 1");
    let mut answers = [lab.get("http://198.18.1.1/"), lab.get("http://198.18.1.1/")];
    answers.sort();
    assert_eq!(answers, ["backend 0", "backend 1"]);

    // The one that has added the qdisc goes first; the other still works, and takes the qdisc away.
    first.stop(Signal::SIGTERM);
    assert_eq!(lab.get("http://198.18.1.1:81/"), "backend 1");
    second.stop(Signal::SIGTERM);
    assert_no_clsact(&lab);
}

fn filters_are_removed_in_their_namespace_alone() {
    let (lab, agent) = served(1, &["--tc-attach", "clsact"]);
    agent.crash();

    let output = lb_user(&["detach", "--instance", &lab.instance()]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && error.contains("another network namespace"), "{error}");
    assert_eq!(lab.get("http://198.18.1.1/"), "backend 0", "everything is as it was");

    let detached = lab.command(&lab.balancer(), &binary()).args(["detach", "--instance", &lab.instance()]).output();
    assert!(detached.unwrap().status.success());
    assert_gone(&lab.instance());
    assert_no_clsact(&lab);

    // Filters that went with their namespace keep nobody from removing the rest.
    let (lab, agent) = served(1, &["--tc-attach", "clsact"]);
    agent.crash();
    let instance = lab.instance();
    lab.remove_namespace(&lab.balancer());
    wait_until("the namespace's filters are gone", Duration::from_secs(10), || {
        lb_user(&["detach", "--instance", &instance]).status.success()
    });
    assert_gone(&instance);
}

fn xdp_serves_where_checksums_are_complete() {
    let mut lab = Lab::new(2, Wiring::Bridge);
    lab.start_servers();
    let mut refused: Vec<String> = arguments(2);
    refused.extend(["--hook".into(), "xdp".into()]);
    let output = lab
        .command(&lab.balancer(), &binary())
        .args(["run", "--instance", &lab.instance()])
        .args(&refused)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && error.contains("--complete-checksums"), "{error}");
    assert_gone(&lab.instance());

    lab::run(lab.command(&lab.client(), "ethtool").args(["-K", "cl0", "tx", "off"]));
    for hook in ["xdp", "xdp-generic"] {
        let mut agent = start(&lab, &arguments(2), &["--hook", hook, "--complete-checksums"]);
        agent.wait_ready(2);
        let hooks = agent.status()["hooks"].clone();
        assert!(hooks.as_array().unwrap().iter().any(|at| at["hook"] == hook), "{hooks:#}");
        let mut answers: Vec<String> = (0..4).map(|_| lab.get("http://198.18.1.1/")).collect();
        answers.sort();
        assert_eq!(answers, ["backend 0", "backend 0", "backend 1", "backend 1"], "{hook}");
        let big = lab.from_client("curl", &["-s", "-m", "20", "http://198.18.1.1/big"]).stdout;
        assert_eq!(big.len(), 20_000_000, "{hook}");
        agent.stop(Signal::SIGTERM);
        assert_gone(&lab.instance());
    }
}

fn sockets_of_ipv6_reach_the_frontend_by_ipv4() {
    let (lab, _agent) = served(2, &[]);
    let mapped = |port| SocketAddr::new("::ffff:127.0.0.1".parse().unwrap(), port);
    inside(&lab.balancer(), || {
        for _ in 0..2 {
            let mut stream = TcpStream::connect(mapped(80)).expect("connected");
            assert_eq!(stream.peer_addr().unwrap(), mapped(80), "the process sees the frontend");
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            assert!(text.contains("backend "), "{text}");
        }
    });

    let dns = Lab::new(1, Wiring::Bridge);
    answer_datagrams(&dns, 0);
    let backend = format!("{}:53", lab::backend(0));
    let arguments = ["--publish", "53/udp", "--uplink", "up0", "--backend", &backend];
    let agent = Agent::start(Some(&dns.balancer()), &dns.instance(), &arguments);
    agent.wait_ready(1);
    inside(&dns.balancer(), || {
        let unconnected = UdpSocket::bind("[::]:0").unwrap();
        let connected = UdpSocket::bind("[::]:0").unwrap();
        connected.connect(mapped(53)).unwrap();
        for (socket, to) in [(&unconnected, Some(mapped(53))), (&connected, None)] {
            socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            match to {
                Some(to) => socket.send_to(b"q", to).unwrap(),
                None => socket.send(b"q").unwrap(),
            };
            assert_eq!(socket.recv_from(&mut [0; 16]).expect("an answer").1, mapped(53));
        }
    });
}

fn a_backend_behind_a_router_is_served() {
    let mut lab = Lab::new(1, Wiring::Bridge);
    // The namespace of the backend becomes a router, and the server stands behind it.
    let (router, beyond) = (lab.backend(0), lab.namespace("r"));
    lab::ip(&format!("link add eth1 netns {router} type veth peer name eth0 netns {beyond}"));
    lab::ip(&format!("-n {router} addr add 198.18.3.1/24 dev eth1"));
    lab::ip(&format!("-n {router} link set eth1 up"));
    lab::ip(&format!("-n {beyond} addr add 198.18.3.9/24 dev eth0"));
    lab::ip(&format!("-n {beyond} link set eth0 up"));
    lab::ip(&format!("-n {beyond} route add default via 198.18.3.1"));
    lab::run(lab.command(&router, "sysctl").args(["-qw", "net.ipv4.ip_forward=1"]));
    lab::ip(&format!("-n {} route add 198.18.3.0/24 via 198.18.2.11", lab.balancer()));
    lab.start_server_in(&beyond, 7);
    let arguments = ["--publish", "80", "--uplink", "up0", "--backend", "198.18.3.9:80"];
    let agent = Agent::start(Some(&lab.balancer()), &lab.instance(), &arguments);
    agent.wait_ready(1);

    assert_eq!(lab.get("http://198.18.1.1/"), "backend 7");
    let big = lab.from_client("curl", &["-s", "-m", "20", "http://198.18.1.1/big"]).stdout;
    assert_eq!(big.len(), 20_000_000);
    assert_eq!(agent.status()["frontends"][0]["backends"][0]["reach"], "neighbour", "the balancer forwards nothing");
}

fn links_without_addresses_carry_both_ways() {
    let mut lab = Lab::new(1, Wiring::Bridge);
    lab.start_servers();
    let (balancer, far) = (lab.balancer(), lab.namespace("f"));
    // A server behind a tunnel: handed over by the kernel's routing.
    let _tunnel = lab::Tunnel::new((&balancer, "tun0", "198.18.4.1/24"), (&far, "tun0", "198.18.4.2/24"));
    lab::ip(&format!("-n {far} route add default dev tun0"));
    lab.start_server_in(&far, 8);
    lab.allow_forwarding();
    let backends = ["--backend", "198.18.4.2:80", "--backend", "198.18.2.11:80"];
    let arguments = [&["--publish", "80", "--uplink", "up0", "--uplink", "tun0"], &backends[..]].concat();
    let mut agent = Agent::start(Some(&balancer), &lab.instance(), &arguments);
    agent.wait_ready(2);
    let mut answers = [lab.get("http://198.18.1.1/"), lab.get("http://198.18.1.1/")];
    answers.sort();
    assert_eq!(answers, ["backend 0", "backend 8"]);
    assert_eq!(agent.status()["frontends"][0]["backends"][0]["reach"], "routed");
    for _ in 0..2 {
        let big = lab.from_client("curl", &["-s", "-m", "30", "http://198.18.1.1/big"]).stdout;
        assert_eq!(big.len(), 20_000_000);
    }

    agent.stop(Signal::SIGTERM);
    assert_gone(&lab.instance());

    // And a client behind it: its packets have no link header to be overwritten.
    let arguments = ["--publish", "80", "--uplink", "tun0", "--backend", "198.18.2.11:80"];
    let agent = Agent::start(Some(&balancer), &lab.instance(), &arguments);
    agent.wait_ready(1);
    let get = |path: &str| {
        let url = format!("http://198.18.4.1/{path}");
        lab.command(&far, "curl").args(["-s", "-m", "20", &url]).output().unwrap().stdout
    };
    assert_eq!(String::from_utf8_lossy(&get("")), "backend 0\n");
    for offload in ["on", "off"] {
        lab::run(lab.command(&lab.backend(0), "ethtool").args(["-K", "eth0", "tso", offload, "gso", offload]));
        assert_eq!(get("big").len(), 20_000_000, "segments {offload}: a full one fits without its link header");
    }
    assert_eq!(count(&agent, "drops", "too_big"), 0);
}

/// Returns one of the counts of `status`.
fn count(agent: &Agent, kind: &str, name: &str) -> u64 {
    agent.status()["verdicts"][kind][name].as_u64().unwrap_or_else(|| panic!("status lacks {kind}.{name}"))
}

fn a_smaller_link_behind_the_client_is_discovered() {
    let (lab, agent) = served(1, &[]);
    // The client's namespace becomes a router, with a link of 1,300 bytes behind it that its host knows nothing of.
    let (router, far) = (lab.client(), lab.namespace("f"));
    lab::ip(&format!("link add fr0 netns {router} mtu 1300 type veth peer name eth0 netns {far}"));
    lab::ip(&format!("-n {router} addr add 198.18.3.1/24 dev fr0"));
    lab::ip(&format!("-n {router} link set fr0 up"));
    lab::ip(&format!("-n {far} addr add 198.18.3.9/24 dev eth0"));
    lab::ip(&format!("-n {far} link set eth0 up"));
    lab::ip(&format!("-n {far} route add default via 198.18.3.1"));
    lab::run(lab.command(&router, "sysctl").args(["-qw", "net.ipv4.ip_forward=1"]));
    lab::ip(&format!("-n {} route add 198.18.3.0/24 via 198.18.1.2", lab.balancer()));
    for offload in ["on", "off"] {
        lab::run(lab.command(&lab.backend(0), "ethtool").args(["-K", "eth0", "tso", offload, "gso", offload]));
        lab::ip(&format!("-n {} route flush cache", lab.backend(0)));
        let big = lab.command(&far, "curl").args(["-s", "-m", "20", "http://198.18.1.1/big"]).output().unwrap().stdout;

        assert_eq!(
            big.len(),
            20_000_000,
            "segments {offload}: what is too big is said to the server, which sends less"
        );
        assert!(count(&agent, "events", "icmp_error") > 0);
    }
}

fn a_smaller_uplink_is_discovered() {
    let (lab, agent) = served(1, &[]);
    // As in clouds whose networks carry 1,460 bytes where Docker's take 1,500.
    lab::ip(&format!("-n {} link set up0 mtu 1300", lab.balancer()));
    for offload in ["on", "off"] {
        lab::run(lab.command(&lab.backend(0), "ethtool").args(["-K", "eth0", "tso", offload, "gso", offload]));
        let before = count(&agent, "drops", "too_big");
        lab::ip(&format!("-n {} route flush cache", lab.backend(0)));
        let big = lab.from_client("curl", &["-s", "-m", "20", "http://198.18.1.1/big"]).stdout;

        assert_eq!(big.len(), 20_000_000, "segments {offload}");
        assert!(count(&agent, "drops", "too_big") > before, "it was answered");
    }
    let seen = lab::run(lab.command(&lab.backend(0), "ip").args(["route", "get", "198.18.1.2"]));
    assert!(seen.contains("mtu 1300"), "the server's kernel has learned it: {seen}");
}

/// Answers each datagram with itself, as long as the test runs.
fn echo_datagrams(lab: &Lab, number: usize) {
    let socket = inside(&lab.backend(number), || UdpSocket::bind("0.0.0.0:53").expect("the port is free"));
    std::thread::spawn(move || {
        let mut room = vec![0; 65_535];
        while let Ok((len, from)) = socket.recv_from(&mut room) {
            let _client_left = socket.send_to(&room[..len], from);
        }
    });
}

fn fragmented_datagrams_arrive_whole() {
    let lab = Lab::new(2, Wiring::Bridge);
    (0..2).for_each(|number| echo_datagrams(&lab, number));
    let backends: Vec<String> = (0..2).map(|number| format!("{}:53", lab::backend(number))).collect();
    for hook in [&["--hook", "tc"][..], &["--hook", "xdp", "--complete-checksums"]] {
        let mut arguments = vec!["--publish", "53/udp", "--uplink", "up0", "--drain-timeout", "1s"];
        backends.iter().for_each(|backend| arguments.extend(["--backend", backend]));
        let mut agent = Agent::start(Some(&lab.balancer()), &lab.instance(), &[&arguments, hook].concat());
        agent.wait_ready(2);
        inside(&lab.client(), || {
            for _ in 0..4 {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
                let mut room = vec![0; 65_535];
                for size in [1472, 1473, 4000, 30_000, 60_000] {
                    let asked: Vec<u8> = (0..size).map(|byte: u32| (byte * 13) as u8).collect();
                    socket.send_to(&asked, (UPLINK, 53)).unwrap();
                    let (len, from) = socket.recv_from(&mut room).unwrap_or_else(|error| panic!("{size}: {error}"));
                    assert_eq!((from, &room[..len]), (SocketAddr::from(([198, 18, 1, 1], 53)), &asked[..]));
                }
            }
        });
        assert_eq!(count(&agent, "passes", "fragment"), 0);
        agent.stop(Signal::SIGTERM);
        assert_gone(&lab.instance());
    }
}

fn errors_of_the_network_reach_clients() {
    let lab = Lab::new(1, Wiring::Bridge);
    let backend = format!("{}:53", lab::backend(0));
    let arguments = ["--publish", "53/udp", "--publish", "53/tcp", "--uplink", "up0", "--backend", &backend];
    let arguments = [&arguments[..], &["--health", "none"]].concat();
    let agent = Agent::start(Some(&lab.balancer()), &lab.instance(), &arguments);
    agent.wait_ready(1);
    inside(&lab.client(), || {
        // No server: the backend's kernel says so by ICMP, as from the frontend.
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        socket.connect((UPLINK, 53)).unwrap();
        socket.send(b"?").unwrap();
        let error = socket.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
        // What may pass one router only ends at the balancer, and is told so, as traceroute wants it.
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        socket.set_ttl(1).unwrap();
        socket.connect((UPLINK, 53)).unwrap();
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv4RecvErr, &true).unwrap();
        socket.send(b"?").unwrap();
        let error = socket.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable, "{error}");
    });
    assert_eq!((count(&agent, "events", "icmp_error"), count(&agent, "drops", "ttl_expired")), (1, 1));
}

fn two_instances_share_an_uplink_and_no_notes() {
    let mut lab = Lab::new(2, Wiring::Bridge);
    lab.start_servers();
    lab::run(lab.command(&lab.client(), "ethtool").args(["-K", "cl0", "tx", "off"]));
    let names = [lab.instance(), format!("{}z", lab.instance())];
    let backends = [0, 1].map(|number| format!("{}:80", lab::backend(number)));
    let more: [&[&str]; 2] = [&["--hook", "tc"], &["--hook", "xdp", "--complete-checksums"]];
    let agents: Vec<Agent> = (0..2)
        .map(|which| {
            let publish = ["80", "81"][which];
            let fixed = ["--publish", publish, "--uplink", "up0", "--backend", &backends[which]];
            let agent = Agent::start(Some(&lab.balancer()), &names[which], &[&fixed[..], more[which]].concat());
            agent.wait_ready(1);
            agent
        })
        .collect();

    for _ in 0..3 {
        assert_eq!(lab.get("http://198.18.1.1/"), "backend 0");
        assert_eq!(lab.get("http://198.18.1.1:81/"), "backend 1");
    }
    assert_eq!(agents[0].status()["frontends"][0]["connections_total"], 3);
}

fn a_vanished_device_keeps_nobody_else_out() {
    let mut lab = Lab::new(3, Wiring::Bridge);
    lab.start_server(0);
    lab.start_server(1);
    let agent = start(&lab, &arguments(3), &["--health-interval", "200ms"]);
    agent.wait_for("two are ready", Duration::from_secs(10), |status| status["scaling"]["ready"] == 2);
    lab::ip(&format!("-n {} link del be1", lab.balancer()));

    lab.start_server(2);
    agent.wait_for("the third is ready, the second is not", Duration::from_secs(20), |status| {
        let backends = &status["frontends"][0]["backends"];
        backends[2]["slot"] == true && backends[1]["slot"] == false
    });
    for _ in 0..6 {
        assert_ne!(lab.get("http://198.18.1.1/"), "backend 1");
    }
}

fn a_backend_with_a_new_device_is_followed() {
    let (lab, agent) = served(2, &["--health-interval", "200ms"]);
    let (balancer, backend) = (lab.balancer(), lab.backend(1));
    lab::ip(&format!("-n {balancer} link del be1"));
    lab::ip(&format!("link add eth0 netns {backend} type veth peer name be1 netns {balancer}"));
    lab::ip(&format!("-n {balancer} link set be1 master br0 up"));
    lab::ip(&format!("-n {backend} addr add {}/24 dev eth0", lab::backend(1)));
    lab::ip(&format!("-n {backend} link set eth0 up"));
    lab::ip(&format!("-n {backend} route add default via 198.18.2.1"));
    let index = || {
        let shown = lab::run(lab.command(&balancer, "ip").args(["-o", "link", "show", "be1"]));
        shown.split(':').next().and_then(|index| index.trim().parse::<u64>().ok())
    };
    assert!(index().is_some());

    // Nothing but new connections tells whether the kernel has followed: they come in turn, none is lost.
    wait_until("new connections reach both", Duration::from_secs(20), || {
        let answers: Vec<_> = (0..4)
            .map(|_| lab.from_client("curl", &["-s", "-m", "1", "http://198.18.1.1/"]).status.success())
            .collect();
        answers.iter().all(|answered| *answered)
    });
    agent.wait_ready(2);
    let mut answers = [lab.get("http://198.18.1.1/"), lab.get("http://198.18.1.1/")];
    answers.sort();
    assert_eq!(answers, ["backend 0", "backend 1"]);
}

fn a_frontend_may_change_its_address() {
    let (lab, agent) = served(2, &[]);
    agent.crash();
    let to_one = |publish: &str| {
        let all: Vec<String> =
            arguments(2).into_iter().map(|word| if word == "80" { publish.to_owned() } else { word }).collect();
        all
    };
    for publish in ["198.18.1.1:80", "80", "198.18.1.1:80"] {
        let agent = start(&lab, &to_one(publish), &[]);
        agent.wait_ready(2);
        for _ in 0..4 {
            lab.get("http://198.18.1.1/");
        }
        agent.crash();
    }
    detach(&lab.instance(), false);
    assert_gone(&lab.instance());
}

fn a_backend_that_leaves_the_list_keeps_its_connections() {
    let (lab, agent) = served(2, &[]);
    let mut held = [hold(&lab), hold(&lab)];
    agent.crash();
    let next = start(&lab, &arguments(1), &[]);
    next.wait_for("the one is served, the other drains", Duration::from_secs(30), |status| {
        status["scaling"]["ready"] == 1 && status["scaling"]["draining"] == 1 && status["scaling"]["desired"] == 1
    });

    for _ in 0..4 {
        assert_eq!(lab.get("http://198.18.1.1/"), "backend 0", "new connections go to those listed");
    }
    // Longer than a sweep and its settling take: a drain that saw no flows would be over.
    std::thread::sleep(Duration::from_secs(4));
    let mut answers = held.each_mut().map(ask_held);
    answers.sort();
    assert_eq!(answers, ["backend 0", "backend 1"]);
    drop(held);
    next.wait_for("the other has left", Duration::from_secs(20), |status| {
        status["frontends"][0]["backends"].as_array().map(Vec::len) == Some(1) && status["scaling"]["draining"] == 0
    });
}

fn services_share_an_agent_and_a_reload_touches_what_changed() {
    let mut lab = Lab::new(4, Wiring::Bridge);
    lab.start_servers();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("services.toml");
    let top = format!("instance = \"{}\"\nuplinks = [\"up0\"]\ninterval = \"500ms\"\n", lab.instance());
    let service = |name: &str, publish: &str, numbers: &[usize]| {
        let backends: Vec<String> = numbers.iter().map(|&number| format!("\"{}:80\"", lab::backend(number))).collect();
        format!("[[service]]\nname = \"{name}\"\npublish = {publish}\nbackends = [{}]\n", backends.join(", "))
    };
    let write = |services: &[String]| std::fs::write(&file, top.clone() + &services.concat()).unwrap();
    let web = service("web", "\"80\"", &[0, 1]);
    let names = |status: &serde_json::Value| -> Vec<String> {
        let services = status["services"].as_array().cloned().unwrap_or_default();
        services.iter().map(|service| service["name"].as_str().unwrap_or_default().to_owned()).collect()
    };
    let answers = |port: u16| -> std::collections::BTreeSet<String> {
        (0..4).map(|_| lab.get(&format!("http://198.18.1.1:{port}/"))).collect()
    };
    let refuses = |port: u16| {
        let url = format!("http://198.18.1.1:{port}/");
        !lab.from_client("curl", &["-s", "-m", "1", &url]).status.success()
    };
    let both = |one: &str, other: &str| [one.to_owned(), other.to_owned()].into();

    write(&[web.clone(), service("api", "[\"8080\", \"9000-9002\"]", &[2, 3])]);
    let mut agent = Agent::start_file(Some(&lab.balancer()), &lab.instance(), &file);
    agent.wait_ready(4);
    assert_eq!(names(&agent.status()), ["web", "api"]);
    assert_eq!((answers(80), answers(8080)), (both("backend 0", "backend 1"), both("backend 2", "backend 3")));
    assert_eq!(answers(9002), both("backend 2", "backend 3"));

    let loads = [wrk(&lab, 12, true), wrk(&lab, 12, false)];
    let mut held = [hold_at(&lab, 8080), hold_at(&lab, 8080), hold_at(&lab, 9001), hold_at(&lab, 9001)];
    std::thread::sleep(Duration::from_secs(1));
    let before = agent.log();

    // Backend 3 and the range leave, backend 1 serves two services, and what is in use goes on.
    write(&[web.clone(), service("api", "\"8080\"", &[2]), service("more", "\"81\"", &[1])]);
    agent.signal(Signal::SIGHUP);
    agent.wait_for("the file is read again", Duration::from_secs(10), |status| {
        names(status) == ["web", "api", "more"] && status["services"][2]["scaling"]["ready"] == 1
    });
    assert_eq!((answers(8080), answers(81)), ([String::from("backend 2")].into(), [String::from("backend 1")].into()));
    assert!(refuses(9001), "{}", agent.log());
    std::thread::sleep(Duration::from_secs(3));
    let kept = held.each_mut().map(ask_held);
    assert_eq!(kept.iter().collect::<std::collections::BTreeSet<_>>().len(), 2, "{kept:?}");
    drop(held);
    agent.wait_for("what has left is gone", Duration::from_secs(10), |status| {
        let frontends = status["frontends"].as_array().map(Vec::len);
        status["health"] == "healthy" && frontends == Some(3) && status["services"][1]["scaling"]["draining"] == 0
    });

    // Scheduler, weights and affinity become others in place.
    let weighted = |more: &str| {
        let backends = format!("backends = [\"{}:80=3\", \"{}:80\"]\n", lab::backend(0), lab::backend(1));
        let scheduler = "scheduler = \"weighted\"\n";
        format!("[[service]]\nname = \"more\"\npublish = \"81\"\n{backends}{scheduler}{more}")
    };
    let of_more = |status: &serde_json::Value| -> serde_json::Value {
        let frontends = status["frontends"].as_array().expect("a list");
        frontends.iter().find(|frontend| frontend["name"] == "81/tcp").cloned().unwrap_or_default()
    };
    write(&[web.clone(), service("api", "\"8080\"", &[2]), weighted("")]);
    agent.signal(Signal::SIGHUP);
    agent.wait_for("both have their weights", Duration::from_secs(10), |status| {
        let frontend = of_more(status);
        let backends = frontend["backends"].as_array().map(Vec::as_slice).unwrap_or_default();
        frontend["scheduler"] == "weighted" && backends.iter().filter(|backend| backend["slot"] == true).count() == 2
    });
    let got: Vec<String> = (0..8).map(|_| lab.get("http://198.18.1.1:81/")).collect();
    assert_eq!(got.iter().filter(|answer| *answer == "backend 0").count(), 6, "three quarters, exactly: {got:?}");
    write(&[web.clone(), service("api", "\"8080\"", &[2]), weighted("affinity = \"1m\"\n")]);
    agent.signal(Signal::SIGHUP);
    agent.wait_for("clients keep their backends", Duration::from_secs(10), |status| {
        of_more(status)["affinity_ms"] == 60_000
    });

    // A mistake changes nothing, and is told.
    write(&[web.clone(), service("api", "\"80\"", &[2])]);
    agent.signal(Signal::SIGHUP);
    agent.wait_for("the mistake is told", Duration::from_secs(10), |status| {
        status["problems"].to_string().contains(":10:11: publish 80/tcp claims connections that 80/tcp claims")
    });
    assert_eq!((names(&agent.status()), answers(81).len()), (["web", "api", "more"].map(String::from).into(), 1));
    std::fs::write(&file, format!("max-flows = 4096\n{top}{web}")).unwrap();
    agent.signal(Signal::SIGHUP);
    agent.wait_for("what cannot be changed is told", Duration::from_secs(10), |status| {
        status["problems"].to_string().contains("max-flows cannot be changed while the agent runs")
    });

    write(std::slice::from_ref(&web));
    agent.signal(Signal::SIGHUP);
    agent.wait_for("two services are drained", Duration::from_secs(10), |status| {
        names(status) == ["web"] && status["health"] == "healthy"
    });
    assert!(refuses(8080) && refuses(81));
    // What has just been closed opens again at once.
    write(&[web.clone(), service("api", "\"8080\"", &[2, 3])]);
    agent.signal(Signal::SIGHUP);
    agent.wait_for("a service is back", Duration::from_secs(10), |status| {
        names(status) == ["web", "api"] && status["services"][1]["scaling"]["ready"] == 2
    });
    assert_eq!(answers(8080), both("backend 2", "backend 3"));
    let log = agent.log();
    assert!(!log.contains("File exists"), "{log}");
    for load in loads {
        let report = load.wait_with_output().unwrap();
        assert!(assert_no_failure(&String::from_utf8_lossy(&report.stdout)) > 100);
    }
    assert_eq!(answers(80), both("backend 0", "backend 1"));
    let touched: Vec<&str> = log[before.len()..].lines().filter(|line| line.contains("web: ")).collect();
    assert_eq!(touched, Vec::<&str>::new(), "the first service is as it was");
    assert!(log[before.len()..].contains(" api: ") && log[before.len()..].contains(" more: "), "{log}");

    agent.stop(Signal::SIGTERM);
    assert_gone(&lab.instance());
}

/// Connects in a namespace, asks for the page, and returns the backend's number and the connection, which goes on.
fn converse(namespace: &str, address: &str) -> (usize, TcpStream) {
    inside(namespace, || {
        let mut stream = TcpStream::connect((address, 80)).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        let number = asked(&mut stream);
        (number, stream)
    })
}

/// Asks for the page on a connection that goes on.
fn asked(stream: &mut TcpStream) -> usize {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: lb\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.windows(10).any(|end| end.starts_with(b"backend ") && end.ends_with(b"\n")) {
        stream.read_exact(&mut byte).expect("an answer");
        answer.push(byte[0]);
    }
    usize::from(answer[answer.len() - 2] - b'0')
}

fn the_backend_with_the_fewest_connections_is_next() {
    let (lab, agent) = served(2, &["--scheduler", "least-conn"]);
    let (client, balancer) = (lab.client(), lab.balancer());
    // Clients elsewhere and on the host, by packets and at connect(): they all count.
    let mut held: Vec<(usize, TcpStream)> = (0..6).map(|_| converse(&client, UPLINK)).collect();
    held.extend((0..4).map(|_| converse(&balancer, "127.0.0.1")));
    let of = |held: &[(usize, TcpStream)], number| held.iter().filter(|(own, _)| *own == number).count();
    // One that begins while a sweep counts is counted twice until the next.
    assert!(of(&held, 0).abs_diff(of(&held, 1)) <= 2, "{held:?}");

    held.retain(|(number, _)| *number == 0);
    std::thread::sleep(Duration::from_millis(300));
    let next: Vec<(usize, TcpStream)> = (0..3).map(|_| converse(&client, UPLINK)).collect();
    assert_eq!(of(&next, 1), 3, "the busy one is avoided");
    agent.wait_for("all are counted", Duration::from_secs(5), |status| {
        let active = |number: usize| &status["frontends"][0]["backends"][number]["connections_active"];
        *active(0) == held.len() && *active(1) == 3
    });
    assert_eq!(agent.status()["frontends"][0]["scheduler"], "least-conn");

    // The same by what sweeps have found since.
    drop(next);
    std::thread::sleep(Duration::from_millis(2_500));
    let next: Vec<(usize, TcpStream)> = (0..3).map(|_| converse(&balancer, "127.0.0.1")).collect();
    assert_eq!(of(&next, 1), 3);
}

fn a_client_keeps_its_backend() {
    let (lab, agent) = served(3, &["--affinity", "2s", "--slow-start", "5s"]);
    let frontend = || agent.status()["frontends"][0].clone();
    assert_eq!(
        (frontend()["scheduler"].as_str(), frontend()["affinity_ms"].as_u64()),
        (Some("round-robin"), Some(2000))
    );
    assert!(frontend()["backends"][0]["slow_start_percent"].is_number(), "{:#}", frontend());
    agent.wait_for("the slow start ends", Duration::from_secs(10), |status| {
        let backends = status["frontends"][0]["backends"].as_array().expect("a list");
        backends.iter().all(|backend| backend["slow_start_percent"].is_null() && backend["slot"] == true)
    });
    lab::ip(&format!("-n {} addr add 198.18.1.3/24 dev cl0", lab.client()));
    let get = |source: &str| {
        let arguments = ["-s", "-m", "3", "--interface", source, "http://198.18.1.1/"];
        String::from_utf8_lossy(&lab.from_client("curl", &arguments).stdout).trim_end().to_owned()
    };

    let own = get("198.18.1.2");
    assert!((0..3).all(|_| get("198.18.1.2") == own));
    let others = get("198.18.1.3");
    assert_ne!(others, own);
    assert!((0..3).all(|_| get("198.18.1.3") == others && get("198.18.1.2") == own));
    let (local, _) = converse(&lab.balancer(), UPLINK);
    assert!((0..3).all(|_| converse(&lab.balancer(), UPLINK).0 == local), "the processes of the host are one client");

    std::thread::sleep(Duration::from_millis(2_300));
    assert_eq!(get("198.18.1.3"), own, "it is the turn of the first again");
}

fn connections_wait_while_all_backends_are_full() {
    let mut lab = Lab::new(2, Wiring::Bridge);
    lab.start_servers();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("services.toml");
    let write = |most: &str| {
        let backends = [0, 1].map(|number| format!("\"{}:80\"", lab::backend(number))).join(", ");
        let top = format!("instance = \"{}\"\nuplinks = [\"up0\"]\ninterval = \"500ms\"\n", lab.instance());
        let service = format!("[[service]]\nname = \"web\"\npublish = \"80\"\nbackends = [{backends}]\n{most}");
        std::fs::write(&file, top + &service).unwrap();
    };
    write("max-connections = 2\n");
    let agent = Agent::start_file(Some(&lab.balancer()), &lab.instance(), &file);
    agent.wait_ready(2);
    let limit_is = |limit: Option<u64>| {
        agent.signal(Signal::SIGHUP);
        agent.wait_for("the limit", Duration::from_secs(10), |status| {
            status["frontends"][0]["max_connections"].as_u64() == limit
        });
    };
    let (client, balancer) = (lab.client(), lab.balancer());
    let refused = || {
        let address = SocketAddr::from(([127, 0, 0, 1], 80));
        let error = inside(&balancer, || TcpStream::connect(address)).expect_err("all are full");
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{error}");
    };
    // What ends unseen, and what began while a sweep counted, is set right by the next.
    let settle = || std::thread::sleep(Duration::from_millis(1_500));
    settle();
    let mut held: Vec<(usize, TcpStream)> = (0..3).map(|_| converse(&client, UPLINK)).collect();
    held.push(converse(&balancer, "127.0.0.1"));
    assert_eq!(held.iter().filter(|(number, _)| *number == 0).count(), 2, "{held:?}");
    refused();

    // A client's SYN comes again, and gets in when there is room.
    let began = std::time::Instant::now();
    let waiting = std::thread::spawn({
        let client = client.clone();
        move || converse(&client, UPLINK)
    });
    std::thread::sleep(Duration::from_millis(1_700));
    assert!(!waiting.is_finished(), "{}", agent.status());
    let (freed, _) = held.remove(0);
    let (number, stream) = waiting.join().expect("it got in");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert_eq!(number, freed);
    assert!(asked(&mut held[0].1) < 2, "those that are under way go on");
    held.push((number, stream));
    let drops = agent.status()["verdicts"]["drops"]["backends_full"].as_u64();
    assert!(drops >= Some(3), "one of a socket, a SYN and its repetition: {drops:?}");

    write("max-connections = 3\n");
    limit_is(Some(3));
    settle();
    held.extend([converse(&client, UPLINK), converse(&balancer, "127.0.0.1")]);
    assert_eq!(held.iter().filter(|(number, _)| *number == 0).count(), 3, "{held:?}");
    refused();
    write("");
    limit_is(None);
    held.extend((0..4).map(|_| converse(&balancer, "127.0.0.1")));
}

fn a_limit_holds_as_long_as_somebody_sweeps() {
    let limit = ["--max-connections", "1", "--interval", "60s"];
    let (lab, agent) = served(1, &limit);
    let settle = || std::thread::sleep(Duration::from_millis(2_500));
    let refused = || {
        let address = SocketAddr::from(([127, 0, 0, 1], 80));
        inside(&lab.balancer(), || TcpStream::connect(address)).expect_err("all are full");
    };
    settle();
    let _first = converse(&lab.client(), UPLINK);
    refused();
    agent.crash();
    refused();

    // As if that had been long ago, whatever else an agent has written since.
    let pin = std::path::Path::new("/sys/fs/bpf/lb").join(lab.instance()).join(map::SWEPT);
    let swept = MapData::from_pin(pin).and_then(Map::from_map_data).unwrap();
    let mut swept: Array<_, u64> = swept.try_into().unwrap();
    assert_ne!(swept.get(&0, 0).unwrap(), 0);
    swept.set(0, 0, 0).unwrap();
    let _second = converse(&lab.client(), UPLINK);
    let next = start(&lab, &arguments(1), &limit);
    next.wait_ready(1);
    settle();
    refused();
}

fn another_scheduler_takes_over_without_loss() {
    let mut lab = Lab::new(2, Wiring::Bridge);
    lab.start_servers();
    let backends = [format!("{}:80=3", lab::backend(0)), format!("{}:80", lab::backend(1))];
    let [heavy, light] = &backends;
    let run = |scheduler: &str| {
        let arguments = ["--publish", "80", "--uplink", "up0", "--backend", heavy, "--backend", light];
        Agent::start(Some(&lab.balancer()), &lab.instance(), &[&arguments[..], &["--scheduler", scheduler]].concat())
    };
    let by_scheduler = |agent: &Agent, name: &str| {
        agent.wait_for(name, Duration::from_secs(10), |status| status["frontends"][0]["scheduler"] == name);
    };
    let agent = run("weighted");
    agent.wait_ready(2);
    let held: Vec<(usize, TcpStream)> = (0..8).map(|_| converse(&lab.client(), UPLINK)).collect();
    assert_eq!(held.iter().filter(|(number, _)| *number == 0).count(), 6, "three quarters, exactly");
    assert_eq!(agent.status()["frontends"][0]["backends"][0]["weight"], 3);
    agent.crash();

    let agent = run("source-hash");
    agent.wait_ready(2);
    by_scheduler(&agent, "source-hash");
    let first = lab.get("http://198.18.1.1/");
    assert!((0..8).all(|_| lab.get("http://198.18.1.1/") == first), "one client, one backend");
    for (number, mut stream) in held {
        assert_eq!(asked(&mut stream), number, "connections stay where they are");
    }
    agent.crash();

    let agent = run("random-two");
    agent.wait_ready(2);
    by_scheduler(&agent, "random-two");
    // The first connections are less for the heavier one; more of them are less for the other.
    let held: Vec<(usize, TcpStream)> = (0..12).map(|_| converse(&lab.client(), UPLINK)).collect();
    let light = held.iter().filter(|(number, _)| *number == 1).count();
    assert!((1..=5).contains(&light), "{light} of 12 are with the lighter one");
}

fn sockets_that_are_gone_are_forgotten() {
    let (lab, agent) = served(1, &[]);
    let mut maps = Maps::open(&Pins::of(&lab.instance())).unwrap();
    let cookies = |maps: &Maps| {
        let mut cookies = BTreeMap::new();
        maps.local_flows.scan(|&cookie: &u64, flow: &LocalFlow| _ = cookies.insert(cookie, *flow)).unwrap();
        cookies
    };
    let mut open = inside(&lab.balancer(), || TcpStream::connect(("127.0.0.1", 80)).expect("connected"));
    let (of_open, flow) = cookies(&maps).pop_first().expect("its entry");
    // The kernel says nothing when the subflow of such a connection is gone.
    drop(inside(&lab.balancer(), || lab::connect_mptcp("127.0.0.1:80".parse().unwrap())));
    agent.crash();
    // All of them as if they were old, and one that never was.
    for cookie in cookies(&maps).into_keys().chain([u64::MAX]) {
        maps.local_flows.put(&cookie, &LocalFlow { last_seen: 1, ..flow }).unwrap();
    }
    assert!(cookies(&maps).len() >= 2);

    let next = start(&lab, &arguments(1), &[]);
    next.wait_ready(1);
    wait_until("what is gone is forgotten", Duration::from_secs(30), || {
        cookies(&maps).keys().copied().collect::<Vec<_>>() == [of_open]
    });
    assert_eq!(next.status()["frontends"][0]["connections_active"], 1, "the open one counts");
    assert_eq!(ask_held(&mut open), "backend 0");
    drop(open);
    wait_until("the kernel tells of its end", Duration::from_secs(5), || cookies(&maps).is_empty());
}

fn an_agent_waits_for_no_other_instance() {
    let mut lab = Lab::new(2, Wiring::Bridge);
    lab.start_servers();
    // With a folder of its own for locks, so that nobody else waits for the one that is held here.
    let own_run = "mount -t tmpfs run /run && exec \"$0\" \"$@\"";
    let mut command = lab.command(&lab.balancer(), "unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", own_run, &binary()]);
    let all = arguments(2);
    let all: Vec<&str> =
        all.iter().map(String::as_str).chain(["--health", "http:/", "--health-interval", "200ms"]).collect();
    let agent = Agent::start_by(command, Some(&lab.balancer()), &lab.instance(), &all);
    agent.wait_ready(2);
    let lock = std::fs::File::open(format!("/proc/{}/root/run/lb/.frontends.lock", agent.pid())).expect("its lock");
    let held = Flock::lock(lock, FlockArg::LockExclusiveNonblock).expect("nobody holds it");
    lab::ip(&format!("-n {} addr add 198.18.1.9/24 dev up0", lab.balancer()));

    agent.wait_for("the problem is told", Duration::from_secs(15), |status| {
        status["problems"].to_string().contains("is choosing its frontends")
    });
    lab.stop_server(1);
    agent.wait_for("the loop goes on", Duration::from_secs(10), |status| status["scaling"]["ready"] == 1);
    drop(held);
    agent.wait_for("the address is followed", Duration::from_secs(15), |status| {
        status["frontends"][0]["addresses"].to_string().contains("198.18.1.9:80") && status["problems"] == json!([])
    });
    assert_eq!(lab.get("http://198.18.1.9/"), "backend 0");
}

fn a_takeover_that_fails_breaks_nothing() {
    let (lab, agent) = served(2, &[]);
    agent.crash();
    lab::ip(&format!("-n {} link add br9 type bridge", lab.balancer()));
    lab::ip(&format!("-n {} link set br9 up", lab.balancer()));
    // A bridge runs no XDP in its driver.
    let failing = ["--publish", "81", "--uplink", "br9", "--hook", "xdp", "--backend", "198.18.2.11:80"];
    let output = lab
        .command(&lab.balancer(), &binary())
        .args(["run", "--instance", &lab.instance()])
        .args(failing)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && error.contains("br9"), "{error}");

    for _ in 0..4 {
        lab.get("http://198.18.1.1/");
    }
    let next = start(&lab, &arguments(2), &[]);
    next.wait_ready(2);
    lab.get("http://198.18.1.1/");
}

fn a_start_that_is_killed_keeps_no_other_out() {
    let (lab, agent) = served(1, &[]);
    agent.crash();
    let folder = std::path::Path::new("/sys/fs/bpf/lb").join(lab.instance());
    let pins = || {
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    // As a run leaves it that dies between two maps: no link, no record, and not every map.
    for pin in pins().iter().filter(|pin| !map::ALL.contains(&pin.as_str()) || *pin == map::FLOWS) {
        std::fs::remove_file(folder.join(pin)).unwrap();
    }
    let record = MapData::from_pin(folder.join(map::AGENT)).and_then(Map::from_map_data).unwrap();
    let mut record: Array<_, AgentRecord> = record.try_into().unwrap();
    record.set(0, AgentRecord::default(), 0).unwrap();
    drop(record);
    let next = start(&lab, &arguments(1), &[]);
    next.wait_ready(1);
    assert_eq!(lab.get("http://198.18.1.1/"), "backend 0");
    next.crash();
    detach(&lab.instance(), false);

    // And killed for real, with the first pin, the second, and so on.
    for count in 1..=map::ALL.len() {
        let agent = start(&lab, &arguments(1), &[]);
        let begun = Instant::now();
        while pins().len() < count {
            assert!(begun.elapsed() < Duration::from_secs(20), "{count} pins: {}", agent.log());
        }
        agent.crash();
    }
    let last = start(&lab, &arguments(1), &[]);
    last.wait_ready(1);
    assert_eq!(lab.get("http://198.18.1.1/"), "backend 0");
}

fn mistakes_are_explained_and_leave_nothing() {
    let lab = Lab::new(1, Wiring::Bridge);
    let cases: [(&[&str], i32, &str); 9] = [
        (&["--publish", "80", "--backend", "198.18.2.11:80", "--uplink", "nope0"], 1, "nope0"),
        (&["--publish", "x", "--backend", "198.18.2.11:80"], 64, "--publish"),
        (&["--publish", "70000", "--backend", "198.18.2.11:80"], 64, "70000"),
        (&["--publish", "[::1]:80", "--backend", "198.18.2.11:80"], 64, "IPv6"),
        (&["--publish", "80:5000", "--image", "x", "--min", "5", "--max", "2"], 64, "5"),
        (&["--publish", "80", "--backend", "127.0.0.1:80"], 64, "loopback"),
        (&["--publish", "80"], 64, "--image"),
        (&["--publish", "80", "--backend", "198.18.2.11:80", "--instance", "Not/Good"], 64, "Not/Good"),
        (&["--publish", "80:5000", "--image", "lb-api", "--uplink", "up0"], 1, "DOCKER_HOST"),
    ];
    for (arguments, code, word) in cases {
        let mut command = lab.command(&lab.balancer(), &binary());
        command.arg("run").args(arguments).env("DOCKER_HOST", "unix:///nonexistent.sock");
        if !arguments.contains(&"--instance") {
            command.args(["--instance", &lab.instance()]);
        }
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(word), "{arguments:?} does not name {word}: {error}");
        assert_gone(&lab.instance());
    }
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("lb-user");
    std::fs::copy(binary(), &copy).unwrap();
    lab::run(std::process::Command::new("chmod").args(["-R", "a+rx"]).arg(folder.path()));
    let nobody = std::process::Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(&copy)
        .args(["run", "--publish", "80", "--backend", "198.18.2.11:80"])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert!(nobody.status.code() == Some(1) && error.contains("not root"), "{error}");
    wait_until("nothing is left", Duration::from_secs(1), || !std::path::Path::new("/sys/fs/bpf/lb/default").exists());
}
