//! Which lane a connection is on and what each lane may say to the gateway: pure functions, no I/O and no clock.
