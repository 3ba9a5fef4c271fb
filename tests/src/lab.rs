//! Networks of namespaces: a client, the balancer, and backends behind a bridge or behind veths of their own.
//!
//! ```text
//! client 198.18.1.2 ── up0 198.18.1.1 [balancer] br0 198.18.2.1 ── backends 198.18.2.11 …
//! ```
//!
//! The balancer's namespace is as hostile as a Docker host: no forwarding, strict reverse-path filter, FORWARD drops,
//! and the raw table drops what is addressed to a backend and did not come from the bridge. For comparisons with what
//! needs forwarding there is an open one, [`Lab::open`].

use std::{
    ffi::CString,
    fs::File,
    io::{Read as _, Write as _},
    net::{SocketAddrV4, TcpStream},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

static LABS: AtomicU32 = AtomicU32::new(0);

/// How backends are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wiring {
    /// Behind a bridge, as Docker does it.
    Bridge,
    /// Each behind a veth with a route of its own.
    Routed,
}

/// Namespaces that end with this.
pub struct Lab {
    prefix: String,
    backends: usize,
    servers: Vec<Child>,
    folder: tempfile::TempDir,
}

/// The address of the client.
pub const CLIENT: &str = "198.18.1.2";
/// The address of the balancer's uplink.
pub const UPLINK: &str = "198.18.1.1";

/// The IPv6 address of the client.
pub const CLIENT_V6: &str = "2001:db8:1::2";
/// The IPv6 address of the balancer's uplink.
pub const UPLINK_V6: &str = "2001:db8:1::1";
/// The IPv6 address of the balancer beside the backends.
pub const BRIDGE_V6: &str = "2001:db8:2::1";

/// Returns the IPv6 address of a backend.
pub fn backend_v6(number: usize) -> String {
    format!("2001:db8:2::{:x}", 11 + number)
}

/// Returns the address of a backend.
pub fn backend(number: usize) -> String {
    format!("198.18.2.{}", 11 + number)
}

impl Lab {
    /// Makes the namespaces.
    pub fn new(backends: usize, wiring: Wiring) -> Self {
        let lab = Self::open(backends, wiring);
        let balancer = lab.balancer();
        let rules = "add table ip t; \
            add chain ip t raw { type filter hook prerouting priority raw; }; \
            add rule ip t raw iifname up0 ip daddr 198.18.2.0/24 counter drop; \
            add chain ip t forward { type filter hook forward priority filter; policy drop; };";
        run(lab.command(&balancer, "nft").arg(rules));
        for setting in ["net.ipv4.ip_forward=0", "net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.up0.rp_filter=1"] {
            run(lab.command(&balancer, "sysctl").args(["-qw", setting]));
        }
        lab
    }

