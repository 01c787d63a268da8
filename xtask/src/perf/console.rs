//! A running machine and the lines of its console, each with the time of its arrival.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::process::cpu_time;

/// How many of the last lines an error shows.
const SHOWN: usize = 15;
/// A line that is longer is cut.
const LINE: u64 = 4096;

/// A moment of a run.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Host time.
    pub at: Instant,
    /// CPU time that the emulator had used up to then.
    pub cpu: Duration,
}

/// A line of the console.
#[derive(Debug, Clone)]
pub struct Line {
    pub moment: Moment,
    pub text: String,
}

/// A machine that runs; it is stopped when this is dropped.
pub struct Console {
    child: Child,
    lines: Receiver<Line>,
    last: VecDeque<String>,
    deadline: Instant,
    /// The start of the process.
    pub started: Moment,
}

impl Console {
    /// Starts a machine that has `limit` to do its work.
    pub fn start(mut command: Command, limit: Duration) -> Result<Self, String> {
        let started = Moment { at: Instant::now(), cpu: Duration::ZERO };
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", command.get_program().display()))?;
        let (sender, lines) = channel();
        let pid = child.id();
        let streams: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|s| Box::new(s) as Box<dyn Read + Send>),
            child.stderr.take().map(|s| Box::new(s) as Box<dyn Read + Send>),
        ];
        for stream in streams.into_iter().flatten() {
            let sender = sender.clone();
            thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                let mut bytes = Vec::new();
                while matches!(reader.by_ref().take(LINE).read_until(b'\n', &mut bytes), Ok(1..)) {
                    let moment = Moment { at: Instant::now(), cpu: cpu_time(pid) };
                    let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
                    bytes.clear();
                    if sender.send(Line { moment, text }).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(Self { child, lines, last: VecDeque::new(), deadline: started.at + limit, started })
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line, or nothing when the machine has ended.
    pub fn line(&mut self) -> Result<Option<Line>, String> {
        match self.lines.recv_timeout(self.deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                self.last.push_back(line.text.clone());
                if self.last.len() > SHOWN {
                    self.last.pop_front();
                }
                Ok(Some(line))
            }
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => Err(self.failure("it did not end in time")),
        }
    }

    /// Waits for a line that starts with `start`.
    pub fn wait_for(&mut self, start: &str) -> Result<Line, String> {
        while let Some(line) = self.line()? {
            if line.text.starts_with(start) {
                return Ok(line);
            }
        }
        Err(self.failure(&format!("it ended without the line \"{start}\"")))
    }

    /// An error with the end of the console.
    pub fn failure(&self, what: &str) -> String {
        let mut text = format!("{what}; the console's last lines:");
        for line in &self.last {
            let _ = write!(text, "\n    {line}");
        }
        text
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // It has usually ended by itself; both calls fail then, and that is no loss.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
