//! From a wish to map entries. [`Registry::plan`] decides, [`Datapath::publish`] performs, in the order in which nothing
//! is lost: reply doors, backends, slots, the frontend's slot range, and only then the end of what is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddrV4,
};

use lb_ebpf::abi::{
    Address, Backend, BackendId, Endpoint, Frontend, FrontendId, HandOff, MAX_BACKENDS, MAX_FRONTENDS, MAX_SLOTS, Port,
    Proto, Scheduler, SlotRange, map,
};

use super::{
    Datapath, DatapathError, Maps,
    doors::DoorKind,
    maps::failed,
    report::{BackendReport, FrontendReport, Reach, Report, Way},
};
use crate::control::ContainerId;

/// A frontend to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendWish {
    /// Its name: `80/tcp`.
    pub name: String,
    /// Its protocol.
    pub proto: Proto,
    /// Its endpoints.
    pub addresses: BTreeSet<SocketAddrV4>,
}

/// A container to be served, with its endpoint for each frontend, by the frontends' names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The container.
    pub container: ContainerId,
    /// Where it listens, by frontend.
    pub endpoints: BTreeMap<String, SocketAddrV4>,
    /// How it is reached.
    pub way: Way,
}

/// What the kernel is known to hold.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    frontends: BTreeMap<FrontendId, FrontendRow>,
    backends: BTreeMap<BackendId, BackendReport>,
    /// Ids that are free, but not to be used before a sweep has found no flow and the counters are put away.
    retiring: BTreeMap<BackendId, FrontendId>,
    generations: BTreeMap<BackendId, u32>,
    /// Where the next slot range is looked for, so that one that was just given up is not written over at once.
    next_slot: u32,
}

#[derive(Clone, Debug)]
struct FrontendRow {
    name: String,
    proto: Proto,
    addresses: BTreeSet<SocketAddrV4>,
    slots: SlotRange,
    members: Vec<BackendId>,
}

/// What is to be written, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Plan {
    doors: BTreeMap<u32, String>,
    new: Vec<BackendReport>,
    slots: Vec<(FrontendId, SlotRange, Vec<BackendId>)>,
    ended: Vec<BackendId>,
}