    /// Makes the namespaces, and lets the balancer's route without any rule.
    pub fn open(backends: usize, wiring: Wiring) -> Self {
        sweep_leftovers();
        let prefix = format!("lbt{}x{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::tempdir().expect("a folder for servers");
        let lab = Self { prefix, backends, servers: Vec::new(), folder };
        let (client, balancer) = (lab.client(), lab.balancer());
        for name in [&client, &balancer] {
            ip(&format!("netns add {name}"));
            ip(&format!("-n {name} link set lo up"));
        }
        lab.add_uplink();
        if wiring == Wiring::Bridge {
            ip(&format!("-n {balancer} link add br0 type bridge"));
            ip(&format!("-n {balancer} addr add 198.18.2.1/24 dev br0"));
            ip(&format!("-n {balancer} link set br0 up"));
        }
        for number in 0..backends {
            lab.add_backend(number, wiring);
        }
        run(lab.command(&balancer, "sysctl").args(["-qw", "net.ipv4.ip_forward=1"]));
        lab
    }

    /// Gives client, balancer and backends behind a bridge an IPv6 address each, beside the other, where nothing is
    /// forwarded either.
    pub fn add_ipv6(&self) {
        let (client, balancer) = (self.client(), self.balancer());
        ip(&format!("-n {client} addr add {CLIENT_V6}/64 dev cl0 nodad"));
        ip(&format!("-n {client} route add default via {UPLINK_V6}"));
        ip(&format!("-n {balancer} addr add {UPLINK_V6}/64 dev up0 nodad"));
        ip(&format!("-n {balancer} addr add {BRIDGE_V6}/64 dev br0 nodad"));
        for number in 0..self.backends {
            let (name, address) = (self.backend(number), backend_v6(number));
            ip(&format!("-n {name} addr add {address}/64 dev eth0 nodad"));
            ip(&format!("-n {name} route add default via {BRIDGE_V6}"));
        }
        let rules = "add table ip6 t; \
            add chain ip6 t raw { type filter hook prerouting priority raw; }; \
            add rule ip6 t raw iifname up0 ip6 daddr 2001:db8:2::/64 counter drop; \
            add chain ip6 t forward { type filter hook forward priority filter; policy drop; };";
        run(self.command(&balancer, "nft").arg(rules));
    }

    fn add_uplink(&self) {
        let (client, balancer) = (self.client(), self.balancer());
        ip(&format!("link add cl0 netns {client} type veth peer name up0 netns {balancer}"));
        ip(&format!("-n {client} addr add {CLIENT}/24 dev cl0"));
        ip(&format!("-n {client} link set cl0 up"));
        ip(&format!("-n {client} route add default via {UPLINK}"));
        ip(&format!("-n {balancer} addr add {UPLINK}/24 dev up0"));
        ip(&format!("-n {balancer} link set up0 up"));
    }

    /// Takes the uplink away and makes another one of the same name and addresses.
    pub fn replace_uplink(&self) {
        ip(&format!("-n {} link del up0", self.balancer()));
        self.add_uplink();
    }

    fn add_backend(&self, number: usize, wiring: Wiring) {
        let (name, balancer, address) = (self.backend(number), self.balancer(), backend(number));
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("link add eth0 netns {name} type veth peer name be{number} netns {balancer}"));
        ip(&format!("-n {name} link set eth0 up"));
        match wiring {
            Wiring::Bridge => {
                ip(&format!("-n {balancer} link set be{number} master br0 up"));
                ip(&format!("-n {name} addr add {address}/24 dev eth0"));
                ip(&format!("-n {name} route add default via 198.18.2.1"));
            }
            Wiring::Routed => {
                ip(&format!("-n {balancer} link set be{number} up"));
                ip(&format!("-n {balancer} addr add 198.18.2.1/32 dev be{number}"));
                ip(&format!("-n {balancer} route add {address}/32 dev be{number} src 198.18.2.1"));
                ip(&format!("-n {name} addr add {address}/32 dev eth0"));
                ip(&format!("-n {name} route add 198.18.2.1/32 dev eth0"));
                ip(&format!("-n {name} route add default via 198.18.2.1"));
            }
        }
    }

    /// Returns the client's namespace.
    pub fn client(&self) -> String {
        format!("{}c", self.prefix)
    }

    /// Returns the balancer's namespace.
    pub fn balancer(&self) -> String {
        format!("{}l", self.prefix)
    }

    /// Returns a backend's namespace.
    pub fn backend(&self, number: usize) -> String {
        format!("{}b{number}", self.prefix)
    }

    /// Makes another namespace, which ends with the lab, and returns its name.
    pub fn namespace(&self, suffix: &str) -> String {
        let name = format!("{}{suffix}", self.prefix);
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        name
    }

    /// Removes a namespace before the lab ends, with all that is in it once its last process has ended.
    pub fn remove_namespace(&self, name: &str) {
        ip(&format!("netns del {name}"));
    }

    /// Lets the balancer's namespace route, as a fallback needs it.
    pub fn allow_forwarding(&self) {
        run(self.command(&self.balancer(), "nft").args(["flush", "ruleset"]));
        run(self.command(&self.balancer(), "sysctl").args(["-qw", "net.ipv4.ip_forward=1"]));
    }

    /// Returns a name for an instance that no other test uses.
    pub fn instance(&self) -> String {
        self.prefix.clone()
    }

    /// Prepares a program in a namespace. Not `ip netns exec`, which hides the BPF file system.
    pub fn command(&self, namespace: &str, program: &str) -> Command {
        command_in(namespace, program)
    }

