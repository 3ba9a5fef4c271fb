//! The same conversations through nftables' DNAT and through the balancer: what a client sees of bytes, ends, resets and ICMP
//! errors has to be the same, and what the server sees of its client, too.

use std::{
    fmt::Debug,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    process::ExitCode,
    sync::{
        Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use lb_tests::{
    agent::Agent,
    lab::{self, Lab, UPLINK, Wiring, inside},
    suite::{self, Case, Need},
};
use nix::{
    libc::linger,
    sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, setsockopt, sockopt},
};

const TOOLS: &[Need] = &[
    Need::Root,
    Need::Agent,
    Need::Program("ip"),
    Need::Program("nsenter"),
    Need::Program("nft"),
    Need::Program("sysctl"),
];

/// Where the server listens, by TCP and UDP.
const SERVED: u16 = 80;
/// Where nobody listens.
const CLOSED: u16 = 81;
const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    suite::run(vec![Case {
        name: "a_client_sees_what_it_sees_through_nftables",
        needs: TOOLS,
        run: a_client_sees_what_it_sees_through_nftables,
    }])
}

/// What was seen, a line each.
type Seen = Vec<String>;

/// A conversation as the client leads it; `heard` is what the server has to say afterwards.
type Conversation = fn(heard: &Receiver<String>) -> Seen;

const CONVERSATIONS: [(&str, Conversation); 14] = [
    ("a connection that is refused", refused),
    ("a megabyte there and back", megabyte),
    ("the client closes its half, and is answered then", client_closes_its_half),
    ("the server closes its half, and is told the rest", server_closes_its_half),
    ("the server resets in the middle", server_resets),
    ("the client resets in the middle", client_resets),
    ("the server ends without having read", server_ends_unread),
    ("a byte out of band", out_of_band),
    ("a port used again and again, closed by the server", |heard| same_port(heard, b't')),
    ("a port used again and again, closed by the client", |heard| same_port(heard, b'e')),
    ("datagrams of all sizes", datagrams),
    ("a datagram to a closed port", datagram_refused),
    ("a datagram, and a SYN, that may pass one router only", time_to_live),
    ("a path that carries less towards the client", smaller_path),
];

fn a_client_sees_what_it_sees_through_nftables() {
    let lab = Lab::open(1, Wiring::Bridge);
    // Ports are used again while either side remembers them: later time stamps are what tells the connections apart.
    for namespace in [lab.client(), lab.backend(0)] {
        lab::run(lab.command(&namespace, "sysctl").args([
            "-qw",
            "net.ipv4.tcp_timestamps=2",
            "net.ipv4.tcp_tw_reuse=1",
        ]));
    }
    // The host's own answers are as many as it wants: none of them is held back in either turn.
    lab::run(lab.command(&lab.balancer(), "sysctl").args(["-qw", "net.ipv4.icmp_ratelimit=0"]));
    lab::run(lab.command(&lab.backend(0), "sysctl").args(["-qw", "net.ipv4.icmp_ratelimit=0"]));
    let heard = Mutex::new(start_server(&lab));

    let rules = format!(
        "add table ip t; add chain ip t pre {{ type nat hook prerouting priority dstnat; }}; \
         add rule ip t pre ip daddr {UPLINK} meta l4proto {{ tcp, udp }} th dport {{ {SERVED}, {CLOSED} }} dnat to {}",
        lab::backend(0)
    );
    lab::run(lab.command(&lab.balancer(), "nft").arg(rules));
    let by_nftables = converse(&lab, &heard);
    lab::run(lab.command(&lab.balancer(), "nft").args(["flush", "ruleset"]));
    lab::ip(&format!("-n {} route flush cache", lab.backend(0)));
    lab::run(lab.command(&lab.balancer(), "sysctl").args(["-qw", "net.ipv4.ip_forward=0"]));

    let agents = [SERVED, CLOSED].map(|port| {
        let (tcp, udp) = (format!("{port}/tcp"), format!("{port}/udp"));
        let backend = format!("{}:{port}", lab::backend(0));
        let arguments =
            ["--publish", &tcp, "--publish", &udp, "--uplink", "up0", "--backend", &backend, "--health", "none"];
        let agent = Agent::start(Some(&lab.balancer()), &format!("{}p{port}", lab.instance()), &arguments);
        agent.wait_ready(1);
        agent
    });
    let by_us = converse(&lab, &heard);
    drop(agents);

    let mut differ = Vec::new();
    for ((name, _), (nftables, ours)) in CONVERSATIONS.iter().zip(by_nftables.iter().zip(&by_us)) {
        eprintln!("{name}:");
        nftables.iter().for_each(|line| eprintln!("    {line}"));
        if nftables != ours {
            ours.iter().for_each(|line| eprintln!("  ! {line}"));
            differ.push(*name);
        }
        assert!(!nftables.is_empty(), "{name} shows something");
    }
    assert!(differ.is_empty(), "through the balancer a client sees otherwise: {differ:?}");
}

