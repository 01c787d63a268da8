//! A real Debian kernel, and a real Debian, from power-on to power-off.
//!
//! The guests come from Debian's mirror at the first run and from the cache later, so these tests do not run
//! by default: `cargo test --release -p plinth --test boot -- --ignored --test-threads 1`.

#[path = "boot/firmware.rs"]
mod firmware;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use plinth_guest::{GuestArch, Silent, TestGuest, test_guest};

/// From power-on to power-off, on a host that has other work too.
const LIMIT: Duration = Duration::from_secs(240);
/// The same where packages are set up first, or everything is interpreted.
const LONG_LIMIT: Duration = Duration::from_secs(600);
/// What the host's server answers.
const GREETING: &str = "the-host-greets-its-guest";
const MIB: usize = 1 << 20;

fn guest() -> &'static TestGuest {
    static GUEST: OnceLock<TestGuest> = OnceLock::new();
    GUEST.get_or_init(|| {
        test_guest(GuestArch::Riscv64, "trixie", None, &Silent).expect("the test guest can be made")
    })
}

#[derive(Default)]
struct Console {
    text: Mutex<(String, bool)>,
    changed: Condvar,
}

impl Console {
    fn lock(&self) -> MutexGuard<'_, (String, bool)> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running `plinth run`. It is killed when it is dropped.
struct Session {
    child: Child,
    input: Option<ChildStdin>,
    console: Arc<Console>,
    /// What has been waited for ends here.
    seen: usize,
    deadline: Instant,
}

impl Session {
    fn start(args: &[&str], limit: Duration) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_plinth"))
            .arg("run")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("plinth starts");
        let console = Arc::new(Console::default());
        let (mut output, shared) = (child.stdout.take().unwrap(), Arc::clone(&console));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n) = output.read(&mut bytes)
                && n != 0
            {
                shared.lock().0.push_str(&String::from_utf8_lossy(&bytes[..n]));
                shared.changed.notify_all();
            }
            shared.lock().1 = true;
            shared.changed.notify_all();
        });
        Self { input: child.stdin.take(), child, console, seen: 0, deadline: Instant::now() + limit }
    }

    /// Waits until the guest has printed `text` after what was waited for before.
    #[track_caller]
    fn wait_for(&mut self, text: &str) {
        let mut console = self.console.lock();
        loop {
            if let Some(at) = console.0[self.seen..].find(text) {
                self.seen += at + text.len();
                return;
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero() && !console.1, "the guest did not print '{text}':\n{}", console.0);
            console = self.console.changed.wait_timeout(console, left).unwrap().0;
        }
    }

    fn send(&mut self, line: &str) {
        let input = self.input.as_mut().unwrap();
        input.write_all(line.as_bytes()).unwrap();
        input.write_all(b"\n").unwrap();
    }

    /// Waits until the process has ended well; returns the console's text.
    #[track_caller]
    fn finish(mut self) -> String {
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                let text = self.console.lock().0.clone();
                assert!(status.success(), "{status}:\n{text}");
                return text;
            }
            if Instant::now() > self.deadline {
                panic!("the guest did not power off:\n{}", self.console.lock().0);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Both fail if it has ended, which is well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Answers every HTTP request on a port of the host's loopback with [`GREETING`]; returns the port.
fn serve_greeting() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = Vec::new();
            let mut bytes = [0; 512];
            while !request.windows(4).any(|w| w == b"\r\n\r\n") {
                match stream.read(&mut bytes) {
                    Ok(n) if n != 0 => request.extend_from_slice(&bytes[..n]),
                    _ => break,
                }
            }
            let length = GREETING.len() + 1;
            let answer = format!("HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n{GREETING}\n");
            // A guest that has gone away is not this thread's concern.
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    port
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A disk whose first MiB is a pattern; the second is empty.
fn patterned_disk(path: &Path) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let pattern: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (state >> 56) as u8
    })
    .take(MIB)
    .collect();
    let mut disk = pattern.clone();
    disk.resize(2 * MIB, 0);
    std::fs::write(path, disk).unwrap();
    pattern
}

