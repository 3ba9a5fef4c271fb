//! The processor time of the whole machine, and of one process.

use std::time::Duration;

use anyhow::{Context as _, Result};

/// Time since boot, summed over all processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// In processes: user, nice and system.
    pub process: Duration,
    /// In interrupts, soft ones above all.
    pub softirq: Duration,
}

impl Cpu {
    /// Reads the clocks.
    pub fn read() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        parse(&text).context("make sense of /proc/stat")
    }

    /// Returns what was spent since.
    pub fn since(self, before: Self) -> Self {
        Self {
            process: self.process.saturating_sub(before.process),
            softirq: self.softirq.saturating_sub(before.softirq),
        }
    }

    /// Returns both together.
    pub fn busy(self) -> Duration {
        self.process + self.softirq
    }
}

/// Reads `cpu user nice system idle iowait irq softirq steal …`, in ticks.
///
/// # Source
/// proc_stat(5).
fn parse(text: &str) -> Option<Cpu> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks[..] else { return None };
    Some(Cpu { process: ticks_to_time(user + nice + system), softirq: ticks_to_time(irq + softirq) })
}

/// Returns what a process has spent.
///
/// # Source
/// proc_pid_stat(5), fields 14 and 15.
pub fn of_process(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let fields = text.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().skip(11)).context("fields")?;
    let ticks: u64 = fields.take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(ticks_to_time(ticks))
}

/// Returns the memory of a process that is in use, in MiB.
///
/// # Source
/// proc_pid_status(5), VmRSS.
pub fn resident_mib(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let kib =
        text.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse().ok());
    kib.map(|kib: f64| kib / 1024.0).with_context(|| format!("find VmRSS in {path}"))
}

/// User space always sees hundredths of a second.
///
/// # Source
/// include/asm-generic/param.h, USER_HZ.
fn ticks_to_time(ticks: u64) -> Duration {
    Duration::from_millis(ticks * 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_all_processors_is_read() {
        let text = "cpu  100 10 40 5000 7 3 20 0 0 0\ncpu0 1 1 1 1 1 1 1 0 0 0\n";

        let cpu = parse(text).unwrap();

        assert_eq!(cpu, Cpu { process: Duration::from_millis(1500), softirq: Duration::from_millis(230) });
        assert_eq!(parse("nonsense"), None);
    }

    #[test]
    fn this_process_has_memory_and_time() {
        let pid = std::process::id();

        assert!(resident_mib(pid).unwrap() > 0.1);
        assert!(of_process(pid).is_ok());
    }
}
