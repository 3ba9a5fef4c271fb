//! Containers that others start, and offer by their labels ([`offer`]): they are seen, and never started nor stopped.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bollard::models::{ContainerInspectResponse, ContainerSummary, ContainerSummaryStateEnum, EndpointSettings};
use futures_util::future::{self, BoxFuture};
use tokio::sync::mpsc;

use super::{
    Engine, Found,
    fleet::{Listed, Roster},
    in_order,
    offer::{self, Expected, Facts},
    plain_name, unix_seconds,
};
use crate::{
    control::{Addresses, BackendName, ContainerId, Family, Sighting, Terms},
    provider::{Process, Provider, ProviderError, ProviderEvent},
};

/// What a service that takes containers of others expects of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoverySettings {
    /// The service's name.
    pub service: String,
    /// What it expects.
    pub expected: Expected,
}

/// The containers that others have started for one service on one engine.
#[derive(Clone, Debug)]
pub struct DiscoveryProvider {
    engine: Engine,
    roster: Arc<Roster>,
    settings: Arc<DiscoverySettings>,
}

impl DiscoveryProvider {
    pub(super) fn new(engine: Engine, roster: Arc<Roster>, settings: DiscoverySettings) -> Self {
        Self { engine, roster, settings: Arc::new(settings) }
    }

    /// Returns the name of the service.
    pub(super) fn service(&self) -> &str {
        &self.settings.service
    }

    /// Returns of which families the addresses are on the network by which containers are reached that name no other.
    ///
    /// # Errors
    /// `NetworkMissing`, `NetworkWithoutAddresses`, and those of any request.
    pub async fn check(&self) -> Result<Vec<Family>, ProviderError> {
        self.engine.families_on(self.settings.expected.network.as_deref()).await
    }

    /// Returns a container of a list as it is seen. `refused` is why nobody takes it.
    pub(super) fn found_in_list(&self, summary: ContainerSummary, refused: Option<String>) -> Option<Found> {
        let networks = summary.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        let exposed = summary.ports.unwrap_or_default().iter().map(|port| port.private_port).collect();
        let paused = summary.state == Some(ContainerSummaryStateEnum::PAUSED);
        let running = paused || summary.state == Some(ContainerSummaryStateEnum::RUNNING);
        let facts = Facts { networks: &networks, exposed, host: self.roster.host_addresses() };
        let (address, terms) = self.judged(running, &summary.labels?, &facts, refused);
        let name = summary.names.unwrap_or_default();
        let created = summary.created.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0);
        let (id, name) = (ContainerId(summary.id?), plain_name(name.first().map_or("", String::as_str)));
        let sighting = sighting((id, name), (running, created), (address, terms));
        Some(Found { sighting, paused })
    }

    /// Returns a container that was inspected as it is seen. `refused` is why nobody takes it.
    pub(super) fn found(&self, container: ContainerInspectResponse, refused: Option<String>) -> Option<Found> {
        let networks: HashMap<String, EndpointSettings> =
            container.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        let state = container.state.unwrap_or_default();
        let config = container.config?;
        let ports = config.exposed_ports.unwrap_or_default();
        let exposed = ports.iter().filter_map(|port| port.split('/').next()?.parse().ok()).collect();
        let running = state.running == Some(true) && state.restarting != Some(true);
        let facts = Facts { networks: &networks, exposed, host: self.roster.host_addresses() };
        let (address, terms) = self.judged(running, &config.labels?, &facts, refused);
        let created = unix_seconds(&container.created.unwrap_or_default());
        let (id, name) = (ContainerId(container.id?), plain_name(&container.name.unwrap_or_default()));
        let sighting = sighting((id, name), (running, created), (address, terms));
        Some(Found { sighting, paused: state.paused == Some(true) })
    }

    /// Returns where a container is and what it says of itself. What is wrong with one that does not run is of no interest.
    fn judged(
        &self,
        running: bool,
        labels: &HashMap<String, String>,
        facts: &Facts<'_>,
        refused: Option<String>,
    ) -> (Option<Addresses>, Terms) {
        if !running {
            return (None, Terms::default());
        }
        let found = refused.map_or_else(|| offer::terms(labels, facts, &self.settings.expected), Err);
        match found {
            Ok((address, terms)) => (Some(address), terms),
            Err(unfit) => (None, Terms { unfit: Some(unfit), ..Terms::default() }),
        }
    }

    async fn list_now(&self) -> Result<Vec<Sighting>, ProviderError> {
        let offered = self.roster.offered().await?.into_iter();
        let own = offered.filter(|Listed { service, .. }| *service == self.settings.service);
        let mut found: Vec<Found> = own.map(|listed| listed.found).collect();
        in_order(&mut found);
        Ok(found.into_iter().map(|found| found.sighting).collect())
    }

    fn refusal(action: String) -> ProviderError {
        ProviderError::Unsupported { action, whose: "containers that others have started" }
    }
}

fn sighting(
    (id, name): (ContainerId, BackendName),
    (running, created): (bool, u64),
    (address, terms): (Option<Addresses>, Terms),
) -> Sighting {
    Sighting { id, name, ordinal: place(created), address, running, created, outdated: false, terms }
}

/// Returns a container's place among the others: the oldest comes first. Those of one second are ordered by their ids.
fn place(created: u64) -> u32 {
    u32::try_from(created).unwrap_or(u32::MAX)
}

impl Provider for DiscoveryProvider {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Sighting>, ProviderError>> {
        Box::pin(self.list_now())
    }

    fn start(&self, ordinal: u32) -> BoxFuture<'_, Result<ContainerId, ProviderError>> {
        Box::pin(future::ready(Err(Self::refusal(format!("start container {ordinal}")))))
    }

    fn stop<'a>(&'a self, id: &'a ContainerId, _grace: Duration) -> BoxFuture<'a, Result<(), ProviderError>> {
        Box::pin(future::ready(Err(Self::refusal(format!("stop container {id}")))))
    }

    fn remove<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<(), ProviderError>> {
        Box::pin(future::ready(Err(Self::refusal(format!("remove container {id}")))))
    }

    fn process<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Option<Process>> {
        Box::pin(self.engine.process(id))
    }

    fn events(&self) -> mpsc::Receiver<ProviderEvent> {
        self.roster.enter_discovery(self.clone())
    }
}
