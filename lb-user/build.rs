//! Builds the kernel object and leaves it in `OUT_DIR/lb.o`, where the agent embeds it.
//!
//! Without a BPF toolchain the object is an empty file and the build goes on with a warning, so that `cargo build --workspace` works
//! everywhere; `LB_REQUIRE_OBJECT=1` makes that an error. `LB_BPF_FEATURES=log` builds the object with its log.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

#[path = "../lb-ebpf/build_object.rs"]
mod build_object;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let out_dir = variable("OUT_DIR")?;
    let root = variable("CARGO_MANIFEST_DIR")?.join("..");
    let object = out_dir.join("lb.o");
    let bpf_dir = target_dir(&out_dir).join("bpf");

    for path in ["lb-ebpf/src", "lb-ebpf/Cargo.toml", "lb-ebpf/build_object.rs", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", root.join(path).display());
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LB_BPF_FEATURES");
    println!("cargo:rerun-if-env-changed={}", build_object::TOOLCHAIN_VARIABLE);
    println!("cargo:rustc-env=LB_COMMIT={}", commit(&root));

    match build_object::find() {
        Ok(toolchain) => {
            let features = env::var("LB_BPF_FEATURES").unwrap_or_default();
            let built =
                build_object::build(&toolchain, &root, &bpf_dir, "lb", &features).map_err(|error| error.to_string())?;
            fs::copy(&built, &object).map_err(|error| format!("copy {}: {error}", built.display()))?;
        }
        Err(missing) => without_toolchain(&missing, &object, &bpf_dir)?,
    }
    Ok(())
}

fn without_toolchain(missing: &build_object::Missing, object: &Path, bpf_dir: &Path) -> Result<(), String> {
    println!("cargo:rerun-if-env-changed=LB_REQUIRE_OBJECT");
    if env::var("LB_REQUIRE_OBJECT").is_ok_and(|value| value == "1") {
        return Err(format!("the kernel object cannot be built: {missing}; `cargo xtask setup` mends it"));
    }

    // `cargo xtask setup` removes this file; a watched file that is not there makes cargo run this script again.
    let stamp = bpf_dir.join("toolchain-missing");
    let written = fs::create_dir_all(bpf_dir).and_then(|()| fs::write(&stamp, format!("{missing}\n")));
    written.map_err(|error| format!("write {}: {error}", stamp.display()))?;
    println!("cargo:rerun-if-changed={}", stamp.display());

    println!("cargo:warning=the kernel object was not built: {missing}; `cargo xtask setup` mends it");
    fs::write(object, []).map_err(|error| format!("write {}: {error}", object.display()))
}

/// Returns cargo's target directory: the one above `OUT_DIR` that cargo has tagged. One build of `core` serves all profiles there.
fn target_dir(out_dir: &Path) -> PathBuf {
    let tagged = out_dir.ancestors().find(|directory| directory.join("CACHEDIR.TAG").is_file());
    tagged.unwrap_or(out_dir).to_owned()
}

/// Returns the commit the agent is built from; only in release builds, so that a commit does not rebuild what is under development.
fn commit(root: &Path) -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    if env::var("PROFILE").is_ok_and(|profile| profile == "release")
        && let Some(hash) = git(&["rev-parse", "--short", "HEAD"])
    {
        let log = git(&["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"]).map(PathBuf::from);
        if let Some(log) = log.filter(|log| log.is_file()) {
            println!("cargo:rerun-if-changed={}", log.display());
        }
        return hash;
    }
    "unknown".to_owned()
}

fn variable(name: &str) -> Result<PathBuf, String> {
    env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("{name} is not set; cargo sets it"))
}
