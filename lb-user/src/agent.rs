//! The agent: one loop that tells the controller what happens and when, and performs what it commands.
//!
//! ```text
//! interval  ─▶ load sample, sign of life ┐
//! provider  ─▶ containers come and go    │   control::Controller   ┌─▶ provider: start, stop, remove
//! sweeper   ─▶ connections per backend   ├─▶ (event, now) ─▶ … ────┼─▶ health + links: probe
//! probes, starts, stops ─▶ answers       │                         └─▶ datapath: publish
//! signals, the controller's deadline     ┘
//! ```
//!
//! Nothing here decides. Slow work (engine calls, probes, sweeps) runs beside the loop and comes back as an event, so
//! that a death reaches the maps without waiting for anything.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddrV4},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep_until},
};

mod network;
mod perform;
mod sweeper;

use crate::{
    config::{RunConfig, Source},
    control::{
        Command, ContainerId, Controller, Event, Scaling, Settings, Sighting, Timestamp,
        policy::{Bounds, Law, TargetLoad},
    },
    datapath::{
        Datapath, DatapathError, Opening,
        links::Links,
        loader,
        publish::Member,
        report::{Report, Way},
    },
    metrics::{LoadSource as _, container_cpu::ContainerCpu, host_cpu::HostCpu},
    provider::{
        Provider, ProviderEvent,
        docker::{DockerProvider, DockerSettings},
        fixed::FixedProvider,
    },
};
use network::Network;
use perform::Places;
use sweeper::Sweeper;

/// How often interfaces and addresses are compared with what is attached.
const NETWORK_CHECK: Duration = Duration::from_secs(5);
/// How often the user is told what is still being drained.
const DRAIN_NOTICE: Duration = Duration::from_secs(5);
/// Why the agent ends although nobody asked it to.
const WATCH_ENDED: &str = "the watch of the containers has ended by itself: this is a fault of lb-user";
/// What the engine may add to the grace of a stop, with its removal.
const ENGINE_DELAY: Duration = Duration::from_secs(250);
/// The least time between two ticks of the controller, lest a mistake in a deadline spins.
const LEAST_TICK: Duration = Duration::from_millis(5);
/// The least time between two reports: a thousand backends are probed hundreds of times a second.
const LEAST_REPORT: Duration = Duration::from_millis(100);

/// Runs an instance until it is asked to end.
///
/// # Errors
/// What keeps it from starting; a new instance leaves nothing behind then, and one that was taken over goes on serving.
pub async fn run(config: RunConfig) -> Result<()> {
    for note in &config.notes {
        tracing::info!("{note}");
    }
    let signals = Signals::watch()?;
    let host_cpu = HostCpu::new()?;
    let (provider, stop_grace) = connect(&config).await?;
    let links = Arc::new(Links::open()?);
    let network = Network::find(&config, &links).await?;
    let opening =
        Opening { instance: config.instance.as_str(), max_flows: config.max_flows, tc_attach: config.tc_attach };
    let (mut datapath, former) = Datapath::open(&opening)?;
    let sweeper = Sweeper::start(config.instance.as_str());
    let sweeper = match sweeper.and_then(|sweeper| Ok(network.attach(&mut datapath, &config).map(|()| sweeper)?)) {
        Ok(sweeper) => sweeper,
        Err(error) => {
            if former.is_none() {
                datapath.remove().context("clean up")?;
            }
            return Err(error);
        }
    };

    let mut settings = settings(&config, stop_grace);
    let mut places = Places::default();
    let now = Instant::now();
    // The time of the controller goes on where that of a former agent ended.
    let mut started = now;
    let mut started_unix = unix_now();
    if let Some(former) = former {
        started = now.checked_sub(former.age).unwrap_or(now);
        started_unix = former.inheritance.started_unix.unwrap_or(started_unix);
        adopt(&mut settings, &mut places, former, &datapath, &config);
    }
    network.announce(&datapath);
    let (answers, inbox) = mpsc::unbounded_channel();
    let agent = Agent {
        controller: Controller::new(settings),
        sweeper,
        host_cpu,
        container_cpu: ContainerCpu::default(),
        started_unix,
        agent_started_unix: unix_now(),
        started,
        reported: now,
        is_report_old: true,
        is_looking: false,
        problems: BTreeMap::new(),
        config,
        stop_grace,
        provider,
        links,
        network,
        datapath,
        places,
        answers,
    };
    agent.serve(inbox, signals).await
}

