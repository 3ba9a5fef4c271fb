//! What is asked of the agent's loop, and what comes back.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::{
    config::value::parse_duration,
    control::{Directions, Order, Reach, Refusal},
    status::{human::list, snapshot::Service},
};

/// A question, with where its answer goes.
#[derive(Debug)]
pub struct Asking {
    /// What is asked.
    pub ask: Ask,
    /// Who waits.
    pub answer: oneshot::Sender<Result<Taken, Refused>>,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// What there is.
    Services,
    /// An order for a service, or for whichever it can be meant for.
    Order {
        /// Which service.
        service: Option<String>,
        /// What it is to do.
        order: Order,
    },
}

/// The answer: what was decided, and what there is by then.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Taken {
    /// What was decided on an order, one sentence for each service.
    pub told: Vec<String>,
    /// The services that were asked for, as `status` shows them.
    pub services: Vec<Service>,
    /// What is wrong with them, one sentence each.
    pub problems: Vec<String>,
}

/// Why an order is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no such service.
    #[error("there is no service {given}{}: there {}", alike(given, there), are(there))]
    NoService {
        /// Which was asked for.
        given: String,
        /// Which there are.
        there: Vec<String>,
    },
    /// There is none at all.
    #[error("no service is run that could be meant")]
    Nothing,
    /// It could be any of several.
    #[error("there are several services: name one of {}", list(there))]
    WhichService {
        /// Which there are.
        there: Vec<String>,
    },
    /// The service's controller does not take it.
    #[error("service {service}: {refusal}")]
    Refusal {
        /// Which service.
        service: String,
        /// Why.
        refusal: Refusal,
    },
    /// There is no room for so many.
    #[error("service {service}: {error}")]
    NoRoom {
        /// Which service.
        service: String,
        /// What there is room for.
        error: String,
    },
}

fn alike(given: &str, there: &[String]) -> String {
    let distance = |one: &&String| strsim::damerau_levenshtein(given, one);
    let best = there.iter().min_by_key(distance).filter(|one| distance(one) <= (one.len() / 3).max(1));
    best.map(|one| format!(" (did you mean {one}?)")).unwrap_or_default()
}

fn are(there: &[String]) -> String {
    match there {
        [] => "are none".to_owned(),
        [only] => format!("is {only}"),
        several => format!("are {}", list(several)),
    }
}

/// The body of `POST /v1/scale`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// Which service, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// How many backends.
    pub count: Count,
    /// For how long, such as `10m`; without it until another order.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub lasting: Option<String>,
    /// Whether the smallest and the largest count do not matter.
    #[serde(default)]
    pub force: bool,
}

/// How many backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Count {
    /// So many.
    By(u32),
    /// As many as the law wants.
    Law(Auto),
}

/// The word `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auto {
    /// As many as the law wants.
    Auto,
}

/// The body of `POST /v1/pause` and `POST /v1/resume`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ways {
    /// Which service; without it every one that is scaled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Scale-in.
    #[serde(default, rename = "in")]
    pub scale_in: bool,
    /// Scale-out.
    #[serde(default, rename = "out")]
    pub scale_out: bool,
}

/// The body of `POST /v1/rollout`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// Which service; without it every one that is scaled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// How many are replaced at a time; without it one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel: Option<NonZeroU32>,
    /// Whether it is to be given up instead.
    #[serde(default)]
    pub abort: bool,
}

impl Rollout {
    /// Returns what is asked with it.
    ///
    /// # Errors
    /// What makes no sense.
    pub fn ask(self) -> Result<Ask, String> {
        let order = match (self.abort, self.parallel) {
            (true, Some(_)) => return Err("what is given up is not done several at a time".to_owned()),
            (true, None) => Order::AbortRollout,
            (false, parallel) => Order::Rollout { parallel: parallel.map_or(1, NonZeroU32::get) },
        };
        Ok(Ask::Order { service: self.service, order })
    }
}

