//! The server in this process, with clients that speak HTTP by hand.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{Drain, listen, listen_everywhere, serve};
use crate::routes::Api;

const QUICK: Drain =
    Drain { linger: Duration::from_millis(600), limit: Duration::from_millis(3000), quiet: Duration::from_millis(100) };

#[tokio::test]
async fn the_root_tells_the_host() {
    let server = Server::start(QUICK);
    let mut client = server.connect().await;

    let response = client.get("/").await;

    assert_eq!(response.status, 200);
    assert_eq!(response.body, r#"{"host":"box","message":"Hello"}"#);
    assert_eq!(response.header("content-type"), Some("application/json"));
    assert_eq!(response.header("connection"), None);
}

#[tokio::test]
async fn clients_of_both_families_are_heard() {
    let listener = listen_everywhere(0).unwrap();
    let port = listener.local_addr().unwrap().port();

    for address in ["127.0.0.1", "::1"] {
        let address = SocketAddr::new(address.parse().unwrap(), port);
        assert!(TcpStream::connect(address).await.is_ok(), "{address}");
    }
}

#[tokio::test]
async fn one_connection_carries_many_requests() {
    let server = Server::start(QUICK);
    let mut client = server.connect().await;

    for _ in 0..100 {
        assert_eq!(client.get("/healthz").await.body, "ok");
    }
}

#[tokio::test]
async fn a_burn_answers_when_it_has_burned() {
    let server = Server::start(QUICK);
    let mut client = server.connect().await;
    let began = Instant::now();

    let response = client.get("/burn?ms=50").await;

    assert_eq!(response.body, r#"{"burned_ms":50,"host":"box"}"#);
    assert!(began.elapsed() >= Duration::from_millis(50));
}

#[tokio::test]
async fn errors_are_json_and_keep_the_connection() {
    let server = Server::start(QUICK);
    let mut client = server.connect().await;

    for (request, status) in
        [("GET /burn", 400), ("GET /burn?ms=10001", 400), ("GET /nowhere", 404), ("DELETE /", 405), ("POST /burn", 405)]
    {
        let response = client.request(request).await;
        assert_eq!(response.status, status, "{request}");
        assert!(response.body.starts_with(r#"{"error":""#), "{request}: {}", response.body);
    }
    assert_eq!(client.request("PUT /").await.header("allow"), Some("GET, HEAD"));
    assert_eq!(client.get("/").await.status, 200);
}

#[tokio::test]
async fn a_head_has_the_length_and_no_body() {
    let server = Server::start(QUICK);
    let mut client = server.connect().await;

    let head = client.request("HEAD /").await;

    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert_eq!(head.header("content-length"), Some("32"));
    assert_eq!(client.get("/").await.body.len(), 32);
}

#[tokio::test]
async fn without_connections_the_end_comes_at_once() {
    let mut server = Server::start(Drain { linger: Duration::from_secs(20), ..QUICK });

    server.stop();

    let waited = server.ended().await;
    assert!(waited >= QUICK.quiet && waited < Duration::from_secs(2), "{waited:?}");
}

#[tokio::test]
async fn an_idle_connection_may_send_one_more_request() {
    let mut server = Server::start(QUICK);
    let mut client = server.connect().await;
    client.get("/").await;

    server.stop();
    sleep(QUICK.linger / 2).await;
    let response = client.get("/").await;

    assert_eq!(response.status, 200);
    assert_eq!(response.header("connection"), Some("close"));
    assert!(client.is_closed().await);
    server.ended().await;
}

#[tokio::test]
async fn a_connection_that_stays_idle_is_closed_after_the_linger() {
    let mut server = Server::start(QUICK);
    let mut client = server.connect().await;
    client.get("/").await;

    server.stop();

    assert!(client.is_closed().await);
    let waited = server.ended().await;
    assert!(waited >= QUICK.linger && waited < QUICK.limit, "{waited:?}");
}

#[tokio::test]
async fn connections_are_accepted_while_it_lingers() {
    let mut server = Server::start(QUICK);
    let _idle = server.connect().await;

    server.stop();
    sleep(Duration::from_millis(50)).await;
    let response = server.connect().await.get("/").await;

    assert_eq!(response.status, 200);
    assert_eq!(response.header("connection"), Some("close"));
}

#[tokio::test]
async fn a_request_that_is_under_way_is_finished() {
    let mut server = Server::start(Drain { linger: Duration::from_millis(50), ..QUICK });
    let mut client = server.connect().await;
    client.send("GET /burn?ms=400").await;
    sleep(Duration::from_millis(20)).await;

    server.stop();
    let response = client.receive().await;

    assert_eq!(response.status, 200);
    assert_eq!(response.header("connection"), Some("close"));
    server.ended().await;
}

#[tokio::test]
async fn the_limit_ends_it_whatever_is_open() {
    let mut server = Server::start(Drain { linger: Duration::ZERO, limit: Duration::from_millis(300), ..QUICK });
    let mut client = server.connect().await;
    client.send("GET /burn?ms=2000").await;
    sleep(Duration::from_millis(20)).await;

    server.stop();

    assert!(server.ended().await < Duration::from_millis(1500));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_connections_lose_no_request() {
    let mut server = Server::start(QUICK);
    let clients: Vec<JoinHandle<u64>> = (0..50)
        .map(|_| {
            let address = server.address;
            tokio::spawn(async move {
                let mut client = Client::connect(address).await;
                for answered in 1.. {
                    let response = client.get("/").await;
                    assert_eq!(response.status, 200);
                    if response.header("connection") == Some("close") {
                        assert!(client.is_closed().await);
                        return answered;
                    }
                }
                0
            })
        })
        .collect();
    sleep(Duration::from_millis(300)).await;

    server.stop();

    for client in clients {
        assert!(client.await.unwrap() > 1);
    }
    assert!(server.ended().await < QUICK.linger);
}

struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    stopped: Instant,
    task: JoinHandle<()>,
}

impl Server {
    fn start(drain: Drain) -> Self {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopping) = oneshot::channel();
        let stopping = async {
            let _ = stopping.await;
        };
        let task = tokio::spawn(serve(listener, Api::new("box"), stopping, drain));
        Self { address, stop: Some(stop), stopped: Instant::now(), task }
    }

    async fn connect(&self) -> Client {
        Client::connect(self.address).await
    }

    fn stop(&mut self) {
        self.stopped = Instant::now();
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// Waits for the end and returns how long after the stop it came.
    async fn ended(&mut self) -> Duration {
        timeout(Duration::from_secs(10), &mut self.task).await.expect("the server ends").unwrap();
        self.stopped.elapsed()
    }
}

struct Client {
    stream: TcpStream,
    head_only: bool,
}

impl Client {
    async fn connect(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), head_only: false }
    }

    async fn get(&mut self, path: &str) -> Reply {
        self.request(&format!("GET {path}")).await
    }

    async fn request(&mut self, line: &str) -> Reply {
        self.send(line).await;
        self.receive().await
    }

    async fn send(&mut self, line: &str) {
        self.head_only = line.starts_with("HEAD");
        let request = format!("{line} HTTP/1.1\r\nhost: test\r\n\r\n");
        self.stream.write_all(request.as_bytes()).await.unwrap();
    }

    async fn receive(&mut self) -> Reply {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.stream.read_u8().await.expect("a whole response"));
        }
        let head = String::from_utf8(head).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut reply = Reply { status, head, body: String::new() };
        if !self.head_only {
            let length = reply.header("content-length").expect("a length").parse().unwrap();
            let mut body = vec![0; length];
            self.stream.read_exact(&mut body).await.unwrap();
            reply.body = String::from_utf8(body).unwrap();
        }
        reply
    }

    async fn is_closed(&mut self) -> bool {
        let read = timeout(Duration::from_secs(5), self.stream.read_u8()).await.expect("the server closes");
        read.is_err()
    }
}

struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}
