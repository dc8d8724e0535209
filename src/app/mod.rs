//! The only place where wires cross: it builds the sidecar out of the other rooms, binds first and then runs.
