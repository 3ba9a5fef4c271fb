//! `cargo xtask image`: the sample API as a Docker image of one file.

use std::{
    fs,
    hash::{DefaultHasher, Hasher},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::Args;

use crate::{
    build::{self, Profile},
    docker::Docker,
    sh,
};

/// The name of the image.
pub const IMAGE: &str = "lb-api:latest";

/// The label that names the content an image was made of.
const LABEL: &str = "io.lb-api.content";

const DOCKERFILE: &str = "\
FROM scratch
COPY lb-api /lb-api
EXPOSE 5000
USER 65534:65534
STOPSIGNAL SIGTERM
ENTRYPOINT [\"/lb-api\"]
";

/// Build the sample API's image, lb-api:latest, from nothing but its static binary.
///
/// Needs Docker; starts its daemon if it is installed but down. Pulls nothing. Does nothing when the image is already of this binary.
#[derive(Args)]
#[command(after_help = "Example:
  cargo xtask image && docker run --rm -p 5000:5000 lb-api")]
pub struct Image {}

impl Image {
    pub fn run(self) -> Result<ExitCode> {
        ensure(&Docker::reach()?)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Builds the API and its image, unless the image is of this very binary already.
pub fn ensure(docker: &Docker) -> Result<()> {
    let binary = build::api(Profile::Release)?;
    let content = content(&binary)?;
    let format = format!("{{{{index .Config.Labels \"{LABEL}\"}}}}");
    let present = sh::output(docker.command()?.args(["image", "inspect", "--format", &format, IMAGE]));
    if present.is_ok_and(|label| label.trim() == content) {
        eprintln!("image {IMAGE} is of this binary already");
        return Ok(());
    }

    let context = sh::target_dir()?.join("lb-api-image");
    let write = || {
        fs::create_dir_all(&context)?;
        fs::copy(&binary, context.join("lb-api"))?;
        fs::write(context.join("Dockerfile"), DOCKERFILE)
    };
    write().with_context(|| format!("write the image's content to {}", context.display()))?;
    let label = format!("{LABEL}={content}");
    sh::run(docker.command()?.args(["build", "--quiet", "--label", &label, "--tag", IMAGE]).arg(&context))
}

/// Returns the name of the image's content. Only its equality to an earlier one matters: a false difference costs one build.
fn content(binary: &Path) -> Result<String> {
    let bytes = fs::read(binary).with_context(|| format!("read {}", binary.display()))?;
    let mut hasher = DefaultHasher::new();
    hasher.write(DOCKERFILE.as_bytes());
    hasher.write(&bytes);
    Ok(format!("{:016x}", hasher.finish()))
}
