//! The agent: one loop that tells the controller what happens and when, and performs what it commands.
//!
//! ```text
//! interval  ─▶ load sample, sign of life ┐
//! kernel    ─▶ who is woken               │
//! tripwire  ─▶ more come than can wait     │
//! providers ─▶ containers come and go    │   control::Controller   ┌─▶ provider: start, stop, remove
//! sweeper   ─▶ connections per backend   ├─▶ (event, now) ─▶ … ────┼─▶ health + links: probe
//! probes, starts, stops ─▶ answers       │   one for each service  └─▶ datapath: publish
//! signals, the controllers' deadline     │
//! server    ─▶ orders of operators       ┘
//! ```
//!
//! Services share the datapath, the uplinks, the sweeper, the connection to the engine and the load of the host; each has
//! a [`Service`] with a controller of its own. Which there are may change while the agent runs ([`reload`]).
//!
//! Nothing here decides. Slow work (engine calls, probes, sweeps) runs beside the loop and comes back as an event, so
//! that a death reaches the maps without waiting for anything.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep_until},
};

mod frost;
mod measure;
pub(crate) mod network;
mod orders;
pub(crate) mod perform;
mod rehearse;
mod reload;
pub(crate) mod service;
mod sweeper;
mod tripwire;

use crate::{
    config::{self, Reload, RunConfig, ServiceName, Source},
    control::{Answers, Command, ContainerId, Event, Family, GoneCause, Sighting, Timestamp, law::Surge},
    datapath::{
        Datapath, DatapathError, Opening,
        links::Links,
        loader::{self, Former},
        pins,
        report::{Report, ServiceReport},
    },
    freezer::Freezer,
    metrics::{LoadSource as _, container_cpu::ContainerCpu, host_cpu::HostCpu, pressure::Pressure},
    provider::{EVENT_BACKLOG, Process, Provider, ProviderEvent, docker::Fleet, fixed::FixedProvider},
    server::{Asking, Journal, Server, journal::What, views::Instance},
    watchdog::Watchdog,
};
pub use rehearse::rehearse;

use network::Network;
use orders::Waiting;
use perform::{Examined, Places};
use reload::Prepared;
use service::{Feeds, Service, Told};
use sweeper::Sweeper;
use tripwire::Tripwire;

/// How often connections are swept, unless the interval is shorter: a limit of connections and the least of them are as true
/// as the last sweep, however seldom the load is looked at.
const SWEEPS: Duration = Duration::from_secs(1);
/// How often interfaces and addresses are compared with what is attached.
const NETWORK_CHECK: Duration = Duration::from_secs(5);
/// How long after a frontend has gone a sweep may begin that is believed when it finds no connections.
const FRONTEND_SETTLE: Duration = Duration::from_secs(1);
/// How often the user is told what is still being drained.
const DRAIN_NOTICE: Duration = Duration::from_secs(5);
/// How many questions from the control socket may wait.
const ASK_BACKLOG: usize = 32;
/// Why the agent ends although nobody asked it to.
const WATCH_ENDED: &str = "the watch of the containers has ended by itself: this is a fault of lb-user";
/// What the engine may add to the grace of a stop, with its removal.
const ENGINE_DELAY: Duration = Duration::from_secs(250);
/// The least time between two ticks of the controller, lest a mistake in a deadline spins.
const LEAST_TICK: Duration = Duration::from_millis(5);
/// The least time between two reports: a thousand backends are probed hundreds of times a second.
const LEAST_REPORT: Duration = Duration::from_millis(100);

