// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What a program has to know that updates itself: signals, threads, forks, runtimes, limits.
//!
//! `examples/server` does what this page describes, in 200 lines; `tests/tokio.rs` does it on
//! tokio.
//!
//! # The order of things
//!
//! 1. Stop taking new work, at a place where every request is either complete or kept as what was
//!    read of it. Everything that the program alone knows goes into an [envelope](crate::envelope).
//! 2. Preserve, prepare, freeze. From here on nothing changes any more.
//! 3. Hand over. If that fails, the program goes on: dropping the orchestrator undoes the update.
//! 4. The new program arrives, retrieves, finishes, and only then takes work again.
//!
//! Files can be preserved and prepared long before, while the program works; what it costs to stand
//! still is what comes after that. With image the same goes for their contents: copy them into a
//! [`Draft`](crate::transport::image::Draft) first.
//!
//! The longest part of that is the start of the new program, and it is long if its file was not
//! read for a while. So rehearse it: freeze, [`spawn`](crate::transport::spawn) a new program that
//! retrieves and gives up, and unfreeze, until that gets no faster. In a virtual machine whose host
//! puts away memory that rests, 30 ms became 2 ms.
//!
//! # Which transport
//!
//! They are the modules of [`transport`](crate::transport). Sockets and devices cross only where an
//! open descriptor does: by exec, spawn and fdstore. The process id stays with exec, and changes
//! with the others. The larger difference is what a broken new program costs:
//!
//! | The new program | exec | spawn | fdstore | image | what spawn reports |
//! |---|---|---|---|---|---|
//! | is missing | goes on | goes on | next start | goes on | `No such file or directory` |
//! | is not executable | goes on | goes on | next start | goes on | `it may not be executed` |
//! | is a directory | goes on | goes on | next start | goes on | `it is not a regular file` |
//! | is empty | goes on | goes on | next start | goes on | `neither an ELF file nor` |
//! | is for another machine | goes on | goes on | next start | goes on | `this machine runs` |
//! | is truncated | goes on | goes on | next start | goes on | `it ends early` |
//! | panics at start | is lost | goes on | next start | next load | `nothing works today` |
//! | panics after retrieve | is lost | goes on | next start | next load | `one step too far` |
//! | hangs | is lost | goes on | next start | next load | `was not ready after` |
//! | lacks a handler | passes on | goes on | next start | next load | `no handler for` |
//!
//! - *goes on*: the old program has everything that it had, and a reason. Exec and image report the
//!   same one, as far as it is known before the jump.
//! - *next start*, *next load*: all of it is there for the next program. With fdstore systemd
//!   starts that, and reports what became of the one before.
//! - *passes on*: the new program has all of it, as it arrived, and can jump to one that works:
//!   [`pass_on`](crate::orchestrator::Orchestrator::pass_on).
//! - *is lost*: the old program ended in the exec, and its files end with the new one.
//!
//! The last lines on the standard error of the new program, and its exit status, are in the report
//! of spawn: `nothing works today` is what it panicked with. `tests/broken_programs.rs` runs this
//! table.
//!
//! # Signals
//!
//! *A signal that is pending kills a program that has not installed its handler yet.* An exec
//! resets every handler to the default action, and for `SIGHUP` or `SIGTERM` that is the end of the
//! process, with all that was preserved. A second `SIGHUP` right after the first is enough. So:
//!
//! - **Block the signal before anything else, and read it as a file.** `sigprocmask` and
//!   `signalfd(2)`, or a thread in `sigwait(3)`; not a handler. The mask crosses the exec: the
//!   signal stays pending until the new program reads it.
//! - *Block it in every thread.* A process-directed signal is delivered to any thread that does not
//!   block it. Threads inherit the mask of the one that starts them: block in `main`, before the
//!   first thread.
//! - The mask is inherited by every other program that is started as well. Most of them expect an
//!   empty one: unblock in the child.
//! - Ignored signals stay ignored over an exec. Rust programs ignore `SIGPIPE` from their start,
//!   and so does the program that they become.
//! - Timers of `setitimer(2)` and `alarm(2)` go on over an exec, those of `timer_create(2)` do not.
//!
//! # Threads and locks
//!
//! An exec ends all other threads at once, wherever they are: between two writes that belong
//! together, or with a lock held. What is in a memfd is then left as it is; no destructor runs. So
//! join the threads, or stop each at a safe place, before freeze. A lock in memory that is shared
//! by mapping a memfd stays locked by a thread that is gone: use robust mutexes
//! (`pthread_mutexattr_setrobust(3)`), or take all of these locks before freeze and initialize them
//! after the jump. Buffered output is lost: flush it.
//!
//! With [`spawn`](crate::transport::spawn) both programs run for a while. The old one must not
//! touch what it handed over until it is told that the new one failed: both have the same open
//! sockets, and a request that one of them has read is not there for the other.
//!
//! # Forks
//!
//! `FD_CLOEXEC` helps against an exec, not against a fork. A child that any thread forks during the
//! update has duplicates of all open files until it execs or ends, and holds connections open that
//! both ends believe to be closed. Start no programs between freeze and the jump. A child that the
//! program started before stays its child over an exec, because the process is the same: the new
//! program has to wait for it, or it stays a zombie. Over spawn it becomes a child of init, or of
//! the nearest subreaper.
//!
//! # Async runtimes
//!
//! An epoll instance belongs to the runtime, and the runtime ends with the program. Tried with
//! tokio 1.54 on two worker threads (`tests/tokio.rs`): ten updates under eight connections, each
//! with half a line read, lose none.
//!
//! - Tell every task to stop, and have each return its stream and what it has read: a
//!   `watch::Receiver` in a `select!` beside a read that is cancel safe (`read`, `read_buf`; not
//!   `read_exact`, `read_line` or `write_all`, which forget how far they came).
//! - `into_std` takes the sockets out of the runtime. Then drop the runtime: its threads are
//!   joined, and nothing runs. A task in `spawn_blocking` is waited for; `shutdown_timeout` does
//!   not.
//! - After the jump `from_std` registers them with the new runtime. `O_NONBLOCK` belongs to the
//!   open socket and crosses; a socket that was made by std needs `set_nonblocking(true)` once.
//! - `tokio::signal` installs its handler when it is first asked, which is too late: see above.
//!   Block the signal before the runtime is built, so that its workers inherit that, and wait for
//!   it with `sigwait` in a `spawn_blocking`.
//! - An update that fails goes on in the old program: build a new runtime, and `from_std` again.
//! - Requests in flight in an io_uring are cancelled when the ring is closed. Wait for their
//!   completions before freeze.
//!
//! # Limits
//!
//! A preserved file takes three descriptors while the program stands still: its own, that of the
//! orchestrator, and that of what the handler preserved. `fdstore` takes one more for as long as
//! the file is in the store. So a server with 300 connections needs about 1000, and with a few more
//! it runs into the usual soft limit of 1024: raise `RLIMIT_NOFILE` to its hard limit at the start.
//! The limit crosses an exec. Descriptors that are sent to the store and not yet received count
//! against the same limit, by user.
//!
//! The devicetree has one node a file; hundreds of thousands work, and cost time while the program
//! stands still. Memory belongs into few large memfds, not into many small ones.
//!
//! Over a kexec, single pages are what costs: [`collapse`](mod@crate::collapse) puts a memfd into
//! huge pages while the program runs.
//!
//! # `/proc/self/exe`
//!
//! It is the file that runs, not the name that it has. Once an installer has put another file under
//! that name, `/proc/self/exe` still leads to the old one, and `current_exe` returns its name with
//! ` (deleted)` after it. An update that execs it starts the *old* program again, or nothing. Keep
//! the path that the program was started with (the first argument, made absolute, or an option),
//! and name the new program by that. Replace the file by a rename: writing into it fails with
//! `ETXTBSY` while it runs, and where it does not, the exec finds half a program.
//!
//! # Under systemd
//!
//! - After an exec the process id is the same, and systemd notices nothing. `Type=notify-reload`
//!   with `ReloadSignal=SIGHUP` waits for `RELOADING=1` and `READY=1`, which the new program sends.
//! - After spawn it changes: the old process names the new one with `MAINPID=` before it ends,
//!   which `NotifyAccess=main` allows.
//! - `LISTEN_FDS` and `LISTEN_PID` describe the descriptors of the first start; after an exec they
//!   would name others with the same process id. The transports leave them out.
//! - `FileDescriptorStorePreserve=yes` keeps the store while the service is stopped; without it
//!   only a restart does.
