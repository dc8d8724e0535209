//! `loopgate demo`: a gateway, the sidecar before it and a client on each lane, in one process and without Docker.
