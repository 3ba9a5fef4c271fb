//! An engine made up for tests: it lists what it is told to, tells events, breaks off and talks nonsense.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{broadcast, mpsc},
};

use super::{
    DiscoverySettings, Engine, Fleet,
    fleet::locked,
    offer::{self, Expected},
};
use crate::{
    control::{GoneCause, Sighting},
    provider::{Provider as _, ProviderEvent},
};

/// Longer than anything takes that happens at all, pauses after failures included.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the engine has, and how it behaves.
#[derive(Default)]
struct State {
    /// Id, labels, and whether it runs.
    containers: Vec<(String, Value, bool)>,
    /// Whether lists make no sense.
    is_mad: bool,
}

/// What is told to those that follow events.
#[derive(Clone, Debug)]
enum Told {
    /// An event of a container with the label by which those of others are found.
    Event(String),
    /// The stream of those ends.
    End,
}

struct Fake {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<Told>,
    engine: Engine,
    _folder: tempfile::TempDir,
}

impl Fake {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("engine.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        let (state, (events, _)) = (Arc::<Mutex<State>>::default(), broadcast::channel(64));
        let (of_task, told) = (Arc::clone(&state), events.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&of_task), told.clone()));
            }
        });
        let engine = Engine::connect_to(&format!("unix://{}", path.display())).await.expect("it answers");
        Self { state, events, engine, _folder: folder }
    }

    fn has(&self, id: &str, labels: Value, runs: bool) {
        let containers = &mut locked(&self.state).containers;
        containers.retain(|(known, ..)| known != id);
        containers.push((id.to_owned(), labels, runs));
    }

    /// Tells an event of a container of others.
    fn tell(&self, action: &str, id: &str, attributes: Value) {
        let mut all = attributes;
        all[offer::ENABLE] = "true".into();
        let event = json!({"Type": "container", "Action": action, "Actor": {"ID": id, "Attributes": all}});
        let _nobody_follows = self.events.send(Told::Event(format!("{event}\n")));
    }

    /// Waits until both kinds of events are followed.
    async fn is_followed(&self) {
        let follows = async {
            while self.events.receiver_count() < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, follows).await.expect("in time");
    }

    fn watch(&self) -> (Fleet, mpsc::Receiver<ProviderEvent>) {
        let fleet = Fleet::of(self.engine.clone(), "edge", "edge");
        let expected = Expected { network: None, has_ports: false };
        let receiver = fleet.discovery(DiscoverySettings { service: "web".into(), expected }).events();
        (fleet, receiver)
    }
}

async fn serve(mut stream: UnixStream, state: Arc<Mutex<State>>, events: broadcast::Sender<Told>) {
    let mut head = Vec::new();
    let mut byte = [0];
    loop {
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut byte).await {
                Ok(1) => head.push(byte[0]),
                Ok(_) | Err(_) => return,
            }
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        let path = text.split(' ').nth(1).unwrap_or_default();
        if path.starts_with("/events") {
            return follow(stream, path.contains(offer::ENABLE), events.subscribe()).await;
        }
        let (status, body) = answer(path, &locked(&state));
        let length = body.len();
        let head_of =
            format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
        if stream.write_all((head_of + &body).as_bytes()).await.is_err() {
            return;
        }
        head.clear();
    }
}

/// Tells events until they end. Those of the instance's own containers never happen.
async fn follow(mut stream: UnixStream, of_others: bool, mut events: broadcast::Receiver<Told>) {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    if stream.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    while let Ok(told) = events.recv().await {
        let chunk = match told {
            Told::End if of_others => "0\r\n\r\n".to_owned(),
            Told::Event(line) if of_others => format!("{:x}\r\n{line}\r\n", line.len()),
            Told::End | Told::Event(_) => continue,
        };
        if stream.write_all(chunk.as_bytes()).await.is_err() || chunk.starts_with('0') {
            return;
        }
    }
}

fn answer(path: &str, state: &State) -> (u16, String) {
    let networks = |runs: bool| json!({"Networks": {"lan": {"IPAddress": if runs { "198.19.0.2" } else { "" }}}});
    let offered = path.contains(offer::ENABLE);
    if path.starts_with("/version") {
        return (200, json!({"ApiVersion": "1.41"}).to_string());
    }
    if path.starts_with("/containers/json") {
        let all = state.containers.iter().filter(|_| offered).map(|(id, labels, runs)| {
            let state = if *runs { "running" } else { "exited" };
            json!({"Id": id, "Names": [format!("/{id}")], "Labels": labels, "State": state, "Created": 7,
                "Ports": [{"PrivatePort": 80, "Type": "tcp"}], "NetworkSettings": networks(*runs)})
        });
        let all = Value::from(all.collect::<Vec<_>>()).to_string();
        return (200, if state.is_mad { "[{\"Id\": 7".to_owned() } else { all });
    }
    let named = state.containers.iter().find(|(id, ..)| path == format!("/containers/{id}/json"));
    match named {
        Some((id, labels, runs)) => {
            let config = json!({"Labels": labels, "ExposedPorts": {"80/tcp": {}}});
            let state = json!({"Running": runs, "Paused": false, "Restarting": false});
            let created = "1970-01-01T00:00:07Z";
            let all = json!({"Id": id, "Name": format!("/{id}"), "Created": created, "Config": config, "State": state,
                "NetworkSettings": networks(*runs)});
            (200, all.to_string())
        }
        None if path.starts_with("/_ping") => (200, "OK".to_owned()),
        None => (404, json!({"message": "no such thing"}).to_string()),
    }
}

