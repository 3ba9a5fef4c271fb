//! The field on which the systems compete: one client, one balancer's namespace, backends behind its bridge, and the
//! servers in them. All systems take turns in this one.

use std::{
    net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket},
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lb_ebpf::abi::Proto;
use lb_tests::lab::{self, Lab, Wiring};

use crate::{datagrams, pingpong};

/// Where nginx answers.
pub const HTTP: u16 = 80;
/// Where iperf3 answers.
pub const BULK: u16 = 5201;
/// Where every message is sent back.
pub const ECHO: u16 = 7;
/// Where datagrams are counted.
pub const SINK: u16 = 9;

/// The field; what runs on it ends with it.
pub struct Field {
    /// Its namespaces.
    pub lab: Lab,
    backends: usize,
    iperf: Vec<Child>,
    /// Datagrams that have arrived, by backend.
    arrived: Vec<Arc<AtomicU64>>,
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

/// What is balanced in a turn.
#[derive(Clone, Debug)]
pub struct Service {
    /// Frontend and backends listen on this port.
    pub port: u16,
    /// The protocol.
    pub proto: Proto,
    /// The backends.
    pub backends: Vec<Ipv4Addr>,
    /// Whether the servers bear connections that only look whether anybody is there.
    pub bears_checks: bool,
}

impl Service {
    /// Returns where clients find it.
    pub fn frontend(&self) -> SocketAddrV4 {
        SocketAddrV4::new(frontend(), self.port)
    }

    /// Returns where its backends listen.
    pub fn endpoints(&self) -> Vec<SocketAddrV4> {
        self.backends.iter().map(|&backend| SocketAddrV4::new(backend, self.port)).collect()
    }
}

/// Returns the address at which all systems are asked.
pub fn frontend() -> Ipv4Addr {
    lab::UPLINK.parse().expect("an address")
}

impl Field {
    /// Makes the field with so many backends and starts their servers.
    pub fn new(backends: usize) -> Result<Self> {
        let mut lab = Lab::open(backends, Wiring::Bridge);
        for namespace in
            [lab.client(), lab.balancer()].into_iter().chain((0..backends).map(|number| lab.backend(number)))
        {
            let settings = [
                // Bursts of new connections shall find ports and queues, whoever balances them.
                "net.ipv4.ip_local_port_range=1024 65535",
                "net.core.somaxconn=8192",
                // A backend remembers a port that the client used in another system's turn (TIME-WAIT), and accepts it
                // again only with a later timestamp (RFC 6191). By default timestamps begin anywhere for each
                // destination, and systems differ in what the client's destination is: half of such connections would
                // wait a second for their second SYN.
                "net.ipv4.tcp_timestamps=2",
            ];
            lab::run(lab.command(&namespace, "sysctl").arg("-qw").args(settings));
        }
        lab.start_servers();
        let mut field =
            Self { lab, backends, iperf: Vec::new(), arrived: Vec::new(), stop: Arc::default(), threads: Vec::new() };
        for number in 0..backends {
            field.start_servers_of(number)?;
        }
        Ok(field)
    }

    fn start_servers_of(&mut self, number: usize) -> Result<()> {
        let namespace = self.lab.backend(number);
        let mut iperf = self.lab.command(&namespace, "iperf3");
        iperf.args(["-s", "-p", &BULK.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
        self.iperf.push(iperf.spawn().context("start iperf3")?);
        let any = |port: u16| SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        let (tcp, udp, sink) = lab::inside(&namespace, || {
            (TcpListener::bind(any(ECHO)), UdpSocket::bind(any(ECHO)), UdpSocket::bind(any(SINK)))
        });
        let (tcp, udp, sink) = (tcp.context("listen")?, udp.context("bind")?, sink.context("bind")?);
        let stop = || self.stop.clone();
        let (one, two, three) = (stop(), stop(), stop());
        let arrived = Arc::<AtomicU64>::default();
        self.arrived.push(arrived.clone());
        self.threads.push(thread::spawn(move || pingpong::serve_tcp(&tcp, &one)));
        self.threads.push(thread::spawn(move || pingpong::serve_udp(&udp, &two)));
        self.threads.push(thread::spawn(move || datagrams::count(&sink, &arrived, &three)));
        Ok(())
    }

    /// Returns how many datagrams have arrived at a backend.
    pub fn arrived_at(&self, backend: usize) -> u64 {
        self.arrived[backend].load(Ordering::Relaxed)
    }

    /// Returns how many have arrived at all backends.
    pub fn arrived(&self) -> u64 {
        (0..self.backends).map(|backend| self.arrived_at(backend)).sum()
    }

    /// Returns a service with all backends.
    pub fn service(&self, port: u16, proto: Proto) -> Service {
        self.service_of(port, proto, self.backends)
    }

    /// Returns a service with the first backends only.
    pub fn service_of(&self, port: u16, proto: Proto, backends: usize) -> Service {
        let backends = (0..backends).map(|number| lab::backend(number).parse().expect("an address")).collect();
        // iperf3 takes every connection for the beginning of a test.
        Service { port, proto, backends, bears_checks: proto == Proto::Tcp && port != BULK }
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.iperf.iter_mut().for_each(lab::end);
        for thread in self.threads.drain(..) {
            let _panicked_already = thread.join();
        }
    }
}

/// How long a server's thread waits before it looks whether to stop.
pub const PATIENCE: Duration = Duration::from_millis(100);