    /// Runs a program in the client's namespace and returns what it printed.
    pub fn from_client(&self, program: &str, arguments: &[&str]) -> Output {
        self.command(&self.client(), program).args(arguments).output().expect("the program starts")
    }

    /// Asks for a page as the client and returns what was answered, without the line's end.
    pub fn get(&self, url: &str) -> String {
        let output = self.from_client("curl", &["-s", "-m", "3", url]);
        assert!(output.status.success(), "curl {url}: {}", output.status);
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Starts nginx in every backend's namespace; it answers with the backend's number.
    pub fn start_servers(&mut self) {
        for number in 0..self.backends {
            self.start_server(number);
        }
    }

    /// Starts nginx in a backend's namespace and waits until it answers.
    pub fn start_server(&mut self, number: usize) {
        self.start_server_in(&self.backend(number), number);
    }

    /// Starts nginx in any namespace as the server of that number, and waits until it answers.
    pub fn start_server_in(&mut self, namespace: &str, number: usize) {
        self.start_server_at(namespace, 80, number);
    }

    /// Starts nginx at a port of any namespace as the server of that number, and waits until it answers.
    pub fn start_server_at(&mut self, namespace: &str, port: u16, number: usize) {
        let folder = self.folder.path().join(number.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        let big: Vec<u8> = (0..20_000_000_u32).map(|byte| (byte.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        std::fs::write(folder.join("big"), big).unwrap();
        let path = folder.display();
        let config = format!(
            "daemon off; master_process off; pid {path}/pid; error_log {path}/error; \
             events {{ worker_connections 4096; }} \
             http {{ access_log off; keepalive_requests 10000000; server {{ listen {port} backlog=4096; \
             listen [::]:{port} backlog=4096; root {path}; location = / {{ default_type text/plain; return 200 \"backend {number}\\n\"; }} }} }}"
        );
        std::fs::write(folder.join("nginx.conf"), config).unwrap();
        let child = self
            .command(namespace, "nginx")
            .arg("-c")
            .arg(folder.join("nginx.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx starts");
        self.servers.push(child);
        wait_until("nginx answers", Duration::from_secs(5), || {
            command_in(namespace, "curl")
                .args(["-s", "-o", "/dev/null", &format!("http://127.0.0.1:{port}/")])
                .status()
                .is_ok_and(|status| status.success())
        });
    }

    /// Ends the server of a backend that was started as the `nth`.
    pub fn stop_server(&mut self, nth: usize) {
        end(&mut self.servers[nth]);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.servers.iter_mut().for_each(end);
        remove_instances(&self.prefix, &self.balancer());
        remove_namespaces(&self.prefix);
    }
}

/// A link without link-layer addresses between two namespaces, as a tunnel is one: what enters here leaves there.
pub struct Tunnel {
    stop: Arc<AtomicBool>,
    pumps: Vec<thread::JoinHandle<()>>,
}

impl Tunnel {
    /// Makes a device in each of two namespaces, with these names and addresses.
    pub fn new(one: (&str, &str, &str), other: (&str, &str, &str)) -> Self {
        let ends: Vec<File> =
            [one, other].map(|(namespace, device, address)| open_tun(namespace, device, address)).into();
        let stop = Arc::new(AtomicBool::new(false));
        let pumps = [(0, 1), (1, 0)].map(|(from, to)| {
            let clone = |end: usize| ends[end].try_clone().expect("a descriptor can be doubled");
            let (mut from, mut to, stop) = (clone(from), clone(to), stop.clone());
            thread::spawn(move || {
                let mut packet = [0; 65_536];
                while !stop.load(Ordering::Relaxed) {
                    match from.read(&mut packet) {
                        Ok(len) => _ = to.write(&packet[..len]),
                        Err(_) => thread::sleep(Duration::from_millis(1)),
                    }
                }
            })
        });
        Self { stop, pumps: pumps.into() }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for pump in self.pumps.drain(..) {
            let _panicked_already = pump.join();
        }
    }
}

/// Makes a tun device that carries bare IP packets and sets it up.
///
/// # Source
/// Documentation/networking/tuntap.rst.
fn open_tun(namespace: &str, device: &str, address: &str) -> File {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    let file = inside(namespace, || {
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .expect("there is a tun driver");
        let mut request = [0_u8; 40];
        request[..device.len()].copy_from_slice(device.as_bytes());
        let flags = (libc::IFF_TUN | libc::IFF_NO_PI) as u16;
        request[16..18].copy_from_slice(&flags.to_ne_bytes());
        // SAFETY: the descriptor is open, and the kernel reads and writes a `struct ifreq` of 40 bytes.
        let outcome = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
        assert_eq!(outcome, 0, "make {device}: {}", std::io::Error::last_os_error());
        file
    });
    ip(&format!("-n {namespace} addr add {address} dev {device}"));
    ip(&format!("-n {namespace} link set {device} up"));
    file
}

/// Sends a frame out of a device, as it is.
pub fn send_frame(namespace: &str, device: &str, frame: &[u8]) {
    Wire::open(namespace, device).send(frame);
}

/// A device as its driver sees it: frames go out as they are, and IPv4 that enters is seen before the kernel's own look.
///
/// # Source
/// packet(7).
pub struct Wire {
    socket: OwnedFd,
    to: libc::sockaddr_ll,
}

impl Wire {
    /// Opens a device of a namespace.
    pub fn open(namespace: &str, device: &str) -> Self {
        inside(namespace, || {
            let name = CString::new(device).expect("a name of a device");
            let protocol = (libc::ETH_P_IP as u16).to_be();
            // SAFETY: a system call without pointers, and one with a string that outlives it.
            let (socket, index) = unsafe {
                (
                    libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0),
                    libc::if_nametoindex(name.as_ptr()),
                )
            };
            assert!(socket >= 0 && index > 0, "{device}: {}", std::io::Error::last_os_error());
            // SAFETY: the kernel has just given us this descriptor.
            let socket = unsafe { OwnedFd::from_raw_fd(socket) };
            // SAFETY: all zero is an address.
            let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            to.sll_family = libc::AF_PACKET as u16;
            to.sll_protocol = protocol;
            to.sll_ifindex = index as i32;
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(64 << 20))
                .expect("root may have a large buffer");
            let len = size_of_val(&to) as libc::socklen_t;
            // SAFETY: the address outlives the call, and its length is given.
            let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const to).cast(), len) };
            assert_eq!(bound, 0, "{device}: {}", std::io::Error::last_os_error());
            Self { socket, to }
        })
    }