impl Registry {
    /// Reads what a former agent has published; returns also the backends that have slots.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn adopt(maps: &Maps, former: Option<&Report>) -> Result<(Self, BTreeSet<BackendId>), DatapathError> {
        let mut registry = Self::default();
        let mut ready = BTreeSet::new();
        let Some(report) = former else { return Ok((registry, ready)) };
        for told in &report.frontends {
            let Ok(frontend) = maps.frontends.get(&told.id, 0) else { continue };
            let slots = frontend.slots();
            let mut members = Vec::new();
            for place in 0..slots.len.min(MAX_SLOTS) {
                members.push(maps.slots.get(&(slots.base + place), 0).map_err(failed(map::SLOTS))?);
            }
            ready.extend(members.iter().copied());
            registry.next_slot = registry.next_slot.max(slots.base + slots.len);
            let proto = if told.name.ends_with("/udp") { Proto::Udp } else { Proto::Tcp };
            let addresses = told.addresses.clone();
            let row = FrontendRow { name: told.name.clone(), proto, addresses, slots, members };
            registry.frontends.insert(told.id, row);
        }
        for told in &report.backends {
            let backend = maps.backends.get(&told.id, 0).map_err(failed(map::BACKENDS))?;
            if backend.serves(told.generation) {
                registry.backends.insert(told.id, told.clone());
            }
        }
        for id in 0..MAX_BACKENDS {
            let backend = maps.backends.get(&id, 0).map_err(failed(map::BACKENDS))?;
            if backend.generation != 0 {
                registry.generations.insert(id, backend.generation);
                if !registry.backends.contains_key(&id) {
                    registry.retiring.insert(id, backend.frontend);
                }
            }
        }
        Ok((registry, ready))
    }

    /// Returns the frontends for the report.
    pub fn frontends(&self) -> Vec<FrontendReport> {
        self.frontends
            .iter()
            .map(|(&id, row)| FrontendReport { id, name: row.name.clone(), addresses: row.addresses.clone() })
            .collect()
    }

    /// Returns the backends for the report.
    pub fn backends(&self) -> impl Iterator<Item = &BackendReport> {
        self.backends.values()
    }

    /// Returns a container as it was last published.
    pub fn member(&self, id: &ContainerId) -> Option<Member> {
        let mut of = self.backends.values().filter(|backend| backend.container == *id);
        let first = of.next()?;
        let named = |backend: &BackendReport| {
            self.frontends.get(&backend.frontend).map(|row| (row.name.clone(), backend.endpoint))
        };
        let endpoints = std::iter::once(first).chain(of).filter_map(named).collect();
        Some(Member { container: id.clone(), endpoints, way: first.way.clone() })
    }

    /// Returns the container behind a backend that is served.
    pub fn container(&self, id: BackendId, generation: u32) -> Option<&ContainerId> {
        self.backends.get(&id).filter(|backend| backend.generation == generation).map(|backend| &backend.container)
    }

    /// Decides what to write so that exactly `ready` get new connections, and `ready` and `draining` keep theirs.
    fn plan(&self, ready: &[Member], draining: &[Member]) -> Result<Plan, DatapathError> {
        let mut plan = Plan::default();
        let mut kept = BTreeSet::new();
        let mut taken: BTreeSet<BackendId> = self.backends.keys().chain(self.retiring.keys()).copied().collect();
        let mut in_slots: BTreeMap<FrontendId, Vec<BackendId>> = BTreeMap::new();
        let ids: BTreeMap<&str, FrontendId> = self.frontends.iter().map(|(&id, row)| (row.name.as_str(), id)).collect();
        let everyone = ready.iter().map(|member| (member, true)).chain(draining.iter().map(|member| (member, false)));
        for (member, is_ready) in everyone {
            for (name, &endpoint) in &member.endpoints {
                let Some(&frontend) = ids.get(name.as_str()) else { continue };
                let known = self.backends.values().find(|known| {
                    known.frontend == frontend
                        && known.container == member.container
                        && known.endpoint == endpoint
                        && known.way == member.way
                });
                let id = match known {
                    Some(known) => known.id,
                    None => {
                        let id = (0..MAX_BACKENDS)
                            .find(|id| !taken.contains(id))
                            .ok_or(DatapathError::Full { what: "backends", limit: MAX_BACKENDS })?;
                        let generation = self.generations.get(&id).map_or(1, |former| former.wrapping_add(1).max(1));
                        plan.new.push(BackendReport {
                            id,
                            generation,
                            frontend,
                            container: member.container.clone(),
                            endpoint,
                            way: member.way.clone(),
                        });
                        taken.insert(id);
                        id
                    }
                };
                kept.insert(id);
                plan.doors.insert(member.way.reply_ifindex, member.way.reply_name.clone());
                if is_ready {
                    in_slots.entry(frontend).or_default().push(id);
                }
            }
        }
        let mut live: Vec<SlotRange> = self.frontends.values().map(|row| row.slots).collect();
        let mut from = self.next_slot;
        for (&frontend, row) in &self.frontends {
            let members = in_slots.remove(&frontend).unwrap_or_default();
            if members != row.members {
                let len = members.len() as u32;
                let base = allocate(&live, len, from, MAX_SLOTS)
                    .ok_or(DatapathError::Full { what: "slots", limit: MAX_SLOTS })?;
                let range = SlotRange { base, len };
                live.push(range);
                from = base + len;
                plan.slots.push((frontend, range, members));
            }
        }
        plan.ended = self.backends.keys().copied().filter(|id| !kept.contains(id)).collect();
        Ok(plan)
    }
}

