//! The thread that writes access logs.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Lines that may wait for the writer.
const QUEUE_LINES_MAX: usize = 8192;
/// Lines written with one system call.
const BATCH_LINES_MAX: usize = 256;

/// Opens log files and owns the writing thread.
pub(crate) struct Writers {
    sinks: Mutex<HashMap<String, usize>>,
    sender: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// Where lines of one path go.
#[derive(Clone, Debug)]
pub(crate) struct Sink {
    index: usize,
    sender: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Message {
    Open(File),
    Line(usize, String),
    Stop,
}

impl Writers {
    /// Starts the writing thread.
    ///
    /// # Errors
    ///
    /// The thread could not be started.
    pub(crate) fn start() -> io::Result<Self> {
        let (sender, receiver) = sync_channel(QUEUE_LINES_MAX);
        let thread =
            std::thread::Builder::new().name("access-log".to_owned()).spawn(move || run(&receiver))?;
        Ok(Self { sinks: Mutex::default(), sender, dropped: Arc::default(), thread: Some(thread) })
    }

    /// The sink of `path`, opened for appending the first time it is asked for.
    ///
    /// # Errors
    ///
    /// The file cannot be opened.
    pub(crate) fn sink(&self, path: &str) -> io::Result<Sink> {
        let mut sinks = self.sinks.lock().unwrap_or_else(PoisonError::into_inner);
        let index = match sinks.get(path) {
            Some(index) => *index,
            None => {
                let file = OpenOptions::new().append(true).create(true).open(path)?;
                let index = sinks.len();
                self.sender.send(Message::Open(file)).map_err(|_| io::ErrorKind::BrokenPipe)?;
                sinks.insert(path.to_owned(), index);
                index
            }
        };
        Ok(Sink { index, sender: self.sender.clone(), dropped: Arc::clone(&self.dropped) })
    }

    /// Lines dropped because the queue was full.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

impl Drop for Writers {
    /// Writes what is queued and ends the thread.
    fn drop(&mut self) {
        let _ = self.sender.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Sink {
    /// Queues a line, or counts it as dropped.
    pub(crate) fn write(&self, line: String) {
        if self.sender.try_send(Message::Line(self.index, line)).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }
}

fn run(receiver: &Receiver<Message>) {
    let mut files: Vec<(File, String)> = Vec::new();
    while let Ok(first) = receiver.recv() {
        let batch = std::iter::once(first).chain(receiver.try_iter().take(BATCH_LINES_MAX));
        let mut stop = false;
        for message in batch {
            match message {
                Message::Open(file) => files.push((file, String::new())),
                Message::Line(index, line) => files[index].1.push_str(&line),
                Message::Stop => stop = true,
            }
        }
        for (file, text) in &mut files {
            if !text.is_empty() {
                // A full disk loses lines, never requests.
                let _ = file.write_all(text.as_bytes());
                text.clear();
            }
        }
        if stop {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_one_path_keep_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let path = path.to_str().unwrap();
        let writers = Writers::start().unwrap();
        let (a, b) = (writers.sink(path).unwrap(), writers.sink(path).unwrap());
        a.write("one\n".to_owned());
        b.write("two\n".to_owned());
        a.write("three\n".to_owned());
        assert_eq!(writers.dropped(), 0);
        drop(writers);
        assert_eq!(std::fs::read_to_string(path).unwrap(), "one\ntwo\nthree\n");
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_an_error() {
        let writers = Writers::start().unwrap();
        assert!(writers.sink("/nonexistent/dir/log").is_err());
    }
}