/// Everything that the loop works with.
struct Agent {
    config: RunConfig,
    controller: Controller,
    provider: Arc<dyn Provider>,
    links: Arc<Links>,
    network: Network,
    datapath: Datapath,
    sweeper: Sweeper,
    host_cpu: HostCpu,
    container_cpu: ContainerCpu,
    places: Places,
    answers: mpsc::UnboundedSender<Answer>,
    stop_grace: Duration,
    /// From when the controller's time counts: the instance's first start.
    started: Instant,
    started_unix: u64,
    agent_started_unix: u64,
    /// When the last report was written.
    reported: Instant,
    /// Whether anything happened since.
    is_report_old: bool,
    /// Whether a look at the interfaces is under way.
    is_looking: bool,
    /// What the agent itself could not do, by what it was about.
    problems: BTreeMap<&'static str, String>,
}

/// What comes back from work beside the loop.
enum Answer {
    /// Something for the controller.
    Event(Event),
    /// A probe's result, with the way if it was looked for.
    Probed { id: ContainerId, outcome: Result<Option<Way>, String> },
    /// The first process of a container.
    Process { id: ContainerId, pid: u32 },
    /// The interfaces and addresses as they are.
    Looked(Result<Network>),
}

/// The signals that end the agent.
struct Signals {
    interrupts: Signal,
    terminations: Signal,
    /// None if hangups were ignored when the agent was started, as `nohup` does.
    hangups: Option<Signal>,
}