impl Scale {
    /// Returns what is asked with it.
    ///
    /// # Errors
    /// What makes no sense.
    pub fn ask(self) -> Result<Ask, String> {
        let lasting =
            self.lasting.as_deref().map(parse_duration).transpose().map_err(|error| format!("for: {error}"))?;
        if lasting.is_some_and(|lasting| lasting.is_zero()) {
            return Err("for: no time at all: leave it out for a count without an end".to_owned());
        }
        let reach = if self.force { Reach::Beyond } else { Reach::Bounds };
        let order = match self.count {
            Count::By(count) => Order::Count { count, lasting, reach },
            Count::Law(Auto::Auto) if lasting.is_some() || self.force => {
                return Err("count auto has neither a time nor anything to force".to_owned());
            }
            Count::Law(Auto::Auto) => Order::Auto,
        };
        Ok(Ask::Order { service: self.service, order })
    }
}

impl Ways {
    /// Returns what these directions make of an order, such as [`Order::Pause`].
    pub fn ask(self, order: fn(Directions) -> Order) -> Ask {
        let directions = match (self.scale_in, self.scale_out) {
            (true, false) => Directions::In,
            (false, true) => Directions::Out,
            (true, true) | (false, false) => Directions::Both,
        };
        Ask::Order { service: self.service, order: order(directions) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn scale(body: &str) -> Result<Ask, String> {
        serde_json::from_str::<Scale>(body).map_err(|error| error.to_string())?.ask()
    }

    #[test]
    fn bodies_are_orders() {
        let count = |count, lasting, reach| Order::Count { count, lasting, reach };
        let of = |service: Option<&str>, order| Ok(Ask::Order { service: service.map(Into::into), order });

        assert_eq!(scale(r#"{"count":5}"#), of(None, count(5, None, Reach::Bounds)));
        let ten = Some(Duration::from_secs(600));
        let body = r#"{"service":"web","count":5,"for":"10m","force":true}"#;
        assert_eq!(scale(body), of(Some("web"), count(5, ten, Reach::Beyond)));
        assert_eq!(scale(r#"{"count":"auto"}"#), of(None, Order::Auto));
        for body in
            [r#"{"count":-1}"#, r#"{"count":"some"}"#, "{}", r#"{"count":1,"colour":"red"}"#, r#"{"count":1.5}"#]
        {
            assert!(scale(body).is_err(), "{body}");
        }
        assert!(scale(r#"{"count":1,"for":"soon"}"#).unwrap_err().starts_with("for: "));
        assert!(scale(r#"{"count":1,"for":"0s"}"#).unwrap_err().starts_with("for: no time"));
        assert!(scale(r#"{"count":"auto","for":"1m"}"#).is_err());
    }

    #[test]
    fn a_rollout_is_begun_or_given_up() {
        let asked = |body: &str| serde_json::from_str::<Rollout>(body).map_err(|error| error.to_string())?.ask();
        let of = |service: Option<&str>, order| Ok(Ask::Order { service: service.map(Into::into), order });

        assert_eq!(asked("{}"), of(None, Order::Rollout { parallel: 1 }));
        assert_eq!(asked(r#"{"service":"web","parallel":3}"#), of(Some("web"), Order::Rollout { parallel: 3 }));
        assert_eq!(asked(r#"{"abort":true}"#), of(None, Order::AbortRollout));
        for body in [r#"{"parallel":0}"#, r#"{"parallel":-1}"#, r#"{"abort":true,"parallel":2}"#, r#"{"all":true}"#] {
            assert!(asked(body).is_err(), "{body}");
        }
    }

    #[test]
    fn no_direction_is_both() {
        let ways = |body: &str| serde_json::from_str::<Ways>(body).unwrap().ask(Order::Pause);
        let all = |directions| Ask::Order { service: None, order: Order::Pause(directions) };

        assert_eq!(ways("{}"), all(Directions::Both));
        assert_eq!(ways(r#"{"in":true}"#), all(Directions::In));
        assert_eq!(ways(r#"{"out":true}"#), all(Directions::Out));
        assert_eq!(ways(r#"{"in":true,"out":true}"#), all(Directions::Both));
    }

    #[test]
    fn what_is_misspelt_is_suggested() {
        let there: Vec<String> = ["web", "cache"].map(Into::into).into();
        let told = |given: &str| Refused::NoService { given: given.into(), there: there.clone() }.to_string();

        assert_eq!(told("wbe"), "there is no service wbe (did you mean web?): there are web, cache");
        assert_eq!(told("mail"), "there is no service mail: there are web, cache");
        let only = Refused::NoService { given: "x".into(), there: vec!["web".into()] };
        assert_eq!(only.to_string(), "there is no service x: there is web");
    }
}
