//! Doors: sockets that follow the addresses of this namespace, and the limits at them.