    /// Sends a frame, as soon as there is room for it.
    pub fn send(&self, frame: &[u8]) {
        while !self.try_send(frame) {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn try_send(&self, frame: &[u8]) -> bool {
        // SAFETY: frame and address outlive the call, and their lengths are given.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const self.to).cast(),
                size_of_val(&self.to) as libc::socklen_t,
            )
        };
        let error = std::io::Error::last_os_error();
        let is_full = sent < 0 && error.raw_os_error() == Some(libc::ENOBUFS);
        assert!(is_full || sent == frame.len() as isize, "{error}");
        !is_full
    }

    /// Waits for the next frame and returns how long it is; nothing if none comes in time.
    pub fn receive(&self, room: &mut [u8], patience: Duration) -> Option<usize> {
        use nix::{
            poll::{PollFd, PollFlags, PollTimeout, poll},
            sys::socket::{MsgFlags, recv},
        };
        use std::os::fd::AsFd as _;
        loop {
            match recv(self.socket.as_raw_fd(), room, MsgFlags::MSG_DONTWAIT) {
                Ok(len) => return Some(len),
                Err(nix::errno::Errno::EAGAIN) => {}
                Err(error) => panic!("receive: {error}"),
            }
            let patience = PollTimeout::try_from(patience).expect("less than weeks");
            let mut waits = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            if poll(&mut waits, patience).expect("a descriptor of ours") == 0 {
                return None;
            }
        }
    }
}

/// Connects by MPTCP, which becomes TCP where the server has none; by TCP at once where this kernel has none.
///
/// # Source
/// Documentation/networking/mptcp.rst.
pub fn connect_mptcp(to: SocketAddrV4) -> TcpStream {
    // SAFETY: a system call without pointers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP) };
    if socket < 0 {
        return TcpStream::connect(to).expect("connected");
    }
    // SAFETY: the kernel has just given us this descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let address = nix::sys::socket::SockaddrIn::from(to);
    nix::sys::socket::connect(socket.as_raw_fd(), &address).expect("connected");
    socket.into()
}