impl Datapath {
    /// Serves exactly these frontends, at exactly these endpoints.
    ///
    /// # Errors
    /// What the kernel said; what was written by then stays, and a second call goes on.
    pub fn serve(&mut self, wishes: &[FrontendWish]) -> Result<(), DatapathError> {
        for wish in wishes {
            let existing = self.registry.frontends.iter().find(|(_, row)| row.name == wish.name).map(|(&id, _)| id);
            let id = match existing {
                Some(id) => id,
                None => {
                    let id = (0..MAX_FRONTENDS)
                        .find(|id| !self.registry.frontends.contains_key(id))
                        .ok_or(DatapathError::Full { what: "frontends", limit: MAX_FRONTENDS })?;
                    let slots = SlotRange { base: 0, len: 0 };
                    self.write_slot_range(id, slots)?;
                    let (name, proto) = (wish.name.clone(), wish.proto);
                    let row = FrontendRow { name, proto, addresses: BTreeSet::new(), slots, members: Vec::new() };
                    self.registry.frontends.insert(id, row);
                    id
                }
            };
            self.move_to(id, &wish.addresses)?;
        }
        let superfluous: Vec<FrontendId> = self
            .registry
            .frontends
            .iter()
            .filter(|(_, row)| !wishes.iter().any(|wish| wish.name == row.name))
            .map(|(&id, _)| id)
            .collect();
        for id in superfluous {
            self.move_to(id, &BTreeSet::new())?;
            self.maps.frontends.remove(&id).map_err(failed(map::FRONTENDS))?;
            self.registry.frontends.remove(&id);
        }
        Ok(())
    }

    /// Lets a frontend answer at exactly these endpoints; the new come before the old go.
    fn move_to(&mut self, id: FrontendId, addresses: &BTreeSet<SocketAddrV4>) -> Result<(), DatapathError> {
        let Some(row) = self.registry.frontends.get_mut(&id) else { return Ok(()) };
        let udp = row.proto == Proto::Udp;
        for &address in addresses.difference(&row.addresses.clone()) {
            self.maps.addresses.insert(endpoint(address, udp), id, 0).map_err(failed(map::ADDRESSES))?;
            row.addresses.insert(address);
        }
        for &address in row.addresses.clone().difference(addresses) {
            match self.maps.addresses.remove(&endpoint(address, udp)) {
                Ok(()) | Err(aya::maps::MapError::KeyNotFound) => {}
                Err(error) => return Err(failed(map::ADDRESSES)(error)),
            }
            row.addresses.remove(&address);
        }
        Ok(())
    }

    /// Gives new connections to exactly `ready`, and lets `draining` keep theirs; flows of all others end.
    ///
    /// # Errors
    /// What the kernel said; what was written by then stays, and a second call goes on.
    pub fn publish(&mut self, ready: &[Member], draining: &[Member]) -> Result<(), DatapathError> {
        let plan = self.registry.plan(ready, draining)?;
        for (&ifindex, interface) in &plan.doors {
            self.open_door(DoorKind::TcReply, ifindex, interface)?;
        }
        for backend in plan.new {
            self.maps.backends.set(backend.id, entry(&backend), 0).map_err(failed(map::BACKENDS))?;
            self.registry.generations.insert(backend.id, backend.generation);
            self.registry.backends.insert(backend.id, backend);
        }
        for (frontend, range, members) in plan.slots {
            for (place, &id) in members.iter().enumerate() {
                self.maps.slots.set(range.base + place as u32, id, 0).map_err(failed(map::SLOTS))?;
            }
            self.write_slot_range(frontend, range)?;
            self.registry.next_slot = range.base + range.len;
            if let Some(row) = self.registry.frontends.get_mut(&frontend) {
                row.slots = range;
                row.members = members;
            }
        }
        for id in plan.ended {
            let backend = self.maps.backends.get(&id, 0).map_err(failed(map::BACKENDS))?;
            self.maps.backends.set(id, backend.freed(), 0).map_err(failed(map::BACKENDS))?;
            if let Some(ended) = self.registry.backends.remove(&id) {
                self.registry.retiring.insert(id, ended.frontend);
            }
        }
        let devices = self.registry.backends.values().map(|backend| backend.way.reply_ifindex).collect();
        self.close_doors_except(DoorKind::TcReply, &devices)
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
            self.registry.retiring.remove(&id);
        }
        Ok(())
    }

    /// Returns the ids that wait to be retired.
    pub fn retiring(&self) -> BTreeSet<BackendId> {
        self.registry.retiring.keys().copied().collect()
    }

    fn write_slot_range(&mut self, frontend: FrontendId, range: SlotRange) -> Result<(), DatapathError> {
        let value = Frontend::new(range, Scheduler::RoundRobin);
        self.maps.frontends.insert(frontend, value, 0).map_err(failed(map::FRONTENDS))
    }
}

