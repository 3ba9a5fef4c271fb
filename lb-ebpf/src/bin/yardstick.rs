//! The kernel object of the benchmarks, see `lb_ebpf::yardstick`. On the host there is nothing to run.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        bindings::{TC_ACT_OK, TC_ACT_SHOT, xdp_action},
        helpers::bpf_redirect,
        macros::{classifier, map, xdp},
        maps::{Array, LruHashMap, PerCpuArray, ProgramArray},
        programs::{TcContext, XdpContext},
    };
    use lb_ebpf::{
        abi::{Address, FlowEntry, FlowKey, Port, Proto},
        wire::{Ipv4Hdr, Ports},
        yardstick::{FRAME_LEN, Pattern, client},
    };

    const SOURCE: usize = 26;
    const DESTINATION: usize = 30;
    const SOURCE_PORT: usize = 34;
    const DESTINATION_PORT: usize = 36;

    #[map]
    static XDP_TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);
    #[map]
    static TC_TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);
    #[map]
    static PATTERN: Array<Pattern> = Array::with_max_entries(1, 0);
    #[map]
    static TURN: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
    #[map]
    static SUNK: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
    #[map]
    static TABLE: LruHashMap<FlowKey, FlowEntry> = LruHashMap::with_max_entries(1024, 0);

    #[xdp]
    pub fn xdp_lay(ctx: XdpContext) -> u32 {
        if lay(ctx.data(), ctx.data_end()).is_some() {
            // SAFETY: a tail call leaves nothing behind.
            unsafe { XDP_TARGET.tail_call(&ctx, 0) };
        }
        xdp_action::XDP_ABORTED
    }

    #[classifier]
    pub fn tc_lay(ctx: TcContext) -> i32 {
        if lay(ctx.data(), ctx.data_end()).is_some() {
            // SAFETY: a tail call leaves nothing behind.
            unsafe { TC_TARGET.tail_call(&ctx, 0) };
        }
        TC_ACT_SHOT as i32
    }

    #[xdp]
    pub fn xdp_empty(_ctx: XdpContext) -> u32 {
        xdp_action::XDP_PASS
    }

    #[classifier]
    pub fn tc_empty(_ctx: TcContext) -> i32 {
        TC_ACT_OK as i32
    }

    #[xdp]
    pub fn xdp_lookup(ctx: XdpContext) -> u32 {
        let start = ctx.data();
        if start + FRAME_LEN > ctx.data_end() {
            return xdp_action::XDP_ABORTED;
        }
        // SAFETY: compared with the packet's end right above.
        let (ip, ports) = unsafe {
            (((start + 14) as *const Ipv4Hdr).read(), ((start + SOURCE_PORT) as *const Ports).read_unaligned())
        };
        let (source_port, destination_port): (Port, Port) = ports.pair();
        let (source, destination): (Address, Address) = (ip.source(), ip.destination());
        let key = FlowKey::new(source, source_port, destination, destination_port, Proto::Tcp);
        // SAFETY: only looked whether it is there.
        match unsafe { TABLE.get(&key) } {
            Some(entry) if entry.tag == key.tag() => xdp_action::XDP_PASS,
            Some(_) | None => sink(),
        }
    }

    #[xdp]
    pub fn xdp_forward(_ctx: XdpContext) -> u32 {
        match PATTERN.get(0) {
            // SAFETY: takes numbers only.
            Some(pattern) => unsafe { bpf_redirect(pattern.device, 0) as u32 },
            None => xdp_action::XDP_ABORTED,
        }
    }

    #[xdp]
    pub fn xdp_sink(_ctx: XdpContext) -> u32 {
        sink()
    }

    #[inline(always)]
    fn sink() -> u32 {
        if let Some(sunk) = SUNK.get_ptr_mut(0) {
            // SAFETY: this processor's own value.
            unsafe { *sunk += 1 };
        }
        xdp_action::XDP_DROP
    }

    /// Lays the packet of this processor's next turn.
    #[inline(always)]
    fn lay(start: usize, end: usize) -> Option<()> {
        let pattern = PATTERN.get(0)?;
        let turn = TURN.get_ptr_mut(0)?;
        if start + FRAME_LEN > end || pattern.count == 0 || pattern.services == 0 || pattern.service_ports == 0 {
            return None;
        }
        // SAFETY: this processor's own value.
        let now = unsafe { *turn };
        // SAFETY: as above.
        unsafe { *turn = now + 1 };
        let flow = pattern.flow(now);
        let (client_address, client_port) = client(flow);
        let (service, service_port) = (flow % pattern.services, flow % pattern.service_ports);
        // SAFETY: compared with the packet's end above.
        unsafe {
            (start as *mut [u32; FRAME_LEN / 4]).write(pattern.frame); // BPF knows no alignment here
            if pattern.replies == 0 {
                add32(start + SOURCE, client_address);
                ((start + SOURCE_PORT) as *mut u16).write(client_port.to_be());
                add32(start + DESTINATION, service);
                add16(start + DESTINATION_PORT, service_port);
            } else {
                add32(start + DESTINATION, client_address);
                ((start + DESTINATION_PORT) as *mut u16).write(client_port.to_be());
                add32(start + SOURCE, service);
                add16(start + SOURCE_PORT, service_port);
            }
        }
        Some(())
    }

    /// Adds to a number of 32 bits in network order.
    #[inline(always)]
    unsafe fn add32(at: usize, more: u32) {
        let at = at as *mut u32;
        // SAFETY: the caller has compared with the packet's end. IP addresses are aligned within a frame (NET_IP_ALIGN).
        unsafe { at.write(u32::from_be(at.read()).wrapping_add(more).to_be()) };
    }

    /// Adds to a number of 16 bits in network order.
    #[inline(always)]
    unsafe fn add16(at: usize, more: u32) {
        let at = at as *mut u16;
        // SAFETY: as above.
        unsafe { at.write(u16::from_be(at.read()).wrapping_add(more as u16).to_be()) };
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this binary is the host stub of the benchmarks' kernel object");
    std::process::exit(64);
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
