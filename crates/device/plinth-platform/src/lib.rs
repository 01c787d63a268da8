//! Platform devices: UARTs, interrupt controllers, clocks, reset.