/// Connects by TCP from a port of the caller's choice.
pub fn connect_from(port: u16, to: SocketAddrV4) -> TcpStream {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt};
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).expect("a socket");
    setsockopt(&socket, sockopt::ReuseAddr, &true).expect("a port that was used before");
    bind(socket.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, port)).expect("bound");
    connect(socket.as_raw_fd(), &SockaddrIn::from(to)).expect("connected");
    socket.into()
}

/// Ends a process that a test has started.
pub fn end(child: &mut Child) {
    let _ended_already = child.kill();
    let _nothing_to_reap = child.wait();
}

/// Asks a process to end as Ctrl-C would, and lets it say its last words.
pub fn interrupt(child: &mut Child) {
    let _ended_already = kill(Pid::from_raw(child.id() as i32), Signal::SIGINT);
}

/// Prepares a program in a namespace.
pub fn command_in(namespace: &str, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg(program);
    command
}

/// Runs code in a namespace, on a thread of its own.
pub fn inside<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(format!("/run/netns/{namespace}")).expect("the namespace exists");
    thread::scope(|scope| {
        scope
            .spawn(|| {
                setns(&file, CloneFlags::CLONE_NEWNET).expect("root may enter");
                work()
            })
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Returns how long something may take that takes so long on a machine of its own: `LB_PATIENCE` times that, under emulation.
pub fn patience(limit: Duration) -> Duration {
    let times = std::env::var("LB_PATIENCE").ok().and_then(|times| times.parse().ok());
    limit * times.unwrap_or(1)
}

/// Waits for something to become true.
///
/// # Panics
/// If it does not in time.
pub fn wait_until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) {
    let (start, limit) = (Instant::now(), patience(limit));
    while !is_so() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a program that has to succeed, and returns what it printed.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs `ip`, arguments separated by spaces.
pub fn ip(arguments: &str) {
    run(Command::new("ip").args(arguments.split(' ')));
}

/// Removes what test runs have left that were killed.
fn sweep_leftovers() {
    // Labs, and the namespaces of packet tests.
    for name in namespaces().iter().filter(|name| ['x', 'k'].iter().any(|mark| is_leftover(name, *mark))) {
        let _gone_already = Command::new("ip").args(["netns", "del", name]).output();
    }
}

/// Returns whether a name is one that a test run gave which has ended: "lbt", its process, a mark, and more.
pub fn is_leftover(name: &str, mark: char) -> bool {
    let digits = name.strip_prefix("lbt").and_then(|rest| rest.split_once(mark)).map(|(pid, _)| pid);
    digits.and_then(|pid| pid.parse().ok()).is_some_and(has_ended)
}

/// Returns where control groups of version 2 are mounted, if they are.
///
/// # Source
/// proc_pid_mountinfo(5): the point is the fifth field, the kind of file system the first behind the dash.
pub fn unified() -> Option<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    table.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then(|| mount.split(' ').nth(4))?.map(PathBuf::from)
    })
}

/// Returns whether a process has ended, also where nobody has asked how.
pub fn has_ended(pid: i32) -> bool {
    // proc(5): the state stands behind the name.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |state| state.contains(") Z"))
}

/// Removes what agents of a test have left that failed before it could do so itself. Filters can be removed only in
/// their namespace.
fn remove_instances(prefix: &str, namespace: &str) {
    let Ok(binary) = std::env::var("LB_BIN") else { return };
    for entry in std::fs::read_dir("/sys/fs/bpf/lb").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(prefix) {
            let _gone_already = command_in(namespace, &binary).args(["detach", "--instance", &name]).output();
        }
    }
}

fn remove_namespaces(prefix: &str) {
    for name in namespaces().iter().filter(|name| name.starts_with(prefix)) {
        let _gone_already = Command::new("ip").args(["netns", "del", name]).output();
    }
}

/// Returns the named network namespaces.
pub fn namespaces() -> Vec<String> {
    entries("/run/netns")
}

/// Returns the names in a folder; none if it is not there.
pub fn entries(folder: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
