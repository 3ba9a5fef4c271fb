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
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{SignalKind, signal},
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
    datapath::{Datapath, DatapathError, Opening, links::Links, loader, report::Report},
    metrics::{LoadSource as _, host_cpu::HostCpu},
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
    let (provider, stop_grace) = connect(&config).await?;
    let links = Arc::new(Links::open()?);
    let network = Network::find(&config, &links).await?;
    let opening =
        Opening { instance: config.instance.as_str(), max_flows: config.max_flows, tc_attach: config.tc_attach };
    let (mut datapath, former) = Datapath::open(&opening)?;
    if let Err(error) = network.attach(&mut datapath, &config) {
        if former.is_none() {
            datapath.remove().context("clean up")?;
        }
        return Err(error.into());
    }

    let mut settings = settings(&config);
    let mut places = Places::default();
    if let Some(former) = &former {
        settings.adopted_ready = former.report.containers_of(&former.ready);
        let held = datapath.registry.backends().map(|backend| backend.container.clone());
        settings.adopted_flows = held.filter(|id| !settings.adopted_ready.contains(id)).collect();
        settings.adopted_generation = former.report.control.generation.unwrap_or(0);
        places.adopt(&datapath.registry);
        tracing::info!(
            backends = settings.adopted_ready.len(),
            "taking over what a former agent has left; its connections go on"
        );
    }
    network.announce(&datapath);
    let (answers, inbox) = mpsc::unbounded_channel();
    let agent = Agent {
        controller: Controller::new(settings),
        sweeper: Sweeper::start(config.instance.as_str())?,
        started_unix: former.map_or_else(unix_now, |former| former.report.started_unix),
        started: Instant::now(),
        last_publication: None,
        reported: Instant::now(),
        is_report_old: true,
        engine_settings: stop_grace,
        config,
        provider,
        links,
        network,
        datapath,
        places,
        answers,
    };
    agent.serve(inbox).await
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
    places: Places,
    answers: mpsc::UnboundedSender<Answer>,
    last_publication: Option<crate::control::Publication>,
    engine_settings: Duration,
    started: Instant,
    started_unix: u64,
    /// When the last report was written.
    reported: Instant,
    /// Whether anything happened since.
    is_report_old: bool,
}

/// What comes back from work beside the loop.
enum Answer {
    /// Something for the controller.
    Event(Event),
    /// A probe's result, with the way that was found.
    Probed { id: ContainerId, outcome: Result<crate::datapath::report::Way, String> },
}

impl Agent {
    async fn serve(mut self, mut inbox: mpsc::UnboundedReceiver<Answer>) -> Result<()> {
        let mut provider_events = self.provider.events();
        let mut interrupts = signal(SignalKind::interrupt()).context("watch SIGINT")?;
        let mut terminations = signal(SignalKind::terminate()).context("watch SIGTERM")?;
        let mut hangups = signal(SignalKind::hangup()).context("watch SIGHUP")?;
        let mut ticks = interval(self.config.interval);
        let mut network_checks = interval(NETWORK_CHECK);
        let mut notices = interval(DRAIN_NOTICE);
        for timer in [&mut ticks, &mut network_checks, &mut notices] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        let mut host_cpu = HostCpu::new()?;
        let mut asked = 0_u32;
        self.report();
        loop {
            let deadline = self.deadline();
            let report_due = self.report_due();
            let event = tokio::select! {
                biased;
                Some(event) = provider_events.recv() => self.on_provider(event),
                Some(answer) = inbox.recv() => self.on_answer(answer),
                Some(census) = self.sweeper.next() => Some(self.on_sweep(census)?),
                _ = interrupts.recv() => Some(stop(&mut asked)),
                _ = terminations.recv() => Some(stop(&mut asked)),
                _ = hangups.recv() => Some(stop(&mut asked)),
                _ = ticks.tick() => {
                    self.sweeper.request(self.now(), self.datapath.retiring());
                    match host_cpu.sample() {
                        Ok(Some(load)) => Some(Event::LoadSampled(load)),
                        Ok(None) => None,
                        Err(error) => Some(Event::LoadUnavailable { reason: error.to_string() }),
                    }
                }
                _ = network_checks.tick() => { self.check_network().await; None }
                _ = notices.tick(), if asked > 0 => { self.tell_drain(); None }
                () = sleep_until(deadline.into()) => Some(Event::Tick),
                () = sleep_until(report_due.into()) => None,
            };
            self.is_report_old |= event.is_some();
            let commands = match event {
                Some(event) => self.controller.handle(event, self.now()),
                None => Vec::new(),
            };
            if self.perform_all(commands)? {
                return self.finish();
            }
            if self.report_due() <= Instant::now() {
                self.report();
            }
        }
    }