/// Leads all conversations, one after the other.
fn converse(lab: &Lab, heard: &Mutex<Receiver<String>>) -> Vec<Seen> {
    let (client, balancer, backend) = (lab.client(), lab.balancer(), lab.backend(0));
    let conversations = CONVERSATIONS.map(|(name, lead)| {
        let is_smaller = name.starts_with("a path");
        if is_smaller {
            lab::ip(&format!("-n {balancer} link set up0 mtu 1300"));
        }
        let seen = inside(&client, || {
            let heard = heard.lock().expect("nobody else has it");
            while heard.try_recv().is_ok() {}
            lead(&heard)
        });
        if is_smaller {
            lab::ip(&format!("-n {balancer} link set up0 mtu 1500"));
            lab::ip(&format!("-n {backend} route flush cache"));
        }
        seen
    });
    conversations.into()
}

/// What the server does is told by the first byte that it gets: it echoes (`e`), echoes the whole once its client has closed its
/// half (`h`), closes its own half at once (`s`), resets (`r`), ends without reading (`u`), sends much (`b`), ends at once (`t`), or only tells how
/// the connection ended (`w`).
fn start_server(lab: &Lab) -> Receiver<String> {
    let (says, heard) = channel();
    let (listener, socket) = inside(&lab.backend(0), || {
        let at = (Ipv4Addr::UNSPECIFIED, SERVED);
        (TcpListener::bind(at).expect("the port is free"), UdpSocket::bind(at).expect("the port is free"))
    });
    let told = says.clone();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let says = told.clone();
            thread::spawn(move || {
                let outcome = serve(&mut stream, &says);
                let _nobody_listens_any_longer = says.send(format!("server: {}", ended(&outcome)));
            });
        }
    });
    thread::spawn(move || {
        let mut room = vec![0; 65_536];
        while let Ok((len, from)) = socket.recv_from(&mut room) {
            let sent = socket.send_to(&room[..len], from);
            let _nobody_listens_any_longer =
                says.send(format!("server: datagram of {len} from {}: {}", from.ip(), ended(&sent)));
        }
    });
    heard
}

fn serve(stream: &mut TcpStream, says: &Sender<String>) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let tell = |what: String| _ = says.send(what);
    tell(format!("server: a client at {}", stream.peer_addr()?.ip()));
    let mut first = [0];
    if stream.peek(&mut first)? == 0 {
        return Ok(());
    }
    let mut rest = Vec::new();
    match first[0] {
        b'e' => {
            let mut room = vec![0; 65_536];
            loop {
                match stream.read(&mut room)? {
                    0 => return Ok(()),
                    len => stream.write_all(&room[..len])?,
                }
            }
        }
        b'h' => {
            stream.read_to_end(&mut rest)?;
            stream.write_all(&rest)
        }
        b's' => {
            stream.write_all(b"bye")?;
            stream.shutdown(Shutdown::Write)?;
            stream.read_to_end(&mut rest)?;
            tell(format!("server: {} bytes, digest {:x}", rest.len(), digest(&rest)));
            Ok(())
        }
        b'r' => {
            let mut all = vec![0; 1000];
            stream.read_exact(&mut all)?;
            stream.write_all(&all[..500])?;
            thread::sleep(Duration::from_millis(50));
            reset_on_close(stream);
            Ok(())
        }
        b'u' => Ok(()),
        b'b' => {
            stream.read_exact(&mut first)?;
            stream.write_all(&pattern(1_000_000, b'.'))
        }
        b't' => {
            stream.read_exact(&mut first)?;
            stream.write_all(b"t")
        }
        _ => {
            stream.read_to_end(&mut rest)?;
            tell(format!("server: {} bytes", rest.len()));
            Ok(())
        }
    }
}

fn reset_on_close(stream: &TcpStream) {
    setsockopt(stream, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 }).expect("a socket may linger");
}

