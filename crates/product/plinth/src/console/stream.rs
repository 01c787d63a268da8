//! A console over two descriptors of the host, with a thread each: neither a slow reader nor a silent
//! writer ever holds up the guest.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use plinth_device::CharBackend;

/// Bytes that wait in either direction at most.
const LIMIT: usize = 64 << 10;
/// How long the writer collects before it writes: a guest prints a byte at a time.
const COLLECT: Duration = Duration::from_micros(500);
/// How long the last output may take to be written at the end.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Ctrl-].
const ESCAPE: u8 = 0x1d;

type Notify = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Output {
    waiting: Vec<u8>,
    /// The thread has taken bytes that it has not written yet.
    writing: bool,
    /// The thread sleeps until it is told of new bytes.
    idle: bool,
    end: bool,
    /// Nobody reads any more: what the guest prints is thrown away.
    gone: bool,
}

#[derive(Default)]
struct Shared {
    output: Mutex<Output>,
    output_changed: Condvar,
    input: Mutex<VecDeque<u8>>,
    input_room: Condvar,
    notify: Mutex<Option<Arc<Notify>>>,
    on_escape: Mutex<Option<Notify>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A console over an input and an output descriptor.
pub struct Stream {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Stream {
    /// Starts the threads. With `escape`, Ctrl-] in the input is not for the guest.
    ///
    /// # Errors
    /// The host gives no thread.
    pub fn new(input: Option<OwnedFd>, output: OwnedFd, escape: bool) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Shared::default());
        let out = Arc::clone(&shared);
        let writer = std::thread::Builder::new()
            .name("console-out".into())
            .spawn(move || write_loop(&out, File::from(output)))?;
        if let Some(input) = input {
            let shared = Arc::clone(&shared);
            // Never joined: it may wait for a key when the process ends.
            std::thread::Builder::new()
                .name("console-in".into())
                .spawn(move || read_loop(&shared, File::from(input), escape))?;
        }
        Ok(Arc::new(Self { shared, writer: Mutex::new(Some(writer)) }))
    }

    /// Calls `leave` when the user types the escape.
    pub fn on_escape(&self, leave: impl Fn() + Send + Sync + 'static) {
        *lock(&self.shared.on_escape) = Some(Box::new(leave));
    }

