//! `xpool image`.

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::nixos_image::{self, Recipe};
use super::{Context, parse_system};
use crate::image::manifest::{ImageKind, Manifest};
use crate::image::script::Told;
use crate::image::store::{ImageError, ImageStore};
use crate::image::{Image, build};
use crate::nix::System;
use crate::output::progress::Progress;
use crate::output::table::{render, size};
use crate::package;
use crate::vm::template::shelf::{self, Listed as Template};

#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// Make the image of a system; does nothing where a good one is present
    Build(BuildArgs),
    /// List the images in use
    List(ListArgs),
    /// Read every byte of the images in use and compare with their manifests
    Verify(VerifyArgs),
    /// Remove images that no system uses any more, and templates other than the one used last of each image in use
    Gc,
}

#[derive(Debug, Args)]
pub(super) struct BuildArgs {
    /// riscv64 or aarch64
    #[arg(value_parser = parse_system)]
    system: System,
    /// Make a new one even where a good one is present
    #[arg(long)]
    force: bool,
    /// What guest it has [default: that of the image that is present, or portable]
    #[arg(long, value_enum)]
    kind: Option<KindArg>,
    /// xpool's flake, which `--kind nixos` builds
    #[arg(long, value_name = "FLAKE", env = "XPOOL_FLAKE", hide_env = true)]
    flake: Option<String>,
    /// With `--kind nixos`: cross-compile, instead of building on xpool's own machines
    #[arg(long, requires = "kind")]
    cross: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum KindArg {
    /// Made of Debian packages, in half a minute
    Portable,
    /// NixOS, built by Nix from xpool's flake; where a nix-daemon builds, its user must be a trusted user of Nix
    Nixos,
}

impl From<KindArg> for ImageKind {
    fn from(given: KindArg) -> Self {
        match given {
            KindArg::Portable => Self::Portable,
            KindArg::Nixos => Self::Nixos,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// riscv64 or aarch64 [default: every image there is]
    #[arg(value_parser = parse_system)]
    system: Option<System>,
}

pub(super) async fn run(context: &Context, command: &ImageCommand) -> Result<()> {
    match command {
        ImageCommand::Build(args) => build(context, args).await,
        ImageCommand::List(args) => list(context, args),
        ImageCommand::Verify(args) => verify(context, args).await,
        ImageCommand::Gc => gc(context),
    }
}

fn store(context: &Context) -> ImageStore {
    ImageStore::new(context.paths.images())
}

async fn build(context: &Context, args: &BuildArgs) -> Result<()> {
    let mut wanted = args.kind.map_or(ImageKind::Portable, ImageKind::from);
    match check(context, args.system).await {
        Ok(image) => {
            let kind = image.manifest.kind;
            wanted = args.kind.map_or(kind, ImageKind::from);
            if kind == wanted && is_current(&image) && !args.force {
                let dir = image.dir.display();
                let what = format!("image {}, verified: `{dir}`", args.system);
                context.printer.done("Present", &what);
                return Ok(());
            }
            if kind == wanted && !is_current(&image) {
                context
                    .printer
                    .say("the image was made by another version of xpool; making a new one");
            }
        }
        Err(ImageError::Missing(_)) => {}
        Err(error) => context.printer.warn(&format!("{error}; making a new one")),
    }
    let cancel = cancel_on_signals()?;
    match wanted {
        ImageKind::Portable => make(context, args.system, &cancel).await.map(drop),
        ImageKind::Nixos => {
            let recipe = recipe(args)?;
            nixos_image::make(context, args.system, &recipe, &cancel).await
        }
    }
}

fn recipe(args: &BuildArgs) -> Result<Recipe> {
    let of_package = package::THIS.flake.map(str::to_owned);
    let flake = args.flake.clone().or(of_package);
    let missing = "name xpool's flake with `--flake`: a clone of xpool, for one";
    Ok(Recipe {
        flake: flake.context(missing)?,
        cross: args.cross,
    })
}

/// Whether a build would make the same image; one of another kind is somebody's own and stays.
fn is_current(image: &Image) -> bool {
    image.manifest.kind != ImageKind::Portable || image.manifest.recipe == build::recipe()
}

/// The image in use for a system, as far as its manifest and the files' sizes tell.
pub(super) fn current(context: &Context, system: System) -> Result<Image, ImageError> {
    store(context).current(system)
}

/// The image in use for a system, every byte of it verified.
pub(super) async fn check(context: &Context, system: System) -> Result<Image, ImageError> {
    let store = store(context);
    let image = store.current(system)?;
    let (checked, at) = (image.clone(), image.dir.clone());
    let verified = tokio::task::spawn_blocking(move || store.verify(&checked)).await;
    verified.map_err(|panic| ImageError::Io {
        path: at,
        source: std::io::Error::other(panic),
    })??;
    Ok(image)
}

/// Makes an image, with progress, and with all that the tools say if more is to be said; cancelling ends it with nothing left behind.
pub(super) async fn make(
    context: &Context,
    system: System,
    cancel: &CancellationToken,
) -> Result<Image> {
    let progress = Progress::new(context.printer, "Building", &format!("image {system}"));
    let log = context.paths.image_build_log(system);
    let listener = |told: Told<'_>| match told {
        Told::Step(step) => progress.step(step),
        Told::Line(line) if context.verbose > 0 => progress.line(line),
        Told::Line(_) => {}
    };
    let image = build::build(&store(context), system, &log, &listener, cancel)
        .await
        .with_context(|| format!("building the image for {system}"))?;
    progress.finish(
        "Built",
        &format!("image {system} ({})", size(total(&image.manifest))),
    );
    Ok(image)
}

/// A token that the first signal to end cancels.
pub(super) fn cancel_on_signals() -> Result<CancellationToken> {
    let shutdown = crate::shutdown::Shutdown::default();
    shutdown.on_signals().context("listening to signals")?;
    Ok(shutdown.drain)
}

fn total(manifest: &Manifest) -> u64 {
    manifest.files().iter().map(|file| file.size).sum()
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Listed {
    system: System,
    dir: std::path::PathBuf,
    manifest: Manifest,
    /// How many templates were made of it.
    templates: usize,
    /// Bytes that these take.
    template_bytes: u64,
}

impl Listed {
    fn new(image: Image, templates: &[Template]) -> Self {
        let of_image = || templates.iter().filter(|template| template.is_of(&image));
        let (n, bytes) = (of_image().count(), of_image().map(|one| one.bytes).sum());
        Self {
            system: image.manifest.system,
            templates: n,
            template_bytes: bytes,
            dir: image.dir,
            manifest: image.manifest,
        }
    }
}

fn list(context: &Context, args: &ListArgs) -> Result<()> {
    let templates = shelf::list(&context.paths.templates())?;
    let mut images = Vec::new();
    for system in System::ALL {
        match store(context).current(system) {
            Ok(image) => images.push(Listed::new(image, &templates)),
            Err(ImageError::Missing(_)) => {}
            Err(error) => context.printer.warn(&error.to_string()),
        }
    }
    if args.json {
        return context.printer.json(&images);
    }
    let row = |image: &Listed| {
        let manifest = &image.manifest;
        [
            image.system.to_string(),
            serde_json::to_value(manifest.kind)
                .ok()
                .and_then(|kind| Some(kind.as_str()?.to_owned()))
                .unwrap_or_default(),
            manifest.nix_version.clone(),
            manifest.kernel_version.clone(),
            size(total(manifest)),
            match image.templates {
                0 => "-".to_owned(),
                n => format!("{n} ({})", size(image.template_bytes)),
            },
            image.dir.display().to_string(),
        ]
    };
    let rows: Vec<[String; 7]> = images.iter().map(row).collect();
    context.printer.data(&render(
        [
            "SYSTEM",
            "KIND",
            "NIX",
            "KERNEL",
            "SIZE",
            "TEMPLATES",
            "FOLDER",
        ],
        &rows,
    ));
    Ok(())
}

fn gc(context: &Context) -> Result<()> {
    let mut bytes = 0;
    for template in superfluous(context)? {
        template.remove()?;
        bytes += template.bytes;
        let what = format!("template {} ({})", template.name, size(template.bytes));
        context.printer.done("Removed", &what);
    }
    for (dir, in_it) in store(context).unused()? {
        std::fs::remove_dir_all(&dir).with_context(|| format!("removing `{}`", dir.display()))?;
        bytes += in_it;
        let what = format!("image `{}` ({})", dir.display(), size(in_it));
        context.printer.done("Removed", &what);
    }
    let freed = match bytes {
        0 => "nothing to remove".to_owned(),
        bytes => format!("{} freed", size(bytes)),
    };
    context.printer.done("Collected", &freed);
    Ok(())
}

/// Templates that are not the one used last of an image in use.
fn superfluous(context: &Context) -> Result<Vec<Template>> {
    let mut templates = shelf::list(&context.paths.templates())?;
    for system in System::ALL {
        let Ok(image) = store(context).current(system) else {
            continue;
        };
        if let Some(last) = templates.iter().position(|one| one.is_of(&image)) {
            templates.remove(last);
        }
    }
    Ok(templates)
}

async fn verify(context: &Context, args: &VerifyArgs) -> Result<()> {
    let systems = args
        .system
        .map_or_else(|| System::ALL.to_vec(), |system| vec![system]);
    let mut verified = 0;
    for system in systems {
        match check(context, system).await {
            Ok(image) => {
                verified += 1;
                context.printer.done(
                    "Verified",
                    &format!("image {system}: `{}`", image.dir.display()),
                );
            }
            Err(ImageError::Missing(_)) if args.system.is_none() => {}
            Err(error) => return Err(error.into()),
        }
    }
    if verified == 0 {
        bail!("there are no images: `xpool image build riscv64` makes one");
    }
    Ok(())
}
