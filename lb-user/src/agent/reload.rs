//! The configuration, read again while the agent runs.
//!
//! ```text
//! SIGHUP ─▶ read and check ─▶ compare ─▶ ask the engine for images and networks ─▶ apply
//!             (beside the loop: nobody waits for a file or an engine)           (in the loop)
//! ```
//!
//! A configuration that cannot be run changes nothing at all. A service whose containers cannot be started is left as it
//! was, and the others go on. What is not different is not touched.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Agent, Answer, orders,
    service::{self, discovery_settings, docker_settings, provider},
};
use crate::{
    config::{
        Reload, RunConfig, Service, ServiceName, Source,
        diff::{self, Changes},
    },
    control::{ContainerId, Event},
    provider::{Provider, docker::Fleet},
};

/// What `status` calls what is wrong with the configuration that was read last.
const PROBLEM: &str = "reload";

/// A configuration that can take the place of the one that is run.
pub struct Prepared {
    config: RunConfig,
    changes: Changes,
    fleet: Option<Arc<Fleet>>,
    /// Of services that are new, or whose containers or backends have changed.
    providers: BTreeMap<ServiceName, Arc<dyn Provider>>,
    /// Why services were left as they were, one sentence each.
    complaints: Vec<String>,
}

impl Agent {
    /// Reads the configuration again, beside the loop.
    pub(super) fn begin_reload(&mut self) {
        let Some(reload) = self.reload.clone() else { return };
        if self.asked > 0 {
            tracing::info!("the agent is ending: the configuration is not read again");
            return;
        }
        if std::mem::replace(&mut self.is_reloading, true) {
            self.reload_again = true;
            return;
        }
        let removed = self.services.iter().filter(|(_, service)| service.is_removed).map(|(name, _)| name.clone());
        let (removed, from) = (removed.collect(), self.config.clone());
        let (fleet, answers) = (self.fleet.clone(), self.answers.clone());
        tokio::spawn(async move {
            let outcome = prepare(reload, from, removed, fleet).await;
            let _nobody_listens = answers.send(Answer::Reloaded(outcome.map(Box::new)));
        });
    }

    /// Applies what was read, or tells why it cannot be.
    pub(super) fn on_reloaded(&mut self, outcome: Result<Box<Prepared>, String>) -> Vec<(ServiceName, Event)> {
        self.is_reloading = false;
        self.is_report_old = true;
        // Counts by hand need room, too; what was ordered while the file was read as well.
        let outcome = outcome
            .and_then(|prepared| orders::check_room(&prepared.config, &self.counts_by_hand()).map(|()| prepared));
        let events = match outcome {
            // What is ending takes nothing over.
            Ok(_) if self.asked > 0 => Vec::new(),
            Ok(prepared) => self.apply(*prepared),
            Err(error) => {
                let error = format!("the configuration was not taken over, the former one is run: {error}");
                tracing::error!("{error}");
                self.problems.insert(PROBLEM, error.replace('\n', "; "));
                Vec::new()
            }
        };
        if std::mem::take(&mut self.reload_again) {
            self.begin_reload();
        }
        events
    }

