//! `run --dry-run`: everything that a run looks at before it does anything, and what it would do then.
//!
//! The engine is asked, the interfaces are looked at, the kernel verifies every program, and a controller like that of a
//! run is shown what there is. Nothing is attached, pinned, published, started, stopped or removed, and the lock of the
//! instance is left alone: one that runs notices nothing.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use anyhow::{Result, bail};
use tokio::time::timeout;

use super::{network::Network, service};
use crate::{
    config::{RunConfig, ServiceName},
    control::{Command, Controller, Event, OnChange, Scaling, Settings, Sighting, Timestamp},
    datapath::{DatapathError, links::Links, rehearse, report::Inheritance},
    provider::{
        Provider, ProviderEvent,
        docker::{Fleet, labels},
    },
    status::{human::list, read},
};

/// How long the list of containers is waited for.
const LIST_LIMIT: Duration = Duration::from_secs(20);

/// Tells what a run would do.
///
/// # Errors
/// What would keep it from that.
pub async fn rehearse(mut config: RunConfig) -> Result<()> {
    config.notes.iter().for_each(|note| println!("note: {note}"));
    if !nix::unistd::Uid::effective().is_root() {
        return Err(DatapathError::NotRoot.into());
    }
    let instance = config.instance.as_str().to_owned();
    let (mut inheritance, now) = rehearse::inheritance(&instance)?.unzip();
    let now = now.unwrap_or_default();
    // Asked last, so that everything else is told, too.
    let living = read::agent(&instance).ok().filter(|agent| agent.alive);
    match (&inheritance, &living) {
        (None, _) => println!("instance {instance}: is not there and would begin"),
        (Some(_), Some(agent)) => println!("instance {instance}: runs (pid {})", agent.pid),
        (Some(_), None) => println!("instance {instance}: its agent has gone; what it has left would be taken over"),
    }
    if let Some(inheritance) = &mut inheritance {
        inheritance.bequeath(config.heir().as_str());
    }
    let (fleet, providers) = service::connect(&mut config).await?;
    let links = Links::open()?;
    let network = Network::find(&config, &links).await?;
    network.tell_host(fleet.as_deref());
    network.check(&config)?;
    tokio::task::spawn_blocking(rehearse::verify).await??;
    println!("programs: the kernel accepts every one");
    network.rehearse(&config).iter().for_each(|line| println!("{line}"));
    for service in &config.services {
        let Some(provider) = providers.get(&service.name) else { continue };
        let sightings = listed(provider).await?;
        let mut settings = service::settings(service, &config);
        if let Some(past) = inheritance.as_mut().and_then(|left| left.services.remove(service.name.as_str())) {
            service::take_over(&mut settings, past);
        }
        let names = |ordinal| {
            let mut all = labels::names(&instance, service.name.as_str(), ordinal);
            all.next().expect("there is a first name")
        };
        let following = service.metrics().map(|metrics| format!(", scaling by {metrics}")).unwrap_or_default();
        println!("service {}: {}{following}", service.name, plan(settings, sightings, names, now));
    }
    if let Some(left) = leftovers(&config, fleet.as_deref(), inheritance.as_ref()).await? {
        println!("configured no longer, and would be drained: {left}");
    }
    println!("dry run: nothing was attached, started, stopped or removed");
    match living {
        Some(agent) => bail!(
            "instance {instance} runs (pid {}), so a run would be refused: stop that one, give this one another name with \
             --instance, or send SIGHUP where it runs a file",
            agent.pid
        ),
        None => Ok(()),
    }
}

/// Returns the containers that a service has.
async fn listed(provider: &Arc<dyn Provider>) -> Result<Vec<Sighting>> {
    let mut events = provider.events();
    let list = async {
        loop {
            match events.recv().await {
                Some(ProviderEvent::Resynced(sightings)) => return Ok(sightings),
                Some(ProviderEvent::Lost { error }) => bail!("list the containers: {}", super::chain(&*error)),
                Some(
                    ProviderEvent::Seen(_)
                    | ProviderEvent::Gone { .. }
                    | ProviderEvent::Signalled { .. }
                    | ProviderEvent::Back,
                ) => {}
                None => bail!("list the containers: {}", super::WATCH_ENDED),
            }
        }
    };
    timeout(LIST_LIMIT, list).await?
}

/// Says what a controller would begin with, that is shown what there is.
fn plan(settings: Settings, sightings: Vec<Sighting>, name: impl Fn(u32) -> String, now: Timestamp) -> String {
    let running = sightings.iter().filter(|sighting| sighting.running).count();
    let outdated = sightings.iter().filter(|sighting| sighting.running && sighting.outdated).count();
    let (warm, scaling, on_change) = (settings.warm, settings.scaling, settings.on_change);
    let mut controller = Controller::new(settings);
    let commands = controller.handle(Event::Resynced(sightings), now);
    let report = controller.snapshot(now);
    if scaling == Scaling::Fixed {
        // Others run them: nothing is started or stopped.
        let told = match running == report.desired as usize {
            true => format!("{running} there"),
            false => format!("{running} there, {} would be served", report.desired),
        };
        return [vec![told], report.problems].concat().join("; ");
    }
    let reserve = if warm > 0 { format!(" and {warm} in reserve") } else { String::new() };
    let mut parts = vec![format!("{running} there, {} wanted{reserve}", report.desired)];
    // The last one stays, though it sleeps.
    let wanted = (report.desired.max(1) + warm) as usize;
    let missing = wanted.saturating_sub(running);
    let starts = commands.iter().filter_map(|command| match command {
        Command::Start { ordinal } => Some(name(*ordinal)),
        Command::Publish(_)
        | Command::Stop { .. }
        | Command::Remove { .. }
        | Command::Probe { .. }
        | Command::Freeze { .. }
        | Command::Thaw { .. }
        | Command::Finish => None,
    });
    let first = list(starts);
    if missing > 0 {
        parts.push(format!("would start {missing} (at first {first})"));
    }
    let excess = running.saturating_sub(wanted);
    if excess > 0 {
        parts.push(format!("would drain and stop {excess}"));
    }
    if outdated > 0 {
        let fate = match on_change {
            OnChange::Keep => "be the first to go",
            OnChange::Rollout => "be replaced",
        };
        parts.push(format!("{outdated} of other settings than these, which would {fate}"));
    }
    let dead = commands.iter().filter(|command| matches!(command, Command::Remove { .. })).count();
    if dead > 0 {
        parts.push(format!("would remove {dead} that do not run"));
    }
    parts.join("; ")
}

