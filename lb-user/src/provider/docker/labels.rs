//! How a container says whose it is: its name, its labels, and the hash of the settings that it was made with.

use std::collections::HashMap;

use super::{DockerSettings, with_tag};

/// The label that names the instance a container belongs to; everything is found by it.
pub const INSTANCE: &str = "io.lb-user.instance";
/// The label that names the service within the instance. Agents that knew one service only did not write it.
pub const SERVICE: &str = "io.lb-user.service";
/// The label with the container's place in the service, a decimal number.
pub const ORDINAL: &str = "io.lb-user.ordinal";
/// The label that marks a container as made, and to be removed, by an agent.
pub const MANAGED: &str = "io.lb-user.managed";
/// The label with the hash of the settings that the container was made with.
pub const CONFIG: &str = "io.lb-user.config";

/// Returns the labels of the container of `ordinal`.
#[must_use]
pub fn of(settings: &DockerSettings, ordinal: u32) -> HashMap<String, String> {
    HashMap::from([
        (INSTANCE.to_owned(), settings.instance.clone()),
        (SERVICE.to_owned(), settings.service.clone()),
        (ORDINAL.to_owned(), ordinal.to_string()),
        (MANAGED.to_owned(), "true".to_owned()),
        (CONFIG.to_owned(), config_hash(settings)),
    ])
}

/// Returns the ordinal of a container of `instance`, `None` if the labels are not those of such a container.
#[must_use]
pub fn ordinal_in(instance: &str, labels: &HashMap<String, String>) -> Option<u32> {
    let ours = labels.get(INSTANCE).is_some_and(|found| found == instance)
        && labels.get(MANAGED).is_some_and(|found| found == "true");
    if !ours {
        return None;
    }
    labels.get(ORDINAL)?.parse().ok()
}

/// Returns the service of a container of an instance; one without the label is `heir`'s.
#[must_use]
pub fn service_in<'a>(labels: &'a HashMap<String, String>, heir: &'a str) -> &'a str {
    labels.get(SERVICE).map_or(heir, String::as_str)
}

/// Returns whether a container was made with other settings than `hash` stands for.
#[must_use]
pub fn is_outdated(hash: &str, labels: &HashMap<String, String>) -> bool {
    labels.get(CONFIG).is_none_or(|found| found != hash)
}

/// Returns the names that the container of `ordinal` may take, the first that is free wins. A service with its instance's
/// name is named once.
///
/// More than one, because a container that drains keeps its name while its successor starts.
pub fn names(instance: &str, service: &str, ordinal: u32) -> impl Iterator<Item = String> {
    let whose = if service == instance { instance.to_owned() } else { format!("{instance}-{service}") };
    let first = format!("lb-{whose}-{ordinal}");
    let further: Vec<String> = (2..=9).map(|suffix| format!("{first}-{suffix}")).collect();
    std::iter::once(first).chain(further)
}

/// Returns a hash of all settings that a running container cannot change any more, as 16 hexadecimal digits.
///
/// Stable between versions of the program, as it is compared with labels that an earlier one wrote.
#[must_use]
pub fn config_hash(settings: &DockerSettings) -> String {
    let mut hash = Fnv::default();
    hash.field(&with_tag(&settings.image));
    hash.field(&settings.cpus.map(nano_cpus).map_or_else(String::new, |value| value.to_string()));
    hash.field(&settings.memory.map_or_else(String::new, |value| value.to_string()));
    hash.field(settings.network.as_deref().unwrap_or_default());
    for variable in &settings.env {
        hash.field(variable);
    }
    format!("{:016x}", hash.0)
}

/// Returns a number of CPUs in the engine's unit, a billionth of a CPU.
#[must_use]
pub fn nano_cpus(cpus: f64) -> i64 {
    // A float cast saturates, and no machine has nine billion CPUs.
    (cpus * 1e9).round() as i64
}

/// FNV-1a, 64 bits.
///
/// # Source
/// draft-eastlake-fnv, 3: parameters of the 64-bit hash.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    /// Adds a field and an end mark that no text contains, so that fields cannot flow into each other.
    fn field(&mut self, text: &str) {
        for byte in text.bytes().chain([0xff]) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn settings() -> DockerSettings {
        DockerSettings {
            instance: "web".into(),
            service: "web".into(),
            image: "lb-api".into(),
            network: None,
            cpus: Some(0.5),
            memory: Some(1 << 26),
            env: vec!["A=1".into(), "B=2".into()],
            stop_grace: Duration::from_secs(10),
        }
    }

    #[test]
    fn labels_lead_back_to_the_ordinal() {
        let labels = of(&settings(), 7);

        assert_eq!(ordinal_in("web", &labels), Some(7));
        assert_eq!(ordinal_in("other", &labels), None);
    }

    #[test]
    fn a_container_without_a_service_is_the_heirs() {
        let mut labels = of(&DockerSettings { service: "api".into(), ..settings() }, 7);
        assert_eq!(service_in(&labels, "web"), "api");

        labels.remove(SERVICE);

        assert_eq!((service_in(&labels, "web"), ordinal_in("web", &labels)), ("web", Some(7)));
    }

    #[test]
    fn foreign_or_broken_labels_are_not_ours() {
        let with = |key: &str, value: &str| {
            let mut labels = of(&settings(), 7);
            labels.insert(key.to_owned(), value.to_owned());
            labels
        };

        assert_eq!(ordinal_in("web", &HashMap::new()), None);
        assert_eq!(ordinal_in("web", &with(MANAGED, "false")), None);
        assert_eq!(ordinal_in("web", &with(ORDINAL, "-1")), None);
        assert_eq!(ordinal_in("web", &with(ORDINAL, "4294967296")), None);
        assert_eq!(ordinal_in("web", &with(ORDINAL, "")), None);
    }

    #[test]
    fn the_plain_name_comes_first() {
        let names = |service| super::names("web", service, 3).collect::<Vec<String>>();

        assert_eq!(names("web")[..2], ["lb-web-3", "lb-web-3-2"]);
        assert_eq!(names("api")[..2], ["lb-web-api-3", "lb-web-api-3-2"]);
        assert_eq!(names("api").len(), 9);
    }

    #[test]
    fn the_hash_is_the_same_in_every_version() {
        assert_eq!(config_hash(&settings()), "6925c1cf2de289e2");
    }

    #[test]
    fn every_setting_of_a_container_changes_the_hash() {
        let hash = config_hash(&settings());
        let changes: [fn(&mut DockerSettings); 7] = [
            |settings| settings.image.push('x'),
            |settings| settings.network = Some("web".into()),
            |settings| settings.cpus = None,
            |settings| settings.memory = None,
            |settings| settings.env = vec!["A=1B=2".into()],
            |settings| settings.env.reverse(),
            |settings| settings.env.clear(),
        ];

        for change in changes {
            let mut changed = settings();
            change(&mut changed);
            assert_ne!(config_hash(&changed), hash, "{changed:?}");
        }
    }

    #[test]
    fn settings_of_the_agent_leave_the_hash_alone() {
        let mut changed = settings();
        changed.instance = "other".into();
        changed.service = "other".into();
        changed.stop_grace = Duration::ZERO;

        assert_eq!(config_hash(&changed), config_hash(&settings()));
    }

    #[test]
    fn parts_of_a_cpu_are_rounded_to_the_engines_unit() {
        assert_eq!(nano_cpus(0.1), 100_000_000);
        assert_eq!(nano_cpus(1.5), 1_500_000_000);
    }
}
