//! Orders: a count by hand, a pause, and the end of both.

use std::time::Duration;

use hyper::Method;
use serde::Serialize;
use tokio::time::{sleep, timeout};

use super::{Line, OperateError};
use crate::{
    server::{
        Taken,
        asks::{Count, Rollout, Scale, Ways},
    },
    status::{
        Exit,
        human::clean,
        snapshot::{Scaling, Service},
    },
};

/// How often it is looked how far a service is.
const LOOK: Duration = Duration::from_millis(300);

/// Orders a count, and waits for so long until it is there, if that is asked for.
///
/// # Errors
/// If the agent does not take it, or it is not there in time.
pub async fn scale(instance: &str, order: Scale, wait: Option<Duration>) -> Result<Exit, OperateError> {
    let line = Line::to(instance);
    let taken = send(&line, "/v1/scale", &order).await?;
    let (Some(limit), Some(service), Count::By(count)) = (wait, taken.services.first(), order.count) else {
        return Ok(Exit::Healthy);
    };
    let name = service.name.clone();
    let late = |last: &str| {
        let limit = humantime::format_duration(limit);
        OperateError::Late(format!("service {name} is not there after {limit}: {last}; the order stays in force"))
    };
    let mut last = String::new();
    match timeout(limit, until(&line, &name, count, &mut last)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(late(&last)),
    }
}

/// Waits until a service has so many ready backends, and tells how far it is whenever that changes.
async fn until(line: &Line, name: &str, count: u32, last: &mut String) -> Result<Exit, OperateError> {
    loop {
        let taken = asked(line, Method::GET, "/v1/services", String::new()).await?;
        let Some(service) = taken.services.iter().find(|service| service.name == name) else {
            return Err(OperateError::Refused(format!("service {name} was removed meanwhile")));
        };
        let scaling = &service.scaling;
        if let Some(other) = overtaken(scaling, count) {
            return Err(OperateError::Refused(format!("service {name}: {other}")));
        }
        let mut told = progress(service);
        told.extend(taken.problems.iter().map(|problem| format!("; {}", clean(problem))));
        if told != *last {
            eprintln!("{name}: {told}");
            last.clone_from(&told);
        }
        if scaling.ready == count && scaling.starting == 0 && scaling.unhealthy == 0 {
            return Ok(Exit::Healthy);
        }
        sleep(LOOK).await;
    }
}

/// Says what has taken the place of a count by hand, if anything has.
fn overtaken(scaling: &Scaling, count: u32) -> Option<String> {
    match &scaling.manual {
        Some(manual) if manual.count == count => None,
        Some(manual) => Some(format!("{} are ordered meanwhile, in place of {count}", manual.count)),
        None => Some(format!(
            "{count} by hand are over, by their time or by an order: {} of them were ready",
            scaling.ready
        )),
    }
}

/// Says how far a service is.
fn progress(service: &Service) -> String {
    let scaling = &service.scaling;
    let others = [
        (scaling.idle, "idle"),
        (scaling.warm, "warm"),
        (scaling.starting, "starting"),
        (scaling.unhealthy, "unhealthy"),
        (scaling.draining, "draining"),
    ];
    let others: String =
        others.iter().filter(|(number, _)| *number > 0).map(|(number, what)| format!(", {number} {what}")).collect();
    format!("{} of {} ready{others}", scaling.ready, scaling.desired)
}

/// Keeps the law from being followed.
///
/// # Errors
/// If the agent does not take it.
pub async fn pause(instance: &str, ways: &Ways) -> Result<Exit, OperateError> {
    send(&Line::to(instance), "/v1/pause", ways).await.map(|_| Exit::Healthy)
}

/// Lets the law be followed again.
///
/// # Errors
/// If the agent does not take it.
pub async fn resume(instance: &str, ways: &Ways) -> Result<Exit, OperateError> {
    send(&Line::to(instance), "/v1/resume", ways).await.map(|_| Exit::Healthy)
}

