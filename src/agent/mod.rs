//! The agent's side: a loopback listener whose connections travel by mutual TLS to the sidecar.
