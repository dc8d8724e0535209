//! From exec to the first answer, and at rest.

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
    let mut measures =
        vec![("ms to the first answer", median(times)), ("CPU ms to it", median(costs)), ("PSS KiB at rest", median(memory))];
    // The bare loop's file holds this whole program.
    if let Some(file) = around.programs.file(peer).filter(|_| peer != Peer::NullTls) {
        measures.push(("MiB of program and libraries", size(&file)? as f64 / f64::from(1 << 20)));
    }
    Ok(Sample { measures, failed: 0 })
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Bytes of `program` and of what ldd(1) says that it loads.
fn size(program: &Path) -> io::Result<u64> {
    let output = Command::new("ldd").arg(program).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let libraries = said.split_whitespace().filter(|word| word.starts_with('/')).filter_map(|path| fs::canonicalize(path).ok());
    let files: BTreeSet<PathBuf> = libraries.chain([fs::canonicalize(program)?]).collect();
    Ok(files.iter().filter_map(|file| fs::metadata(file).ok()).map(|file| file.len()).sum())
}
