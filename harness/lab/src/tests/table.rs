// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The table of kernel tests. To add one, add a line, and a file beside this one for what its
//! stages do.

use anyhow::{bail, Result};

use crate::archive::USERS_PROGRAM;
use crate::build::variant::Variant;
use crate::tests::memfd_cases::MEMFDS;
use crate::tests::test::{
    check, in_kernel, preserves, retrieves, stage, without_memfd, Action, Stage, Test,
};
use crate::tests::{
    attributes, both_ways, devices, failing_freeze, folios, forged, forged_bytes, freeze,
    host_settings, hugetlb, hugetlb_forged, hugetlb_freeze, hugetlb_limit, hugetlb_parts,
    hugetlb_scratch, hugetlb_sizes, killed_waiter, late_writes, limit, luo_bench, memfd_twice,
    missing, moved, numa, parts, quiet, reserved, session_shell, subsystems, swap, switched_off,
};
use crate::vm::machine::Machine;

const SELFTEST_PASSED: &[&str] = &["TEST PASSED"];

/// All tests, in the order they run.
pub(crate) static TESTS: &[Test] = &[
    Test {
        name: "luo_kexec_simple",
        about: "the kernel's own: one session, one file",
        machine: Machine::Plain,
        stages: &[
            preserves(&["/selftests/luo_kexec_simple", "-s", "1"], 2),
            retrieves(&["/selftests/luo_kexec_simple", "-s", "2"], 2),
        ],
        prints: SELFTEST_PASSED,
        seconds: 90,
    },
    Test {
        name: "luo_multi_session",
        about: "the kernel's own: several sessions, one of them empty",
        machine: Machine::Plain,
        stages: &[
            preserves(&["/selftests/luo_multi_session", "-s", "1"], 4),
            retrieves(&["/selftests/luo_multi_session", "-s", "2"], 4),
        ],
        prints: SELFTEST_PASSED,
        seconds: 90,
    },
    Test {
        name: "luo_stress_files",
        about: "the kernel's own: 500 files in one session",
        machine: Machine::Plain,
        stages: &[
            preserves(&["/selftests/luo_stress_files", "-s", "1"], 501),
            retrieves(&["/selftests/luo_stress_files", "-s", "2"], 501),
        ],
        prints: SELFTEST_PASSED,
        seconds: 90,
    },
    Test {
        name: "luo_stress_sessions",
        about: "the kernel's own: very many sessions",
        machine: Machine::Plain,
        stages: &[
            preserves(&["/selftests/luo_stress_sessions", "-s", "1"], 1),
            retrieves(&["/selftests/luo_stress_sessions", "-s", "2"], 1),
        ],
        prints: SELFTEST_PASSED,
        seconds: 90,
    },
    Test {
        name: "memfd_files",
        about: "memfds of every shape, each in a session of its own",
        machine: Machine::Plain,
        stages: &[
            stage(Action::Depart(MEMFDS), 1000, 0),
            stage(Action::Arrive(MEMFDS), 0, 1000),
        ],
        prints: &[],
        seconds: 240,
    },
    Test {
        name: "memfd_twice",
        about: "contents, holes, size and position cross two jumps in a row",
        machine: Machine::Plain,
        stages: &[
            check(memfd_twice::preserve_memfds, 2, 0),
            check(memfd_twice::pass_memfds_on, 2, 2),
            check(memfd_twice::take_memfds_back, 0, 2),
        ],
        prints: &[],
        seconds: 120,
    },
    Test {
        name: "swap",
        about: "memfds whose pages are in swap before prepare, and before freeze",
        machine: Machine::Plain,
        stages: &[
            Stage {
                parameters: swap::PARAMETERS,
                ..check(swap::preserve_swapped, 2, 0)
            },
            check(swap::take_swapped, 0, 2),
        ],
        prints: &[],
        seconds: 120,
    },
    Test {
        name: "numa",
        about: "memory of two NUMA nodes stays where it is",
        machine: Machine::Numa,
        stages: &[
            check(numa::preserve_on_both, 2, 0),
            check(numa::take_from_both, 0, 2),
        ],
        prints: &[],
        seconds: 120,
    },
    Test {
        name: "failing_freeze",
        about: "memory that goes bad after prepare: the jump is refused, all runs on, the next \
                jump succeeds",
        machine: Machine::Plain,
        stages: &[
            check(failing_freeze::survive_a_failing_freeze, 2, 0),
            check(failing_freeze::take_sound, 0, 1),
        ],
        prints: &[],
        seconds: 90,
    },
    Test {
        name: "late_writes",
        about: "stores until the last moment before the jump are preserved whole or not at all",
        machine: Machine::Plain,
        stages: &[
            stage(Action::Jump(late_writes::write_on), 0, 0),
            check(late_writes::compare, 0, 6),
        ],
        prints: &[],
        seconds: 120,
    },
    Test {
        name: "writers_go_on",
        about: "a jump is refused while writers are at work: they go on, and cross with the next",
        machine: Machine::Plain,
        stages: &[
            stage(Action::Jump(late_writes::write_on_after_a_refusal), 0, 0),
            check(late_writes::compare, 0, 6),
        ],
        prints: &[],
        seconds: 120,
    },
    Test {
        name: "killed_waiter",
        about: "a task that waits for a jump with its store can be killed, and all others go on",
        machine: Machine::Plain,
        stages: &[
            check(killed_waiter::kill, 3, 0),
            check(killed_waiter::take, 0, 2),
        ],
        prints: &[],
        seconds: 240,
    },
    Test {
        name: "memory_that_failed",
        about: "memory that was preserved goes bad: the jump is refused, with file and offset",
        machine: Machine::Plain,
        stages: &[
            check(freeze::spoil_what_is_preserved, 2, 0),
            check(freeze::take_what_is_sound, 0, 1),
        ],
        prints: &["memfd: memfd:spoilt: the memory at offset 0x5000 has failed"],
        seconds: 90,
    },
    Test {
        name: "cheap_freeze",
        about: "with 500000 extents and no change freeze takes no memory, and less than 1 % of \
                prepare's time",
        machine: Machine::Plain,
        stages: &[
            check(freeze::freeze_without_a_change, 2, 0),
            check(freeze::take_many, 0, 1),
        ],
        prints: &[],
        seconds: 240,
    },
    Test {
        name: "fragmented_memory",
        about: "memfds are prepared and frozen where free memory is single pages",
        machine: Machine::Plain,
        stages: &[
            check(freeze::preserve_in_fragments, 3, 0),
            check(freeze::take_fragments, 0, 1),
        ],
        prints: &[],
        seconds: 240,
    },
    Test {
        name: "moved_memory",
        about: "what prepare has to move is counted, in all and for each file",
        machine: Machine::Plain,
        stages: &[check(moved::count, 1, 0)],
        prints: &[],
        seconds: 240,
    },
    Test {
        name: "memfd_attributes",
        about: "what makes a memfd besides its contents, each in a session of its own",
        machine: Machine::Plain,
        stages: &[
            stage(Action::Depart(attributes::CASES), 15, 0),
            stage(Action::Arrive(attributes::CASES), 0, 15),
        ],
        prints: &["memfd: only memfds are preserved"],
        seconds: 120,
    },
    Test {
        name: "hugetlb",
        about: "memfds of huge pages cross twice, with no page of a pool and no reservation more \
                than they had",
        machine: Machine::Plain,
        stages: &[
            check(hugetlb::preserve_all, 9, 0),
            check(hugetlb::retrieve_all, 5, 7),
            check(hugetlb::retrieve_again, 0, 5),
        ],
        prints: &[],
        seconds: 240,
    },
    Test {
        name: "hugetlb_vmemmap",
        about: "the same where each kernel gives the descriptors of huge pages away",
        machine: Machine::Plain,
        stages: &[
            Stage {
                parameters: "hugetlb_free_vmemmap=on",
                ..check(hugetlb::preserve_all, 9, 0)
            },
            Stage {
                parameters: "hugetlb_free_vmemmap=on",
                ..check(hugetlb::retrieve_all, 5, 7)
            },
            check(hugetlb::retrieve_again, 0, 5),
        ],
        prints: &[],
        seconds: 240,
    },
    Test {
        name: "hugetlb_late_writes",
        about: "a task that fills huge pages until the last moment, and over a jump that failed \
                memory refuses, loses none",
        machine: Machine::Plain,
        stages: &[
            stage(Action::Jump(hugetlb_freeze::write_on), 0, 0),
            check(hugetlb_freeze::compare, 0, 1),
        ],
        prints: &["memfd:spoilt: the memory at offset 0x400000 has failed"],
        seconds: 400,
    },
    Test {
        name: "hugetlb_memory_that_failed",
        about: "a memfd with a huge page that failed is refused, others cross",
        machine: Machine::Plain,
        stages: &[
            check(hugetlb_freeze::spoil_what_is_preserved, 1, 0),
            check(hugetlb_freeze::take_sound, 0, 1),
        ],
        prints: &["memfd:spoilt: the memory at offset 0x600000 has failed"],
        seconds: 180,
    },
    Test {
        name: "hugetlb_forged",
        about: "records of huge pages that a hostile previous kernel left fail alone",
        machine: Machine::Plain,
        stages: &[
            check(hugetlb_forged::preserve_all, 9, 0),
            check(hugetlb_forged::refuse_all, 0, 1),
        ],
        prints: &["this kernel has no huge pages of 64 KiB"],
        seconds: 180,
    },
    Test {
        name: "hugetlb_gigantic",
        about: "a page of 1 GiB that was reserved at boot comes back, and its memory is freed",
        machine: Machine::Plain,
        stages: &[
            Stage {
                parameters: hugetlb_sizes::BOTH_RESERVED,
                ..check(hugetlb_sizes::preserve_both_sizes, 3, 0)
            },
            check(hugetlb_sizes::retrieve_both_sizes, 0, 3),
        ],
        prints: &[],
        seconds: 300,
    },
    Test {
        name: "hugetlb_missing_size",
        about: "a kernel without pages of 1 GiB refuses their memfd with a reason, and frees it",
        machine: Machine::Plain,
        stages: &[
            Stage {
                parameters: hugetlb_sizes::RESERVED,
                ..check(hugetlb_sizes::preserve_gigantic, 1, 0)
            },
            Stage {
                parameters: hugetlb_sizes::WITHOUT,
                ..check(hugetlb_sizes::lose_gigantic, 0, 0)
            },
        ],
        prints: &["this kernel has no huge pages of 1048576 KiB"],
        seconds: 300,
    },
    Test {
        name: "hugetlb_forged_kind",
        about: "a memfd without huge pages whose record names a folio of 1 GiB is refused, freed",
        machine: Machine::Plain,
        stages: &[
            Stage {
                parameters: hugetlb_sizes::RESERVED,
                ..check(hugetlb_sizes::preserve_gigantic, 1, 0)
            },
            check(hugetlb_sizes::refuse_gigantic_folio, 0, 0),
        ],
        prints: &[],
        seconds: 300,
    },
    Test {
        name: "hugetlb_cma",
        about:
            "a page of 1 GiB in a CMA area stays where it is; after the jump its memory is freed",
        machine: Machine::Plain,
        stages: &[
            Stage {
                parameters: hugetlb_sizes::CMA,
                ..check(hugetlb_sizes::preserve_from_cma, 2, 0)
            },
            check(hugetlb_sizes::retrieve_gigantic, 0, 1),
        ],
        prints: &[],
        seconds: 300,
    },
    Test {
        name: "hugetlb_scratch",
        about: "huge pages that lie where the next kernel boots move, or their file is refused",
        machine: Machine::Plain,
        stages: &[
            Stage {
                parameters: hugetlb_scratch::PARAMETERS,
                ..check(hugetlb_scratch::preserve_from_scratch, 1, 0)
            },
            check(hugetlb_scratch::take_moved, 0, 1),
        ],
        prints: &["lies where the next kernel boots, and there is no free one to move it to"],
        seconds: 300,
    },
    Test {
        name: "hugetlb_killed_waiter",
        about: "a task that waits for a jump in a fault on a hole of a huge page can be killed",
        machine: Machine::Plain,
        stages: &[
            Stage {
                parameters: killed_waiter::HUGE_PARAMETERS,
                ..check(killed_waiter::kill_in_a_fault, 3, 0)
            },
            check(killed_waiter::take_huge, 0, 2),
        ],
        prints: &[],
        seconds: 240,
    },
    Test {
        name: "hugetlb_limit",
        about: "limits of a hugetlb cgroup are found out before anything is taken; the file is \
                charged, until it is closed",
        machine: Machine::Plain,
        stages: &[
            check(hugetlb_limit::preserve_charged, 2, 0),
            check(hugetlb_limit::retrieve_under_limits, 0, 1),
        ],
        prints: &[
            "memfd:limited: the cgroup has no room for 16777216 bytes; raise its hugetlb limit",
        ],
        seconds: 180,
    },
    Test {
        name: "hugetlb_parts",
        about: "a large memfd of huge pages, which several processors retrieve, is charged to who \
                retrieves it; one with a page that is named twice fails, and all of it is freed",
        machine: Machine::Plain,
        stages: &[
            check(hugetlb_parts::preserve_large, 1, 0),
            check(hugetlb_parts::retrieve_in_parts, 1, 1),
            check(hugetlb_parts::retrieve_alone, 1, 1),
            check(hugetlb_parts::refuse_forged, 0, 0),
        ],
        prints: &[],
        seconds: 240,
    },
    Test {
        name: "hugetlb_numa",
        about: "huge pages of two NUMA nodes stay where they are, in each node's counters",
        machine: Machine::Numa,
        stages: &[
            check(hugetlb_sizes::preserve_on_both, 2, 0),
            check(hugetlb_sizes::take_from_both, 0, 2),
        ],
        prints: &[],
        seconds: 180,
    },
    Test {
        name: "memory_limit",
        about: "a memory limit is found out before anything is taken; with a higher one the memfd \
                comes back",
        machine: Machine::Plain,
        stages: &[
            check(limit::preserve_much, 1, 0),
            check(limit::retrieve_under_a_limit, 0, 1),
        ],
        prints: &["memfd:luo-workload-1: the cgroup has no room for 33554432 bytes"],
        seconds: 90,
    },
    Test {
        name: "forged_parts",
        about: "of large memfds, which several processors retrieve, those with a frame that is \
                named twice, or is not theirs, fail alone and are freed",
        machine: Machine::Plain,
        stages: &[
            check(parts::preserve_all, 7, 0),
            check(parts::refuse_forged, 0, 2),
        ],
        prints: &[],
        seconds: 240,
    },
    Test {
        name: "forged_folios",
        about: "a memfd with huge pages in places that are taken is lost, and all of it is freed",
        machine: Machine::Plain,
        stages: &[
            check(folios::preserve_two, 2, 0),
            check(folios::refuse_taken_places, 0, 0),
        ],
        prints: &[],
        seconds: 120,
    },
    Test {
        name: "limited_parts",
        about: "the same of one that a memory limit has no room for when a part of it is inserted",
        machine: Machine::Plain,
        stages: &[
            check(parts::preserve_large, 2, 0),
            check(parts::retrieve_under_a_limit, 0, 1),
        ],
        prints: &[],
        seconds: 180,
    },
    Test {
        name: "switched_off",
        about: "a handler that is switched off retrieves what came in; the kernel's own takes new \
                files",
        machine: Machine::Plain,
        stages: &[
            without_memfd(switched_off::preserve_with_the_kernels, 0),
            check(switched_off::swap_handlers, 2, 0),
            without_memfd(switched_off::take_what_came_in, 2),
        ],
        prints: &[],
        seconds: 120,
    },
    Test {
        name: "missing_handler",
        about: "a kernel without one of the handlers loses its files, and nothing else",
        machine: Machine::Plain,
        stages: &[
            check(missing::preserve, 3, 0),
            in_kernel(Variant::Lacking, check(missing::lose_ports_alone, 0, 2)),
        ],
        prints: &[
            "luo_handlers: no handler for luo-handlers,ioport-v1",
            "luo_handlers: not retrieved: this kernel has no handler for luo-handlers,ioport-v1",
            "luo_handlers: finished without a handler for luo-handlers,ioport-v1",
        ],
        seconds: 120,
    },
    Test {
        name: "names_of_formats",
        about: "former names are retrieved; unknown ones, also such that are not text, fail alone",
        machine: Machine::Vfio,
        stages: &[
            check(missing::preserve_to_rename, 41, 0),
            check(missing::retrieve_renamed, 0, 4),
        ],
        prints: &["luo_handlers: no handler for (others)"],
        seconds: 120,
    },
    Test {
        name: "both_ways",
        about: "memfds go from a stock kernel to ours, back with their holes, and forth again",
        machine: Machine::Plain,
        stages: &[
            in_kernel(Variant::Stock, check(both_ways::begin, 0, 0)),
            Stage {
                parameters: both_ways::MAINLINES_FORMAT,
                ..in_kernel(Variant::Lacking, check(both_ways::pass_on, 6, 5))
            },
            in_kernel(Variant::Stock, check(both_ways::pass_back, 0, 0)),
            in_kernel(Variant::Lacking, check(both_ways::end, 0, 5)),
        ],
        prints: &[],
        seconds: 240,
    },
    Test {
        name: "way_back",
        about:
            "from our format to a stock kernel: by way of a kernel with our handler switched off",
        machine: Machine::Plain,
        stages: &[
            check(both_ways::preserve_in_both_formats, 5, 0),
            without_memfd(both_ways::change_the_format, 5),
            in_kernel(Variant::Stock, check(both_ways::end, 0, 0)),
        ],
        prints: &[],
        seconds: 240,
    },
    Test {
        name: "subsystem_lineage",
        about:
            "a subsystem crosses with the first file that needs it and is finished with the last",
        machine: Machine::Plain,
        stages: &[
            check(subsystems::preserve_first, 4, 0),
            check(subsystems::pass_on_first, 2, 2),
            check(subsystems::pass_on_second, 2, 2),
            Stage {
                parameters: "luo_handlers.disable=lineage",
                ..check(subsystems::pass_on_without, 2, 2)
            },
            check(subsystems::begin_again, 2, 2),
        ],
        prints: &[
            "subsystem luo-handlers,lineage-v1 came in",
            "luo-handlers,lineage-v1 of luo_handler_lineage is not registered \
             (luo_handlers.disable)",
        ],
        seconds: 150,
    },
    Test {
        name: "device_files",
        about: "devices and ports, each case in a session of its own",
        machine: Machine::Vfio,
        stages: &[
            stage(Action::Depart(devices::DEVICES), 20, 0),
            stage(Action::Arrive(devices::DEVICES), 0, 12),
        ],
        prints: &[
            "vfio: 0000:00:13.0: there is no such device",
            "vfio: 0000:00:14.0: it is not bound to vfio-pci; bind devices before they are \
             retrieved",
            "vfio: 0000:01:00.0 is not the device that was preserved: vendor id was 0x1234, is \
             0x1b36",
        ],
        seconds: 120,
    },
    Test {
        name: "busy_interrupts",
        about: "a device whose interrupts are enabled: the jump is refused, all runs on, the next \
                jump succeeds",
        machine: Machine::Vfio,
        stages: &[
            check(devices::survive_enabled_interrupts, 4, 0),
            check(devices::take_quiet, 0, 4),
        ],
        prints: &["vfio: 0000:00:13.0 has interrupts enabled"],
        seconds: 90,
    },
    Test {
        name: "devices_quiet",
        about: "users that never rest find frozen devices closed, and go on after a refused jump",
        machine: Machine::Vfio,
        stages: &[
            check(quiet::never_rest, 3, 0),
            check(quiet::find_quiet, 0, 3),
        ],
        prints: &[],
        seconds: 120,
    },
    Test {
        name: "devices_intx",
        about: "a device that raises INTx during the jump disturbs nobody who shares the line",
        machine: Machine::Vfio,
        stages: &[
            check(quiet::raise_intx, 2, 0),
            check(quiet::share_intx, 0, 2),
        ],
        prints: &[],
        seconds: 180,
    },
    Test {
        name: "devices_low_power",
        about: "a device in low power is refused, sleeps on, and its owner gets the wake event",
        machine: Machine::Vfio,
        stages: &[check(quiet::sleep_on, 1, 0), check(quiet::wake_up, 0, 1)],
        prints: &["vfio: 0000:00:10.0 is in low power"],
        seconds: 120,
    },
    Test {
        name: "devices_given_up",
        about: "sessions that end without their devices release them, and everything else",
        machine: Machine::Vfio,
        stages: &[
            check(reserved::preserve_to_give_up, 8, 0),
            check(reserved::give_up, 0, 1),
        ],
        prints: &[],
        seconds: 120,
    },
    Test {
        name: "devices_reserved",
        about: "nobody else opens a device before its session is finished; where somebody has \
                it, retrieve names them",
        machine: Machine::Vfio,
        stages: &[
            check(reserved::preserve_to_reserve, 4, 0),
            check(reserved::hold_reserved, 0, 2),
        ],
        prints: &[
            "vfio: 0000:00:13.0: it is in use by luo (pid 1)",
            "vfio: 0000:00:14.0: it is in use by luo (pid 1)",
        ],
        seconds: 120,
    },
    Test {
        name: "devices_bound_late",
        about: "a device bound late is reserved then; one not bound is named at boot, and lost",
        machine: Machine::Vfio,
        stages: &[
            check(reserved::preserve_to_bind_late, 2, 0),
            Stage {
                parameters: "vfio-pci.ids=1b36:0005",
                ..check(reserved::bind_late, 0, 1)
            },
        ],
        prints: &[
            "vfio: 0000:00:12.0 must be bound to vfio-pci before it is retrieved",
            "vfio: 0000:00:12.0: it is not bound to vfio-pci",
        ],
        seconds: 120,
    },
    Test {
        name: "devices_reset",
        about: "a device that is being reset is waited for",
        machine: Machine::Vfio,
        stages: &[
            check(reserved::preserve_to_reset, 1, 0),
            check(reserved::retrieve_while_reset, 0, 1),
        ],
        prints: &[],
        seconds: 120,
    },
    Test {
        name: "vfio_switched_off",
        about: "a handler of devices that is switched off retrieves, and takes no more",
        machine: Machine::Vfio,
        stages: &[
            check(devices::preserve_device, 2, 0),
            Stage {
                parameters: "luo_handlers.disable=vfio",
                ..check(devices::take_device_but_no_other, 0, 2)
            },
        ],
        prints: &["takes no new files (luo_handlers.disable)"],
        seconds: 90,
    },
    Test {
        name: "forged_records",
        about: "what a hostile previous kernel left fails alone, with a reason",
        machine: Machine::Vfio,
        stages: &[
            check(forged::preserve_all, 20, 0),
            check(forged::refuse_forged, 0, 3),
        ],
        prints: &[
            "ioport: 0x81",
            "vfio: dead:00:15.0: there is no such device",
            "vfio: 0000:00:00.0: it is not bound to vfio-pci",
            "vfio: 0000:01:00.0 is not the device that was preserved: vendor id was 0x12cb, is \
             0x1234",
        ],
        seconds: 120,
    },
    Test {
        name: "forged_bytes",
        about:
            "bytes, lengths and numbers of what each handler preserved, changed without knowing \
                what they mean",
        machine: Machine::Vfio,
        stages: &[
            check(forged_bytes::preserve_all, 93, 0),
            check(forged_bytes::refuse_all, 0, 3),
        ],
        prints: &[],
        seconds: 240,
    },
    Test {
        name: "bench_devices",
        about: "luo bench passes devices, port files and memfds to another process",
        machine: Machine::Vfio,
        stages: &[check(luo_bench::bench_devices, 0, 0)],
        prints: &[],
        seconds: 90,
    },
    Test {
        name: "bench_settings",
        about: "luo bench measures what it is asked for with any shmem_enabled, and with strict \
                overcommit",
        machine: Machine::Plain,
        stages: &[check(host_settings::bench_with_each, 0, 0)],
        prints: &[],
        seconds: 180,
    },
    Test {
        name: "bench_kexec",
        about: "luo bench jumps from kernel to kernel by itself and reports in the last one",
        machine: Machine::Plain,
        stages: &[
            stage(Action::Jump(luo_bench::begin_bench), 0, 0),
            check(luo_bench::continue_bench, 0, 2),
        ],
        prints: &[],
        seconds: 400,
    },
    Test {
        name: "bench_missing_handler",
        about: "luo bench does not jump into a kernel without the handler of what it measures",
        machine: Machine::Plain,
        stages: &[
            stage(Action::Jump(luo_bench::begin_bench_into_lacking), 0, 0),
            in_kernel(
                Variant::Lacking,
                check(luo_bench::continue_bench_in_lacking, 0, 2),
            ),
        ],
        prints: &[],
        seconds: 200,
    },
    Test {
        name: "bench_kexec_devices",
        about: "luo bench takes devices, port files and collapsed memfds from kernel to kernel",
        machine: Machine::Vfio,
        stages: &[
            stage(Action::Jump(luo_bench::begin_device_bench), 0, 0),
            check(luo_bench::continue_device_bench, 0, 4),
        ],
        prints: &[],
        seconds: 200,
    },
    Test {
        name: "session_shell",
        about: "luo session from a shell: files cross, one of them collapsed, another is given up",
        machine: Machine::Plain,
        stages: &[
            check(session_shell::hold_sessions, 3, 0),
            check(session_shell::take_sessions, 0, 2),
        ],
        prints: &[],
        seconds: 90,
    },
];

