//! The benchmarks' own kernel object: programs that give another one a packet anew each time, and what a packet costs
//! by the side of which.

use std::{ffi::CString, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, PerCpuArray, PerCpuValues, ProgramArray},
    programs::{ProgramFd, SchedClassifier, TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode},
    util::nr_cpus,
};
use lb_ebpf::{
    abi::{FlowEntry, FlowKey},
    yardstick::{FRAME_LEN, Pattern, name},
};
use lb_tests::{
    lab,
    object::{Action, Door, action},
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

/// The variable that says where the object is.
pub const VARIABLE: &str = "LB_YARDSTICK";
/// Frames of a live batch: the kernel's own default.
const LIVE_BATCH: u32 = 64;

/// The loaded object.
pub struct Yardstick {
    ebpf: Ebpf,
}

/// What the laying program calls.
#[derive(Clone, Copy)]
pub enum Called<'a> {
    /// A program of the balancer.
    Ours(Door, &'a ProgramFd),
    /// XDP that does nothing.
    XdpEmpty,
    /// TC that does nothing.
    TcEmpty,
    /// XDP with one look-up.
    Lookup,
    /// XDP that redirects.
    Forward,
}

impl Yardstick {
    /// Loads the object, with room for so many entries in its table.
    pub fn load(entries: u32) -> Result<Self> {
        let path =
            std::env::var_os(VARIABLE).with_context(|| format!("{VARIABLE} is not set; cargo xtask bench sets it"))?;
        let object = std::fs::read(&path).with_context(|| format!("read {}", Path::new(&path).display()))?;
        let mut ebpf =
            EbpfLoader::new().map_max_entries(name::TABLE, entries).load(&object).context("load yardstick")?;
        for program in [name::XDP_LAY, name::XDP_EMPTY, name::XDP_LOOKUP, name::XDP_FORWARD, name::XDP_SINK] {
            xdp(&mut ebpf, program)?.load().with_context(|| format!("load {program}"))?;
        }
        for program in [name::TC_LAY, name::TC_EMPTY] {
            let found: &mut SchedClassifier = ebpf.program_mut(program).context(program)?.try_into()?;
            found.load().with_context(|| format!("load {program}"))?;
        }
        Ok(Self { ebpf })
    }

    /// Chooses what packets are laid, and begins with the first.
    pub fn lay(&mut self, pattern: Pattern) -> Result<()> {
        let mut patterns: Array<&mut MapData, Pattern> = self.map(name::PATTERN)?;
        patterns.set(0, pattern, 0)?;
        let mut turns: PerCpuArray<&mut MapData, u64> = self.map(name::TURN)?;
        turns.set(0, per_processor(0)?, 0)?;
        Ok(())
    }

    /// Runs a program so often, each time with the next packet, and checks what it did with the last. Returns what a run
    /// took, the laying included.
    pub fn run(&mut self, called: Called<'_>, times: u32, expected: Action) -> Result<Duration> {
        let door = self.call(called)?;
        let frame = [0; FRAME_LEN];
        let options = TestRunOptions { data_in: Some(&frame), repeat: times, ..TestRunOptions::default() };
        let result = match door {
            Door::Xdp => xdp(&mut self.ebpf, name::XDP_LAY)?.test_run(options),
            Door::Tc | Door::Reply | Door::Local => {
                let lay: &mut SchedClassifier =
                    self.ebpf.program_mut(name::TC_LAY).context(name::TC_LAY)?.try_into()?;
                lay.test_run(options)
            }
        }?;
        let did = action(door, result.return_value);
        ensure!(did == expected, "the program did {did:?} with its last packet, not {expected:?}");
        Ok(result.duration)
    }

    /// Sends so many packets that are laid anew through a program, as frames that really leave. For a thread in the
    /// namespace of the devices.
    pub fn run_live(&mut self, called: Called<'_>, times: u32, ifindex: u32) -> Result<()> {
        self.call(called)?;
        let frame = [0; FRAME_LEN];
        let context: Vec<u8> =
            [0, FRAME_LEN as u32, 0, ifindex, 0, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(&context),
            repeat: times,
            attrs: TestRunAttrs::new().xdp_live_frames(LIVE_BATCH),
            ..TestRunOptions::default()
        };
        xdp(&mut self.ebpf, name::XDP_LAY)?.test_run(options)?;
        Ok(())
    }

    /// Attaches the program that drops and counts. For a thread in the namespace of the device.
    pub fn sink(&mut self, interface: &str) -> Result<()> {
        let sink = xdp(&mut self.ebpf, name::XDP_SINK)?;
        sink.attach(interface, XdpMode::Driver).with_context(|| format!("attach to {interface}"))?;
        Ok(())
    }

    /// Returns how many packets were dropped and counted, or not found by [`Called::Lookup`].
    pub fn sunk(&mut self) -> Result<u64> {
        let sunk: PerCpuArray<&mut MapData, u64> = self.map(name::SUNK)?;
        Ok(sunk.get(&0, 0)?.iter().sum())
    }

    /// Fills the table that [`Called::Lookup`] looks into.
    pub fn fill_table(&mut self, entries: impl Iterator<Item = (FlowKey, FlowEntry)>) -> Result<()> {
        let mut table: HashMap<&mut MapData, FlowKey, FlowEntry> = self.map(name::TABLE)?;
        for (key, entry) in entries {
            table.insert(key, entry, 0)?;
        }
        Ok(())
    }

    /// Puts a program where the laying one calls it; returns by which door it is entered.
    fn call(&mut self, called: Called<'_>) -> Result<Door> {
        let (door, ours, own) = match called {
            Called::Ours(door, fd) => (door, Some(fd), ""),
            Called::XdpEmpty => (Door::Xdp, None, name::XDP_EMPTY),
            Called::TcEmpty => (Door::Tc, None, name::TC_EMPTY),
            Called::Lookup => (Door::Xdp, None, name::XDP_LOOKUP),
            Called::Forward => (Door::Xdp, None, name::XDP_FORWARD),
        };
        let fd = match (ours, door) {
            (Some(fd), _) => fd.try_clone()?,
            (None, Door::Xdp) => xdp(&mut self.ebpf, own)?.fd()?.try_clone()?,
            (None, Door::Tc | Door::Reply | Door::Local) => {
                let program: &mut SchedClassifier = self.ebpf.program_mut(own).context(own)?.try_into()?;
                program.fd()?.try_clone()?
            }
        };
        let array = if door == Door::Xdp { name::XDP_TARGET } else { name::TC_TARGET };
        let mut targets: ProgramArray<&mut MapData> = self.map(array)?;
        targets.set(0, &fd, 0)?;
        Ok(door)
    }

    fn map<'a, T>(&'a mut self, name: &str) -> Result<T>
    where
        T: TryFrom<&'a mut aya::maps::Map>,
        T::Error: std::error::Error + Send + Sync + 'static,
    {
        Ok(self.ebpf.map_mut(name).with_context(|| format!("yardstick lacks {name}"))?.try_into()?)
    }
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(ebpf.program_mut(name).with_context(|| format!("yardstick lacks {name}"))?.try_into()?)
}

fn per_processor(value: u64) -> Result<PerCpuValues<u64>> {
    let processors = nr_cpus().map_err(|(_, error)| error).context("count the processors")?;
    Ok(PerCpuValues::try_from(vec![value; processors])?)
}

/// Keeps the calling thread on one processor.
pub fn stay_on(processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor)?;
    sched_setaffinity(Pid::from_raw(0), &set).context("stay on one processor")
}

/// Returns the index of a device.
pub fn ifindex(namespace: &str, device: &str) -> Result<u32> {
    let name = CString::new(device).context("a device's name")?;
    lab::inside(namespace, || nix::net::if_::if_nametoindex(name.as_c_str())).with_context(|| format!("find {device}"))
}
