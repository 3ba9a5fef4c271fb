//! Handles of the pinned maps. The agent and `status` open them alike.

use std::os::fd::{AsFd as _, BorrowedFd};

use aya::{
    maps::{Array, HashMap, IterableMap as _, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuValues},
    programs::{ProgramType, loaded_programs},
};
use lb_ebpf::abi::{
    AgentRecord, Backend, BackendId, Endpoint, FlowEntry, FlowKey, Frontend, FrontendId, Guard, Handshakes, KtimeNs,
    Lifetimes, LocalFlow, LocalKey, MAX_BACKENDS, MAX_COUNTERS, MAX_SLOTS, REPORT_PAGE_BYTES, REPORT_PAGES, ReplyEntry,
    ReportPage, Slot, SlotRange, Source, Tally, Traffic, map,
};

use super::{DatapathError, pins::Pins, sys};

/// The maps of one instance. Who writes what stands in [`lb_ebpf::abi::map`].
pub struct Maps {
    /// `Endpoint → FrontendId`.
    pub addresses: HashMap<MapData, Endpoint, FrontendId>,
    /// `Endpoint → 1`: backends that are this host itself.
    pub local_backends: HashMap<MapData, Endpoint, u32>,
    /// `FrontendId → Frontend`.
    pub frontends: HashMap<MapData, FrontendId, Frontend>,
    /// `SlotIndex → Slot`.
    slots: Array<MapData, Slot>,
    /// `BackendId → Backend`.
    pub backends: Array<MapData, Backend>,
    /// The same, to be read in batches.
    all_backends: MapData,
    /// `FrontendId → next ticket`.
    pub cursors: Array<MapData, u64>,
    /// `BackendId → connections begun less those whose end was seen`.
    tallies: Array<MapData, Tally>,
    /// `BackendId → by how much its tally is wrong`.
    tally_errors: Array<MapData, Tally>,
    /// `0 → when the tallies were last set right`.
    swept: Array<MapData, KtimeNs>,
    /// `netns cookie → 1`.
    pub local_netns: HashMap<MapData, u64, u32>,
    /// `FrontendId → Traffic`.
    pub retired: Array<MapData, Traffic>,
    /// `FrontendId → Guard`.
    pub guards: Array<MapData, Guard>,
    /// `Source → 1 if it may begin connections, else 0`.
    pub sources: LpmTrie<MapData, Source, u32>,
    /// `device → 1`: those at which XDP answers.
    pub xdp_answers: HashMap<MapData, u32, u32>,
    counters: PerCpuArray<MapData, u64>,
    backend_stats: PerCpuArray<MapData, Traffic>,
    handshakes: PerCpuArray<MapData, Handshakes>,
    lifetimes: Array<MapData, Lifetimes>,
    agent: Array<MapData, AgentRecord>,
    report: Array<MapData, ReportPage>,
    /// TCP connections that are proven and last.
    pub flows: Table<FlowKey, FlowEntry>,
    /// Reply halves of those.
    pub replies: Table<FlowKey, ReplyEntry>,
    /// TCP connections that are not proven, or over.
    pub half_open: Table<FlowKey, FlowEntry>,
    /// UDP flows.
    pub datagrams: Table<FlowKey, FlowEntry>,
    /// Reply halves of those.
    pub datagram_replies: Table<FlowKey, ReplyEntry>,
    /// Connected sockets of this host, by their cookies.
    pub local_flows: Table<u64, LocalFlow>,
    /// Unconnected UDP sockets of this host.
    pub local_datagrams: Table<LocalKey, LocalFlow>,
}

/// A hash map that may be large, and is read and cleaned in batches.
pub struct Table<K: aya::Pod, V: aya::Pod> {
    name: &'static str,
    batches: MapData,
    single: HashMap<MapData, K, V>,
}

