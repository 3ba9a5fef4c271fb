//! What differs between two configurations of one instance: the first is run, the second is wanted.

use std::net::SocketAddr;

use super::{Following, RunConfig, Scaling, Service, ServiceName, Source};

/// What has to be done to get from one configuration to another. A service that is in neither list stays untouched.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// Services that are there no longer.
    pub removed: Vec<ServiceName>,
    /// Services that were not there.
    pub added: Vec<Service>,
    /// Services that are there in another form.
    pub changed: Vec<Change>,
}

/// A service in another form.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// As it is wanted.
    pub service: Service,
    /// The keys that differ, for people.
    pub keys: Vec<&'static str>,
    /// Static backends that are listed no longer.
    pub unlisted: Vec<SocketAddr>,
}

/// Why a configuration cannot take the place of another while that is run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Something that holds for the whole instance.
    #[error("{key} cannot be changed while the agent runs: end it and run it again, its connections go on with `keep`")]
    Instance {
        /// What differs.
        key: &'static str,
    },
    /// Something of a service that its connections depend on.
    #[error("{key} of service {service} cannot be changed while it runs: give the other one another name")]
    Service {
        /// Which.
        service: ServiceName,
        /// What differs.
        key: &'static str,
    },
    /// Containers instead of static backends, or the other way round.
    #[error(
        "service {service} cannot change between image, backends and discover while it runs: give the other one another \
         name"
    )]
    Source {
        /// Which.
        service: ServiceName,
    },
}

/// Compares two configurations, services by their names.
///
/// # Errors
/// Everything that cannot be changed while the first is run.
pub fn changes(from: &RunConfig, to: &RunConfig) -> Result<Changes, Vec<Refusal>> {
    let mut refusals: Vec<Refusal> = instance_keys(from, to).into_iter().map(|key| Refusal::Instance { key }).collect();
    let find =
        |config: &RunConfig, name: &ServiceName| config.services.iter().find(|service| service.name == *name).cloned();
    let mut changes =
        Changes { removed: from.services.iter().map(|service| service.name.clone()).collect(), ..Changes::default() };
    for service in &to.services {
        changes.removed.retain(|name| *name != service.name);
        match find(from, &service.name) {
            None => changes.added.push(service.clone()),
            Some(former) if former == *service => {}
            Some(former) => {
                if std::mem::discriminant(&former.source) != std::mem::discriminant(&service.source) {
                    refusals.push(Refusal::Source { service: service.name.clone() });
                }
                if former.snat != service.snat {
                    refusals.push(Refusal::Service { service: service.name.clone(), key: "snat" });
                }
                let addresses = |service: &Service| -> Vec<SocketAddr> {
                    service.static_backends().iter().map(|backend| backend.address).collect()
                };
                let listed = addresses(service);
                let unlisted = addresses(&former).into_iter().filter(|one| !listed.contains(one)).collect();
                changes.changed.push(Change {
                    keys: service_keys(&former, service),
                    service: service.clone(),
                    unlisted,
                });
            }
        }
    }
    if refusals.is_empty() { Ok(changes) } else { Err(refusals) }
}

/// Returns the keys of the whole instance that differ and cannot be changed while it runs. `keep` can.
fn instance_keys(from: &RunConfig, to: &RunConfig) -> Vec<&'static str> {
    differing([
        ("instance", from.instance != to.instance),
        ("uplinks", from.uplinks != to.uplinks),
        ("hook", from.hook != to.hook),
        ("tc-attach", from.tc_attach != to.tc_attach),
        ("complete-checksums", from.complete_checksums != to.complete_checksums),
        ("max-flows", from.max_flows != to.max_flows),
        ("lifetime", from.lifetimes != to.lifetimes),
        ("interval", from.interval != to.interval),
    ])
}

