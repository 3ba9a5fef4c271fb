//! Finds a compiler and a linker for BPF and builds the kernel object with them.
//!
//! Included by path in `lb-user/build.rs` and in `xtask`, so it uses the standard library only. It is a driver of our own because the object
//! must build from Debian's packages alone, where no rustup is there to switch toolchains, and because it needs cpu v3.

use std::{
    env,
    ffi::OsString,
    fmt, fs,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Names the toolchain to use: a rustup toolchain, a sysroot, or the `bin` directory of one.
pub const TOOLCHAIN_VARIABLE: &str = "LB_BPF_TOOLCHAIN";

/// The target of the object: BPF has the byte order of the machine that runs it.
const TARGET: &str = if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };

/// The oldest compiler that accepts the workspace.
const OLDEST: &str = env!("CARGO_PKG_RUST_VERSION");

/// A compiler with the source of its own standard library, and a linker that starts.
#[derive(Debug, Clone)]
pub struct Toolchain {
    pub cargo: PathBuf,
    pub rustc: PathBuf,
    pub linker: PathBuf,
    /// What `rustc --version` says.
    pub version: String,
}

/// What lacks for building the object, with the reason where there is one to tell.
#[derive(Debug, Clone)]
pub struct Missing {
    pub compiler: Option<String>,
    pub linker: Option<String>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.compiler, &self.linker) {
            (Some(compiler), Some(linker)) => write!(f, "{compiler}, and {linker}"),
            (Some(only), None) | (None, Some(only)) => f.write_str(only),
            (None, None) => f.write_str("nothing is missing"),
        }
    }
}

impl std::error::Error for Missing {}

/// Finds a compiler and a linker among what is installed; runs no rustup.
///
/// # Errors
/// Says which of the two is missing.
pub fn find() -> Result<Toolchain, Missing> {
    let linker = find_linker();
    let llvm = linker.as_ref().ok().and_then(|linker| llvm_of_linker(linker));
    match (find_compiler(llvm), linker) {
        (Ok(compiler), Ok(linker)) => {
            Ok(Toolchain { cargo: compiler.cargo, rustc: compiler.rustc, linker, version: compiler.version })
        }
        (compiler, linker) => Err(Missing { compiler: compiler.err(), linker: linker.err() }),
    }
}

