//! From what was said to what is run: everything that concerns several options, or several services, at once.

use std::{collections::BTreeSet, time::Duration};

use lb_ebpf::abi::Lifetimes;

use super::{InstanceArgs, RunArgs, ServiceArgs};
use crate::{
    config::{
        At, ConfigError, Discovery, Docker, Family, Following, Guard, Hook, Lifetime, MAX_BACKENDS_IN_ALL,
        MAX_BACKENDS_PER_FRONTEND, MAX_FRONTENDS, Publish, PublishRange, RunConfig, Scaling, Scheduler, Service,
        ServiceName, Snat, Source, StaticBackend, Weight,
        publish::{self, Proto},
    },
    control::{
        OnChange,
        law::{self, Law},
    },
    datapath::layout,
    health::HealthCheck,
};

/// The defaults of options whose absence matters: with static backends they must not be given.
/// They are part of the help, which a test compares.
const DEFAULT_MIN: u32 = 2;
const DEFAULT_MAX: u32 = 10;
const DEFAULT_TAKEN: u32 = 64;
const HOST_CPU_WINDOWS: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(30));
const DEMAND_WINDOWS: (Duration, Duration) = (Law::UP_WINDOW, Law::DOWN_WINDOW);
const DEFAULT_STOP_GRACE: Duration = Duration::from_secs(10);

/// What was said, value by value, on the command line or in a file. Every value is right; whether all of them are so
/// together is what [`check`](Self::check) finds out.
#[derive(Clone, Debug)]
pub struct Draft {
    /// What holds for the whole instance.
    pub instance: InstanceArgs,
    /// The services, in the order given.
    pub services: Vec<(ServiceName, ServiceArgs)>,
}

/// A contradiction, and where it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// What it is.
    pub error: ConfigError,
    /// Where it is.
    pub at: Spot,
}

/// A place in what was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spot {
    /// Which service, counted from 0; nothing if it is about the whole instance.
    pub service: Option<usize>,
    /// The flag, without its dashes; `name` for that of a service, and empty for the service itself.
    pub flag: &'static str,
    /// Which of the flag's values, counted from 0.
    pub place: usize,
}

impl Draft {
    /// Checks the options against each other and fills in the defaults.
    ///
    /// # Errors
    /// The contradictions: the first of the instance and of each service, and then those between them.
    pub fn check(self) -> Result<RunConfig, Vec<Fault>> {
        let Self { instance, services: drafts } = self;
        let mut notes = Vec::new();
        let mut faults: Vec<Fault> = instance.check().err().into_iter().collect();
        let mut services = Vec::new();
        for (position, (name, said)) in drafts.iter().enumerate() {
            let mut own_notes = Vec::new();
            match said.check(name.clone(), &mut own_notes) {
                Ok(service) => services.push(service),
                Err((error, flag, place)) => {
                    faults.push(Fault { error, at: Spot { service: Some(position), flag, place } });
                }
            }
            notes.extend(own_notes.into_iter().map(|note| match drafts.len() {
                1 => note,
                _ => format!("{name}: {note}"),
            }));
        }
        faults.extend(between(&drafts));
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(RunConfig {
            instance: instance.instance,
            uplinks: instance.uplink,
            hook: instance.hook,
            tc_attach: instance.tc_attach,
            complete_checksums: instance.complete_checksums,
            max_flows: instance.max_flows,
            lifetimes: lifetimes(&instance.lifetime),
            interval: instance.interval,
            keep: instance.keep,
            services,
            notes,
        })
    }
}

impl RunArgs {
    /// Checks the command line as a configuration of one service, which has the instance's name.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(self) -> Result<RunConfig, ConfigError> {
        let Self { service, instance, config: _, dry_run: _ } = self;
        let services = vec![(ServiceName::from(&instance.instance), service)];
        Draft { instance, services }.check().map_err(|faults| {
            let first = faults.into_iter().next();
            first.expect("where a check fails there is a fault").error
        })
    }
}

/// Finds what is wrong with several services together, and with their names.
fn between(drafts: &[(ServiceName, ServiceArgs)]) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut fault = |error, service, flag, place| {
        faults.push(Fault { error, at: Spot { service: Some(service), flag, place } });
    };
    let mut claimed: Vec<Publish> = Vec::new();
    let (mut frontends, mut backends) = (0_usize, 0_u64);
    for (position, (name, said)) in drafts.iter().enumerate() {
        if drafts[..position].iter().any(|(other, _)| other == name) {
            fault(ConfigError::DuplicateService { given: name.to_string() }, position, "name", 0);
        }
        let before = frontends;
        frontends += said.count_frontends();
        if frontends > MAX_FRONTENDS {
            // One that has too many by itself is told so by its own check.
            if before <= MAX_FRONTENDS && said.count_frontends() <= MAX_FRONTENDS {
                fault(ConfigError::TooManyFrontends { count: frontends }, position, "publish", 0);
            }
            continue;
        }
        for (place, second) in said.frontends() {
            match claimed.iter().find(|first| first.overlaps(&second)) {
                Some(&first) => fault(ConfigError::DuplicatePublish { first, second }, position, "publish", place),
                None => claimed.push(second),
            }
        }
        let own = said.most_in_all();
        let limit = u64::from(MAX_BACKENDS_IN_ALL);
        if own <= limit && backends <= limit && backends + own > limit {
            let sum = backends + own;
            fault(ConfigError::TooManyInServices { sum }, position, said.flag_of_count(), 0);
        }
        backends += own;
    }
    let known: usize = drafts.iter().map(|(_, said)| said.known_frontends()).sum();
    for (position, (_, said)) in drafts.iter().enumerate() {
        for (place, &StaticBackend { address: backend, .. }) in said.backend.iter().enumerate() {
            let is_it = |publish: &Publish| publish.at == At::One(backend.ip()) && publish.port.get() == backend.port();
            if claimed.iter().any(is_it) {
                fault(ConfigError::BackendIsFrontend { backend }, position, "backend", place);
            }
        }
        // All frontends share the slots.
        let (sum, room) = (said.places(), layout::room(known));
        if frontends <= MAX_FRONTENDS && sum > u64::from(room) {
            fault(ConfigError::WeightsTooGreat { sum, room, frontends: known }, position, "backend", 0);
        }
        let count = if said.scheduler.hashes() { said.most_each() } else { 0 };
        if frontends <= MAX_FRONTENDS && count > u64::from(room) {
            fault(ConfigError::TableTooSmall { count, room, frontends: known }, position, said.flag_of_count(), 0);
        }
    }
    faults
}

