//! `plinth disk serve`, from start to end.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

const PLINTH: &str = env!("CARGO_BIN_EXE_plinth");

#[test]
fn a_served_disk_is_read_and_written_and_ends_in_good_order() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, socket) = (dir.path().join("a.raw"), dir.path().join("s"));
    let bytes: Vec<u8> = (0..3 << 20).map(|n: u32| (n * 7) as u8).collect();
    std::fs::write(&disk, &bytes).unwrap();
    let mut server = Command::new(PLINTH)
        .args(["disk", "serve", "--name", "d", "--socket"])
        .args([&socket, &disk])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let uri = line.trim().rsplit(' ').next().unwrap();
    assert!(uri.starts_with("nbd+unix:///d?socket="), "{line}");
    let copy = dir.path().join("copy.raw");
    let status =
        Command::new(PLINTH).args(["disk", "convert", uri]).arg(&copy).stdout(Stdio::null()).status();
    assert!(status.unwrap().success());
    assert!(std::fs::read(&copy).unwrap() == bytes);
    // And written: only with --force, for what it holds is lost.
    let turned: Vec<u8> = bytes.iter().rev().copied().collect();
    std::fs::write(&copy, &turned).unwrap();
    let write = |more: &[&str]| {
        let convert = Command::new(PLINTH)
            .args(["disk", "convert", "--from", "raw"])
            .args(more)
            .arg(&copy)
            .arg(uri)
            .output();
        convert.unwrap()
    };
    assert_eq!(write(&[]).status.code(), Some(2));
    let written = write(&["--force"]);
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    assert!(std::fs::read(&disk).unwrap() == turned);
    // Somebody else's disk while it is served.
    let second = Command::new(PLINTH).args(["disk", "resize"]).arg(&disk).arg("+1M").output().unwrap();
    assert_eq!(second.status.code(), Some(5), "{}", String::from_utf8_lossy(&second.stderr));
    let kill = Command::new("kill").args(["-TERM", &server.id().to_string()]).status();
    assert!(kill.unwrap().success());
    assert!(server.wait().unwrap().success());
    assert!(!socket.exists());
}
