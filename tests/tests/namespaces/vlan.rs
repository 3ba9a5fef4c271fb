//! Clients that come by VLANs of the uplink: a tag of 802.1Q, and one of those inside one of 802.1ad.

use std::time::Duration;

use lb_tests::{
    agent::{Agent, assert_gone, binary},
    frames::{SYN, tcp},
    lab::{self, Lab, Wiring},
};
use nix::sys::signal::Signal;

use super::{arguments, count, served, start};

/// VLAN 5 of the wire between client and balancer, and VLAN 7 inside VLAN 100 of a provider: devices, and networks.
const VLANS: [(&str, &str); 2] = [(".5", "198.18.5"), (".100.7", "198.18.7")];

/// A lab with servers whose client has VLANs, and the balancer, too.
pub(super) fn trunk(backends: usize) -> Lab {
    let mut lab = Lab::new(backends, Wiring::Bridge);
    lab.start_servers();
    for (namespace, trunk, host) in [(lab.client(), "cl0", 2), (lab.balancer(), "up0", 1)] {
        // A second tag needs room beside the packet.
        lab::ip(&format!("-n {namespace} link set {trunk} mtu 1504"));
        lab::ip(&format!("-n {namespace} link add link {trunk} name {trunk}.5 type vlan id 5"));
        lab::ip(&format!("-n {namespace} link add link {trunk} name {trunk}.100 type vlan proto 802.1ad id 100"));
        lab::ip(&format!("-n {namespace} link set {trunk}.100 up"));
        lab::ip(&format!("-n {namespace} link add link {trunk}.100 name {trunk}.100.7 type vlan id 7"));
        for (vlan, network) in VLANS {
            lab::ip(&format!("-n {namespace} addr add {network}.{host}/24 dev {trunk}{vlan}"));
            lab::ip(&format!("-n {namespace} link set {trunk}{vlan} mtu 1500 up"));
        }
    }
    lab
}

/// Lets the devices of the wire take tags, and add them, or leave both to the kernel.
pub(super) fn offload_tags(lab: &Lab, offload: &str) {
    for (namespace, device) in [(lab.client(), "cl0"), (lab.balancer(), "up0")] {
        let kinds = ["rxvlan", "txvlan", "rx-vlan-stag-hw-parse", "tx-vlan-stag-hw-insert"];
        let settings: Vec<&str> = kinds.into_iter().flat_map(|kind| [kind, offload]).collect();
        lab::run(lab.command(&namespace, "ethtool").args(["-K", device]).args(settings));
    }
}

/// Asks every frontend twice, each time another backend, and moves bulk data.
fn assert_served(lab: &Lab, networks: &[&str]) {
    for network in networks {
        let url = format!("http://{network}.1/");
        let mut answers = [lab.get(&url), lab.get(&url)];
        answers.sort();
        assert_eq!(answers, ["backend 0", "backend 1"], "{network}");
        let big = lab.from_client("curl", &["-s", "-m", "20", &format!("{url}big")]).stdout;
        assert_eq!(big.len(), 20_000_000, "{network}");
    }
}

pub(super) fn vlans_of_an_uplink_are_served() {
    let lab = trunk(2);
    let mut agent = start(&lab, &arguments(2), &[]);
    agent.wait_ready(2);
    let hooks = agent.status()["hooks"].to_string();
    assert!(["up0", "up0.5", "up0.100", "up0.100.7"].iter().all(|at| hooks.contains(&format!("\"{at}\""))), "{hooks}");

    for offload in ["on", "off"] {
        offload_tags(&lab, offload);
        assert_served(&lab, &["198.18.1", "198.18.5", "198.18.7"]);
    }
    assert!(count(&agent, "passes", "vlan") > 0, "at the trunk, they are the VLANs'");

    // One that comes later is followed, and one that goes.
    for (namespace, trunk, host) in [(lab.client(), "cl0", 2), (lab.balancer(), "up0", 1)] {
        lab::ip(&format!("-n {namespace} link add link {trunk} name {trunk}.9 type vlan id 9"));
        lab::ip(&format!("-n {namespace} addr add 198.18.9.{host}/24 dev {trunk}.9"));
        lab::ip(&format!("-n {namespace} link set {trunk}.9 up"));
    }
    agent.wait_for("the VLAN is followed", Duration::from_secs(20), |status| {
        status["frontends"][0]["addresses"].to_string().contains("198.18.9.1:80")
    });
    assert_served(&lab, &["198.18.9"]);
    lab::ip(&format!("-n {} link del up0.9", lab.balancer()));
    agent.wait_for("the VLAN is gone", Duration::from_secs(20), |status| {
        !status["frontends"][0]["addresses"].to_string().contains("198.18.9.1:80")
            && !status["hooks"].to_string().contains("up0.9")
    });

    agent.stop(Signal::SIGTERM);
    assert_gone(&lab.instance());
}

