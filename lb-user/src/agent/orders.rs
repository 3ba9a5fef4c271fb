//! What operators say: questions from the control socket, answered between two events.

use tokio::sync::oneshot;

use super::{Agent, Service, unix_ms};
use crate::{
    config::{MAX_BACKENDS_PER_FRONTEND, ServiceName, Source},
    control::{BackendState, Change, Decision, Event, Order, Reach, Refusal},
    server::{Ask, Asking, Refused, Taken, journal::What},
    status::read,
};

/// Somebody whose order is on its way into force.
pub struct Waiting {
    answer: oneshot::Sender<Result<Taken, Refused>>,
    /// The services that have been given it.
    services: Vec<ServiceName>,
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
            let _nobody_waits = answer.send(Ok(self.taken(&services, told)));
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
                    (_, []) => there.first().copied().into_iter().collect(),
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
        let mut config = self.config.clone();
        for service in config.services.iter_mut().filter(|service| service.name == *name) {
            if let Source::Docker(docker) = &mut service.source {
                docker.scaling.max = docker.scaling.max.max(count);
            }
        }
        super::service::check_room(&config).map_err(|(_, error)| no_room(error.to_string()))
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
