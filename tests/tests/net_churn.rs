//! Change under load: backends that come and go five times a second while clients connect as fast as the machine can, and a
//! hundred thousand connections at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    ops::Range,
    os::fd::{AsRawFd as _, OwnedFd},
    process::{ExitCode, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use lb_ebpf::abi::{Lifetimes, Proto};
use lb_tests::{
    agent::Agent,
    frames::{ACK, RST, SYN, tcp},
    lab::{self, Lab, UPLINK, Wire, Wiring, inside},
    suite::{self, Case, Need},
};
use lb_user::{
    config::{Guard, Hook, TcAttach},
    control::{ContainerId, WHOLE},
    datapath::{
        Datapath, Opening, clock,
        doors::Device,
        links::{Belief, Links},
        publish::{FrontendWish, Member, Scheduling},
        report::Way,
        sweep,
    },
};

/// The service to which everything belongs.
const SERVICE: &str = "churn";

const TOOLS: &[Need] = &[
    Need::Root,
    Need::Agent,
    Need::Program("ip"),
    Need::Program("nsenter"),
    Need::Program("nft"),
    Need::Program("tcpdump"),
];
const PORT: u16 = 80;
const BACKENDS: usize = 4;
/// Time between two changes.
const EVERY: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let case = |name, run| Case { name, needs: TOOLS, run };
    suite::run(vec![
        case("nothing_is_lost_while_backends_come_and_go", nothing_is_lost_while_backends_come_and_go),
        case("a_hundred_thousand_connections_at_once", a_hundred_thousand_connections_at_once),
    ])
}

fn frontend() -> SocketAddrV4 {
    SocketAddrV4::new(UPLINK.parse().expect("an address"), PORT)
}

/// The datapath in the balancer's namespace, driven as the agent drives it; it is taken out of the kernel with this.
struct Served {
    namespace: String,
    datapath: Option<Datapath>,
    members: Vec<Member>,
}

impl Served {
    fn new(lab: &Lab) -> Self {
        let namespace = lab.balancer();
        let wish = FrontendWish {
            service: SERVICE.to_owned(),
            name: format!("{PORT}/tcp"),
            proto: Proto::Tcp,
            addresses: BTreeSet::from([frontend().into()]),
            guard: Guard::default(),
            scheduling: Scheduling::PLAIN,
        };
        let instance = lab.instance();
        let (datapath, members) = inside(&namespace, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let (uplink, ways) = runtime.block_on(async {
                let links = Links::open().expect("netlink");
                let mut ways = Vec::new();
                for number in 0..BACKENDS {
                    let at: Ipv4Addr = lab::backend(number).parse().expect("an address");
                    let path = links.resolve(at.into(), Belief::Lost).await.expect("a way");
                    ways.push((at, Way::new(path, (None, None))));
                }
                (links.named("up0").await.expect("the uplink"), ways)
            });
            let opening = Opening {
                instance: &instance,
                max_flows: 262_144,
                tc_attach: TcAttach::Auto,
                lifetimes: Lifetimes::DEFAULT,
            };
            let (mut datapath, _new) = Datapath::open(&opening).expect("the datapath opens");
            let device = Device { ifindex: uplink.index, name: &uplink.name, framing: uplink.framing };
            datapath.open_uplink(Hook::Tc, device).expect("the uplink opens");
            datapath.serve(std::slice::from_ref(&wish)).expect("the frontend is served");
            let members = ways.into_iter().map(|(at, way)| {
                let endpoints = BTreeMap::from([(wish.name.clone(), SocketAddrV4::new(at, PORT).into())]);
                let container = ContainerId(at.to_string());
                Member { container, endpoints, way, weight: 1, tenths: WHOLE, asleep: false }
            });
            (datapath, members.collect())
        });
        Self { namespace, datapath: Some(datapath), members }
    }

    /// Lets `ready` have the new connections; `draining` keep theirs, and those of all others end.
    fn publish(&mut self, ready: &[usize], draining: &[usize]) {
        let named = |numbers: &[usize]| numbers.iter().map(|&number| self.members[number].clone()).collect::<Vec<_>>();
        let (ready, draining) = (named(ready), named(draining));
        let datapath = self.datapath.as_mut().expect("it is open");
        inside(&self.namespace, || {
            let prepared = datapath.prepare(SERVICE, &ready, &draining).expect("there is room");
            // The kernel takes a link away when it comes to it. Until then there is no other of the program at the device, and
            // the backend is left out, as the agent leaves it out, and asked for again with the next change.
            prepared.unreachable.iter().for_each(|(backend, error)| eprintln!("{backend}: {error}"));
            datapath.commit(prepared).expect("it is written");
        });
    }
}

