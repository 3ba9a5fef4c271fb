//! What this kernel does with the object, found out by trying, without leaving anything: maps and programs end with the
//! handles to them, and what is attached is attached in a network namespace that ends with the thread that made it.

use std::{fmt, fs::File, io, os::fd::AsFd as _, thread};

use aya::{
    Ebpf,
    programs::{SchedClassifier, TcAttachType, loaded_programs},
};
use nix::sched::{CloneFlags, unshare};

use super::{DatapathError, doors, in_a_line, loader, pins, sys};
use crate::config::TcAttach;

/// Room for flows that a trial takes: the least.
const TRIAL_FLOWS: u32 = 1024;
/// A device that every network namespace has from the beginning.
const TRIAL_DEVICE: &str = "lo";

/// What came of a trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// By program: why the verifier refuses it, if it does.
    pub programs: Vec<(String, Option<String>)>,
    /// Whether programs are compiled to machine code.
    pub is_compiled: bool,
    /// Whether TC programs are attached by links, of TCX, and not as filters of a clsact qdisc.
    pub is_by_link: bool,
    /// Why no TC program can be attached, if so; nothing is tried where the program is refused.
    pub tc: Option<String>,
    /// Why XDP cannot be attached behind a driver, if so.
    pub xdp: Option<String>,
}

impl Trial {
    /// Returns whether everything went well that TC needs.
    pub fn is_passed(&self) -> bool {
        self.tc.is_none() && self.programs.iter().all(|(_, refusal)| refusal.is_none())
    }
}

/// A program of somebody, at a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.as_str() {
            "" => write!(f, "program {}", self.id),
            name => write!(f, "program {name} ({})", self.id),
        }
    }
}

/// Loads all programs, and attaches those of uplinks where nothing is.
///
/// # Errors
/// What keeps the object from being loaded.
pub fn try_out(how: TcAttach) -> Result<Trial, DatapathError> {
    // Nothing else ever runs in this thread, so that its namespace is left by nobody but its end.
    let trial = thread::Builder::new().name("trial".into()).spawn(move || in_this_thread(how));
    let trial = trial.map_err(|source| DatapathError::NoBpf { source })?;
    trial.join().expect("a trial does not panic")
}

fn in_this_thread(how: TcAttach) -> Result<Trial, DatapathError> {
    loader::check_object()?;
    let mut ebpf = loader::load_object("trial", Some(TRIAL_FLOWS), None)?;
    let loaded = doors::load_each(&mut ebpf)?;
    let programs: Vec<(String, Option<String>)> = loaded
        .into_iter()
        .map(|(name, outcome)| (name.to_owned(), outcome.err().map(|error| in_a_line(&error))))
        .collect();
    let is_compiled = is_compiled(&ebpf);
    let (tc, xdp) = match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) if programs.iter().all(|(_, refusal)| refusal.is_none()) => (
            doors::try_tc(&mut ebpf, TRIAL_DEVICE, how).err().map(|error| in_a_line(&error)),
            doors::try_xdp(&mut ebpf, TRIAL_DEVICE).err().map(|error| in_a_line(&error)),
        ),
        Ok(()) => (None, None),
        Err(errno) => {
            let told = format!("no network namespace to try it in: {}", io::Error::from(errno));
            (Some(told.clone()), Some(told))
        }
    };
    Ok(Trial { programs, is_compiled, is_by_link: doors::is_by_link(how), tc, xdp })
}

/// Returns whether the kernel has compiled the programs that are loaded.
fn is_compiled(ebpf: &Ebpf) -> bool {
    let info = |program: &aya::programs::Program| program.info().ok();
    ebpf.programs().filter_map(|(_, program)| info(program)).all(|info| info.size_jitted() > 0)
}

/// Returns the TCX programs at the ingress of a device, in the order in which they run; none before Linux 6.6.
///
/// # Errors
/// What the kernel said.
pub fn at_ingress(interface: &str) -> io::Result<Vec<Neighbour>> {
    if !doors::is_by_link(TcAttach::Auto) {
        return Ok(Vec::new());
    }
    let (_, programs) = SchedClassifier::query_tcx(interface, TcAttachType::Ingress).map_err(io::Error::other)?;
    let neighbour = |info: aya::programs::ProgramInfo| Neighbour {
        id: info.id(),
        name: info.name_as_str().unwrap_or_default().to_owned(),
    };
    Ok(programs.into_iter().map(neighbour).collect())
}

/// Returns the programs that meet connect() at the root of control groups, in the order in which they run, each once.
///
/// # Errors
/// What the kernel said.
pub fn at_connect() -> io::Result<Vec<Neighbour>> {
    let Some(root) = pins::mounted_cgroup2()? else { return Ok(Vec::new()) };
    let root = File::open(root)?;
    let mut ids = Vec::new();
    for attach_type in sys::CONNECT {
        for id in sys::programs_at(root.as_fd(), attach_type)? {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
    }
    Ok(ids.into_iter().map(|id| Neighbour { id, name: name_of(id).unwrap_or_default() }).collect())
}

/// Returns the name of a program; nothing if it is gone, or has none.
pub fn name_of(id: u32) -> Option<String> {
    let program = loaded_programs().flatten().find(|program| program.id() == id)?;
    program.name_as_str().map(str::to_owned)
}

/// Returns whether a program is an agent's of ours, by its name.
pub fn is_ours(neighbour: &Neighbour) -> bool {
    doors::is_ours(&neighbour.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_known_by_what_the_kernel_keeps_of_their_names() {
        let is_it = |name: &str| is_ours(&Neighbour { id: 1, name: name.into() });

        assert!(is_it("connect4") && is_it("tc_ingress") && is_it("tc_reply_l3") && is_it("xdp_ingress"));
        assert!(!is_it("cil_from_netdev") && !is_it("") && !is_it("tc_ingress_x"));
    }
}