/// With the user's own test program. It runs before the kexec with the argument `before`, and after
/// it with `after`; and many times with `before` and the name for its session, to have files to
/// forge.
pub(crate) static USERS_TESTS: &[Test] = &[
    Test {
        name: "program",
        about: "the test program that --program names",
        machine: Machine::Vfio,
        stages: &[
            stage(Action::Program(&[USERS_PROGRAM, "before"]), 0, 0),
            stage(Action::Program(&[USERS_PROGRAM, "after"]), 0, 0),
        ],
        prints: &[],
        seconds: 300,
    },
    Test {
        name: "program_forged",
        about: "what the handlers preserved for that program, forged without knowing what it means",
        machine: Machine::Vfio,
        stages: &[
            check(forged_bytes::preserve_programs, 1, 0),
            check(forged_bytes::refuse_programs, 0, 1),
        ],
        prints: &[],
        seconds: 300,
    },
];

/// With the user's own test program and handlers from outside.
pub(crate) static OUTSIDE_TESTS: &[Test] = &[Test {
    name: "program_missing",
    about: "a kernel without the handlers from outside loses that program's files, nothing else",
    machine: Machine::Vfio,
    stages: &[
        check(missing::preserve_programs, 2, 0),
        in_kernel(Variant::Lacking, check(missing::lose_programs_alone, 0, 1)),
    ],
    prints: &["luo_handlers: finished without a handler for "],
    seconds: 300,
}];

