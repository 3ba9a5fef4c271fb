//! The kernel half, and the ABI that it shares with the agent.
//!
//! Ingress is always client → backend, egress always backend → client, whatever a device calls it.
//!
//! ```text
//!  a SYN        uplink ─▶ hooks::tc_ingress | hooks::xdp_ingress
//!                           packet::Headers::parse          one bounds check
//!                           pipeline::ingress               no flow; frontend; scheduler; slot; backend
//!                             HALF_OPEN, HALF_OPEN_REPLIES  both halves, the reply's key claimed
//!                           nat::apply_*                    destination rewritten, checksums by difference
//!                           redirect_peer                   into the container's namespace
//!  its SYN-ACK  veth ─▶ hooks::tc_reply
//!                           pipeline::egress                HALF_OPEN_REPLIES; tcp_state::step
//!                           nat::apply_headers              source rewritten to the frontend
//!                           redirect_neigh                  out of the uplink by which the SYN came
//!               where this host is the backend: what it sends, uplink ◀─ hooks::tc_local; the same, and on it goes
//!  the ACK      uplink ─▶ …  pipeline::ingress              proven: moved to FLOWS and REPLIES
//!  a flood      uplink ─▶ …  pipeline::ingress              no room at the backend: hooks::cookie answers, by what the
//!                                                           backend's own kernel says; no entry
//!  all the rest uplink ─▶ …  FLOWS, BACKENDS, BACKEND_STATS and away
//!  a local      connect() ─▶ hooks::sock_connect            the socket itself goes to the backend,
//!  process                                                  its packets never meet the datapath
//! ```
//!
//! What is not ours is passed, untouched; every exit that is no hand-off is a [`verdict`] with a counter.
#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod checksum;
pub mod cookie;
pub mod guard;
pub mod icmp;
pub mod nat;
pub mod packet;
pub mod pipeline;
pub mod sched;
pub mod tables;
pub mod tcp_state;
pub mod verdict;
pub mod wake;
pub mod wire;
pub mod yardstick;