/// Boots the test guest, which looks at its CPUs, disk, network, clock and random numbers and powers off;
/// returns the console's text.
fn kernel_boots(accel: &str, cpus: u32, bus: &str, options: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk.raw");
    let pattern = patterned_disk(&disk);
    let port = serve_greeting();
    let guest = guest();
    let commands = format!(
        "echo CPUS-$(nproc)- TIME-$(date +%s)- RNG-$(head -c 64 /dev/hwrng | wc -c)-; \
         dd if=/dev/vda of=/dev/vda bs=64k count=16 seek=16 conv=fsync && \
         udhcpc -i eth0 -n -q && wget -q -O - http://10.0.2.2:{port}/"
    );
    let append = format!("{} plinth.run=\"{commands}\"", guest.cmdline);
    let disk_option = format!("path={},format=raw,bus={bus}", disk.display());
    let cpus_text = cpus.to_string();
    let limit = if accel == "interp" { LONG_LIMIT } else { LIMIT };
    let mut args = vec![
        "--accel",
        accel,
        "--cpus",
        &cpus_text,
        "--kernel",
        guest.kernel.to_str().unwrap(),
        "--initrd",
        guest.initrd.to_str().unwrap(),
        "--append",
        &append,
        "--disk",
        &disk_option,
    ];
    args.extend(options);
    let mut session = Session::start(&args, limit);
    session.wait_for("PLINTH-INIT-OK");
    session.wait_for(&format!("CPUS-{cpus}-"));
    session.wait_for(GREETING);
    session.wait_for("PLINTH-RUN-EXIT 0");
    let text = session.finish();

    assert!(text.contains("RNG-64-"), "{text}");
    let time = text.split("TIME-").nth(1).and_then(|t| t.split('-').next()).unwrap();
    let time: u64 = time.parse().unwrap();
    assert!(seconds_now().abs_diff(time) < 3600, "the guest's clock says {time}");
    let after = std::fs::read(&disk).unwrap();
    assert!(after[..MIB] == pattern, "the guest changed what it only read");
    assert!(after[MIB..] == pattern, "the guest's copy is not what the disk has");
    text
}

#[test]
#[ignore = "downloads a Debian kernel"]
fn a_debian_kernel_runs_on_the_translator() {
    kernel_boots("engine", 1, "virtio-pci", &[]);
}

#[test]
#[ignore = "downloads a Debian kernel"]
fn a_debian_kernel_runs_on_the_translator_with_4_cpus() {
    kernel_boots("engine", 4, "virtio-mmio", &[]);
}

#[test]
#[ignore = "downloads a Debian kernel"]
fn a_debian_kernel_runs_on_the_interpreter() {
    kernel_boots("interp", 1, "virtio-mmio", &[]);
}

#[test]
#[ignore = "downloads a Debian kernel"]
fn a_debian_kernel_runs_on_the_interpreter_with_4_cpus() {
    kernel_boots("interp", 4, "virtio-pci", &[]);
}

#[test]
#[ignore = "downloads a Debian kernel"]
fn a_reset_under_no_reboot_ends_the_run() {
    let guest = guest();
    let append = format!("{} plinth.run=\"reboot -f\"", guest.cmdline);
    let (kernel, initrd) = (guest.kernel.to_str().unwrap(), guest.initrd.to_str().unwrap());
    let args = ["--no-reboot", "--kernel", kernel, "--initrd", initrd, "--append", &append, "--net", "none"];
    let text = Session::start(&args, LIMIT).finish();
    assert_eq!(text.matches("PLINTH-INIT-OK").count(), 1, "{text}");
}

/// Logs in to the guest that `plinth run debian` starts, looks at its disk and network, and powers off.
fn debian_boots(accel: &str, cpus: u32, options: &[&str], limit: Duration) {
    let port = serve_greeting();
    let cpus_text = cpus.to_string();
    let mut args = vec!["debian", "--accel", accel, "--cpus", &cpus_text];
    args.extend(options);
    let mut session = Session::start(&args, limit);
    session.wait_for("debian login: ");
    session.send("root");
    session.wait_for("root@debian:~#");
    // The console shows the commands too, so what is waited for is never part of one.
    session.send("echo CPUS-$(nproc)- ROOT-$(findmnt -n -o SOURCE /)-");
    session.wait_for(&format!("CPUS-{cpus}- ROOT-/dev/vda-"));
    session.send(&format!("curl -s --retry 30 --retry-delay 1 --retry-all-errors http://10.0.2.2:{port}/"));
    session.wait_for(GREETING);
    session.send("head -c 4M /dev/urandom | tee f | sha256sum > sum; sync");
    session.send("echo 3 > /proc/sys/vm/drop_caches; sha256sum < f | cmp - sum && echo SAME-$((6 * 7))-");
    session.wait_for("SAME-42-");
    session.send("rm f sum; echo FAILED-$(systemctl --failed --quiet --no-legend | wc -l)-");
    session.wait_for("FAILED-0-");
    session.send("poweroff");
    session.finish();
}

/// The first boot sets packages up and keeps that; the others leave the disk as it is.
#[test]
#[ignore = "downloads Debian"]
fn debian_boots_to_a_login_and_powers_off() {
    debian_boots("engine", 1, &[], LONG_LIMIT);
    debian_boots("engine", 4, &["--snapshot"], LIMIT);
    debian_boots("interp", 1, &["--snapshot"], LONG_LIMIT);
    debian_boots("interp", 4, &["--snapshot"], LONG_LIMIT);
}
