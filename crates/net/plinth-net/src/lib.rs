//! Packet endpoints: the user network.