    /// Performs commands, and those that their answers lead to; returns whether all is done.
    fn perform_all(&mut self, commands: Vec<Command>) -> Result<bool> {
        let mut waiting: std::collections::VecDeque<Command> = commands.into();
        self.tell_news();
        while let Some(command) = waiting.pop_front() {
            if command == Command::Finish {
                return Ok(true);
            }
            if let Some(event) = self.perform(command) {
                waiting.extend(self.controller.handle(event, self.now()));
                self.tell_news();
            }
        }
        Ok(false)
    }

    fn on_provider(&mut self, event: ProviderEvent) -> Option<Event> {
        Some(match event {
            ProviderEvent::Seen(sighting) => {
                self.places.moved(&sighting.id);
                self.place(&sighting);
                Event::BackendSeen(sighting)
            }
            ProviderEvent::Resynced(sightings) => {
                for sighting in &sightings {
                    self.place(sighting);
                }
                Event::Resynced(sightings)
            }
            ProviderEvent::Gone { id, cause } => Event::BackendGone { id, cause },
            ProviderEvent::Lost { error } => Event::ProviderLost { error: chain(&error) },
            ProviderEvent::Back => Event::ProviderBack,
        })
    }

    fn place(&mut self, sighting: &Sighting) {
        if let Some(address) = sighting.address {
            self.places.located(&sighting.id, address);
        }
    }

    fn on_answer(&mut self, answer: Answer) -> Option<Event> {
        match answer {
            Answer::Event(event) => Some(event),
            Answer::Probed { id, outcome } => {
                let outcome = outcome.map(|way| {
                    if self.places.reached(&id, way) {
                        self.publish_again();
                    }
                });
                Some(Event::BackendProbed { id, outcome })
            }
        }
    }

    fn on_sweep(&mut self, swept: sweeper::Swept) -> Result<Event> {
        let census = swept.outcome.context("sweep the flow tables")?;
        let mut flows: BTreeMap<ContainerId, u64> = BTreeMap::new();
        for (&(id, generation), count) in &census.active {
            if let Some(container) = self.datapath.registry.container(id, generation) {
                *flows.entry(container.clone()).or_default() += count;
            }
        }
        self.datapath.retire(&swept.retiring)?;
        Ok(Event::Swept { began: swept.began, flows })
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
            age_ms: self.now().elapsed().as_millis() as u64,
            control: self.controller.snapshot(self.now()),
            target_cpu_percent: match &self.config.source {
                Source::Docker(docker) => Some(docker.scaling.target_cpu.percent()),
                Source::Static { .. } => None,
            },
            frontends: self.datapath.registry.frontends(),
            backends: self.datapath.registry.backends().cloned().collect(),
            doors: self.datapath.doors(),
            problems: self.network.problems().to_vec(),
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

    fn finish(self) -> Result<()> {
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
            let backends: Vec<_> = backends.iter().map(|&backend| backend.into()).collect();
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

fn settings(config: &RunConfig) -> Settings {
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
        probe_interval: config.health_interval,
        keep: config.keep,
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
