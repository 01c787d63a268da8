//! What is particular to the PCI transport.

use plinth_virtio::Rng;

use crate::driver::{F_VERSION_1, Guest, Via};

#[test]
fn the_bar_can_be_reached_through_configuration_space() {
    let guest = Guest::new(Via::PciIntx, Guest::ram(), Box::new(Rng::new()));
    assert!(guest.negotiate(F_VERSION_1));
    assert_eq!(guest.read_through_config(0x12, 2), 1, "one queue");
    assert_eq!(guest.read_through_config(0x14, 1), 11, "the status");
    guest.write_through_config(0x16, 2, 9);
    assert_eq!(guest.read_through_config(0x16, 2), 9);
    assert_eq!(guest.read_through_config(0x18, 2), 0, "a queue that does not exist has no size");
    guest.write_through_config(0x14, 1, 0);
    assert_eq!(guest.status(), 0);
    for (offset, len) in [(0x13, 2), (0x14, 3), (0x14, 8), (0x8000, 4), (0xffff_fffc, 4)] {
        assert_eq!(guest.read_through_config(offset, len), 0, "{offset:#x} {len}");
    }
}
