//! From a wish to map entries. [`Registry::plan`] decides, [`Datapath::prepare`] and [`Datapath::commit`] perform, in the
//! order in which nothing is lost: reply doors, backends, slots, the frontend's slot range, and only then the end of what
//! is gone. Between the two, the agent reports what is about to be: an agent that takes over after a crash knows every
//! backend that the kernel may lead connections to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use aya::maps::lpm_trie::Key;
use lb_ebpf::abi::{
    Address, Backend, BackendId, Endpoint, Frontend, FrontendId, HandOff, MAX_BACKENDS, MAX_FRONTENDS, MAX_SLOTS, Port,
    Proto, Scheduler, Slot, SlotRange, Source, Tally, Traffic, map,
};

use super::{
    Datapath, DatapathError, Maps,
    doors::{Device, DoorKind},
    layout::{self, Share},
    links::Reach,
    maps::failed,
    report::{BackendReport, FrontendReport, Inheritance, Way},
};
use crate::{
    config::{Family, Guard},
    control::ContainerId,
};

/// A frontend to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendWish {
    /// The service that answers.
    pub service: String,
    /// Its name: `80/tcp`.
    pub name: String,
    /// Its protocol.
    pub proto: Proto,
    /// Its endpoints.
    pub addresses: BTreeSet<SocketAddr>,
    /// Who may begin connections to it.
    pub guard: Guard,
    /// How the backends of its connections are chosen.
    pub scheduling: Scheduling,
}

/// How a frontend chooses the backend of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduling {
    /// For a client that keeps none.
    pub scheduler: Scheduler,
    /// For how long after its last connection began a client keeps its backend, in milliseconds; zero: not at all.
    pub affinity_ms: u32,
    /// How many connections of each backend may be under way; zero: any number.
    pub max_connections: u32,
}

impl Scheduling {
    /// In turn, nobody keeps anything, and there is no limit.
    pub const PLAIN: Self = Self { scheduler: Scheduler::RoundRobin, affinity_ms: 0, max_connections: 0 };

    fn frontend(self, range: SlotRange) -> Frontend {
        Frontend::new(range, self.scheduler).keeping_clients(self.affinity_ms).limited_to(self.max_connections)
    }
}

/// A container to be served, with its endpoint for each frontend, by the frontends' names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The container.
    pub container: ContainerId,
    /// Where it listens, by frontend.
    pub endpoints: BTreeMap<String, SocketAddr>,
    /// How it is reached.
    pub way: Way,
    /// Its weight beside the others'.
    pub weight: u32,
    /// How many tenths of its share of new connections it gets.
    pub tenths: u32,
    /// Whether a flow that begins there has to be told.
    pub asleep: bool,
}

/// Who fills the slots of a frontend, and what that depends on beside the backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The service.
    pub service: String,
    /// How a backend is chosen.
    pub scheduling: Scheduling,
    /// How many slots there are to be, where that does not depend on the backends.
    pub places: Option<u32>,
}

/// What the kernel is known to hold.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    frontends: BTreeMap<FrontendId, FrontendRow>,
    backends: BTreeMap<BackendId, BackendReport>,
    /// Those of `backends` that are announced, and not known to be in the map as they are here.
    unwritten: BTreeSet<BackendId>,
    /// Ids that are free, but not to be used before a sweep has found no flow and the counters are put away.
    retiring: BTreeMap<BackendId, FrontendId>,
    generations: BTreeMap<BackendId, u32>,
    /// Where the next slot range is looked for, so that one that was just given up is not written over at once.
    next_slot: u32,
    /// How many frontends there are to be: the room of their layouts depends on it.
    wanted: usize,
}

#[derive(Clone, Debug)]
struct FrontendRow {
    /// Whose publications fill its slots.
    service: String,
    name: String,
    proto: Proto,
    addresses: BTreeSet<SocketAddr>,
    /// How its backends are to be chosen from the next publication on.
    scheduling: Scheduling,
    /// Its entry in the map, but for the former slots.
    held: Frontend,
    /// The slots that it had before those.
    former: SlotRange,
    /// What the map holds in its slots, and behind them.
    layout: Vec<Slot>,
    /// Who may begin connections to it; nothing while it is not known what the kernel holds.
    guard: Option<Guard>,
}

/// What is to be written, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Plan {
    /// New backends, and those whose way has changed.
    backends: Vec<BackendReport>,
    frontends: Vec<(FrontendId, Frontend, NewLayout)>,
    ended: Vec<BackendId>,
}

/// What becomes of a frontend's layout.
#[derive(Clone, Debug, PartialEq, Eq)]
enum NewLayout {
    /// It stays where and as it is.
    Kept,
    /// Another is written into the slots that the frontend's entry names.
    Written(Vec<Slot>),
}

/// A publication that is announced, and can be written.
#[derive(Debug)]
#[must_use]
pub struct Prepared {
    plan: Plan,
    /// Members that were to be ready and cannot be reached, with the reason.
    pub unreachable: BTreeMap<ContainerId, DatapathError>,
}

