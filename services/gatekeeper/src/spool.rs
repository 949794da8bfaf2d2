//! Where decisions wait on this machine's disk while their stream does not take them: lines of JSON, on the disk before
//! anybody is answered. Many that come together are made safe together.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;

use tokio::sync::oneshot;

/// Lines that are made safe at once.
const TOGETHER_MOST: usize = 512;
const LENGTH_MOST: usize = 64 * 1024;

/// Why a line is not safe.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("write decisions to {path}")]
    Write { path: String, source: io::Error },
    #[error(
        "the decisions that wait have {0} bytes, which is as much as is allowed: bring JetStream back, or raise spool_bytes"
    )]
    Full(u64),
    #[error("the writer of decisions has ended")]
    Ended,
}

/// Lines that were written together fail together.
type Kept = Result<(), Arc<SpoolError>>;

enum Order {
    Keep(String, oneshot::Sender<Kept>),
    /// Close what is being written, and say what is closed.
    Close(oneshot::Sender<Result<Vec<PathBuf>, SpoolError>>),
}

/// The lines that wait. Clones share them.
#[derive(Debug, Clone)]
pub struct Spool {
    orders: mpsc::Sender<Order>,
}

struct Writer {
    folder: PathBuf,
    bytes_most: u64,
    current: Option<(PathBuf, File)>,
    next: u64,
}

fn number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_suffix(".jsonl")?.parse().ok()
}

/// The closed files, oldest first.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        found.extend(number(&path).map(|number| (number, path)));
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

impl Spool {
    /// Opens the folder; what an earlier process has left waits there.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(folder: &Path, bytes_most: u64) -> Result<Self, SpoolError> {
        let failed = |source| SpoolError::Write { path: folder.display().to_string(), source };
        std::fs::create_dir_all(folder).map_err(failed)?;
        let last = files(folder).map_err(failed)?.last().and_then(|path| number(path));
        let mut writer =
            Writer { folder: folder.to_owned(), bytes_most, current: None, next: last.map_or(1, |last| last + 1) };
        let (orders, received) = mpsc::channel();
        thread::Builder::new().name("decisions".to_owned()).spawn(move || writer.run(&received)).map_err(failed)?;
        Ok(Self { orders })
    }

    /// Returns when the line is safe on the disk.
    ///
    /// # Errors
    /// When it is not.
    pub async fn keep(&self, line: String) -> Kept {
        let (answer, answered) = oneshot::channel();
        self.orders.send(Order::Keep(line, answer)).map_err(|_| Arc::new(SpoolError::Ended))?;
        answered.await.map_err(|_| Arc::new(SpoolError::Ended))?
    }

    /// The files that are not written to any more, oldest first. Whoever has passed one on removes it.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub async fn close(&self) -> Result<Vec<PathBuf>, SpoolError> {
        let (answer, answered) = oneshot::channel();
        self.orders.send(Order::Close(answer)).map_err(|_| SpoolError::Ended)?;
        answered.await.map_err(|_| SpoolError::Ended)?
    }
}

impl Writer {
    fn run(&mut self, orders: &mpsc::Receiver<Order>) {
        let mut put_off = None;
        while let Some(order) = put_off.take().or_else(|| orders.recv().ok()) {
            match order {
                Order::Close(answer) => drop(answer.send(self.close())),
                Order::Keep(line, answer) => {
                    let (mut lines, mut answers) = (line + "\n", vec![answer]);
                    while answers.len() < TOGETHER_MOST && lines.len() < LENGTH_MOST {
                        match orders.try_recv() {
                            Ok(Order::Keep(line, answer)) => {
                                lines.push_str(&line);
                                lines.push('\n');
                                answers.push(answer);
                            }
                            Ok(other) => {
                                put_off = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    let kept = self.write(&lines).map_err(Arc::new);
                    for answer in answers {
                        // Whoever waited may have given up.
                        let _ = answer.send(kept.clone());
                    }
                }
            }
        }
    }

    fn write(&mut self, lines: &str) -> Result<(), SpoolError> {
        let bytes = self.bytes()?;
        if bytes + lines.len() as u64 > self.bytes_most {
            return Err(SpoolError::Full(bytes));
        }
        if self.current.is_none() {
            let path = self.folder.join(format!("{}.jsonl", self.next));
            self.next += 1;
            let opened = OpenOptions::new().create_new(true).append(true).open(&path);
            let failed = |source| SpoolError::Write { path: path.display().to_string(), source };
            let file = opened.map_err(failed)?;
            // The name has to be safe, too.
            File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
            self.current = Some((path, file));
        }
        let (path, file) = self.current.as_mut().expect("it was opened");
        let failed = |source| SpoolError::Write { path: path.display().to_string(), source };
        let before = file.metadata().map_err(failed)?.len();
        let written = file.write_all(lines.as_bytes()).and_then(|()| file.sync_data()).map_err(failed);
        if written.is_err() && file.set_len(before).is_err() {
            // What follows half a line would be unreadable with it.
            self.current = None;
        }
        written
    }

    fn failed(&self) -> impl Fn(io::Error) -> SpoolError {
        let path = self.folder.display().to_string();
        move |source| SpoolError::Write { path: path.clone(), source }
    }

    fn bytes(&self) -> Result<u64, SpoolError> {
        let lengths = files(&self.folder).map_err(self.failed())?;
        Ok(lengths.iter().filter_map(|path| path.metadata().ok()).map(|about| about.len()).sum())
    }

    fn close(&mut self) -> Result<Vec<PathBuf>, SpoolError> {
        self.current = None;
        files(&self.folder).map_err(self.failed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(paths: &[PathBuf]) -> Vec<String> {
        let text = |path: &PathBuf| std::fs::read_to_string(path).unwrap();
        paths.iter().flat_map(|path| text(path).lines().map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    #[tokio::test]
    async fn what_is_kept_is_there_for_the_next_process_in_its_order() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(folder.path(), 1 << 20).unwrap();
        spool.keep("one".to_owned()).await.unwrap();
        spool.keep("two".to_owned()).await.unwrap();
        let closed = spool.close().await.unwrap();
        assert_eq!(lines(&closed), ["one", "two"]);
        spool.keep("three".to_owned()).await.unwrap();
        drop(spool);
        let again = Spool::open(folder.path(), 1 << 20).unwrap();
        again.keep("four".to_owned()).await.unwrap();
        let closed = again.close().await.unwrap();
        assert_eq!(lines(&closed), ["one", "two", "three", "four"]);
        for path in closed {
            std::fs::remove_file(path).unwrap();
        }
        assert_eq!(again.close().await.unwrap(), Vec::<PathBuf>::new());
    }

    #[tokio::test]
    async fn many_at_once_are_all_kept_and_a_full_spool_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(folder.path(), 4_000).unwrap();
        let kept = (0..2_000).map(|number| {
            let spool = spool.clone();
            tokio::spawn(async move { spool.keep(format!("{number:07}")).await.map(|()| number) })
        });
        let (mut good, mut full) = (Vec::new(), 0);
        for one in kept.collect::<Vec<_>>() {
            match one.await.unwrap() {
                Ok(number) => good.push(format!("{number:07}")),
                Err(_) => full += 1,
            }
        }
        assert!(full > 0, "4,000 bytes do not hold 2,000 lines");
        let mut found = lines(&spool.close().await.unwrap());
        good.sort();
        found.sort();
        assert_eq!(found, good, "what was said to be safe is there, and nothing else");
    }

    #[test]
    fn a_folder_that_cannot_be_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Spool::open(file.path(), 1).unwrap_err();
        assert!(error.to_string().contains(&file.path().display().to_string()));
    }
}
