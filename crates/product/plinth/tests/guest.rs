//! Small programs as guests: what the command does from the first instruction to its exit code.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};

const ACCELERATORS: [&str; 2] = ["engine", "interp"];
const LIMIT: Duration = Duration::from_secs(60);

/// Prints "hi", powers off.
const HELLO: [u32; 13] = [
    0x1000_02b7, // lui   t0, 0x10000        UART
    0x0010_0e37, // lui   t3, 0x100          test device
    0x0680_0313, // li    t1, 'h'
    0x0062_8023, // sb    t1, 0(t0)
    0x0690_0313, // li    t1, 'i'
    0x0062_8023, // sb    t1, 0(t0)
    0x00a0_0313, // li    t1, '\n'
    0x0062_8023, // sb    t1, 0(t0)
    0x0000_5337, // lui   t1, 5
    0x5553_031b, // addiw t1, t1, 0x555
    0x006e_2023, // sw    t1, 0(t3)
    0x1050_0073, // wfi
    0xffdf_f06f, // j     -4
];

/// Counts its boots in RAM: resets twice, then powers off.
const REBOOT: [u32; 17] = [
    0x0010_0293, // li    t0, 1
    0x01f2_9293, // slli  t0, t0, 31
    0x0080_03b7, // lui   t2, 0x800
    0x0072_82b3, // add   t0, t0, t2
    0x0002_a303, // lw    t1, 0(t0)
    0x0013_0313, // addi  t1, t1, 1
    0x0062_a023, // sw    t1, 0(t0)
    0x0010_0e37, // lui   t3, 0x100
    0x0030_0e93, // li    t4, 3
    0x0000_7f37, // lui   t5, 7
    0x777f_0f1b, // addiw t5, t5, 0x777
    0x01d3_4663, // blt   t1, t4, +12
    0x0000_5f37, // lui   t5, 5
    0x555f_0f1b, // addiw t5, t5, 0x555
    0x01ee_2023, // sw    t5, 0(t3)
    0x1050_0073, // wfi
    0xffdf_f06f, // j     -4
];

/// Reports failure 7.
const FAIL: [u32; 6] = [
    0x0010_0e37, // lui   t3, 0x100
    0x0007_3337, // lui   t1, 0x73
    0x3333_031b, // addiw t1, t1, 0x333
    0x006e_2023, // sw    t1, 0(t3)
    0x1050_0073, // wfi
    0xffdf_f06f, // j     -4
];

/// Prints what it reads; powers off after 'q'.
const ECHO: [u32; 14] = [
    0x1000_02b7, // lui   t0, 0x10000
    0x0052_c303, // lbu   t1, 5(t0)          LSR
    0x0013_7313, // andi  t1, t1, 1
    0xfe03_0ce3, // beqz  t1, -8
    0x0002_c303, // lbu   t1, 0(t0)
    0x0062_8023, // sb    t1, 0(t0)
    0x0710_0393, // li    t2, 'q'
    0xfe73_14e3, // bne   t1, t2, -24
    0x0010_0e37, // lui   t3, 0x100
    0x0000_5337, // lui   t1, 5
    0x5553_031b, // addiw t1, t1, 0x555
    0x006e_2023, // sw    t1, 0(t3)
    0x1050_0073, // wfi
    0xffdf_f06f, // j     -4
];

struct Guest {
    _dir: tempfile::TempDir,
    kernel: PathBuf,
}

impl Guest {
    /// A kernel image whose header jumps to the program behind it.
    fn new(program: &[u32]) -> Self {
        let mut image = vec![0; 64];
        image[..4].copy_from_slice(&0x0400_006fu32.to_le_bytes());
        image[8..16].copy_from_slice(&0x20_0000u64.to_le_bytes());
        image[56..60].copy_from_slice(b"RSC\x05");
        image.extend(program.iter().flat_map(|w| w.to_le_bytes()));
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("Image");
        std::fs::write(&kernel, image).unwrap();
        Self { _dir: dir, kernel }
    }