impl Registry {
    /// Reads what a former agent has published; returns also the backends that have slots. What nobody knows of is freed.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn adopt(maps: &mut Maps, former: &Inheritance) -> Result<(Self, BTreeSet<BackendId>), DatapathError> {
        let mut registry = Self::default();
        let mut ready = BTreeSet::new();
        for told in &former.frontends {
            let Ok(frontend) = maps.frontends.get(&told.id, 0) else { continue };
            let range = frontend.places();
            let layout = maps.layout(range)?;
            ready.extend(layout.iter().map(|slot| slot.backend));
            registry.next_slot = registry.next_slot.max(range.base + range.len);
            let proto = if told.name.ends_with("/udp") { Proto::Udp } else { Proto::Tcp };
            let scheduling = Scheduling {
                scheduler: frontend.scheduler(),
                affinity_ms: frontend.affinity_ms(),
                max_connections: frontend.max_connections(),
            };
            let (service, name, addresses) = (told.service.clone(), told.name.clone(), told.addresses.clone());
            let (held, former, guard) = (scheduling.frontend(range), frontend.former_slots(), None);
            let row = FrontendRow { service, name, proto, addresses, scheduling, held, former, layout, guard };
            registry.frontends.insert(told.id, row);
        }
        for told in &former.backends {
            let held = maps.backends.get(&told.id, 0).map_err(failed(map::BACKENDS))?;
            registry.inherit(told, &held);
        }
        for id in 0..MAX_BACKENDS {
            let backend = maps.backends.get(&id, 0).map_err(failed(map::BACKENDS))?;
            if backend.generation == 0 {
                continue;
            }
            registry.generations.insert(id, backend.generation);
            if !registry.backends.contains_key(&id) {
                if backend.is_active() {
                    maps.backends.set(id, backend.freed(), 0).map_err(failed(map::BACKENDS))?;
                }
                registry.retiring.insert(id, backend.frontend);
            }
        }
        registry.forget_strays(maps)?;
        Ok((registry, ready))
    }

    /// Takes a backend of which a former agent has told, if the map serves it. It may have died between the announcement
    /// and the writing: then the map has another way, and the next publication writes the one that was told.
    fn inherit(&mut self, told: &BackendReport, held: &Backend) {
        if held.serves(told.generation) {
            if *held != entry(told) {
                self.unwritten.insert(told.id);
            }
            self.backends.insert(told.id, told.clone());
        }
    }

    /// Gives to a service what an agent has left that knew one service only.
    pub fn bequeath(&mut self, heir: &str) {
        let services = self.frontends.values_mut().map(|row| &mut row.service);
        for service in services.chain(self.backends.values_mut().map(|backend| &mut backend.service)) {
            if service.is_empty() {
                heir.clone_into(service);
            }
        }
    }

    /// Removes endpoints and frontends that no row names.
    fn forget_strays(&self, maps: &mut Maps) -> Result<(), DatapathError> {
        let known: BTreeMap<Endpoint, FrontendId> = self
            .frontends
            .iter()
            .flat_map(|(&id, row)| row.addresses.iter().map(move |&at| (endpoint(at, row.proto), id)))
            .collect();
        let found: Vec<(Endpoint, FrontendId)> =
            maps.addresses.iter().collect::<Result<_, _>>().map_err(failed(map::ADDRESSES))?;
        for (at, id) in found {
            if known.get(&at) != Some(&id) {
                maps.addresses.remove(&at).map_err(failed(map::ADDRESSES))?;
            }
        }
        let found: Vec<FrontendId> = maps.frontends.keys().collect::<Result<_, _>>().map_err(failed(map::FRONTENDS))?;
        for id in found.into_iter().filter(|id| !self.frontends.contains_key(id)) {
            maps.frontends.remove(&id).map_err(failed(map::FRONTENDS))?;
        }
        Ok(())
    }

    /// Returns the frontends for the report.
    pub fn frontends(&self) -> Vec<FrontendReport> {
        self.frontends
            .iter()
            .map(|(&id, row)| FrontendReport {
                service: row.service.clone(),
                id,
                name: row.name.clone(),
                addresses: row.addresses.clone(),
                guard: row.guard.clone().unwrap_or_default(),
            })
            .collect()
    }

    /// Returns the backends for the report.
    pub fn backends(&self) -> impl Iterator<Item = &BackendReport> {
        self.backends.values()
    }

    /// Returns which service fills the slots of each frontend, and what its publications go by there.
    pub fn owners(&self) -> BTreeMap<FrontendId, Owner> {
        let owner = |row: &FrontendRow| Owner {
            service: row.service.clone(),
            scheduling: row.scheduling,
            places: layout::fixed(row.scheduling.scheduler, self.wanted),
        };
        self.frontends.iter().map(|(&id, row)| (id, owner(row))).collect()
    }

    /// Returns the backends of a service.
    pub fn backends_of(&self, service: &str) -> impl Iterator<Item = &BackendReport> {
        self.backends.values().filter(move |backend| backend.service == service)
    }

    /// Returns the services that have backends or frontends.
    pub fn services(&self) -> BTreeSet<&str> {
        let rows = self.frontends.values().map(|row| row.service.as_str());
        rows.chain(self.backends.values().map(|backend| backend.service.as_str())).collect()
    }

    /// Returns a container of a service as it was last published.
    pub fn member(&self, service: &str, id: &ContainerId) -> Option<Member> {
        let mut of = self.backends_of(service).filter(|backend| backend.container == *id);
        let first = of.next()?;
        let named = |backend: &BackendReport| {
            self.frontends.get(&backend.frontend).map(|row| (row.name.clone(), backend.endpoint))
        };
        let endpoints = std::iter::once(first).chain(of).filter_map(named).collect();
        let (way, weight) = (first.way.clone(), first.weight);
        Some(Member { container: id.clone(), endpoints, way, weight, tenths: 1, asleep: false })
    }

    /// Returns the containers of a service that get new connections.
    pub fn in_slots(&self, service: &str) -> BTreeSet<ContainerId> {
        let slots = self.frontends.values().filter(|row| row.service == service).flat_map(|row| &row.layout);
        let ids: BTreeSet<BackendId> = slots.map(|slot| slot.backend).collect();
        ids.iter().filter_map(|id| self.backends.get(id)).map(|backend| backend.container.clone()).collect()
    }

    /// Returns a backend that is served.
    pub fn backend(&self, id: BackendId, generation: u32) -> Option<&BackendReport> {
        self.backends.get(&id).filter(|backend| backend.generation == generation)
    }

    /// Returns the id of a frontend.
    pub fn frontend(&self, name: &str) -> Option<FrontendId> {
        self.frontends.iter().find(|(_, row)| row.name == name).map(|(&id, _)| id)
    }

    /// Returns the protocols of the frontends.
    pub(super) fn protos(&self) -> impl Iterator<Item = (FrontendId, Proto)> {
        self.frontends.iter().map(|(&id, row)| (id, row.proto))
    }

    /// Returns the name of the frontend at an address whose protocol is that of the one named.
    pub(super) fn frontend_at(&self, address: SocketAddr, named: &str) -> Option<&str> {
        let proto = self.frontends.values().find(|row| row.name == named)?.proto;
        let at = self.frontends.values().find(|row| row.proto == proto && row.addresses.contains(&address))?;
        Some(&at.name)
    }

    /// Returns the name of a frontend.
    pub fn frontend_name(&self, id: FrontendId) -> Option<&str> {
        self.frontends.get(&id).map(|row| row.name.as_str())
    }

    /// Decides what to write so that exactly `ready` get new connections of a service's frontends, and `ready` and
    /// `draining` keep theirs. What other services have stays as it is.
    fn plan(&self, service: &str, ready: &[&Member], draining: &[&Member]) -> Result<Plan, DatapathError> {
        let mut plan = Plan::default();
        let mut kept = BTreeSet::new();
        let taken: BTreeSet<BackendId> = self.backends.keys().chain(self.retiring.keys()).copied().collect();
        let mut free = (0..MAX_BACKENDS).filter(|id| !taken.contains(id));
        let mut shares: BTreeMap<FrontendId, Vec<Share>> = BTreeMap::new();
        let ids: BTreeMap<&str, (FrontendId, bool)> =
            self.frontends.iter().map(|(&id, row)| (row.name.as_str(), (id, row.service == service))).collect();
        let known: BTreeMap<(FrontendId, &ContainerId, SocketAddr), &BackendReport> = self
            .backends_of(service)
            .map(|backend| ((backend.frontend, &backend.container, backend.endpoint), backend))
            .collect();
        // Its connections have replies to the address by which it has known their clients.
        let is_known_alike = |known: &&&BackendReport, member: &Member| known.way.snat == member.way.snat;
        let everyone = ready.iter().map(|member| (member, true)).chain(draining.iter().map(|member| (member, false)));
        for (member, is_ready) in everyone {
            for (name, &endpoint) in &member.endpoints {
                let Some(&(frontend, is_own)) = ids.get(name.as_str()) else { continue };
                // At a frontend that went over to another service, nobody is to keep a backend of the former one.
                let is_ready = is_ready && is_own;
                let (id, generation, is_new) = match known
                    .get(&(frontend, &member.container, endpoint))
                    .filter(|known| is_known_alike(known, member))
                {
                    // Another way to the same server is no other server: its connections go on.
                    Some(known) => {
                        let told = (&known.way, known.weight, known.leaving, known.asleep);
                        let changed = told != (&member.way, member.weight, !is_ready, member.asleep);
                        (known.id, known.generation, changed || self.unwritten.contains(&known.id))
                    }
                    None => {
                        let id = free.next().ok_or(DatapathError::Full { what: "backends", limit: MAX_BACKENDS })?;
                        (id, self.generations.get(&id).map_or(1, |former| former.wrapping_add(1).max(1)), true)
                    }
                };
                if is_new {
                    plan.backends.push(BackendReport {
                        service: service.to_owned(),
                        id,
                        generation,
                        frontend,
                        container: member.container.clone(),
                        endpoint,
                        way: member.way.clone(),
                        weight: member.weight,
                        leaving: !is_ready,
                        asleep: member.asleep,
                    });
                }
                kept.insert(id);
                if is_ready {
                    let weight = member.weight * member.tenths;
                    shares.entry(frontend).or_default().push(Share { backend: id, endpoint, weight });
                }
            }
        }
        let mut live: Vec<SlotRange> = self.frontends.values().map(|row| row.held.places()).collect();
        let mut from = self.next_slot;
        let room = layout::room(self.wanted);
        for (&frontend, row) in self.frontends.iter().filter(|(_, row)| row.service == service) {
            let shares = shares.remove(&frontend).unwrap_or_default();
            let mut layout = layout::lay_out(row.scheduling.scheduler, &shares, room);
            let (len, roll) = (layout.len() as u32, layout::roll(&layout, &shares));
            let rolling = roll.len() as u32;
            layout.extend(roll);
            let entry = |base| row.scheduling.frontend(SlotRange { base, len }).rolling(rolling);
            if layout != row.layout || len != row.held.slots().len {
                let base = allocate(&live, len + rolling, from, MAX_SLOTS)
                    .ok_or(DatapathError::Full { what: "slots", limit: MAX_SLOTS })?;
                let places = entry(base).places();
                live.push(places);
                from = places.base + places.len;
                plan.frontends.push((frontend, entry(base), NewLayout::Written(layout)));
            } else if entry(row.held.slots().base) != row.held {
                plan.frontends.push((frontend, entry(row.held.slots().base), NewLayout::Kept));
            }
        }
        plan.ended = self.backends_of(service).map(|backend| backend.id).filter(|id| !kept.contains(id)).collect();
        Ok(plan)
    }

    /// Takes the backends of a plan as what will be.
    fn announce(&mut self, plan: &Plan) {
        for backend in &plan.backends {
            self.generations.insert(backend.id, backend.generation);
            self.unwritten.insert(backend.id);
            self.backends.insert(backend.id, backend.clone());
        }
    }
}