impl InstanceArgs {
    fn check(&self) -> Result<(), Fault> {
        let fault = |error, flag, place| Fault { error, at: Spot { service: None, flag, place } };
        if self.complete_checksums && self.hook == Hook::Tc {
            return Err(fault(ConfigError::ChecksumsWithoutXdp, "complete-checksums", 0));
        }
        if let Some((place, given)) = first_double(&self.uplink) {
            return Err(fault(ConfigError::DuplicateUplink { given }, "uplink", place));
        }
        let states: Vec<&str> = self.lifetime.iter().map(|lifetime| lifetime.state.name()).collect();
        match first_double(&states) {
            Some((place, state)) => Err(fault(ConfigError::DuplicateLifetime { state }, "lifetime", place)),
            None => Ok(()),
        }
    }
}

/// What is wrong with a service by itself, with the flag that says so and which of its values.
type Wrong = (ConfigError, &'static str, usize);

impl ServiceArgs {
    fn check(&self, name: ServiceName, notes: &mut Vec<String>) -> Result<Service, Wrong> {
        if self.publish.is_empty() {
            return Err((ConfigError::NoPublish, "", 0));
        }
        if self.count_frontends() > MAX_FRONTENDS {
            return Err((ConfigError::TooManyFrontends { count: self.count_frontends() }, "publish", 0));
        }
        let source = self.source(notes)?;
        let health = self.health_check(notes)?;
        let guard = Guard::new(&self.allow, &self.deny, self.source_rate).map_err(|error| (error, "deny", 0))?;
        let snat = Snat::new(&self.snat).map_err(|(error, place)| (error, "snat", place))?;
        let guard = guard.with_syn_cookies(self.syn_cookies);
        let (frontends, families) = self.completed(&source)?;
        for (place, &address) in self.snat.iter().enumerate().filter(|_| !families.is_empty()) {
            let family = Family::of(address);
            if !families.contains(&family) {
                return Err((ConfigError::SnatWithoutBackend { address, family }, "snat", place));
            }
        }
        Ok(Service {
            name,
            publish: self.frontends().map(|(_, publish)| publish).collect(),
            frontends,
            families,
            guard,
            snat,
            source,
            scheduler: self.scheduler,
            affinity: self.affinity,
            max_connections: self.max_connections,
            slow_start: self.slow_start,
            health,
            health_interval: self.health_interval,
            drain_timeout: self.drain_timeout,
        })
    }

    /// Returns the frontends, each with the place of the value that names it.
    fn frontends(&self) -> impl Iterator<Item = (usize, Publish)> {
        let ranges = self.publish.iter().enumerate();
        ranges.flat_map(|(place, range)| range.frontends().map(move |publish| (place, publish)))
    }

    fn source(&self, notes: &mut Vec<String>) -> Result<Source, Wrong> {
        if self.discover {
            return self.discovery();
        }
        match (&self.image, self.backend.is_empty()) {
            (Some(_), false) => Err((ConfigError::TwoSources, "backend", 0)),
            (None, true) => Err((ConfigError::NoSource, "", 0)),
            (Some(image), true) => self.docker(image, notes).map(Source::Docker),
            (None, false) => self.fixed(),
        }
    }

    fn discovery(&self) -> Result<Source, Wrong> {
        let others = [("image", "--image", self.image.is_some()), ("backend", "--backend", !self.backend.is_empty())];
        if let Some((flag, other, _)) = others.into_iter().find(|(.., given)| *given) {
            return Err((ConfigError::DiscoverNotAlone { other }, flag, 0));
        }
        let mut flags = self.flags_about_containers();
        flags.retain(|(flag, _)| !["max", "network"].contains(flag));
        if let Some(&(first, _)) = flags.first() {
            let flags: Vec<&'static str> = flags.into_iter().map(|(_, dashed)| dashed).collect();
            return Err((ConfigError::NeedsOwnContainers { flags }, first, 0));
        }
        let max = self.max.unwrap_or(DEFAULT_TAKEN);
        if max == 0 {
            return Err((ConfigError::MaxZero, "max", 0));
        }
        if max > MAX_BACKENDS_PER_FRONTEND {
            return Err((ConfigError::TooManyContainers { max }, "max", 0));
        }
        self.check_sum(max).map_err(|error| (error, if self.max.is_some() { "max" } else { "publish" }, 0))?;
        Ok(Source::Discovered(Discovery { max, network: self.network.clone() }))
    }

    fn docker(&self, image: &str, notes: &mut Vec<String>) -> Result<Docker, Wrong> {
        if let Some((place, publish)) = self.frontends().find(|(_, publish)| publish.container_port.is_none()) {
            return Err((ConfigError::ContainerPortMissing { publish }, "publish", place));
        }
        if self.scheduler == Scheduler::Weighted {
            notes.push("--scheduler weighted is round-robin for containers, because all of them have weight 1".into());
        }
        let scaling = self.scaling(notes)?;
        notes.extend(self.note_on_full_containers(&scaling.following));
        Ok(Docker {
            image: image.to_owned(),
            scaling,
            cpus: self.cpus,
            memory: self.memory,
            env: self.env.clone(),
            network: self.network.clone(),
            stop_grace: self.stop_grace.unwrap_or(DEFAULT_STOP_GRACE),
            on_change: self.on_change.map_or(OnChange::Keep, OnChange::from),
        })
    }

    fn scaling(&self, notes: &mut Vec<String>) -> Result<Scaling, Wrong> {
        let max = self.max.unwrap_or(DEFAULT_MAX);
        let min = self.min.unwrap_or(DEFAULT_MIN.min(max));
        if max == 0 {
            return Err((ConfigError::MaxZero, "max", 0));
        }
        if min > max {
            return Err((ConfigError::MinOverMax { min, max, max_given: self.max.is_some() }, "min", 0));
        }
        let warm = self.warm.unwrap_or(0);
        if warm > max {
            return Err((ConfigError::WarmOverMax { warm, max }, "warm", 0));
        }
        if max > MAX_BACKENDS_PER_FRONTEND {
            return Err((ConfigError::TooManyContainers { max }, "max", 0));
        }
        self.check_sum(max).map_err(|error| (error, if self.max.is_some() { "max" } else { "publish" }, 0))?;
        if self.min.is_none() && min < DEFAULT_MIN {
            notes.push(format!("--min is {min}, because --max is"));
        }
        let following = Following::new(&self.metric, self.target_cpu).map_err(|(error, place)| match error {
            ConfigError::CpuTargetTooHigh { is_own: false, .. } => (error, "target-cpu", 0),
            error => (error, "metric", place),
        })?;
        notes.extend(self.note_on_former_law());
        let (up_window, down_window) = default_windows(&following);
        Ok(Scaling {
            min,
            max,
            warm,
            following,
            up_window: self.scale_up_window.unwrap_or(up_window),
            down_window: self.scale_down_window.unwrap_or(down_window),
        })
    }

    /// Tells of what else the settings of scaling may be meant, where no metric is named.
    fn note_on_former_law(&self) -> Option<String> {
        let said = [
            ("--target-cpu", self.target_cpu.is_some()),
            ("--scale-up-window", self.scale_up_window.is_some()),
            ("--scale-down-window", self.scale_down_window.is_some()),
        ];
        let said: Vec<&str> = said.into_iter().filter(|(_, is_said)| *is_said).map(|(flag, _)| flag).collect();
        (self.metric.is_empty() && !said.is_empty()).then(|| {
            format!(
                "{} without --metric: the aim is what the containers use (arrivals and container-cpu), not the load of the \
                 whole host, which is --metric host-cpu",
                said.join(", ")
            )
        })
    }

    /// Tells where containers would be full and nothing ask for more of them.
    fn note_on_full_containers(&self, following: &Following) -> Option<String> {
        // Below one connection for each there is no target.
        let most = self.max_connections.filter(|most| most.get() > 1)?;
        let Following::Demand(targets) = following else { return None };
        let enough = format!("connections={}", (Law::TARGET.share() * f64::from(most.get())).round());
        match targets.connections.map(|count| (count, count * (1.0 + law::RISE_BAND))) {
            None => Some(format!(
                "what is dropped as all containers have --max-connections {most} is no arrival and asks for no more of \
                 them: --metric {enough} would, beside the other metrics"
            )),
            Some((count, asked)) if asked >= f64::from(most.get()) => Some(format!(
                "--metric connections={count} asks for more once containers have more than {asked:.0} each, and at one frontend \
                 --max-connections lets them have {most}: say less, such as {enough}"
            )),
            Some(_) => None,
        }
    }

    fn fixed(&self) -> Result<Source, Wrong> {
        let flags = self.flags_about_containers();
        if let Some(&first) = flags.first() {
            let flags: Vec<&'static str> = flags.into_iter().map(|(_, dashed)| dashed).collect();
            return Err((ConfigError::NeedsImage { flags }, first.0, 0));
        }
        if let Some((place, publish)) = self.frontends().find(|(_, publish)| publish.container_port.is_some()) {
            return Err((ConfigError::ContainerPortUnwanted { publish }, "publish", place));
        }
        let count = self.backend.len();
        match u32::try_from(count) {
            Ok(each) if each <= MAX_BACKENDS_PER_FRONTEND => {
                self.check_sum(each).map_err(|error| (error, "backend", 0))?;
            }
            Ok(_) | Err(_) => return Err((ConfigError::TooManyBackends { count }, "backend", 0)),
        }
        let addresses: Vec<_> = self.backend.iter().map(|backend| backend.address).collect();
        if let Some((place, backend)) = first_double(&addresses) {
            return Err((ConfigError::DuplicateBackend { backend }, "backend", place));
        }
        let weighted = self.backend.iter().position(|backend| backend.weight != Weight::ONE);
        if let Some(place) = weighted.filter(|_| !self.scheduler.weighs()) {
            return Err((ConfigError::WeightsUnused, "backend", place));
        }
        Ok(Source::Static { backends: self.backend.clone() })
    }

    /// Returns the frontends, each of a family of which there are backends, and those families; of containers, the engine has
    /// to be asked for them.
    fn completed(&self, source: &Source) -> Result<(Vec<Publish>, Vec<Family>), Wrong> {
        let backends = match source {
            Source::Docker(_) | Source::Discovered(_) => {
                return Ok((self.frontends().map(|(_, publish)| publish).collect(), Vec::new()));
            }
            Source::Static { backends } => backends,
        };
        let of = |family: &Family| backends.iter().any(|backend| Family::of(backend.address.ip()) == *family);
        let families: Vec<Family> = [Family::V4, Family::V6].into_iter().filter(of).collect();
        let mut frontends = Vec::new();
        for (place, publish) in self.frontends() {
            frontends.extend(publish::of_families(&[publish], &families).map_err(|error| (error, "publish", place))?);
        }
        for (place, &StaticBackend { address: backend, .. }) in backends.iter().enumerate() {
            let family = Family::of(backend.ip());
            if frontends.iter().all(|publish| publish.family() != Some(family)) {
                return Err((ConfigError::BackendWithoutFrontend { backend, family }, "backend", place));
            }
        }
        Ok((frontends, families))
    }

    /// Returns the options given that have a meaning for containers only, without dashes and with them.
    fn flags_about_containers(&self) -> Vec<(&'static str, &'static str)> {
        [
            ("--min", self.min.is_some()),
            ("--max", self.max.is_some()),
            ("--warm", self.warm.is_some()),
            ("--metric", !self.metric.is_empty()),
            ("--target-cpu", self.target_cpu.is_some()),
            ("--scale-up-window", self.scale_up_window.is_some()),
            ("--scale-down-window", self.scale_down_window.is_some()),
            ("--stop-grace", self.stop_grace.is_some()),
            ("--cpus", self.cpus.is_some()),
            ("--memory", self.memory.is_some()),
            ("--env", !self.env.is_empty()),
            ("--network", self.network.is_some()),
            ("--on-change", self.on_change.is_some()),
        ]
        .into_iter()
        .filter_map(|(flag, given)| given.then_some((flag.trim_start_matches('-'), flag)))
        .collect()
    }

    /// Returns how many backends there may be, each counted once for each of its frontends. Of how many families containers
    /// have addresses is known later ([`RunConfig::check_room`]): here it is one.
    fn most_in_all(&self) -> u64 {
        let of = |publish: &Publish| match &self.image {
            Some(_) => u64::from(self.max.unwrap_or(DEFAULT_MAX)),
            None if self.discover => u64::from(self.max.unwrap_or(DEFAULT_TAKEN)),
            None => {
                let is_served = |family: Family| publish.family().is_none_or(|of| of == family);
                self.backend.iter().filter(|backend| is_served(Family::of(backend.address.ip()))).count() as u64
            }
        };
        self.frontends().map(|(_, publish)| of(&publish)).sum()
    }

    /// Returns how many backends the frontend may have that may have the most.
    fn most_each(&self) -> u64 {
        let of =
            |family: Family| self.backend.iter().filter(|backend| Family::of(backend.address.ip()) == family).count();
        let static_ones = |publish: Publish| match publish.family() {
            Some(family) => of(family),
            None => of(Family::V4).max(of(Family::V6)),
        };
        match &self.image {
            Some(_) => u64::from(self.max.unwrap_or(DEFAULT_MAX)),
            None => self.frontends().map(|(_, publish)| static_ones(publish)).max().unwrap_or_default() as u64,
        }
    }

    /// Returns the flag that says how many backends there may be.
    fn flag_of_count(&self) -> &'static str {
        if self.image.is_some() || self.discover { "max" } else { "backend" }
    }

    /// Returns how many slots the weights take at each frontend, where they are counted in slots.
    fn places(&self) -> u64 {
        let weights: Vec<u32> = self.backend.iter().map(|backend| backend.weight.number()).collect();
        if self.scheduler.counts_weights() { layout::places(&weights) } else { 0 }
    }

    fn count_frontends(&self) -> usize {
        self.publish.iter().map(PublishRange::count).sum()
    }

    /// Returns how many frontends there are, as far as that is known: without an address, one for each family that backends
    /// have; of containers, the engine has to be asked for them.
    fn known_frontends(&self) -> usize {
        let families: BTreeSet<Family> = self.backend.iter().map(|backend| Family::of(backend.address.ip())).collect();
        let of = |publish: Publish| if publish.family().is_some() { 1 } else { families.len().max(1) };
        self.frontends().map(|(_, publish)| of(publish)).sum()
    }

    /// Every frontend has its own entry for each backend in the kernel's map.
    fn check_sum(&self, each: u32) -> Result<(), ConfigError> {
        match self.most_in_all() {
            sum if sum <= u64::from(MAX_BACKENDS_IN_ALL) => Ok(()),
            _ => Err(ConfigError::TooManyInAll { each, frontends: self.count_frontends() }),
        }
    }

    fn health_check(&self, notes: &mut Vec<String>) -> Result<HealthCheck, Wrong> {
        let only_udp = self.frontends().all(|(_, publish)| publish.proto == Proto::Udp);
        match &self.health {
            Some(check @ (HealthCheck::Tcp | HealthCheck::Http { .. })) if only_udp => {
                Err((ConfigError::HealthNeedsTcp { check: check.clone() }, "health", 0))
            }
            Some(check) => Ok(check.clone()),
            None if only_udp => {
                notes.push(
                    "--health is none, because every frontend is UDP: a backend counts as healthy while it runs".into(),
                );
                Ok(HealthCheck::None)
            }
            None => Ok(HealthCheck::Tcp),
        }
    }
}

