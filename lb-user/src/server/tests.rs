//! The server as clients meet it: over a real socket, with a loop that answers, or does not.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};

use super::{Ask, Asking, Journal, Refused, Server, Taken, journal::What, views::Views};
use crate::{
    config::suppose::Supposition,
    control::{Directions, Order, Reach, Refusal},
    status::{explain::ExplainError, read::StatusError},
};

struct Fixed;

impl Views for Fixed {
    fn status(&self) -> Result<String, StatusError> {
        Ok(r#"{"schema":1}"#.into())
    }

    fn explain(&self, service: Option<&str>, suppositions: &[Supposition]) -> Result<String, ExplainError> {
        let there = vec!["web".to_owned()];
        match service {
            Some("web") | None => Ok(json!({ "supposed": suppositions.len() }).to_string()),
            Some(other) => Err(ExplainError::NoService { given: other.to_owned(), there }),
        }
    }
}

/// A server, and where it is.
struct Site {
    folder: TempDir,
    server: Server,
    journal: Arc<Journal>,
}

impl Site {
    /// One whose loop is `answers`.
    fn new(answers: impl FnMut(Ask) -> Result<Taken, Refused> + Send + 'static) -> Self {
        let (sender, inbox) = mpsc::channel(4);
        let _its_end_is_the_server_s = answering(inbox, answers);
        Self::with(sender)
    }

    fn with(asks: mpsc::Sender<Asking>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let journal = Arc::new(Journal::new(100));
        let path = folder.path().join("web.sock");
        let server = Server::start(&path, asks, journal.clone(), Arc::new(Fixed)).unwrap();
        Self { folder, server, journal }
    }

    /// One that takes every order, and says which.
    fn echo() -> Self {
        Self::new(|ask| Ok(Taken { told: vec![format!("{ask:?}")], ..Taken::default() }))
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.folder.path().join("web.sock")).await.unwrap()
    }

    /// Sends a request as it is, and returns all that comes back.
    async fn raw(&self, request: &[u8]) -> String {
        let mut stream = self.connect().await;
        // What is refused early is not read to its end.
        let _refused_early = stream.write_all(request).await;
        let mut text = Vec::new();
        let _reset_after_the_answer = timeout(Duration::from_secs(20), stream.read_to_end(&mut text)).await.unwrap();
        String::from_utf8(text).unwrap()
    }

    /// Asks, and returns the status with the document.
    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let length = body.len();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: lb\r\nContent-Length: {length}\r\n\r\n{body}");
        parted(&self.raw(request.as_bytes()).await)
    }

    fn happened(&self, text: &str) {
        self.journal.push(None, What::Agent { text: text.into() }, 7);
    }
}

fn answering(
    mut inbox: mpsc::Receiver<Asking>,
    mut answers: impl FnMut(Ask) -> Result<Taken, Refused> + Send + 'static,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        while let Some(Asking { ask, answer }) = inbox.recv().await {
            let _client_left = answer.send(answers(ask));
        }
    })
}

fn parted(response: &str) -> (u16, Value) {
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {response:?}"));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{head}"));
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

