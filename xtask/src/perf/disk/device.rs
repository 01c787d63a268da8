//! What the device alone needs for a job's bytes.

use std::fs;
use std::time::Instant;

use super::Files;

/// Bytes of a request.
const REQUEST: u64 = 1 << 20;

/// Seconds in which the peer's own benchmark reads the files `read` and writes `written` bytes into a new file, durably
/// and both at once, past the page cache and with nothing else to do: less no copy of them can take.
pub fn seconds(files: &Files, read: &[&str], written: u64) -> Result<f64, String> {
    let bench = "bench -f raw -t none -i io_uring -d 8 -s 1048576";
    let mut commands = Vec::new();
    for name in read {
        let path = files.path(name);
        let len = fs::metadata(&path).map_err(|e| format!("{}: {e}", path.display()))?.len();
        commands.push(format!("{bench} -c {} {{{name}}}", (len / REQUEST).max(1)));
    }
    if written != 0 {
        let count = written.div_ceil(REQUEST);
        files.start(&files.options.peer, &format!("create -q -f raw {{out}} {}", count * REQUEST))?;
        commands.push(format!("{bench} -w --flush-interval {} -c {count} {{out}}", count.max(8)));
    }
    let begin = Instant::now();
    let done = std::thread::scope(|scope| {
        let start = |command: &str| files.start(&files.options.peer, command);
        let running: Vec<_> = commands.iter().map(|command| scope.spawn(move || start(command))).collect();
        running.into_iter().try_for_each(|one| one.join().expect("no panics").map(drop))
    });
    let took = begin.elapsed().as_secs_f64();
    // There is one only if something was written.
    let _ = fs::remove_file(files.path("out"));
    done.map(|()| took)
}
