//! The agent: watches demand and Docker, starts and stops backends, writes the kernel's maps.
//!
//! ```text
//! cli, config ─▶ agent ─▶ control      decides: events and the time in, commands out; no I/O, no clock
//!                  ├────▶ provider     Docker, or a fixed list
//!                  ├────▶ metrics      demand: connections, CPU, latency, pressure
//!                  ├────▶ health       active checks
//!                  └────▶ datapath     the kernel: programs, maps, devices
//! operate ────────────────▶ server    the verbs that ask a running agent
//! server ─────────────────▶ status    what operators say through the control socket: typed questions to the agent's loop
//! doctor ────────────────▶ agent, datapath, provider   what a machine can do; changes nothing
//! status ─────────────────▶ datapath   reads the pinned maps; needs no agent
//! simulate ───────────────▶ control    the scaling law on a trace, without any of the others
//! ```

pub mod agent;
pub mod cli;
pub mod config;
pub mod control;
pub mod datapath;
pub mod doctor;
pub mod freezer;
pub mod health;
pub mod metrics;
pub mod operate;
pub mod provider;
pub mod server;
pub mod simulate;
pub mod status;
pub mod watchdog;