/// What the names of [`NAMED_TESTS`] begin with, and no others.
const ONLY_NAMED: [&str; 2] = ["versions", "built"];

/// With kernels that are built for them alone, which takes minutes: that of an earlier series, and
/// one whose configuration has most of its objects built again. They run only if they are named.
pub(crate) static NAMED_TESTS: &[Test] = &[
    Test {
        name: "versions_memfds_up",
        about: "memfds of every shape go from the earlier kernel to the present one",
        machine: Machine::Plain,
        stages: &[
            in_kernel(Variant::Earlier, stage(Action::Depart(MEMFDS), 1000, 0)),
            stage(Action::Arrive(MEMFDS), 0, 1000),
        ],
        prints: &[],
        seconds: 240,
    },
    Test {
        name: "versions_memfds_down",
        about: "memfds of every shape go from the present kernel to the earlier one",
        machine: Machine::Plain,
        stages: &[
            stage(Action::Depart(MEMFDS), 1000, 0),
            in_kernel(Variant::Earlier, stage(Action::Arrive(MEMFDS), 0, 1000)),
        ],
        prints: &[],
        seconds: 240,
    },
    Test {
        name: "versions_attributes",
        about: "what makes a memfd besides its contents goes to the earlier kernel",
        machine: Machine::Plain,
        stages: &[
            stage(Action::Depart(attributes::CASES), 15, 0),
            in_kernel(
                Variant::Earlier,
                stage(Action::Arrive(attributes::CASES), 0, 15),
            ),
        ],
        prints: &[],
        seconds: 120,
    },
    Test {
        name: "versions_memfds_back",
        about: "memfds go from the earlier kernel to the present one and back",
        machine: Machine::Plain,
        stages: &[
            in_kernel(Variant::Earlier, check(memfd_twice::preserve_memfds, 2, 0)),
            check(memfd_twice::pass_memfds_on, 2, 2),
            in_kernel(Variant::Earlier, check(memfd_twice::take_memfds_back, 0, 2)),
        ],
        prints: &[],
        seconds: 150,
    },
    Test {
        name: "versions_hugetlb",
        about: "memfds of huge pages go from the earlier kernel to the present one and back",
        machine: Machine::Plain,
        stages: &[
            in_kernel(Variant::Earlier, check(hugetlb::preserve_all, 9, 0)),
            check(hugetlb::retrieve_all, 5, 7),
            in_kernel(Variant::Earlier, check(hugetlb::retrieve_again, 0, 5)),
        ],
        prints: &[],
        seconds: 240,
    },
    Test {
        name: "versions_devices_up",
        about: "devices and ports go from the earlier kernel to the present one",
        machine: Machine::Vfio,
        stages: &[
            in_kernel(
                Variant::Earlier,
                stage(Action::Depart(devices::DEVICES), 20, 0),
            ),
            stage(Action::Arrive(devices::DEVICES), 0, 12),
        ],
        prints: &[],
        seconds: 150,
    },
    Test {
        name: "versions_devices_down",
        about: "devices and ports go from the present kernel to the earlier one",
        machine: Machine::Vfio,
        stages: &[
            stage(Action::Depart(devices::DEVICES), 20, 0),
            in_kernel(
                Variant::Earlier,
                stage(Action::Arrive(devices::DEVICES), 0, 12),
            ),
        ],
        prints: &[],
        seconds: 150,
    },
    Test {
        name: "versions_subsystem",
        about: "a subsystem goes from the earlier kernel to the present one and back",
        machine: Machine::Plain,
        stages: &[
            in_kernel(Variant::Earlier, check(subsystems::preserve_first, 4, 0)),
            check(subsystems::pass_on_first, 2, 2),
            in_kernel(Variant::Earlier, check(subsystems::pass_on_second, 2, 2)),
        ],
        prints: &["subsystem luo-handlers,lineage-v1 came in"],
        seconds: 150,
    },
    Test {
        name: "built_without_hugetlb",
        about: "a kernel without HUGETLBFS refuses a memfd of huge pages with a reason and frees \
                it; others cross",
        machine: Machine::Plain,
        stages: &[
            check(hugetlb_sizes::preserve_with_others, 2, 0),
            in_kernel(
                Variant::WithoutHugetlb,
                check(hugetlb_sizes::lose_huge_alone, 0, 1),
            ),
        ],
        prints: &["this kernel has no huge pages of 2048 KiB"],
        seconds: 180,
    },
];

