//! The snapshot as a page for people: state first, then each frontend with its backends, then what was counted and
//! decided, and last, next to the prompt, what is wrong.

use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Color};

use crate::config::{Guard, SynCookies};

use super::{
    AgentState, Snapshot,
    human::{age, at_most, bytes, clean, count, list, percent},
    page::{Page, Paint, Style},
    snapshot::{
        Attach, Backend, BackendState, Decision, Frontend, HookKind, HookPoint, Phase, Reach, Scaling, Service, Traffic,
    },
};

/// How many decisions are shown; the JSON document has them all.
const DECISIONS_SHOWN: usize = 5;

/// Returns the page, with a line feed at its end.
pub fn render(snapshot: &Snapshot, style: Style) -> String {
    let mut page = Page::new(style);
    head(&mut page, snapshot);
    if has_several(snapshot) {
        for service in &snapshot.services {
            page.gap();
            heading(&mut page, service);
            for frontend in snapshot.frontends.iter().filter(|frontend| frontend.service == service.name) {
                page.gap();
                block(&mut page, frontend);
            }
        }
    } else {
        for frontend in &snapshot.frontends {
            page.gap();
            block(&mut page, frontend);
        }
    }
    page.gap();
    counted(&mut page, snapshot);
    decided(&mut page, snapshot);
    let findings = snapshot.findings();
    if !findings.is_empty() {
        page.gap();
    }
    for finding in findings {
        page.line(Paint::Bad, &format!("! {}", clean(&finding)), 2);
    }
    page.into_text()
}

fn head(page: &mut Page, snapshot: &Snapshot) {
    let (agent, scaling) = (&snapshot.agent, &snapshot.scaling);
    let last = age(agent.heartbeat_age_ms);
    let stale = match agent.state() {
        AgentState::Alive => String::new(),
        AgentState::Stalled | AgentState::Dead => format!(" ({last} ago)"),
    };
    let cpu = snapshot.cpu.load_percent.map_or_else(|| "unknown".to_owned(), percent);
    let up = age(snapshot.taken_unix.saturating_sub(agent.started_unix).saturating_mul(1000));
    page.parts(
        Paint::Strong,
        2,
        &[format!("instance {}", clean(&snapshot.instance)), format!("CPU {cpu}{stale}"), backends(scaling)],
    );

    let phase = match agent.phase {
        Phase::Starting => "starting",
        Phase::Running => "running",
        Phase::Stopping => "stopping",
    };
    let pid = agent.pid;
    let scaled =
        if scaling.max.is_some() { "containers are not scaled or replaced" } else { "backends are not checked" };
    let (paint, text) = match agent.state() {
        AgentState::Alive => {
            (Paint::Plain, format!("agent: {phase} (pid {pid}, version {}, up {up})", clean(&agent.version)))
        }
        AgentState::Stalled => (
            Paint::Bad,
            format!("agent: STALLED (pid {pid}, last heartbeat {last} ago): the kernel goes on balancing; {scaled}"),
        ),
        AgentState::Dead => (
            Paint::Bad,
            format!("agent: DEAD (pid {pid}, last heartbeat {last} ago): the kernel goes on balancing; {scaled}"),
        ),
    };
    page.line(paint, &text, 7);
    if let Some(text) = law(scaling).filter(|_| !has_several(snapshot)) {
        page.line(Paint::Plain, &text, 9);
        if let Some(orders) = orders(scaling) {
            page.line(Paint::Worse, &orders, 9);
        }
    }
    if let Some(text) = rollout(scaling) {
        page.line(Paint::Worse, &text, 9);
    }
}

/// Returns whether services have to be told apart.
fn has_several(snapshot: &Snapshot) -> bool {
    snapshot.services.len() > 1
}

fn heading(page: &mut Page, service: &Service) {
    let mut title = vec![format!("service {}", clean(&service.name))];
    match service.phase {
        Phase::Starting => title.push("starting".to_owned()),
        Phase::Running => {}
        Phase::Stopping => title.push("removed".to_owned()),
    }
    title.push(backends(&service.scaling));
    page.parts(Paint::Strong, 2, &title);
    if let Some(text) = law(&service.scaling).filter(|_| service.phase != Phase::Stopping) {
        page.line(Paint::Plain, &text, 9);
        if let Some(orders) = orders(&service.scaling) {
            page.line(Paint::Worse, &orders, 9);
        }
    }
    if let Some(text) = rollout(&service.scaling).filter(|_| service.phase != Phase::Stopping) {
        page.line(Paint::Worse, &text, 9);
    }
}