    fn apply(&mut self, prepared: Prepared) -> Vec<(ServiceName, Event)> {
        let Prepared { config, changes, fleet, mut providers, complaints } = prepared;
        tell(&changes);
        complaints.iter().for_each(|complaint| tracing::error!("{complaint}"));
        match complaints.is_empty() {
            true => self.problems.remove(PROBLEM),
            false => self.problems.insert(PROBLEM, complaints.join("; ")),
        };
        let keep_changes = config.keep != self.config.keep;
        (self.config, self.fleet) = (config, fleet);
        self.tell_host();
        let now = self.now();
        let mut events: Vec<(ServiceName, Event)> = Vec::new();
        for name in &changes.removed {
            let Some(service) = self.services.get_mut(name) else { continue };
            service.is_removed = true;
            let reconfiguration = service.reconfiguration(&self.config, "removed from the configuration".to_owned());
            events.push((name.clone(), Event::Reconfigured(Box::new(reconfiguration))));
            events.push((name.clone(), Event::StopRequested));
        }
        for change in changes.changed {
            let name = change.service.name.clone();
            let Some(service) = self.services.get_mut(&name) else { continue };
            let former = std::mem::replace(&mut service.config, change.service);
            let reason = format!("changed: {}", change.keys.join(", "));
            let mut reconfiguration = service.reconfiguration(&self.config, reason);
            reconfiguration.unlisted = change.unlisted.iter().map(|one| ContainerId(one.to_string())).collect();
            events.push((name.clone(), Event::Reconfigured(Box::new(reconfiguration))));
            if former.frontends != service.config.frontends {
                service.let_go(&self.datapath.registry, now);
                events.push((name.clone(), Event::EndpointsChanged));
            } else if former.static_backends() != service.config.static_backends() {
                // Their weights may be others.
                events.push((name.clone(), Event::EndpointsChanged));
            }
            if let Some(provider) = providers.remove(&name) {
                service.change_provider(provider, &mut self.feeds);
            }
        }
        if keep_changes {
            for (name, service) in self.services.iter().filter(|(_, service)| !service.is_removed) {
                let reconfiguration = service.reconfiguration(&self.config, "changed: keep".to_owned());
                events.push((name.clone(), Event::Reconfigured(Box::new(reconfiguration))));
            }
        }
        for service in changes.added {
            let Some(provider) = providers.remove(&service.name) else { continue };
            self.begin(service, provider, None);
        }
        // Images may be others under their former names.
        if let Some(fleet) = &self.fleet {
            fleet.look_again();
        }
        // First, so that what is published afterwards has its frontends.
        let came = self.serve_frontends();
        came.into_iter().chain(events).collect()
    }
}

fn tell(changes: &Changes) {
    if *changes == Changes::default() {
        tracing::info!("the configuration was read again: no service has changed");
    }
    changes.added.iter().for_each(|service| tracing::info!("service {}: added", service.name));
    changes.removed.iter().for_each(|name| tracing::info!("service {name}: removed, it is drained"));
    for change in &changes.changed {
        tracing::info!("service {}: changed: {}", change.service.name, change.keys.join(", "));
    }
}