/// Refuses a name that selects no test.
///
/// # Errors
///
/// It names the list of tests.
pub fn check_names(names: &[String]) -> Result<()> {
    for name in names {
        if !all_tests().any(|test| is_named(test, name)) {
            bail!("no test is called {name}; `luo lab test --list` lists them all");
        }
    }
    Ok(())
}

/// Those that can be named.
fn all_tests() -> impl Iterator<Item = &'static Test> {
    TESTS.iter().chain(NAMED_TESTS)
}

/// Whether a part of a name means this test. `memfd` alone does not ask for another kernel.
fn is_named(test: &Test, part: &str) -> bool {
    let start = ONLY_NAMED
        .iter()
        .find(|start| test.name.starts_with(**start));
    test.is_called(part) && start.is_none_or(|start| part.starts_with(start))
}

/// The tests whose names contain one of `names`; all of the first table if that is empty.
pub(crate) fn select(names: &[String]) -> Result<Vec<&'static Test>> {
    check_names(names)?;
    if names.is_empty() {
        return Ok(TESTS.iter().collect());
    }
    let wanted = |test: &&Test| names.iter().any(|name| is_named(test, name));
    Ok(all_tests().filter(wanted).collect())
}

/// The test of exactly this name.
pub(crate) fn find(name: &str) -> Option<&'static Test> {
    let mut tests = all_tests().chain(USERS_TESTS).chain(OUTSIDE_TESTS);
    tests.find(|test| test.name == name)
}