/// Runs an instance until it is asked to end. Where what is run can be read again, it is on SIGHUP.
///
/// # Errors
/// What keeps it from starting; a new instance leaves nothing behind then, and one that was taken over goes on serving.
pub async fn run(mut config: RunConfig, reload: Option<Reload>) -> Result<()> {
    for note in &config.notes {
        tracing::info!("{note}");
    }
    let signals = Signals::watch(reload.is_some())?;
    let host_cpu = HostCpu::new()?;
    for service in &config.services {
        if let Source::Docker(docker) = &service.source
            && let Some(note) = docker.note_on_share(host_cpu.processors())
        {
            tracing::info!("{}: {note}", service.name);
        }
    }
    let (fleet, providers) = service::connect(&mut config).await?;
    let links = Arc::new(Links::open()?);
    let mut network = Network::find(&config, &links).await?;
    let opening = Opening {
        instance: config.instance.as_str(),
        max_flows: config.max_flows,
        tc_attach: config.tc_attach,
        lifetimes: config.lifetimes,
    };
    let (mut datapath, mut former) = Datapath::open(&opening)?;
    if let Some(former) = &mut former {
        let heir = config.heir();
        former.inheritance.bequeath(heir.as_str());
        datapath.registry.bequeath(heir.as_str());
    }
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

    let now = Instant::now();
    // The time of the controllers goes on where that of a former agent ended.
    let (mut started, mut started_unix) = (now, unix_now());
    if let Some(former) = &former {
        started = now.checked_sub(former.age).unwrap_or(now);
        started_unix = former.inheritance.started_unix.unwrap_or(started_unix);
    }
    network.announce(&datapath);
    let (answers, inbox) = mpsc::unbounded_channel();
    let (sender, told) = mpsc::channel(EVENT_BACKLOG);
    let (asking, asks) = mpsc::channel(ASK_BACKLOG);
    let journal = Arc::new(Journal::new(unix_us()));
    let mut agent = Agent {
        services: BTreeMap::new(),
        feeds: Feeds::new(sender),
        told,
        fleet,
        sweeper,
        host_cpu,
        container_cpu: ContainerCpu::default(),
        freezers: BTreeMap::new(),
        watchdog: Watchdog::default(),
        tripwire: Tripwire::new(),
        pressure: Pressure::default(),
        started_unix,
        agent_started_unix: unix_now(),
        started,
        reported: now,
        is_report_old: true,
        is_looking: false,
        asked: 0,
        problems: BTreeMap::new(),
        asks,
        waiting: Vec::new(),
        journal,
        server: None,
        config,
        reload,
        is_reloading: false,
        reload_again: false,
        links,
        network,
        datapath,
        answers,
    };
    agent.tell_host();
    for (name, provider) in providers {
        let service = agent.config.services.iter().find(|service| service.name == name);
        let service = service.expect("each provider is a service's").clone();
        agent.begin(service, provider, former.as_mut());
    }
    let leftovers = agent.begin_leftovers(former.as_mut()).await;
    agent.listen(asking, former.is_some());
    agent.serve(inbox, signals, leftovers).await
}

/// Everything that the loop works with.
struct Agent {
    config: RunConfig,
    services: BTreeMap<ServiceName, Service>,
    feeds: Feeds,
    /// What providers tell.
    told: mpsc::Receiver<Told>,
    /// The engine, if any service needs it.
    fleet: Option<Arc<Fleet>>,
    links: Arc<Links>,
    network: Network,
    datapath: Datapath,
    sweeper: Sweeper,
    host_cpu: HostCpu,
    container_cpu: ContainerCpu,
    /// How containers are frozen, as far as it is known.
    freezers: BTreeMap<ContainerId, Freezer>,
    watchdog: Watchdog,
    tripwire: Tripwire,
    pressure: Pressure,
    answers: mpsc::UnboundedSender<Answer>,
    /// How the configuration is read again, if it can be.
    reload: Option<Reload>,
    /// Whether it is being read.
    is_reloading: bool,
    /// Whether it was asked for once more since.
    reload_again: bool,
    /// How many times the agent was asked to end.
    asked: u32,
    /// From when the controllers' time counts: the instance's first start.
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
    /// Questions from the control socket.
    asks: mpsc::Receiver<Asking>,
    /// Those whose orders are not in force yet.
    waiting: Vec<Waiting>,
    /// What happened, for who asks.
    journal: Arc<Journal>,
    server: Option<Server>,
}

