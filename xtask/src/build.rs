//! `cargo xtask build`: the kernel object, the agent around it, and the sample API as a static program.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{build_object, setup, sh};

/// Build the agent with the kernel object inside, and the sample API.
///
/// Does what `setup` does first. The agent `lb-user` is one file that needs nothing beside it. `lb-api` is linked statically, so that its
/// image needs no base; that is checked. The first build takes some minutes, most of it the crates and `core` for BPF; then seconds.
#[derive(Args)]
#[command(after_help = "Examples:
  cargo xtask build           target/release/lb-user and the static lb-api
  cargo xtask build --debug   the same in the dev profile
  LB_BPF_FEATURES=log cargo xtask build   with the kernel object's log, for debugging")]
pub struct Build {
    /// Build in the dev profile instead of release
    #[arg(long)]
    debug: bool,
}

impl Build {
    pub fn run(self) -> Result<ExitCode> {
        let profile = if self.debug { Profile::Dev } else { Profile::Release };
        println!("built {}", agent(profile)?.display());
        println!("built {}", api(profile)?.display());
        Ok(ExitCode::SUCCESS)
    }
}

/// How cargo optimizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    Dev,
    Release,
}

impl Profile {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Dev => &[],
            Self::Release => &["--release"],
        }
    }

    fn folder(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }
}

/// Builds the kernel object and the agent; returns the agent's path.
pub fn agent(profile: Profile) -> Result<PathBuf> {
    object(&setup::ensure_toolchain()?)?;
    let mut cargo = sh::cargo();
    cargo.env("LB_REQUIRE_OBJECT", "1").args(["build", "-p", "lb-user", "--bin", "lb-user"]).args(profile.arguments());
    sh::run(&mut cargo)?;
    Ok(sh::target_dir()?.join(profile.folder()).join("lb-user"))
}

/// Builds the kernel object where the agent's build script looks for it, so that the compiler's messages are seen as they come.
pub fn object(toolchain: &build_object::Toolchain) -> Result<PathBuf> {
    let bpf_dir = sh::target_dir()?.join("bpf");
    let object =
        build_object::build(toolchain, sh::root(), &bpf_dir, "lb", &env::var("LB_BPF_FEATURES").unwrap_or_default())?;
    // A build without the toolchain left this behind; when it is gone, cargo runs the agent's build script again.
    let _ = fs::remove_file(bpf_dir.join("toolchain-missing"));
    Ok(object)
}

/// Builds the kernel object of the benchmarks; returns its path.
pub fn yardstick(toolchain: &build_object::Toolchain) -> Result<PathBuf> {
    let bpf_dir = sh::target_dir()?.join("bpf");
    Ok(build_object::build(toolchain, sh::root(), &bpf_dir, "yardstick", "")?)
}

/// Builds the sample API as a static program; returns its path.
pub fn api(profile: Profile) -> Result<PathBuf> {
    let triple = host_triple()?;
    let mut cargo = sh::cargo();
    cargo
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .args(["build", "-p", "lb-api", "--target", &triple])
        .args(profile.arguments());
    sh::run(&mut cargo)?;
    let binary = sh::target_dir()?.join(triple).join(profile.folder()).join("lb-api");
    ensure_static(&binary)?;
    Ok(binary)
}

fn host_triple() -> Result<String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let verbose = sh::output(Command::new(rustc).arg("-vV"))?;
    let host = verbose.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("find the host's triple in rustc -vV")?.to_owned())
}

fn ensure_static(binary: &Path) -> Result<()> {
    let bytes = fs::read(binary).with_context(|| format!("read {}", binary.display()))?;
    match interpreter(&bytes) {
        Some(Interpreter::None) => Ok(()),
        Some(Interpreter::Needed) => {
            bail!(
                "{} is linked dynamically and would not start in an image without libraries; a build.rustflags or target.*.rustflags \
                 setting of cargo may be in the way",
                binary.display()
            )
        }
        None => bail!("{} is no 64-bit ELF file", binary.display()),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Interpreter {
    None,
    Needed,
}

/// Tells whether an ELF file asks for a dynamic loader; `None` when the bytes are no 64-bit ELF file of this machine's byte order.
///
/// # Source
/// System V ABI, chapters ELF Header and Program Header.
fn interpreter(elf: &[u8]) -> Option<Interpreter> {
    const PT_INTERP: u32 = 3;
    const CLASS_64: u8 = 2;
    if !elf.starts_with(b"\x7fELF") || *elf.get(4)? != CLASS_64 {
        return None;
    }
    let u16_at = |at: usize| Some(u16::from_ne_bytes(elf.get(at..at + 2)?.try_into().ok()?));
    let offset = u64::from_ne_bytes(elf.get(32..40)?.try_into().ok()?);
    let (size, count) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
    let offset = usize::try_from(offset).ok()?;
    for index in 0..count {
        let at = offset.checked_add(index * size)?;
        let kind = u32::from_ne_bytes(elf.get(at..at.checked_add(4)?)?.try_into().ok()?);
        if kind == PT_INTERP {
            return Some(Interpreter::Needed);
        }
    }
    Some(Interpreter::None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_recognised() {
        let this_test = fs::read(env::current_exe().unwrap()).unwrap();

        assert_eq!(interpreter(&this_test), Some(Interpreter::Needed));
        assert_eq!(interpreter(b"#!/bin/sh\n"), None);
        assert_eq!(interpreter(&this_test[..60]), None);
    }
}
