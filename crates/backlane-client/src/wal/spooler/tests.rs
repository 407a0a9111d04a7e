//! Pushes and fetches over a real socket, to a store in memory.

use super::*;
use crate::wal::Partly;
use crate::{
    Error,
    wal::{
        Fetched, archive, fetch,
        file::tests::{SYSTEM, data_directory, segment},
        push,
    },
};
use backlane_proto::{ByteRange, ObjectInfo};
use bytes::Bytes;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

const MASTER_KEY: &[u8] = br#"{
    "mac": {"k": "ICEiIyQlJicoKSorLC0uLw==", "r": "MDEyMzQ1Njc4OTo7PD0+Pw=="},
    "encrypt": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
}"#;

/// Objects in memory, as a server keeps them; it can be told to refuse.
#[derive(Default)]
struct Objects {
    stored: Mutex<BTreeMap<ObjectId, Bytes>>,
    writes: AtomicUsize,
    reads: AtomicUsize,
    refusal: Mutex<Option<&'static str>>,
    /// Comes right before the next list.
    arriving: Mutex<Option<(ObjectId, Bytes)>>,
}

impl ObjectStore for Objects {
    fn list(&self, _: ObjectKind) -> Result<Vec<ObjectInfo>, StoreError> {
        let mut stored = self.stored.lock().unwrap();
        stored.extend(self.arriving.lock().unwrap().take());
        let info = |(id, body): (&ObjectId, &Bytes)| ObjectInfo {
            id: *id,
            bytes: body.len() as u64,
        };
        Ok(stored.iter().map(info).collect())
    }

    fn read(&self, name: ObjectName, range: Option<ByteRange>) -> Result<Bytes, StoreError> {
        if let Some(what) = *self.refusal.lock().unwrap() {
            let what = what.to_owned();
            return Err(StoreError::Denied { what });
        }
        let stored = self.stored.lock().unwrap();
        let body = stored.get(&name.id).cloned();
        let body = body.ok_or(StoreError::NotFound { name })?;
        self.reads.fetch_add(1, Ordering::Relaxed);
        let end = range.map_or(body.len(), |range| usize::try_from(range.length).unwrap());
        Ok(body.slice(..end))
    }

    fn write(&self, name: ObjectName, _: PackContents, body: Bytes) -> Result<(), StoreError> {
        if let Some(what) = *self.refusal.lock().unwrap() {
            let what = what.to_owned();
            return Err(StoreError::Denied { what });
        }
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.stored.lock().unwrap().insert(name.id, body);
        Ok(())
    }

    fn remove(&self, name: ObjectName) -> Result<(), StoreError> {
        self.stored.lock().unwrap().remove(&name.id);
        Ok(())
    }
}

struct Bench {
    directory: tempfile::TempDir,
    objects: Arc<Objects>,
    spooler: Arc<Spooler>,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        data_directory(directory.path());
        let bench = Self {
            objects: Arc::default(),
            spooler: Spooler::with_session_wait(Duration::from_millis(50)),
            directory,
        };
        let listener = UnixListener::bind(bench.socket()).unwrap();
        let spooler = Arc::clone(&bench.spooler);
        thread::spawn(move || spooler.serve(&listener));
        bench.spooler.set_archive(Ok(bench.archive()));
        bench
    }

    fn archive(&self) -> Archive {
        Archive {
            store: Arc::clone(&self.objects) as Arc<dyn ObjectStore>,
            key: WalKey::from_master_key(MASTER_KEY).unwrap(),
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("wal.sock")
    }

    fn wal(&self) -> PathBuf {
        self.directory.path().join("pg_wal")
    }

    /// A segment that is ready to be archived.
    fn ready(&self, number: u64) -> PathBuf {
        let name = format!("{:08X}{:08X}{number:08X}", 1, 0);
        let status = format!("archive_status/{name}.ready");
        fs::write(self.wal().join(status), b"").unwrap();
        let path = self.wal().join(name);
        let content = u8::try_from(number % 251).unwrap();
        fs::write(&path, segment(1, number, content)).unwrap();
        path
    }

    fn push(&self, path: &Path) -> Result<(), Error> {
        push(path, &self.socket())
    }

    fn fetch(&self, name: &str) -> Result<Fetched, Error> {
        self.fetch_or(name, Partly::Absent)
    }

    fn fetch_or(&self, name: &str, partly: Partly) -> Result<Fetched, Error> {
        fetch(name, &self.target(), SYSTEM, partly, &self.socket())
    }

    fn target(&self) -> PathBuf {
        self.wal().join("RECOVERYXLOG")
    }
}

