// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `luo lab`: what may be asked of the kernel lab on the command line, and what it prints.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};

use crate::bench::{print_comparison, print_profiles, publish};
use crate::bench_arguments::{
    parse_size, wrong_usage, OutputArguments, PeerArgument, WorkloadArguments,
};
use luo_bench::outputs::Outputs;
use luo_bench::subject::fill::Fill;
use luo_bench::subject::pages::Pages;
use luo_lab::build::built::Built;
use luo_lab::build::checkout::find_checkout;
use luo_lab::build::options::{BuildOptions, Init, KernelSource};
use luo_lab::build::pipeline::build;
use luo_lab::build::profile::Profile;
use luo_lab::build::variant::Variant;
use luo_lab::cache::directory::Cache;
use luo_lab::run::bench;
use luo_lab::run::command::{run_command, run_shell};
use luo_lab::run::soak::run_soak;
use luo_lab::run::systemd::run_systemd;
use luo_lab::run::tests::{run_tests, Selected};
use luo_lab::soak::options::SoakOptions;
use luo_lab::status::Status;
use luo_lab::stick::make::make as make_stick;
use luo_lab::stick::plan::StickPlan;
use luo_lab::stick::test::test as test_stick;
use luo_lab::systemd::scenario::Scenario;
use luo_lab::systemd::service::{self, Service};
use luo_lab::tests::table;
use luo_lab::vm::machine::Machine;
use luo_lab::vm::options::GuestOptions;
use luo_orchestrator::registry::Registry;

/// What `luo lab` can do.
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Fetch the toolchain and the kernel source, configure and build; a second build takes seconds
    Build {
        /// What to build
        #[command(flatten)]
        build: BuildArguments,
        /// Handlers from elsewhere
        #[command(flatten)]
        more: HandlerArguments,
    },
    /// Boot a guest and run one command in it, or, without a command, a shell
    Boot {
        /// How to boot it
        #[command(flatten)]
        guest: GuestArguments,
        /// Handlers from elsewhere
        #[command(flatten)]
        more: HandlerArguments,
        /// What the guest has on its board
        #[command(flatten)]
        board: BoardArguments,
        /// The command to run in the guest; its exit code becomes ours
        #[arg(trailing_var_arg = true)]
        command: Vec<String>,
    },
    /// Boot a guest with a shell on the terminal; leave it with `exit`
    Shell {
        /// How to boot it
        #[command(flatten)]
        guest: GuestArguments,
        /// Handlers from elsewhere
        #[command(flatten)]
        more: HandlerArguments,
        /// What the guest has on its board
        #[command(flatten)]
        board: BoardArguments,
    },
    /// Run the kernel tests, each over a real kexec
    Test {
        /// How to boot it
        #[command(flatten)]
        guest: GuestArguments,
        /// Handlers from elsewhere
        #[command(flatten)]
        more: HandlerArguments,
        /// List the tests without running them
        #[arg(long)]
        list: bool,
        /// Run your own test program, a script or statically linked: before the kexec with the
        /// argument `before`, after it with `after`. It passes if it exits with 0 both times. A
        /// child of it holds what has to stay open until the kexec. Then it is run many times with
        /// `before` and a name, by which it calls its session, and what the handlers preserved for
        /// it is forged before anybody reads it. With --handler a kernel without those handlers is
        /// built as well, which must lose that program's files and nothing else. Without names
        /// these are the only tests
        #[arg(long, value_name = "FILE")]
        program: Option<PathBuf>,
        /// Guests that run at a time; by default one for each processor, up to four, as far as
        /// there is memory for them
        #[arg(long, value_parser = clap::value_parser!(u8).range(1..))]
        guests: Option<u8>,
        /// Run only the tests whose names contain one of these
        names: Vec<String>,
    },
    /// Measure live updates over real kexecs, if asked also those of the kernel's own handler
    Bench(LabBenchArguments),
    /// Make a long chain of kexecs with random files of all handlers, and compare them after each
    Soak {
        /// How to boot it
        #[command(flatten)]
        guest: GuestArguments,
        /// Handlers from elsewhere
        #[command(flatten)]
        more: HandlerArguments,
        /// How many kexecs
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
        jumps: u32,
        /// What everything random is made from; by default another one each time
        #[arg(long)]
        seed: Option<u64>,
        /// Have somebody write to a memfd while the kernel freezes and jumps
        #[arg(long)]
        writes_during_freeze: bool,
    },
    /// Have systemd take the memfds of its services over kexecs: what comes back, and how long it
    /// takes
    Systemd {
        /// How to boot it
        #[command(flatten)]
        guest: GuestArguments,
        /// Answer in JSON
        #[arg(long)]
        json: bool,
        /// Run only these: our handlers (ours), the kernel's own (mainline-c), the unit that
        /// continues a bench (bench-unit), systemd's own test (upstream)
        #[arg(value_parser = scenario_parser())]
        scenarios: Vec<Scenario>,
    },
    /// Make an image for a stick that boots any x86-64 machine with UEFI and measures live updates
    /// there
    Stick(StickArguments),
    /// Show what is cached, its size, and the paths of kernel image, kernel tree and initramfs
    Status {
        /// Answer in JSON
        #[arg(long)]
        json: bool,
        /// The checkout whose kernels to show; by default the one around the current directory
        #[arg(long, value_name = "DIR")]
        checkout: Option<PathBuf>,
    },
    /// Remove everything the lab has cached
    Clean,
    /// Be the init process of a guest
    #[command(hide = true)]
    GuestInit,
    /// Be a service of a guest with systemd
    #[command(hide = true)]
    GuestService {
        /// Which one
        #[arg(value_parser = service_parser())]
        service: Service,
    },
    /// Be the init process of a machine that was booted from a stick
    #[command(hide = true)]
    StickInit,
}