impl Datapath {
    /// Serves exactly these frontends, at exactly these endpoints. What comes, comes before what goes. A frontend that
    /// goes is forgotten when the last backend has ended that has connections of it; one that goes over to another
    /// service has no backends until that publishes some.
    ///
    /// # Errors
    /// What the kernel said; what was written by then stays, and a second call goes on.
    pub fn serve(&mut self, wishes: &[FrontendWish]) -> Result<(), DatapathError> {
        self.registry.wanted = wishes.len();
        let mut wanted: BTreeMap<(Proto, SocketAddr), FrontendId> = BTreeMap::new();
        for wish in wishes {
            let id = self.frontend_named(wish)?;
            self.guard(id, &wish.guard)?;
            if let Some(row) = self.registry.frontends.get_mut(&id) {
                row.scheduling = wish.scheduling;
            }
            wanted.extend(wish.addresses.iter().map(|&address| ((wish.proto, address), id)));
        }
        for (&(proto, address), &id) in &wanted {
            let Some(row) = self.registry.frontends.get_mut(&id) else { continue };
            if !row.addresses.contains(&address) {
                self.maps.addresses.insert(endpoint(address, proto), id, 0).map_err(failed(map::ADDRESSES))?;
                row.addresses.insert(address);
            }
        }
        for (&id, row) in &mut self.registry.frontends {
            for address in row.addresses.clone() {
                match wanted.get(&(row.proto, address)) {
                    Some(&owner) if owner == id => continue,
                    // It has become another frontend's, in whose place it is by now.
                    Some(_) => {}
                    None => match self.maps.addresses.remove(&endpoint(address, row.proto)) {
                        Ok(()) | Err(aya::maps::MapError::KeyNotFound) => {}
                        Err(error) => return Err(failed(map::ADDRESSES)(error)),
                    },
                }
                row.addresses.remove(&address);
            }
        }
        let is_wanted = |row: &FrontendRow| wishes.iter().any(|wish| wish.name == row.name);
        let in_use: BTreeSet<FrontendId> = self.registry.backends.values().map(|backend| backend.frontend).collect();
        let superfluous: Vec<FrontendId> = self
            .registry
            .frontends
            .iter()
            .filter(|(id, row)| !is_wanted(row) && !in_use.contains(id))
            .map(|(&id, _)| id)
            .collect();
        for id in superfluous {
            self.maps.frontends.remove(&id).map_err(failed(map::FRONTENDS))?;
            self.guard(id, &Guard::default())?;
            self.registry.frontends.remove(&id);
        }
        Ok(())
    }