/// The table, for people: a line for each test, and for each of its cases.
pub fn list() -> String {
    let mut lines = Vec::new();
    for test in TESTS {
        lines.push(format!("{:<24} {}", test.name, test.about));
        let cases = test.cases().iter();
        lines.extend(cases.map(|case| format!("  {:<22} {}", case.name, case.about)));
    }
    lines.push("only if they are named, since they take kernels of their own:".into());
    let named = NAMED_TESTS.iter();
    lines.extend(named.map(|test| format!("{:<24} {}", test.name, test.about)));
    lines.join("\n")
}

#[cfg(test)]
mod unit_tests {
    use super::*;
    use luo_liveupdate::SESSION_NAME_MAX;

    #[test]
    fn names_are_single_words_and_unique() {
        let cases = TESTS.iter().flat_map(|test| test.cases());
        let mut names: Vec<&str> = all_tests().map(|test| test.name).collect();
        names.extend(cases.map(|case| case.name));
        let all = names.len();
        assert!(names.iter().all(|name| name
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || letter == '_')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
        assert!(names.iter().all(|name| name.len() <= SESSION_NAME_MAX));
        assert!(TESTS.iter().all(|test| !test.stages.is_empty()));
    }

    #[test]
    fn tests_are_selected_by_a_part_of_their_name() {
        let selected = select(&["stress".into()]).unwrap();
        assert_eq!(
            selected.iter().map(|test| test.name).collect::<Vec<_>>(),
            ["luo_stress_files", "luo_stress_sessions"]
        );
        assert_eq!(select(&[]).unwrap().len(), TESTS.len());
        let named = ONLY_NAMED.map(String::from);
        assert_eq!(select(&named).unwrap().len(), NAMED_TESTS.len());
        let others = select(&["memfd".into(), "hugetlb".into()]).unwrap();
        let is_other = |name: &str| ONLY_NAMED.iter().all(|start| !name.starts_with(start));
        assert!(others.iter().all(|test| is_other(test.name)));
        assert!(select(&["nonesuch".into()]).is_err());
    }

    #[test]
    fn every_selftest_that_is_built_is_run() {
        assert!(crate::build::selftests::NAMES
            .iter()
            .all(|name| find(name).is_some()));
    }
}