    /// Writes what waits, for a while, and ends the writer.
    pub fn finish(&self) {
        let limit = Instant::now() + LAST_WORDS;
        let mut output = lock(&self.shared.output);
        output.end = true;
        self.shared.output_changed.notify_all();
        while output.writing || !(output.waiting.is_empty() || output.gone) {
            let left = limit.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            output = self
                .shared
                .output_changed
                .wait_timeout(output, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        drop(output);
        if let Some(writer) = lock(&self.writer).take() {
            // Its panic has been reported by the panic hook.
            let _ = writer.join();
        }
    }
}

fn write_loop(shared: &Shared, mut to: File) {
    let mut batch = Vec::new();
    loop {
        let mut output = lock(&shared.output);
        output.writing = false;
        shared.output_changed.notify_all();
        while output.waiting.is_empty() {
            if output.end {
                return;
            }
            output.idle = true;
            output = shared.output_changed.wait(output).unwrap_or_else(PoisonError::into_inner);
        }
        output.idle = false;
        if !output.end {
            drop(output);
            std::thread::sleep(COLLECT);
            output = lock(&shared.output);
        }
        std::mem::swap(&mut output.waiting, &mut batch);
        output.writing = true;
        drop(output);
        if let Err(e) = to.write_all(&batch) {
            tracing::info!(target: "plinth::console", "the console's output is gone: {e}");
            let mut output = lock(&shared.output);
            *output = Output { gone: true, ..Output::default() };
            shared.output_changed.notify_all();
            return;
        }
        batch.clear();
    }
}

fn read_loop(shared: &Shared, mut from: File, escape: bool) {
    let mut buf = [0; 4096];
    loop {
        let n = match from.read(&mut buf) {
            Ok(0) => return,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let mut typed = &buf[..n];
        if escape && let Some(at) = typed.iter().position(|&b| b == ESCAPE) {
            typed = &typed[..at];
            if let Some(leave) = lock(&shared.on_escape).as_ref() {
                leave();
            }
        }
        while !typed.is_empty() {
            let mut input = lock(&shared.input);
            while input.len() >= LIMIT {
                input = shared.input_room.wait(input).unwrap_or_else(PoisonError::into_inner);
            }
            let (now, later) = typed.split_at(typed.len().min(LIMIT - input.len()));
            input.extend(now);
            typed = later;
            drop(input);
            // Called without a lock: the device reads from here at once.
            let notify = lock(&shared.notify).clone();
            if let Some(notify) = notify {
                notify();
            }
        }
    }
}

impl CharBackend for Stream {
    fn write(&self, data: &[u8]) -> usize {
        let mut output = lock(&self.shared.output);
        if output.gone {
            return data.len();
        }
        let n = data.len().min(LIMIT - output.waiting.len().min(LIMIT));
        output.waiting.extend_from_slice(&data[..n]);
        if n != 0 && std::mem::take(&mut output.idle) {
            self.shared.output_changed.notify_all();
        }
        n
    }

    fn read(&self, data: &mut [u8]) -> usize {
        let mut input = lock(&self.shared.input);
        let n = data.len().min(input.len());
        for (d, b) in data.iter_mut().zip(input.drain(..n)) {
            *d = b;
        }
        if n != 0 {
            self.shared.input_room.notify_all();
        }
        n
    }

    fn on_input(&self, notify: Notify) {
        *lock(&self.shared.notify) = Some(Arc::new(notify));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe() -> (File, OwnedFd) {
        let (r, w) = io::pipe().unwrap();
        (File::from(OwnedFd::from(r)), w.into())
    }

    #[test]
    fn output_arrives_in_order_and_the_last_of_it_too() {
        let (mut reader, writer) = pipe();
        let collected = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            all
        });
        let stream = Stream::new(None, writer, false).unwrap();
        let text: Vec<u8> = (0..500_000u32).map(|i| i as u8).collect();
        let mut at = 0;
        while at < text.len() {
            at += stream.write(&text[at..text.len().min(at + 999)]);
        }
        stream.finish();
        drop(stream);
        assert!(collected.join().unwrap() == text);
    }

    #[test]
    fn a_reader_that_is_gone_does_not_stop_the_guest() {
        let (reader, writer) = pipe();
        drop(reader);
        let stream = Stream::new(None, writer, false).unwrap();
        for _ in 0..1000 {
            let mut left: &[u8] = &[b'x'; 1000];
            while !left.is_empty() {
                left = &left[stream.write(left)..];
            }
        }
        stream.finish();
    }

    #[test]
    fn input_waits_for_the_guest_and_the_escape_is_ours() {
        let (input, mut keyboard) = io::pipe().unwrap();
        let (_screen, output) = pipe();
        let stream = Stream::new(Some(input.into()), output, true).unwrap();
        let (told, left) = (Arc::new(Condvar::new()), Arc::new(Mutex::new(false)));
        let (t, l) = (told.clone(), left.clone());
        stream.on_escape(move || {
            *l.lock().unwrap() = true;
            t.notify_all();
        });
        keyboard.write_all(b"abc\x1d").unwrap();
        let (gone, _) =
            told.wait_timeout_while(left.lock().unwrap(), Duration::from_secs(10), |left| !*left).unwrap();
        assert!(*gone);
        let limit = Instant::now() + Duration::from_secs(10);
        let mut got: Vec<u8> = Vec::new();
        while got.len() < 3 {
            assert!(Instant::now() < limit);
            let mut b = [0; 2];
            let n = stream.read(&mut b);
            got.extend(&b[..n]);
        }
        assert_eq!(got, b"abc");
    }
}
