//! Round trips of one message at a time: what a balancer adds to each when nothing else happens.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use lb_ebpf::abi::Proto;
use lb_tests::lab;

use crate::{awake::processors, field::PATIENCE, interrupt, yardstick::stay_on};

/// Round trips before any is counted.
const WARM_UP: usize = 200;
/// How long a message may be under way.
const LIMIT: Duration = Duration::from_secs(2);

/// Sends back what comes, connection by connection.
pub fn serve_tcp(listener: &TcpListener, stop: &Arc<AtomicBool>) {
    // Its connections' threads stay there too.
    if listener.set_nonblocking(true).is_err() || stay_on(processors() - 1).is_err() {
        return;
    }
    let mut connections = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                let stop = stop.clone();
                connections.push(thread::spawn(move || send_back(stream, &stop)));
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
    for connection in connections {
        let _panicked_already = connection.join();
    }
}

fn send_back(mut stream: TcpStream, stop: &AtomicBool) {
    let ready = stream.set_nonblocking(false).and_then(|()| stream.set_nodelay(true));
    if ready.and_then(|()| stream.set_read_timeout(Some(PATIENCE))).is_err() {
        return;
    }
    let mut message = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut message) {
            Ok(0) => return,
            Ok(len) => {
                if stream.write_all(&message[..len]).is_err() {
                    return;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}

/// Sends back what comes.
pub fn serve_udp(socket: &UdpSocket, stop: &AtomicBool) {
    if socket.set_read_timeout(Some(PATIENCE)).is_err() || stay_on(processors() - 1).is_err() {
        return;
    }
    let mut message = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((len, from)) = socket.recv_from(&mut message) {
            let _gone_already = socket.send_to(&message[..len], from);
        }
    }
}

/// Returns the round-trip times of messages to a server, in µs, sorted. The client stays on the first processor, the
/// servers stay on the last.
pub fn measure(namespace: &str, proto: Proto, to: SocketAddrV4, duration: Duration) -> Result<Vec<f64>> {
    let client = || stay_on(0).and_then(|()| ask(namespace, proto, to, duration));
    thread::scope(|scope| scope.spawn(client).join()).unwrap_or_else(|_| Err(anyhow!("play ping-pong")))
}

fn ask(namespace: &str, proto: Proto, to: SocketAddrV4, duration: Duration) -> Result<Vec<f64>> {
    let mut times = match proto {
        Proto::Tcp => {
            let stream = lab::inside(namespace, || TcpStream::connect_timeout(&to.into(), LIMIT));
            let mut stream = stream.with_context(|| format!("connect to {to}"))?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(LIMIT))?;
            let mut message = *b"ping";
            play(duration, || {
                stream.write_all(&message)?;
                stream.read_exact(&mut message)
            })?
        }
        Proto::Udp => {
            let socket = lab::inside(namespace, || UdpSocket::bind("0.0.0.0:0"))?;
            lab::inside(namespace, || socket.connect(to))?;
            socket.set_read_timeout(Some(LIMIT))?;
            let mut message = *b"ping";
            play(duration, || {
                socket.send(&message)?;
                socket.recv(&mut message).map(|_| ())
            })?
        }
    };
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn play(duration: Duration, mut round_trip: impl FnMut() -> std::io::Result<()>) -> Result<Vec<f64>> {
    for _ in 0..WARM_UP {
        round_trip().context("play ping-pong")?;
    }
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed() < duration && !interrupt::asked() {
        let before = Instant::now();
        round_trip().context("play ping-pong")?;
        times.push(before.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times)
}
