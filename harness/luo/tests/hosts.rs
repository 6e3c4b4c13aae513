// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `luo bench` on hosts that lack something: little memory, no /proc, a read-only file system.
//!
//! Each host is a set of namespaces, made by unshare(1). On a machine that forbids them, the test
//! reports that and is skipped.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::cargo::cargo_bin;
use serde_json::Value;

/// Namespaces that a user may make without being root.
const USER: &[&str] = &["--user", "--map-root-user", "--mount", "--pid", "--fork"];
/// Namespaces of root, who may set what belongs to one of them.
const ROOT: &[&str] = &["--mount", "--pid", "--fork", "--mount-proc"];

/// Runs a script in namespaces, with `$LUO` for the program; `None` if the machine forbids it.
fn on_host(namespaces: &[&str], script: &str) -> Option<Output> {
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(namespaces).args(["sh", "-ec", script]);
        command.env("LUO", cargo_bin("luo")).stdin(Stdio::null());
        command.output()
    };
    // The preparations of a script are a part of what may be forbidden.
    let (preparation, _) = script.split_once("exec $LUO").unwrap_or((script, ""));
    match unshare(preparation) {
        Ok(output) if output.status.success() => unshare(script).ok(),
        forbidden => {
            eprintln!("skipped, this machine has no such namespaces: {forbidden:?}");
            None
        }
    }
}

/// What a bench reports that prints JSON, and its exit code.
fn report(output: &Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn assert_all_verified(report: &Value, count: usize) {
    let results = report["results"].as_array().unwrap();
    assert_eq!(results.len(), count, "{}", report["skipped"]);
    for row in results {
        assert_eq!(row["verified"], true, "{row}");
    }
}

fn reasons(report: &Value) -> Vec<&str> {
    let skipped = report["skipped"].as_array().unwrap();
    skipped
        .iter()
        .map(|case| case["reason"].as_str().unwrap())
        .collect()
}

#[test]
fn an_image_goes_where_there_is_room() {
    let script = "mount -t tmpfs -o size=64m none /dev/shm
        exec $LUO bench --size 80M --fill dense --runs 1 --json -";
    if let Some(output) = on_host(USER, script) {
        let report = report(&output);
        assert_all_verified(&report, 2);
        assert_ne!(
            report["results"][1]["transport"],
            report["results"][0]["transport"]
        );
    }
}

#[test]
fn an_image_without_room_anywhere_is_skipped_with_the_reason() {
    let script = "for place in /var/tmp /dev/shm; do mount -t tmpfs -o size=16m none $place; done
        cd /dev/shm; export TMPDIR=/var/tmp
        exec $LUO bench --size 2M,24M --fill dense --runs 1 --json -";
    if let Some(output) = on_host(USER, script) {
        let report = report(&output);
        assert_all_verified(&report, 3);
        let reasons = reasons(&report);
        assert!(
            reasons.len() == 1 && reasons[0].contains("of room"),
            "{reasons:?}"
        );
        assert_eq!(report["skipped"][0]["transport"], "image");
    }
}

#[test]
fn seals_that_the_host_adds_are_no_fault_of_the_update() {
    for level in [1, 2] {
        let script = format!(
            "echo {level} > /proc/sys/vm/memfd_noexec
             exec $LUO bench --size 1M --runs 1 --json -"
        );
        if let Some(output) = on_host(ROOT, &script) {
            assert_all_verified(&report(&output), 6);
        }
    }
}

#[test]
fn other_processes_may_be_hidden() {
    for option in ["hidepid=2", "subset=pid"] {
        let script = format!(
            "mount -t proc -o {option} proc /proc
             exec $LUO bench --size 1M --runs 1 --json -"
        );
        if let Some(output) = on_host(USER, &script) {
            assert_all_verified(&report(&output), 6);
        }
    }
}

#[test]
fn without_proc_a_bench_works_or_names_what_is_missing() {
    let script = "mount -t tmpfs none /proc
        exec $LUO bench --transport exec --size 1M --fill dense --runs 1 --json -";
    if let Some(output) = on_host(USER, script) {
        match output.status.code() {
            Some(0) => assert_all_verified(&report(&output), 1),
            code => {
                let stderr = String::from_utf8_lossy(&output.stderr);
                assert_eq!(code, Some(1), "{stderr}");
                assert!(stderr.contains("skipped: exec"), "{stderr}");
                assert!(stderr.contains("mount /proc"), "{stderr}");
            }
        }
    }
}

#[test]
fn huge_pages_that_are_not_there_are_skipped_with_the_reason() {
    let script = "mount -t tmpfs none /sys/kernel/mm
        exec $LUO bench --transport exec --size 1M --pages 4k,thp,hugetlb,hugetlb:1G --fill dense \
            --runs 1 --json -";
    if let Some(output) = on_host(USER, script) {
        let report = report(&output);
        assert_all_verified(&report, 1);
        let reasons = reasons(&report);
        assert_eq!(reasons.len(), 3);
        assert!(
            reasons[0].contains("no transparent huge pages"),
            "{reasons:?}"
        );
        assert!(reasons[2].contains("no huge pages of 1"), "{reasons:?}");
    }
}

#[test]
fn nothing_is_written_but_where_it_has_to_be() {
    let script = "mount -t tmpfs none /dev/shm
        for place in /tmp /var /home /root; do
            mount --bind $place $place; mount -o remount,bind,ro $place
        done
        export HOME=/root
        ! touch /tmp/x 2>/dev/null; ! touch /var/tmp/x 2>/dev/null
        exec $LUO bench --size 1M --runs 1 --json - --html /dev/null";
    if let Some(output) = on_host(USER, script) {
        assert_all_verified(&report(&output), 6);
    }
}

#[test]
fn a_limit_on_the_address_space_is_a_reason_and_no_crash() {
    let script = "ulimit -v 400000
        exec $LUO bench --transport exec --size 1M,1G --fill sparse:1% --runs 1 --json -";
    if let Some(output) = on_host(&["--mount", "--user", "--map-root-user"], script) {
        let report = report(&output);
        assert_all_verified(&report, 1);
        assert!(
            reasons(&report)[0].contains("cannot map"),
            "{:?}",
            reasons(&report)
        );
    }
}

/// What the default profiles of Docker and Podman refuse to a container without capabilities,
/// according to their documentation, with EPERM; the newer calls of mounting included.
const REFUSED_IN_CONTAINERS: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_get_mempolicy,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mbind,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_move_pages,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_set_mempolicy,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

#[test]
fn the_filter_of_a_container_refuses_nothing_that_a_bench_needs() {
    use seccompiler::{apply_filter, BpfProgram, SeccompAction, SeccompFilter};

    let rules = REFUSED_IN_CONTAINERS.iter().map(|&call| (call, Vec::new()));
    let architecture = std::env::consts::ARCH.try_into().unwrap();
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules.collect(), SeccompAction::Allow, refuse, architecture);
    let filter: BpfProgram = filter.unwrap().try_into().unwrap();
    // It holds for the thread that has applied it, and what that starts.
    let bench = std::thread::spawn(move || {
        apply_filter(&filter).unwrap();
        let forbidden = Command::new("unshare").args(["--user", "true"]).output();
        assert!(
            !forbidden.unwrap().status.success(),
            "the filter does nothing"
        );
        let mut command = Command::new(cargo_bin("luo"));
        command.args(["bench", "--size", "1M", "--runs", "1", "--json", "-"]);
        command.output().unwrap()
    });
    assert_all_verified(&report(&bench.join().unwrap()), 6);
}