fn text<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn what_was_pushed_comes_back_and_what_was_not_is_absent() {
    let bench = Bench::new();
    let path = bench.ready(7);
    bench.push(&path).unwrap();
    let history = bench.wal().join("00000002.history");
    fs::write(&history, b"1\t0/700028\tno reason\n").unwrap();
    bench.push(&history).unwrap();
    for file in [&path, &history] {
        let name = file.file_name().unwrap().to_str().unwrap();
        assert_eq!(bench.fetch(name).unwrap(), Fetched::Written);
        assert_eq!(fs::read(bench.target()).unwrap(), fs::read(file).unwrap());
        fs::remove_file(bench.target()).unwrap();
    }
    let absent = bench.fetch("000000010000000000000008").unwrap();
    assert_eq!(absent, Fetched::Absent);
    assert!(!bench.target().exists());
    let left = fs::read_dir(bench.wal()).unwrap().count();
    assert_eq!(left, 3, "archive_status, the segment and the history");
    let key = bench.archive().key;
    let found = archive::read(&*bench.objects, &key).unwrap();
    assert_eq!(found[0].segment_bytes, Some(1 << 20));
    assert_eq!(found[0].timelines.len(), 2);
    assert_eq!(found[0].gaps(), []);
}

#[test]
fn files_that_are_ready_behind_are_sent_too_and_answered_at_once_then() {
    let bench = Bench::new();
    let paths: Vec<_> = (1..=20).map(|number| bench.ready(number)).collect();
    bench.push(&paths[0]).unwrap();
    assert_eq!(bench.objects.writes.load(Ordering::Relaxed), 9);
    for path in &paths[..9] {
        bench.push(path).unwrap();
    }
    assert_eq!(bench.objects.writes.load(Ordering::Relaxed), 9);
    bench.push(&paths[9]).unwrap();
    assert_eq!(bench.objects.writes.load(Ordering::Relaxed), 18);
}

#[test]
fn only_the_very_file_that_the_server_confirmed_in_this_session_is_answered_at_once() {
    let bench = Bench::new();
    let path = bench.ready(7);
    bench.push(&path).unwrap();
    fs::write(&path, segment(1, 7, 99)).unwrap();
    *bench.objects.refusal.lock().unwrap() = Some("another segment");
    let why = text(bench.push(&path));
    assert!(why.contains("another segment"), "{why}");
    *bench.objects.refusal.lock().unwrap() = None;
    bench.push(&path).unwrap();
    bench.spooler.set_archive(Ok(bench.archive()));
    bench.push(&path).unwrap();
    assert_eq!(bench.objects.writes.load(Ordering::Relaxed), 3);
}

#[test]
fn without_a_session_everything_fails_with_the_reason_and_nothing_is_absent() {
    let bench = Bench::new();
    let path = bench.ready(7);
    bench
        .spooler
        .set_archive(Err("the server is away".to_owned()));
    for why in [
        text(bench.push(&path)),
        text(bench.fetch("000000010000000000000007")),
    ] {
        assert!(why.contains("the server is away"), "{why}");
        assert!(why.contains("000000010000000000000007"), "{why}");
    }
    bench.spooler.set_archive(Ok(bench.archive()));
    bench.push(&path).unwrap();
    *bench.objects.refusal.lock().unwrap() = Some("allow-wal");
    let why = text(bench.fetch("000000010000000000000007"));
    assert!(why.contains("allow-wal"), "{why}");
    let elsewhere = bench.directory.path().join("nobody.sock");
    let why = text(push(&path, &elsewhere));
    assert!(why.contains("nobody.sock"), "{why}");
    let why = text(fetch(
        "000000010000000000000007",
        &bench.target(),
        SYSTEM,
        Partly::Absent,
        &elsewhere,
    ));
    assert!(why.contains("nobody.sock"), "{why}");
    text(bench.fetch("no_such_name"));
}