impl Served {
    /// Returns how many connections a backend has, as the agent counts them.
    fn connections_of(&self, number: usize) -> u64 {
        let datapath = self.datapath.as_ref().expect("it is open");
        let census = sweep::count(&datapath.maps, clock::ktime()).expect("the tables can be read");
        let of = datapath.registry.backends().filter(|backend| backend.container == self.members[number].container);
        of.map(|backend| census.active.get(&(backend.id, backend.generation)).copied().unwrap_or_default()).sum()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(datapath) = self.datapath.take()
            && let Err(error) = inside(&self.namespace, || datapath.remove())
        {
            eprintln!("remove the datapath: {error}");
        }
    }
}

/// Answers every byte with the backend's number; the connection ends with its client, or, if the byte is `q`, at once. Goes on
/// as long as the test's process: whoever connects last is answered, too.
fn serve(listener: &TcpListener, number: usize) {
    for mut stream in listener.incoming().flatten() {
        let mut asked = [0];
        if stream.read_exact(&mut asked).is_ok() && stream.write_all(&[number as u8]).is_ok() && asked != *b"q" {
            thread::spawn(move || {
                while stream.read_exact(&mut [0]).and_then(|()| stream.write_all(&[number as u8])).is_ok() {}
            });
        }
    }
}

/// Connects, asks, hears the answer and that it was the last.
fn ask_once() -> std::io::Result<()> {
    let mut stream = TcpStream::connect(frontend())?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"q")?;
    let mut answer = [0; 2];
    match (stream.read(&mut answer)?, stream.read(&mut answer[1..])?) {
        (1, 0) if usize::from(answer[0]) < BACKENDS => Ok(()),
        what => Err(std::io::Error::other(format!("heard {what:?}, {answer:?}"))),
    }
}

/// Lets clients end, whatever happens to who watches them.
struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A connection that stays, and asks on and on.
fn keep_asking(stop: &AtomicBool) -> Result<u64, String> {
    let failed = |what: &'static str| move |error: std::io::Error| format!("a connection that stays: {what}: {error}");
    let mut stream = TcpStream::connect(frontend()).map_err(failed("connect"))?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(failed("set"))?;
    let (mut answers, mut first, mut answer) = (0, None, [0]);
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(b"k").and_then(|()| stream.read_exact(&mut answer)).map_err(failed("ask"))?;
        if *first.get_or_insert(answer) != answer {
            return Err(format!("a connection that stays has moved from backend {first:?} to {answer:?}"));
        }
        answers += 1;
        thread::sleep(Duration::from_millis(5));
    }
    Ok(answers)
}