    /// Returns the id of a frontend, after giving it one if it is new.
    fn frontend_named(&mut self, wish: &FrontendWish) -> Result<FrontendId, DatapathError> {
        if let Some(id) = self.registry.frontend(&wish.name) {
            self.hand_over(id, wish)?;
            return Ok(id);
        }
        let rows = &self.registry.frontends;
        let retiring: BTreeSet<FrontendId> = self.registry.retiring.values().copied().collect();
        let id = (0..MAX_FRONTENDS)
            .find(|id| !rows.contains_key(id) && !retiring.contains(id))
            .ok_or(DatapathError::Full { what: "frontends", limit: MAX_FRONTENDS })?;
        let held = wish.scheduling.frontend(NO_SLOTS);
        // What an earlier holder of the id has counted is not this one's.
        self.maps.retired.set(id, Traffic::default(), 0).map_err(failed(map::RETIRED))?;
        self.maps.frontends.insert(id, held, 0).map_err(failed(map::FRONTENDS))?;
        let (service, name, proto) = (wish.service.clone(), wish.name.clone(), wish.proto);
        let (addresses, scheduling, layout, guard) = (BTreeSet::new(), wish.scheduling, Vec::new(), None);
        let former = NO_SLOTS;
        let row = FrontendRow { service, name, proto, addresses, scheduling, held, former, layout, guard };
        self.registry.frontends.insert(id, row);
        Ok(id)
    }

    /// Tells the kernel who may begin connections to a frontend. Networks come before the rules that ask for them, and go
    /// after those.
    fn guard(&mut self, id: FrontendId, guard: &Guard) -> Result<(), DatapathError> {
        let Some(row) = self.registry.frontends.get_mut(&id).filter(|row| row.guard.as_ref() != Some(guard)) else {
            return Ok(());
        };
        row.guard = None;
        let mut wanted = BTreeSet::new();
        for (bits, source, admits) in guard.sources(id) {
            wanted.insert((bits, source));
            self.maps.sources.insert(&Key::new(bits, source), u32::from(admits), 0).map_err(failed(map::SOURCES))?;
        }
        self.maps.guards.set(id, guard.rules(), 0).map_err(failed(map::GUARDS))?;
        let there: Vec<Key<Source>> =
            self.maps.sources.keys().collect::<Result<_, _>>().map_err(failed(map::SOURCES))?;
        for key in there {
            if key.data().frontend == id && !wanted.contains(&(key.prefix_len(), key.data())) {
                self.maps.sources.remove(&key).map_err(failed(map::SOURCES))?;
            }
        }
        row.guard = Some(guard.clone());
        Ok(())
    }

    /// Makes a frontend another service's, if it is not: backends of the former one get no new connections.
    fn hand_over(&mut self, id: FrontendId, wish: &FrontendWish) -> Result<(), DatapathError> {
        if self.registry.frontends.get(&id).is_none_or(|row| row.service == wish.service) {
            return Ok(());
        }
        self.write_frontend(id, wish.scheduling.frontend(NO_SLOTS))?;
        if let Some(row) = self.registry.frontends.get_mut(&id) {
            (row.service, row.layout) = (wish.service.clone(), Vec::new());
        }
        Ok(())
    }

    /// Announces a publication of a service: who gets new connections, and who keeps theirs. A member that cannot be
    /// reached is left out, so that it keeps nobody else from being served.
    ///
    /// # Errors
    /// If there is no room.
    pub fn prepare(&mut self, service: &str, ready: &[Member], draining: &[Member]) -> Result<Prepared, DatapathError> {
        let mut unreachable = BTreeMap::new();
        for member in ready.iter().chain(draining) {
            let opened = match member.way.reach {
                Reach::Local => self.check_local(member).and_then(|()| self.open_local()),
                Reach::Veth | Reach::Neighbour | Reach::Routed => self.open_reply(&member.way),
            };
            if let Err(error) = opened {
                tracing::debug!(container = %member.container, %error, "its replies cannot be met");
                unreachable.insert(member.container.clone(), error);
            }
        }
        unreachable.retain(|container, _| ready.iter().any(|member| member.container == *container));
        let ready: Vec<&Member> = ready.iter().filter(|member| !unreachable.contains_key(&member.container)).collect();
        let draining: Vec<&Member> = draining.iter().collect();
        let plan = self.registry.plan(service, &ready, &draining)?;
        self.registry.announce(&plan);
        Ok(Prepared { plan, unreachable })
    }

    /// Opens the door of the device by which a backend's packets enter.
    fn open_reply(&mut self, way: &Way) -> Result<(), DatapathError> {
        let device = Device { ifindex: way.reply_ifindex, name: &way.reply_name, framing: way.reply_framing };
        self.open_door(DoorKind::TcReply, device)
    }