#[tokio::test]
async fn orders_reach_the_loop_and_its_answer_comes_back() {
    let site = Site::echo();
    let told = |order| {
        let ask = Ask::Order { service: Some("web".into()), order };
        (200, json!({ "told": [format!("{ask:?}")], "services": [], "problems": [] }))
    };

    let count = Order::Count { count: 5, lasting: Some(Duration::from_secs(600)), reach: Reach::Bounds };
    assert_eq!(site.ask("POST", "/v1/scale", r#"{"service":"web","count":5,"for":"10m"}"#).await, told(count));
    let pause = Order::Pause(Directions::In);
    assert_eq!(site.ask("POST", "/v1/pause", r#"{"service":"web","in":true}"#).await, told(pause));
    let resume = Order::Resume(Directions::Both);
    assert_eq!(site.ask("POST", "/v1/resume", r#"{"service":"web"}"#).await, told(resume));
    let (status, services) = site.ask("GET", "/v1/services", "").await;
    assert_eq!((status, &services["told"][0]), (200, &json!("Services")));
}

#[tokio::test]
async fn who_shuts_down_his_half_gets_his_answer() {
    let (sender, mut inbox) = mpsc::channel(1);
    let site = Site::with(sender);
    let mut stream = site.connect().await;
    stream.write_all(b"POST /v1/pause HTTP/1.1\r\nHost: lb\r\n\r\n").await.unwrap();
    stream.shutdown().await.unwrap();

    let asking: Asking = inbox.recv().await.unwrap();
    // Long enough for the end of the request to be seen.
    tokio::time::sleep(Duration::from_millis(50)).await;
    asking.answer.send(Ok(Taken::default())).unwrap();

    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(parted(&text).0, 200);
}

#[tokio::test]
async fn documents_are_read_without_the_loop() {
    let (sender, _nobody_listens) = mpsc::channel(1);
    let site = Site::with(sender);

    assert_eq!(site.ask("GET", "/v1/status", "").await, (200, json!({ "schema": 1 })));
    let path = "/v1/explain?service=web&if=max%3D20&if=min%3D2";
    assert_eq!(site.ask("GET", path, "").await, (200, json!({ "supposed": 2 })));
    let (status, problem) = site.ask("GET", "/v1/explain?service=x", "").await;
    assert_eq!((status, &problem["error"]), (404, &json!("there is no service x: web")));
    assert_eq!(site.ask("GET", "/v1/explain?if=nonsense", "").await.0, 400);
}

#[tokio::test]
async fn what_makes_no_sense_is_told_with_its_status() {
    let site = Site::echo();
    let long = format!(r#"{{"count":5,"service":"{}"}}"#, "x".repeat(70_000));
    let rows = [
        ("GET", "/", "", 404, "there is no /: /v1/status"),
        ("GET", "/v2/status", "", 404, "there is no /v2/status"),
        ("DELETE", "/v1/status", "", 405, "/v1/status is for GET, not for DELETE"),
        ("GET", "/v1/scale", "", 405, "/v1/scale is for POST, not for GET"),
        ("POST", "/v1/scale", "", 400, "the body: missing field `count`"),
        ("POST", "/v1/scale", "five", 400, "the body: expected ident"),
        ("POST", "/v1/scale", r#"{"count":5,"fro":"1m"}"#, 400, "the body: unknown field `fro`"),
        ("POST", "/v1/scale", r#"{"count":5,"for":"soon"}"#, 400, "for: "),
        ("POST", "/v1/scale", &long, 413, "the body is longer than 65536 bytes"),
        ("POST", "/v1/pause?x=1", "", 400, "there is no parameter x here"),
        ("GET", "/v1/events?after=1&last=2", "", 400, "after, since and last exclude each other"),
        ("GET", "/v1/events?after=one", "", 400, "after: \"one\" is no number"),
        ("GET", "/v1/events?follow=perhaps", "", 400, "follow is true or false"),
    ];
    for (method, path, body, status, error) in rows {
        let (got, document) = site.ask(method, path, body).await;

        let told = document["error"].as_str().unwrap_or_default();
        assert!(got == status && told.starts_with(error), "{method} {path}: {got} {told}");
    }
    let refused = site.raw(b"PUT /v1/pause HTTP/1.1\r\nHost: lb\r\n\r\n").await;
    assert!(refused.to_lowercase().contains("\r\nallow: post\r\n"), "{refused}");
    assert!(site.raw(b"nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400"), "that is not even HTTP");
    let endless = [b"GET /v1/status HTTP/1.1\r\nX: ".as_slice(), &[b'x'; 40_000], b"\r\n\r\n"].concat();
    assert!(site.raw(&endless).await.starts_with("HTTP/1.1 431"));
    let many = format!("GET /v1/status HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(100));
    assert!(site.raw(many.as_bytes()).await.starts_with("HTTP/1.1 431"));
}

#[tokio::test]
async fn what_the_loop_refuses_is_told_with_its_status() {
    let there = || vec!["web".to_owned(), "cache".to_owned()];
    let mut refusals = vec![
        Refused::NoService { given: "wbe".into(), there: there() },
        Refused::WhichService { there: there() },
        Refused::Refusal { service: "cache".into(), refusal: Refusal::NotScaled },
        Refused::NoRoom { service: "web".into(), error: "too many".into() },
    ]
    .into_iter();
    let site = Site::new(move |_| Err(refusals.next().expect("four are asked")));
    let mut told = Vec::new();
    for _ in 0..4 {
        let (status, document) = site.ask("POST", "/v1/resume", "").await;
        told.push((status, document["error"].as_str().unwrap_or_default().split(':').next().unwrap().to_owned()));
    }

    let expected = [
        (404, "there is no service wbe (did you mean web?)"),
        (400, "there are several services"),
        (409, "service cache"),
        (409, "service web"),
    ];
    assert_eq!(told, expected.map(|(status, text)| (status, text.to_owned())));
}

#[tokio::test(start_paused = true)]
async fn a_loop_that_does_not_answer_holds_nobody_for_long() {
    let (sender, mut inbox) = mpsc::channel(1);
    let site = Site::with(sender);

    let waits = tokio::spawn({
        let mut stream = site.connect().await;
        async move {
            stream.write_all(b"GET /v1/services HTTP/1.1\r\nHost: lb\r\n\r\n").await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            text
        }
    });
    while inbox.is_empty() {
        tokio::task::yield_now().await;
    }
    let (status, document) = site.ask("GET", "/v1/services", "").await;
    assert_eq!((status, &document["error"]), (503, &json!("too many questions are waiting: ask again in a moment")));
    assert_eq!(parted(&waits.await.unwrap()).0, 504);
    assert!(inbox.try_recv().is_ok_and(|asking| asking.answer.is_closed()), "nobody waits for it");

    drop(inbox);
    let (status, document) = site.ask("GET", "/v1/services", "").await;
    assert_eq!((status, &document["error"]), (503, &json!("the agent is ending")));
}

#[tokio::test(start_paused = true)]
async fn clients_that_dawdle_are_left() {
    let site = Site::echo();

    let mut head = site.connect().await;
    head.write_all(b"GET /v1/status HT").await.unwrap();
    let mut text = String::new();
    timeout(Duration::from_secs(7), head.read_to_string(&mut text)).await.expect("in time").unwrap();
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 408"), "{text}");

    let mut body = site.connect().await;
    body.write_all(b"POST /v1/scale HTTP/1.1\r\nHost: lb\r\nContent-Length: 100\r\n\r\n{").await.unwrap();
    let mut text = String::new();
    timeout(Duration::from_secs(7), body.read_to_string(&mut text)).await.expect("in time").unwrap();
    assert_eq!(parted(&text).0, 408);
}

#[tokio::test]
async fn many_clients_are_served_and_those_that_hang_keep_nobody_out() {
    let site = Arc::new(Site::echo());
    let mut hanging = Vec::new();
    for _ in 0..40 {
        hanging.push(site.connect().await);
    }

    let asking: Vec<_> = (0..200)
        .map(|_| {
            let site = site.clone();
            tokio::spawn(async move { site.ask("POST", "/v1/pause", "").await.0 })
        })
        .collect();
    let mut answered = Vec::new();
    for asked in asking {
        answered.push(asked.await.unwrap());
    }

    // The loop of this test has room for four questions; whoever comes beside that is told so.
    assert!(answered.iter().all(|status| [200, 503].contains(status)), "{answered:?}");
    assert!(answered.iter().filter(|status| **status == 200).count() > 0);
    assert_eq!(site.ask("POST", "/v1/pause", "").await.0, 200);
}

/// Somebody who follows, and reads line by line.
struct Follower(BufReader<UnixStream>);

impl Follower {
    async fn new(site: &Site, query: &str) -> Self {
        let mut stream = site.connect().await;
        let request = format!("GET /v1/events?{query} HTTP/1.1\r\nHost: lb\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut follower = Self(BufReader::new(stream));
        while !follower.line().await.is_empty() {}
        follower
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        timeout(Duration::from_secs(10), self.0.read_line(&mut line)).await.expect("a line comes").unwrap();
        line.trim_end().to_owned()
    }

    /// Returns the next event; nothing at the end.
    async fn event(&mut self) -> Option<Value> {
        loop {
            let line = self.line().await;
            match line.as_str() {
                "0" => return None,
                _ if line.starts_with('{') => return Some(serde_json::from_str(&line).unwrap()),
                // The lengths of chunks.
                _ => {}
            }
        }
    }

    async fn text(&mut self) -> String {
        let event = self.event().await.expect("an event");
        event["text"].as_str().map_or_else(|| event.to_string(), str::to_owned)
    }
}

#[tokio::test]
async fn who_follows_sees_what_happens_and_goes_on_where_he_was() {
    let site = Site::echo();
    site.happened("one");
    let mut follower = Follower::new(&site, "follow").await;
    assert_eq!(follower.text().await, "one");

    site.happened("two");
    let event = follower.event().await.unwrap();
    assert_eq!((&event["text"], &event["seq"]), (&json!("two"), &json!(102)));
    drop(follower);
    site.happened("three");

    let mut again = Follower::new(&site, "follow&after=102").await;
    assert_eq!(again.text().await, "three");
    let mut last = Follower::new(&site, "follow=true&last=0").await;
    site.happened("four");
    assert_eq!((again.text().await, last.text().await), ("four".to_owned(), "four".to_owned()));

    let all = site.raw(b"GET /v1/events?since=1h HTTP/1.0\r\n\r\n").await;
    assert_eq!(all.split_once("\r\n\r\n").unwrap().1, "", "they are of 1970");
    let all = site.raw(b"GET /v1/events HTTP/1.0\r\n\r\n").await;
    assert_eq!(all.lines().filter(|line| line.starts_with('{')).count(), 4);
}

#[tokio::test]
async fn who_does_not_read_holds_nothing_up_and_is_told_what_he_has_missed() {
    let site = Site::echo();
    let mut slow = Follower::new(&site, "follow").await;
    let long = "x".repeat(2_000);

    // More than the socket takes, and more than is kept.
    for number in 0..5_000 {
        site.happened(&format!("{number} {long}"));
        tokio::task::yield_now().await;
    }

    let (mut before, mut missed, mut seen) = (100, 0, 0);
    while before < 5_100 {
        let event = slow.event().await.unwrap();
        let seq = event["seq"].as_u64().unwrap();
        if event["kind"] == "gap" {
            missed += event["missed"].as_u64().unwrap();
            assert_eq!(seq, before + event["missed"].as_u64().unwrap());
        } else {
            assert_eq!(seq, before + 1, "in order, each once");
            seen += 1;
        }
        before = seq;
    }
    assert_eq!(seen + missed, 5_000);
    assert!(missed > 0, "all of it fitted somewhere");
}

#[tokio::test]
async fn followers_leave_room_for_orders() {
    let site = Site::echo();
    let mut followers = Vec::new();
    for _ in 0..32 {
        followers.push(Follower::new(&site, "follow").await);
    }

    let (status, document) = site.ask("GET", "/v1/events?follow", "").await;
    assert_eq!((status, &document["error"]), (429, &json!("too many follow already")));
    assert_eq!(site.ask("POST", "/v1/pause", "").await.0, 200);

    followers.pop();
    let mut status = 429;
    for _ in 0..100 {
        status = timeout(Duration::from_millis(50), site.ask("GET", "/v1/events?follow", ""))
            .await
            .map_or(200, |(status, _)| status);
        if status == 200 {
            break;
        }
        // Now and then it is looked who is there still.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(status, 200, "a place is free again");
}

#[tokio::test]
async fn the_end_is_seen_by_who_follows_and_takes_the_socket_away() {
    let site = Site::echo();
    let mut follower = Follower::new(&site, "follow").await;
    site.happened("the last");
    let Site { server, folder, .. } = site;

    let ending = tokio::spawn(server.end());

    assert_eq!(follower.text().await, "the last");
    assert_eq!(follower.event().await, None);
    timeout(Duration::from_millis(300), ending).await.unwrap().unwrap();
    assert!(!folder.path().join("web.sock").exists());
}
