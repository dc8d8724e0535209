//! The front desk: `/healthz`, `/readyz`, `/metrics` and `/status`, from snapshots that other rooms publish; it changes nothing.
