//! Paths: a request in, a response out.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::stream::{self, Stream};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Frame, Incoming},
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::timeout,
};

use super::{
    asks::{Ask, Asking, Refused, Rollout, Scale, Ways},
    journal::{Journal, Newest, Start},
    query::Query,
    views::Views,
};
use crate::{
    config::{suppose::Supposition, value::parse_duration},
    control::Order,
    status::{explain::ExplainError, read::StatusError},
};

/// The body of a request: more than any of ours needs.
const BODY_BYTES: usize = 64 * 1024;
/// Time for it to come.
const BODY_LIMIT: Duration = Duration::from_secs(5);
/// Time for the loop to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Events that are sent at once.
const BATCH: usize = 128;

/// What requests are answered with.
pub struct Desk {
    pub asks: mpsc::Sender<Asking>,
    pub journal: Arc<Journal>,
    pub views: Arc<dyn Views>,
    pub followers: Arc<Semaphore>,
    pub looks: Arc<Semaphore>,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What is wrong with a request.
struct Problem {
    status: StatusCode,
    error: String,
    allow: Option<&'static str>,
}

impl Problem {
    #[expect(clippy::needless_pass_by_value, reason = "what is wrong is told nowhere else")]
    fn new(status: StatusCode, error: impl ToString) -> Self {
        Self { status, error: error.to_string(), allow: None }
    }

    fn senseless(error: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }
}

/// Answers a request of a user; `follows` is told if the answer has no end.
pub async fn respond(
    desk: &Arc<Desk>,
    request: Request<Incoming>,
    peer: Option<u32>,
    follows: &AtomicBool,
) -> Response<Body> {
    let told = (request.method().clone(), request.uri().clone());
    match answer(desk, request, peer, follows).await {
        Ok(response) => response,
        Err(problem) => {
            tracing::debug!("control socket: {} {}: {}: {}", told.0, told.1, problem.status, problem.error);
            let text = serde_json::json!({ "error": problem.error }).to_string() + "\n";
            let mut response = json(text);
            *response.status_mut() = problem.status;
            if let Some(allow) = problem.allow {
                response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
            }
            response
        }
    }
}

async fn answer(
    desk: &Arc<Desk>,
    request: Request<Incoming>,
    peer: Option<u32>,
    follows: &AtomicBool,
) -> Result<Response<Body>, Problem> {
    let (path, method) = (request.uri().path().to_owned(), request.method().clone());
    let only = |allowed: Method, name: &'static str| match method == allowed {
        true => Ok(()),
        false => Err(Problem {
            allow: Some(name),
            ..Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("{path} is for {name}, not for {method}"))
        }),
    };
    let query = request.uri().query().map(str::to_owned);
    let query = |known: &[&str]| Query::parse(query.as_deref(), known).map_err(Problem::senseless);
    match path.as_str() {
        "/v1/status" => {
            only(Method::GET, "GET")?;
            query(&[])?;
            look(desk, |views| views.status().map_err(|error| of_status(&error))).await
        }
        "/v1/explain" => {
            only(Method::GET, "GET")?;
            let query = query(&["service", "if"])?;
            let service = query.one("service").map_err(Problem::senseless)?.map(str::to_owned);
            let all: Vec<Supposition> =
                query.all("if").map(str::parse).collect::<Result<_, _>>().map_err(Problem::senseless)?;
            look(desk, move |views| views.explain(service.as_deref(), &all).map_err(|error| of_explain(&error))).await
        }
        "/v1/events" => {
            only(Method::GET, "GET")?;
            let query = query(&["after", "since", "last", "follow"])?;
            events(desk, &query, follows)
        }
        "/v1/services" => {
            only(Method::GET, "GET")?;
            query(&[])?;
            ask(desk, Ask::Services).await
        }
        "/v1/scale" => {
            only(Method::POST, "POST")?;
            query(&[])?;
            let asked = body::<Scale>(request).await?.ask().map_err(Problem::senseless)?;
            order(desk, asked, peer).await
        }
        "/v1/pause" => {
            only(Method::POST, "POST")?;
            query(&[])?;
            order(desk, body::<Ways>(request).await?.ask(Order::Pause), peer).await
        }
        "/v1/resume" => {
            only(Method::POST, "POST")?;
            query(&[])?;
            order(desk, body::<Ways>(request).await?.ask(Order::Resume), peer).await
        }
        "/v1/rollout" => {
            only(Method::POST, "POST")?;
            query(&[])?;
            let asked = body::<Rollout>(request).await?.ask().map_err(Problem::senseless)?;
            order(desk, asked, peer).await
        }
        _ => Err(Problem::new(
            StatusCode::NOT_FOUND,
            format!(
                "there is no {path}: /v1/status, /v1/explain, /v1/services, /v1/events, /v1/scale, /v1/pause, /v1/resume, \
                 /v1/rollout"
            ),
        )),
    }
}

/// Reads the JSON of a body; an empty one is an empty object.
async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Problem> {
    let collected = timeout(BODY_LIMIT, Limited::new(request.into_body(), BODY_BYTES).collect()).await;
    let late = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, format!("the body took longer than {BODY_LIMIT:?}"));
    let bytes = collected.map_err(late)?.map_err(|error| match error.is::<LengthLimitError>() {
        true => Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is longer than {BODY_BYTES} bytes")),
        false => Problem::senseless(format!("read the body: {error}")),
    })?;
    let bytes = bytes.to_bytes();
    let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
    serde_json::from_slice(text).map_err(|error| Problem::senseless(format!("the body: {error}")))
}

