//! What the kernel would say to a run, with nothing attached, pinned or written.

use lb_ebpf::abi::map;

use super::{
    DatapathError, Maps, Pins, doors,
    loader::{check_former, check_host, check_others, load_object},
    publish::FrontendWish,
    report::Inheritance,
};
use crate::control::Timestamp;

/// So many flows are enough to show that the maps can be made.
const FLOWS: u32 = 1024;

/// Returns what a former agent has left that a run would take over, and what time it is by its clock; nothing if there is
/// no such instance.
///
/// # Errors
/// What would keep a run from it.
pub fn inheritance(instance: &str) -> Result<Option<(Inheritance, Timestamp)>, DatapathError> {
    let netns_cookie = check_host()?;
    let pins = Pins::of(instance);
    if !pins.path(map::AGENT).exists() {
        return Ok(None);
    }
    check_former(&pins, instance, netns_cookie)?;
    let (record, text) = Maps::open(&pins)?.read_report()?;
    let inheritance = Inheritance::parse(&text);
    let age = inheritance.age(&record);
    Ok(Some((inheritance, Timestamp::new(age))))
}

/// Has the kernel verify every program, on maps that end with this.
///
/// # Errors
/// What it refuses.
pub fn verify() -> Result<(), DatapathError> {
    let mut ebpf = load_object("rehearsal", Some(FLOWS), None)?;
    doors::load_all(&mut ebpf)
}

/// Refuses frontends that another instance has.
///
/// # Errors
/// [`DatapathError::FrontendTaken`].
pub fn check_frontends(instance: &str, wishes: &[FrontendWish]) -> Result<(), DatapathError> {
    let netns_cookie = check_host()?;
    wishes.iter().try_for_each(|wish| check_others(instance, netns_cookie, wish))
}