/// Returns the keys of a service that differ.
fn service_keys(from: &Service, to: &Service) -> Vec<&'static str> {
    let mut keys = differing([
        ("publish", from.publish != to.publish),
        ("backends", from.static_backends() != to.static_backends()),
        ("allow", from.guard.allow != to.guard.allow),
        ("deny", from.guard.deny != to.guard.deny),
        ("source-rate", from.guard.source_rate != to.guard.source_rate),
        ("scheduler", from.scheduler != to.scheduler),
        ("affinity", from.affinity != to.affinity),
        ("max-connections", from.max_connections != to.max_connections),
        ("slow-start", from.slow_start != to.slow_start),
        ("syn-cookies", from.guard.syn_cookies != to.guard.syn_cookies),
        ("health", from.health != to.health),
        ("health-interval", from.health_interval != to.health_interval),
        ("drain-timeout", from.drain_timeout != to.drain_timeout),
    ]);
    if let (Source::Docker(from), Source::Docker(to)) = (&from.source, &to.source) {
        keys.extend(differing([
            ("image", from.image != to.image),
            ("min", from.scaling.min != to.scaling.min),
            ("warm", from.scaling.warm != to.scaling.warm),
            ("max", from.scaling.max != to.scaling.max),
            ("target-cpu", has_other_targets(&from.scaling, &to.scaling)),
            ("metrics", has_other_metrics(&from.scaling, &to.scaling)),
            ("scale-up-window", from.scaling.up_window != to.scaling.up_window),
            ("scale-down-window", from.scaling.down_window != to.scaling.down_window),
            ("cpus", from.cpus != to.cpus),
            ("memory", from.memory != to.memory),
            ("env", from.env != to.env),
            ("network", from.network != to.network),
            ("stop-grace", from.stop_grace != to.stop_grace),
            ("on-change", from.on_change != to.on_change),
        ]));
    }
    if let (Source::Discovered(from), Source::Discovered(to)) = (&from.source, &to.source) {
        keys.extend(differing([("max", from.max != to.max), ("network", from.network != to.network)]));
    }
    keys
}

/// Whether the same metrics aim at something else.
fn has_other_targets(from: &Scaling, to: &Scaling) -> bool {
    from.following != to.following && !has_other_metrics(from, to)
}

fn has_other_metrics(from: &Scaling, to: &Scaling) -> bool {
    match (&from.following, &to.following) {
        (Following::HostCpu(_), Following::HostCpu(_)) => false,
        (Following::Demand(from), Following::Demand(to)) => !from.metrics().eq(to.metrics()),
        (Following::HostCpu(_), Following::Demand(_)) | (Following::Demand(_), Following::HostCpu(_)) => true,
    }
}