async fn order(desk: &Desk, asked: Ask, peer: Option<u32>) -> Result<Response<Body>, Problem> {
    let who = peer.map_or_else(|| "somebody".to_owned(), |uid| format!("user {uid}"));
    tracing::info!("control socket: {who} asks: {asked:?}");
    ask(desk, asked).await
}

/// Asks the loop.
async fn ask(desk: &Desk, ask: Ask) -> Result<Response<Body>, Problem> {
    let (answer, answered) = oneshot::channel();
    let ending = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the agent is ending");
    desk.asks.try_send(Asking { ask, answer }).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many questions are waiting: ask again in a moment")
        }
        mpsc::error::TrySendError::Closed(_) => ending(),
    })?;
    let late = |_| {
        let error = format!("the agent did not answer within {ANSWER_LIMIT:?}: an order may be taken nevertheless");
        Problem::new(StatusCode::GATEWAY_TIMEOUT, error)
    };
    let taken = timeout(ANSWER_LIMIT, answered).await.map_err(late)?.map_err(|_| ending())?.map_err(|refused| {
        let status = match refused {
            Refused::NoService { .. } | Refused::Nothing => StatusCode::NOT_FOUND,
            Refused::WhichService { .. } => StatusCode::BAD_REQUEST,
            Refused::Refusal { .. } | Refused::NoRoom { .. } => StatusCode::CONFLICT,
        };
        Problem::new(status, refused)
    })?;
    Ok(json(serde_json::to_string_pretty(&taken).expect("keys are text and numbers are finite or null") + "\n"))
}

/// Reads maps, which takes a while, beside everything else.
async fn look(
    desk: &Arc<Desk>,
    read: impl FnOnce(&dyn Views) -> Result<String, Problem> + Send + 'static,
) -> Result<Response<Body>, Problem> {
    let Ok(place) = desk.looks.clone().acquire_owned().await else {
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the agent is ending"));
    };
    let views = desk.views.clone();
    let read = tokio::task::spawn_blocking(move || {
        let text = read(&*views);
        drop(place);
        text
    });
    let text = read.await.map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error))?;
    Ok(json(text? + "\n"))
}

fn of_status(error: &StatusError) -> Problem {
    let status = match error {
        StatusError::NotRunning(_) | StatusError::NoReport { .. } => StatusCode::SERVICE_UNAVAILABLE,
        StatusError::NotRoot | StatusError::Datapath(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Problem::new(status, error)
}

fn of_explain(error: &ExplainError) -> Problem {
    match error {
        ExplainError::Status(error) => of_status(error),
        ExplainError::NoService { .. } => Problem::new(StatusCode::NOT_FOUND, error),
        ExplainError::WhichService { .. } | ExplainError::Supposed(_) => Problem::senseless(error),
        ExplainError::NoRecord { .. } => Problem::new(StatusCode::CONFLICT, error),
    }
}

/// Answers with what happened, and with what happens if that is asked for.
fn events(desk: &Arc<Desk>, query: &Query, follows: &AtomicBool) -> Result<Response<Body>, Problem> {
    let one = |name| query.one(name).map_err(Problem::senseless);
    let number = |name: &str, text: &str| -> Result<u64, Problem> {
        text.parse().map_err(|_| Problem::senseless(format!("{name}: {text:?} is no number")))
    };
    let start = match (one("after")?, one("since")?, one("last")?) {
        (None, None, None) => Start::Oldest,
        (Some(after), None, None) => Start::After(number("after", after)?),
        (None, Some(since), None) => {
            let since = parse_duration(since).map_err(|error| Problem::senseless(format!("since: {error}")))?;
            Start::Since(unix_ms().saturating_sub(since.as_millis() as u64))
        }
        (None, None, Some(last)) => Start::Last(usize::try_from(number("last", last)?).unwrap_or(usize::MAX)),
        (_, _, _) => return Err(Problem::senseless("after, since and last exclude each other")),
    };
    let watch = match one("follow")? {
        None | Some("false") => None,
        Some("" | "true") => {
            let Ok(place) = desk.followers.clone().try_acquire_owned() else {
                return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "too many follow already"));
            };
            follows.store(true, Ordering::Relaxed);
            Some((desk.journal.watch(), place))
        }
        Some(other) => return Err(Problem::senseless(format!("follow is true or false, not {other:?}"))),
    };
    let reader = Reader { journal: desk.journal.clone(), start: Some(start), watch };
    let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(reader.frames())));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

/// Somebody who reads the journal, at his own pace.
struct Reader {
    journal: Arc<Journal>,
    /// Where to go on; nothing at the end.
    start: Option<Start>,
    /// What tells of more, for who follows, with his place.
    watch: Option<(watch::Receiver<Newest>, OwnedSemaphorePermit)>,
}

impl Reader {
    fn frames(self) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> {
        stream::unfold(self, async |mut reader| {
            loop {
                // Before the look, so that what comes after it is told.
                let is_last = reader.watch.as_mut().is_none_or(|(watch, _)| watch.borrow_and_update().is_last);
                let batch = reader.journal.read(reader.start?, BATCH, unix_ms());
                let is_over = batch.is_whole && is_last;
                reader.start = (!is_over).then_some(Start::After(batch.after));
                if !batch.lines.is_empty() {
                    return Some((Ok(Frame::data(Bytes::from(batch.lines.concat()))), reader));
                }
                let (watch, _) = reader.watch.as_mut().filter(|_| !is_over)?;
                watch.changed().await.ok()?;
            }
        })
    }
}

fn json(text: String) -> Response<Body> {
    let mut response = Response::new(BodyExt::boxed_unsync(Full::new(Bytes::from(text))));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