/// The options of `luo lab build`.
#[derive(Args, Clone, Debug)]
pub struct BuildArguments {
    /// Build the kernel that checks itself (KASAN, lockdep, kmemleak …): slower, in a tree of its
    /// own
    #[arg(long)]
    debug_kernel: bool,
    /// Parallel jobs of the kernel build; by default one a processor
    #[arg(long, short)]
    jobs: Option<usize>,
    /// Debian mirror to use instead of the one in the machine's apt set-up
    #[arg(long, value_name = "URI")]
    mirror: Option<String>,
    /// Debian's package of the kernel's source, such as linux-source-7.2; by default that of the
    /// series that the handlers are developed on
    #[arg(long, value_name = "PACKAGE")]
    source: Option<String>,
    /// A kernel tree of yours to build instead. It gets the handlers, as by `luo integrate`;
    /// objects go elsewhere
    #[arg(long, value_name = "DIR", conflicts_with = "source")]
    tree: Option<PathBuf>,
    /// The checkout whose handlers go into the kernel; by default the one around the current
    /// directory
    #[arg(long, value_name = "DIR")]
    checkout: Option<PathBuf>,
    /// A statically linked luo to put into the guest, instead of building one from the checkout
    #[arg(long, value_name = "FILE")]
    guest_binary: Option<PathBuf>,
    #[arg(skip)]
    init: Init,
    #[arg(skip)]
    program: Option<PathBuf>,
    #[arg(skip)]
    variants: Vec<Variant>,
    #[arg(skip)]
    handlers: Vec<PathBuf>,
    #[arg(skip)]
    for_stick: bool,
}

