//! `cargo xtask run`: builds everything and becomes the agent.

use std::{
    env,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};
use clap::Args;

use crate::{
    build::{self, Profile},
    docker::Docker,
    image, sh,
};

/// Build everything and run the balancer, with a demo that works by itself.
///
/// Installs what the build lacks (as `setup` does), builds the agent in release and the sample API's image, starts Docker if it is installed but
/// down, then becomes `lb-user run`, through sudo if you are not root. Ctrl-C ends it and removes its containers, hooks and maps.
///
/// What you give after `--` goes to `lb-user run`. Each of these is added unless you give that option yourself:
///
///   --image lb-api:latest --publish 80:5000 --min 2 --max 10 --metric host-cpu --health http:/healthz
///
/// So any load of the host starts containers, as it is to be shown; --metric arrivals follows the demand alone.
///
/// With --backend (static backends, no Docker) only `--publish 80` is added; with --config nothing is, and no image is made.
#[derive(Args)]
#[command(after_help = "Examples:
  cargo xtask run                              then: curl http://localhost/
  cargo xtask run -- --publish 8080:5000 --max 4
  cargo xtask run -- --backend 10.0.0.2:80 --backend 10.0.0.3:80 --publish 80
  cargo xtask run -- --help                    all options of lb-user run")]
pub struct Run {
    /// Arguments of lb-user run
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<String>,
}

impl Run {
    pub fn run(self) -> Result<ExitCode> {
        let arguments = with_defaults(self.arguments);
        let asks_only = has(&arguments, "--help") || arguments.iter().any(|argument| argument == "-h");
        let uses_docker = !has(&arguments, "--backend") && !has(&arguments, "--config") && !asks_only;
        let docker = uses_docker.then(Docker::reach).transpose()?; // before the long build, so that its lack shows at once
        let agent = build::agent(Profile::Release)?;
        if let Some(docker) = docker.filter(|_| uses_image(&arguments)) {
            image::ensure(&docker)?;
        }

        let mut command = if asks_only { Command::new(&agent) } else { as_root(&agent)? };
        command.arg("run").args(&arguments);
        eprintln!("$ {}", sh::show(&command));
        // Becoming the agent, signals reach it and its exit code is ours.
        Err(command.exec()).with_context(|| format!("start {}", sh::show(&command)))
    }
}

fn as_root(agent: &Path) -> Result<Command> {
    if sh::is_root() {
        return Ok(Command::new(agent));
    }
    eprintln!("lb-user loads programs into the kernel, which needs root: going on through sudo");
    let mut command = sh::as_root("env")?;
    for name in ["DOCKER_HOST", "LB_LOG", "RUST_BACKTRACE", "NO_COLOR"] {
        if let Ok(value) = env::var(name) {
            command.arg(format!("{name}={value}"));
        }
    }
    command.arg(agent);
    Ok(command)
}

fn with_defaults(mut arguments: Vec<String>) -> Vec<String> {
    const DOCKER: [(&str, &str); 6] = [
        ("--image", image::IMAGE),
        ("--publish", "80:5000"),
        ("--min", "2"),
        ("--max", "10"),
        ("--metric", "host-cpu"),
        ("--health", "http:/healthz"),
    ];
    const STATIC: [(&str, &str); 1] = [("--publish", "80")];
    let defaults = match (has(&arguments, "--config"), has(&arguments, "--backend")) {
        (true, _) => return arguments,
        (false, true) => &STATIC[..],
        (false, false) => &DOCKER[..],
    };
    for (flag, value) in defaults {
        if !has(&arguments, flag) {
            arguments.extend([(*flag).to_owned(), (*value).to_owned()]);
        }
    }
    arguments
}

fn has(arguments: &[String], flag: &str) -> bool {
    arguments
        .iter()
        .any(|argument| argument.strip_prefix(flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('=')))
}

fn uses_image(arguments: &[String]) -> bool {
    arguments.iter().any(|argument| {
        let value = argument.strip_prefix("--image=").unwrap_or(argument);
        value == image::IMAGE || Some(value) == image::IMAGE.strip_suffix(":latest")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn nothing_given_is_the_demo() {
        let expected = "--image lb-api:latest --publish 80:5000 --min 2 --max 10 --metric host-cpu \
                        --health http:/healthz";

        assert_eq!(with_defaults(Vec::new()), words(expected));
    }

    #[test]
    fn a_given_option_is_not_added() {
        let arguments = with_defaults(words("--publish=8080:5000 --max 4"));

        assert_eq!(
            arguments,
            words("--publish=8080:5000 --max 4 --image lb-api:latest --min 2 --metric host-cpu --health http:/healthz")
        );
        assert!(uses_image(&arguments));
    }

    #[test]
    fn static_backends_get_no_docker_options() {
        let arguments = with_defaults(words("--backend 10.0.0.2:80"));

        assert_eq!(arguments, words("--backend 10.0.0.2:80 --publish 80"));
        assert!(!uses_image(&arguments));
    }

    #[test]
    fn a_file_says_everything() {
        assert_eq!(with_defaults(words("--config services.toml")), words("--config services.toml"));
    }

    #[test]
    fn an_option_with_a_longer_name_is_another_one() {
        assert!(!has(&words("--minimum 3 --min-ready 2"), "--min"));
    }

    #[test]
    fn a_foreign_image_is_not_built() {
        assert!(!uses_image(&with_defaults(words("--image nginx:latest"))));
        assert!(uses_image(&with_defaults(words("--image=lb-api"))));
    }
}