/// What comes back from work beside the loop.
enum Answer {
    /// Something for a service's controller.
    Event(ServiceName, Event),
    /// A probe's result, with the way if it was looked for.
    Probed { service: ServiceName, id: ContainerId, outcome: Result<Examined, String> },
    /// The first process of a container.
    Process { id: ContainerId, process: Process },
    /// The interfaces and addresses as they are.
    Looked(Result<Network>),
    /// The configuration, read again.
    Reloaded(Result<Box<Prepared>, String>),
}

/// What signals ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    End,
    Reload,
}

/// The signals that ask for something.
struct Signals {
    interrupts: Signal,
    terminations: Signal,
    /// None if hangups would end the agent, and were ignored when it was started, as `nohup` does.
    hangups: Option<Signal>,
    /// What a hangup asks for.
    on_hangup: Asked,
}

impl Signals {
    fn watch(can_reload: bool) -> Result<Self> {
        Ok(Self {
            on_hangup: if can_reload { Asked::Reload } else { Asked::End },
            interrupts: signal(SignalKind::interrupt()).context("watch SIGINT")?,
            terminations: signal(SignalKind::terminate()).context("watch SIGTERM")?,
            hangups: if is_ignored(libc::SIGHUP) && !can_reload {
                None
            } else {
                Some(signal(SignalKind::hangup()).context("watch SIGHUP")?)
            },
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.interrupts.recv() => Asked::End,
            _ = self.terminations.recv() => Asked::End,
            Some(_) = async { self.hangups.as_mut()?.recv().await } => self.on_hangup,
        }
    }
}

/// Addresses surges to the services that they are of.
fn on_surges(surges: Vec<(ServiceName, Surge)>) -> Vec<(ServiceName, Event)> {
    surges.into_iter().map(|(name, surge)| (name, Event::Surged(surge))).collect()
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
    /// Begins to run a service, with what a former agent has left of it.
    fn begin(&mut self, service: config::Service, provider: Arc<dyn Provider>, former: Option<&mut Former>) {
        let mut settings = service::settings(&service, &self.config);
        let mut places = Places::default();
        if let Some(former) = former {
            service::adopt(&mut settings, &mut places, former, &self.datapath.registry, &service);
        }
        let name = service.name.clone();
        let mut service = Service::new(service, settings, provider, places, &mut self.feeds);
        service.let_go(&self.datapath.registry, self.now());
        if let Some(metrics) = service.metrics() {
            tracing::info!("{}scaling by {metrics}", self.prefix(&name));
        }
        self.services.insert(name, service);
    }

    /// Takes over what is left of services that are configured no longer, to drain and to stop it. Returns what their
    /// controllers have to be told.
    async fn begin_leftovers(&mut self, mut former: Option<&mut Former>) -> Vec<(ServiceName, Event)> {
        let mut names: BTreeSet<String> = self.datapath.registry.services().into_iter().map(str::to_owned).collect();
        // Without an answer, any container may be one of ours.
        let mut ours: Option<BTreeSet<String>> = None;
        if let Some(fleet) = &self.fleet {
            match fleet.services().await {
                Ok(services) => {
                    names.extend(services.iter().cloned());
                    ours = Some(services);
                }
                Err(error) => tracing::warn!("containers of services that are configured no longer: {}", chain(&error)),
            }
        }
        let mut events = Vec::new();
        for name in names {
            let Ok(name) = name.parse::<ServiceName>() else { continue };
            if self.services.contains_key(&name) {
                continue;
            }
            let mut served = self.datapath.registry.backends_of(name.as_str()).map(|backend| &backend.container);
            let may_be_ours = ours.as_ref().is_none_or(|ours| ours.contains(name.as_str()));
            let has_containers = may_be_ours && served.all(service::is_container);
            drop(served);
            let (source, provider): (Source, Arc<dyn Provider>) = match &self.fleet {
                Some(fleet) if has_containers => {
                    let docker = config::Docker::leftover();
                    let provider = fleet.provider(service::docker_settings(&self.config, &name, &docker));
                    (Source::Docker(docker), Arc::new(provider))
                }
                Some(_) | None => (Source::Static { backends: Vec::new() }, Arc::new(FixedProvider::new(&[]))),
            };
            tracing::info!("service {name} is configured no longer: what is left of it is drained");
            self.begin(config::Service::leftover(name.clone(), source), provider, former.as_deref_mut());
            if let Some(service) = self.services.get_mut(&name) {
                service.is_removed = true;
                let reason = "removed from the configuration".to_owned();
                let reconfiguration = Box::new(service.reconfiguration(&self.config, reason));
                events.extend([(name.clone(), Event::Reconfigured(reconfiguration)), (name, Event::StopRequested)]);
            }
        }
        events
    }

    /// Opens the control socket. Without it, what is served goes on being served.
    fn listen(&mut self, asking: mpsc::Sender<Asking>, is_heir: bool) {
        let instance = self.config.instance.as_str();
        let began = if is_heir { "took over" } else { "began" };
        let text = format!("agent {} (pid {}) {began}", env!("CARGO_PKG_VERSION"), std::process::id());
        self.journal.push(None, What::Agent { text }, unix_ms());
        let views = Arc::new(Instance(instance.to_owned()));
        match Server::start(&pins::socket(instance), asking, self.journal.clone(), views) {
            Ok(server) => self.server = Some(server),
            Err(error) => {
                let error = format!("the control socket: {}", chain(&error));
                tracing::error!("{error}");
                self.problems.insert("socket", error);
            }
        }
    }

    async fn serve(
        mut self,
        mut inbox: mpsc::UnboundedReceiver<Answer>,
        mut signals: Signals,
        first: Vec<(ServiceName, Event)>,
    ) -> Result<()> {
        let mut wakes = self.datapath.wakes()?;
        let mut ticks = interval(self.config.interval);
        let mut sweeps = interval(self.config.interval.min(SWEEPS));
        let mut network_checks = interval(NETWORK_CHECK);
        let mut notices = interval(DRAIN_NOTICE);
        for timer in [&mut ticks, &mut sweeps, &mut network_checks, &mut notices] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        let _nothing_is_over = self.handle_all(first);
        self.report();
        loop {
            let deadline = self.deadline();
            let report_due = self.report_due();
            let mut rearms = false;
            let events = tokio::select! {
                biased;
                woken = wakes.next() => {
                    // Whoever slept may be short of others at once.
                    rearms = true;
                    self.on_wakes(woken.context("follow the wakings")?)
                }
                surges = self.tripwire.next(&self.datapath, self.started) => on_surges(surges),
                Some(told) = self.told.recv() => self.on_told(told)?,
                Some(answer) = inbox.recv() => self.on_answer(answer),
                swept = self.sweeper.next() => self.on_sweep(swept?),
                asked = signals.next() => self.on_signal(asked),
                _ = sweeps.tick() => { self.sweeper.request(self.now(), self.datapath.retiring()); Vec::new() }
                _ = ticks.tick() => { rearms = true; self.on_tick() }
                _ = network_checks.tick() => { self.look_after_frost(); self.look_at_network(); Vec::new() }
                _ = notices.tick(), if self.asked > 0 => { self.tell_drain(); Vec::new() }
                () = sleep_until(deadline.into()) => self.to_all(&Event::Tick),
                () = sleep_until(report_due.into()) => Vec::new(),
                // Last: however many ask, what is due is done.
                Some(asking) = self.asks.recv() => self.on_ask(asking),
            };
            self.is_report_old |= !events.is_empty();
            if self.handle_all(events) {
                return self.finish().await;
            }
            if rearms {
                self.tripwire.set(self.limits());
            }
            self.answer_orders();
            if self.report_due() <= Instant::now() {
                self.report();
            }
        }
    }

    /// Addresses an event to every service.
    fn to_all(&self, event: &Event) -> Vec<(ServiceName, Event)> {
        self.services.keys().map(|name| (name.clone(), event.clone())).collect()
    }

    fn on_signal(&mut self, asked: Asked) -> Vec<(ServiceName, Event)> {
        match asked {
            Asked::Reload => {
                self.begin_reload();
                Vec::new()
            }
            Asked::End => {
                self.asked += 1;
                self.to_all(if self.asked == 1 { &Event::StopRequested } else { &Event::StopForced })
            }
        }
    }

    fn on_tick(&mut self) -> Vec<(ServiceName, Event)> {
        self.container_cpu.sample();
        let (load, mut events) = match self.host_cpu.sample() {
            Ok(Some(load)) => (Some(load), self.to_all(&Event::LoadSampled(load))),
            Ok(None) => (None, Vec::new()),
            Err(error) => (None, self.to_all(&Event::LoadUnavailable { reason: error.to_string() })),
        };
        events.extend(self.measure(load));
        events
    }

    /// Returns the rates of new connections of those services for which there is no waiting beyond them.
    fn limits(&self) -> BTreeMap<ServiceName, f64> {
        let limit = |service: &Service| service.controller.tripwire().filter(|_| !service.is_removed);
        self.services.iter().filter_map(|(name, service)| Some((name.clone(), limit(service)?))).collect()
    }

    /// Tells the controllers what has happened, and performs what they command, also about what comes of that at once.
    /// Returns whether all is done.
    fn handle_all(&mut self, events: Vec<(ServiceName, Event)>) -> bool {
        let mut events = VecDeque::from(events);
        let mut commands: VecDeque<(ServiceName, Command)> = VecDeque::new();
        loop {
            // Commands first: what they lead to may depend on each other's order.
            if let Some((name, command)) = commands.pop_front() {
                if command == Command::Finish {
                    match self.on_finish(&name) {
                        Some(more) => events.extend(more),
                        None => return true,
                    }
                    continue;
                }
                for answer in self.perform(&name, command) {
                    self.handle(&name, answer, &mut commands);
                }
            } else if let Some((name, event)) = events.pop_front() {
                self.handle(&name, event, &mut commands);
            } else {
                return false;
            }
        }
    }

    fn handle(&mut self, name: &ServiceName, event: Event, commands: &mut VecDeque<(ServiceName, Command)>) {
        let now = self.now();
        let Some(service) = self.services.get_mut(name) else { return };
        let published = if let Event::Published { generation } = event { Some(generation) } else { None };
        commands.extend(service.controller.handle(event, now).into_iter().map(|command| (name.clone(), command)));
        let changes = service.controller.take_changes();
        if let Some(generation) = published {
            self.note_publication(name, generation);
        }
        self.tell_news(name);
        self.note_changes(name, changes);
    }

    /// Takes note that a service has nothing left to do; one that is configured no longer is forgotten. Returns what
    /// comes of that, or nothing if all is done.
    fn on_finish(&mut self, name: &ServiceName) -> Option<Vec<(ServiceName, Event)>> {
        if let Some(service) = self.services.get_mut(name) {
            service.has_finished = true;
            if service.is_removed && self.asked == 0 {
                self.services.remove(name);
                self.is_report_old = true;
                tracing::info!("service {name}: drained and forgotten");
                return Some(self.serve_frontends());
            }
        }
        // What is to be kept is kept as it is, and so is what is left of services that were removed.
        let is_done = |service: &Service| service.has_finished || (self.config.keep && service.is_removed);
        let is_over = self.asked > 0 && self.services.values().all(is_done);
        (!is_over).then(Vec::new)
    }

    fn on_told(&mut self, told: Told) -> Result<Vec<(ServiceName, Event)>> {
        let Some(name) = told.addressee(&self.services) else { return Ok(Vec::new()) };
        let event = self.on_provider(&name, told.event.context(WATCH_ENDED)?);
        Ok(event.map(|event| (name, event)).into_iter().collect())
    }

    fn on_provider(&mut self, name: &ServiceName, event: ProviderEvent) -> Option<Event> {
        let service = self.services.get_mut(name)?;
        Some(match event {
            ProviderEvent::Seen(sighting) => {
                service.places.doubt(&sighting.id);
                self.place(name, &sighting);
                Event::BackendSeen(sighting)
            }
            ProviderEvent::Resynced(sightings) => {
                service.places.keep_only(&sightings.iter().map(|sighting| &sighting.id).collect());
                for sighting in &sightings {
                    self.place(name, sighting);
                }
                Event::Resynced(sightings)
            }
            ProviderEvent::Gone { id, cause } => {
                if cause == GoneCause::Paused {
                    self.on_paused(&id);
                }
                Event::BackendGone { id, cause }
            }
            ProviderEvent::Signalled { id } => Event::Signalled { id },
            ProviderEvent::Lost { error } => {
                // Whatever happens until it is back is not seen.
                service.places.doubt_all();
                Event::ProviderLost { error: chain(&*error) }
            }
            ProviderEvent::Back => Event::ProviderBack,
        })
    }

    fn place(&mut self, name: &ServiceName, sighting: &Sighting) {
        let Some(service) = self.services.get_mut(name) else { return };
        if let Some(address) = sighting.address {
            service.places.located(&sighting.id, address);
            service.places.told(&sighting.id, &sighting.terms);
        }
        if sighting.running && !self.container_cpu.follows(&sighting.id) {
            let (provider, id, answers) = (service.provider.clone(), sighting.id.clone(), self.answers.clone());
            tokio::spawn(async move {
                if let Some(process) = provider.process(&id).await {
                    let _nobody_listens = answers.send(Answer::Process { id, process });
                }
            });
        }
    }

    fn on_answer(&mut self, answer: Answer) -> Vec<(ServiceName, Event)> {
        match answer {
            Answer::Event(name, event) => vec![(name, event)],
            Answer::Probed { service: name, id, outcome } => {
                let Some(service) = self.services.get_mut(&name) else { return Vec::new() };
                let (found, outcome) = match outcome {
                    Ok(Examined { found, heard }) => (found, Ok(heard)),
                    Err(error) => (None, Err(error)),
                };
                let has_moved = found.is_some_and(|found| service.places.reached(&id, found));
                let moved = has_moved.then(|| Event::WayChanged { id: id.clone() });
                let probed = Event::BackendProbed { id, outcome };
                moved.into_iter().chain([probed]).map(|event| (name.clone(), event)).collect()
            }
            Answer::Process { id, process } => {
                self.on_process(id, process);
                Vec::new()
            }
            Answer::Looked(network) => {
                self.is_looking = false;
                self.is_report_old = true;
                self.on_network(network)
            }
            Answer::Reloaded(outcome) => self.on_reloaded(outcome),
        }
    }

    fn on_sweep(&mut self, swept: sweeper::Swept) -> Vec<(ServiceName, Event)> {
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
        let registry = &self.datapath.registry;
        let mut flows: BTreeMap<&str, BTreeMap<ContainerId, u64>> = BTreeMap::new();
        let mut busy = BTreeSet::new();
        for (&(id, generation), count) in &census.active {
            if let Some(backend) = registry.backend(id, generation).filter(|_| *count > 0) {
                let of_service = flows.entry(&backend.service).or_default();
                *of_service.entry(backend.container.clone()).or_default() += count;
                busy.insert((backend.service.as_str(), backend.frontend));
            }
        }
        let mut answers: BTreeMap<&str, BTreeMap<(ContainerId, Family), Answers>> = BTreeMap::new();
        for (key, handshakes) in &census.handshakes {
            if let Some(backend) = registry.backend(key.0, key.1) {
                let waiting = census.waiting.get(key).copied().unwrap_or(0);
                let there = Answers { accepted: handshakes.accepted(), refused: handshakes.refused, waiting };
                let of_service = answers.entry(&backend.service).or_default();
                let family = Family::of(backend.endpoint.ip());
                let sum = of_service.entry((backend.container.clone(), family)).or_default();
                *sum = sum.and(there);
            }
        }
        let now = self.now();
        let mut events = Vec::new();
        for (name, service) in &mut self.services {
            let before = service.leaving.len();
            service.leaving.retain(|frontend, leave| {
                let is_busy = registry.frontend(frontend).is_some_and(|id| busy.contains(&(name.as_str(), id)));
                now < leave.deadline && (is_busy || swept.began < leave.since + FRONTEND_SETTLE)
            });
            if service.leaving.len() < before {
                events.push((name.clone(), Event::EndpointsChanged));
            }
            let flows = flows.remove(name.as_str()).unwrap_or_default();
            let answers = answers.remove(name.as_str()).unwrap_or_default();
            events.push((name.clone(), Event::Swept { began: swept.began, flows, answers }));
        }
        events
    }

    fn deadline(&self) -> Instant {
        let floor = self.started + self.now().elapsed() + LEAST_TICK;
        let idle = floor + Duration::from_secs(60);
        let due = self.services.values().filter_map(|service| service.controller.deadline()).min();
        due.map_or(idle, |at| (self.started + at.elapsed()).clamp(floor, idle))
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
        let services: Vec<ServiceReport> =
            self.in_order().map(|(name, service)| self.service_report(name, service)).collect();
        let report = Report {
            frozen: self.frozen(&services),
            services,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_unix: self.started_unix,
            agent_started_unix: self.agent_started_unix,
            age_ms: self.now().elapsed().as_millis() as u64,
            frontends: self.datapath.registry.frontends(),
            backends: self.datapath.registry.backends().cloned().collect(),
            cpu_percent: self.container_cpu.percent_of_host(),
            doors: self.datapath.doors(),
            problems: self.network.problems().iter().chain(self.problems.values()).cloned().collect(),
        };
        self.problems.remove(orders::UNREPORTED);
        if let Err(error) = self.datapath.write_report(&report, self.config.interval) {
            let error = format!("write the report: {}", chain(&error));
            tracing::error!("{error}");
            self.problems.insert(orders::UNREPORTED, error);
        }
    }

    /// Returns the services in the order in which they are configured; those that were removed come last.
    fn in_order(&self) -> impl Iterator<Item = (&ServiceName, &Service)> {
        let configured = self.config.services.iter().filter_map(|service| self.services.get_key_value(&service.name));
        configured.chain(self.services.iter().filter(|(_, service)| service.is_removed))
    }

    fn service_report(&self, name: &ServiceName, service: &Service) -> ServiceReport {
        ServiceReport {
            name: name.to_string(),
            control: service.controller.snapshot(self.now()),
            target_cpu_percent: service.target_cpu_percent(),
            metrics: service.metrics(),
        }
    }

    /// Returns what stands before what is told of a service, where there are others.
    fn prefix(&self, name: &ServiceName) -> String {
        if self.services.len() > 1 { format!("{name}: ") } else { String::new() }
    }

    fn tell_news(&mut self, name: &ServiceName) {
        let prefix = self.prefix(name);
        let Some(service) = self.services.get_mut(name) else { return };
        let news = service.controller.take_news();
        for decision in news {
            self.note_decision(name, &decision);
            let (kind, from, to) = (decision.kind, decision.from, decision.to);
            if from == to {
                tracing::info!("{prefix}{kind}: {}", decision.reason);
            } else {
                tracing::info!("{prefix}{kind} {from} -> {to}: {}", decision.reason);
            }
        }
    }

    fn tell_drain(&self) {
        let reports = self.services.values().map(|service| service.controller.snapshot(self.now()));
        let backends: Vec<_> = reports.flat_map(|report| report.backends).collect();
        let flows: u64 = backends.iter().map(|backend| backend.flows).sum();
        tracing::info!("ending: {} backends left, {flows} connections; Ctrl-C again cuts them", backends.len());
    }

    async fn finish(mut self) -> Result<()> {
        // Whoever looks, or takes over, sees how it ended.
        self.report();
        // Whoever asks still, or has asked, is told that it ends.
        self.asks.close();
        while self.asks.try_recv().is_ok() {}
        if let Some(server) = self.server.take() {
            self.journal.push(None, What::Agent { text: "the agent ends, as it was asked to".to_owned() }, unix_ms());
            server.end().await;
        }
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

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Returns the time in microseconds: more than there will ever be events, and exact in a number of JavaScript.
fn unix_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

/// Writes an error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
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
    let frozen = loader::frozen(instance);
    let found = loader::remove_leftovers(instance)?;
    for (id, freezer) in frozen.into_iter().filter(|(_, freezer)| freezer.is_asked()) {
        match freezer.thaw() {
            Ok(()) => println!("instance {instance}: {id} is thawed"),
            // It may have ended in this moment.
            Err(error) => tracing::warn!("{id}: {}", chain(&error)),
        }
    }
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