/// Returns how far a rollout is: `rollout: 2 of 5 replaced, 1 at a time`.
fn rollout(scaling: &Scaling) -> Option<String> {
    let rollout = scaling.rollout.as_ref()?;
    if rollout.of == 0 {
        return Some("rollout: asked for".to_owned());
    }
    Some(format!("rollout: {} of {} replaced, {} at a time", rollout.replaced, rollout.of, rollout.parallel))
}

/// Returns what was ordered by hand, if anything was: `ordered: 5 by hand for 9 min more`.
pub(super) fn orders(scaling: &Scaling) -> Option<String> {
    let manual = scaling.manual.as_ref().map(|manual| {
        let left = match manual.left_ms {
            Some(left) => format!("for {} more", age(left)),
            None => "until `lb-user scale auto`".to_owned(),
        };
        format!("{} by hand since {}, {left}", manual.count, age(manual.age_ms))
    });
    let paused = match (scaling.paused_in, scaling.paused_out) {
        (true, true) => Some("scale-in and scale-out paused"),
        (true, false) => Some("scale-in paused"),
        (false, true) => Some("scale-out paused"),
        (false, false) => None,
    };
    let paused = paused.map(|paused| format!("{paused} until `lb-user resume`"));
    let all: Vec<String> = manual.into_iter().chain(paused).collect();
    (!all.is_empty()).then(|| format!("ordered: {}", all.join("; ")))
}

/// Returns how many backends there are: `4 of 5 backends ready, 1 starting`.
fn backends(scaling: &Scaling) -> String {
    let others = [
        (scaling.idle, "idle"),
        (scaling.warm, "warm"),
        (scaling.starting, "starting"),
        (scaling.draining, "draining"),
        (scaling.unhealthy, "unhealthy"),
    ];
    let others: String =
        others.iter().filter(|(number, _)| *number > 0).map(|(number, state)| format!(", {number} {state}")).collect();
    format!("{} of {} backends ready{others}", scaling.ready, scaling.desired)
}

/// Returns what scaling aims at; nothing is aimed at with static backends.
fn law(scaling: &Scaling) -> Option<String> {
    let (min, max) = (scaling.min?, scaling.max?);
    let standing = scaling.standing.as_deref().map(|reason| format!(": {}", clean(reason))).unwrap_or_default();
    let aim = match (scaling.target_cpu_percent, &scaling.metrics) {
        (Some(target), _) => format!("all of them at {} CPU", percent(target)),
        (None, Some(metrics)) => format!("by {}", clean(metrics)),
        (None, None) => return None,
    };
    Some(format!("scaling: {min} to {max}, {aim}{standing}"))
}

fn block(page: &mut Page, frontend: &Frontend) {
    let mut title = vec![clean(&frontend.name), clean(&frontend.scheduler)];
    let affinity = |ms| humantime::format_duration(Duration::from_millis(u64::from(ms)));
    title.extend(frontend.affinity_ms.map(|ms| format!("affinity {}", affinity(ms))));
    title.extend(frontend.max_connections.map(|most| format!("at most {most} connections each")));
    title.extend(frontend.hooks.iter().map(hook_point));
    page.parts(Paint::Strong, 2, &title);
    if !frontend.addresses.is_empty() {
        page.line(Paint::Faint, &format!("  {}", clean(&list(&frontend.addresses))), 2);
    }
    if let Some(guard) = guard(&frontend.guard) {
        page.line(Paint::Faint, &format!("  {guard}"), 2);
    }
    let local = match frontend.local_connections_total {
        0 => String::new(),
        local => format!(" ({} local)", count(local)),
    };
    let traffic =
        |way: &str, traffic: Traffic| format!("{way} {} packets, {}", count(traffic.packets), bytes(traffic.bytes));
    page.parts(
        Paint::Plain,
        2,
        &[
            format!(
                "  {} connections{local}, {} active",
                count(frontend.connections_total),
                count(frontend.connections_active)
            ),
            traffic("in", frontend.ingress),
            traffic("out", frontend.egress),
        ],
    );
    if frontend.backends.is_empty() {
        return page.line(Paint::Faint, "  no backends", 2);
    }
    page.gap();
    table(page, &frontend.backends);
    for backend in &frontend.backends {
        if let Some(error) = &backend.last_error {
            page.line(Paint::Worse, &format!("  {}: {}", clean(&backend.name), clean(error)), 4);
        }
    }
}

