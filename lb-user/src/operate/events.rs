//! What happened, and what happens: the agent's journal, as lines of a table or as they are.

use std::{
    io::{self, Write as _},
    time::{Duration, UNIX_EPOCH},
};

use http_body_util::BodyExt as _;
use hyper::Method;
use serde::Deserialize;
use tokio::time::sleep;

use super::{Line, OperateError};
use crate::{
    control::BackendState,
    server::journal::{Entry, Step, What},
    status::{Exit, human::clean},
};

/// The time between two tries to find a next agent.
const RETRY: Duration = Duration::from_millis(500);

/// What to show.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where to begin, as a parameter: `since=10m`, `last=10`; everything without it.
    pub start: Option<String>,
    /// Whether to go on with what happens.
    pub follow: bool,
    /// Whether to print the lines as they are.
    pub json: bool,
}

/// Prints events. Who follows goes on with the next agent, where this one ends.
///
/// # Errors
/// If there is no agent; for who follows, if there is none at the beginning, or no such instance any more.
pub async fn show(instance: &str, request: &Request) -> Result<Exit, OperateError> {
    let line = Line::to(instance);
    let mut printer = Printer { json: request.json, seen: None };
    let mut is_waiting = false;
    loop {
        let start = printer.seen.map(|seen| format!("after={seen}")).or_else(|| request.start.clone());
        let follow = request.follow.then(|| "follow".to_owned());
        let parameters: Vec<String> = start.into_iter().chain(follow).collect();
        let target = format!("/v1/events?{}", parameters.join("&"));
        let has_begun = printer.seen.is_some() || is_waiting;
        let error = match line.open(Method::GET, &target, String::new()).await {
            Ok(mut body) => {
                is_waiting = false;
                let mut rest = Vec::new();
                loop {
                    match body.frame().await {
                        Some(Ok(frame)) => rest.extend_from_slice(frame.data_ref().map_or(&[], |bytes| bytes)),
                        Some(Err(error)) => break Some(line.broken(error)),
                        None => break None,
                    }
                    if printer.print(&mut rest).is_err() {
                        // Whoever closes the pipe has read enough.
                        return Ok(Exit::Healthy);
                    }
                }
            }
            Err(error @ (OperateError::Ailing(_) | OperateError::Silent { .. } | OperateError::Broken { .. }))
                if request.follow && has_begun =>
            {
                Some(error)
            }
            Err(error) => return Err(error),
        };
        match (error, request.follow) {
            (Some(error), false) => return Err(error),
            (None, false) => return Ok(Exit::Healthy),
            (error, true) => {
                if !is_waiting {
                    let why = error.map(|error| format!(": {error}")).unwrap_or_default();
                    eprintln!("the agent has gone{why}; waiting for the next one");
                }
                is_waiting = true;
                sleep(RETRY).await;
            }
        }
    }
}

/// What every line has, of any version.
#[derive(Deserialize)]
struct Numbered {
    seq: u64,
}

struct Printer {
    json: bool,
    /// The number of the last event that was printed.
    seen: Option<u64>,
}

impl Printer {
    /// Prints the whole lines of what has come, and leaves the rest.
    fn print(&mut self, arrived: &mut Vec<u8>) -> io::Result<()> {
        let Some(end) = arrived.iter().rposition(|byte| *byte == b'\n') else { return Ok(()) };
        let whole: Vec<u8> = arrived.drain(..=end).collect();
        let mut out = io::stdout().lock();
        for line in whole.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            // What a later version tells is told as it is.
            let entry = serde_json::from_slice::<Entry>(line).ok();
            self.seen = serde_json::from_slice::<Numbered>(line).map(|told| told.seq).ok().or(self.seen);
            match entry.filter(|_| !self.json) {
                Some(entry) => writeln!(out, "{}", shown(&entry))?,
                None => {
                    out.write_all(line)?;
                    writeln!(out)?;
                }
            }
        }
        out.flush()
    }
}

