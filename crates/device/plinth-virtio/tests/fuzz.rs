//! The fuzz entry points on seeded random input: what a fuzzer would start from.

struct Random(u64);

impl Random {
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len)
            .map(|_| {
                self.0 ^= self.0 << 13;
                self.0 ^= self.0 >> 7;
                self.0 ^= self.0 << 17;
                (self.0 >> 32) as u8
            })
            .collect()
    }
}

fn run(seed: u64, target: fn(&[u8])) {
    let mut random = Random(seed);
    for round in 0..3000 {
        target(&random.bytes(500 + round));
    }
}

#[test]
fn virtqueue() {
    run(1, plinth_virtio::fuzz_virtqueue);
}

#[test]
fn blk() {
    run(2, plinth_virtio::fuzz_blk);
}

#[test]
fn net() {
    run(3, plinth_virtio::fuzz_net);
}

#[test]
fn transport() {
    run(4, plinth_virtio::fuzz_transport);
}
