//! The `loopgate` command.

use std::process::ExitCode;

/// jemalloc returns memory to the system after a burst of connections, and its caches are per
/// thread.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    loopgate::cli::main()
}
