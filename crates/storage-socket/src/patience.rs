//! Work on a device that may hang, with an end to the wait for it.
//!
//! The work is done in a thread of its own. One that hangs in the kernel can't be ended: it is left behind, with what
//! it holds, and its caller goes on with an error that names the device and how long it was given. Should the device
//! answer after all, the thread ends its step, and no further one is begun.

use crate::Error;
use std::{
    io,
    path::Path,
    sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel},
    thread,
    time::Duration,
};

/// How long opening a device, reading its fixed areas, or a step of writing them may take: a disk may have to spin up
/// first.
pub(crate) const OPEN_PATIENCE: Duration = Duration::from_secs(30);

/// Does `work` on the device at `path`, waiting at most `patience`. `action` says what it does, as a verb phrase.
///
/// # Errors
/// Those of `work`, or [`Error::Os`] of the kind [`io::ErrorKind::TimedOut`].
pub(crate) fn within<T: Send + 'static>(
    path: &Path,
    action: &'static str,
    patience: Duration,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    step_by_step(path, action, patience, |_| work())
}

/// Counts the steps of a longer work.
pub(crate) struct Steps<T>(SyncSender<Word<T>>);

enum Word<T> {
    Step,
    Done(Result<T, Error>),
}

impl<T> Steps<T> {
    /// A step was done, and another begins.
    ///
    /// # Errors
    /// Whoever waited has given up: nothing more is to be done.
    pub(crate) fn next(&self, path: &Path, action: &'static str) -> Result<(), Error> {
        self.0.send(Word::Step).map_err(|_| Error::Os {
            path: path.to_owned(),
            action,
            source: io::Error::new(io::ErrorKind::TimedOut, "nobody waits for it any more"),
        })
    }
}

/// As [`within`], for work of many steps: each may take up to `patience`.
///
/// # Errors
/// As [`within`].
pub(crate) fn step_by_step<T: Send + 'static>(
    path: &Path,
    action: &'static str,
    patience: Duration,
    work: impl FnOnce(&Steps<T>) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let failed = |source| Error::Os {
        path: path.to_owned(),
        action,
        source,
    };
    // Nothing is kept on the way: a step that is told to nobody ends the work.
    let (told, words) = sync_channel(0);
    thread::Builder::new()
        .name("storage-open".to_owned())
        .spawn(move || {
            let steps = Steps(told);
            let outcome = work(&steps);
            let _nobody_waits_any_more = steps.0.send(Word::Done(outcome));
        })
        .map_err(failed)?;
    loop {
        match words.recv_timeout(patience) {
            Ok(Word::Step) => {}
            Ok(Word::Done(outcome)) => return outcome,
            Err(RecvTimeoutError::Timeout) => {
                let said = format!("no answer within {} s", patience.as_secs_f32());
                return Err(failed(io::Error::new(io::ErrorKind::TimedOut, said)));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(failed(io::Error::other("a bug ended its thread")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, sync::mpsc::channel};

    #[test]
    fn work_that_hangs_is_left_behind_and_its_device_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        // Opening a pipe hangs in the kernel until somebody opens its other end.
        let open = {
            let path = path.clone();
            move || Ok(File::open(path).map(drop).is_ok())
        };
        let short = Duration::from_millis(50);
        let error = within(&path, "open it", short, open.clone()).unwrap_err();
        assert!(error.to_string().contains("pipe: can't open it"), "{error}");
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::TimedOut);
        let other_end = thread::spawn({
            let path = path.clone();
            move || File::options().write(true).open(path).map(drop)
        });
        other_end.join().unwrap().unwrap();
    }

    #[test]
    fn each_step_has_the_whole_patience_and_none_begins_when_nobody_waits() {
        let path = Path::new("device");
        let patience = Duration::from_millis(400);
        let steps = step_by_step(path, "count", patience, move |steps| {
            for _ in 0..4 {
                thread::sleep(patience / 3);
                steps.next(path, "count")?;
            }
            Ok(4)
        });
        assert_eq!(steps.unwrap(), 4);
        let (hang, hung) = channel::<()>();
        let (tell, told) = channel();
        let given_up = step_by_step(path, "count", Duration::from_millis(1), move |steps| {
            // Hangs until the test lets go of it.
            let _let_go = hung.recv();
            tell.send(steps.next(path, "count").is_err()).unwrap();
            Ok(())
        });
        assert_eq!(
            io::Error::from(given_up.unwrap_err()).kind(),
            io::ErrorKind::TimedOut
        );
        drop(hang);
        assert!(told.recv().unwrap());
    }

    #[test]
    fn work_that_ends_in_time_brings_its_outcome() {
        let path = Path::new("device");
        let five = within(path, "count", OPEN_PATIENCE, || Ok(5));
        assert_eq!(five.unwrap(), 5);
    }
}
