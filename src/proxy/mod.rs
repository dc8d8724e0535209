//! HTTP between a downstream connection and the gateway.