#[test]
fn segments_fetched_in_order_are_read_ahead() {
    let bench = Bench::new();
    for number in 1..=12 {
        bench.push(&bench.ready(number)).unwrap();
    }
    for number in 1..=12 {
        let name = format!("{:08X}{:08X}{number:08X}", 1, 0);
        assert_eq!(bench.fetch(&name).unwrap(), Fetched::Written);
        let want = fs::read(bench.wal().join(&name)).unwrap();
        assert_eq!(fs::read(bench.target()).unwrap(), want);
        // Ten are read at the second fetch: the first two, and eight more.
        if number == 2 {
            let end = Instant::now() + Duration::from_secs(60);
            while bench.objects.reads.load(Ordering::Relaxed) < 10 {
                assert!(Instant::now() < end, "nothing is read ahead");
                thread::yield_now();
            }
        }
    }
    assert_eq!(bench.objects.reads.load(Ordering::Relaxed), 12);
    assert_eq!(
        bench.fetch("00000001000000000000000D").unwrap(),
        Fetched::Absent
    );
}

#[test]
fn a_push_that_dies_leaves_nothing_and_its_room_to_others() {
    let bench = Bench::new();
    let file = segment(1, 7, 1);
    let name = WalName::from_file_name(SYSTEM, "000000010000000000000007").unwrap();
    for sent in [0, 1000, file.len()] {
        let mut stream = protocol::connect(&bench.socket(), SILENCE_MAX).unwrap();
        let request = Request::Push {
            name,
            bytes: 1 << 30,
            hash: [0; 32],
        };
        request.write(&mut stream).unwrap();
        assert_eq!(Answer::read(&mut stream).unwrap(), Answer::Send);
        stream.write_all(&file[..sent]).unwrap();
    }
    assert_eq!(bench.objects.writes.load(Ordering::Relaxed), 0);
    bench.push(&bench.ready(7)).unwrap();
}

#[test]
fn a_receiver_that_begins_anew_goes_on_where_the_pieces_end_and_keeps_the_newest_file() {
    let bench = Bench::new();
    let spool = bench.directory.path().join("spool");
    fs::create_dir(&spool).unwrap();
    let whole = segment(1, 7, 9);
    let name = "000000010000000000000007";
    let receiver = || crate::wal::Receiver::new(&spool, &bench.socket());
    let grow = |written: usize| {
        let mut content = whole.clone();
        content[written..].fill(0);
        fs::write(spool.join(format!("{name}.partial")), content).unwrap();
    };
    let stored = || bench.objects.stored.lock().unwrap().len();
    let mut first = receiver();
    for (written, pieces) in [(100, 1), (5000, 2), (5000, 2)] {
        grow(written);
        first.pass().unwrap();
        assert_eq!(stored(), pieces);
    }
    grow(9000);
    let mut second = receiver();
    second.pass().unwrap();
    assert_eq!(stored(), 3);
    let fetched = bench.fetch_or(name, Partly::Pieces).unwrap();
    assert_eq!(fetched, Fetched::Written);
    let partial = fs::read(spool.join(format!("{name}.partial"))).unwrap();
    assert!(
        fs::read(bench.target()).unwrap() == partial,
        "another segment"
    );
    assert_eq!(bench.fetch(name).unwrap(), Fetched::Absent);

    // Whole, and the newest: it stays until there is a later one.
    fs::write(spool.join(name), &whole).unwrap();
    fs::remove_file(spool.join(format!("{name}.partial"))).unwrap();
    second.pass().unwrap();
    assert_eq!(bench.fetch(name).unwrap(), Fetched::Written);
    assert!(spool.join(name).exists());
    fs::write(
        spool.join("000000010000000000000008.partial"),
        vec![0; 1 << 20],
    )
    .unwrap();
    second.pass().unwrap();
    assert!(!spool.join(name).exists());
    assert!(spool.join("000000010000000000000008.partial").exists());
}

