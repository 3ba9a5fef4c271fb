//! The house's rules that a compiler does not know: who may know what, and where the dangerous things live.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// A source file, without its tests.
struct Source {
    /// From the workspace's root, with slashes.
    path: String,
    text: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the workspace").to_owned()
}

fn sources(folder: &str) -> Vec<Source> {
    let mut found = Vec::new();
    collect(&root().join(folder), &mut found);
    assert!(!found.is_empty(), "{folder} has no sources");
    found
}

fn collect(folder: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).expect("a folder of the workspace") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a text");
            let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default().to_owned();
            let path = path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
            found.push(Source { path, text });
        }
    }
}

/// Returns the files whose code, comments left out, has any of these words.
fn with_any(sources: &[Source], words: &[&str]) -> BTreeSet<String> {
    let has = |source: &Source| {
        let code = source.text.lines().filter(|line| !line.trim_start().starts_with("//"));
        code.flat_map(|line| words.iter().map(move |word| line.contains(word))).any(|has| has)
    };
    sources.iter().filter(|source| has(source)).map(|source| source.path.clone()).collect()
}

/// Checks that only files below these paths have any of these words.
fn only_in(folder: &str, words: &[&str], homes: &[&str]) {
    let strays: Vec<String> = with_any(&sources(folder), words)
        .into_iter()
        .filter(|path| !homes.iter().any(|home| path.starts_with(home)))
        .collect();
    assert!(strays.is_empty(), "{words:?} belong into {homes:?}, not into {strays:?}");
}

#[test]
fn foreign_crates_have_one_home_each() {
    only_in("lb-user/src", &["aya::", "use aya"], &["lb-user/src/datapath/"]);
    only_in("lb-user/src", &["bollard"], &["lb-user/src/provider/docker"]);
    only_in("lb-user/src", &["hyper", "http_body_util"], &["lb-user/src/server/", "lb-user/src/operate/"]);
    only_in("lb-user/src", &["sysinfo"], &["lb-user/src/metrics/host_cpu.rs"]);
    only_in("lb-user/src", &["use rtnetlink", "rtnetlink::"], &["lb-user/src/datapath/links/netlink.rs"]);
    only_in("lb-user/src", &["toml::", "use toml"], &["lb-user/src/cli/file.rs"]);
    only_in("lb-user/src", &["clap"], &["lb-user/src/cli", "lb-user/src/config/value.rs"]);
}

#[test]
fn the_controller_knows_no_clock_no_engine_and_no_kernel() {
    let words = [
        "Instant",
        "SystemTime",
        "tokio",
        "async ",
        ".await",
        "std::fs",
        "std::process",
        "std::thread",
        "UdpSocket",
        "TcpStream",
        "crate::datapath",
        "crate::provider",
        "crate::agent",
        "crate::server",
        "tracing",
        "lb_ebpf",
        "HashMap",
        "HashSet",
    ];
    let sources: Vec<Source> =
        sources("lb-user/src/control").into_iter().filter(|source| !source.path.contains("/tests")).collect();

    let found = with_any(&sources, &words);

    assert_eq!(found, BTreeSet::new());
}

#[test]
fn the_server_knows_no_engine_and_no_map() {
    let words = ["crate::provider", "crate::agent", "crate::datapath", "crate::metrics", "bollard", "aya"];

    assert_eq!(with_any(&sources("lb-user/src/server"), &words), BTreeSet::new());
}

#[test]
fn a_machine_is_judged_without_having_it() {
    let words = [
        "std::fs",
        "std::process",
        "std::env",
        "tokio",
        "async ",
        ".await",
        "Links",
        "loader::",
        "pins::",
        "sockets::",
    ];
    let sources: Vec<Source> = sources("lb-user/src/doctor/judge");

    let found = with_any(&sources, &words);

    // Whose tests name what an agent has left.
    let found: Vec<&String> = found.iter().filter(|path| !path.ends_with("/tests.rs")).collect();
    assert!(found.is_empty(), "{found:?} know a machine");
}

#[test]
fn the_clock_is_read_at_the_edges_only() {
    let homes = [
        "lb-user/src/agent.rs",
        "lb-user/src/agent/",
        "lb-user/src/datapath/clock.rs",
        "lb-user/src/metrics/",
        "lb-user/src/provider/docker/watch.rs",
        "lb-user/src/server/route.rs",
        "lb-user/src/status/read.rs",
    ];

    only_in("lb-user/src", &["Instant::now", "SystemTime::now", "clock_gettime"], &homes);
}

#[test]
fn unsafe_code_lives_in_named_files() {
    let homes = [
        "lb-ebpf/src/hooks/",
        "lb-ebpf/src/packet.rs",
        "lb-ebpf/src/tables.rs",
        "lb-ebpf/src/wire.rs",
        "lb-ebpf/src/abi.rs",
        "lb-ebpf/src/yardstick.rs",
        "lb-ebpf/src/bin/yardstick.rs",
    ];
    only_in("lb-ebpf/src", &["unsafe {", "unsafe impl", "unsafe fn"], &homes);
    only_in(
        "lb-user/src",
        &["unsafe {", "unsafe impl", "unsafe fn"],
        &["lb-user/src/datapath/sys.rs", "lb-user/src/datapath/netns.rs", "lb-user/src/provider/docker/lifeline.rs"],
    );
    for folder in ["api/src", "xtask/src"] {
        assert_eq!(with_any(&sources(folder), &["unsafe"]), BTreeSet::new());
    }
}

#[test]
fn only_the_packet_compares_with_its_end() {
    // A note of XDP is no part of the packet: it stands in front of it.
    let homes = ["lb-ebpf/src/hooks/window.rs", "lb-ebpf/src/hooks/xdp_ingress.rs", "lb-ebpf/src/bin/yardstick.rs"];
    only_in("lb-ebpf/src", &["data_end()"], &homes);
    only_in("lb-ebpf/src", &["> self.end()"], &["lb-ebpf/src/packet.rs", "lb-ebpf/src/hooks/window.rs"]);
}

#[test]
fn the_datapath_decides_without_the_hooks() {
    let pure: Vec<Source> = sources("lb-ebpf/src").into_iter().filter(|source| !is_program(&source.path)).collect();
    let found = with_any(&pure, &["aya_ebpf", "hooks::"]);

    // The object's entry names them, and the crate's documentation.
    assert_eq!(found, BTreeSet::new());
}

fn is_program(path: &str) -> bool {
    path.contains("/hooks/") || path.contains("/bin/")
}

#[test]
fn every_file_says_first_what_it_is() {
    for folder in ["api", "lb-ebpf", "lb-user", "tests", "xtask"] {
        for source in sources(folder) {
            let first = source.text.lines().next().unwrap_or_default();
            assert!(first.starts_with("//! ") && first.len() > 20, "{} begins with {first:?}", source.path);
        }
    }
}

#[test]
fn nothing_is_unfinished() {
    // Put together here, lest this file finds itself.
    let words = [["to", "do!("], ["unimpl", "emented!("], ["FIX", "ME"], ["XX", "X"], ["#[ig", "nore"]]
        .map(|parts| parts.concat());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    for folder in ["api", "lb-ebpf", "lb-user", "tests", "xtask"] {
        assert_eq!(with_any(&sources(folder), &words), BTreeSet::new());
    }
}