fn nothing_is_lost_while_backends_come_and_go() {
    let seconds = std::env::var("LB_CHURN_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(8);
    let lab = Lab::new(BACKENDS, Wiring::Bridge);
    for namespace in [lab.client(), lab.balancer()].into_iter().chain((0..BACKENDS).map(|number| lab.backend(number))) {
        // A backend remembers the client's port after a connection (TIME-WAIT), and takes another one from there only with a
        // later time stamp (RFC 6191); by default stamps begin anywhere for each address.
        let settings = ["net.ipv4.tcp_timestamps=2", "net.core.somaxconn=8192"];
        lab::run(lab.command(&namespace, "sysctl").arg("-qw").args(settings));
    }
    // Few enough that each is used again within seconds, while the backend that had it before remembers it.
    lab::run(lab.command(&lab.client(), "sysctl").args(["-qw", "net.ipv4.ip_local_port_range=20000 24999"]));
    let stop = AtomicBool::new(false);
    for number in 0..BACKENDS {
        let listener = inside(&lab.backend(number), || TcpListener::bind(("0.0.0.0", PORT)).expect("the port is free"));
        thread::spawn(move || serve(&listener, number));
    }
    let mut served = Served::new(&lab);
    // What stays, stays with the first two, which are never without their connections.
    served.publish(&[0, 1], &[]);
    let mut tap = lab
        .command(&lab.client(), "tcpdump")
        .args(["-n", "-i", "cl0", "-U", "-w", "-", "net 198.18.2.0/24"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("tcpdump starts");
    thread::sleep(Duration::from_millis(500));

    let (asked, client) = (AtomicU64::new(0), lab.client());
    let (lost, turns, stayed) = thread::scope(|scope| {
        let _ends_the_clients = Stopping(&stop);
        let staying: Vec<_> = (0..8).map(|_| scope.spawn(|| inside(&client, || keep_asking(&stop)))).collect();
        thread::sleep(Duration::from_millis(200));
        let asking: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    inside(&client, || {
                        let (mut lost, begun) = (Vec::new(), Instant::now());
                        while !stop.load(Ordering::Relaxed) {
                            asked.fetch_add(1, Ordering::Relaxed);
                            let at = begun.elapsed();
                            let took = |error| format!("{error}, {:?} after {at:?}", begun.elapsed() - at);
                            lost.extend(ask_once().err().map(took));
                        }
                        lost
                    })
                })
            })
            .collect();
        let turns = change(&mut served, Instant::now() + Duration::from_secs(seconds));
        stop.store(true, Ordering::Relaxed);
        let lost: Vec<String> = asking.into_iter().flat_map(|asking| asking.join().expect("it has no panic")).collect();
        let stayed: Vec<_> = staying.into_iter().map(|staying| staying.join().expect("it has no panic")).collect();
        (lost, turns, stayed)
    });
    thread::sleep(Duration::from_millis(300));
    lab::end(&mut tap);
    let mut captured = Vec::new();
    tap.stdout.take().expect("it is piped").read_to_end(&mut captured).expect("what it has written");

    let asked = asked.into_inner();
    eprintln!("{asked} connections, {} a second, over {turns} changes; {} lost", asked / seconds, lost.len());
    assert!(lost.is_empty(), "{} of {asked} connections lost: {:?}", lost.len(), &lost[..lost.len().min(5)]);
    assert!(stayed.iter().all(|stayed| stayed.as_ref().is_ok_and(|&answers| answers > 50)), "{stayed:?}");
    assert!(asked > 500 * seconds && turns as u64 >= 2 * seconds, "too little to show anything");
    // Only the file's header: a capture's has 24 bytes.
    assert!(captured.len() <= 24, "{} bytes of packets with a backend's address were seen", captured.len());
}

/// Where a backend is that comes and goes, and for how many turns.
#[derive(Clone, Copy)]
enum Phase {
    Ready(usize),
    Draining(usize),
    Away(usize),
}

impl Phase {
    fn next(self, is_idle: impl FnOnce() -> bool) -> Self {
        match self {
            Self::Ready(2..) => Self::Draining(1),
            Self::Ready(turns) => Self::Ready(turns + 1),
            Self::Draining(3..) if is_idle() => Self::Away(1),
            Self::Draining(turns) => Self::Draining(turns + 1),
            Self::Away(3..) => Self::Ready(1),
            Self::Away(turns) => Self::Away(turns + 1),
        }
    }
}

/// Changes the backends until `end`, and returns how often. The first two take turns at new connections; the others come, get
/// new connections for a while, drain, and go when they have no connection any longer, as the agent lets them.
fn change(served: &mut Served, end: Instant) -> usize {
    let mut phases = [Phase::Away(3), Phase::Away(1)];
    let mut turn = 0;
    while Instant::now() < end {
        let begun = Instant::now();
        let (mut ready, mut draining) = (vec![turn % 2], vec![(turn + 1) % 2]);
        for (phase, number) in phases.iter_mut().zip(2..BACKENDS) {
            *phase = phase.next(|| served.connections_of(number) == 0);
            match phase {
                Phase::Ready(_) => ready.push(number),
                Phase::Draining(_) => draining.push(number),
                Phase::Away(_) => {}
            }
        }
        served.publish(&ready, &draining);
        turn += 1;
        thread::sleep(EVERY.saturating_sub(begun.elapsed()));
    }
    turn
}