impl Maps {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// Which map, and what the kernel said.
    pub fn open(pins: &Pins) -> Result<Self, DatapathError> {
        Ok(Self {
            addresses: typed(pins, map::ADDRESSES)?,
            local_backends: typed(pins, map::LOCAL_BACKENDS)?,
            frontends: typed(pins, map::FRONTENDS)?,
            slots: typed(pins, map::SLOTS)?,
            backends: typed(pins, map::BACKENDS)?,
            all_backends: MapData::from_pin(pins.path(map::BACKENDS)).map_err(failed(map::BACKENDS))?,
            cursors: typed(pins, map::CURSORS)?,
            tallies: typed(pins, map::TALLIES)?,
            tally_errors: typed(pins, map::TALLY_ERRORS)?,
            swept: typed(pins, map::SWEPT)?,
            local_netns: typed(pins, map::LOCAL_NETNS)?,
            retired: typed(pins, map::RETIRED)?,
            guards: typed(pins, map::GUARDS)?,
            sources: typed(pins, map::SOURCES)?,
            xdp_answers: typed(pins, map::XDP_ANSWERS)?,
            counters: typed(pins, map::COUNTERS)?,
            backend_stats: typed(pins, map::BACKEND_STATS)?,
            handshakes: typed(pins, map::HANDSHAKES)?,
            lifetimes: typed(pins, map::LIFETIMES)?,
            agent: typed(pins, map::AGENT)?,
            report: typed(pins, map::REPORT)?,
            flows: Table::open(pins, map::FLOWS)?,
            replies: Table::open(pins, map::REPLIES)?,
            half_open: Table::open(pins, map::HALF_OPEN)?,
            datagrams: Table::open(pins, map::DATAGRAMS)?,
            datagram_replies: Table::open(pins, map::DATAGRAM_REPLIES)?,
            local_flows: Table::open(pins, map::LOCAL_FLOWS)?,
            local_datagrams: Table::open(pins, map::LOCAL_DATAGRAMS)?,
        })
    }

    /// Returns whether an agent has written a record, as far as it can be told where other maps are missing.
    pub fn has_record(pins: &Pins) -> bool {
        let record = typed::<Array<MapData, AgentRecord>>(pins, map::AGENT)
            .and_then(|agent| agent.get(&0, 0).map_err(failed(map::AGENT)));
        // What cannot be read is of another version, and was written by it.
        record.map_or(true, |record| record != AgentRecord::default())
    }

