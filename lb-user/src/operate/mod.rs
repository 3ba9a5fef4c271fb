//! The verbs that speak to a running agent, by its control socket.

use std::{io, path::PathBuf};

use http_body_util::{BodyExt as _, Collected, Full};
use hyper::{
    Method, Request, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;

pub mod events;
pub mod order;

use crate::{
    datapath::pins,
    status::{
        Exit, NotRunning,
        read::{self, StatusError},
    },
};

/// Why an agent has not done what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum OperateError {
    /// There is no such instance.
    #[error("{0}")]
    NotRunning(NotRunning),
    /// Nobody listens, for a reason that `status` tells, too.
    #[error("{0}")]
    Ailing(String),
    /// Nobody listens, and all else seems to be well.
    #[error("nobody listens at {path}: is the agent of an older version? `lb-user status` may tell more", path = path.display())]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// Only root and its group may ask.
    #[error("talk to the agent at {path}: permission denied: root and its group may: use sudo", path = path.display())]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The conversation broke off.
    #[error("talk to the agent at {path}: {source}", path = path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The agent refuses.
    #[error("{0}")]
    Refused(String),
    /// What was ordered has not come about in time.
    #[error("{0}")]
    Late(String),
    /// What there is of the instance cannot be read.
    #[error(transparent)]
    Status(#[from] StatusError),
}

/// Prints why there is no such instance, and makes it an exit code; leaves other errors to be printed.
///
/// # Errors
/// Any other.
pub fn concluded(outcome: Result<Exit, OperateError>) -> Result<Exit, OperateError> {
    match outcome {
        Err(OperateError::NotRunning(absent)) => {
            eprint!("{absent}");
            Ok(Exit::NotRunning)
        }
        outcome => outcome,
    }
}

/// The way to an instance's agent.
#[derive(Clone, Debug)]
struct Line {
    instance: String,
    path: PathBuf,
}

impl Line {
    fn to(instance: &str) -> Self {
        Self { instance: instance.to_owned(), path: pins::socket(instance) }
    }

    fn broken(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> OperateError {
        OperateError::Broken { path: self.path.clone(), source: source.into() }
    }

    /// Sends a request, and returns the whole answer.
    async fn ask(&self, method: Method, target: &str, body: String) -> Result<Bytes, OperateError> {
        let answer = self.open(method, target, body).await?;
        let collected = answer.collect().await.map_err(|error| self.broken(error))?;
        Ok(collected.to_bytes())
    }

    /// Sends a request, and returns the answer as it comes.
    async fn open(&self, method: Method, target: &str, body: String) -> Result<Incoming, OperateError> {
        let stream = match UnixStream::connect(&self.path).await {
            Ok(stream) => stream,
            Err(error) => return Err(self.why_not(error)),
        };
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(error))?;
        // It ends with the answer's body; what breaks it is seen there.
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(target).header("host", "lb");
        let request = request.body(Full::new(Bytes::from(body))).expect("targets are paths of ours");
        let response = sender.send_request(request).await.map_err(|error| self.broken(error))?;
        if response.status() == StatusCode::OK {
            return Ok(response.into_body());
        }
        let status = response.status();
        let text = response.collect().await.map(Collected::to_bytes).unwrap_or_default();
        let told = serde_json::from_slice::<Complaint>(&text).map(|complaint| complaint.error);
        Err(OperateError::Refused(told.unwrap_or_else(|_| format!("the agent answers {status}"))))
    }

    /// Says why nobody answers, as `status` would.
    fn why_not(&self, error: io::Error) -> OperateError {
        match error.kind() {
            io::ErrorKind::PermissionDenied => OperateError::Denied { path: self.path.clone() },
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                match read::agent(&self.instance).map(|agent| agent.problem()) {
                    Ok(Some(ailment)) => OperateError::Ailing(ailment),
                    Ok(None) => OperateError::Silent { path: self.path.clone() },
                    Err(StatusError::NotRunning(absent)) => OperateError::NotRunning(absent),
                    Err(error) => error.into(),
                }
            }
            _ => self.broken(error),
        }
    }
}

/// What the agent says where it refuses.
#[derive(Deserialize)]
struct Complaint {
    error: String,
}