/// Returns the services that are there and are configured no longer.
async fn leftovers(
    config: &RunConfig,
    fleet: Option<&Fleet>,
    inheritance: Option<&Inheritance>,
) -> Result<Option<String>> {
    let mut names: BTreeSet<String> =
        inheritance.into_iter().flat_map(|left| &left.backends).map(|backend| backend.service.clone()).collect();
    if let Some(fleet) = fleet {
        names.extend(fleet.services().await?);
    }
    let is_configured = |name: &String| {
        let name = name.parse::<ServiceName>();
        name.is_ok_and(|name| config.services.iter().any(|service| service.name == name))
    };
    names.retain(|name| !is_configured(name));
    Ok((!names.is_empty()).then(|| list(&names)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{
        BackendName, Manual, Orders, Terms,
        policy::{Bounds, Law},
    };

    fn sighting(ordinal: u32, running: bool, outdated: bool) -> Sighting {
        let name = BackendName(format!("lb-web-{ordinal}"));
        let (id, created, terms) = (ordinal.to_string().as_str().into(), u64::from(ordinal), Terms::default());
        Sighting { id, name, ordinal, address: None, running, created, outdated, terms }
    }

    #[test]
    fn what_would_be_done_is_what_the_controller_would_command() {
        let told = |there: &[(bool, bool)]| {
            let law = Law::new(Bounds::new(2, 4).unwrap());
            let sightings =
                (1..).zip(there).map(|(ordinal, &(running, outdated))| sighting(ordinal, running, outdated));
            let name = |ordinal| format!("web-{ordinal}");
            plan(Settings::new(Scaling::Auto(law)), sightings.collect(), name, Timestamp::ZERO)
        };

        assert_eq!(told(&[]), "0 there, 2 wanted; would start 2 (at first web-1, web-2)");
        assert_eq!(told(&[(true, false)]), "1 there, 2 wanted; would start 1 (at first web-2)");
        assert_eq!(told(&[(true, false); 3]), "3 there, 3 wanted");
        assert_eq!(told(&[(true, false); 6]), "6 there, 4 wanted; would drain and stop 2");
        let of_each = told(&[(true, true), (true, false), (false, false)]);
        assert_eq!(
            of_each,
            "2 there, 2 wanted; 1 of other settings than these, which would be the first to go; would remove 1 that do not run"
        );
    }

    #[test]
    fn a_count_by_hand_whose_time_is_over_would_not_be_taken_over() {
        let told = |now: u64| {
            let mut settings = Settings::new(Scaling::Auto(Law::new(Bounds::new(1, 4).unwrap())));
            let until = Some(Timestamp::from_millis(60_000));
            settings.adopted_orders.manual = Some(Manual { count: 3, since: Timestamp::ZERO, until });
            plan(settings, vec![sighting(1, true, false)], |_| "web".to_owned(), Timestamp::from_millis(now))
        };

        assert_eq!(told(59_000), "1 there, 3 wanted; would start 2 (at first web, web)");
        assert_eq!(told(61_000), "1 there, 1 wanted");
    }

    #[test]
    fn who_sleeps_is_not_told_to_be_stopped() {
        let orders = Orders { paused_in: Some(Timestamp::ZERO), ..Orders::default() };
        let settings = Settings {
            adopted_desired: Some(0),
            adopted_orders: orders,
            ..Settings::new(Scaling::Auto(Law::new(Bounds::new(0, 4).unwrap())))
        };

        let told = plan(settings, vec![sighting(1, true, false)], |ordinal| format!("web-{ordinal}"), Timestamp::ZERO);

        assert_eq!(told, "1 there, 0 wanted");
    }

    #[test]
    fn what_is_replaced_by_itself_is_told() {
        let law = Law::new(Bounds::new(2, 4).unwrap());
        let settings = Settings { on_change: OnChange::Rollout, ..Settings::new(Scaling::Auto(law)) };
        let sightings = vec![sighting(1, true, true), sighting(2, true, false)];

        assert_eq!(
            plan(settings, sightings, |ordinal| format!("web-{ordinal}"), Timestamp::ZERO),
            "2 there, 2 wanted; 1 of other settings than these, which would be replaced"
        );
    }

    #[test]
    fn what_others_have_started_is_never_stopped_and_who_is_left_out_is_told() {
        let unfit = |sighting: Sighting| Sighting {
            terms: Terms { unfit: Some("it has no port 80".into()), ..Terms::default() },
            ..sighting
        };
        let sightings = vec![sighting(1, true, false), unfit(sighting(2, true, false)), sighting(3, true, false)];
        let settings = Settings { most: Some(1), ..Settings::new(Scaling::Fixed) };

        assert_eq!(
            plan(settings, sightings, |ordinal| format!("web-{ordinal}"), Timestamp::ZERO),
            "3 there, 1 would be served; container lb-web-2 is left out: it has no port 80; container lb-web-3 is left out: \
             there are 1 already, and no more are taken: raise --max"
        );
    }
}