    /// Returns whether a TC program that works on these maps is loaded: one that no link holds is a filter's.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn serve_filters(&self) -> Result<bool, DatapathError> {
        let id = self.flows.batches.info().map_err(failed(map::FLOWS))?.id();
        // A program that goes meanwhile cannot be looked at, and need not be.
        let mut classifiers =
            loaded_programs().flatten().filter(|program| program.program_type() == ProgramType::SchedClassifier.into());
        Ok(classifiers.any(|program| program.map_ids().is_ok_and(|ids| ids.is_some_and(|ids| ids.contains(&id)))))
    }

    /// Returns every place for a backend, by id: a sweep of each second should not make thousands of system calls.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn all_backends(&self) -> Result<Vec<Backend>, DatapathError> {
        let mut all = Vec::with_capacity(MAX_BACKENDS as usize);
        sys::scan(self.all_backends.fd().as_fd(), |_: &BackendId, backend: &Backend| all.push(*backend))
            .map_err(|source| DatapathError::Scan { map: map::BACKENDS, source })?;
        Ok(all)
    }

    /// Returns a frontend's layout.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn layout(&self, range: SlotRange) -> Result<Vec<Slot>, DatapathError> {
        (0..range.len.min(MAX_SLOTS))
            .map(|place| self.slots.get(&range.base.saturating_add(place), 0).map_err(failed(map::SLOTS)))
            .collect()
    }

    /// Writes a frontend's layout, from a slot on.
    ///
    /// # Errors
    /// What the kernel said; some of it may be written by then.
    pub fn write_layout(&mut self, base: u32, layout: &[Slot]) -> Result<(), DatapathError> {
        let slots: Vec<(u32, Slot)> = (base..).zip(layout.iter().copied()).collect();
        let map = self.slots.map().fd().as_fd();
        sys::write(map, &slots).map_err(|source| DatapathError::Scan { map: map::SLOTS, source })
    }

    /// Takes a backend's tally for wrong as far as it exceeds the connections that there are; `tally` is what it was when
    /// they began to be counted.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn correct_tally(&mut self, id: BackendId, tally: Tally, connections: Tally) -> Result<(), DatapathError> {
        let error = Tally {
            active: tally.active.wrapping_sub(connections.active),
            held: tally.held.wrapping_sub(connections.held),
        };
        let known = self.tally_errors.get(&id, 0).map_err(failed(map::TALLY_ERRORS))?;
        if error != known {
            self.tally_errors.set(id, error, 0).map_err(failed(map::TALLY_ERRORS))?;
        }
        Ok(())
    }

    /// Says that the tallies were right at a time.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn write_swept(&mut self, now: KtimeNs) -> Result<(), DatapathError> {
        self.swept.set(0, now, 0).map_err(failed(map::SWEPT))
    }

    /// Returns a backend's tally.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn tally(&self, id: BackendId) -> Result<Tally, DatapathError> {
        self.tallies.get(&id, 0).map_err(failed(map::TALLIES))
    }

    /// Returns a counter, summed over the processors.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn counter(&self, index: u32) -> Result<u64, DatapathError> {
        debug_assert!(index < MAX_COUNTERS);
        let values = self.counters.get(&index, 0).map_err(failed(map::COUNTERS))?;
        Ok(values.iter().fold(0, |sum, value| sum.wrapping_add(*value)))
    }

    /// Returns what went through a backend, summed over the processors.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn traffic(&self, id: BackendId) -> Result<Traffic, DatapathError> {
        let values = self.backend_stats.get(&id, 0).map_err(failed(map::BACKEND_STATS))?;
        Ok(values.iter().fold(Traffic::default(), |mut sum, value| {
            sum.add(value);
            sum
        }))
    }

    /// Returns how a backend answers, summed over the processors.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn handshakes(&self, id: BackendId) -> Result<Handshakes, DatapathError> {
        let values = self.handshakes.get(&id, 0).map_err(failed(map::HANDSHAKES))?;
        Ok(values.iter().fold(Handshakes::default(), |mut sum, value| {
            sum.add(value);
            sum
        }))
    }

    /// Sets a backend's counters to zero. Only for an id that no packet is counted under.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn clear_traffic(&mut self, id: BackendId) -> Result<(), DatapathError> {
        let processors = aya::util::nr_cpus().map_err(|(_, source)| DatapathError::Processors { source })?;
        let failed_values = |source| DatapathError::Processors { source };
        let zeroes = PerCpuValues::try_from(vec![Handshakes::default(); processors]).map_err(failed_values)?;
        self.handshakes.set(id, zeroes, 0).map_err(failed(map::HANDSHAKES))?;
        let zeroes = PerCpuValues::try_from(vec![Traffic::default(); processors]).map_err(failed_values)?;
        self.backend_stats.set(id, zeroes, 0).map_err(failed(map::BACKEND_STATS))
    }

    /// Returns for how long flows may stay idle.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn lifetimes(&self) -> Result<Lifetimes, DatapathError> {
        self.lifetimes.get(&0, 0).map_err(failed(map::LIFETIMES))
    }

    /// Says for how long flows may stay idle.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_lifetimes(&mut self, lifetimes: Lifetimes) -> Result<(), DatapathError> {
        self.lifetimes.set(0, lifetimes, 0).map_err(failed(map::LIFETIMES))
    }

    /// Returns the agent's record; all zero if no agent has written one.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn agent_record(&self) -> Result<AgentRecord, DatapathError> {
        self.agent.get(&0, 0).map_err(failed(map::AGENT))
    }

    /// Writes the agent's report into the half that nobody reads, and then the record that makes it the one to read.
    ///
    /// # Errors
    /// [`DatapathError::ReportTooLong`], or what the kernel said.
    pub fn write_report(&mut self, text: &[u8], mut record: AgentRecord) -> Result<AgentRecord, DatapathError> {
        let room = REPORT_PAGES as usize * REPORT_PAGE_BYTES;
        if text.len() > room {
            return Err(DatapathError::ReportTooLong { len: text.len(), room });
        }
        let half = 1 - record.report_half.min(1);
        for (number, bytes) in text.chunks(REPORT_PAGE_BYTES).enumerate() {
            let mut page = [0; REPORT_PAGE_BYTES];
            page[..bytes.len()].copy_from_slice(bytes);
            self.report.set(half * REPORT_PAGES + number as u32, page, 0).map_err(failed(map::REPORT))?;
        }
        record.report_half = half;
        record.report_len = text.len() as u32;
        self.write_record(record)
    }

    /// Writes the agent's record alone; the report stays as it was.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn write_record(&mut self, mut record: AgentRecord) -> Result<AgentRecord, DatapathError> {
        record.sequence += 1;
        self.agent.set(0, record, 0).map_err(failed(map::AGENT))?;
        Ok(record)
    }

    /// Reads the agent's record and report, whole.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn read_report(&self) -> Result<(AgentRecord, Vec<u8>), DatapathError> {
        // The agent writes every second at the most, so a second try reads in peace.
        let mut before = self.agent_record()?;
        for _ in 0..8 {
            let mut text = Vec::with_capacity(before.report_len as usize);
            let len = (before.report_len as usize).min(REPORT_PAGES as usize * REPORT_PAGE_BYTES);
            let first = before.report_half.min(1) * REPORT_PAGES;
            for number in 0..len.div_ceil(REPORT_PAGE_BYTES) {
                let page = self.report.get(&(first + number as u32), 0).map_err(failed(map::REPORT))?;
                text.extend_from_slice(&page);
            }
            text.truncate(len);
            let after = self.agent_record()?;
            // One write meanwhile went to the other half and leaves this one whole.
            if after.sequence.wrapping_sub(before.sequence) <= 1 {
                return Ok((before, text));
            }
            before = after;
        }
        Err(DatapathError::ReportRestless)
    }
}

