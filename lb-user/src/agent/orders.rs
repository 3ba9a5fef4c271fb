//! What operators say: questions from the control socket, answered between two events.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::{Agent, Service, service, unix_ms};
use crate::{
    config::{MAX_BACKENDS_PER_FRONTEND, RunConfig, ServiceName, Source},
    control::{BackendState, Change, Decision, Event, Order, Reach, Refusal},
    server::{Ask, Asking, Refused, Taken, journal::What},
    status::{human::list, read},
};

/// What the agent's problem is called by that a report could not be written.
pub const UNREPORTED: &str = "report";

/// Somebody whose order is on its way into force.
pub struct Waiting {
    answer: oneshot::Sender<Result<Taken, Refused>>,
    /// The services that have been given it.
    services: Vec<ServiceName>,
}

/// Refuses a configuration with room for its own counts that has none for those that were ordered by hand.
///
/// # Errors
/// How much room there is, and which counts have none.
pub fn check_room(config: &RunConfig, counts: &BTreeMap<ServiceName, u32>) -> Result<(), String> {
    let mut config = config.clone();
    let mut beyond = Vec::new();
    for service in &mut config.services {
        if let (Source::Docker(docker), Some(&count)) = (&mut service.source, counts.get(&service.name))
            && count > docker.scaling.max
        {
            docker.scaling.max = count;
            beyond.push(format!("{count} by hand of service {}", service.name));
        }
    }
    let with = if beyond.is_empty() { String::new() } else { format!(" with {}", list(&beyond)) };
    service::check_room(&config).map_err(|(_, error)| format!("{error}{with}"))
}

impl Agent {
    /// Takes a question; what comes of it has to be handled before [`answer_orders`](Self::answer_orders).
    pub(super) fn on_ask(&mut self, Asking { ask, answer }: Asking) -> Vec<(ServiceName, Event)> {
        let (outcome, events) = match ask {
            Ask::Services => {
                let services: Vec<ServiceName> = self.in_order().map(|(name, _)| name.clone()).collect();
                (Ok(self.taken(&services, Vec::new())), Vec::new())
            }
            Ask::Order { service, order } => match self.addressed(service, &order) {
                Ok(services) => {
                    let events = services.iter().map(|name| (name.clone(), Event::Ordered(order))).collect();
                    if let (Order::Rollout { .. }, Some(fleet)) = (order, &self.fleet) {
                        // Names may mean other images by now.
                        fleet.look_again();
                    }
                    self.waiting.push(Waiting { answer, services });
                    return events;
                }
                Err(refused) => (Err(refused), Vec::new()),
            },
        };
        let _nobody_waits = answer.send(outcome);
        events
    }

    /// Answers those whose orders are in force. They outlive the agent by then.
    pub(super) fn answer_orders(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        self.report();
        for Waiting { answer, services } in std::mem::take(&mut self.waiting) {
            let told = |name: &ServiceName| {
                let decided = self.services.get(name)?.controller.last_order()?;
                Some(format!("service {name}: {decided}"))
            };
            let told = services.iter().filter_map(told).collect();
            let mut taken = self.taken(&services, told);
            let unreported = self.problems.get(UNREPORTED);
            taken.problems.extend(unreported.map(|error| format!("{error}: what is ordered ends with this agent")));
            let _nobody_waits = answer.send(Ok(taken));
        }
    }

    fn taken(&self, names: &[ServiceName], told: Vec<String>) -> Taken {
        let mut taken = Taken { told, ..Taken::default() };
        for (name, service) in self.in_order().filter(|(name, _)| names.contains(name)) {
            let report = self.service_report(name, service);
            taken
                .problems
                .extend(report.control.problems.iter().map(|problem| format!("{}{problem}", self.prefix(name))));
            let frontends = service.config.frontends.iter().map(|publish| publish.name()).collect();
            taken.services.push(read::service(&report, frontends, 0));
        }
        taken
    }