impl BuildArguments {
    fn build(self, cache: &Cache) -> Result<Built> {
        let options = BuildOptions {
            profile: match (self.debug_kernel, self.for_stick) {
                (true, true) => wrong_usage("--debug-kernel is for guests, not for a stick"),
                (true, false) => Profile::Debug,
                (false, true) => Profile::Stick,
                (false, false) => Profile::Release,
            },
            jobs: self.jobs,
            mirror: self.mirror,
            source: match (self.source, self.tree) {
                (Some(package), _) => KernelSource::Package(package),
                (None, Some(tree)) => KernelSource::Tree(tree),
                (None, None) => KernelSource::Preferred,
            },
            checkout: self.checkout,
            guest_binary: self.guest_binary,
            init: self.init,
            program: self.program,
            handlers: self.handlers,
            variants: self.variants,
        };
        build(cache, &options)
    }
}

/// The options of `luo lab stick`. Every combination of the lists is measured; the lists are in
/// `luo/plan.json` on the stick and may be changed there.
#[derive(Args, Clone, Debug)]
pub struct StickArguments {
    /// The image; dd writes it to a stick
    #[arg(long, value_name = "FILE", required_unless_present = "test")]
    output: Option<PathBuf>,
    /// Sizes of a memfd; by default half of the machine's memory, an eighth of that, and an eighth
    /// of that
    #[arg(long, value_delimiter = ',', value_parser = parse_size)]
    size: Vec<u64>,
    /// Page kinds: 4k, thp, hugetlb, or hugetlb:SIZE
    #[arg(long, value_delimiter = ',', default_value = "4k,thp,hugetlb")]
    pages: Vec<Pages>,
    /// What is filled: dense, shuffled, sparse:P%
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "dense,sparse:5%,shuffled"
    )]
    fill: Vec<Fill>,
    /// How often each combination is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Boot a stick in a virtual machine with UEFI, and read its report back
    #[arg(long, conflicts_with_all = ["output", "size", "pages", "fill", "runs"])]
    test: bool,
    /// With --test, seconds after which a machine that has not ended is stopped
    #[arg(long, value_name = "SECONDS", requires = "test")]
    timeout: Option<u64>,
    #[command(flatten)]
    build: BuildArguments,
}

/// Handlers from elsewhere. `bench` does not know what to measure of them.
#[derive(Args, Clone, Debug)]
pub struct HandlerArguments {
    /// The crate of a handler, anywhere, that goes into the kernel beside those of the checkout;
    /// may be given several times
    #[arg(long = "handler", value_name = "PATH")]
    handlers: Vec<PathBuf>,
}

/// The options of a command that boots a guest.
#[derive(Args, Clone, Debug)]
pub struct GuestArguments {
    #[command(flatten)]
    build: BuildArguments,
    /// Memory of the guest; by default 4G, and 8G for the kernel that checks itself
    #[arg(long, short, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// Processors of the guest, by default 2; a board with two NUMA nodes has one for each
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: Option<u32>,
    /// More kernel parameters
    #[arg(
        long,
        value_name = "PARAMETERS",
        default_value = "",
        allow_hyphen_values = true
    )]
    append: String,
    /// Seconds after which a guest that has not ended is stopped; by default a bound that suits the
    /// command
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Have QEMU listen for gdb on port 1234; the kernel's addresses are those of its vmlinux
    #[arg(long)]
    gdb: bool,
}

impl GuestArguments {
    fn with(mut self, more: HandlerArguments) -> Self {
        self.build.handlers = more.handlers;
        self
    }

    /// Builds what is to be booted.
    fn prepare(self) -> Result<(Cache, Built, GuestOptions)> {
        let cache = Cache::open()?;
        let built = self.build.build(&cache)?;
        let options = GuestOptions {
            memory: self.memory,
            cpus: self.cpus,
            append: self.append,
            timeout: self.timeout.map(Duration::from_secs),
            gdb: self.gdb,
        };
        Ok((cache, built, options))
    }
}

/// Which of the virtual machines to boot.
#[derive(Args, Clone, Copy, Debug)]
pub struct BoardArguments {
    /// What the guest has on its board: nothing else than what every guest has (plain), an IOMMU
    /// and PCI devices that vfio-pci takes (vfio), two NUMA nodes (numa)
    #[arg(long, default_value = Machine::Plain.name(), value_parser = machine_parser())]
    machine: Machine,
}