/// Returns a socket address as the maps have it.
pub fn endpoint(address: SocketAddrV4, udp: bool) -> Endpoint {
    let proto = if udp { Proto::Udp } else { Proto::Tcp };
    Endpoint::new(Address::from(*address.ip()), Port::new(address.port()), proto)
}

/// Returns a backend as the map has it.
fn entry(backend: &BackendReport) -> Backend {
    let way = &backend.way;
    let hand_off = match way.reach {
        Reach::Veth => HandOff::Peer,
        Reach::Neighbour => HandOff::Neighbour,
        Reach::Routed => HandOff::Routing,
    };
    let address = Address::from(*backend.endpoint.ip());
    Backend::new(backend.frontend, backend.generation, address, Port::new(backend.endpoint.port()))
        .reached_by(hand_off, way.ifindex, way.mac, way.source_mac)
        .beside(way.host_address.map_or(Address::default(), Address::from))
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
    use super::*;

    fn way() -> Way {
        Way {
            reach: Reach::Veth,
            ifindex: 7,
            name: "veth7".into(),
            reply_ifindex: 7,
            reply_name: "veth7".into(),
            mac: [2; 6],
            source_mac: [4; 6],
            host_address: None,
        }
    }

    fn member(container: &str, endpoint: &str) -> Member {
        let endpoints = [("80/tcp".to_owned(), endpoint.parse().unwrap())].into();
        Member { container: container.into(), endpoints, way: way() }
    }

    /// Performs a plan on the registry alone.
    fn settle(registry: &mut Registry, plan: Plan) {
        for backend in plan.new {
            registry.generations.insert(backend.id, backend.generation);
            registry.backends.insert(backend.id, backend);
        }
        for (frontend, range, members) in plan.slots {
            let row = registry.frontends.get_mut(&frontend).unwrap();
            (row.slots, row.members) = (range, members);
            registry.next_slot = range.base + range.len;
        }
        for id in plan.ended {
            let ended = registry.backends.remove(&id).unwrap();
            registry.retiring.insert(id, ended.frontend);
        }
    }

    fn registry() -> Registry {
        let row = FrontendRow {
            name: "80/tcp".into(),
            proto: Proto::Tcp,
            addresses: BTreeSet::new(),
            slots: SlotRange { base: 0, len: 0 },
            members: Vec::new(),
        };
        Registry { frontends: [(0, row)].into(), ..Registry::default() }
    }

    #[test]
    fn a_second_publication_of_the_same_writes_nothing() {
        let mut registry = registry();
        let ready = [member("a", "198.19.0.2:5000"), member("b", "198.19.0.3:5000")];
        let plan = registry.plan(&ready, &[]).unwrap();
        settle(&mut registry, plan);

        let again = registry.plan(&ready, &[]).unwrap();

        assert!(again.new.is_empty() && again.slots.is_empty() && again.ended.is_empty());
    }

    #[test]
    fn draining_leaves_the_slots_and_keeps_the_backend() {
        let mut registry = registry();
        let (a, b) = (member("a", "198.19.0.2:5000"), member("b", "198.19.0.3:5000"));
        let plan = registry.plan(&[a.clone(), b.clone()], &[]).unwrap();
        settle(&mut registry, plan);

        let plan = registry.plan(std::slice::from_ref(&a), std::slice::from_ref(&b)).unwrap();

        assert_eq!(plan.slots, [(0, SlotRange { base: 2, len: 1 }, vec![0])]);
        assert!(plan.ended.is_empty() && plan.new.is_empty());
    }

    #[test]
    fn an_address_that_returns_is_another_generation() {
        let mut registry = registry();
        let plan = registry.plan(&[member("a", "198.19.0.2:5000")], &[]).unwrap();
        settle(&mut registry, plan);
        let plan = registry.plan(&[member("b", "198.19.0.2:5000")], &[]).unwrap();
        assert_eq!((plan.new[0].id, plan.ended.as_slice()), (1, [0].as_slice()));
        settle(&mut registry, plan);
        registry.retiring.clear();

        let plan = registry.plan(&[member("c", "198.19.0.2:5000")], &[]).unwrap();

        assert_eq!((plan.new[0].id, plan.new[0].generation), (0, 2));
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
