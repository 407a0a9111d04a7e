//! Work on a device that may hang, with an end to the wait for it.
//!
//! The work is done in a thread of its own. One that hangs in the kernel can't be ended: it is left behind, with what
//! it holds, and its caller goes on with an error that names the device.

use crate::Error;
use std::{
    io,
    path::Path,
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

/// How long opening a device, or reading its fixed areas, may take: a disk may have to spin up first.
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
    let failed = |source| Error::Os {
        path: path.to_owned(),
        action,
        source,
    };
    let (done, outcome) = channel();
    thread::Builder::new()
        .name("storage-open".to_owned())
        .spawn(move || {
            let _nobody_waits_any_more = done.send(work());
        })
        .map_err(failed)?;
    match outcome.recv_timeout(patience) {
        Ok(outcome) => outcome,
        Err(RecvTimeoutError::Timeout) => {
            let said = format!("no answer within {} s", patience.as_secs_f32());
            Err(failed(io::Error::new(io::ErrorKind::TimedOut, said)))
        }
        Err(RecvTimeoutError::Disconnected) => {
            Err(failed(io::Error::other("a bug ended its thread")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

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
    fn work_that_ends_in_time_brings_its_outcome() {
        let path = Path::new("device");
        let five = within(path, "count", OPEN_PATIENCE, || Ok(5));
        assert_eq!(five.unwrap(), 5);
    }
}