/// Reads the configuration and makes sure that it can be run.
async fn prepare(
    reload: Reload,
    from: RunConfig,
    removed: BTreeSet<ServiceName>,
    mut fleet: Option<Arc<Fleet>>,
) -> Result<Prepared, String> {
    let read = tokio::task::spawn_blocking(move || reload()).await;
    let mut config = read.map_err(|error| error.to_string())??;
    if let Some(service) = config.services.iter().find(|service| removed.contains(&service.name)) {
        return Err(format!(
            "service {} was removed and is still being drained: try again when `status` does not show it any more",
            service.name
        ));
    }
    for service in &mut config.services {
        let is_it = |former: &&Service| former.name == service.name && is_network_same(former, service);
        if let Some(former) = from.services.iter().find(is_it) {
            // What is wrong with it is told below: it differs from what is run.
            let _told_below = service.complete(&former.families);
        }
    }
    let mut changes = diff::changes(&from, &config)
        .map_err(|refusals| refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
    let mut providers = BTreeMap::new();
    let mut complaints = Vec::new();
    let mut left_out = BTreeSet::new();
    for service in changes.added.iter_mut().chain(changes.changed.iter_mut().map(|change| &mut change.service)) {
        let former = from.services.iter().find(|former| former.name == service.name);
        let is_same = former.is_some_and(|former| match (&former.source, &service.source) {
            (Source::Docker(before), Source::Docker(after)) => {
                let of = |docker| docker_settings(&config, &service.name, docker);
                of(before) == of(after)
            }
            (Source::Discovered(before), Source::Discovered(after)) => {
                discovery_settings(former, before) == discovery_settings(service, after)
            }
            (before, after) => before == after,
        });
        let outcome: anyhow::Result<Option<Arc<dyn Provider>>> = match is_same {
            true => service::check_frost(service)
                .and_then(|()| service.complete(&service.families.clone()).map_err(Into::into))
                .map(|()| None),
            false => provider(&config, service, &mut fleet).await.map(Some),
        };
        match outcome {
            Ok(provider) => {
                providers.extend(provider.map(|provider| (service.name.clone(), provider)));
                if let Some(wanted) = config.services.iter_mut().find(|wanted| wanted.name == service.name) {
                    wanted.clone_from(service);
                }
            }
            Err(error) => {
                let fate = if former.is_some() { "is left as it was" } else { "is not started" };
                complaints.push(format!("service {} {fate}: {error:#}; then send SIGHUP again", service.name));
                left_out.insert(service.name.clone());
            }
        }
    }
    changes.added.retain(|service| !left_out.contains(&service.name));
    changes.changed.retain(|change| !left_out.contains(&change.service.name));
    leave_out(&mut config, &from, &left_out);
    if let Some((first, second)) = config.overlap() {
        let overlap = format!("publish {second} claims connections that {first} claims until then");
        return Err(format!("{}; {overlap}", complaints.join("; ")));
    }
    service::check_room(&config).map_err(|(name, error)| format!("service {name}: {error}"))?;
    Ok(Prepared { config, changes, fleet, providers, complaints })
}

/// Returns whether containers are on the same network in both, and so have addresses of the same families.
fn is_network_same(former: &Service, service: &Service) -> bool {
    match (&former.source, &service.source) {
        (Source::Docker(before), Source::Docker(after)) => before.network == after.network,
        (Source::Discovered(before), Source::Discovered(after)) => before.network == after.network,
        (Source::Docker(_) | Source::Discovered(_) | Source::Static { .. }, _) => false,
    }
}

/// Leaves services as they were, or out if they were not there.
fn leave_out(config: &mut RunConfig, from: &RunConfig, names: &BTreeSet<ServiceName>) {
    let services = std::mem::take(&mut config.services).into_iter();
    config.services = services
        .filter_map(|service| {
            if !names.contains(&service.name) {
                return Some(service);
            }
            from.services.iter().find(|former| former.name == service.name).cloned()
        })
        .collect();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::file::parse,
        config::{ConfigError, Family},
    };

    fn config(services: &[(&str, &str)]) -> RunConfig {
        let text: String = services
            .iter()
            .map(|(name, rest)| format!("[[service]]\nname = \"{name}\"\nbackends = [\"198.18.2.11:80\"]\n{rest}\n"))
            .collect();
        parse(&text).unwrap_or_else(|mistakes| panic!("{text}{mistakes:?}"))
    }

    fn reload(to: Result<RunConfig, String>) -> Reload {
        Arc::new(move || to.clone())
    }

    #[tokio::test]
    async fn only_what_has_changed_gets_another_provider() {
        let from = config(&[("a", "publish = \"80\""), ("b", "publish = \"81\""), ("c", "publish = \"82\"")]);
        let to = config(&[("a", "publish = \"80\""), ("b", "publish = \"83\""), ("d", "publish = \"82\"")]);

        let prepared = prepare(reload(Ok(to)), from, BTreeSet::new(), None).await;

        let Prepared { changes, providers, complaints, .. } = prepared.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(changes.removed, ["c".parse().unwrap()]);
        assert_eq!(changes.changed[0].keys, ["publish"]);
        assert_eq!(providers.keys().map(ServiceName::as_str).collect::<Vec<_>>(), ["d"]);
        assert_eq!(complaints, Vec::<String>::new());
    }

    #[tokio::test]
    async fn what_cannot_be_run_is_told() {
        let from = config(&[("a", "publish = \"80\"")]);
        let told = async |to: Result<RunConfig, String>, removed: &[&str]| {
            let removed = removed.iter().map(|name| name.parse().unwrap()).collect();
            prepare(reload(to), from.clone(), removed, None).await.map(|_| ()).expect_err("a refusal")
        };

        assert_eq!(told(Err("a.toml:1:1: no".into()), &[]).await, "a.toml:1:1: no");
        let two = config(&[("a", "publish = \"80\""), ("b", "publish = \"81\"")]);
        assert!(told(Ok(two), &["b"]).await.starts_with("service b was removed and is still being drained: try again"));
        let other = RunConfig { max_flows: 4096, ..from.clone() };
        assert!(told(Ok(other), &[]).await.starts_with("max-flows cannot be changed while the agent runs"));
    }

    #[test]
    fn a_service_that_cannot_be_started_is_as_it_was() {
        let from = config(&[("a", "publish = \"80\""), ("b", "publish = \"81\"")]);
        let mut to = config(&[("a", "publish = \"90\""), ("b", "publish = \"91\""), ("c", "publish = \"81\"")]);

        leave_out(&mut to, &from, &["b", "c"].map(|name| name.parse().unwrap()).into());

        let names: Vec<String> = to.frontends().map(|frontend| frontend.name()).collect();
        assert_eq!(names, ["90/tcp", "81/tcp"]);
    }

    #[test]
    fn weights_are_measured_when_all_frontends_are_known() {
        let backends: Vec<String> =
            (1..=64).map(|port| format!("\"10.0.0.2:{port}={}\"", 1 + port % 2 * 255)).collect();
        let heavy = format!("publish = \"80\"\nscheduler = \"weighted\"\nbackends = [{}]\n", backends.join(", "));
        let web = "[[service]]\nname = \"web\"\nimage = \"lb-api\"\npublish = \"81-83:5000\"\n";
        let text = format!("[[service]]\nname = \"heavy\"\n{heavy}{web}");
        let mut config = parse(&text).unwrap_or_else(|mistakes| panic!("{text}{mistakes:?}"));
        config.services[1].complete(&[Family::V6]).unwrap();
        assert_eq!(service::check_room(&config), Ok(()));

        config.services[1].complete(&[Family::V4, Family::V6]).unwrap();

        let error = ConfigError::WeightsTooGreat { sum: 8_224, room: 4_093, frontends: 7 };
        assert_eq!(service::check_room(&config), Err(("heavy".parse().unwrap(), error)));
    }

    #[test]
    fn a_table_has_to_have_a_place_for_each_backend_when_all_frontends_are_known() {
        let text = |most: u32, ports: &str| {
            let hashed =
                format!("name = \"web\"\nimage = \"lb-api\"\npublish = \"0.0.0.0:80:5000\"\nmin = 1\nmax = {most}\n");
            let other = format!("name = \"more\"\nimage = \"lb-api\"\npublish = \"{ports}:5000\"\nmin = 1\nmax = 2\n");
            format!("[[service]]\n{hashed}scheduler = \"maglev\"\n[[service]]\n{other}")
        };
        let checked = |most, ports| {
            let text = text(most, ports);
            let mut config = parse(&text).unwrap_or_else(|mistakes| panic!("{text}{mistakes:?}"));
            config.services.iter_mut().for_each(|service| service.complete(&[Family::V4, Family::V6]).unwrap());
            service::check_room(&config).map_err(|(name, error)| (name.to_string(), error))
        };

        assert_eq!(checked(1_024, "81-87"), Ok(()));
        assert_eq!(checked(1_021, "81-88"), Ok(()));
        let error = ConfigError::TableTooSmall { count: 1_024, room: 1_021, frontends: 17 };
        assert_eq!(checked(1_024, "81-88"), Err(("web".to_owned(), error)));
    }

    #[tokio::test]
    async fn the_families_of_a_network_are_known_until_it_is_another() {
        let of = |publish: &str| -> RunConfig {
            let text = format!("[[service]]\nname = \"a\"\nimage = \"lb-api\"\npublish = \"{publish}\"\n");
            parse(&text).unwrap_or_else(|mistakes| panic!("{text}{mistakes:?}"))
        };
        let known = |families: &[Family]| {
            let mut config = of("80:5000");
            config.services[0].complete(families).unwrap();
            config
        };
        let told = async |from: RunConfig, to: &str| {
            let prepared = prepare(reload(Ok(of(to))), from, BTreeSet::new(), None).await;
            let Prepared { config, changes, complaints, .. } = prepared.unwrap_or_else(|error| panic!("{error}"));
            let names: Vec<String> = config.frontends().map(|frontend| frontend.name()).collect();
            let keys: Vec<&str> = changes.changed.iter().flat_map(|change| change.keys.clone()).collect();
            (names.join(" "), keys.join(" "), complaints.join(" "))
        };
        let both = [Family::V4, Family::V6];

        let same = told(known(&both), "80:5000").await;
        assert_eq!(same, ("80/tcp [::]:80/tcp".into(), String::new(), String::new()));
        let other = told(known(&both), "81:5000").await;
        assert_eq!(other, ("81/tcp [::]:81/tcp".into(), "publish".into(), String::new()));
        let (names, keys, complaint) = told(known(&[Family::V4]), "[::]:80:5000").await;
        assert_eq!((names.as_str(), keys.as_str()), ("80/tcp", ""));
        assert!(complaint.starts_with("service a is left as it was: publish [::]:80:5000/tcp is for clients of IPv6"));
    }
}
