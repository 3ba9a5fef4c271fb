//! Runs other programs: says which, and names them when they fail.

use std::{
    collections::VecDeque,
    env,
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, IsTerminal, pipe},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// Returns the folder of the workspace.
pub fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let manifest = PathBuf::from(manifest);
        manifest.parent().map_or_else(|| manifest.clone(), Path::to_owned)
    })
}

/// Returns cargo's target directory, wherever the environment or a configuration file puts it.
pub fn target_dir() -> Result<&'static Path> {
    static TARGET: OnceLock<PathBuf> = OnceLock::new();
    if let Some(known) = TARGET.get() {
        return Ok(known);
    }
    const FIELD: &str = "\"target_directory\":\"";
    let metadata = output(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let rest = metadata.split_once(FIELD).context("find the target directory in cargo's metadata")?.1;
    let directory = rest.split('"').next().unwrap_or(rest);
    Ok(TARGET.get_or_init(|| PathBuf::from(directory)))
}

/// Returns a cargo that works on the workspace, without what the outer `cargo run` says about xtask: with it in the
/// environment, build scripts would run again after every change between `cargo xtask build` and `cargo build`.
pub fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let of_xtask = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];
        if of_xtask.iter().any(|prefix| text.starts_with(prefix))
            || matches!(&*text, "CARGO_PRIMARY_PACKAGE" | "OUT_DIR")
        {
            cargo.env_remove(&name);
        }
    }
    cargo
}

/// Runs a command in the foreground, after a line that shows it.
pub fn run(command: &mut Command) -> Result<()> {
    eprintln!("$ {}", show(command));
    let status = command.status().with_context(|| format!("start {}", show(command)))?;
    if !status.success() {
        bail!("{}: {status}", show(command));
    }
    Ok(())
}

/// Returns what a command prints; an error carries what it complains of.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {}", show(command)))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}\n{}", show(command), output.status, complaint.trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Tells whether a command starts and succeeds, without a word.
pub fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// Runs a command that takes long: a spinner with its last line on a terminal, otherwise a line at the start, every half
/// minute and at the end. What it printed is shown only when it fails.
pub fn step(what: &str, expected: &str, command: &mut Command) -> Result<()> {
    const KEPT_LINES: usize = 60;
    let terminal = std::io::stderr().is_terminal();
    let began = Instant::now();
    let spinner = if terminal { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    spinner.set_style(ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg:.dim}")?);
    spinner.set_prefix(format!("{what} ({expected})"));
    spinner.enable_steady_tick(Duration::from_millis(120));
    if !terminal {
        eprintln!("{what} ({expected}): {}", show(command));
    }

    let (reader, writer) = pipe().context("make a pipe")?;
    let both = writer.try_clone().context("share a pipe")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(both)
        .spawn()
        .with_context(|| format!("start {}", show(command)))?;
    command.stdout(Stdio::null()).stderr(Stdio::null()); // closes our ends of the pipe, so that reading ends

    let mut last_lines = VecDeque::new();
    let mut said = Instant::now();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.with_context(|| format!("read what {} prints", show(command)))?;
        let line = String::from_utf8_lossy(&line).into_owned();
        spinner.set_message(line.trim().to_owned());
        if last_lines.len() == KEPT_LINES {
            last_lines.pop_front();
        }
        last_lines.push_back(line);
        if !terminal && said.elapsed() >= Duration::from_secs(30) {
            said = Instant::now();
            eprintln!("{what}: {} s so far", began.elapsed().as_secs());
        }
    }
    let status = child.wait().with_context(|| format!("wait for {}", show(command)))?;
    spinner.finish_and_clear();
    if !status.success() {
        let printed: Vec<String> = last_lines.into();
        bail!("{what}: {}: {status}; it printed\n{}", show(command), printed.join("\n"));
    }
    eprintln!("{what}: done in {} s", began.elapsed().as_secs());
    Ok(())
}

/// Shows a command as one would type it: the variables set for it, the program, the arguments.
pub fn show(command: &Command) -> String {
    let mut line = String::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            let _ = write!(line, "{}={} ", name.display(), quoted(&value.to_string_lossy()));
        }
    }
    let program = Path::new(command.get_program());
    let name = program.file_name().filter(|name| *name == "cargo").unwrap_or(program.as_os_str());
    line.push_str(&name.to_string_lossy());
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&quoted(&argument.to_string_lossy()));
    }
    line
}

fn quoted(word: &str) -> String {
    if word.contains('\n') {
        return "'…'".to_owned(); // a script; what it is for stands beside it
    }
    let plain = |character: char| character.is_ascii_alphanumeric() || "-_./:=@,+%".contains(character);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Finds a program as a shell would, and in the folders of root's programs, which are not in everybody's PATH.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(system).map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// Tells whether this process runs as root.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Tells whether root's rights can be had: being root, or a sudo that asks nothing or can ask at the terminal.
pub fn can_be_root() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        is_root()
            || find_program("sudo").is_some()
                && (succeeds(Command::new("sudo").args(["-n", "true"])) || std::io::stdin().is_terminal())
    })
}

/// Returns a command that runs `program` as root.
///
/// # Errors
/// When root's rights cannot be had.
pub fn as_root(program: &str) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    if !can_be_root() {
        bail!(
            "running {program} needs root, and sudo is not there or would ask for a password with no terminal to ask at"
        );
    }
    static ASKED: OnceLock<()> = OnceLock::new();
    ASKED.get_or_init(|| {
        if !succeeds(Command::new("sudo").args(["-n", "true"])) {
            eprintln!("sudo may ask for your password");
            let _ = Command::new("sudo").arg("-v").status(); // a refusal shows again with the command itself
        }
    });
    let mut sudo = Command::new("sudo");
    sudo.arg(program);
    Ok(sudo)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_typed() {
        let mut command = Command::new("echo");
        command.env("A", "b c").args(["plain", "two words", "it's", ""]);

        assert_eq!(show(&command), r"A='b c' echo plain 'two words' 'it'\''s' ''");
    }

    #[test]
    fn an_error_names_the_command_and_its_complaint() {
        let error = output(Command::new("sh").args(["-c", "echo broken >&2; exit 3"])).unwrap_err().to_string();

        assert!(error.contains("sh -c") && error.contains("exit status: 3") && error.contains("broken"), "{error}");
    }

    #[test]
    fn a_long_step_ends_and_reports_failure_with_its_output() {
        step("sleep", "at once", Command::new("sh").args(["-c", "echo one; exit 0"])).unwrap();

        let error = step("fail", "at once", Command::new("sh").args(["-c", "echo why; exit 1"])).unwrap_err();

        assert!(error.to_string().contains("why"), "{error}");
    }
}