fn hook_point(point: &HookPoint) -> String {
    let hook = match point.hook {
        HookKind::Tc => "tc",
        HookKind::Xdp => "xdp",
        HookKind::XdpGeneric => "xdp-generic",
        HookKind::Connect => "connect",
    };
    let attach = match point.attach {
        Attach::Tcx => "tcx",
        Attach::Clsact => "clsact",
        Attach::XdpLink => "xdp-link",
        Attach::CgroupLink => "cgroup-link",
    };
    match &point.interface {
        Some(interface) => format!("{hook} at {} ({attach})", clean(interface)),
        None => format!("{hook} ({attach})"),
    }
}

/// Says who may begin connections; nothing where everybody may.
fn guard(guard: &Guard) -> Option<String> {
    let mut parts = Vec::new();
    if !guard.allow.is_empty() {
        parts.push(format!("only from {}", list(&guard.allow)));
    }
    if !guard.deny.is_empty() {
        parts.push(format!("not from {}", list(&guard.deny)));
    }
    parts.extend(guard.source_rate.map(|rate| format!("{rate} new connections a second from each client")));
    if guard.syn_cookies == SynCookies::Off {
        parts.push("no SYN cookies".to_owned());
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// Writes the table of backends with as many columns as there is room for, the least important left out first.
fn table(page: &mut Page, backends: &[Backend]) {
    let most = COLUMNS.iter().map(|column| column.rank).max().unwrap_or_default();
    for rank in (0..=most).rev() {
        let kept: Vec<&Column> =
            COLUMNS.iter().filter(|column| column.rank <= rank && (column.is_of_use)(backends)).collect();
        let mut table = page.new_table();
        table.set_header(kept.iter().map(|column| Cell::new(column.title)));
        for backend in backends {
            table.add_row(kept.iter().map(|column| (column.cell)(backend)));
        }
        for (shown, column) in table.column_iter_mut().zip(&kept) {
            shown.set_cell_alignment(column.alignment);
        }
        if rank == 0 || page.holds(&table) {
            return page.table(table);
        }
    }
}

/// A column of the table of backends.
struct Column {
    title: &'static str,
    alignment: CellAlignment,
    /// What stays longest when the terminal is narrow; 0 stays always.
    rank: u8,
    /// Whether it tells anything about these backends.
    is_of_use: fn(&[Backend]) -> bool,
    cell: fn(&Backend) -> Cell,
}

const COLUMNS: [Column; 15] = {
    use CellAlignment::{Left, Right};
    const fn column(title: &'static str, alignment: CellAlignment, rank: u8, cell: fn(&Backend) -> Cell) -> Column {
        Column { title, alignment, rank, is_of_use: |_| true, cell }
    }
    [
        column("\nBACKEND", Left, 0, |backend| Cell::new(clean(&backend.name))),
        column("\nADDRESS", Left, 0, |backend| Cell::new(clean(backend.address.as_deref().unwrap_or("-")))),
        column("\nSTATE", Left, 0, state),
        Column { is_of_use: have_weights, ..column("\nWEIGHT", Right, 1, weight) },
        column("\nCPU", Right, 3, |backend| Cell::new(backend.cpu_percent.map_or_else(|| "-".to_owned(), percent))),
        column("CONNS\nACTIVE", Right, 0, |backend| Cell::new(count(backend.connections_active))),
        column("\nTOTAL", Right, 0, |backend| Cell::new(count(backend.connections_total))),
        column("\nLOCAL", Right, 4, |backend| Cell::new(count(backend.local_connections_total))),
        column("\nSYN-ACK", Right, 5, |backend| {
            Cell::new(backend.handshakes.p50_us.map_or_else(|| "-".to_owned(), at_most))
        }),
        column("\nANSWER", Right, 5, |backend| {
            Cell::new(backend.responses.p50_us.map_or_else(|| "-".to_owned(), at_most))
        }),
        column("IN\nPACKETS", Right, 2, |backend| Cell::new(count(backend.ingress.packets))),
        column("\nBYTES", Right, 1, |backend| Cell::new(bytes(backend.ingress.bytes))),
        column("OUT\nPACKETS", Right, 2, |backend| Cell::new(count(backend.egress.packets))),
        column("\nBYTES", Right, 1, |backend| Cell::new(bytes(backend.egress.bytes))),
        column("\nVIA", Left, 6, |backend| Cell::new(via(backend))),
    ]
};

fn state(backend: &Backend) -> Cell {
    let (text, colour) = match (backend.state, backend.slot) {
        (BackendState::Starting, _) => ("starting", Color::Yellow),
        (BackendState::Ready, true) => ("ready", Color::Green),
        (BackendState::Ready, false) => ("ready, no slot", Color::Yellow),
        (BackendState::Idle, _) => ("idle", Color::Cyan),
        (BackendState::Warm, _) => ("warm", Color::Cyan),
        (BackendState::Draining, _) => ("draining", Color::Yellow),
        (BackendState::Unhealthy, _) => ("unhealthy", Color::Red),
        (BackendState::Stopped, _) => ("stopped", Color::DarkGrey),
    };
    Cell::new(text).fg(colour)
}

/// Returns whether backends differ in what they get.
fn have_weights(backends: &[Backend]) -> bool {
    backends.iter().any(|backend| backend.weight != 1 || backend.slow_start_percent.is_some())
}

fn weight(backend: &Backend) -> Cell {
    Cell::new(match backend.slow_start_percent {
        Some(percent) => format!("{percent} % of {}", backend.weight),
        None => backend.weight.to_string(),
    })
}

fn via(backend: &Backend) -> String {
    let reach = backend.reach.map(|reach| match reach {
        Reach::Veth => "veth",
        Reach::Neighbour => "neighbour",
        Reach::Routed => "routed",
        Reach::Local => "local",
    });
    match (reach, &backend.interface) {
        // The interface of a container says by itself that it is a veth.
        (Some("veth") | None, Some(interface)) => clean(interface),
        (Some(reach), Some(interface)) => format!("{reach} {}", clean(interface)),
        (Some(reach), None) => reach.to_owned(),
        (None, None) => "-".to_owned(),
    }
}

fn counted(page: &mut Page, snapshot: &Snapshot) {
    let verdicts = &snapshot.verdicts;
    for (name, reasons, paint) in [
        ("passed ", &verdicts.passes, Paint::Plain),
        ("dropped", &verdicts.drops, Paint::Worse),
        ("events ", &verdicts.events, Paint::Plain),
    ] {
        let mut occurred: Vec<_> = reasons.iter().filter(|(_, number)| **number > 0).collect();
        occurred.sort_by(|one, other| other.1.cmp(one.1));
        if !occurred.is_empty() {
            let reasons =
                list(occurred.iter().map(|(reason, number)| format!("{} {}", clean(reason), count(**number))));
            page.line(paint, &format!("{name}  {reasons}"), 9);
        }
    }
    let flows = &snapshot.flows;
    page.line(
        Paint::Plain,
        &format!(
            "flows    {} established of {}, {} half-open, {} UDP, {} local",
            count(flows.established),
            count(flows.capacity),
            count(flows.half_open),
            count(flows.datagrams),
            count(flows.local)
        ),
        9,
    );
}

fn decided(page: &mut Page, snapshot: &Snapshot) {
    let mut newest: Vec<&Decision> = snapshot.decisions.iter().collect();
    newest.sort_by_key(|decision| decision.age_ms);
    newest.truncate(DECISIONS_SHOWN);
    if newest.is_empty() {
        return;
    }
    let mut table = page.new_table();
    for decision in newest {
        let kind = clean(&decision.kind).replace('_', " ");
        let change = match decision.to {
            same if same == decision.from => kind,
            to => format!("{kind} {} → {to}", decision.from),
        };
        let change = match has_several(snapshot) {
            true => format!("{}: {change}", clean(&decision.service)),
            false => change,
        };
        let load = decision.load_percent.map(|load| format!("CPU {}", percent(load))).unwrap_or_default();
        let times = if decision.times > 1 { format!(" ({}×)", decision.times) } else { String::new() };
        table.add_row([
            Cell::new(format!("{} ago", age(decision.age_ms))).set_alignment(CellAlignment::Right),
            Cell::new(change),
            Cell::new(load),
            Cell::new(format!("{}{times}", clean(&decision.reason))),
        ]);
    }
    page.gap();
    page.line(Paint::Strong, "decisions", 0);
    page.table(table);
}
