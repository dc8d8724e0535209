//! Gives up what the sidecar never needs: seccomp refuses system calls, Landlock refuses writes to files elsewhere.
//!
//! Both hold for the rest of the process. Reading stays possible everywhere, since a reload may
//! name other files, and mounted secrets are replaced by symbolic links to new directories.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;

use landlock::{ABI, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus};
use nix::libc;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter_all_threads};
use tracing::{info, warn};

use super::error::Error;
use crate::config::{Config, Sandbox};

/// The newest version of Landlock whose kinds of access are used: those that write, truncate,
/// create, rename and remove.
const LANDLOCK: ABI = ABI::V3;

/// System calls that fail with EPERM. A list of what is permitted would break when a library or the
/// C library changes; what is here, no version of them needs.
const REFUSED: &[libc::c_long] = &[
    // Programs.
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
    // Interfaces through which kernels were attacked often.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_fanotify_init,
];

/// Applies what `config.sandbox` asks for. Must be called before the threads that serve clients
/// start, since Landlock is inherited by later threads only.
///
/// # Errors
/// The sandbox is required, and this kernel or container does not permit it.
pub(super) fn apply(config: &Config) -> Result<(), Error> {
    if config.sandbox == Sandbox::Off {
        return Ok(());
    }
    // Landlock first: seccomp could come to refuse its system calls too.
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
            info!(landlock, seccomp, missing, "restricted this process as far as the kernel and the container permit")
        }
    }
    Ok(())
}

/// Refuses this thread, and those that it starts, to write anywhere but beneath the state
/// directory, and the gateway's, where loopgate may create the gateway's identity.
fn restrict_writes(config: &Config) -> Result<(), String> {
    // A rule needs a directory. If there can be none, the certificates report it.
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
                    warn!(option, %path, %error, "can't open the directory; loopgate can't write there before it is \
                                                  restarted (sandbox)");
                }
            }
        }
        rules.restrict_self()
    };
    match restrict() {
        Ok(done) if done.ruleset == RulesetStatus::FullyEnforced => Ok(()),
        Ok(done) if done.ruleset == RulesetStatus::PartiallyEnforced => {
            Err("this kernel knows only a part of it".into())
        }
        Ok(_) => Err("not in this kernel, or not permitted in this container".into()),
        Err(error) => Err(text(&error)),
    }
}

/// Refuses the system calls in [`REFUSED`] to all threads.
fn refuse_system_calls() -> Result<(), String> {
    let text = |error: seccompiler::Error| crate::error_chain::error_chain(&error);
    let program = program().map_err(|error| error.to_string())?;
    apply_filter_all_threads(&program).map_err(text)
}

fn program() -> Result<BpfProgram, seccompiler::BackendError> {
    let rules: BTreeMap<i64, Vec<_>> = REFUSED.iter().map(|number| (*number, Vec::new())).collect();
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, refuse, std::env::consts::ARCH.try_into()?)?.try_into()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_refused_system_call_is_in_the_filter_once() {
        let numbers: std::collections::BTreeSet<_> = REFUSED.iter().collect();
        assert_eq!(numbers.len(), REFUSED.len());
        assert!(program().unwrap().len() > REFUSED.len());
    }

    /// On threads of their own, since restrictions last as long as a thread.
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