pub(super) fn xdp_leaves_vlans_to_their_devices() {
    let lab = trunk(2);
    lab::run(lab.command(&lab.client(), "ethtool").args(["-K", "cl0", "tx", "off"]));
    for hook in ["xdp", "xdp-generic"] {
        offload_tags(&lab, "on");
        let xdp = ["--hook", hook, "--complete-checksums"];
        let output = lab
            .command(&lab.balancer(), &binary())
            .args(["run", "--instance", &lab.instance()])
            .args(arguments(2))
            .args(xdp)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && error.contains("ethtool -K up0 rxvlan off"), "{error}");
        assert_gone(&lab.instance());

        offload_tags(&lab, "off");
        let mut agent = start(&lab, &arguments(2), &xdp);
        agent.wait_ready(2);
        assert_served(&lab, &["198.18.1", "198.18.5", "198.18.7"]);
        assert_eq!(count(&agent, "drops", "hidden_tag"), 0);

        // Whoever takes tags off after all is found out: what XDP has taken for the device's own ends at TC.
        lab::run(lab.command(&lab.client(), "ethtool").args(["-K", "cl0", "txvlan", "on"]));
        let lost = lab.from_client("curl", &["-s", "-m", "1", "http://198.18.5.1/"]);
        assert!(!lost.status.success());
        assert!(count(&agent, "drops", "hidden_tag") > 0);
        assert_served(&lab, &["198.18.1", "198.18.7"]);
        agent.stop(Signal::SIGTERM);
        assert_gone(&lab.instance());
    }
}

pub(super) fn a_vlan_may_be_the_uplink() {
    let lab = trunk(2);
    for (vlan, network) in VLANS {
        let uplink = format!("up0{vlan}");
        let backends = [0, 1].map(|number| format!("{}:80", lab::backend(number)));
        let arguments = ["--publish", "80", "--uplink", &uplink, "--backend", &backends[0], "--backend", &backends[1]];
        let mut agent = Agent::start(Some(&lab.balancer()), &lab.instance(), &arguments);
        agent.wait_ready(2);
        assert_served(&lab, &[network]);
        let others = lab.from_client("curl", &["-s", "-m", "3", "http://198.18.1.1/"]);
        assert_eq!(others.status.code(), Some(7), "the device below is not ours");
        agent.stop(Signal::SIGTERM);
        assert_gone(&lab.instance());
    }
    let output = lab
        .command(&lab.balancer(), &binary())
        .args(["run", "--instance", &lab.instance(), "--publish", "80", "--backend", "198.18.2.11:80"])
        .args(["--uplink", "up0.5", "--hook", "xdp"])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && error.contains("it is a VLAN"), "{error}");
    assert_gone(&lab.instance());
}

pub(super) fn tags_that_lead_nowhere_are_told_apart() {
    let (lab, agent) = served(1, &[]);
    let send = |tags: &[u8], port: u16| {
        let syn = tcp(([198, 18, 1, 2], port), ([198, 18, 1, 1], 80), SYN, 1, 0, &[]);
        lab::send_frame(&lab.client(), "cl0", &[&[0xff; 6], &syn[6..12], tags, &syn[12..]].concat());
    };
    let wait = |what: &str, passed: u64, connections: u64| {
        agent.wait_for(what, Duration::from_secs(3), |status| {
            status["verdicts"]["passes"]["vlan"] == passed && status["frontends"][0]["connections_total"] == connections
        });
    };
    send(&[0x81, 0, 0, 7], 40_000);
    wait("a VLAN that this host does not have is none of ours", 1, 0);
    send(&[0x88, 0xa8, 0, 0, 0x81, 0, 0, 7], 40_001);
    wait("nor is one behind a priority", 2, 0);
    send(&[0x81, 0, 0xa0, 0], 40_002);
    wait("a priority alone is no VLAN", 2, 1);
    send(&[], 40_003);
    wait("nor is no tag", 2, 2);
}