impl<K: aya::Pod, V: aya::Pod> Table<K, V> {
    fn open(pins: &Pins, name: &'static str) -> Result<Self, DatapathError> {
        let batches = MapData::from_pin(pins.path(name)).map_err(failed(name))?;
        let single = typed(pins, name)?;
        Ok(Self { name, batches, single })
    }

    /// Returns an entry.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn get(&self, key: &K) -> Result<Option<V>, DatapathError> {
        match self.single.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed(self.name)(error)),
        }
    }

    /// Writes an entry. For tests and measurements: in service, the datapath writes.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn put(&mut self, key: &K, value: &V) -> Result<(), DatapathError> {
        self.single.insert(key, value, 0).map_err(failed(self.name))
    }

    /// Shows every entry.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn scan(&self, each: impl FnMut(&K, &V)) -> Result<(), DatapathError> {
        sys::scan(self.fd(), each).map_err(|source| DatapathError::Scan { map: self.name, source })
    }

    /// Deletes entries.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn delete(&self, keys: &[K]) -> Result<(), DatapathError> {
        sys::delete(self.fd(), keys).map_err(|source| DatapathError::Scan { map: self.name, source })
    }

    /// Returns how many entries fit.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn capacity(&self) -> Result<u32, DatapathError> {
        self.batches.info().map(|info| info.max_entries()).map_err(failed(self.name))
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.batches.fd().as_fd()
    }
}

/// Turns a map's error into one that names the map.
pub fn failed(map: &'static str) -> impl Fn(MapError) -> DatapathError {
    move |source| DatapathError::Map { map, source: Box::new(source) }
}

fn typed<T>(pins: &Pins, name: &'static str) -> Result<T, DatapathError>
where
    T: TryFrom<Map, Error = MapError>,
{
    MapData::from_pin(pins.path(name)).and_then(Map::from_map_data).and_then(T::try_from).map_err(failed(name))
}
