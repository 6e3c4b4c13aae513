// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The kernel lab: builds a kernel with our handlers, boots it in QEMU, tests live updates over a real kexec.
//!
//! On the host, from nothing to a result:
//!
//! ```text
//! host       what the machine lacks, said before anything is downloaded
//! apt        Debian packages through the machine's own apt set-up
//! toolchain  a Debian build root with the compilers the kernel wants
//! source     the kernel source
//! config     the configuration, checked line by line
//! kernel     the kernel image, with kmod/ put in by `crate::integrate`
//! selftests  the kernel's own live-update tests
//! initramfs  the guest's only file system
//! qemu       one bounded run of a guest;  accel  which accelerator really works
//! tests      the table of tests;          runner  runs them and says how they ended
//! bench      what to measure, and the figures
//! cache      where all of it is kept, what is up to date, how long it took
//! ```
//!
//! In the guest, `guest` is the init process: it runs one stage of one test and jumps to the next. `checks`, `cases`,
//! `devices`, `ports` and `forged` are our own tests, `vfio` their client of devices and `pci` what can become of one,
//! `commands` those of `luo` as one uses it; `kmemleak` asks a kernel that checks itself what it lost.

mod accel;
mod apt;
pub mod bench;
mod cache;
mod cases;
mod checks;
mod commands;
mod config;
mod devices;
mod forged;
mod guest;
mod host;
mod initramfs;
pub mod integrate;
mod job;
mod kernel;
mod kmemleak;
mod pci;
mod ports;
mod qemu;
mod quiet;
mod reserved;
mod runner;
mod selftests;
mod source;
mod sys;
mod tests;
mod toolchain;
mod vfio;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{bail, Context, Result};
use clap::{Args, Subcommand};

use cache::Cache;
use kernel::Profile;
use qemu::Machine;

use luo_bench::{counters, memory};

/// What `luo lab` can do.
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Fetch the toolchain and the kernel source, configure and build; a second build takes seconds
    Build(BuildOptions),
    /// Boot a guest and run one command in it, or, without a command, a shell
    Boot {
        /// How to boot it
        #[command(flatten)]
        guest: GuestOptions,
        /// What the guest has on its board
        #[arg(long, value_enum, default_value_t)]
        machine: Machine,
        /// The command to run in the guest; its exit code becomes ours
        #[arg(trailing_var_arg = true)]
        command: Vec<String>,
    },
    /// Boot a guest with a shell on the terminal; leave it with `exit`
    Shell {
        /// How to boot it
        #[command(flatten)]
        guest: GuestOptions,
        /// What the guest has on its board
        #[arg(long, value_enum, default_value_t)]
        machine: Machine,
    },
    /// Run the kernel tests, each over a real kexec
    Test {
        /// How to boot it
        #[command(flatten)]
        guest: GuestOptions,
        /// List the tests and run none
        #[arg(long)]
        list: bool,
        /// Run only the tests whose names contain one of these
        names: Vec<String>,
    },
    /// Show what is cached, its size, and the paths of kernel image, kernel tree and initramfs
    Status {
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove everything the lab has cached
    Clean,
    /// Be the init process of a guest
    #[command(hide = true)]
    GuestInit,
}

/// What `luo lab build` may be told.
#[derive(Args, Clone, Debug, Default)]
pub struct BuildOptions {
    /// Build the kernel that checks itself (KASAN, lockdep, kmemleak …): slower, in a tree of its own
    #[arg(long)]
    debug_kernel: bool,
    /// Parallel jobs of the kernel build; by default one a processor
    #[arg(long, short)]
    jobs: Option<usize>,
    /// Debian mirror to use instead of the one in the machine's apt set-up
    #[arg(long, value_name = "URI")]
    mirror: Option<String>,
    /// The checkout whose handlers go into the kernel; by default the one around the current directory
    #[arg(long, value_name = "DIR")]
    checkout: Option<PathBuf>,
    /// A statically linked luo to put into the guest, instead of building one from the checkout
    #[arg(long, value_name = "FILE")]
    guest_binary: Option<PathBuf>,
}

