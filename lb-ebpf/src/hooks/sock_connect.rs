//! Sockets of this host: the backend is chosen once, at connect(), and no packet is ever rewritten.
//!
//! An unconnected UDP socket is led datagram by datagram, to one backend as long as its flow lives. The process goes on
//! seeing the frontend: as its peer, and as the sender of answers. Sockets of IPv6 that speak to an IPv4 address mapped
//! into IPv6 are led alike; what they send there without a connection passes the IPv4 hook, as the kernel has it.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_ANY, bpf_sock_addr},
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::{cgroup_sock, cgroup_sock_addr},
    programs::{SockAddrContext, SockContext},
};
use lb_ebpf::{
    abi::{Address, Endpoint, FlowKey, FrontendId, LocalFlow, LocalKey, Port, Proto},
    pipeline::{self, Choice},
    sched::NOBODY,
    tables::{TOUCH_NS, Tables as _},
    tcp_state::State,
    verdict::{Event, PassReason, Verdict},
};

use super::{
    atomic,
    maps::{self, LOCAL_DATAGRAMS, LOCAL_FLOWS, LOCAL_NETNS, TABLES},
    now,
};

/// The system call goes on; whether its address was changed is another matter.
const PROCEED: i32 = 1;
/// It fails with `EPERM`, as what a firewall drops does.
const REFUSE: i32 = 0;
/// How many backends are tried for one that the socket does not know by another frontend.
const CHOICES: u32 = 4;

/// How the address in the system call is written.
#[derive(Clone, Copy)]
enum Family {
    V4,
    /// As an IPv6 address, which may be an IPv4 one mapped into IPv6 (RFC 4291, 2.5.5.2).
    V6,
}

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    connect(&ctx, Family::V4)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    connect(&ctx, Family::V6)
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, family: Family) -> i32 {
    let Some(wanted) = peer(ctx, family) else { return PROCEED };
    let Some(frontend) = TABLES.frontend_at(&wanted) else { return PROCEED };
    match reachable(ctx, &wanted).and_then(|()| lead(ctx, frontend, wanted)) {
        Ok(flow) => {
            count_connection(&flow);
            if LOCAL_FLOWS.insert(cookie(ctx), flow, BPF_ANY.into()).is_err() {
                maps::count_atomically(Event::LocalTableFull.index());
            }
            set_peer(ctx, family, &flow.given);
            PROCEED
        }
        Err(verdict) => action(verdict),
    }
}

/// Counts a verdict and turns it into what becomes of the system call.
#[inline(always)]
fn action(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass(reason) => {
            maps::count_atomically(reason.index());
            PROCEED
        }
        Verdict::Drop(reason) => {
            maps::count_atomically(reason.index());
            REFUSE
        }
        // Of packets alone.
        Verdict::Answer | Verdict::Acknowledge => PROCEED,
    }
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    send(&ctx, Family::V4)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    send(&ctx, Family::V6)
}

#[inline(always)]
fn send(ctx: &SockAddrContext, family: Family) -> i32 {
    let Some(wanted) = peer(ctx, family) else { return PROCEED };
    let Some(frontend) = TABLES.frontend_at(&wanted) else { return PROCEED };
    let key = LocalKey::datagrams(cookie(ctx), wanted);
    // SAFETY: an entry of another flow, put in its place meanwhile, is told by where that one wanted to go.
    if let Some(flow) = unsafe { LOCAL_DATAGRAMS.get(key) }.copied()
        && flow.wanted == wanted
        && TABLES.backend(flow.backend).is_some_and(|backend| backend.serves(flow.generation))
    {
        let idle = now().saturating_sub(flow.last_seen);
        if idle <= TABLES.lifetime_ns(State::UdpReplied) {
            if idle >= TOUCH_NS {
                remember(ctx, &LocalFlow { last_seen: now(), ..flow });
            }
            set_peer(ctx, family, &flow.given);
            return PROCEED;
        }
    }
    match reachable(ctx, &wanted).and_then(|()| lead_alone(ctx, frontend, wanted)) {
        Ok(flow) => {
            count_connection(&flow);
            remember(ctx, &flow);
            set_peer(ctx, family, &flow.given);
            PROCEED
        }
        Err(verdict) => action(verdict),
    }
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    receive(&ctx, Family::V4);
    PROCEED
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    receive(&ctx, Family::V6);
    PROCEED
}