/// Clients of which no kernel knows: they are all at one device.
const CROWD: u32 = 100_000;
const BATCH: u32 = 250;
/// How often a segment is sent at most.
const TRIES: usize = 20;

/// Returns all of the crowd, a few at a time.
fn batches() -> impl Iterator<Item = Range<u32>> {
    (0..CROWD).step_by(BATCH as usize).map(|first| first..(first + BATCH).min(CROWD))
}

/// Returns a client of the crowd.
fn one_of(number: u32) -> ([u8; 4], u16) {
    ([198, 19, 0, (number / 20_000) as u8 + 1], 10_000 + (number % 20_000) as u16)
}

fn number_of(address: &[u8], port: u16) -> Option<u32> {
    let network = address.starts_with(&[198, 19, 0]) && address[3] > 0 && port >= 10_000;
    network.then(|| u32::from(address[3] - 1) * 20_000 + u32::from(port - 10_000))
}

/// What the crowd has heard: by its number, the next sequence number of the server, and what the server acknowledged.
#[derive(Clone, Copy, Default)]
struct Heard {
    next: u32,
    acknowledged: u32,
}

fn a_hundred_thousand_connections_at_once() {
    let lab = Lab::new(BACKENDS, Wiring::Bridge);
    lab::ip(&format!("-n {} route add 198.19.0.0/24 via {}", lab.balancer(), lab::CLIENT));
    let mut listeners = Vec::new();
    for number in 0..BACKENDS {
        let settings = ["net.core.somaxconn=65535", "net.ipv4.tcp_max_syn_backlog=65535", "net.ipv4.tcp_syncookies=0"];
        lab::run(lab.command(&lab.backend(number), "sysctl").arg("-qw").args(settings));
        // Whom nobody accepts stays in the queue, connected, and needs no descriptor.
        listeners.push(inside(&lab.backend(number), listen_to_all));
    }
    let backends: Vec<String> = (0..BACKENDS).map(|number| format!("{}:{PORT}", lab::backend(number))).collect();
    let mut arguments = vec!["--publish", "80", "--uplink", "up0", "--health", "none"];
    backends.iter().for_each(|backend| arguments.extend(["--backend", backend]));
    let agent = Agent::start(Some(&lab.balancer()), &lab.instance(), &arguments);
    agent.wait_ready(BACKENDS as u64);
    let before = memory(agent.pid());

    let crowd = Crowd::new(&lab);
    let mut heard = vec![Heard::default(); CROWD as usize];
    let begun = Instant::now();
    for batch in batches() {
        crowd.ask(batch.clone(), &mut heard, |_| Segment(SYN, 1_000, 0, b""), 1_001);
        crowd.ask(batch, &mut heard, |heard| Segment(ACK, 1_001, heard.next, b"1"), 1_002);
    }
    let opened = begun.elapsed();
    agent.wait_for("all are counted", Duration::from_secs(20), |status| {
        status["flows"]["established"].as_u64() == Some(u64::from(CROWD))
    });
    // All at once: each of them goes on at its backend, which would answer a stranger with a reset.
    for batch in batches() {
        crowd.ask(batch, &mut heard, |heard| Segment(ACK, 1_002, heard.next, b"2"), 1_003);
    }

    let status = agent.status();
    let connections: Vec<u64> = status["frontends"][0]["backends"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|backend| backend["connections_total"].as_u64())
        .collect();
    let after = memory(agent.pid());
    eprintln!("{CROWD} connections opened in {opened:?}; the agent has {before} KiB before and {after} KiB after");
    assert_eq!(connections, [u64::from(CROWD) / BACKENDS as u64; BACKENDS]);
    assert!(after < before + 16 * 1024, "the agent's memory grows with the flows: {before} KiB, {after} KiB");
    assert_eq!(status["verdicts"]["events"]["flow_table_full"], 0);
    drop(listeners);
}

