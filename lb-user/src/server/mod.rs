//! The control socket: HTTP/1 over `/run/lb/NAME.sock`, by which an operator talks to a running agent.
//!
//! ```text
//! GET  /v1/status                               the document of `lb-user status --json`
//! GET  /v1/explain[?service=NAME][&if=KEY%3DVALUE]…
//!                                               the document of `lb-user explain --json`
//! GET  /v1/services                             what is scaled, how far it is, and what is ordered: `Taken`
//! GET  /v1/events[?after=SEQ][&since=DUR][&last=N][&follow]
//!                                               what happened, one line of JSON each (`journal`)
//! POST /v1/scale   {"service":"web","count":5,"for":"10m","force":false}      `"count":"auto"`: back to the law
//! POST /v1/pause   {"service":"web","in":true,"out":true}                     neither: both; no service: every scaled one
//! POST /v1/resume  the same
//! POST /v1/rollout {"service":"web","parallel":1}  or {"abort":true}          no service: every scaled one
//! ```
//!
//! ```sh
//! curl --unix-socket /run/lb/default.sock http://lb/v1/services
//! curl --unix-socket /run/lb/default.sock http://lb/v1/scale -d '{"count":5,"for":"10m"}'
//! curl --unix-socket /run/lb/default.sock -N 'http://lb/v1/events?follow'
//! ```
//!
//! Orders are answered by `Taken` once they are in force and part of the report, so that they outlive the agent from then
//! on. What is wrong is `{"error":"…"}`, with 400 where the request makes no sense, 404 for what there is not, 405, 408,
//! 409 where the agent does not take the order, 413, 429 where too many look at once, 503 while it ends or has too much to
//! do, 504 if it does not answer.
//!
//! ```text
//! socket   where it listens: made, replaced, removed
//! serve    connections and their limits
//! route    paths: a request in, a response out
//! asks     what goes to the agent's loop, and what comes back
//! journal  what happened, kept for a while; one writer, any number of readers
//! views    what is read without the loop
//! ```
//!
//! Nobody who talks here can hold the loop up: it gets whole questions by a channel of a fixed size, and answers each by a
//! channel of its own. Another verb is an arm of `asks::Ask`, one of `route`, and one of the agent's.

pub mod asks;
pub mod journal;
mod query;
mod route;
mod serve;
pub mod socket;
pub mod views;

pub use asks::{Ask, Asking, Refused, Taken};
pub use journal::Journal;
pub use serve::Server;

#[cfg(test)]
mod tests;
