//! A container that is a process of the host, with mounts and limits of its own if it has any.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Container, Pod, identify, pipe, spawn_unmasked};
use crate::runtime::ContainerConfig;
use crate::shim::files;
use crate::shim::proc_table::MARK;
use crate::stage::{Namespace, Spec};

impl Container {
    /// Starts the process in its own group, with nothing of ours but two pipes. `Err` reads as runc's message.
    pub(super) fn spawn(&mut self, pod: &Pod<'_>, config: &ContainerConfig) -> Result<(), String> {
        let program = config.argv.first().ok_or("no command specified")?;
        let own_view = !config.mounts.is_empty();
        if !own_view {
            check_directory(&config.working_dir)?;
        }
        let program_path = match find_program(program, config) {
            // It may come with a volume.
            Err(_) if own_view && program.contains('/') => Path::new(&config.working_dir).join(program),
            found => found?,
        };
        let (out, out_end) = pipe()?;
        let (err, err_end) = pipe()?;
        let mut command = match self.stage(pod, config, &program_path)? {
            Some(spec) => {
                let mut command = Command::new("/proc/self/exe");
                command.args(spec.words()?);
                command
            }
            None => {
                let mut command = Command::new(&program_path);
                command.arg0(program).args(&config.argv[1..]).current_dir(&config.working_dir);
                if let Some(user) = config.run_as_user {
                    command.uid(user);
                }
                if let Some(group) = config.run_as_group {
                    command.gid(group);
                }
                command
            }
        };
        let mark = format!("{}/{}/{}", pod.sandbox.uid, config.name, config.attempt);
        command.env_clear().envs(&config.env).env(MARK, mark).process_group(0);
        command.stdin(Stdio::null()).stdout(out_end).stderr(err_end);
        let pid = spawn_unmasked(&mut command).map_err(|error| format!("exec: {program:?}: {error}"))?;
        self.record.process = Some(identify(pid));
        self.pipes = [Some(out), Some(err)];
        Ok(())
    }

    /// What has to be set up before the program; `None`: nothing that a plain start could not do.
    fn stage(&mut self, pod: &Pod<'_>, config: &ContainerConfig, program: &Path) -> Result<Option<Spec>, String> {
        let cgroups = pod.setup.cgroups.as_ref().filter(|_| !config.resources.is_unlimited());
        let plain = config.mounts.is_empty()
            && config.supplemental_groups.is_empty()
            && !config.security.no_new_privileges
            && cgroups.is_none();
        if plain {
            return Ok(None);
        }
        let mut joined: Vec<PathBuf> = Vec::new();
        if let Some(cgroups) = cgroups {
            let cgroup = cgroups.child(&files::container_id(&config.name, config.attempt));
            self.leavings.cgroup = Some(cgroup.clone());
            joined = cgroup.limit(&config.resources).map_err(|error| format!("limits: {error}"))?;
        }
        let namespace = match (config.mounts.is_empty(), pod.setup.rootless) {
            (true, _) => Namespace::None,
            (false, false) => Namespace::Mount,
            (false, true) => Namespace::UserAndMount,
        };
        let complaint = pod.dir.join(&config.name).join(format!("{}.complaint", config.attempt));
        let made = files::made_path(pod.dir, &config.name, config.attempt);
        self.leavings.made = (!config.mounts.is_empty()).then(|| made.clone());
        self.complaint = Some(complaint.clone());
        Ok(Some(Spec {
            cgroups: joined,
            namespace,
            mounts: config.mounts.clone(),
            made: Some(made),
            user: config.run_as_user,
            group: config.run_as_group,
            supplemental_groups: config.supplemental_groups.clone(),
            no_new_privileges: config.security.no_new_privileges,
            working_dir: config.working_dir.clone(),
            program: program.to_owned(),
            argv: config.argv.clone(),
            complaint: Some(complaint),
            ..Spec::default()
        }))
    }
}

fn check_directory(path: &str) -> Result<(), String> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(format!("chdir to cwd ({path:?}) failed: not a directory")),
        Err(error) => Err(format!("chdir to cwd ({path:?}) failed: {error}")),
    }
}

/// Looks a program up as `execvp` would, in the container's own `PATH`, to tell a wrong name from a wrong directory.
fn find_program(program: &str, config: &ContainerConfig) -> Result<PathBuf, String> {
    let base = Path::new(&config.working_dir);
    if program.contains('/') {
        let path = base.join(program);
        return match std::fs::metadata(&path) {
            Ok(_) => Ok(path),
            Err(error) => Err(format!("exec: {program:?}: stat {}: {error}", path.display())),
        };
    }
    let path = config.env.get("PATH").map_or("", String::as_str);
    let candidates = path.split(':').filter(|folder| !folder.is_empty()).map(|folder| base.join(folder).join(program));
    candidates
        .into_iter()
        .find(|candidate| is_executable(candidate))
        .ok_or_else(|| format!("exec: {program:?}: executable file not found in $PATH"))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
