//! Scripts on a virtual clock: an event at a time, the commands that follow, and nothing else. `world` holds the
//! same controller against an engine and a datapath that fail, dawdle and lie.

use std::net::IpAddr;

use super::*;

mod scripts;
mod world;

fn ms(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn id(name: &str) -> ContainerId {
    ContainerId::from(name)
}

fn law(min: u32, max: u32) -> Law {
    Law::new(Bounds::new(min, max).unwrap())
}

fn load(percent: f64) -> Event {
    Event::LoadSampled(CpuLoad::from_percent(percent).unwrap())
}

/// A container as the provider shows it, with an address made of its ordinal.
fn sighting(name: &str, ordinal: u32) -> Sighting {
    Sighting {
        id: id(name),
        name: BackendName(format!("lb-test-{ordinal}")),
        ordinal,
        address: Some(IpAddr::from([198, 19, 0, ordinal as u8]).into()),
        running: true,
        created: u64::from(ordinal),
        outdated: false,
        terms: Terms::default(),
    }
}

/// Settings that are the defaults but for who decides how many backends there are.
fn reconfigured(scaling: Scaling) -> Reconfiguration {
    let settings = Settings::new(scaling);
    Reconfiguration {
        reason: "a test".into(),
        scaling,
        drain_timeout: settings.drain_timeout,
        slow_start: settings.slow_start,
        warm: settings.warm,
        probe_interval: settings.probe_interval,
        stop_patience: settings.stop_patience,
        keep: false,
        most: settings.most,
        on_change: settings.on_change,
        unlisted: BTreeSet::new(),
    }
}
