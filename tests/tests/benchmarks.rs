//! `lb-bench` in miniature: what a run leaves behind, and what it does not. Figures of so short a run mean nothing but
//! that there are some.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use lb_tests::{
    lab,
    suite::{self, Case, Need},
};
use serde_json::Value;

const TOOLS: &[Need] = &[
    Need::Root,
    Need::Agent,
    Need::Program("ip"),
    Need::Program("nsenter"),
    Need::Program("nft"),
    Need::Program("conntrack"),
    Need::Program("curl"),
    Need::Program("nginx"),
    Need::Program("wrk"),
    Need::Program("iperf3"),
    Need::Program("ethtool"),
];
/// The processes of a run know it by this variable of their environment.
const MARK: &str = "LB_BENCHMARK_UNDER_TEST";

fn main() -> ExitCode {
    let case = |name, run| Case { name, needs: TOOLS, run };
    suite::run(vec![
        case("a_run_keeps_every_round_and_leaves_nothing", a_run_keeps_every_round_and_leaves_nothing),
        case("an_interrupted_run_keeps_what_it_has_and_leaves_nothing", an_interrupted_run_keeps_what_it_has),
    ])
}

fn a_run_keeps_every_round_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(folder.path(), &["requests", "--rounds", "2", "--peers", "nftables,ipvs"]);
    let pid = bench.child.id();

    let (code, said) = bench.wait();

    assert_eq!(code, Some(0), "{said}");
    let results = results(folder.path());
    let machine = &results["machine"];
    for name in ["kernel", "cpu", "started"] {
        assert!(machine[name].as_str().is_some_and(|text| !text.is_empty()), "{name}: {machine}");
    }
    assert_eq!((&results["rounds"], &results["duration_ms"]), (&2.into(), &100.into()));
    let versions = &machine["versions"];
    assert!(
        versions["lb-user"].is_string() && versions["wrk"].is_string() && versions["nft"].is_string(),
        "{versions}"
    );
    let systems = [
        "direct",
        "ours, TC",
        "direct, complete checksums",
        "ours, XDP",
        "direct, local client",
        "ours, socket hook",
        "nftables",
    ];
    for system in systems {
        let turns = turns_of(&results, system);
        for (case, has_turns) in [("two servers", true), ("one server", system != "nftables")] {
            let of_case = turns.iter().filter(|turn| turn["case"] == case);
            let rounds: Vec<u64> = of_case.filter_map(|turn| turn["round"].as_u64()).collect();
            assert_eq!(rounds, if has_turns { &[1, 2][..] } else { &[] }, "{system}, {case}: {said}");
        }
        for turn in turns {
            for metric in ["requests_per_second", "latency_p50", "latency_p999", "cpu_per_request"] {
                assert!(turn["values"][metric].as_f64().is_some_and(|value| value > 0.0), "{metric}: {turn}");
            }
            assert_eq!(turn["values"]["failures"], 0.0, "{turn}");
        }
    }
    // Whoever was asked for and is not among them, of him it is said why.
    let lacking = results["left_out"].as_array().unwrap().iter().any(|left_out| left_out["what"] == "IPVS");
    assert_ne!(lacking, !turns_of(&results, "IPVS").is_empty(), "{results:#}");
    let ratio = results["targets"]
        .as_array()
        .unwrap()
        .iter()
        .find(|target| target["what"] == "TC to direct: keep-alive requests");
    assert!(ratio.is_some_and(|ratio| ratio["measured"]["median"].as_f64().is_some_and(|median| median > 0.0)));
    let report = fs::read_to_string(folder.path().join("report.md")).unwrap();
    assert!(report.contains("| ours, TC") && report.contains("](requests-two-servers-requests-s.svg)"), "{report}");
    let chart = fs::read_to_string(folder.path().join("requests-two-servers-requests-s.svg")).unwrap();
    assert!(chart.contains("</svg>") && chart.contains("ours, socket hook"), "{chart}");
    assert_nothing_is_left(pid);
}

fn an_interrupted_run_keeps_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(folder.path(), &["latency", "--rounds", "100", "--peers", "nginx"]);
    let pid = bench.child.id();
    bench.read_until("ours, socket hook, round 1");

    lab::interrupt(&mut bench.child);

    let asked = Instant::now();
    let (code, said) = bench.wait();
    assert_eq!(code, Some(130), "{said}");
    assert!(asked.elapsed() < Duration::from_secs(10), "it took {:?}", asked.elapsed());
    let results = results(folder.path());
    assert_eq!(turns_of(&results, "direct").len(), 1, "{results:#}");
    assert_nothing_is_left(pid);
}

/// A run of `lb-bench`.
struct Bench {
    child: Child,
    said: BufReader<std::process::ChildStderr>,
    so_far: String,
}

impl Bench {
    fn start(out: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_lb-bench"))
            .args(arguments)
            .args(["--duration", "100ms", "--out"])
            .arg(out)
            .env(MARK, "1")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("lb-bench starts");
        let said = BufReader::new(child.stderr.take().expect("it is piped"));
        Self { child, said, so_far: String::new() }
    }

    fn read_until(&mut self, words: &str) {
        while !self.so_far.contains(words) {
            let read = self.said.read_line(&mut self.so_far).expect("it writes text");
            assert!(read > 0, "it ended: {}", self.so_far);
        }
    }

    /// Returns its exit code and what it has said.
    fn wait(&mut self) -> (Option<i32>, String) {
        while self.said.read_line(&mut self.so_far).expect("it writes text") > 0 {}
        (self.child.wait().expect("it is ours").code(), self.so_far.clone())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        lab::end(&mut self.child);
    }
}

fn results(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("results.json")).expect("there are results")).expect("they are JSON")
}

fn turns_of<'a>(results: &'a Value, system: &str) -> Vec<&'a Value> {
    results["turns"].as_array().expect("turns").iter().filter(|turn| turn["system"] == system).collect()
}

fn assert_nothing_is_left(pid: u32) {
    for folder in ["/run/netns", "/sys/fs/bpf/lb", "/run/lb"] {
        let names: BTreeSet<String> = entries(folder).filter(|name| name.starts_with(&format!("lbt{pid}x"))).collect();
        assert!(names.is_empty(), "left in {folder}: {names:?}");
    }
    let processes: Vec<String> = entries("/proc")
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .filter(|name| fs::read(format!("/proc/{name}/environ")).is_ok_and(|all| contains(&all, MARK.as_bytes())))
        .map(|name| fs::read_to_string(format!("/proc/{name}/cmdline")).unwrap_or_default().replace('\0', " "))
        .collect();
    assert!(processes.is_empty(), "still running: {processes:?}");
}

fn entries(folder: &str) -> impl Iterator<Item = String> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned())
}

fn contains(all: &[u8], part: &[u8]) -> bool {
    all.windows(part.len()).any(|window| window == part)
}