/// Builds a kernel object, by the name of its binary, and returns where it is. The compiler's messages go to standard error.
///
/// # Errors
/// When cargo does not start or the object does not compile.
pub fn build(
    toolchain: &Toolchain,
    workspace_root: &Path,
    target_dir: &Path,
    bin: &str,
    features: &str,
) -> Result<PathBuf, io::Error> {
    let mut linker = OsString::from("-Clinker=");
    linker.push(&toolchain.linker);
    let mut flags = OsString::from(
        ["-Cdebuginfo=2", "-Clink-arg=--btf", "-Ctarget-cpu=v3", "-Cpanic=abort"].join("\x1f"), // as cargo separates them
    );
    flags.push("\x1f");
    flags.push(linker);

    let mut cargo = Command::new(&toolchain.cargo);
    leave_outer_cargo(&mut cargo);
    cargo
        .current_dir(workspace_root)
        .args(["build", "--release", "--package", "lb-ebpf", "--bin", bin, "-Z", "build-std=core"])
        .args(["--target", TARGET, "--features", features, "--target-dir"])
        .arg(target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env("RUSTC", &toolchain.rustc)
        // The linker makes BTF out of the debug information and optimizes the whole program by itself.
        .env("CARGO_PROFILE_RELEASE_STRIP", "false")
        .env("CARGO_PROFILE_RELEASE_LTO", "false")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    if !toolchain.version.contains("nightly") {
        cargo.env("RUSTC_BOOTSTRAP", "1");
    }

    let status = cargo.status().map_err(|error| {
        io::Error::new(error.kind(), format!("build the kernel object: start {}: {error}", toolchain.cargo.display()))
    })?;
    if !status.success() {
        return Err(io::Error::other(format!(
            "build the kernel object with {} and {}: {status}; the compiler's messages are above",
            toolchain.version,
            toolchain.linker.display()
        )));
    }
    Ok(target_dir.join(TARGET).join("release").join(bin))
}

/// Takes away what an outer cargo, rustup or clippy has put into the environment for its own compiler.
fn leave_outer_cargo(command: &mut Command) {
    const KEPT: [&str; 5] = ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_SOURCE_"];
    const FOREIGN: [&str; 5] = ["CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN"];
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let foreign = FOREIGN.iter().any(|prefix| text.starts_with(prefix));
        if foreign && !KEPT.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    // Empty means none; it also overrides a wrapper from the user's configuration file.
    command.env("RUSTC_WRAPPER", "").env("RUSTC_WORKSPACE_WRAPPER", "").env_remove("LD_LIBRARY_PATH");
}

/// A compiler with the source of its own standard library.
#[derive(Debug, Clone)]
pub struct Compiler {
    pub cargo: PathBuf,
    pub rustc: PathBuf,
    pub version: String,
    /// The major version of the LLVM inside.
    pub llvm: Option<u32>,
}

/// Finds a compiler whose bitcode a linker with the given LLVM can read, or any when that is not known.
///
/// # Errors
/// Says what was looked for.
pub fn find_compiler(linker_llvm: Option<u32>) -> Result<Compiler, String> {
    if let Some(wanted) = env::var_os(TOOLCHAIN_VARIABLE).filter(|wanted| !wanted.is_empty()) {
        let name = Path::new(&wanted);
        let places = if name.is_absolute() {
            vec![name.to_owned(), name.join("bin")]
        } else {
            rustup_toolchains().into_iter().filter(|bin| belongs_to(bin, &name.to_string_lossy())).collect()
        };
        return places.iter().find_map(|bin| compiler_in(bin, None)).ok_or_else(|| {
            format!(
                "{TOOLCHAIN_VARIABLE} is {}, which is no toolchain of Rust {OLDEST} or newer with its standard library's source",
                name.display()
            )
        });
    }

    let mut places = rustup_toolchains();
    places.push(PathBuf::from("/usr/bin"));
    places.push(PathBuf::from("/usr/local/bin"));
    places.iter().find_map(|bin| compiler_in(bin, linker_llvm)).ok_or_else(|| match linker_llvm {
        Some(llvm) => format!(
            "no Rust compiler ({OLDEST} or newer, LLVM {llvm} at most, as the linker's) with its standard library's source"
        ),
        None => format!("no Rust compiler ({OLDEST} or newer) with its standard library's source"),
    })
}

/// Returns the `bin` directories of rustup's toolchains, nightly ones first.
fn rustup_toolchains() -> Vec<PathBuf> {
    let home = env::var_os("RUSTUP_HOME").map(PathBuf::from).or_else(|| Some(home_dir()?.join(".rustup")));
    let entries = home.and_then(|home| fs::read_dir(home.join("toolchains")).ok());
    let mut names: Vec<PathBuf> = entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    names.sort_by_key(|path| {
        let nightly = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nightly"));
        (!nightly, path.clone())
    });
    names.into_iter().map(|path| path.join("bin")).collect()
}

/// Tells whether a toolchain's `bin` directory is that of `name`, with or without the host's triple.
fn belongs_to(bin: &Path, name: &str) -> bool {
    let full = bin.parent().and_then(Path::file_name).map(|full| full.to_string_lossy().into_owned());
    full.is_some_and(|full| full == name || full.strip_prefix(name).is_some_and(|rest| rest.starts_with('-')))
}

fn compiler_in(bin: &Path, linker_llvm: Option<u32>) -> Option<Compiler> {
    let (cargo, rustc) = (bin.join("cargo"), bin.join("rustc"));
    if !cargo.is_file() || !rustc.is_file() {
        return None;
    }
    let sysroot = output_of(&rustc, &["--print", "sysroot"])?;
    if !Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file() {
        return None;
    }
    let verbose = output_of(&rustc, &["--version", "--verbose"])?;
    let field = |name: &str| verbose.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    if major_minor(field("release:")?)? < major_minor(OLDEST)? {
        return None;
    }
    let version = verbose.lines().next()?.to_owned();
    let llvm = field("LLVM version:").and_then(major_minor).map(|(major, _)| major);
    let compiler = Compiler { cargo, rustc, version, llvm };
    match (linker_llvm, compiler.llvm) {
        (Some(linker), Some(writer)) if writer > linker => None, // bitcode is read by an LLVM as new as its writer, or newer
        _ => Some(compiler),
    }
}

fn find_linker() -> Result<PathBuf, String> {
    const NAME: &str = "bpf-linker";
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(home_dir()?.join(".cargo")));
    let path = env::var_os("PATH").unwrap_or_default();
    let mut broken = None;
    for bin in env::split_paths(&path).chain(cargo_home.map(|home| home.join("bin"))) {
        let linker = bin.join(NAME);
        if !linker.is_file() {
            continue;
        }
        if output_of(&linker, &["--version"]).is_some() {
            return Ok(linker);
        }
        broken = Some(linker);
    }
    Err(match broken {
        Some(linker) => format!("{} does not start (try: {} --version)", linker.display(), linker.display()),
        None => format!("no {NAME} in PATH or in cargo's bin directory"),
    })
}

/// Returns the LLVM version a linker loads, if it loads a shared one: the name of the library is in the binary.
fn llvm_of_linker(linker: &Path) -> Option<u32> {
    const NAME: &[u8] = b"libLLVM";
    const SEARCHED: u64 = 4 << 20; // the names of libraries are at the start; with LLVM linked in, the file is huge
    let mut binary = Vec::new();
    fs::File::open(linker).ok()?.take(SEARCHED).read_to_end(&mut binary).ok()?;
    binary.windows(NAME.len()).enumerate().filter(|(_, window)| *window == NAME).find_map(|(at, _)| {
        let rest = &binary[at + NAME.len()..];
        let rest = rest.strip_prefix(b".so.").or_else(|| rest.strip_prefix(b"-"))?;
        let digits: String =
            rest.iter().take_while(|byte| byte.is_ascii_digit()).map(|&byte| char::from(byte)).collect();
        digits.parse().ok()
    })
}

fn output_of(program: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    leave_outer_cargo(&mut command);
    let output = command.args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn home_dir() -> Option<PathBuf> {
    env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from)
}