    /// Writes a publication; flows of all of the service who are not in it end.
    ///
    /// # Errors
    /// What the kernel said; what was written by then stays, and the next publication goes on.
    pub fn commit(&mut self, plan: Prepared) -> Result<(), DatapathError> {
        let Plan { backends, frontends, ended } = plan.plan;
        // Whose way is a local one by now may be led to as soon as that is written.
        self.add_local_backends()?;
        for backend in backends {
            self.maps.backends.set(backend.id, entry(&backend), 0).map_err(failed(map::BACKENDS))?;
            self.registry.unwritten.remove(&backend.id);
        }
        for (id, held, layout) in frontends {
            let range = held.places();
            if let NewLayout::Written(layout) = &layout {
                self.maps.write_layout(range.base, layout)?;
            }
            self.write_frontend(id, held)?;
            if let NewLayout::Written(layout) = layout
                && let Some(row) = self.registry.frontends.get_mut(&id)
            {
                row.layout = layout;
                self.registry.next_slot = range.base + range.len;
            }
        }
        for id in ended {
            let backend = self.maps.backends.get(&id, 0).map_err(failed(map::BACKENDS))?;
            self.maps.backends.set(id, backend.freed(), 0).map_err(failed(map::BACKENDS))?;
            if let Some(ended) = self.registry.backends.remove(&id) {
                self.registry.unwritten.remove(&id);
                self.registry.retiring.insert(id, ended.frontend);
            }
        }
        let elsewhere = self.registry.backends.values().filter(|backend| backend.way.reach != Reach::Local);
        let devices = elsewhere.map(|backend| backend.way.reply_ifindex).collect();
        self.close_doors_except(DoorKind::TcReply, &devices)?;
        self.remove_local_backends()
    }

    /// Puts the counters of backends that are no more to their frontend's account and frees their ids. To be called
    /// when a sweep that began after their end has removed their flows.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn retire(&mut self, ended: &BTreeSet<BackendId>) -> Result<(), DatapathError> {
        for &id in ended {
            let Some(&frontend) = self.registry.retiring.get(&id) else { continue };
            let traffic = self.maps.traffic(id)?;
            let mut sum = self.maps.retired.get(&frontend, 0).map_err(failed(map::RETIRED))?;
            sum.add(&traffic);
            self.maps.retired.set(frontend, sum, 0).map_err(failed(map::RETIRED))?;
            self.maps.clear_traffic(id)?;
            // Whoever gets the id has no connections.
            self.maps.correct_tally(id, self.maps.tally(id)?, Tally::default())?;
            self.registry.retiring.remove(&id);
        }
        Ok(())
    }

    /// Returns the ids that wait to be retired.
    pub fn retiring(&self) -> BTreeSet<BackendId> {
        self.registry.retiring.keys().copied().collect()
    }

    /// Replaces a frontend's entry. The slots that it has are named beside the others: connections that were answered by
    /// cookies begin with an acknowledgement, and find their backends there.
    fn write_frontend(&mut self, id: FrontendId, held: Frontend) -> Result<(), DatapathError> {
        let row = self.registry.frontends.get_mut(&id);
        let former = match &row {
            Some(row) if row.held.slots() == held.slots() => row.former,
            Some(row) => row.held.slots(),
            None => NO_SLOTS,
        };
        self.maps.frontends.insert(id, held.after(former), 0).map_err(failed(map::FRONTENDS))?;
        if let Some(row) = row {
            (row.held, row.former) = (held, former);
        }
        Ok(())
    }
}

/// No slots.
const NO_SLOTS: SlotRange = SlotRange { base: 0, len: 0 };

/// Returns a socket address as the maps have it.
pub fn endpoint(address: SocketAddr, proto: Proto) -> Endpoint {
    Endpoint::new(Address::from(address.ip()), Port::new(address.port()), proto)
}

/// Returns a backend as the map has it.
fn entry(backend: &BackendReport) -> Backend {
    let way = &backend.way;
    let hand_off = match way.reach {
        Reach::Veth => HandOff::Peer,
        Reach::Neighbour => HandOff::Neighbour,
        Reach::Routed => HandOff::Routing,
        Reach::Local => HandOff::Local,
    };
    let address = backend.endpoint.ip();
    let host_address = match address {
        IpAddr::V4(_) => way.host_address.map(Address::from),
        IpAddr::V6(_) => way.host_address_v6.map(Address::from),
    };
    let entry = Backend::new(backend.frontend, backend.generation, address.into(), Port::new(backend.endpoint.port()))
        .reached_by(hand_off, way.ifindex, way.mac, way.source_mac);
    let entry = match way.snat.of(Family::of(address)) {
        Some(snat) => entry.beside(snat.into()).hiding_clients(),
        None => entry.beside(host_address.unwrap_or_default()),
    };
    let entry = match (way.netns, way.reach) {
        (_, Reach::Local) => entry.listening_here(),
        (Some(netns), _) => entry.listening_in(netns),
        (None, _) => entry,
    };
    let entry = if backend.asleep { entry.asleep() } else { entry };
    if backend.leaving { entry.leaving() } else { entry }
}

/// Finds `len` places that no live range touches, from `from` on and then from the start.
fn allocate(live: &[SlotRange], len: u32, from: u32, limit: u32) -> Option<u32> {
    let fits = |base: u32| {
        base.checked_add(len).is_some_and(|end| end <= limit)
            && live.iter().all(|range| base + len <= range.base || range.base + range.len <= base)
    };
    let starts = || [from, 0].into_iter().chain(live.iter().map(|range| range.base + range.len));
    starts().filter(|&base| base >= from && fits(base)).min().or_else(|| starts().filter(|&base| fits(base)).min())
}

#[cfg(test)]
mod tests {
    use lb_ebpf::abi::NETNS_HERE;

    use super::*;
    use crate::{config::Snat, datapath::links::Framing};

    const WEB: &str = "web";

    fn way() -> Way {
        Way {
            reach: Reach::Veth,
            ifindex: 7,
            name: "veth7".into(),
            reply_ifindex: 7,
            reply_name: "veth7".into(),
            reply_framing: Framing::Ethernet,
            mac: [2; 6],
            source_mac: [4; 6],
            host_address: None,
            host_address_v6: None,
            snat: Snat::default(),
            netns: Some(3),
        }
    }

