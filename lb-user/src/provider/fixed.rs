//! Backends that somebody else runs: a list of addresses from the command line, always taken to be running.

use std::{net::SocketAddr, time::Duration};

use futures_util::future::{self, BoxFuture};
use tokio::sync::mpsc;

use super::{Process, Provider, ProviderError, ProviderEvent};
use crate::control::{BackendName, ContainerId, Sighting, Terms};

/// The provider of a fixed list of backends.
#[derive(Debug, Clone)]
pub struct FixedProvider {
    backends: Vec<SocketAddr>,
}

impl FixedProvider {
    /// Makes a provider of `backends`; a backend named twice is one backend.
    #[must_use]
    pub fn new(backends: &[SocketAddr]) -> Self {
        let mut unique = Vec::with_capacity(backends.len());
        for backend in backends {
            if !unique.contains(backend) {
                unique.push(*backend);
            }
        }
        Self { backends: unique }
    }

    fn sightings(&self) -> Vec<Sighting> {
        (0_u32..).zip(&self.backends).map(|(ordinal, backend)| sighting(ordinal, *backend)).collect()
    }
}

impl Provider for FixedProvider {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Sighting>, ProviderError>> {
        Box::pin(future::ready(Ok(self.sightings())))
    }

    fn start(&self, ordinal: u32) -> BoxFuture<'_, Result<ContainerId, ProviderError>> {
        let refusal = refusal(format!("start backend {ordinal}"));
        Box::pin(future::ready(Err(refusal)))
    }

    fn stop<'a>(&'a self, id: &'a ContainerId, _grace: Duration) -> BoxFuture<'a, Result<(), ProviderError>> {
        let refusal = refusal(format!("stop backend {id}"));
        Box::pin(future::ready(Err(refusal)))
    }

    fn remove<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<(), ProviderError>> {
        let refusal = refusal(format!("remove backend {id}"));
        Box::pin(future::ready(Err(refusal)))
    }

    fn process<'a>(&'a self, _id: &'a ContainerId) -> BoxFuture<'a, Option<Process>> {
        Box::pin(future::ready(None))
    }

    /// Tells the list once; the channel stays open, as that of a provider to whom nothing happens.
    fn events(&self) -> mpsc::Receiver<ProviderEvent> {
        let (sender, receiver) = mpsc::channel(1);
        let sightings = self.sightings();
        tokio::spawn(async move {
            if sender.send(ProviderEvent::Resynced(sightings)).await.is_ok() {
                sender.closed().await;
            }
        });
        receiver
    }
}

fn refusal(action: String) -> ProviderError {
    ProviderError::Unsupported { action, whose: "backends given by --backend" }
}

/// Returns how a fixed backend is seen: its id and name are the address and port as text.
fn sighting(ordinal: u32, backend: SocketAddr) -> Sighting {
    Sighting {
        id: ContainerId(backend.to_string()),
        name: BackendName(backend.to_string()),
        ordinal,
        address: Some(backend.ip().into()),
        running: true,
        created: 0,
        outdated: false,
        terms: Terms::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider() -> FixedProvider {
        FixedProvider::new(&[address("198.19.0.2:80"), address("198.19.0.3:80"), address("198.19.0.2:80")])
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn every_backend_is_seen_once_and_runs() {
        let sightings = provider().list().await.unwrap();

        let ids: Vec<&str> = sightings.iter().map(|sighting| sighting.id.0.as_str()).collect();
        assert_eq!(ids, ["198.19.0.2:80", "198.19.0.3:80"]);
        assert!(sightings.iter().all(|sighting| sighting.running && sighting.address.is_some()));
    }

    #[tokio::test]
    async fn starting_and_stopping_is_refused() {
        let provider = provider();
        let id = ContainerId("198.19.0.2:80".into());

        assert!(matches!(provider.start(3).await, Err(ProviderError::Unsupported { .. })));
        assert!(matches!(provider.stop(&id, Duration::ZERO).await, Err(ProviderError::Unsupported { .. })));
        assert!(matches!(provider.remove(&id).await, Err(ProviderError::Unsupported { .. })));
    }

    #[tokio::test]
    async fn events_begin_with_the_list_and_stay_open() {
        let mut events = provider().events();

        assert!(matches!(events.recv().await, Some(ProviderEvent::Resynced(list)) if list.len() == 2));
        assert!(tokio::time::timeout(Duration::from_millis(20), events.recv()).await.is_err());
    }
}
