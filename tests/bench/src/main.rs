//! Measures what a unit of work costs loopgate and other proxies. `tests/bench/run` runs this
//! program.

mod backend;
mod client;
mod compare;
mod goals;
mod load;
mod null_tls;
mod peer;
mod process;
mod results;
mod scenario;
mod stated;
mod tables;
mod tls;
mod websocket;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::net::TcpListener;
use tokio::task::LocalSet;

use compare::Compare;
use tables::Tables;

#[derive(Parser)]
#[command(about = "Compares loopgate with other proxies: CPU and memory per unit of work")]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Measure.
    Compare(Compare),
    /// Print the tables of the documents from the results of `compare --json`, or write them into
    /// the documents.
    Tables(Tables),
    /// Run the backend, to which every side forwards.
    Backend { listen: SocketAddr },
    /// Run the bare copy loop.
    NullTls { listen: SocketAddr, backend: SocketAddr, chain: PathBuf, key: PathBuf, workers: usize },
}

fn main() -> ExitCode {
    use tokio::runtime::Builder;
    let done = match Arguments::parse().role {
        Role::Compare(compare) => run(&mut Builder::new_current_thread(), LocalSet::new().run_until(compare.run())),
        Role::Tables(tables) => tables.run(),
        Role::Backend { listen } => {
            let serve = async move { backend::serve(TcpListener::bind(listen).await?).await };
            run(&mut Builder::new_current_thread(), serve)
        }
        Role::NullTls { listen, backend, chain, key, workers } => {
            let serve = async move { null_tls::serve(TcpListener::bind(listen).await?, backend, &chain, &key).await };
            run(Builder::new_multi_thread().worker_threads(workers), serve)
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(runtime: &mut tokio::runtime::Builder, role: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    runtime.enable_all().build()?.block_on(role)
}