    fn member(container: &str, endpoint: &str) -> Member {
        let endpoints = [("80/tcp".to_owned(), endpoint.parse().unwrap())].into();
        Member { container: container.into(), endpoints, way: way(), weight: 1, tenths: 10, asleep: false }
    }

    /// Returns a plain frontend's entry.
    fn held(base: u32, len: u32) -> Frontend {
        Scheduling::PLAIN.frontend(SlotRange { base, len })
    }

    /// Returns the layout of a frontend with one backend.
    fn alone(backend: BackendId) -> NewLayout {
        NewLayout::Written(vec![Slot { backend, weight: 1 }])
    }

    /// Returns the first backends, each once.
    fn layout_of(count: BackendId) -> Vec<Slot> {
        (0..count).map(|backend| Slot { backend, weight: 1 }).collect()
    }

    /// Performs a plan on the registry alone.
    fn settle(registry: &mut Registry, plan: Plan) {
        registry.announce(&plan);
        registry.unwritten.clear();
        for (frontend, held, layout) in plan.frontends {
            let row = registry.frontends.get_mut(&frontend).unwrap();
            row.held = held;
            if let NewLayout::Written(layout) = layout {
                row.layout = layout;
                registry.next_slot = held.places().base + held.places().len;
            }
        }
        for id in plan.ended {
            let ended = registry.backends.remove(&id).unwrap();
            registry.retiring.insert(id, ended.frontend);
        }
    }

    fn registry() -> Registry {
        let row = FrontendRow {
            service: WEB.into(),
            name: "80/tcp".into(),
            proto: Proto::Tcp,
            addresses: BTreeSet::new(),
            scheduling: Scheduling::PLAIN,
            held: held(0, 0),
            former: NO_SLOTS,
            layout: Vec::new(),
            guard: None,
        };
        Registry { frontends: [(0, row)].into(), ..Registry::default() }
    }

    #[test]
    fn a_second_publication_of_the_same_writes_nothing() {
        let mut registry = registry();
        let (a, b) = (member("a", "198.19.0.2:5000"), member("b", "198.19.0.3:5000"));
        let plan = registry.plan(WEB, &[&a, &b], &[]).unwrap();
        settle(&mut registry, plan);

        assert_eq!(registry.plan(WEB, &[&a, &b], &[]).unwrap(), Plan::default());
    }

    #[test]
    fn a_member_leaves_one_frontend_and_stays_in_another() {
        let mut registry = registry();
        let row = FrontendRow { name: "[::]:80/tcp".into(), ..registry.frontends[&0].clone() };
        registry.frontends.insert(1, row);
        let v4 = member("a", "198.19.0.2:5000");
        let v6 = Member {
            endpoints: [("[::]:80/tcp".to_owned(), "[2001:db8::2]:5000".parse().unwrap())].into(),
            ..v4.clone()
        };
        let both =
            Member { endpoints: v4.endpoints.clone().into_iter().chain(v6.endpoints.clone()).collect(), ..v4.clone() };
        let plan = registry.plan(WEB, &[&both], &[]).unwrap();
        settle(&mut registry, plan);

        let plan = registry.plan(WEB, &[&v4], &[&v6]).unwrap();

        assert!(plan.ended.is_empty(), "its flows go on");
        let [told] = &plan.backends[..] else { panic!("{plan:?}") };
        assert_eq!((told.frontend, told.generation, told.leaving), (1, 1, true), "and no client keeps it");
        let [(1, held, NewLayout::Written(layout))] = &plan.frontends[..] else { panic!("{plan:?}") };
        assert_eq!((held.slots().len, layout.as_slice()), (0, [].as_slice()), "and no more come");
    }

    #[test]
    fn a_backend_has_the_hosts_address_of_its_own_family() {
        let way = Way {
            host_address: Some([198, 19, 0, 1].into()),
            host_address_v6: Some("2001:db8::1".parse().unwrap()),
            ..way()
        };
        for (endpoint, host) in [("198.19.0.2:5000", "198.19.0.1"), ("[2001:db8::2]:5000", "2001:db8::1")] {
            let plan = registry().plan(WEB, &[&Member { way: way.clone(), ..member("a", endpoint) }], &[]).unwrap();

            let entry = entry(&plan.backends[0]);

            assert_eq!(IpAddr::from(entry.host_address), host.parse::<IpAddr>().unwrap());
            assert_eq!(IpAddr::from(entry.address), endpoint.parse::<SocketAddr>().unwrap().ip());
            assert_eq!(entry.netns(), Some(3), "where its listener can be asked");
        }
    }