#[test]
fn a_memory_cgroup_below_what_is_asked_is_a_reason() {
    // By either version's files, in a group of its own that goes again.
    const FORBIDDEN: i32 = 77;
    let script = r#"
        prepare() {
            for root in /sys/fs/cgroup/memory /sys/fs/cgroup; do
                group=$root/luo-test-$$
                mkdir $group || continue
                for limit in memory.max memory.limit_in_bytes; do
                    test -e $group/$limit && echo 128M > $group/$limit && return
                done
                rmdir $group
            done
            return 1
        }
        prepare 2>/dev/null || exit 77
        code=0
        (
            sh -c 'echo $PPID' > $group/cgroup.procs
            exec $LUO bench --transport exec --size 1M,256M --fill dense --runs 1 --json -
        ) || code=$?
        rmdir $group
        exit $code"#;
    let mut command = Command::new("sh");
    command.args(["-c", script]).env("LUO", cargo_bin("luo"));
    let output = command.output().unwrap();
    if output.status.code() == Some(FORBIDDEN) {
        eprintln!("skipped, nobody may make a memory cgroup here");
        return;
    }
    let report = report(&output);
    assert_all_verified(&report, 1);
    let reasons = reasons(&report);
    assert!(
        reasons.len() == 1 && reasons[0].contains("of memory"),
        "{reasons:?}"
    );
}

#[test]
fn an_interruption_at_any_moment_leaves_nothing_behind() {
    use rustix::process::{kill_process, Pid, Signal};

    let directory = tempfile::tempdir().unwrap();
    let (images, figures) = (
        directory.path().join("images"),
        directory.path().join("out.json"),
    );
    std::fs::create_dir(&images).unwrap();
    for (moment, signal) in [
        (0, Signal::TERM),
        (30, Signal::INT),
        (150, Signal::TERM),
        (400, Signal::HUP),
        (900, Signal::INT),
    ] {
        let mut child = Command::new(cargo_bin("luo"))
            .args([
                "bench",
                "--transport",
                "image",
                "--size",
                "48M",
                "--runs",
                "10000",
            ])
            .arg("--image-dir")
            .arg(&images)
            .arg("--json")
            .arg(&figures)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Until it has begun, the signal ends it as it ends any program.
        let begun = Instant::now();
        while moment > 0 && std::fs::read_dir(&images).unwrap().count() == 0 {
            assert!(begun.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(moment));
        kill_process(Pid::from_child(&child), signal).unwrap();
        let status = child.wait().unwrap();
        assert!(!status.success(), "{status}");
        if moment > 0 {
            assert_eq!(status.code(), Some(1), "{status} after {moment} ms");
        }
        assert_eq!(
            std::fs::read_dir(&images).unwrap().count(),
            0,
            "after {moment} ms"
        );
        assert!(!figures.exists());
    }
}