/// Returns an event as a line of a table.
fn shown(entry: &Entry) -> String {
    let at = UNIX_EPOCH.checked_add(Duration::from_millis(entry.unix_ms)).unwrap_or(UNIX_EPOCH);
    let at = humantime::format_rfc3339_millis(at);
    let service = clean(entry.service.as_deref().unwrap_or("-"));
    let (what, text) = match &entry.what {
        What::Agent { text } => ("agent".to_owned(), text.clone()),
        What::Decision { decision, from, to, reason } if from == to => (decision.to_string(), reason.clone()),
        What::Decision { decision, from, to, reason } => (format!("{decision} {from} → {to}"), reason.clone()),
        What::Backend(step) | What::Health(step) => (step.backend.clone(), moved(step)),
        What::Publication { generation, ready } => {
            ("published".to_owned(), format!("{ready} ready (generation {generation})"))
        }
        What::Gap { missed: Some(missed) } => ("gap".to_owned(), format!("{missed} events are not kept any longer")),
        What::Gap { missed: None } => ("gap".to_owned(), "what an earlier agent told last is not kept".to_owned()),
    };
    format!("{at}  {service:<12}  {:<22}  {}", clean(&what), clean(&text))
}

fn moved(step: &Step) -> String {
    let state = |state: BackendState| match state {
        BackendState::Starting => "starting",
        BackendState::Ready => "ready",
        BackendState::Idle => "idle",
        BackendState::Warm => "warm",
        BackendState::Unhealthy => "unhealthy",
        BackendState::Draining => "draining",
        BackendState::Stopping => "stopping",
        BackendState::Dead => "dead",
    };
    let error = step.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
    match (step.from, step.to) {
        (Some(from), Some(to)) => format!("{} → {}{error}", state(from), state(to)),
        (None, Some(to)) => format!("{}{error}", state(to)),
        (Some(from), None) => format!("{} → gone{error}", state(from)),
        (None, None) => format!("gone{error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::DecisionKind;

    fn line(service: Option<&str>, what: What) -> String {
        shown(&Entry { seq: 1, unix_ms: 1_764_180_099_123, service: service.map(Into::into), what })
    }

    #[test]
    fn an_event_is_a_line() {
        let decision = |from, to, reason: &str| What::Decision {
            decision: DecisionKind::ScaleUp,
            from,
            to,
            reason: reason.into(),
        };
        let step = |from, to, error: Option<&str>| {
            What::Backend(Step { backend: "lb-web-1".into(), id: "f".into(), from, to, error: error.map(Into::into) })
        };

        let rows = [
            (
                line(Some("web"), decision(2, 5, "burst")),
                "2025-11-26T18:01:39.123Z  web           scale up 2 → 5          burst",
            ),
            (
                line(Some("web"), decision(2, 2, "a\x1b[31m")),
                "2025-11-26T18:01:39.123Z  web           scale up                a\u{fffd}[31m",
            ),
            (
                line(None, What::Agent { text: "began".into() }),
                "2025-11-26T18:01:39.123Z  -             agent                   began",
            ),
            (
                line(Some("web"), step(None, Some(BackendState::Starting), None)),
                "2025-11-26T18:01:39.123Z  web           lb-web-1                starting",
            ),
            (
                line(Some("web"), step(Some(BackendState::Ready), Some(BackendState::Dead), Some("exit code 1"))),
                "2025-11-26T18:01:39.123Z  web           lb-web-1                ready → dead: exit code 1",
            ),
            (
                line(None, What::Gap { missed: Some(3) }),
                "2025-11-26T18:01:39.123Z  -             gap                     3 events are not kept any longer",
            ),
        ];
        for (got, expected) in rows {
            assert_eq!(got, expected);
        }
    }

    #[test]
    fn lines_are_printed_when_they_are_whole_and_their_numbers_remembered() {
        let mut printer = Printer { json: false, seen: None };
        let mut arrived = br#"{"seq":7,"unix_ms":1,"kind":"gap","missed":null}"#.to_vec();

        printer.print(&mut arrived).unwrap();
        assert_eq!((printer.seen, arrived.is_empty()), (None, false));
        arrived.extend_from_slice(b"\n{\"seq\":9,\"unix_ms\":1,\"kind\":\"of the future\"}\n{\"seq\":8,");
        printer.print(&mut arrived).unwrap();

        assert_eq!((printer.seen, arrived.as_slice()), (Some(9), b"{\"seq\":8,".as_slice()));
    }
}