/// Returns what is told next, in short.
async fn next(receiver: &mut mpsc::Receiver<ProviderEvent>) -> String {
    let shown = |one: &Sighting| match (&one.terms.unfit, one.running) {
        (Some(unfit), _) => format!("{} ({unfit})", one.name),
        (None, true) => format!("{} at {}", one.name, one.address.map_or_else(String::new, |at| at.to_string())),
        (None, false) => format!("{} (ended)", one.name),
    };
    match tokio::time::timeout(PATIENCE, receiver.recv()).await.expect("in time").expect("the watch goes on") {
        ProviderEvent::Seen(one) => format!("seen {}", shown(&one)),
        ProviderEvent::Gone { id, cause } => format!("gone {id}: {cause}"),
        ProviderEvent::Signalled { id } => format!("signalled {id}"),
        ProviderEvent::Resynced(all) => format!("all {}", all.iter().map(shown).collect::<Vec<_>>().join(", ")),
        ProviderEvent::Lost { .. } => "lost".to_owned(),
        ProviderEvent::Back => "back".to_owned(),
    }
}

/// Returns who is told next to be gone: lists come at their own time.
async fn next_gone(receiver: &mut mpsc::Receiver<ProviderEvent>) -> String {
    loop {
        let told = next(receiver).await;
        if told.starts_with("gone") {
            return told;
        }
    }
}

#[tokio::test]
async fn containers_of_others_are_told_as_they_come_and_end() {
    let fake = Fake::new().await;
    fake.has("a", json!({"lb.enable": "true", "lb.port": "5000"}), true);
    fake.has("wrong", json!({"lb.enable": "true", "lb.port": "x"}), true);
    fake.has("elsewhere", json!({"lb.enable": "true", "lb.instance": "other"}), true);
    fake.has("ours", json!({"lb.enable": "true", "io.lb-user.managed": "true"}), true);
    let (_fleet, mut events) = fake.watch();

    let first = "all a at 198.19.0.2, wrong (lb.port is \"x\": write a number from 1 to 65535, such as 5000)";
    assert_eq!(next(&mut events).await, first);

    fake.has("b", json!({"lb.enable": "true"}), true);
    // What the list has told already is told once more.
    while !next(&mut events).await.contains("b at") {}
    fake.is_followed().await;
    fake.tell("start", "b", json!({}));
    while next(&mut events).await != "seen b at 198.19.0.2" {}
    fake.tell("kill", "b", json!({"signal": "15"}));
    assert_eq!(next_gone(&mut events).await, format!("gone b: {}", GoneCause::Ending));
    fake.tell("die", "b", json!({"exitCode": "0"}));
    assert_eq!(next_gone(&mut events).await, format!("gone b: {}", GoneCause::Killed));
    fake.tell("kill", "a", json!({"signal": "1"}));
    fake.tell("pause", "a", json!({}));
    assert_eq!(next_gone(&mut events).await, format!("gone a: {}", GoneCause::Paused), "SIGHUP asks nobody to end");
}

#[tokio::test]
async fn where_their_events_end_everything_is_listed_again() {
    let fake = Fake::new().await;
    fake.has("a", json!({"lb.enable": "true"}), true);
    let (_fleet, mut events) = fake.watch();
    assert_eq!(next(&mut events).await, "all a at 198.19.0.2");
    fake.is_followed().await;

    fake.has("a", json!({"lb.enable": "true"}), false);
    fake.events.send(Told::End).expect("they are followed");

    // A list may have been under way.
    while next(&mut events).await != "lost" {}
    assert_eq!(next(&mut events).await, "back");
    assert_eq!(next(&mut events).await, "all a (ended)");
}

#[tokio::test]
async fn an_engine_that_talks_nonsense_is_lost_until_it_makes_sense() {
    let fake = Fake::new().await;
    locked(&fake.state).is_mad = true;
    fake.has("a", json!({"lb.enable": "true"}), true);
    let (_fleet, mut events) = fake.watch();
    assert_eq!(next(&mut events).await, "lost");

    locked(&fake.state).is_mad = false;

    assert_eq!(next(&mut events).await, "back");
    assert_eq!(next(&mut events).await, "all a at 198.19.0.2");
}