fn machine_parser() -> impl clap::builder::TypedValueParser<Value = Machine> {
    use clap::builder::TypedValueParser as _;
    PossibleValuesParser::new(Machine::ALL.map(Machine::name)).try_map(|name| {
        let named = Machine::ALL
            .into_iter()
            .find(|machine| machine.name() == name);
        named.ok_or("no machine has this name")
    })
}

fn scenario_parser() -> impl clap::builder::TypedValueParser<Value = Scenario> {
    use clap::builder::TypedValueParser as _;
    PossibleValuesParser::new(Scenario::ALL.map(Scenario::name))
        .try_map(|name| Scenario::find(&name).ok_or("no scenario has this name"))
}

fn service_parser() -> impl clap::builder::TypedValueParser<Value = Service> {
    use clap::builder::TypedValueParser as _;
    PossibleValuesParser::new(Service::ALL.map(Service::name)).try_map(|name| {
        let mut all = Service::ALL.into_iter();
        let named = all.find(|service| service.name() == name);
        named.ok_or("no service has this name")
    })
}

/// The options of `luo lab bench`.
#[derive(Args, Clone, Debug)]
pub struct LabBenchArguments {
    /// How to boot the guest
    #[command(flatten)]
    guest: GuestArguments,
    #[command(flatten)]
    workloads: WorkloadArguments,
    /// Measure how costs grow: from 256 MiB to two thirds of the guest's memory (--memory), dense
    /// and shuffled, and 1000 memfds of 1 MiB against one of 1000 MiB
    #[arg(long, conflicts_with_all = ["size", "fill", "files"])]
    scale: bool,
    /// Measure another handler as well, in turn with ours
    #[arg(long, value_enum, value_name = "HANDLER")]
    compare: Option<PeerArgument>,
    /// Sample the kernel during prepare and retrieve, and print which functions the time goes to;
    /// figures are a little higher then
    #[arg(long)]
    profile: bool,
    #[command(flatten)]
    outputs: OutputArguments,
}

