//! How soon a server answers what it is asked for first, as the kernel times it and `status` tells it.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use lb_tests::lab::{self, Lab, Wiring, inside};
use serde_json::Value;

use super::{UPLINK, arguments, start};

/// What the server takes for an answer.
const TAKES: Duration = Duration::from_millis(50);
const TIMES: usize = 20;

/// Answers what comes on each connection after a while; whoever asks for nothing, as a health check does, gets nothing.
fn serve(listener: &TcpListener) {
    while let Ok((mut stream, _)) = listener.accept() {
        thread::spawn(move || {
            let mut room = [0; 64];
            while stream.read(&mut room).is_ok_and(|read| read > 0) {
                thread::sleep(TAKES);
                if stream.write_all(b"done").is_err() {
                    return;
                }
            }
        });
    }
}

/// Asks once or twice, and returns how long the first answer took.
fn ask(times: usize) -> Duration {
    let mut stream = TcpStream::connect((UPLINK, 80)).expect("connected");
    let took = (0..times).map(|_| {
        let asked = Instant::now();
        stream.write_all(b"do").expect("sent");
        stream.read_exact(&mut [0; 4]).expect("an answer");
        asked.elapsed()
    });
    took.collect::<Vec<_>>()[0]
}

pub fn slow_answers_are_seen_in_their_place() {
    let lab = Lab::new(1, Wiring::Bridge);
    let listener = inside(&lab.backend(0), || TcpListener::bind((lab::backend(0), 80)).expect("the port is free"));
    thread::spawn(move || serve(&listener));
    let agent = start(&lab, &arguments(1), &[]);
    agent.wait_ready(1);
    let responses = |status: &Value| status["frontends"][0]["backends"][0]["responses"].clone();
    assert_eq!(responses(&agent.status())["count"], 0, "health checks are nobody's requests");

    let mut took: Vec<Duration> = inside(&lab.client(), || (0..TIMES).map(|number| ask(1 + number % 2)).collect());
    took.sort();

    let status = agent.status();
    let told = responses(&status);
    assert_eq!(told["count"], TIMES, "once for each connection: {told}");
    // What the kernel sees is within what the client does, and lies in a place of which `status` tells the upper end.
    let (median, p50) = (took[TIMES / 2], Duration::from_micros(told["p50_us"].as_u64().expect("a number")));
    assert!(p50 > TAKES && p50 / 2 <= median, "{median:?}: {told}");
    let places: Vec<u64> = serde_json::from_value(told["latency_log2_us"].clone()).expect("numbers");
    assert_eq!(places[..15].iter().sum::<u64>(), 0, "none within 32 ms: {told}");
    let handshakes = &status["frontends"][0]["backends"][0]["handshakes"];
    assert_eq!(handshakes["accepted"], TIMES, "{handshakes}");
    assert!(handshakes["p50_us"].as_u64() < told["p50_us"].as_u64(), "{handshakes} {told}");

    // Sockets of the host are led past the programs.
    inside(&lab.balancer(), || ask(1));
    assert_eq!(responses(&agent.status())["count"], TIMES);
}