#[inline(always)]
fn receive(ctx: &SockAddrContext, family: Family) {
    let Some(sender) = peer(ctx, family) else { return };
    let cookie = cookie(ctx);
    // SAFETY: an entry of another flow, put in its place meanwhile, is told by its backend's endpoint.
    restore(ctx, family, unsafe { LOCAL_DATAGRAMS.get(LocalKey::answers(cookie, sender)) }, &sender);
    // SAFETY: as above.
    restore(ctx, family, unsafe { LOCAL_FLOWS.get(cookie) }, &sender);
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    show_peer(&ctx, Family::V4);
    PROCEED
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    show_peer(&ctx, Family::V6);
    PROCEED
}

#[inline(always)]
fn show_peer(ctx: &SockAddrContext, family: Family) {
    if let Some(shown) = peer(ctx, family) {
        // SAFETY: as for `receive`.
        restore(ctx, family, unsafe { LOCAL_FLOWS.get(cookie(ctx)) }, &shown);
    }
}

#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    // SAFETY: the context is valid as long as the program runs.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: whole words, each read at once; the entry is this socket's.
    let Some(flow) = (unsafe { LOCAL_FLOWS.get(cookie) }) else { return PROCEED };
    let (id, generation) = (flow.backend, flow.generation);
    // The number may be another server's by now, which has nothing of this one.
    if LOCAL_FLOWS.remove(cookie).is_ok() && TABLES.backend(id).is_some_and(|backend| backend.serves(generation)) {
        TABLES.ended(id);
    }
    PROCEED
}

/// Chooses the backend of a socket. It has no address of its own yet: to an address of this host the kernel gives that one,
/// so all processes are one client; what tells its connections apart is the socket.
#[inline(always)]
fn lead(ctx: &SockAddrContext, frontend: FrontendId, wanted: Endpoint) -> Result<LocalFlow, Verdict> {
    let Some(proto) = wanted.proto() else { return Err(Verdict::Pass(PassReason::Protocol)) };
    let port = Port::from_wire(cookie(ctx) as u16);
    let client = FlowKey::new(wanted.address, port, wanted.address, wanted.port, proto);
    // Not in scratch: another program may come in between on the same processor.
    let Some(&entry) = TABLES.frontend(frontend) else { return Err(Verdict::Pass(PassReason::NoBackend)) };
    let Choice { id, backend, is_kept } = pipeline::choose((frontend, &entry), &client, NOBODY, now(), &TABLES)?;
    if !is_kept {
        TABLES.keep(frontend, &client, (id, backend.generation), now());
    }
    let given = Endpoint::new(backend.address, backend.port, proto);
    Ok(LocalFlow { last_seen: now(), wanted, given, backend: id, generation: backend.generation })
}

/// Chooses a backend whose answers the socket does not take for another frontend's, which has the same server. If only
/// such are found, its answers show the frontend that was asked last.
#[inline(always)]
fn lead_alone(ctx: &SockAddrContext, frontend: FrontendId, wanted: Endpoint) -> Result<LocalFlow, Verdict> {
    let mut flow = lead(ctx, frontend, wanted)?;
    for _ in 1..CHOICES {
        // SAFETY: a racing change can only be another flow's of the same socket, which is what is asked for.
        match unsafe { LOCAL_DATAGRAMS.get(LocalKey::answers(cookie(ctx), flow.given)) } {
            Some(other)
                if other.wanted != wanted
                    && flow.last_seen.saturating_sub(other.last_seen) <= TABLES.lifetime_ns(State::UdpReplied) =>
            {
                // That others have no room is no reason to give up the one that has.
                match lead(ctx, frontend, wanted) {
                    Ok(next) => flow = next,
                    Err(_) => break,
                }
            }
            Some(_) | None => break,
        }
    }
    Ok(flow)
}

/// Counts a connection that begins.
#[inline(always)]
fn count_connection(flow: &LocalFlow) {
    TABLES.begun(flow.backend);
    TABLES.held(flow.backend);
    if let Some(traffic) = TABLES.traffic(flow.backend) {
        atomic::increment(traffic.local_connections());
    }
}