/// Returns how long more, and fewer, have to be wanted where nobody says.
fn default_windows(following: &Following) -> (Duration, Duration) {
    match following {
        Following::HostCpu(_) => HOST_CPU_WINDOWS,
        Following::Demand(_) => DEMAND_WINDOWS,
    }
}

/// Returns the first value that was there before, with its place.
fn first_double<T: Clone + PartialEq>(values: &[T]) -> Option<(usize, T)> {
    let doubled = |(position, value): &(usize, &T)| values[..*position].contains(*value);
    values.iter().enumerate().find(doubled).map(|(position, value)| (position, value.clone()))
}

/// Puts together what was said of lifetimes and the defaults.
fn lifetimes(said: &[Lifetime]) -> Lifetimes {
    said.iter().fold(Lifetimes::DEFAULT, |all, one| all.with(one.state, one.seconds))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::{prelude::prop_assert, proptest};

    use super::*;
    use crate::{
        cli::{Verb, parse_from},
        config::{Cpus, MemorySize},
    };

    /// Parses and checks what follows `lb-user run`.
    fn run(args: &str) -> Result<RunConfig, ConfigError> {
        let words = ["lb-user", "run"].into_iter().chain(args.split_whitespace());
        let verb = parse_from(words).unwrap_or_else(|error| panic!("{args}: {error}")).verb;
        let Verb::Run(run) = verb else { panic!("{args}: {verb:?}") };
        run.check()
    }

    /// Returns the only service of a command line.
    fn service(config: &RunConfig) -> &Service {
        let [service] = config.services.as_slice() else { panic!("{:?}", config.services) };
        service
    }

    fn docker(config: &RunConfig) -> &Docker {
        match &service(config).source {
            Source::Docker(docker) => docker,
            other @ (Source::Static { .. } | Source::Discovered(_)) => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_are_those_of_the_contract() {
        let config = run("--image lb-api --publish 80:5000").expect("a right command line");

        let scaling = &docker(&config).scaling;
        let seconds = Duration::from_secs;
        assert_eq!((scaling.min, scaling.max), (2, 10));
        assert_eq!(scaling.following.told(), "arrivals (70 %) and container-cpu (70 %)");
        assert_eq!((scaling.up_window, scaling.down_window), (seconds(45), seconds(120)));
        let demo = run("--image lb-api --publish 80:5000 --metric host-cpu").expect("a right command line");
        let scaling = &docker(&demo).scaling;
        assert_eq!(scaling.following.told(), "host-cpu (100%)");
        assert_eq!((scaling.up_window, scaling.down_window), (seconds(3), seconds(30)));
        assert_eq!(docker(&config).stop_grace, seconds(10));
        assert_eq!(
            (config.interval, service(&config).health_interval, service(&config).drain_timeout),
            (seconds(1), seconds(2), seconds(30))
        );
        assert_eq!((config.hook, config.max_flows), (Hook::Auto, 1_048_576));
        assert_eq!(config.lifetimes, Lifetimes::DEFAULT);
        let service = service(&config);
        assert_eq!(service.health, HealthCheck::Tcp);
        assert_eq!((service.scheduler, service.affinity, service.slow_start), (Scheduler::RoundRobin, None, None));
        assert_eq!(service.max_connections, None);
        assert_eq!((config.instance.as_str(), service.name.as_str()), ("default", "default"));
        assert!(!config.keep && !config.complete_checksums && config.uplinks.is_empty() && config.notes.is_empty());
    }

    #[test]
    fn backends_know_clients_by_addresses_of_their_families() {
        let with = |rest: &str| run(&format!("--backend 198.18.2.11:80 --publish 80 {rest}"));
        let [one, v6]: [std::net::IpAddr; 2] = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().unwrap());

        let snat = service(&with("--snat 192.0.2.1").unwrap()).snat;
        assert_eq!(snat.addresses().collect::<Vec<_>>(), [one]);
        let both = with("--backend [2001:db8::2]:80 --snat 2001:db8::1 --snat 192.0.2.1").unwrap();
        assert_eq!(service(&both).snat.addresses().collect::<Vec<_>>(), [one, v6]);
        assert_eq!(
            with("--snat 2001:db8::1").unwrap_err(),
            ConfigError::SnatWithoutBackend { address: v6, family: Family::V6 }
        );
        assert_eq!(
            with("--snat 192.0.2.1 --snat 192.0.2.2").unwrap_err(),
            ConfigError::DuplicateSnat { family: Family::V4 }
        );
        // Of which families containers are, the engine tells.
        assert!(run("--image a --publish 80:80 --snat 2001:db8::1").is_ok());
    }

    #[test]
    fn the_help_tells_the_defaults() {
        let help = parse_from(["lb-user", "run", "-h"]).expect_err("the help").to_string();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");

        for default in ["2", "10", "70", "45s", "2m", "30s", "10s", "1s", "2s", "auto", "1048576", "default"] {
            assert!(help.contains(&format!("[default: {default}]")), "{default} in {help}");
        }
    }

    #[test]
    fn what_is_said_arrives() {
        let config =
            run("--image web:1 --publish 80:5000 --publish 192.0.2.1:53:5353/udp --instance web --min 3 --max 3 \
             --metric container-cpu --metric connections=50 --target-cpu 80% --interval 500ms --scale-up-window 0s \
             --scale-down-window 2m --uplink eth0 --uplink eth1 \
             --hook xdp --tc-attach clsact --health http:/healthz --health-interval 1s --drain-timeout 5s --cpus 0.5 \
             --memory 64m --env A=1 --env B=2 --network web --keep --complete-checksums --max-flows 4096 \
             --stop-grace 1s --scheduler least-conn --affinity 10m --slow-start 30s --max-connections 500")
            .expect("a right command line");

        let names: Vec<String> = config.frontends().map(|frontend| frontend.name()).collect();
        assert_eq!(names, ["80/tcp", "192.0.2.1:53/udp"]);
        let env: Vec<String> = docker(&config).env.iter().map(ToString::to_string).collect();
        assert_eq!(env, ["A=1", "B=2"]);
        assert_eq!(docker(&config).memory.map(MemorySize::bytes), Some(64 << 20));
        assert_eq!(docker(&config).cpus.map(Cpus::count), Some(0.5));
        assert_eq!(docker(&config).network.as_deref(), Some("web"));
        assert_eq!(config.uplinks, ["eth0", "eth1"]);
        let service = service(&config);
        assert_eq!(service.health, HealthCheck::Http { path: "/healthz".into() });
        assert_eq!(service.max_connections.map(NonZeroU32::get), Some(500));
        let (affinity, slow_start) = (Duration::from_secs(600), Duration::from_secs(30));
        assert_eq!(
            (service.scheduler, service.affinity, service.slow_start),
            (Scheduler::LeastConn, Some(affinity), Some(slow_start))
        );
        assert!(config.keep && config.complete_checksums && config.notes.is_empty());
    }

    #[test]
    fn a_range_of_ports_is_as_many_frontends() {
        let config = run("--image a --publish 8000-8002:5000-5002 --publish 53:53/udp").expect("a right command line");

        let names: Vec<String> = config.frontends().map(|frontend| frontend.name()).collect();
        assert_eq!(names, ["8000/tcp", "8001/tcp", "8002/tcp", "53/udp"]);
        assert_eq!(service(&config).frontends[2].container_port.map(u16::from), Some(5002));
        assert_eq!(
            run("--image a --publish 1-65535:80"),
            Err(ConfigError::TooManyFrontends { count: 65535 }),
            "and no list is made of them"
        );
        assert!(run("--image a --publish 8000-8010:80 --publish 8010:81").is_err());
    }

    #[test]
    fn static_backends_need_no_containers() {
        let config =
            run("--backend 10.0.0.2:5000 --backend 10.0.0.3:5001 --publish 80 --interval 2s --drain-timeout 1s \
             --health none --keep")
            .expect("a right command line");

        let backends = ["10.0.0.2:5000", "10.0.0.3:5001"].map(|address| {
            let address = address.parse().expect(address);
            StaticBackend { address, weight: Weight::ONE }
        });
        assert_eq!(service(&config).source, Source::Static { backends: backends.into() });
        assert_eq!(service(&config).frontends[0].container_port, None);
    }

    #[test]
    fn containers_of_others_are_taken_by_the_service_that_says_so() {
        let discovery =
            |args: &str| match service(&run(args).unwrap_or_else(|error| panic!("{args}: {error}"))).source.clone() {
                Source::Discovered(discovery) => (discovery.max, discovery.network),
                other => panic!("{args}: {other:?}"),
            };
        assert_eq!(discovery("--discover --publish 80"), (64, None));
        assert_eq!(
            discovery("--discover --publish 80:5000 --publish 81 --max 9 --network lan"),
            (9, Some("lan".into()))
        );

        let told = |args: &str| run(args).expect_err(args).to_string();
        assert!(
            told("--discover --publish 80 --image a")
                .starts_with("--discover takes containers that others start, and --image")
        );
        assert!(told("--discover --publish 80 --backend 10.0.0.2:80").contains(", and --backend beside them"));
        let flags = "--min 1 --max 2 --metric arrivals --stop-grace 1s --cpus 1 --env A=1";
        assert!(told(&format!("--discover --publish 80 {flags}")).starts_with(
            "--min, --metric, --stop-grace, --cpus, --env would have no effect, containers that others start"
        ));
        assert_eq!(run("--discover --publish 80 --max 0"), Err(ConfigError::MaxZero));
        assert_eq!(run("--discover --publish 80 --max 1025"), Err(ConfigError::TooManyContainers { max: 1025 }));
        assert_eq!(
            run("--discover --publish 8000-8032"),
            Err(ConfigError::TooManyInAll { each: 64, frontends: 33 }),
            "each counts at each frontend"
        );
    }

    #[test]
    fn frontends_are_of_the_families_of_the_backends() {
        let names = |args: &str| {
            let config = run(args).unwrap_or_else(|error| panic!("{args}: {error}"));
            config.frontends().map(|frontend| frontend.name()).collect::<Vec<_>>()
        };

        assert_eq!(names("--publish 80 --backend 10.0.0.2:80"), ["80/tcp"]);
        assert_eq!(names("--publish 80 --backend [2001:db8::2]:80"), ["[::]:80/tcp"]);
        assert_eq!(names("--publish 80 --backend 10.0.0.2:80 --backend [2001:db8::2]:80"), ["80/tcp", "[::]:80/tcp"]);
        assert_eq!(
            names("--publish [2001:db8::1]:80 --publish 192.0.2.1:80 --backend 10.0.0.2:80 --backend [2001:db8::2]:80"),
            ["[2001:db8::1]:80/tcp", "192.0.2.1:80/tcp"]
        );
    }

    #[test]
    fn what_was_not_asked_for_is_noted() {
        let udp = run("--image dns --publish 53:5353/udp").expect("a right command line");
        assert_eq!(service(&udp).health, HealthCheck::None);
        assert_eq!(
            udp.notes,
            ["--health is none, because every frontend is UDP: a backend counts as healthy while it runs"]
        );

        let both = run("--image dns --publish 53:5353/udp --publish 53:5353/tcp").expect("a right command line");
        assert_eq!((&service(&both).health, &both.notes), (&HealthCheck::Tcp, &vec![]));

        let one = run("--image lb-api --publish 80:5000 --max 1").expect("a right command line");
        assert_eq!((docker(&one).scaling.min, docker(&one).scaling.max), (1, 1));
        assert_eq!(one.notes, ["--min is 1, because --max is"]);

        let weighted = run("--image lb-api --publish 80:5000 --scheduler weighted").expect("a right command line");
        assert_eq!(
            weighted.notes,
            ["--scheduler weighted is round-robin for containers, because all of them have weight 1"]
        );

        let limited = |args: &str| {
            let full = format!("--image lb-api --publish 80:5000 --max-connections 500 {args}");
            run(&full).unwrap_or_else(|error| panic!("{args}: {error}")).notes
        };
        let silent = "what is dropped as all containers have --max-connections 500 is no arrival and asks for no more of \
                      them: --metric connections=350 would, beside the other metrics";
        let late = "--metric connections=460 asks for more once containers have more than 506 each, and at one frontend \
                    --max-connections lets them have 500: say less, such as connections=350";
        assert_eq!(limited(""), [silent]);
        assert_eq!(limited("--metric connections=460"), [late]);
        let former = |args: &str| run(&format!("--image a --publish 80:80 {args}")).expect("right").notes;
        assert_eq!(
            former("--target-cpu 60 --scale-up-window 3s"),
            ["--target-cpu, --scale-up-window without --metric: the aim is what the containers use (arrivals and \
              container-cpu), not the load of the whole host, which is --metric host-cpu"]
        );
        assert!(former("--target-cpu 60 --metric arrivals").is_empty() && former("--min 1").is_empty());
        assert!(limited("--metric connections=450").is_empty() && limited("--metric host-cpu").is_empty());
    }

    #[test]
    fn a_share_of_the_host_that_is_no_measure_of_a_container_is_told() {
        let note = |processors: usize, args: &str| {
            docker(&run(&format!("--image a --publish 80:80 {args}")).expect("right")).note_on_share(processors)
        };

        let many = note(32, "").expect("32 of 10 are more than one thread can use");
        assert!(
            many.starts_with(
                "without --cpus, each container is taken to be able to use 3.20 processors, 32 / --max 10"
            )
        );
        assert!(
            many.ends_with("a program of one thread never gets there, and nothing asks for more of it; give --cpus")
        );
        let few = note(2, "").expect("2 of 10 are little");
        assert!(few.contains("0.20 processors") && few.ends_with("give --cpus, or a lower --max"), "{few}");
        for (processors, args) in [
            (12, ""),
            (3, ""),
            (32, "--cpus 1"),
            (2, "--cpus 2"),
            (32, "--metric host-cpu"),
            (2, "--metric connections=9"),
        ] {
            assert_eq!(note(processors, args), None, "{processors} {args}");
        }
    }

    #[test]
    fn contradictions_are_told() {
        let rows = [
            ("--image a", "what clients connect to is not said: give --publish PORT:CONTAINER_PORT"),
            (
                "--publish 80:5000",
                "where the backends are is not said: give --image IMAGE for containers, or --backend",
            ),
            ("--publish 80 --image a --backend 10.0.0.2:80", "--image and --backend exclude each other"),
            (
                "--publish 80 --image a",
                "publish 80/tcp does not say on which port the containers listen: write 80:CONT",
            ),
            (
                "--publish 80:5000 --backend 10.0.0.2:80",
                "publish 80:5000/tcp has a container port, but the backends given by --backend bring their own: write \
                 80/tcp and",
            ),
            (
                "--image a --publish 80:5000 --publish 80:5001",
                "publish 80:5001/tcp claims connections that 80:5000/tcp claims: give one of them another port",
            ),
            ("--image a --publish 80:5000 --publish 192.0.2.1:80:5000", "publish 192.0.2.1:80:5000/tcp claims"),
            (
                "--publish [2001:db8::1]:80 --backend 10.0.0.2:80",
                "publish [2001:db8::1]:80/tcp is for clients of IPv6, and no backend has an address of IPv6: give one,",
            ),
            (
                "--publish 192.0.2.1:80 --backend 10.0.0.2:80 --backend [2001:db8::2]:80",
                "backend [2001:db8::2]:80 has an address of IPv6, and every frontend is for the other: publish one",
            ),
            ("--publish [2001:db8::1]:80 --backend [2001:db8::1]:80", "backend [2001:db8::1]:80 is a frontend itself"),
            ("--image a --publish 80:5000 --max 0", "--max 0 would leave nobody to answer: at least 1"),
            ("--image a --publish 80:5000 --max 3 --warm 4", "--warm 4 exceeds --max 3"),
            ("--image a --publish 80:5000 --min 5 --max 4", "--min 5 exceeds --max 4: raise --max or lower --min"),
            ("--image a --publish 80:5000 --min 11", "--min 11 exceeds --max 10 (the default): raise --max or lower"),
            ("--image a --publish 80:5000 --max 1025", "--max 1025 is too many: at most 1024 containers"),
            (
                "--image a --publish 80:5000 --publish 81:5001 --publish 82:5002 --max 1000",
                "1000 backends for each of 3 frontends are too many: at most 2048 in all",
            ),
            (
                "--backend 10.0.0.2:80 --publish 80 --min 2 --target-cpu 100 --env A=1",
                "--min, --target-cpu, --env would have no effect, the backends given by --backend are not started",
            ),
            ("--image a --publish 80:5000 --target-cpu 100", "arrivals at 100% leaves no room to tell full containers"),
            ("--image a --publish 80:5000 --metric latency", "latency and pressure tell that there are too few, never"),
            ("--image a --publish 80:5000 --metric arrivals --metric host-cpu", "host-cpu is a law of its own: leave"),
            ("--backend 10.0.0.2:80 --publish 80 --metric arrivals", "--metric would have no effect"),
            ("--backend 10.0.0.2:80 --publish 80 --max 10", "--max would have no effect"),
            ("--backend 10.0.0.2:80 --publish 80 --scale-up-window 3s", "--scale-up-window would have no effect"),
            ("--backend 10.0.0.2:80 --publish 80 --scale-down-window 3s", "--scale-down-window would have no effect"),
            ("--backend 10.0.0.2:80 --publish 80 --stop-grace 3s", "--stop-grace would have no effect"),
            ("--backend 10.0.0.2:80 --publish 80 --cpus 1", "--cpus would have no effect"),
            ("--backend 10.0.0.2:80 --publish 80 --memory 64m", "--memory would have no effect"),
            ("--backend 10.0.0.2:80 --publish 80 --network web", "--network would have no effect"),
            ("--backend 10.0.0.2:80 --backend 10.0.0.2:80 --publish 80", "backend 10.0.0.2:80 is given twice"),
            (
                "--backend 10.0.0.2:80 --backend 10.0.0.2:80=2 --publish 80 --scheduler weighted",
                "backend 10.0.0.2:80 is given twice",
            ),
            (
                "--backend 10.0.0.2:80=2 --publish 80",
                "weights have no effect with --scheduler round-robin: leave them out, or use --scheduler weighted",
            ),
            ("--backend 192.0.2.1:80 --publish 192.0.2.1:80", "backend 192.0.2.1:80 is a frontend itself"),
            (
                "--image a --publish 53:53/udp --health http:/",
                "health check http:/ needs a TCP port, and every frontend",
            ),
            (
                "--image a --publish 53:53/udp --health tcp",
                "health check tcp needs a TCP port, and every frontend is UDP",
            ),
            ("--image a --publish 80:5000 --uplink a --uplink a", "uplink a is given twice: leave one out"),
            (
                "--image a --publish 80:5000 --hook tc --complete-checksums",
                "--complete-checksums speaks of XDP and has no effect with --hook tc",
            ),
        ];
        for (args, message) in rows {
            let error = run(args).expect_err(args).to_string();

            assert!(error.starts_with(message), "{args} gives {error}");
        }
    }

    #[test]
    fn numbers_of_frontends_and_backends_are_limited() {
        let frontends = |count: u16| (1..=count).map(|port| format!("--publish {port}:5000 ")).collect::<String>();
        let backends = |count: u16| (1..=count).map(|port| format!("--backend 10.0.0.2:{port} ")).collect::<String>();

        assert!(run(&format!("--image a {}", frontends(64))).is_ok());
        assert_eq!(run(&format!("--image a {}", frontends(65))), Err(ConfigError::TooManyFrontends { count: 65 }));
        assert!(run(&format!("--publish 80 {}", backends(1024))).is_ok());
        assert_eq!(run(&format!("--publish 80 {}", backends(1025))), Err(ConfigError::TooManyBackends { count: 1025 }));
        assert_eq!(
            run(&format!("--publish 80 --publish 81 --publish 82 {}", backends(1024))),
            Err(ConfigError::TooManyInAll { each: 1024, frontends: 3 })
        );
    }

    #[test]
    fn a_backend_counts_for_the_frontends_of_its_family() {
        let backends: String =
            (1..=512).map(|port| format!("--backend 10.0.0.2:{port} --backend [2001:db8::2]:{port} ")).collect();
        // Each has 512 of one family, or 1024 of both.
        let four = "--publish 0.0.0.0:80 --publish [::]:80 --publish 0.0.0.0:81 --publish [::]:81";

        assert!(run(&format!("{four} {backends}")).is_ok());
        assert!(run(&format!("{four} --publish [::]:82 {backends}")).is_err());
        assert!(run(&format!("--publish 80 --publish 81 {backends}")).is_ok());
        assert!(run(&format!("--publish 80 --publish 81 --publish [::]:82 {backends}")).is_err());

        let mut config = run("--image a --publish 80:5000 --publish 81:5000 --max 1024").expect("there is room");
        config.services[0].complete(&[Family::V4, Family::V6]).expect("frontends of both");
        let (_, error) = config.check_room().expect_err("it is twice as many");
        assert!(error.to_string().contains("4096 backends") && error.to_string().contains("0.0.0.0"), "{error}");
    }

    #[test]
    fn a_frontend_of_both_families_is_told_apart_from_one_of_either() {
        for (args, told) in [
            ("--publish 80:1 --publish [::]:80:2", "write 0.0.0.0:80:1/tcp for IPv4 alone, or give one"),
            ("--publish 192.0.2.1:80:1 --publish 80:2", "write [::]:80:2/tcp for IPv6 alone, or give one"),
            ("--publish 80:1 --publish 80:2", "claims: give one"),
        ] {
            let error = run(&format!("--image a {args}")).expect_err(args).to_string();

            assert!(error.contains(told), "{args} gives {error}");
        }
    }

    #[test]
    fn the_sum_of_weights_is_limited_where_it_is_counted_in_slots() {
        let backends = |weight: u16| {
            let others = (2..=100).map(|port| format!("--backend 10.0.0.2:{port}={weight} ")).collect::<String>();
            format!("--publish 80 --backend 10.0.0.2:1=1 {others}")
        };

        assert!(run(&format!("{} --scheduler weighted", backends(165))).is_ok());
        assert!(run(&format!("{} --scheduler least-conn", backends(166))).is_ok());
        assert_eq!(
            run(&format!("{} --scheduler random-two", backends(166))),
            Err(ConfigError::WeightsTooGreat { sum: 16_435, room: 16_381, frontends: 1 })
        );
    }

    #[test]
    fn all_services_share_the_slots() {
        let service = |name: &str, args: &str| {
            let words = ["lb-user", "run"].into_iter().chain(args.split_whitespace());
            let Verb::Run(run) = parse_from(words).unwrap_or_else(|error| panic!("{args}: {error}")).verb else {
                panic!("{args} is to be run");
            };
            (name.parse::<ServiceName>().expect(name), run.service, run.instance)
        };
        let backends =
            (1..=64).map(|port| format!("--backend 10.0.0.2:{port}={} ", 1 + port % 2 * 255)).collect::<String>();
        let (heavy, weighted, instance) = service("heavy", &format!("--publish 80 --scheduler weighted {backends}"));
        let check = |ports: &str| {
            let (web, plain, _) = service("web", &format!("--image a --publish {ports}:5000"));
            let services = vec![(web, plain), (heavy.clone(), weighted.clone())];
            Draft { instance: instance.clone(), services }.check().map(|config| config.services.len())
        };

        assert_eq!(check("81-83"), Ok(2));
        let error = ConfigError::WeightsTooGreat { sum: 8_224, room: 4_093, frontends: 5 };
        assert_eq!(
            check("81-84"),
            Err(vec![Fault { error, at: Spot { service: Some(1), flag: "backend", place: 0 } }])
        );
    }

    #[test]
    fn a_table_of_hashes_holds_every_backend() {
        // Beyond 16 frontends, tables have 1021 places.
        let check = |ports: &str, rest: &str| run(&format!("--publish {ports} --scheduler maglev {rest}")).map(|_| ());
        let too_small = |count| Err(ConfigError::TableTooSmall { count, room: 1021, frontends: 17 });
        let others = (81..97).map(|port| format!("--publish [::]:{port} ")).collect::<String>();
        let of = |address: &str, count: u16| {
            (1..=count).map(|port| format!("--backend {address}:{port} ")).collect::<String>()
        };

        let full = format!("{others}{}{}", of("10.0.0.2", 1022), of("[2001:db8::2]", 1));
        assert_eq!(check("0.0.0.0:80", &full), too_small(1022));
        assert_eq!(check("0.0.0.0:80", &full.replace("--publish [::]:96 ", "")), Ok(()));
        let fits = format!("{others}{}{}", of("10.0.0.2", 1021), of("[2001:db8::2]", 1));
        assert_eq!(check("0.0.0.0:80", &fits), Ok(()));
        let least = run(&format!("--publish 0.0.0.0:80 --scheduler least-conn {full}"));
        assert!(least.is_ok(), "it has no table");
    }

    #[test]
    fn bad_health_checks_are_told_by_the_command_line() {
        for (check, message) in
            [("http:healthz", "has to begin with /"), ("http", "unknown health check"), ("ping", "tcp")]
        {
            let args = ["lb-user", "run", "--image", "a", "--publish", "80:5000", "--health", check];
            let error = parse_from(args).expect_err(check).to_string();

            assert!(error.contains(message), "{check} gives {error}");
        }
    }

    proptest! {
        #[test]
        fn any_command_line_is_run_or_refused(words in proptest::collection::vec("(--[a-z-]{3,12})|([0-9a-z.:/%=-]{0,12})", 0..8)) {
            let fixed = ["lb-user", "run", "--image", "a", "--publish", "80:5000"].map(String::from);
            let Ok(cli) = parse_from(fixed.into_iter().chain(words)) else { return Ok(()) };
            if let Verb::Run(args) = cli.verb && let Ok(config) = args.check() {
                prop_assert!(docker(&config).scaling.min <= docker(&config).scaling.max);
            }
        }
    }
}