    #[test]
    fn who_is_to_know_clients_by_another_address_is_another_backend() {
        let mut registry = registry();
        let a = member("a", "198.19.0.2:5000");
        let plan = registry.plan(WEB, &[&a], &[]).unwrap();
        settle(&mut registry, plan);
        let snat = Snat::new(&["198.19.0.9".parse().unwrap()]).unwrap();
        let hidden = Member { way: way().hiding_clients_behind(snat), ..a };

        let plan = registry.plan(WEB, &[&hidden], &[]).unwrap();

        let backend = &plan.backends[0];
        assert_eq!((backend.id, &plan.ended[..]), (1, &[0][..]), "its connections end");
        let entry = entry(backend);
        assert!(entry.hides_clients());
        assert_eq!(IpAddr::from(entry.host_address), "198.19.0.9".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn a_server_of_this_host_is_given_to_its_own_stack_as_long_as_it_is_here() {
        let mut registry = registry();
        let way = Way { reach: Reach::Local, netns: None, ..way() };
        let here = Member { way, ..member("a", "198.19.0.1:5000") };
        let plan = registry.plan(WEB, &[&here, &member("b", "198.19.0.2:5000")], &[]).unwrap();
        assert!(!registry.has_local());

        let entry = entry(&plan.backends[0]);
        assert_eq!((entry.hand_off(), entry.netns()), (HandOff::Local, Some(NETNS_HERE)), "its listener can be asked");
        settle(&mut registry, plan);
        let at = |text: &str| endpoint(text.parse().unwrap(), Proto::Tcp);
        assert_eq!(registry.local_endpoints(), [at("198.19.0.1:5000")].into());

        let plan = registry.plan(WEB, &[&member("b", "198.19.0.2:5000")], &[&here]).unwrap();
        settle(&mut registry, plan);
        assert!(registry.has_local(), "it drains");
        let plan = registry.plan(WEB, &[&member("a", "198.19.0.1:5000")], &[]).unwrap();
        assert_eq!((plan.backends[0].id, &plan.ended[..]), (0, &[1][..]), "its address has moved, and it is the same");
        settle(&mut registry, plan);
        assert!(!registry.has_local() && registry.local_endpoints().is_empty());
    }

    #[test]
    fn a_frontend_is_told_from_one_of_another_protocol() {
        let mut registry = registry();
        let row = registry.frontends.get_mut(&0).unwrap();
        row.addresses.insert("198.19.0.1:80".parse().unwrap());
        let other = FrontendRow { name: "80/udp".into(), proto: Proto::Udp, addresses: BTreeSet::new(), ..row.clone() };
        registry.frontends.insert(1, other);
        let at = |address: &str, named| registry.frontend_at(address.parse().unwrap(), named);

        assert_eq!(at("198.19.0.1:80", "80/tcp"), Some("80/tcp"));
        assert_eq!(at("198.19.0.1:81", "80/tcp"), None);
        assert_eq!(at("198.19.0.1:80", "80/udp"), None, "a server of UDP may be there");
    }

    #[test]
    fn draining_leaves_the_slots_and_keeps_the_backend() {
        let mut registry = registry();
        let (a, b) = (member("a", "198.19.0.2:5000"), member("b", "198.19.0.3:5000"));
        let plan = registry.plan(WEB, &[&a, &b], &[]).unwrap();
        settle(&mut registry, plan);

        let plan = registry.plan(WEB, &[&a], &[&b]).unwrap();

        assert_eq!(plan.frontends, [(0, held(2, 1), alone(0))]);
        assert!(plan.ended.is_empty());
        let told: Vec<(BackendId, bool)> = plan.backends.iter().map(|backend| (backend.id, backend.leaving)).collect();
        assert_eq!(told, [(1, true)], "clients that would keep it are given another");
        assert!(entry(&plan.backends[0]).is_leaving() && entry(&plan.backends[0]).serves(1));

        settle(&mut registry, plan);
        let plan = registry.plan(WEB, &[&a, &b], &[]).unwrap();
        assert!(plan.backends.len() == 1 && !plan.backends[0].leaving, "and is back with its slot");
    }

    #[test]
    fn another_scheduler_is_published_with_its_layout_or_alone_where_that_is_the_same() {
        let mut registry = registry();
        let (a, b) = (member("a", "198.19.0.2:5000"), member("b", "198.19.0.3:5000"));
        let plan = registry.plan(WEB, &[&a, &b], &[]).unwrap();
        settle(&mut registry, plan);
        let range = registry.frontends[&0].held.slots();

        let least_conn = Scheduling { scheduler: Scheduler::LeastConn, affinity_ms: 5_000, max_connections: 7 };
        registry.frontends.get_mut(&0).unwrap().scheduling = least_conn;
        let plan = registry.plan(WEB, &[&a, &b], &[]).unwrap();
        assert_eq!(plan.frontends, [(0, least_conn.frontend(range), NewLayout::Kept)]);
        settle(&mut registry, plan);
        assert_eq!(registry.plan(WEB, &[&a, &b], &[]).unwrap(), Plan::default());

        let maglev = Scheduling { scheduler: Scheduler::Maglev, ..Scheduling::PLAIN };
        registry.frontends.get_mut(&0).unwrap().scheduling = maglev;
        let plan = registry.plan(WEB, &[&a, &b], &[]).unwrap();
        let [(0, held, NewLayout::Written(layout))] = &plan.frontends[..] else { panic!("{plan:?}") };
        assert_eq!((held.scheduler(), held.slots().len, layout.len()), (Scheduler::Maglev, 16_381, 16_383));
        assert_eq!(
            (held.roll(), &layout[16_381..]),
            (SlotRange { base: range.base + 2 + 16_381, len: 2 }, &layout_of(2)[..])
        );
    }

    #[test]
    fn an_owner_is_another_when_its_publications_are_to_be() {
        let mut registry = registry();
        let plain = registry.owners();
        registry.wanted = 5;
        assert_eq!(registry.owners(), plain, "its layout does not depend on the number of frontends");

        registry.frontends.get_mut(&0).unwrap().scheduling.scheduler = Scheduler::SourceHash;
        let hashed = registry.owners();
        assert_ne!(hashed, plain);
        registry.wanted = 16;
        assert_eq!(registry.owners(), hashed);
        registry.wanted = 17;
        assert_ne!(registry.owners(), hashed, "tables are smaller");
    }

    #[test]
    fn weights_and_a_slow_start_reach_the_slots() {
        let mut registry = registry();
        registry.frontends.get_mut(&0).unwrap().scheduling =
            Scheduling { scheduler: Scheduler::Weighted, ..Scheduling::PLAIN };
        let a = member("a", "198.19.0.2:5000");
        let b = Member { weight: 2, tenths: 5, ..member("b", "198.19.0.3:5000") };
        let c = Member { weight: 2, ..member("c", "198.19.0.4:5000") };

        let plan = registry.plan(WEB, &[&a, &b, &c], &[]).unwrap();

        let [(0, _, NewLayout::Written(layout))] = &plan.frontends[..] else { panic!("{plan:?}") };
        let order: Vec<BackendId> = layout.iter().map(|slot| slot.backend).collect();
        assert_eq!(order, [2, 0, 1, 2, 0, 1, 2], "one of two in half, as much as one whole of one; then each once");
        assert_eq!(plan.backends.iter().map(|backend| backend.weight).collect::<Vec<_>>(), [1, 2, 2]);
    }

    #[test]
    fn a_service_touches_nothing_of_another_even_with_the_same_servers() {
        let mut registry = registry();
        let other = FrontendRow { service: "cache".into(), name: "81/tcp".into(), ..registry.frontends[&0].clone() };
        registry.frontends.insert(1, other);
        let web = member("198.19.0.2:5000", "198.19.0.2:5000");
        let cache = Member { endpoints: [("81/tcp".to_owned(), web.endpoints["80/tcp"])].into(), ..web.clone() };
        let plan = registry.plan(WEB, &[&web], &[]).unwrap();
        settle(&mut registry, plan);

        let plan = registry.plan("cache", &[&cache], &[]).unwrap();
        assert_eq!(plan.frontends, [(1, held(1, 1), alone(1))]);
        assert!(plan.ended.is_empty());
        settle(&mut registry, plan);

        assert_eq!(registry.plan(WEB, &[&web], &[]).unwrap(), Plan::default());
        let plan = registry.plan(WEB, &[], &[]).unwrap();
        assert_eq!((plan.frontends.len(), plan.ended.as_slice()), (1, [0].as_slice()));
        settle(&mut registry, plan);
        assert_eq!(registry.in_slots("cache"), [web.container.clone()].into());
        assert_eq!(registry.member(WEB, &web.container), None);
        assert_eq!(registry.member("cache", &web.container), Some(Member { tenths: 1, ..cache }));
    }

    #[test]
    fn a_frontend_that_went_over_to_another_service_drains_and_is_filled_by_that() {
        let mut registry = registry();
        let (a, b) = (member("a", "198.19.0.2:5000"), member("b", "198.19.0.3:5000"));
        let plan = registry.plan(WEB, &[&a], &[]).unwrap();
        settle(&mut registry, plan);
        let row = registry.frontends.get_mut(&0).unwrap();
        (row.service, row.held, row.layout) = ("www".into(), held(0, 0), Vec::new());

        let plan = registry.plan("www", &[&b], &[]).unwrap();
        assert_eq!(plan.frontends, [(0, held(1, 1), alone(1))]);
        settle(&mut registry, plan);
        let plan = registry.plan(WEB, &[&a], &[]).unwrap();
        assert!(plan.frontends.is_empty() && plan.ended.is_empty(), "what it had goes on");
        let told: Vec<(BackendId, bool)> = plan.backends.iter().map(|backend| (backend.id, backend.leaving)).collect();
        assert_eq!(told, [(0, true)], "although it is ready elsewhere, no client of this frontend keeps it");
        settle(&mut registry, plan);
        assert_eq!(registry.plan(WEB, &[], &[&a]).unwrap(), Plan::default());
        assert_eq!(registry.plan(WEB, &[], &[]).unwrap().ended, [0]);
    }

    #[test]
    fn another_way_to_the_same_server_keeps_its_connections() {
        let mut registry = registry();
        let plan = registry.plan(WEB, &[&member("a", "198.19.0.2:5000")], &[]).unwrap();
        settle(&mut registry, plan);
        let elsewhere = Member { way: Way { ifindex: 9, ..way() }, ..member("a", "198.19.0.2:5000") };

        let plan = registry.plan(WEB, &[&elsewhere], &[]).unwrap();

        assert_eq!((plan.backends[0].id, plan.backends[0].generation), (0, 1));
        assert!(plan.frontends.is_empty() && plan.ended.is_empty());
    }

    #[test]
    fn what_was_announced_and_not_written_is_written_by_the_next() {
        let mut registry = registry();
        let plan = registry.plan(WEB, &[&member("a", "198.19.0.2:5000")], &[]).unwrap();
        registry.announce(&plan);

        let again = registry.plan(WEB, &[&member("a", "198.19.0.2:5000")], &[]).unwrap();

        assert_eq!(again, plan);
    }

    #[test]
    fn a_way_that_a_former_agent_has_announced_and_not_written_is_written() {
        let mut former = registry();
        let plan = former.plan(WEB, &[&member("a", "198.19.0.2:5000")], &[]).unwrap();
        settle(&mut former, plan);
        let held = entry(&former.backends[&0]);
        let moved = Member { way: Way { ifindex: 9, ..way() }, ..member("a", "198.19.0.2:5000") };
        let plan = former.plan(WEB, &[&moved], &[]).unwrap();
        former.announce(&plan);

        let mut next = registry();
        next.inherit(&former.backends[&0], &held);
        assert_eq!(next.plan(WEB, &[&moved], &[]).unwrap().backends, plan.backends, "although it is no other way");

        let mut next = registry();
        next.inherit(&former.backends[&0], &entry(&former.backends[&0]));
        assert!(next.plan(WEB, &[&moved], &[]).unwrap().backends.is_empty());
        let mut next = registry();
        next.inherit(&former.backends[&0], &held.freed());
        assert!(next.backends.is_empty(), "what has ended is not taken over");
    }

    #[test]
    fn an_address_that_returns_is_another_generation() {
        let mut registry = registry();
        let plan = registry.plan(WEB, &[&member("a", "198.19.0.2:5000")], &[]).unwrap();
        settle(&mut registry, plan);
        let plan = registry.plan(WEB, &[&member("b", "198.19.0.2:5000")], &[]).unwrap();
        assert_eq!((plan.backends[0].id, plan.ended.as_slice()), (1, [0].as_slice()));
        settle(&mut registry, plan);
        registry.retiring.clear();

        let plan = registry.plan(WEB, &[&member("c", "198.19.0.2:5000")], &[]).unwrap();

        assert_eq!((plan.backends[0].id, plan.backends[0].generation), (0, 2));
    }

    #[test]
    fn a_range_that_was_given_up_is_not_written_over_at_once() {
        let live = [SlotRange { base: 4, len: 2 }];

        assert_eq!(allocate(&live, 3, 6, 16), Some(6));
        assert_eq!(allocate(&live, 3, 15, 16), Some(0));
        assert_eq!(allocate(&live, 5, 15, 16), Some(6));
        assert_eq!(allocate(&live, 11, 0, 16), None);
        assert_eq!(allocate(&live, 0, 16, 16), Some(16));
    }
}