    fn command(&self, accel: &str, args: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_plinth"));
        c.arg("run").arg("--kernel").arg(&self.kernel).args(["--accel", accel, "-m", "32M"]).args(args);
        c.env_remove("PLINTH_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        c
    }
}

/// Waits for a process with a limit.
fn wait(mut child: Child) -> (ExitStatus, String, String) {
    let end = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > end {
            child.kill().unwrap();
            panic!("the guest did not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let (mut out, mut err) = (String::new(), String::new());
    child.stdout.as_mut().map(|o| o.read_to_string(&mut out).unwrap());
    child.stderr.as_mut().map(|e| e.read_to_string(&mut err).unwrap());
    (status, out, err)
}

#[test]
fn a_guest_prints_and_powers_off_quietly() {
    let guest = Guest::new(&HELLO);
    for accel in ACCELERATORS {
        let (status, out, err) = wait(guest.command(accel, &[]).spawn().unwrap());
        assert_eq!((status.code(), out.as_str(), err.as_str()), (Some(0), "hi\n", ""), "{accel}");
        let (status, out, _) = wait(guest.command(accel, &["-c", "3", "--serial", "none"]).spawn().unwrap());
        assert_eq!((status.code(), out.as_str()), (Some(0), ""), "{accel}");
    }
}

#[test]
fn a_guest_reboots_unless_it_must_not() {
    let guest = Guest::new(&REBOOT);
    for accel in ACCELERATORS {
        let (status, _, err) = wait(guest.command(accel, &["--output", "json"]).spawn().unwrap());
        assert_eq!((status.code(), err.contains("poweroff")), (Some(0), true), "{accel}: {err}");
        let args = ["--no-reboot", "--output", "json"];
        let (status, _, err) = wait(guest.command(accel, &args).spawn().unwrap());
        assert_eq!((status.code(), err.contains("\"reset\"")), (Some(0), true), "{accel}: {err}");
    }
}

#[test]
fn a_guest_that_crashes_has_its_own_code() {
    for accel in ACCELERATORS {
        let (status, _, err) = wait(Guest::new(&FAIL).command(accel, &[]).spawn().unwrap());
        assert_eq!(status.code(), Some(3), "{accel}: {err}");
        assert!(err.starts_with("error: the guest crashed: ") && err.contains("failure 7"), "{err}");
    }
}

#[test]
fn piped_input_reaches_the_guest_and_a_signal_ends_the_run() {
    let guest = Guest::new(&ECHO);
    for accel in ACCELERATORS {
        let mut child = guest.command(accel, &[]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"some text q").unwrap();
        let (status, out, err) = wait(child);
        assert_eq!((status.code(), out.as_str(), err.as_str()), (Some(0), "some text q", ""), "{accel}");
        assert_eq!(terminated(guest.command(accel, &[])), Some(128 + 15), "{accel}");
    }
}

/// Lets it run a while, sends SIGTERM, and gives its exit code.
fn terminated(mut command: Command) -> Option<i32> {
    let child = command.spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    wait(child).0.code()
}

#[test]
fn a_guest_that_only_traps_runs_until_it_is_stopped() {
    // Undefined instructions, and a trap vector of 0 where nothing is: an endless chain of faults.
    let guest = Guest::new(&[0; 4]);
    for accel in ACCELERATORS {
        assert_eq!(terminated(guest.command(accel, &["-c", "2"])), Some(128 + 15), "{accel}");
    }
}

/// What of a terminal's mode a raw mode changes.
fn modes(t: &Termios) -> (u32, u32, u32) {
    (t.local_modes.bits(), t.input_modes.bits(), t.output_modes.bits())
}

#[test]
fn the_terminal_is_raw_for_the_guest_and_as_before_after_it() {
    let guest = Guest::new(&ECHO);
    for (typed, code) in [("xyzq", 0), ("x\u{1d}", 0)] {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave: OwnedFd =
            File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap().into();
        let before = modes(&tcgetattr(&slave).unwrap());
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        let child = guest
            .command("interp", &["--name", "tiny"])
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio())
            .spawn();
        let child = child.unwrap();
        let end = Instant::now() + LIMIT;
        while tcgetattr(slave.as_fd()).unwrap().local_modes.contains(LocalModes::ICANON) {
            assert!(Instant::now() < end, "the terminal did not become raw");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut screen = File::from(master);
        screen.write_all(typed.as_bytes()).unwrap();
        assert_eq!(wait(child).0.code(), Some(code), "{typed:?}");
        assert_eq!(modes(&tcgetattr(&slave).unwrap()), before, "{typed:?}");
        let mut shown = vec![0; 4096];
        let n = screen.read(&mut shown).unwrap();
        let shown = String::from_utf8_lossy(&shown[..n]).into_owned();
        assert!(shown.contains("Connected to the console of tiny. Ctrl-]"), "{shown}");
        assert!(!shown.contains('\u{1d}'), "{shown}");
    }
}

/// The file has the form that `perf` reads, the guest's first instruction has a name in it, and every name
/// is of executable memory for which `perf` looks into that file.
#[test]
fn translated_code_has_names_for_perf() {
    let guest = Guest::new(&ECHO);
    let mut child = guest.command("engine", &["--perf-map"]).stdin(Stdio::piped()).spawn().unwrap();
    let (map, maps) = (format!("/tmp/perf-{}.map", child.id()), format!("/proc/{}/maps", child.id()));
    // Its answer says that the guest's loop has been translated.
    child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    let mut answer = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
    assert_eq!(answer, *b"x");
    let named = std::fs::read_to_string(&map).unwrap();
    let mapped = std::fs::read_to_string(&maps).unwrap();
    child.stdin.as_mut().unwrap().write_all(b"q").unwrap();
    let (status, _, err) = wait(child);
    std::fs::remove_file(&map).unwrap();
    assert!(status.success(), "{err}");

    let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let executable: Vec<(u64, u64)> = mapped
        .lines()
        .filter(|l| l.split(' ').nth(1).is_some_and(|rights| rights.contains('x')))
        // `perf` uses the file for anonymous memory; a shared one has this name.
        .filter(|l| l.ends_with("/dev/zero (deleted)"))
        .map(|l| l.split(' ').next().unwrap().split_once('-').unwrap())
        .map(|(from, to)| (number(from), number(to)))
        .collect();
    let mut names = Vec::new();
    for line in named.lines() {
        let [start, len, name] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let (start, end) = (number(start), number(start) + number(len));
        assert!(start < end && executable.iter().any(|(f, t)| *f <= start && end <= *t), "{line}");
        names.push(number(name.strip_prefix("guest_").unwrap()));
    }
    // The image lies at 2 MiB; what it runs first is translated first.
    assert_eq!(names.first(), Some(&0x8020_0000));
}