fn differing<const N: usize>(keys: [(&'static str, bool); N]) -> Vec<&'static str> {
    keys.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::file::parse;

    const BEFORE: &str = r#"
        [[service]]
        name = "web"
        image = "lb-api"
        publish = ["80:5000"]

        [[service]]
        name = "cache"
        publish = "6379"
        backends = ["198.18.2.11:6379", "198.18.2.12:6379"]
    "#;

    fn config(text: &str) -> RunConfig {
        parse(text).expect("a right file")
    }

    /// Compares the file above with itself after some words were replaced.
    fn after(replaced: &[(&str, &str)]) -> Result<Changes, Vec<Refusal>> {
        let after = replaced.iter().fold(BEFORE.to_owned(), |text, (word, other)| {
            assert!(text.contains(word), "{word}");
            text.replace(word, other)
        });
        changes(&config(BEFORE), &config(&after))
    }

    #[test]
    fn the_same_is_no_change() {
        assert_eq!(after(&[]), Ok(Changes::default()));
        assert_eq!(after(&[("\"80:5000\"", "\"80:5000/tcp\"")]), Ok(Changes::default()), "written in another way");
    }

    #[test]
    fn the_address_by_which_clients_are_known_stays() {
        let refused = after(&[("\"6379\"", "\"6379\"\nsnat = \"192.0.2.1\"")]).unwrap_err();

        assert_eq!(refused, [Refusal::Service { service: "cache".parse().unwrap(), key: "snat" }]);
        assert!(refused[0].to_string().starts_with("snat of service cache cannot be changed while it runs"));
    }

    /// What is replaced by what, which service is another by that, and which of its keys.
    type Row<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a [&'a str]);

    #[test]
    fn only_what_differs_is_told() {
        let rows: [Row<'_>; 13] = [
            (&[("\"lb-api\"", "\"lb-api:2\"")], "web", &["image"]),
            (&[("image", "min = 1\nmax = 3\nimage")], "web", &["min", "max"]),
            (
                &[("image", "target-cpu = 60\nscale-up-window = \"1s\"\nimage")],
                "web",
                &["target-cpu", "scale-up-window"],
            ),
            (&[("image", "metrics = [\"arrivals\"]\nimage")], "web", &["metrics"]),
            (&[("image", "metrics = [\"arrivals\", \"container-cpu=60\"]\nimage")], "web", &["target-cpu"]),
            (&[("image", "on-change = \"rollout\"\nimage")], "web", &["on-change"]),
            (&[("image", "cpus = 0.5\nmemory = \"64m\"\nimage")], "web", &["cpus", "memory"]),
            (&[("\"80:5000\"", "\"80:5000\", \"81:5000\"")], "web", &["publish"]),
            (&[("\"6379\"", "\"6379\"\nhealth = \"none\"")], "cache", &["health"]),
            (
                &[(
                    "\"6379\"",
                    "\"6379\"\nscheduler = \"maglev\"\naffinity = \"10m\"\nmax-connections = 9\nslow-start = \"30s\"",
                )],
                "cache",
                &["scheduler", "affinity", "max-connections", "slow-start"],
            ),
            (
                &[("198.18.2.12:6379", "198.18.2.12:6379=3"), ("\"6379\"", "\"6379\"\nscheduler = \"weighted\"")],
                "cache",
                &["backends", "scheduler"],
            ),
            (&[("\"6379\"", "\"6379\"\ndrain-timeout = \"5s\"")], "cache", &["drain-timeout"]),
            (&[("\"6379\"", "\"6379\"\nsyn-cookies = \"off\"")], "cache", &["syn-cookies"]),
        ];
        for (replaced, name, keys) in rows {
            let changes = after(replaced).expect("it can be changed");

            assert!(changes.removed.is_empty() && changes.added.is_empty(), "{replaced:?}");
            let told: Vec<_> =
                changes.changed.iter().map(|one| (one.service.name.as_str(), one.keys.as_slice())).collect();
            assert_eq!(told, [(name, keys)], "{replaced:?}");
        }
    }

    #[test]
    fn backends_that_are_not_listed_any_more_are_named() {
        let changes = after(&[(", \"198.18.2.12:6379\"", ", \"198.18.2.13:6379\"")]).expect("it can be changed");

        let [change] = changes.changed.as_slice() else { panic!("{changes:?}") };
        assert_eq!(change.keys, ["backends"]);
        assert_eq!(change.unlisted, ["198.18.2.12:6379".parse().unwrap()]);

        let heavier = [("198.18.2.12:6379", "198.18.2.12:6379=3"), ("\"6379\"", "\"6379\"\nscheduler = \"maglev\"")];
        let changes = after(&heavier).expect("it can be changed");
        assert!(changes.changed[0].unlisted.is_empty(), "another weight is no other backend");
    }

    #[test]
    fn containers_of_others_stay_such_and_what_is_expected_of_them_may_change() {
        const DISCOVERS: &str = "[[service]]\nname = \"web\"\ndiscover = true\npublish = \"80\"\n";
        let with = |rest: &str| changes(&config(DISCOVERS), &config(&format!("{DISCOVERS}{rest}")));

        let keys = with("max = 9\nnetwork = \"lan\"\nslow-start = \"9s\"").unwrap().changed[0].keys.clone();
        assert_eq!(keys, ["slow-start", "max", "network"]);
        let other = DISCOVERS.replace("discover = true", "backends = [\"198.18.2.14:80\"]");
        let refusals = changes(&config(DISCOVERS), &config(&other));
        assert_eq!(refusals, Err(vec![Refusal::Source { service: "web".parse().unwrap() }]));
        assert!(changes(&config(&other), &config(DISCOVERS)).is_err());
        let own = DISCOVERS.replace("discover = true", "image = \"lb-api\"").replace("\"80\"", "\"80:80\"");
        assert!(changes(&config(DISCOVERS), &config(&own)).is_err());
    }

    #[test]
    fn services_come_and_go_by_their_names() {
        let changes = after(&[("\"cache\"", "\"store\"")]).expect("it can be changed");

        assert_eq!(changes.removed.iter().map(ServiceName::as_str).collect::<Vec<_>>(), ["cache"]);
        assert_eq!(changes.added.iter().map(|service| service.name.as_str()).collect::<Vec<_>>(), ["store"]);
        assert!(changes.changed.is_empty());
    }

    #[test]
    fn what_holds_for_the_whole_instance_is_refused_by_its_key() {
        let keys = |top: &str| {
            let refusals = changes(&config(BEFORE), &config(&format!("{top}\n{BEFORE}"))).expect_err(top);
            refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        for key in
            ["instance = \"b\"", "uplinks = [\"b\"]", "hook = \"xdp\"", "tc-attach = \"tcx\"", "max-flows = 4096"]
        {
            assert!(keys(key).starts_with(key.split(' ').next().unwrap()), "{key}: {}", keys(key));
        }
        assert!(keys("interval = \"2s\"").starts_with("interval cannot be changed while the agent runs"));
        assert!(keys("hook = \"xdp\"\ncomplete-checksums = true").contains("; complete-checksums cannot"));
        assert!(changes(&config(BEFORE), &config(&format!("keep = true\n{BEFORE}"))).is_ok());
    }

    #[test]
    fn containers_do_not_become_backends_of_others_under_the_same_name() {
        let refusals = after(&[("image = \"lb-api\"", "backends = [\"198.18.2.14:80\"]"), ("80:5000", "80")]);

        assert_eq!(refusals, Err(vec![Refusal::Source { service: "web".parse().unwrap() }]));
    }
}