/// Replaces containers of former settings, and waits for so long until all are replaced, if that is asked for.
///
/// # Errors
/// If the agent does not take it, or it fails, or is not done in time.
pub async fn rollout(instance: &str, order: &Rollout, wait: Option<Duration>) -> Result<Exit, OperateError> {
    let line = Line::to(instance);
    let taken = send(&line, "/v1/rollout", order).await?;
    let Some(limit) = wait else { return Ok(Exit::Healthy) };
    let names: Vec<String> = taken.services.into_iter().map(|service| service.name).collect();
    let mut last = String::new();
    match timeout(limit, until_replaced(&line, &names, &mut last)).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let limit = humantime::format_duration(limit);
            Err(OperateError::Late(format!("not all are replaced after {limit}: {last}; it goes on")))
        }
    }
}

/// Waits until no rollout of these services is under way, and tells how far they are whenever that changes.
async fn until_replaced(line: &Line, names: &[String], last: &mut String) -> Result<Exit, OperateError> {
    loop {
        let taken = asked(line, Method::GET, "/v1/services", String::new()).await?;
        let is_meant = |service: &&Service| names.contains(&service.name);
        let under_way = taken.services.iter().filter(is_meant).filter_map(|service| {
            let rollout = service.scaling.rollout.as_ref()?;
            Some(format!("{}: {} of {} replaced", service.name, rollout.replaced, rollout.of))
        });
        let told = under_way.collect::<Vec<_>>().join("; ");
        if told.is_empty() {
            let is_ours = |problem: &&String| {
                taken.services.len() == 1 || names.iter().any(|name| problem.starts_with(&format!("{name}: ")))
            };
            let mut aborted = taken.problems.iter().filter(is_ours).filter(|one| one.contains("rollout aborted: "));
            return match aborted.next() {
                Some(problem) => Err(OperateError::Refused(clean(problem))),
                None => Ok(Exit::Healthy),
            };
        }
        if told != *last {
            eprintln!("{told}");
            last.clone_from(&told);
        }
        sleep(LOOK).await;
    }
}

/// Sends an order, and prints what was decided on it.
async fn send(line: &Line, path: &str, order: &impl Serialize) -> Result<Taken, OperateError> {
    let body = serde_json::to_string(order).expect("an order has text keys");
    let taken = asked(line, Method::POST, path, body).await?;
    taken.told.iter().for_each(|told| println!("{}", clean(told)));
    // It is in force, and these may keep it from coming about.
    taken.problems.iter().for_each(|problem| eprintln!("! {}", clean(problem)));
    Ok(taken)
}

async fn asked(line: &Line, method: Method, path: &str, body: String) -> Result<Taken, OperateError> {
    let answer = line.ask(method, path, body).await?;
    serde_json::from_slice(&answer).map_err(|error| line.broken(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::snapshot::{Manual, Phase};

    fn scaling() -> Scaling {
        serde_json::from_str(
            r#"{"min":1,"max":5,"desired":5,"ready":2,"starting":3,"draining":0,"unhealthy":0,
                "target_cpu_percent":null,"standing":null}"#,
        )
        .unwrap()
    }

    #[test]
    fn who_waits_is_told_what_has_come_between() {
        let with = |count: Option<u32>| Scaling {
            manual: count.map(|count| Manual { count, age_ms: 0, left_ms: None }),
            ..scaling()
        };

        assert_eq!(overtaken(&with(Some(5)), 5), None);
        assert_eq!(overtaken(&with(Some(3)), 5).unwrap(), "3 are ordered meanwhile, in place of 5");
        assert_eq!(
            overtaken(&with(None), 5).unwrap(),
            "5 by hand are over, by their time or by an order: 2 of them were ready"
        );
    }

    #[test]
    fn progress_names_what_is_under_way_alone() {
        let scaling = scaling();
        let of =
            |scaling| progress(&Service { name: "web".into(), phase: Phase::Running, scaling, frontends: Vec::new() });

        assert_eq!(of(scaling.clone()), "2 of 5 ready, 3 starting");
        assert_eq!(of(Scaling { ready: 5, starting: 0, draining: 1, ..scaling }), "5 of 5 ready, 1 draining");
    }
}