fn ended<T: Debug>(outcome: &io::Result<T>) -> String {
    match outcome {
        Ok(value) => format!("{value:?}"),
        Err(error) => format!("{:?}", error.kind()),
    }
}

/// FNV-1a.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn frontend(port: u16) -> SocketAddr {
    SocketAddr::from((UPLINK.parse::<Ipv4Addr>().expect("an address"), port))
}

fn connect() -> TcpStream {
    let stream = TcpStream::connect_timeout(&frontend(SERVED), PATIENCE).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket of ours");
    stream
}

/// Returns so many lines of what the server has to say.
fn lines(heard: &Receiver<String>, count: usize) -> Seen {
    (0..count).map(|_| heard.recv_timeout(PATIENCE).unwrap_or_else(|_| "server: nothing more".into())).collect()
}

fn pattern(len: usize, first: u8) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len as u32).map(|byte| (byte.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    bytes[0] = first;
    bytes
}

/// Reads to the end, and tells what came and how it ended.
fn read_all(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let outcome = stream.read_to_end(&mut all).map(|_| ());
    format!("client: {} bytes, digest {:x}, then {}", all.len(), digest(&all), ended(&outcome))
}

fn refused(_: &Receiver<String>) -> Seen {
    let outcome = TcpStream::connect_timeout(&frontend(CLOSED), PATIENCE).map(|_| ());
    vec![format!("client: {}", ended(&outcome))]
}

fn megabyte(heard: &Receiver<String>) -> Seen {
    let mut stream = connect();
    let mut seen = vec![format!("client: {:?}", stream.peer_addr())];
    let mut writer = stream.try_clone().expect("a descriptor can be doubled");
    let writing = thread::spawn(move || {
        let written = writer.write_all(&pattern(1_000_000, b'e'));
        written.and_then(|()| writer.shutdown(Shutdown::Write))
    });
    seen.push(read_all(&mut stream));
    seen.push(format!("client: wrote {}", ended(&writing.join().expect("it has no panic"))));
    seen.extend(lines(heard, 2));
    seen
}

fn client_closes_its_half(heard: &Receiver<String>) -> Seen {
    let mut stream = connect();
    stream.write_all(&pattern(50_000, b'h')).expect("written");
    stream.shutdown(Shutdown::Write).expect("closed");
    let mut seen = vec![read_all(&mut stream)];
    seen.extend(lines(heard, 2));
    seen
}

fn server_closes_its_half(heard: &Receiver<String>) -> Seen {
    let mut stream = connect();
    stream.write_all(b"s").expect("written");
    let mut seen = vec![read_all(&mut stream)];
    thread::sleep(Duration::from_millis(50));
    let rest = stream.write_all(&pattern(30_000, b'.'));
    seen.push(format!("client: the rest {}", ended(&rest)));
    stream.shutdown(Shutdown::Write).expect("closed");
    seen.extend(lines(heard, 3));
    seen
}

fn server_resets(heard: &Receiver<String>) -> Seen {
    let mut stream = connect();
    stream.write_all(&pattern(1000, b'r')).expect("written");
    let mut some = vec![0; 500];
    let mut seen = vec![format!("client: {}", ended(&stream.read_exact(&mut some)))];
    seen.push(read_all(&mut stream));
    seen.push(format!("client: writes {}", ended(&stream.write_all(b"more"))));
    seen.extend(lines(heard, 2));
    seen
}

fn client_resets(heard: &Receiver<String>) -> Seen {
    let mut stream = connect();
    stream.write_all(b"w").expect("written");
    thread::sleep(Duration::from_millis(50));
    reset_on_close(&stream);
    drop(stream);
    lines(heard, 2)
}

fn server_ends_unread(heard: &Receiver<String>) -> Seen {
    let mut stream = connect();
    stream.write_all(&pattern(5000, b'u')).expect("written");
    let mut seen = lines(heard, 2);
    seen.push(read_all(&mut stream));
    seen
}

fn out_of_band(heard: &Receiver<String>) -> Seen {
    let mut stream = connect();
    stream.write_all(b"e12").expect("written");
    let sent = nix::sys::socket::send(stream.as_raw_fd(), b"!", MsgFlags::MSG_OOB);
    stream.write_all(b"34").expect("written");
    stream.shutdown(Shutdown::Write).expect("closed");
    let mut seen = vec![format!("client: {sent:?}"), read_all(&mut stream)];
    seen.extend(lines(heard, 2));
    seen
}

/// Connects from the same port time and again, while whoever closed first remembers the connection before (TIME-WAIT).
fn same_port(_: &Receiver<String>, what: u8) -> Seen {
    let mut seen = Vec::new();
    for turn in 0..3 {
        let socket = stream_socket();
        setsockopt(&socket, sockopt::ReuseAddr, &true).expect("a socket of ours");
        let port = 33_000 + u16::from(what);
        nix::sys::socket::bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))
            .expect("the port may be used again");
        let SocketAddr::V4(to) = frontend(SERVED) else { unreachable!("it is one of IPv4") };
        let connected = nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrIn::from(to));
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket of ours");
        let mut answer = [0];
        let asked = stream.write_all(&[what]).and_then(|()| stream.read_exact(&mut answer));
        seen.push(format!("client: turn {turn}: {connected:?}, {}, {}", ended(&asked), answer[0] as char));
        if what == b't' {
            seen.push(read_all(&mut stream));
        }
        drop(stream);
        // A stamp that counts milliseconds has to be a later one, and who closes first has to hear the other's end.
        thread::sleep(Duration::from_millis(20));
        if what == b'e' {
            // The client's own kernel gives up a port that it remembers after a second.
            thread::sleep(Duration::from_millis(1_000));
        }
    }
    seen
}

