//! What the host's kernel tells of a process: proc(5).

use std::fs;
use std::time::Duration;

/// Clock ticks in a second, as `/proc/PID/stat` counts them: `USER_HZ`, fixed by Linux's ABI on every
/// architecture that Plinth's hosts have.
const TICKS: u64 = 100;

/// CPU time that the process has used so far, in all its threads, user and system; zero once it is gone.
pub fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field is the name, in parentheses, and may hold anything. utime and stime are the
    // fields 14 and 15.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1000 / TICKS)
}

/// Resident memory of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resident {
    /// Bytes of the mapping that is the guest's RAM.
    pub guest: u64,
    /// Bytes of all other mappings. A page that is mapped twice counts once.
    pub rest: u64,
}

/// Resident memory of the process `pid` whose guest has `ram` bytes.
pub fn resident(pid: u32, ram: u64) -> Result<Resident, String> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).map_err(|e| format!("cannot read {path}: {e}"))?;
    let found = parse_smaps(&text, ram);
    if found.guest == 0 {
        return Err(format!("{path} shows no mapping of {ram} bytes for the guest's RAM"));
    }
    Ok(found)
}

fn parse_smaps(text: &str, ram: u64) -> Resident {
    let mut found = Resident::default();
    let mut size = 0;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(key), Some(value)) = (words.next(), words.next()) else { continue };
        let Ok(kibibytes) = value.parse::<u64>() else { continue };
        match key {
            "Size:" => size = kibibytes << 10,
            // Proportional: it divides a page by the number of its mappings.
            "Pss:" if size == ram => found.guest += kibibytes << 10,
            "Pss:" => found.rest += kibibytes << 10,
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{Resident, parse_smaps};

    #[test]
    fn the_guests_ram_is_told_from_the_rest() {
        let text = "\
7f00-7f10 rw-p 00000000 00:00 0
Size:             524288 kB
Rss:                4096 kB
Pss:                4096 kB
7f20-7f30 r-xs 00000000 00:01 35157    /memfd:code (deleted)
Size:             131072 kB
Rss:                 200 kB
Pss:                 100 kB
Pss_Dirty:           100 kB
";
        let expected = Resident { guest: 4096 << 10, rest: 100 << 10 };
        assert_eq!(parse_smaps(text, 512 << 20), expected);
    }
}
