//! Logs, crypto provider, command line, exit status; nothing else.

fn main() {}