/// Returns a socket of TCP that is not connected.
fn stream_socket() -> OwnedFd {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket")
}

fn socket_to(port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
    socket.connect(frontend(port)).expect("a destination");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket of ours");
    setsockopt(&socket, sockopt::Ipv4RecvErr, &true).expect("a socket of ours");
    socket
}

fn datagrams(heard: &Receiver<String>) -> Seen {
    let socket = socket_to(SERVED);
    let mut seen = Vec::new();
    let mut room = vec![0; 65_536];
    for size in [1, 2, 1471, 1472, 1473, 3000, 9001, 30_000, 65_000] {
        let asked = pattern(size, b'd');
        let sent = socket.send(&asked);
        let came = socket.recv(&mut room).map(|len| (len, room[..len] == asked));
        seen.push(format!("client: sent {}, came {}", ended(&sent), ended(&came)));
        seen.extend(lines(heard, 1));
    }
    seen.push(format!("client: sent nothing {}", ended(&socket.send(b""))));
    seen.push(format!("client: came {}", ended(&socket.recv(&mut room))));
    seen
}

/// Tells which ICMP error has come for a socket, and from whom.
fn icmp_error(socket: &impl std::os::fd::AsRawFd) -> String {
    let mut room = [0; 64];
    let mut control = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in);
    let mut parts = [io::IoSliceMut::new(&mut room)];
    for _ in 0..100 {
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        match recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
            Ok(message) => {
                let told = message.cmsgs().expect("it fits").find_map(|told| match told {
                    ControlMessageOwned::Ipv4RecvErr(error, from) => {
                        let from = from.map(|from| Ipv4Addr::from(u32::from_be(from.sin_addr.s_addr)));
                        Some(format!(
                            "type {} code {} info {} from {from:?}",
                            error.ee_type, error.ee_code, error.ee_info
                        ))
                    }
                    _ => None,
                });
                return told.unwrap_or_else(|| "an error without a word".to_owned());
            }
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
    "none".to_owned()
}

fn datagram_refused(_: &Receiver<String>) -> Seen {
    let socket = socket_to(CLOSED);
    let sent = socket.send(b"?");
    let error = icmp_error(&socket);
    vec![format!("client: sent {}, error {error}", ended(&sent))]
}

fn time_to_live(_: &Receiver<String>) -> Seen {
    let socket = socket_to(SERVED);
    socket.set_ttl(1).expect("a socket of ours");
    let sent = socket.send(b"?");
    let error = icmp_error(&socket);
    let mut seen = vec![format!("client: sent {}, error {error}", ended(&sent))];

    let socket = stream_socket();
    setsockopt(&socket, sockopt::Ipv4RecvErr, &true).expect("a socket of ours");
    setsockopt(&socket, sockopt::Ipv4Ttl, &1).expect("a socket of ours");
    let SocketAddr::V4(to) = frontend(SERVED) else { unreachable!("it is one of IPv4") };
    let connected = nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrIn::from(to));
    seen.push(format!("client: connects: {connected:?}"));
    seen
}

fn smaller_path(heard: &Receiver<String>) -> Seen {
    let mut stream = connect();
    stream.write_all(b"b").expect("written");
    let mut seen = vec![read_all(&mut stream)];
    seen.extend(lines(heard, 2));
    seen
}
