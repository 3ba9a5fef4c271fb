//! Sockets of this host: the backend is chosen once, at connect(), and no packet is ever rewritten.
//!
//! An unconnected UDP socket is led datagram by datagram, to one backend as long as its flow lives. The process goes on
//! seeing the frontend: as its peer, and as the sender of answers.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_ANY, bpf_sock_addr},
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::{cgroup_sock, cgroup_sock_addr},
    programs::{SockAddrContext, SockContext},
};
use lb_ebpf::{
    abi::{Address, Endpoint, LocalFlow, LocalKey, Port, Proto},
    pipeline,
    tables::Tables as _,
    verdict::PassReason,
};

use super::{
    maps::{self, KernelTables, LOCAL_FLOWS, LOCAL_NETNS},
    now,
};

/// The system call goes on; whether its address was changed is another matter.
const PROCEED: i32 = 1;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    let Some(wanted) = peer(&ctx) else { return PROCEED };
    let Some(frontend) = KernelTables.frontend_at(&wanted) else { return PROCEED };
    let led = reachable(&ctx).and_then(|()| {
        let (id, backend) = pipeline::choose(frontend, &KernelTables)?;
        let Some(proto) = wanted.proto() else { return Err(PassReason::Protocol) };
        let given = Endpoint::new(backend.address, backend.port, proto);
        let flow = LocalFlow { last_seen: now(), wanted, given, backend: id, generation: backend.generation };
        let _peer_shows_if_full = LOCAL_FLOWS.insert(LocalKey::connected(cookie(&ctx)), flow, BPF_ANY.into());
        if let Some(traffic) = KernelTables.traffic(id) {
            traffic.count_local_connection();
        }
        set_peer(&ctx, &given);
        Ok(())
    });
    if let Err(reason) = led {
        maps::count(reason.index());
    }
    PROCEED
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    let Some(wanted) = peer(&ctx) else { return PROCEED };
    let Some(frontend) = KernelTables.frontend_at(&wanted) else { return PROCEED };
    let led = reachable(&ctx).and_then(|()| {
        let cookie = cookie(&ctx);
        let key = LocalKey::datagrams(cookie, wanted);
        // SAFETY: an entry of another flow, put in its place meanwhile, names a backend as well.
        if let Some(flow) = unsafe { LOCAL_FLOWS.get(key) }.copied()
            && KernelTables.backend(flow.backend).is_some_and(|backend| backend.serves(flow.generation))
        {
            let alive = LocalFlow { last_seen: now(), ..flow };
            let _still_there_if_full = LOCAL_FLOWS.insert(key, alive, BPF_ANY.into());
            set_peer(&ctx, &flow.given);
            return Ok(());
        }
        let (id, backend) = pipeline::choose(frontend, &KernelTables)?;
        let given = Endpoint::new(backend.address, backend.port, Proto::Udp);
        let flow = LocalFlow { last_seen: now(), wanted, given, backend: id, generation: backend.generation };
        let _next_datagram_chooses_anew_if_full = LOCAL_FLOWS.insert(key, flow, BPF_ANY.into());
        let _backend_shows_if_full = LOCAL_FLOWS.insert(LocalKey::answers(cookie, given), flow, BPF_ANY.into());
        if let Some(traffic) = KernelTables.traffic(id) {
            traffic.count_local_connection();
        }
        set_peer(&ctx, &given);
        Ok(())
    });
    if let Err(reason) = led {
        maps::count(reason.index());
    }
    PROCEED
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    if let Some(sender) = peer(&ctx) {
        let cookie = cookie(&ctx);
        restore(&ctx, &LocalKey::answers(cookie, sender), &sender);
        restore(&ctx, &LocalKey::connected(cookie), &sender);
    }
    PROCEED
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    if let Some(shown) = peer(&ctx) {
        restore(&ctx, &LocalKey::connected(cookie(&ctx)), &shown);
    }
    PROCEED
}

#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    // SAFETY: the context is valid as long as the program runs.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let _mostly_none = LOCAL_FLOWS.remove(LocalKey::connected(cookie));
    PROCEED
}

/// Shows the frontend where the kernel shows the backend that a flow was led to.
#[inline(always)]
fn restore(ctx: &SockAddrContext, key: &LocalKey, shown: &Endpoint) {
    // SAFETY: an entry of another flow, put in its place meanwhile, is told by its backend's endpoint.
    if let Some(flow) = unsafe { LOCAL_FLOWS.get(key) }
        && flow.given == *shown
    {
        let wanted = flow.wanted;
        set_peer(ctx, &wanted);
    }
}

/// Returns whether the socket can reach a backend.
#[inline(always)]
fn reachable(ctx: &SockAddrContext) -> Result<(), PassReason> {
    // SAFETY: the context is valid as long as the program runs.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: only whether there is an entry counts.
    if unsafe { LOCAL_NETNS.get(netns) }.is_none() {
        return Err(PassReason::ForeignNetns);
    }
    if is_bound_to_loopback(ctx) {
        return Err(PassReason::LoopbackBound);
    }
    Ok(())
}

#[inline(always)]
fn is_bound_to_loopback(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context is valid as long as the program runs; the verifier insists on the comparison with null.
    unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        !sk.is_null() && (&raw const (*sk).src_ip4).read_volatile().to_ne_bytes()[0] == 127
    }
}

/// Returns the address in the system call, if its protocol is balanced.
#[inline(always)]
fn peer(ctx: &SockAddrContext) -> Option<Endpoint> {
    let at: *const bpf_sock_addr = ctx.sock_addr;
    // SAFETY: the context is valid as long as the program runs; its fields are read one by one, whole.
    let (address, port, protocol) = unsafe {
        (
            (&raw const (*at).user_ip4).read_volatile(),
            (&raw const (*at).user_port).read_volatile(),
            (&raw const (*at).protocol).read_volatile(),
        )
    };
    let proto = Proto::from_number(protocol as u8)?;
    Some(Endpoint::new(Address::from_v4_wire(address), Port::from_wire(port as u16), proto))
}

/// Changes the address in the system call.
#[inline(always)]
fn set_peer(ctx: &SockAddrContext, to: &Endpoint) {
    // SAFETY: the context is valid as long as the program runs; its fields are written one by one, whole.
    unsafe {
        (&raw mut (*ctx.sock_addr).user_ip4).write_volatile(to.address.v4_wire());
        (&raw mut (*ctx.sock_addr).user_port).write_volatile(u32::from(to.port.wire()));
    }
}

#[inline(always)]
fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is valid as long as the program runs.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}
