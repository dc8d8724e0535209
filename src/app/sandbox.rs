//! Restricts the process to what the sidecar needs: seccomp refuses system calls, and Landlock
//! refuses writes outside of the state directories.
//!
//! Both last until the process ends. Reading stays allowed everywhere, because a reload may name
//! other files, and mounted secrets are replaced by symbolic links to new directories.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;

use landlock::{ABI, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus};
use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter_all_threads, sock_filter,
};
use tracing::{info, warn};

use super::error::Error;
use crate::admin::status::SandboxStatus;
use crate::config::{Config, Sandbox};

/// The version of Landlock that is used. It is the first that covers all ways to change files:
/// writing, truncating, creating, renaming and removing.
const LANDLOCK: ABI = ABI::V3;

/// The system calls that fail with EPERM. No version of the C library or another library needs them
/// here. A list of permitted calls instead would break with a library that makes another call.
const REFUSED: &[libc::c_long] = &[
    // Starting programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    // Mounts and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_mknodat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    // The kernel and the machine.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_personality,
    // Interfaces that were often used to attack kernels.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_fanotify_init,
];

/// The flags of clone(2) that create a namespace. `CLONE_NEWTIME` is not among them, because
/// clone(2) interprets that bit as a part of the exit signal.
const NAMESPACE_FLAGS: &[libc::c_int] = &[
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// The bit that is set in the numbers of the x32 ABI's system calls (`__X32_SYSCALL_BIT` in Linux'
/// `asm/unistd.h`). Such numbers are not in [`REFUSED`]. Other architectures have no such ABI.
const X32_BIT: u32 = 0x4000_0000;

/// Restricts this process as `config.sandbox` says, and returns the restrictions that are in force.
/// Must be called before the threads start that it is to restrict, because Landlock restricts this
/// thread and those that it starts later; seccomp restricts all.
///
/// # Errors
/// If the sandbox is required, but this kernel or container does not permit it.
pub(super) fn apply(config: &Config) -> Result<SandboxStatus, Error> {
    if config.sandbox == Sandbox::Off {
        return Ok(SandboxStatus::default());
    }
    // Landlock is applied first, in case the seccomp filter refuses its system calls one day.
    let landlock = restrict_writes(config);
    let seccomp = refuse_system_calls();
    let failed: Vec<String> = [("landlock", &landlock), ("seccomp", &seccomp)]
        .into_iter()
        .filter_map(|(name, result)| result.as_ref().err().map(|why| format!("{name}: {why}")))
        .collect();
    if !failed.is_empty() && config.sandbox == Sandbox::Required {
        return Err(Error::Sandbox(failed.join("; ")));
    }
    let (landlock, seccomp, missing) = (landlock.is_ok(), seccomp.is_ok(), failed.join("; "));
    match failed.is_empty() {
        true => info!(landlock, seccomp, "restricted this process"),
        false => {
            info!(landlock, seccomp, missing, "restricted this process as far as the kernel and the container permit");
        }
    }
    Ok(SandboxStatus { landlock, seccomp, problem: (!missing.is_empty()).then_some(missing) })
}

/// Forbids this thread, and those that it starts, to write outside of the state directory and of
/// `gateway.state_dir`, in which loopgate may create the gateway's device identity. Creates the
/// state directory if it is missing. Returns why this is not in force, or only in part.
fn restrict_writes(config: &Config) -> Result<(), String> {
    // The directory must exist for the rule. If it can't be created, `pki` reports that later.
    let _ = DirBuilder::new().recursive(true).mode(0o700).create(&config.state_dir);
    let text = |error: &dyn std::error::Error| crate::error_chain::error_chain(error);
    let restrict = || {
        let mut rules = Ruleset::default().handle_access(AccessFs::from_write(LANDLOCK))?.create()?;
        let directories =
            [("state_dir", Some(&config.state_dir)), ("gateway.state_dir", config.gateway.state_dir.as_ref())];
        for (option, directory) in directories.into_iter().filter_map(|(option, path)| Some((option, path?))) {
            match PathFd::new(directory) {
                Ok(directory) => {
                    rules = rules.add_rule(PathBeneath::new(directory, AccessFs::from_write(LANDLOCK)))?;
                }
                Err(error) => {
                    let path = directory.display();
                    warn!(
                        option, %path, %error,
                        "sandbox: can't open this directory, so loopgate can't write to it until it is restarted"
                    );
                }
            }
        }
        rules.restrict_self()
    };
    match restrict() {
        Ok(done) if done.ruleset == RulesetStatus::FullyEnforced => Ok(()),
        Ok(done) if done.ruleset == RulesetStatus::PartiallyEnforced => {
            Err("this kernel supports only a part of Landlock's ABI 3".into())
        }
        Ok(_) => Err("not in this kernel, or not permitted in this container".into()),
        Err(error) => Err(text(&error)),
    }
}

/// Forbids all threads the system calls in [`REFUSED`], and to create namespaces. Returns why this
/// is not in force.
fn refuse_system_calls() -> Result<(), String> {
    let text = |error: seccompiler::Error| crate::error_chain::error_chain(&error);
    for program in seccomp_filters(REFUSED).map_err(|error| error.to_string())? {
        apply_filter_all_threads(&program).map_err(text)?;
    }
    Ok(())
}

/// Returns the two seccomp filters. The kernel runs both for each system call, and the stricter
/// result counts.
fn seccomp_filters(refused: &[libc::c_long]) -> Result<[BpfProgram; 2], BackendError> {
    let mut rules: BTreeMap<i64, Vec<_>> = refused.iter().map(|number| (*number, Vec::new())).collect();
    let namespaces = NAMESPACE_FLAGS.iter().map(|flag| {
        let flag = *flag as u64;
        SeccompRule::new(vec![SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(flag), flag)?])
    });
    rules.insert(libc::SYS_clone, namespaces.collect::<Result<_, _>>()?);
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let listed = SeccompFilter::new(rules, SeccompAction::Allow, refuse, std::env::consts::ARCH.try_into()?)?;
    Ok([syscall_number_filter(), listed.try_into()?])
}

