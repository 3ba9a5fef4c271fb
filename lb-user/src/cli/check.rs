//! From what was said to what is run: everything that concerns several options at once.

use std::time::Duration;

use super::RunArgs;
use crate::{
    config::{
        ConfigError, Docker, Hook, MAX_BACKENDS_IN_ALL, MAX_BACKENDS_PER_FRONTEND, MAX_FRONTENDS, Percent, RunConfig,
        Scaling, Scheduler, Source, StaticBackend, Weight, publish::Proto,
    },
    datapath::layout,
    health::HealthCheck,
};

/// The defaults of options whose absence matters: with static backends they must not be given.
/// They are part of the help, which a test compares.
const DEFAULT_MIN: u32 = 2;
const DEFAULT_MAX: u32 = 10;
const DEFAULT_TARGET_CPU: Percent = Percent::WHOLE;
const DEFAULT_UP_WINDOW: Duration = Duration::from_secs(3);
const DEFAULT_DOWN_WINDOW: Duration = Duration::from_secs(30);
const DEFAULT_STOP_GRACE: Duration = Duration::from_secs(10);

impl RunArgs {
    /// Checks the options against each other and fills in the defaults.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(self) -> Result<RunConfig, ConfigError> {
        let mut notes = Vec::new();
        self.check_publish()?;
        let source = self.source(&mut notes)?;
        let health = self.health_check(&mut notes)?;
        if self.complete_checksums && self.hook == Hook::Tc {
            return Err(ConfigError::ChecksumsWithoutXdp);
        }
        if let Some(given) = first_double(&self.uplink) {
            return Err(ConfigError::DuplicateUplink { given });
        }
        Ok(RunConfig {
            instance: self.instance,
            frontends: self.publish,
            source,
            scheduler: self.scheduler,
            affinity: self.affinity,
            slow_start: self.slow_start,
            health,
            health_interval: self.health_interval,
            uplinks: self.uplink,
            hook: self.hook,
            tc_attach: self.tc_attach,
            complete_checksums: self.complete_checksums,
            max_flows: self.max_flows,
            interval: self.interval,
            drain_timeout: self.drain_timeout,
            keep: self.keep,
            notes,
        })
    }

    fn check_publish(&self) -> Result<(), ConfigError> {
        if self.publish.len() > MAX_FRONTENDS {
            return Err(ConfigError::TooManyFrontends { count: self.publish.len() });
        }
        for (position, &second) in self.publish.iter().enumerate() {
            if let Some(&first) = self.publish[..position].iter().find(|first| first.overlaps(&second)) {
                return Err(ConfigError::DuplicatePublish { first, second });
            }
        }
        Ok(())
    }

    fn source(&self, notes: &mut Vec<String>) -> Result<Source, ConfigError> {
        match (&self.image, self.backend.is_empty()) {
            (Some(_), false) => Err(ConfigError::TwoSources),
            (None, true) => Err(ConfigError::NoSource),
            (Some(image), true) => self.docker(image, notes).map(Source::Docker),
            (None, false) => self.fixed(),
        }
    }

    fn docker(&self, image: &str, notes: &mut Vec<String>) -> Result<Docker, ConfigError> {
        if let Some(&publish) = self.publish.iter().find(|publish| publish.container_port.is_none()) {
            return Err(ConfigError::ContainerPortMissing { publish });
        }
        if self.scheduler == Scheduler::Weighted {
            notes.push("--scheduler weighted is round-robin for containers, because all of them have weight 1".into());
        }
        Ok(Docker {
            image: image.to_owned(),
            scaling: self.scaling(notes)?,
            cpus: self.cpus,
            memory: self.memory,
            env: self.env.clone(),
            network: self.network.clone(),
            stop_grace: self.stop_grace.unwrap_or(DEFAULT_STOP_GRACE),
        })
    }

    fn scaling(&self, notes: &mut Vec<String>) -> Result<Scaling, ConfigError> {
        let max = self.max.unwrap_or(DEFAULT_MAX);
        let min = self.min.unwrap_or(DEFAULT_MIN.min(max));
        if max == 0 {
            return Err(ConfigError::MaxZero);
        }
        if min == 0 {
            return Err(ConfigError::MinZero);
        }
        if min > max {
            return Err(ConfigError::MinOverMax { min, max, max_given: self.max.is_some() });
        }
        if max > MAX_BACKENDS_PER_FRONTEND {
            return Err(ConfigError::TooManyContainers { max });
        }
        self.check_sum(max)?;
        if self.min.is_none() && min < DEFAULT_MIN {
            notes.push(format!("--min is {min}, because --max is"));
        }
        Ok(Scaling {
            min,
            max,
            target_cpu: self.target_cpu.unwrap_or(DEFAULT_TARGET_CPU),
            up_window: self.scale_up_window.unwrap_or(DEFAULT_UP_WINDOW),
            down_window: self.scale_down_window.unwrap_or(DEFAULT_DOWN_WINDOW),
        })
    }

    fn fixed(&self) -> Result<Source, ConfigError> {
        let flags = self.flags_about_containers();
        if !flags.is_empty() {
            return Err(ConfigError::NeedsImage { flags });
        }
        if let Some(&publish) = self.publish.iter().find(|publish| publish.container_port.is_some()) {
            return Err(ConfigError::ContainerPortUnwanted { publish });
        }
        let count = self.backend.len();
        match u32::try_from(count) {
            Ok(each) if each <= MAX_BACKENDS_PER_FRONTEND => self.check_sum(each)?,
            Ok(_) | Err(_) => return Err(ConfigError::TooManyBackends { count }),
        }
        let addresses: Vec<_> = self.backend.iter().map(|backend| backend.address).collect();
        if let Some(backend) = first_double(&addresses) {
            return Err(ConfigError::DuplicateBackend { backend });
        }
        if let Some(&backend) = self.backend.iter().find(|backend| self.is_frontend(backend)) {
            return Err(ConfigError::BackendIsFrontend { backend: backend.address });
        }
        self.check_weights()?;
        Ok(Source::Static { backends: self.backend.clone() })
    }

    fn is_frontend(&self, backend: &StaticBackend) -> bool {
        let (ip, port) = (*backend.address.ip(), backend.address.port());
        self.publish.iter().any(|publish| publish.addr == Some(ip) && publish.port.get() == port)
    }

    fn check_weights(&self) -> Result<(), ConfigError> {
        if !self.scheduler.weighs() && self.backend.iter().any(|backend| backend.weight != Weight::ONE) {
            return Err(ConfigError::WeightsUnused);
        }
        let weights: Vec<u32> = self.backend.iter().map(|backend| backend.weight.number()).collect();
        let frontends = self.publish.len();
        let (sum, room) = (layout::places(&weights), layout::room(frontends));
        if self.scheduler.counts_weights() && sum > u64::from(room) {
            return Err(ConfigError::WeightsTooGreat { sum, room, frontends });
        }
        Ok(())
    }

    /// Returns the options given that have a meaning for containers only.
    fn flags_about_containers(&self) -> Vec<&'static str> {
        [
            ("--min", self.min.is_some()),
            ("--max", self.max.is_some()),
            ("--target-cpu", self.target_cpu.is_some()),
            ("--scale-up-window", self.scale_up_window.is_some()),
            ("--scale-down-window", self.scale_down_window.is_some()),
            ("--stop-grace", self.stop_grace.is_some()),
            ("--cpus", self.cpus.is_some()),
            ("--memory", self.memory.is_some()),
            ("--env", !self.env.is_empty()),
            ("--network", self.network.is_some()),
        ]
        .into_iter()
        .filter_map(|(flag, given)| given.then_some(flag))
        .collect()
    }

    /// Every frontend has its own entry for each backend in the kernel's map.
    fn check_sum(&self, each: u32) -> Result<(), ConfigError> {
        let frontends = self.publish.len();
        let fits = u32::try_from(frontends).ok().and_then(|count| count.checked_mul(each));
        match fits {
            Some(sum) if sum <= MAX_BACKENDS_IN_ALL => Ok(()),
            Some(_) | None => Err(ConfigError::TooManyInAll { each, frontends }),
        }
    }

    fn health_check(&self, notes: &mut Vec<String>) -> Result<HealthCheck, ConfigError> {
        let only_udp = self.publish.iter().all(|publish| publish.proto == Proto::Udp);
        match &self.health {
            Some(check @ (HealthCheck::Tcp | HealthCheck::Http { .. })) if only_udp => {
                Err(ConfigError::HealthNeedsTcp { check: check.clone() })
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

/// Returns the first value that was there before.
fn first_double<T: Clone + PartialEq>(values: &[T]) -> Option<T> {
    let doubled = |(position, value): &(usize, &T)| values[..*position].contains(*value);
    values.iter().enumerate().find(doubled).map(|(_, value)| value.clone())
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::prop_assert, proptest};

    use super::*;
    use crate::{
        cli::{Verb, parse_from},
        config::{Cpus, MemorySize},
    };

    /// Parses and checks what follows `lb-user run`.
    fn run(args: &str) -> Result<RunConfig, ConfigError> {
        let words = ["lb-user", "run"].into_iter().chain(args.split_whitespace());
        match parse_from(words).unwrap_or_else(|error| panic!("{args}: {error}")).verb {
            Verb::Run(args) => args.check(),
            other @ (Verb::Status(_) | Verb::Detach(_)) => panic!("{args}: {other:?}"),
        }
    }

    fn docker(config: &RunConfig) -> &Docker {
        match &config.source {
            Source::Docker(docker) => docker,
            Source::Static { backends } => panic!("backends {backends:?}"),
        }
    }

    #[test]
    fn defaults_are_those_of_the_contract() {
        let config = run("--image lb-api --publish 80:5000").expect("a right command line");

        let scaling = &docker(&config).scaling;
        let seconds = Duration::from_secs;
        assert_eq!((scaling.min, scaling.max, scaling.target_cpu.percent()), (2, 10, 100.0));
        assert_eq!((scaling.up_window, scaling.down_window), (seconds(3), seconds(30)));
        assert_eq!(docker(&config).stop_grace, seconds(10));
        assert_eq!(
            (config.interval, config.health_interval, config.drain_timeout),
            (seconds(1), seconds(2), seconds(30))
        );
        assert_eq!((config.hook, config.health, config.max_flows), (Hook::Auto, HealthCheck::Tcp, 1_048_576));
        assert_eq!((config.scheduler, config.affinity, config.slow_start), (Scheduler::RoundRobin, None, None));
        assert_eq!(config.instance.as_str(), "default");
        assert!(!config.keep && !config.complete_checksums && config.uplinks.is_empty() && config.notes.is_empty());
    }

    #[test]
    fn the_help_tells_the_defaults() {
        let help = parse_from(["lb-user", "run", "-h"]).expect_err("the help").to_string();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");

        for default in ["2", "10", "100", "3s", "30s", "10s", "1s", "2s", "auto", "1048576", "default"] {
            assert!(help.contains(&format!("[default: {default}]")), "{default} in {help}");
        }
    }

    #[test]
    fn what_is_said_arrives() {
        let config =
            run("--image web:1 --publish 80:5000 --publish 192.0.2.1:53:5353/udp --instance web --min 3 --max 3 \
             --target-cpu 80% --interval 500ms --scale-up-window 0s --scale-down-window 2m --uplink eth0 --uplink eth1 \
             --hook xdp --tc-attach clsact --health http:/healthz --health-interval 1s --drain-timeout 5s --cpus 0.5 \
             --memory 64m --env A=1 --env B=2 --network web --keep --complete-checksums --max-flows 4096 \
             --stop-grace 1s --scheduler least-conn --affinity 10m --slow-start 30s")
            .expect("a right command line");

        let names: Vec<String> = config.frontends.iter().map(|frontend| frontend.name()).collect();
        assert_eq!(names, ["80/tcp", "192.0.2.1:53/udp"]);
        let env: Vec<String> = docker(&config).env.iter().map(ToString::to_string).collect();
        assert_eq!(env, ["A=1", "B=2"]);
        assert_eq!(docker(&config).memory.map(MemorySize::bytes), Some(64 << 20));
        assert_eq!(docker(&config).cpus.map(Cpus::count), Some(0.5));
        assert_eq!(docker(&config).network.as_deref(), Some("web"));
        assert_eq!(config.uplinks, ["eth0", "eth1"]);
        assert_eq!(config.health, HealthCheck::Http { path: "/healthz".into() });
        let (affinity, slow_start) = (Duration::from_secs(600), Duration::from_secs(30));
        assert_eq!(
            (config.scheduler, config.affinity, config.slow_start),
            (Scheduler::LeastConn, Some(affinity), Some(slow_start))
        );
        assert!(config.keep && config.complete_checksums && config.notes.is_empty());
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
        assert_eq!(config.source, Source::Static { backends: backends.into() });
        assert_eq!(config.frontends[0].container_port, None);
    }

    #[test]
    fn what_was_not_asked_for_is_noted() {
        let udp = run("--image dns --publish 53:5353/udp").expect("a right command line");
        assert_eq!(udp.health, HealthCheck::None);
        assert_eq!(
            udp.notes,
            ["--health is none, because every frontend is UDP: a backend counts as healthy while it runs"]
        );

        let both = run("--image dns --publish 53:5353/udp --publish 53:5353/tcp").expect("a right command line");
        assert_eq!((both.health, both.notes), (HealthCheck::Tcp, vec![]));

        let one = run("--image lb-api --publish 80:5000 --max 1").expect("a right command line");
        assert_eq!((docker(&one).scaling.min, docker(&one).scaling.max), (1, 1));
        assert_eq!(one.notes, ["--min is 1, because --max is"]);

        let weighted = run("--image lb-api --publish 80:5000 --scheduler weighted").expect("a right command line");
        assert_eq!(
            weighted.notes,
            ["--scheduler weighted is round-robin for containers, because all of them have weight 1"]
        );
    }

    #[test]
    fn contradictions_are_told() {
        let rows = [
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
            ("--image a --publish 80:5000 --max 0", "--max 0 would leave nobody to answer: at least 1"),
            ("--image a --publish 80:5000 --min 0", "--min 0 would leave nobody to answer: at least 1"),
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
            ("--backend 192.0.2.1:80 --publish 192.0.2.1:80", "backend 192.0.2.1:80 is the frontend itself"),
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