impl Signals {
    fn watch() -> Result<Self> {
        Ok(Self {
            interrupts: signal(SignalKind::interrupt()).context("watch SIGINT")?,
            terminations: signal(SignalKind::terminate()).context("watch SIGTERM")?,
            hangups: if is_ignored(libc::SIGHUP) {
                None
            } else {
                Some(signal(SignalKind::hangup()).context("watch SIGHUP")?)
            },
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupts.recv() => {}
            _ = self.terminations.recv() => {}
            Some(_) = async { self.hangups.as_mut()?.recv().await } => {}
        }
    }
}

/// Returns whether this process ignores a signal, by `/proc/self/status`, proc(5).
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignored_in(&status).is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

fn ignored_in(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

impl Agent {
    async fn serve(mut self, mut inbox: mpsc::UnboundedReceiver<Answer>, mut signals: Signals) -> Result<()> {
        let mut provider_events = self.provider.events();
        let mut ticks = interval(self.config.interval);
        let mut network_checks = interval(NETWORK_CHECK);
        let mut notices = interval(DRAIN_NOTICE);
        for timer in [&mut ticks, &mut network_checks, &mut notices] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        let mut asked = 0_u32;
        self.report();
        loop {
            let deadline = self.deadline();
            let report_due = self.report_due();
            let events = tokio::select! {
                biased;
                event = provider_events.recv() => vec![self.on_provider(event.context(WATCH_ENDED)?)],
                Some(answer) = inbox.recv() => self.on_answer(answer),
                swept = self.sweeper.next() => self.on_sweep(swept?),
                () = signals.next() => vec![stop(&mut asked)],
                _ = ticks.tick() => self.on_tick(),
                _ = network_checks.tick() => { self.look_at_network(); Vec::new() }
                _ = notices.tick(), if asked > 0 => { self.tell_drain(); Vec::new() }
                () = sleep_until(deadline.into()) => vec![Event::Tick],
                () = sleep_until(report_due.into()) => Vec::new(),
            };
            self.is_report_old |= !events.is_empty();
            if self.handle_all(events) {
                return self.finish();
            }
            if self.report_due() <= Instant::now() {
                self.report();
            }
        }
    }

    fn on_tick(&mut self) -> Vec<Event> {
        self.sweeper.request(self.now(), self.datapath.retiring());
        self.container_cpu.sample();
        match self.host_cpu.sample() {
            Ok(load) => load.map(Event::LoadSampled).into_iter().collect(),
            Err(error) => vec![Event::LoadUnavailable { reason: error.to_string() }],
        }
    }

    /// Tells the controller what has happened, and performs what it commands, also about what comes of that at once.
    /// Returns whether all is done.
    fn handle_all(&mut self, events: Vec<Event>) -> bool {
        let mut events = VecDeque::from(events);
        let mut commands = VecDeque::new();
        loop {
            // Commands first: what they lead to may depend on each other's order.
            if let Some(command) = commands.pop_front() {
                if command == Command::Finish {
                    return true;
                }
                let answers = self.perform(command);
                for answer in answers {
                    commands.extend(self.controller.handle(answer, self.now()));
                    self.tell_news();
                }
            } else if let Some(event) = events.pop_front() {
                commands.extend(self.controller.handle(event, self.now()));
                self.tell_news();
            } else {
                return false;
            }
        }
    }

    fn on_provider(&mut self, event: ProviderEvent) -> Event {
        match event {
            ProviderEvent::Seen(sighting) => {
                self.places.doubt(&sighting.id);
                self.place(&sighting);
                Event::BackendSeen(sighting)
            }
            ProviderEvent::Resynced(sightings) => {
                self.places.keep_only(&sightings.iter().map(|sighting| &sighting.id).collect());
                for sighting in &sightings {
                    self.place(sighting);
                }
                Event::Resynced(sightings)
            }
            ProviderEvent::Gone { id, cause } => Event::BackendGone { id, cause },
            ProviderEvent::Lost { error } => {
                // Whatever happens until it is back is not seen.
                self.places.doubt_all();
                Event::ProviderLost { error: chain(&error) }
            }
            ProviderEvent::Back => Event::ProviderBack,
        }
    }

    fn place(&mut self, sighting: &Sighting) {
        if let Some(address) = sighting.address {
            self.places.located(&sighting.id, address);
        }
        if sighting.running && !self.container_cpu.follows(&sighting.id) {
            let (provider, id, answers) = (self.provider.clone(), sighting.id.clone(), self.answers.clone());
            tokio::spawn(async move {
                if let Some(pid) = provider.process(&id).await {
                    let _nobody_listens = answers.send(Answer::Process { id, pid });
                }
            });
        }
    }

    fn on_answer(&mut self, answer: Answer) -> Vec<Event> {
        match answer {
            Answer::Event(event) => vec![event],
            Answer::Probed { id, outcome } => {
                let found = outcome.as_ref().ok().and_then(Clone::clone);
                let has_moved = found.is_some_and(|way| self.places.reached(&id, way));
                let moved = has_moved.then(|| Event::WayChanged { id: id.clone() });
                let probed = Event::BackendProbed { id, outcome: outcome.map(drop) };
                moved.into_iter().chain([probed]).collect()
            }
            Answer::Process { id, pid } => {
                self.container_cpu.follow(id, pid);
                Vec::new()
            }
            Answer::Looked(network) => {
                self.is_looking = false;
                self.is_report_old = true;
                self.on_network(network)
            }
        }
    }

    fn on_sweep(&mut self, swept: sweeper::Swept) -> Vec<Event> {
        let outcome = swept.outcome.and_then(|census| self.datapath.retire(&swept.retiring).map(|()| census));
        let census = match outcome {
            Ok(census) => census,
            Err(error) => {
                let error = format!("sweep the flow tables: {}", chain(&error));
                if self.problems.insert("sweep", error.clone()).is_none() {
                    tracing::error!("{error}; tried again in a moment");
                }
                return Vec::new();
            }
        };
        self.problems.remove("sweep");
        let mut flows: BTreeMap<ContainerId, u64> = BTreeMap::new();
        for (&(id, generation), count) in &census.active {
            if let Some(container) = self.datapath.registry.container(id, generation) {
                *flows.entry(container.clone()).or_default() += count;
            }
        }
        vec![Event::Swept { began: swept.began, flows }]
    }

    fn deadline(&self) -> Instant {
        let floor = self.started + self.now().elapsed() + LEAST_TICK;
        let idle = floor + Duration::from_secs(60);
        self.controller.deadline().map_or(idle, |at| (self.started + at.elapsed()).clamp(floor, idle))
    }

    /// Returns when the next report is due: as a sign of life, or soon after something has happened.
    fn report_due(&self) -> Instant {
        self.reported + if self.is_report_old { LEAST_REPORT } else { self.config.interval }
    }

    fn now(&self) -> Timestamp {
        Timestamp::new(self.started.elapsed())
    }

    /// Writes the sign of life and what `status` shows.
    fn report(&mut self) {
        (self.reported, self.is_report_old) = (Instant::now(), false);
        let report = Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_unix: self.started_unix,
            agent_started_unix: self.agent_started_unix,
            age_ms: self.now().elapsed().as_millis() as u64,
            control: self.controller.snapshot(self.now()),
            target_cpu_percent: match &self.config.source {
                Source::Docker(docker) => Some(docker.scaling.target_cpu.percent()),
                Source::Static { .. } => None,
            },
            frontends: self.datapath.registry.frontends(),
            backends: self.datapath.registry.backends().cloned().collect(),
            cpu_percent: self.container_cpu.percent_of_host(),
            doors: self.datapath.doors(),
            problems: self.network.problems().iter().chain(self.problems.values()).cloned().collect(),
        };
        if let Err(error) = self.datapath.write_report(&report, self.config.interval) {
            tracing::error!(error = chain(&error), "write the report");
        }
    }

    fn tell_news(&mut self) {
        for decision in self.controller.take_news() {
            let (kind, from, to) = (decision.kind, decision.from, decision.to);
            if from == to {
                tracing::info!("{kind}: {}", decision.reason);
            } else {
                tracing::info!("{kind} {from} -> {to}: {}", decision.reason);
            }
        }
    }

    fn tell_drain(&self) {
        let report = self.controller.snapshot(self.now());
        let flows: u64 = report.backends.iter().map(|backend| backend.flows).sum();
        tracing::info!("ending: {} backends left, {flows} connections; Ctrl-C again cuts them", report.backends.len());
    }

    fn finish(mut self) -> Result<()> {
        // Whoever looks, or takes over, sees how it ended.
        self.report();
        let Self { config, datapath, sweeper, .. } = self;
        drop(sweeper);
        if config.keep {
            tracing::info!("the kernel goes on balancing; `lb-user detach` removes everything");
            return Ok(());
        }
        datapath.remove().context("remove hooks and maps")?;
        tracing::info!("everything is removed");
        Ok(())
    }
}

fn stop(asked: &mut u32) -> Event {
    *asked += 1;
    if *asked == 1 { Event::StopRequested } else { Event::StopForced }
}

/// Connects to what backends come from; returns also the grace of a stop.
async fn connect(config: &RunConfig) -> Result<(Arc<dyn Provider>, Duration)> {
    match &config.source {
        Source::Static { backends } => {
            let backends: Vec<_> = backends.iter().map(|backend| backend.address.into()).collect();
            Ok((Arc::new(FixedProvider::new(&backends)), Duration::ZERO))
        }
        Source::Docker(docker) => {
            if !nix::unistd::Uid::effective().is_root() {
                return Err(DatapathError::NotRoot.into());
            }
            let provider = DockerProvider::connect(DockerSettings {
                instance: config.instance.as_str().to_owned(),
                image: docker.image.clone(),
                network: docker.network.clone(),
                cpus: docker.cpus.map(crate::config::Cpus::count),
                memory: docker.memory.map(crate::config::MemorySize::bytes),
                env: docker.env.iter().map(ToString::to_string).collect(),
                stop_grace: docker.stop_grace,
            })
            .await?;
            let facts = provider.check().await?;
            tracing::info!("Docker {} at {} (API {})", facts.version, facts.endpoint, facts.api_version);
            Ok((Arc::new(provider), docker.stop_grace))
        }
    }
}

/// Tells the controller what a former agent has left.
fn adopt(
    settings: &mut Settings,
    places: &mut Places,
    former: loader::Former,
    datapath: &Datapath,
    config: &RunConfig,
) {
    let inheritance = former.inheritance;
    let slotted = inheritance.containers_of(&former.ready);
    let served: BTreeSet<&ContainerId> = datapath.registry.backends().map(|backend| &backend.container).collect();
    for &id in &served {
        if !is_to_be_shown(id, config) {
            let endpoint =
                datapath.registry.backends().find(|backend| backend.container == *id).map(|one| one.endpoint);
            settings.adopted_leaving.extend(endpoint.map(|endpoint| (id.clone(), IpAddr::V4(*endpoint.ip()))));
            continue;
        }
        match datapath.registry.member(id).filter(|member| slotted.contains(id) && is_wanted(member, config)) {
            Some(member) => {
                let address = member.endpoints.values().next().map(|endpoint| IpAddr::V4(*endpoint.ip()));
                settings.adopted_ready.extend(address.map(|address| (id.clone(), address)));
            }
            None => {
                settings.adopted_flows.insert(id.clone());
            }
        }
    }
    if matches!(config.source, Source::Static { .. }) && served.iter().any(|id| id.0.parse::<SocketAddrV4>().is_err()) {
        tracing::warn!(
            "the containers of the former run stay: `lb-user detach --containers` of an instance that has ended, or \
             `docker rm -f`, removes them"
        );
    }
    settings.adopted_generation = inheritance.generation;
    settings.adopted_decisions = inheritance.decisions;
    settings.adopted_warming = inheritance.warming;
    places.adopt(&datapath.registry);
    tracing::info!(
        backends = settings.adopted_ready.len(),
        "taking over what a former agent has left; its connections go on"
    );
}

/// Returns whether the provider may show a backend; one of another provider, or of another list, it does not.
fn is_to_be_shown(id: &ContainerId, config: &RunConfig) -> bool {
    match (&config.source, id.0.parse::<SocketAddrV4>()) {
        (Source::Static { backends }, Ok(address)) => backends.iter().any(|backend| backend.address == address),
        (Source::Static { .. }, Err(_)) | (Source::Docker(_), Ok(_)) => false,
        (Source::Docker(_), Err(_)) => true,
    }
}

/// Returns whether a backend serves exactly what it would serve today.
fn is_wanted(member: &Member, config: &RunConfig) -> bool {
    let wanted = config.frontends.iter().all(|publish| {
        let endpoint = member.endpoints.get(&publish.name());
        endpoint.is_some_and(|endpoint| publish.container_port.is_none_or(|port| port.get() == endpoint.port()))
    });
    wanted && member.endpoints.len() == config.frontends.len()
}

fn settings(config: &RunConfig, stop_grace: Duration) -> Settings {
    let scaling = match &config.source {
        Source::Static { .. } => Scaling::Fixed,
        Source::Docker(docker) => {
            let scaling = &docker.scaling;
            let bounds = Bounds::new(scaling.min, scaling.max).expect("the command line was checked");
            Scaling::Auto(Law {
                target: TargetLoad::new(scaling.target_cpu.share()).expect("the command line was checked"),
                up_window: scaling.up_window,
                down_window: scaling.down_window,
                interval: config.interval,
                ..Law::new(bounds)
            })
        }
    };
    Settings {
        drain_timeout: config.drain_timeout,
        slow_start: config.slow_start.unwrap_or_default(),
        probe_interval: config.health_interval,
        keep: config.keep,
        stop_patience: stop_grace.saturating_add(ENGINE_DELAY),
        ..Settings::new(scaling)
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Writes an error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Removes what an instance has left, and its containers if asked to.
///
/// # Errors
/// What could not be removed.
pub async fn detach(instance: &str, containers: bool) -> Result<()> {
    if !nix::unistd::Uid::effective().is_root() {
        return Err(DatapathError::NotRoot.into());
    }
    let found = loader::remove_leftovers(instance)?;
    if found {
        println!("instance {instance}: hooks and maps are removed");
    } else {
        println!("instance {instance}: nothing was attached");
    }
    if containers {
        let removed = crate::provider::docker::remove_all(instance, Duration::from_secs(10)).await?;
        match removed.as_slice() {
            [] => println!("instance {instance}: there were no containers"),
            names => println!("instance {instance}: removed {}", names.join(", ")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read() {
        let status = "Name:\tlb-user\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t00000001\n";

        let mask = ignored_in(status).unwrap();

        assert_eq!((mask & 1, mask >> 12 & 1, mask >> 1 & 1), (1, 1, 0));
        assert_eq!(ignored_in("SigIgn:\tx\n"), None);
    }
}