/// Notes where datagrams of a socket go, and whose answers they get. If there is no room, the next datagram chooses
/// anew, and the backend shows.
#[inline(always)]
fn remember(ctx: &SockAddrContext, flow: &LocalFlow) {
    let cookie = cookie(ctx);
    let there = LOCAL_DATAGRAMS.insert(LocalKey::datagrams(cookie, flow.wanted), flow, BPF_ANY.into());
    let back = LOCAL_DATAGRAMS.insert(LocalKey::answers(cookie, flow.given), flow, BPF_ANY.into());
    if there.is_err() || back.is_err() {
        maps::count_atomically(Event::LocalTableFull.index());
    }
}

/// Shows the frontend where the kernel shows the backend that a flow was led to.
#[inline(always)]
fn restore(ctx: &SockAddrContext, family: Family, flow: Option<&LocalFlow>, shown: &Endpoint) {
    if let Some(flow) = flow
        && flow.given == *shown
    {
        let wanted = flow.wanted;
        set_peer(ctx, family, &wanted);
    }
}

/// Returns whether the socket can reach a backend of the family of what it wanted to reach.
#[inline(always)]
fn reachable(ctx: &SockAddrContext, wanted: &Endpoint) -> Result<(), Verdict> {
    // SAFETY: the context is valid as long as the program runs.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: only whether there is an entry counts.
    if unsafe { LOCAL_NETNS.get(netns) }.is_none() {
        return Err(Verdict::Pass(PassReason::ForeignNetns));
    }
    // SAFETY: the context is valid as long as the program runs; the verifier insists on the comparison with null.
    unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        if sk.is_null() {
            return Ok(());
        }
        if (&raw const (*sk).bound_dev_if).read_volatile() != 0 {
            return Err(Verdict::Pass(PassReason::DeviceBound));
        }
        // A socket that is bound to an IPv6 address has one of 127.0.0.0/8 here, too (`LOOPBACK4_IPV6` of the kernel).
        let bound_to_loopback = if wanted.address.is_v4() {
            (&raw const (*sk).src_ip4).read_volatile().to_ne_bytes()[0] == 127
        } else {
            let words: *const u32 = (&raw const (*sk).src_ip6).cast();
            [0, 1, 2, 3].map(|place| words.add(place).read_volatile()) == Address::LOOPBACK_V6.v6_wire()
        };
        if bound_to_loopback {
            return Err(Verdict::Pass(PassReason::LoopbackBound));
        }
    }
    Ok(())
}

/// Returns the address in the system call, if it and its protocol are balanced.
#[inline(always)]
fn peer(ctx: &SockAddrContext, family: Family) -> Option<Endpoint> {
    let at: *const bpf_sock_addr = ctx.sock_addr;
    // SAFETY: the context is valid as long as the program runs; its fields are read one by one, whole.
    let (port, protocol) =
        unsafe { ((&raw const (*at).user_port).read_volatile(), (&raw const (*at).protocol).read_volatile()) };
    let proto = Proto::from_number(protocol as u8)?;
    let address = match family {
        // SAFETY: as above.
        Family::V4 => Address::from_v4_wire(unsafe { (&raw const (*at).user_ip4).read_volatile() }),
        Family::V6 => {
            let mut words = [0; 4];
            for (place, word) in words.iter_mut().enumerate() {
                // SAFETY: as above.
                *word = unsafe { (&raw const (*at).user_ip6[place]).read_volatile() };
            }
            Address::from_v6_wire(words)
        }
    };
    Some(Endpoint::new(address, Port::from_wire(port as u16), proto))
}

/// Changes the address in the system call.
#[inline(always)]
fn set_peer(ctx: &SockAddrContext, family: Family, to: &Endpoint) {
    // SAFETY: the context is valid as long as the program runs; its fields are written one by one, whole.
    unsafe {
        match family {
            Family::V4 => (&raw mut (*ctx.sock_addr).user_ip4).write_volatile(to.address.v4_wire()),
            Family::V6 => {
                for (place, word) in to.address.v6_wire().into_iter().enumerate() {
                    (&raw mut (*ctx.sock_addr).user_ip6[place]).write_volatile(word);
                }
            }
        }
        (&raw mut (*ctx.sock_addr).user_port).write_volatile(u32::from(to.port.wire()));
    }
}

#[inline(always)]
fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is valid as long as the program runs.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}