/// What a command that boots a guest may be told.
#[derive(Args, Clone, Debug)]
pub struct GuestOptions {
    #[command(flatten)]
    build: BuildOptions,
    /// Memory of the guest
    #[arg(long, short, default_value = "4G", value_name = "SIZE")]
    memory: String,
    /// More kernel parameters
    #[arg(
        long,
        value_name = "PARAMETERS",
        default_value = "",
        allow_hyphen_values = true
    )]
    append: String,
    /// Seconds after which a guest that has not ended is stopped; by default a bound that suits the command
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

/// Runs one command of the lab.
pub fn run(command: LabCommand) -> Result<ExitCode> {
    match command {
        LabCommand::Build(options) => {
            let cache = Cache::open()?;
            let built = build(&cache, &options)?;
            println!("kernel image  {}", built.image.display());
            println!("kernel tree   {}", built.tree.display());
            println!("initramfs     {}", built.initramfs.display());
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::Boot {
            guest,
            machine,
            command,
        } if !command.is_empty() => {
            let cache = Cache::open()?;
            let built = build(&cache, &guest.build)?;
            runner::run_command(&cache, &built, &guest, machine, &command)
        }
        LabCommand::Boot { guest, machine, .. } | LabCommand::Shell { guest, machine } => {
            let cache = Cache::open()?;
            let built = build(&cache, &guest.build)?;
            runner::run_shell(&cache, &built, &guest, machine)
        }
        LabCommand::Test { list: true, .. } => {
            tests::print_list();
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::Test { guest, names, .. } => {
            let selected = tests::select(&names)?;
            let cache = Cache::open()?;
            let built = build(&cache, &guest.build)?;
            runner::run_tests(&cache, &built, &guest, &selected)
        }
        LabCommand::Status { json } => {
            cache::print_status(&Cache::open()?, json)?;
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::Clean => {
            Cache::open()?.remove()?;
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::GuestInit => guest::run(),
    }
}

/// What a build yields: all that is needed to boot a guest.
#[derive(Debug)]
struct Built {
    image: PathBuf,
    tree: PathBuf,
    initramfs: PathBuf,
    profile: Profile,
}

/// Brings everything up to date, doing only what is not.
fn build(cache: &Cache, options: &BuildOptions) -> Result<Built> {
    let profile = Profile::of(options.debug_kernel);
    let checkout = find_checkout(options.checkout.as_deref())?;
    let _lock = cache.lock()?;

    host::check(cache, options.guest_binary.is_none())?;
    let mirror = apt::Mirror::new(cache, options.mirror.as_deref());
    let toolchain = toolchain::prepare(cache, &mirror)?;
    let source = source::prepare(cache, &mirror)?;
    let kernel = kernel::build(cache, &toolchain, &source, &checkout, profile, options.jobs)?;
    let selftests = selftests::build(cache, &toolchain, &source)?;
    let luo = match &options.guest_binary {
        Some(binary) => binary.clone(),
        None => initramfs::build_guest_binary(cache, &checkout)?,
    };
    let initramfs = initramfs::assemble(cache, &toolchain, &kernel, &selftests, &luo, profile)?;
    cache.record_artefacts(
        profile,
        &kernel.image,
        &source.tree,
        &kernel.build_tree,
        &initramfs,
    )?;
    Ok(Built {
        image: kernel.image,
        tree: source.tree,
        initramfs,
        profile,
    })
}

/// The checkout that holds the handlers: the given one, else the one around the current directory, else the one this
/// binary was built from.
fn find_checkout(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(directory) = given {
        if !is_checkout(directory) {
            bail!(
                "{} is no checkout of luo-handlers: it has no luo-handler-api/",
                directory.display()
            );
        }
        return directory
            .canonicalize()
            .with_context(|| format!("resolving {}", directory.display()));
    }
    let current = std::env::current_dir().context("reading the current directory")?;
    // harness/lab, two levels below it
    let built_from = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap_or(Path::new("/"));
    let found = current
        .ancestors()
        .chain([built_from])
        .find(|directory| is_checkout(directory));
    found
        .map(Path::to_path_buf)
        .context("no checkout of luo-handlers here; change into one, or name it with --checkout")
}

fn is_checkout(directory: &Path) -> bool {
    directory.join("luo-handler-api").is_dir() && directory.join("handlers").is_dir()
}