    /// Returns the services that an order is for, each of which takes it.
    fn addressed(&self, service: Option<String>, order: &Order) -> Result<Vec<ServiceName>, Refused> {
        let there: Vec<(&ServiceName, &Service)> = self.in_order().filter(|(_, service)| !service.is_removed).collect();
        let names = |of: &[(&ServiceName, &Service)]| of.iter().map(|(name, _)| name.to_string()).collect();
        let addressed = match service {
            Some(given) => match there.iter().find(|(name, _)| name.as_str() == given) {
                Some(found) => vec![*found],
                None => return Err(Refused::NoService { given, there: names(&there) }),
            },
            None => {
                let is_scaled = |(_, service): &&(&ServiceName, &Service)| {
                    service.controller.refusal(&Order::Auto) != Some(Refusal::NotScaled)
                };
                let scaled: Vec<_> = there.iter().filter(is_scaled).copied().collect();
                match (order, scaled.as_slice()) {
                    (_, []) => vec![there.first().copied().ok_or(Refused::Nothing)?],
                    (Order::Count { .. } | Order::Auto, [_, _, ..]) => {
                        return Err(Refused::WhichService { there: names(&scaled) });
                    }
                    (_, _) => scaled,
                }
            }
        };
        for (name, service) in &addressed {
            if let Some(refusal) = service.controller.refusal(order) {
                return Err(Refused::Refusal { service: name.to_string(), refusal });
            }
            self.check_room_for(name, order)?;
        }
        Ok(addressed.into_iter().map(|(name, _)| name.clone()).collect())
    }

    /// Refuses a count beyond the largest one for which there would be no room, were it that.
    fn check_room_for(&self, name: &ServiceName, order: &Order) -> Result<(), Refused> {
        let Order::Count { count, reach: Reach::Beyond, .. } = *order else { return Ok(()) };
        let no_room = |error: String| Refused::NoRoom { service: name.to_string(), error };
        if count > MAX_BACKENDS_PER_FRONTEND {
            return Err(no_room(format!("{count} containers are too many: at most {MAX_BACKENDS_PER_FRONTEND}")));
        }
        let mut counts = self.counts_by_hand();
        counts.insert(name.clone(), count);
        check_room(&self.config, &counts).map_err(no_room)
    }

    /// Returns what was ordered by hand, of each service of which anything was.
    pub(super) fn counts_by_hand(&self) -> BTreeMap<ServiceName, u32> {
        let of =
            |(name, service): (&ServiceName, &Service)| Some((name.clone(), service.controller.orders().manual?.count));
        self.services.iter().filter(|(_, service)| !service.is_removed).filter_map(of).collect()
    }

    /// Writes down what was decided.
    pub(super) fn note_decision(&self, name: &ServiceName, decision: &Decision) {
        self.journal.push(Some(name.as_str()), decision.into(), unix_ms());
    }

    /// Writes down what has become of a service's backends.
    pub(super) fn note_changes(&self, name: &ServiceName, changes: Vec<Change>) {
        for change in changes {
            self.journal.push(Some(name.as_str()), change.into(), unix_ms());
        }
    }

    /// Writes down that the kernel has taken a publication.
    pub(super) fn note_publication(&self, name: &ServiceName, generation: u64) {
        let Some(service) = self.services.get(name) else { return };
        let ready = service.controller.count(BackendState::Ready);
        self.journal.push(Some(name.as_str()), What::Publication { generation, ready }, unix_ms());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::file::parse, config::Family};

    #[test]
    fn counts_by_hand_of_every_service_need_room() {
        let text = "[[service]]\nname = \"web\"\nimage = \"i\"\npublish = \"80:5000\"\nmax = 1000\n\
            [[service]]\nname = \"cache\"\nimage = \"i\"\npublish = \"81:5000\"\nmax = 1000\n";
        let mut config = parse(text).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
        config.services.iter_mut().for_each(|service| service.complete(&[Family::V4]).unwrap());
        let checked = |counts: &[(&str, u32)]| {
            let counts = counts.iter().map(|&(name, count)| (name.parse().unwrap(), count)).collect();
            check_room(&config, &counts)
        };

        assert_eq!(checked(&[]), Ok(()));
        assert_eq!(checked(&[("web", 1_024), ("cache", 1_024)]), Ok(()));
        assert_eq!(checked(&[("web", 2), ("gone", 2_000)]), Ok(()), "fewer need no more");
        let error = checked(&[("web", 1_024), ("cache", 1_030)]).unwrap_err();
        assert!(error.ends_with(" with 1024 by hand of service web, 1030 by hand of service cache"), "{error}");
    }
}