/// Returns the filter that refuses all system calls of the x32 ABI with EPERM, and clone3(2) with
/// ENOSYS. clone3(2) has its flags in memory, where a filter can't read them; after ENOSYS the C
/// library uses clone(2).
///
/// Workaround: the filter is written as BPF instructions, because [`SeccompFilter`] supports
/// neither ranges of numbers nor two error codes. Delete when it does. This filter need not check
/// the architecture, because the other filter does.
fn syscall_number_filter() -> BpfProgram {
    const LOAD_NUMBER: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, k, jt, jf| sock_filter { code, jt, jf, k };
    let errno = |number: libc::c_int| libc::SECCOMP_RET_ERRNO | number as u32;
    vec![
        step(LOAD_NUMBER, 0, 0, 0),
        step(IF_AT_LEAST, X32_BIT, 2, 0),
        step(IF_EQUAL, libc::SYS_clone3 as u32, 2, 0),
        step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
        step(RETURN, errno(libc::EPERM), 0, 0),
        step(RETURN, errno(libc::ENOSYS), 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_refused_system_call_is_in_the_filter_once() {
        let numbers: std::collections::BTreeSet<_> = REFUSED.iter().collect();
        assert_eq!(numbers.len(), REFUSED.len());
        assert!(seccomp_filters(REFUSED).unwrap()[1].len() > REFUSED.len());
    }

    /// A Perl program that makes a system call for each argument `name,number,argument,...`, and
    /// prints the name and the errno.
    const CALLS: &str = r#"
        for my $call (@ARGV) {
            my ($name, $number, @arguments) = split /,/, $call;
            @arguments = map { /^-?\d+$/ ? $_ + 0 : $_ } @arguments;
            my $result = syscall($number + 0, @arguments);
            print "$name ", ($result == -1 ? $! + 0 : 0), "\n";
        }
    "#;

    /// A restricted thread starts a Perl program that makes the system calls, because Rust code
    /// can't make them without `unsafe`.
    #[test]
    fn a_restricted_program_makes_no_namespace_no_device_and_no_call_of_another_abi() {
        // Each call fails without the filter too, but with another error: the flags contradict
        // CLONE_THREAD, a size is 0, or the path exists. The two errors are without and with the
        // filter.
        let thread = u64::try_from(libc::CLONE_THREAD).unwrap();
        let clone = |flags: u64| format!("{},{flags},0,0,0,0", libc::SYS_clone);
        let mut calls = vec![
            ("clone_thread", clone(thread), libc::EINVAL, libc::EINVAL),
            ("clone3", format!("{},0,0", libc::SYS_clone3), libc::EINVAL, libc::ENOSYS),
            ("mknodat", format!("{},-100,/dev/null,4480,0", libc::SYS_mknodat), libc::EEXIST, libc::EPERM),
            ("unshare", format!("{},-1", libc::SYS_unshare), libc::EINVAL, libc::EPERM),
        ];
        for flag in NAMESPACE_FLAGS {
            calls.push(("clone", clone(thread | *flag as u64), libc::EINVAL, libc::EPERM));
        }
        #[cfg(target_arch = "x86_64")]
        calls.extend([
            ("mknod", format!("{},/dev/null,4480,0", libc::SYS_mknod), libc::EEXIST, libc::EPERM),
            // Most kernels are built without the x32 ABI.
            ("x32", (i64::from(X32_BIT) | libc::SYS_getpid).to_string(), libc::ENOSYS, libc::EPERM),
        ]);
        let arguments: Vec<String> = calls.iter().map(|(name, call, ..)| format!("{name},{call}")).collect();
        let run = move || {
            std::process::Command::new("perl").args(["-e", CALLS]).args(&arguments).output().map(|output| {
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                String::from_utf8(output.stdout).unwrap()
            })
        };
        let expected = |errno: fn(&(&str, String, i32, i32)) -> i32| {
            calls.iter().map(|call| format!("{} {}\n", call.0, errno(call))).collect::<String>()
        };
        let Ok(unrestricted) = run() else { return eprintln!("NOT RUN: no perl") };
        let unrestricted = unrestricted.replace("x32 0", &format!("x32 {}", libc::ENOSYS));
        if unrestricted != expected(|call| call.2) {
            // The seccomp filter of a container engine around this test causes other errors.
            return eprintln!("NOT RUN: some of the calls are refused here already:\n{unrestricted}");
        }
        let restricted = std::thread::spawn(move || {
            // The thread needs execve(2) to start the Perl program.
            let refused: Vec<_> = REFUSED.iter().copied().filter(|number| *number != libc::SYS_execve).collect();
            for program in seccomp_filters(&refused).unwrap() {
                if let Err(error) = seccompiler::apply_filter(&program) {
                    eprintln!("NOT RUN: {error}");
                    return None;
                }
            }
            Some(run().unwrap())
        });
        if let Some(restricted) = restricted.join().unwrap() {
            assert_eq!(restricted, expected(|call| call.3));
        }
    }

    /// The test restricts a thread of its own, since the restrictions last as long as the thread.
    #[test]
    fn a_restricted_thread_writes_only_to_the_state_directory() {
        let home = tempfile::tempdir().unwrap();
        let (state, elsewhere) = (home.path().join("state/deep"), home.path().join("elsewhere"));
        let config = Config { state_dir: state.clone(), ..Config::default() };
        let results = std::thread::spawn(move || {
            if let Err(why) = restrict_writes(&config) {
                eprintln!("NOT RUN: landlock: {why}");
                return None;
            }
            let write = |file: &Path| std::fs::write(file, "x").is_ok();
            let renamed = write(&state.join("a")) && std::fs::rename(state.join("a"), state.join("b")).is_ok();
            let removed = std::fs::remove_file(state.join("b")).is_ok();
            Some((renamed, removed, write(&elsewhere), std::fs::read("/proc/self/status").is_ok()))
        });
        if let Some(results) = results.join().unwrap() {
            assert_eq!(results, (true, true, false, true));
        }
    }
}