/// Listens with a queue for all that may come.
fn listen_to_all() -> OwnedFd {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, socket};
    let listener = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    bind(listener.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, PORT)).expect("the port is free");
    // SAFETY: a system call without pointers.
    let listens = unsafe { libc::listen(listener.as_raw_fd(), 65_535) };
    assert_eq!(listens, 0, "{}", std::io::Error::last_os_error());
    listener
}

/// Returns the resident memory of a process, in KiB.
fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// The crowd's device.
struct Crowd {
    wire: Wire,
    macs: [u8; 12],
}

impl Crowd {
    fn new(lab: &Lab) -> Self {
        let mac = |namespace: &str, device: &str| {
            let file = format!("/sys/class/net/{device}/address");
            // Each mount of /sys shows the namespace of who has mounted it.
            let script = format!("mount -t sysfs sys /sys && cat {file}");
            let text = lab::run(lab.command(namespace, "unshare").args(["--mount", "sh", "-c", &script]));
            let bytes: Vec<u8> =
                text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a byte")).collect();
            <[u8; 6]>::try_from(bytes).expect("six of them")
        };
        let macs = [mac(&lab.balancer(), "up0"), mac(&lab.client(), "cl0")].concat();
        Self { wire: Wire::open(&lab.client(), "cl0"), macs: macs.try_into().expect("two of them") }
    }

    /// Sends a segment of each, and waits until all have heard that it was acknowledged. Who hears nothing repeats it: queues
    /// between two namespaces are short.
    fn ask(&self, batch: Range<u32>, heard: &mut [Heard], segment: impl Fn(Heard) -> Segment, acknowledged: u32) {
        let at = (frontend().ip().octets(), PORT);
        let mut waiting: Vec<u32> = batch.collect();
        for _ in 0..TRIES {
            for &number in &waiting {
                let Segment(flags, sequence, acknowledgement, payload) = segment(heard[number as usize]);
                let mut frame = tcp(one_of(number), at, flags, sequence, acknowledgement, payload);
                frame[..12].copy_from_slice(&self.macs);
                self.wire.send(&frame);
            }
            self.listen(heard, waiting.len(), acknowledged);
            waiting.retain(|&number| heard[number as usize].acknowledged != acknowledged);
            if waiting.is_empty() {
                return;
            }
        }
        panic!("{} have heard nothing of {acknowledged}, {:?} for one", waiting.len(), waiting.first());
    }

    /// Listens until so many have heard an acknowledgement, or nobody hears anything any longer.
    fn listen(&self, heard: &mut [Heard], mut waiting: usize, acknowledged: u32) {
        let mut room = [0; 2048];
        while waiting > 0
            && let Some(len) = self.wire.receive(&mut room, Duration::from_millis(300))
        {
            let frame = &room[..len];
            let Some(number) = heard_by(frame) else { continue };
            let word = |at: usize| u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
            assert_eq!(frame[26..30], frontend().ip().octets(), "{number} hears the frontend");
            assert!(frame[47] & RST == 0, "the connection of {number} was reset");
            let place = &mut heard[number as usize];
            if frame[47] & SYN != 0 {
                place.next = word(38).wrapping_add(1);
            }
            waiting -= usize::from(word(42) == acknowledged && place.acknowledged != acknowledged);
            place.acknowledged = word(42);
        }
    }
}

/// Flags, sequence and acknowledgement numbers, payload.
struct Segment(u8, u32, u32, &'static [u8]);

/// Returns who of the crowd a segment is for.
fn heard_by(frame: &[u8]) -> Option<u32> {
    let is_tcp = frame.len() >= 54 && frame[12..15] == [8, 0, 0x45] && frame[23] == 6;
    is_tcp
        .then(|| number_of(&frame[30..34], u16::from_be_bytes([frame[36], frame[37]])))?
        .filter(|&number| number < CROWD)
}