#[test]
fn a_receiver_removes_nothing_on_the_word_of_a_server_that_was_put_back() {
    let bench = Bench::new();
    let spool = bench.directory.path().join("spool");
    fs::create_dir(&spool).unwrap();
    let mut receiver = crate::wal::Receiver::new(&spool, &bench.socket());
    // In the middle of a session, which goes on.
    let put_back = || bench.objects.stored.lock().unwrap().clear();
    let (seventh, eighth) = ("000000010000000000000007", "000000010000000000000008");
    fs::write(spool.join(seventh), segment(1, 7, 9)).unwrap();
    receiver.pass().unwrap();
    put_back();
    let growing = format!("{eighth}.partial");
    fs::write(spool.join(&growing), segment(1, 8, 9)).unwrap();
    receiver.pass().unwrap();
    assert!(!spool.join(seventh).exists());
    assert_eq!(bench.fetch(seventh).unwrap(), Fetched::Written);

    // A timeline that ends in a segment leaves its beginning behind.
    put_back();
    fs::write(
        spool.join("000000020000000000000008.partial"),
        segment(2, 8, 9),
    )
    .unwrap();
    receiver.pass().unwrap();
    assert!(!spool.join(growing).exists());
    let fetched = bench.fetch_or(eighth, Partly::Pieces).unwrap();
    assert_eq!(fetched, Fetched::Written);

    // What stays is archived again as well, in time.
    fs::write(spool.join("00000002.history"), "1\t0/800000\tno reason\n").unwrap();
    receiver.pass().unwrap();
    let all = bench.objects.stored.lock().unwrap().len();
    put_back();
    receiver.pass().unwrap();
    assert!(bench.objects.stored.lock().unwrap().len() < all);
    receiver.forget();
    receiver.pass().unwrap();
    assert_eq!(bench.fetch("00000002.history").unwrap(), Fetched::Written);
}

#[test]
fn a_segment_that_was_put_together_is_never_archived_as_the_whole_one() {
    let bench = Bench::new();
    let spool = bench.directory.path().join("spool");
    fs::create_dir(&spool).unwrap();
    let name = "000000010000000000000007";
    let whole = segment(1, 7, 9);
    let mut beginning = whole.clone();
    beginning[5000..].fill(0);
    fs::write(spool.join(format!("{name}.partial")), &beginning).unwrap();
    crate::wal::Receiver::new(&spool, &bench.socket())
        .pass()
        .unwrap();
    let fetched = bench.fetch_or(name, Partly::Pieces).unwrap();
    assert_eq!(fetched, Fetched::Written);
    // As PostgreSQL does it, with another one that is ready before.
    let path = bench.wal().join(name);
    fs::rename(bench.target(), &path).unwrap();
    fs::write(bench.wal().join(format!("archive_status/{name}.ready")), "").unwrap();
    bench.push(&bench.ready(6)).unwrap();
    bench.push(&path).unwrap();
    assert_eq!(bench.fetch(name).unwrap(), Fetched::Absent);
    // What was written to is another file.
    fs::write(&path, &whole).unwrap();
    bench.push(&path).unwrap();
    assert_eq!(bench.fetch(name).unwrap(), Fetched::Written);
    assert_eq!(fs::read(bench.target()).unwrap(), whole);
}

#[test]
fn a_whole_segment_that_arrives_meanwhile_is_taken_instead_of_its_pieces() {
    let bench = Bench::new();
    let spool = bench.directory.path().join("spool");
    fs::create_dir(&spool).unwrap();
    let name = "000000010000000000000007";
    let whole = segment(1, 7, 9);
    let mut beginning = whole.clone();
    beginning[5000..].fill(0);
    fs::write(spool.join(format!("{name}.partial")), &beginning).unwrap();
    let mut receiver = crate::wal::Receiver::new(&spool, &bench.socket());
    receiver.pass().unwrap();
    let pieces = bench.objects.stored.lock().unwrap().clone();
    fs::remove_file(spool.join(format!("{name}.partial"))).unwrap();
    fs::write(spool.join(name), &whole).unwrap();
    receiver.pass().unwrap();
    let id = WalName::from_file_name(SYSTEM, name).unwrap().id();
    let body = bench.objects.stored.lock().unwrap().remove(&id).unwrap();
    for left in [pieces, BTreeMap::new()] {
        *bench.objects.stored.lock().unwrap() = left;
        *bench.objects.arriving.lock().unwrap() = Some((id, body.clone()));
        let fetched = bench.fetch_or(name, Partly::Pieces).unwrap();
        assert_eq!(fetched, Fetched::Written);
        assert!(
            fs::read(bench.target()).unwrap() == whole,
            "not the whole one"
        );
    }
}
