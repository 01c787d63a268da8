//! Debian's programs under load, as long tests.
//!
//! Like those of `boot.rs` they need Debian's packages and do not run by default:
//! `cargo test --release -p plinth --test stress -- --ignored`.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use plinth_guest::{DebianSpec, GuestArch, Silent, cached_debian, test_guest};

/// From power-on to power-off, on a host that has other work too.
const LIMIT: Duration = Duration::from_secs(400);

/// What is run, each as often as the number says: arithmetic that is checked, memory patterns, processes,
/// mappings and futexes.
const STRESSORS: [(&str, u32); 5] = [("cpu", 4), ("vm", 2), ("fork", 2), ("mmap", 2), ("futex", 2)];

/// `stress-ng --verify` checks what its stressors computed and stored.
#[test]
#[ignore = "downloads Debian, takes minutes"]
fn a_minute_of_stress_finds_no_error() {
    let guest = test_guest(GuestArch::Riscv64, "trixie", None, &Silent).expect("the test guest can be made");
    let mut spec = DebianSpec::new(GuestArch::Riscv64);
    spec.packages.push("stress-ng".into());
    let debian = cached_debian(&spec, &Silent).expect("a Debian with stress-ng can be made");

    let wanted: Vec<String> = STRESSORS.iter().map(|(name, count)| format!("--{name} {count}")).collect();
    // The packages need no setting up to be run: their files are there.
    let commands = format!(
        "mount -t ext4 -o ro,noload /dev/vda /mnt && mount -t proc proc /mnt/proc && \
         mount -t sysfs sys /mnt/sys && mount -t devtmpfs dev /mnt/dev && mount -t tmpfs tmp /mnt/tmp && \
         chroot /mnt /usr/bin/stress-ng --verify --timeout 60 --temp-path /tmp --vm-bytes 64M \
         --mmap-bytes 64M --metrics-brief {}",
        wanted.join(" ")
    );
    let dir = tempfile::tempdir().unwrap();
    let (out, err) = (dir.path().join("out"), dir.path().join("err"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_plinth"))
        .args(["run", "--accel", "engine", "--cpus", "4", "-m", "1G", "--net", "none"])
        .arg("--kernel")
        .arg(&guest.kernel)
        .arg("--initrd")
        .arg(&guest.initrd)
        .arg("--append")
        .arg(format!("{} plinth.run=\"{commands}\"", guest.cmdline))
        .arg("--disk")
        .arg(format!("path={},readonly=on", debian.disk.display()))
        .stdin(Stdio::null())
        .stdout(File::create(&out).unwrap())
        .stderr(File::create(&err).unwrap())
        .spawn()
        .expect("plinth starts");
    let end = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if Instant::now() > end {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let text = String::from_utf8_lossy(&std::fs::read(&out).unwrap()).into_owned();
    let errors = String::from_utf8_lossy(&std::fs::read(&err).unwrap()).into_owned();
    println!("{text}");
    assert!(status.is_some_and(|s| s.success()), "{status:?}:\n{text}\n{errors}");
    assert!(text.contains("PLINTH-RUN-EXIT 0"), "{text}");
    let done = text.lines().find(|l| l.contains("passed: ")).unwrap_or_else(|| panic!("{text}"));
    for (name, count) in STRESSORS {
        assert!(done.contains(&format!("{name} ({count})")), "{name} has not passed: {text}");
    }
    for bad in ["fail: ", "Oops", "BUG:", "panic", "stall", "Call Trace"] {
        assert!(!text.contains(bad), "{text}");
    }
}
