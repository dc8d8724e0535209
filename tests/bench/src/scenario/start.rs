//! The time from exec to the first answer, and the memory without traffic.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;

use super::Sample;
use crate::peer::{Peer, Surroundings};

const STARTS: usize = 5;
const REST: Duration = Duration::from_secs(1);

pub(super) async fn measure(peer: Peer, around: &Surroundings, config: &Arc<ClientConfig>) -> io::Result<Sample> {
    let (mut times, mut costs, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let running = around.start(peer, config).await?;
        times.push(running.start.as_secs_f64() * 1e3);
        costs.push(running.cpu().as_secs_f64() * 1e3);
        tokio::time::sleep(REST).await;
        if let Some(tree) = &running.tree {
            memory.push(tree.memory()? as f64 / 1024.0);
        }
    }
    let mut measures = vec![
        ("ms to the first answer", median(times)),
        ("CPU ms to it", median(costs)),
        ("PSS KiB at rest", median(memory)),
    ];
    // The bare loop is part of this program, so the size of its file says nothing.
    if let Some(file) = around.programs.file(peer).filter(|_| peer != Peer::NullTls) {
        measures.push(("MiB of program and libraries", size(&file)? as f64 / f64::from(1 << 20)));
    }
    Ok(Sample::new(measures, 0))
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Returns the size of `program` and of the libraries that it loads, in bytes.
fn size(program: &Path) -> io::Result<u64> {
    let (program, output) = match packaged(program) {
        Some((real, mut loader)) => (real, loader.output()?),
        None => (program.to_owned(), Command::new("ldd").arg(program).output()?),
    };
    let printed = String::from_utf8_lossy(&output.stdout);
    let libraries =
        printed.split_whitespace().filter(|word| word.starts_with('/')).filter_map(|path| fs::canonicalize(path).ok());
    let files: BTreeSet<PathBuf> = libraries.chain([fs::canonicalize(program)?]).collect();
    Ok(files.iter().filter_map(|file| fs::metadata(file).ok()).map(|file| file.len()).sum())
}

/// Returns the program that `script`, a file of tests/setup/peers.sh, starts, and the command that
/// lists its libraries; `None` for any other program.
fn packaged(script: &Path) -> Option<(PathBuf, Command)> {
    let tree = script.parent()?.parent()?;
    let (real, loader) = (tree.join("usr/sbin").join(script.file_name()?), tree.join("usr/lib64/ld-linux-x86-64.so.2"));
    let mut command = Command::new(&loader);
    command.arg("--library-path").arg(tree.join("usr/lib/x86_64-linux-gnu")).arg("--list").arg(&real);
    (real != script && real.is_file() && loader.is_file()).then_some((real, command))
}
