//! The binary: parse, dispatch, exit status; everything else is the library's.

use std::process::ExitCode;

/// Gives memory back after a burst, and has no lock that workers would meet at.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    loopgate::cli::main()
}
