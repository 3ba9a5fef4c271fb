//! Reaches the Docker engine, and starts it where it is installed but down.

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::sh;

const LOG: &str = "/var/log/dockerd-lb.log";
const PATIENCE: Duration = Duration::from_secs(60);

/// An engine that has answered.
pub struct Docker {
    through: Through,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Through {
    OurOwnRights,
    Root,
}

impl Docker {
    /// Reaches the engine; starts it if it is installed on this machine but does not answer.
    ///
    /// # Errors
    /// When Docker is not installed, or does not answer in a minute; says what to do.
    pub fn reach() -> Result<Self> {
        if sh::find_program("docker").is_none() {
            bail!(
                "Docker is not installed: `cargo xtask setup --tests` installs Debian's docker.io, or see https://docs.docker.com/engine/install"
            );
        }
        let complaint = match Self::answering() {
            Ok(docker) => return Ok(docker),
            Err(complaint) => complaint,
        };
        if let Ok(host) = env::var("DOCKER_HOST") {
            bail!("the Docker engine at DOCKER_HOST={host} does not answer: {complaint:#}");
        }
        if sh::find_program("dockerd").is_none() {
            bail!("the Docker engine does not answer, and there is no dockerd here to start: {complaint:#}");
        }

        start()?;
        let began = Instant::now();
        loop {
            match Self::answering() {
                Ok(docker) => return Ok(docker),
                Err(error) if began.elapsed() > PATIENCE => {
                    bail!(
                        "dockerd was started and does not answer after {} s: {error:#}\n{}",
                        PATIENCE.as_secs(),
                        log_end()
                    );
                }
                Err(_) => thread::sleep(Duration::from_millis(300)),
            }
        }
    }

    /// Reaches an engine that runs, and starts nothing.
    pub fn answering() -> Result<Self> {
        let attempt = sh::output(Command::new("docker").args(["info", "--format", "{{.ServerVersion}}"]));
        let denied = attempt.as_ref().is_err_and(|error| error.to_string().contains("permission denied"));
        if denied && !sh::is_root() {
            let docker = Self { through: Through::Root };
            sh::output(docker.command()?.args(["info", "--format", "{{.ServerVersion}}"]))?;
            return Ok(docker);
        }
        let version = attempt.context("ask the Docker engine for its version")?;
        // An old client exits with success although there is no server.
        if version.trim().is_empty() {
            bail!("ask the Docker engine for its version: no answer");
        }
        Ok(Self { through: Through::OurOwnRights })
    }

    /// Returns the engine's version.
    pub fn version(&self) -> Result<String> {
        let version = sh::output(self.command()?.args(["version", "--format", "{{.Server.Version}}"]))?;
        Ok(version.trim().to_owned())
    }

    /// Returns a `docker` command with the rights that the engine asks for.
    pub fn command(&self) -> Result<Command> {
        match self.through {
            Through::OurOwnRights => Ok(Command::new("docker")),
            Through::Root => sh::as_root("docker"),
        }
    }
}

fn start() -> Result<()> {
    if Path::new("/run/systemd/system").is_dir() {
        eprintln!("Docker is down: starting its service");
        return sh::run(sh::as_root("systemctl")?.args(["start", "docker"]));
    }
    eprintln!("Docker is down: starting dockerd, its log goes to {LOG}");
    let script = format!("exec setsid dockerd >>{LOG} 2>&1");
    let mut dockerd = sh::as_root("sh")?;
    dockerd.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // The daemon outlives this process, so nobody here waits for it.
    dockerd.spawn().with_context(|| format!("start {}", sh::show(&dockerd)))?;
    Ok(())
}

fn log_end() -> String {
    let log = fs::read_to_string(LOG).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let end = &lines[lines.len().saturating_sub(15)..];
    if end.is_empty() { String::new() } else { format!("the end of {LOG}:\n{}", end.join("\n")) }
}
