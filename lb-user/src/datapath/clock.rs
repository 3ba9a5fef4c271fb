//! The kernel's clock, by which the datapath stamps flows.

use lb_ebpf::abi::KtimeNs;
use nix::time::{ClockId, clock_gettime};

/// Returns the time by which the datapath stamps: `CLOCK_MONOTONIC` at the resolution of the kernel's tick, so never
/// ahead of the precise one.
pub fn ktime() -> KtimeNs {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).expect("the clock exists since Linux 2.6.32");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}