/// Runs one command of the lab.
pub fn run(command: LabCommand) -> Result<ExitCode> {
    match command {
        LabCommand::Build { mut build, more } => {
            build.handlers = more.handlers;
            let built = build.build(&Cache::open()?)?;
            println!("kernel image  {}", built.artefacts.kernel_image.display());
            println!("kernel tree   {}", built.artefacts.kernel_tree.display());
            println!("initramfs     {}", built.artefacts.initramfs.display());
        }
        LabCommand::Boot {
            guest,
            more,
            board,
            command,
        } if !command.is_empty() => {
            let (cache, built, options) = guest.with(more).prepare()?;
            let ended = run_command(&cache, &built, &options, board.machine, &command)?;
            print!("{}", ended.output);
            return Ok(ExitCode::from(ended.code));
        }
        LabCommand::Boot {
            guest, more, board, ..
        }
        | LabCommand::Shell { guest, more, board } => {
            let (cache, built, options) = guest.with(more).prepare()?;
            run_shell(&cache, &built, &options, board.machine)?;
        }
        LabCommand::Test { list: true, .. } => println!("{}", table::list()),
        LabCommand::Test {
            guest,
            more,
            program,
            guests,
            names,
            ..
        } => {
            let selected = Selected {
                names,
                program: program.is_some(),
                outside: !more.handlers.is_empty(),
                guests: guests.map(usize::from),
            };
            return test(guest.with(more), program, &selected);
        }
        LabCommand::Bench(arguments) => return measure(arguments),
        LabCommand::Soak {
            guest,
            more,
            jumps,
            seed,
            writes_during_freeze,
        } => {
            let soak = SoakOptions {
                jumps: jumps as usize,
                seed: seed.unwrap_or_else(SoakOptions::random_seed),
                writes_during_freeze,
            };
            let (cache, built, options) = guest.with(more).prepare()?;
            println!("{}", run_soak(&cache, &built, &options, soak)?);
        }
        LabCommand::Status { json, checkout } => {
            let checkout = find_checkout(checkout.as_deref()).ok();
            let status = Status::of(&Cache::open()?, checkout.as_deref())?;
            match json {
                true => println!("{}", serde_json::to_string_pretty(&status)?),
                false => println!("{status}"),
            }
        }
        LabCommand::Clean => println!("{}", Cache::open()?.remove()?),
        LabCommand::Systemd {
            guest,
            json,
            scenarios,
        } => return systemd(guest, json, &scenarios),
        LabCommand::GuestInit => return luo_lab::init::entry::run(),
        LabCommand::GuestService { service } => service::run(service, Registry::linked()?)?,
        LabCommand::StickInit => return luo_lab::stick::boot::run(),
        LabCommand::Stick(arguments) => stick(arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses a wrong name before anything is built.
fn test(
    mut guest: GuestArguments,
    program: Option<PathBuf>,
    selected: &Selected,
) -> Result<ExitCode> {
    table::check_names(&selected.names)?;
    guest.build.program = program;
    guest.build.variants = selected.variants()?;
    let (cache, built, options) = guest.prepare()?;
    let summary = run_tests(&cache, &built, &options, selected, &mut |result| {
        println!("{result}");
    })?;
    println!("{summary}");
    Ok(match summary.failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn systemd(mut guest: GuestArguments, json: bool, scenarios: &[Scenario]) -> Result<ExitCode> {
    guest.build.init = Init::Systemd;
    let (cache, built, options) = guest.prepare()?;
    let scenarios = match scenarios {
        [] => &Scenario::ALL,
        named => named,
    };
    let outcome = run_systemd(&cache, &built, &options, scenarios)?;
    match json {
        true => println!("{}", serde_json::to_string_pretty(&outcome)?),
        false => println!("{outcome}"),
    }
    Ok(match outcome.problems.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn stick(arguments: StickArguments) -> Result<()> {
    let StickArguments {
        output,
        size,
        pages,
        fill,
        runs,
        timeout,
        mut build,
        ..
    } = arguments;
    build.for_stick = true;
    let plan = StickPlan {
        sizes: size,
        pages,
        fills: fill,
        runs,
        compare: true,
    };
    if let Err(error) = plan.check() {
        wrong_usage(&error.to_string());
    }
    let mirror = build.mirror.clone();
    let cache = Cache::open()?;
    let built = build.build(&cache)?;
    let Some(output) = output else {
        let timeout = timeout.map(Duration::from_secs);
        println!(
            "{}",
            test_stick(&cache, &built, mirror.as_deref(), timeout)?
        );
        return Ok(());
    };
    make_stick(&built, &plan, &output)?;
    println!(
        "{output}: write it to a stick, which loses all that is on it, and boot a machine from \
         there, with Secure Boot off:\n  dd if={output} of=/dev/sdX bs=4M conv=fsync",
        output = output.display()
    );
    Ok(())
}

fn measure(arguments: LabBenchArguments) -> Result<ExitCode> {
    let LabBenchArguments {
        guest,
        mut workloads,
        scale,
        compare,
        profile,
        outputs,
    } = arguments;
    if scale {
        let memory = guest.memory.unwrap_or(Profile::Release.guest_memory());
        workloads = workloads.scaled_to(memory);
    }
    let series = workloads.series(compare).with_profile(profile);
    let outputs = Outputs::from(outputs);
    outputs.check()?;
    let (cache, built, options) = guest.prepare()?;
    let report = bench::measure(&cache, &built, &options, &series)?;
    publish(&report, &outputs)?;
    print_comparison(&report);
    print_profiles(&report);
    Ok(match report.verified() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
