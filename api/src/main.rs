//! A sample web API to balance: it tells which container answers, and burns CPU when asked to.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /` | `{"host":"<hostname>","message":"Hello"}` |
//! | `GET /healthz` | `ok` |
//! | `GET /burn?ms=N` | uses one CPU for N ms, then `{"burned_ms":N,"host":"<hostname>"}` |
//!
//! It listens on `LB_API_LISTEN`, or port 5000 of every address, of IPv6 and of IPv4. On SIGTERM or SIGINT it finishes what it serves and gives idle connections
//! `LB_API_LINGER_MS` (default 3000) for one more request; [`server`] says how.

mod burn;
mod routes;
mod server;

use std::{env, net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::{routes::Api, server::Drain};

/// Where it listens unless it is told otherwise.
const PORT: u16 = 5000;

fn main() -> Result<()> {
    let address = listen_address()?;
    let drain = Drain { linger: linger()?, ..Drain::default() };
    let host = nix::unistd::gethostname().context("read the host name")?;
    let api = Api::new(&host.to_string_lossy());
    raise_open_files();

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    let result = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
        let listener = match address {
            Some(address) => server::listen(address)?,
            None => server::listen_everywhere(PORT)?,
        };
        println!("listening on {}", listener.local_addr().context("read the listening address")?);
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            println!("stopping");
        };
        server::serve(listener, api, stop, drain).await;
        Ok(())
    });
    runtime.shutdown_background(); // a burn nobody waits for need not end first
    result
}

fn listen_address() -> Result<Option<SocketAddr>> {
    let Ok(text) = env::var("LB_API_LISTEN") else { return Ok(None) };
    let address =
        text.parse().with_context(|| format!("parse LB_API_LISTEN={text}: write ADDRESS:PORT, as in 0.0.0.0:5000"));
    address.map(Some)
}

fn linger() -> Result<Duration> {
    let Ok(text) = env::var("LB_API_LINGER_MS") else { return Ok(Drain::default().linger) };
    let millis = text.parse().with_context(|| format!("parse LB_API_LINGER_MS={text}: write milliseconds"))?;
    Ok(Duration::from_millis(millis))
}

/// Raises the limit of open files as far as is allowed: one connection is one file. A refusal only means fewer connections.
fn raise_open_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        eprintln!("raise the limit of open files from {soft} to {hard}: {error}");
    }
}
