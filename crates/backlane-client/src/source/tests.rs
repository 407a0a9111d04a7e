//! A walk on several threads: gives what one thread gives, looks at nothing twice or in vain, holds little, and ends.

use super::*;
use crate::source::ahead::limits;
use backlane_repo::{Cancel, Entry, Warning};
use rustix::fs::{XattrFlags, setxattr};
use std::{
    collections::HashMap,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    process::Command,
    sync::{
        Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

/// How long what is bound to happen may take.
const SOON: Duration = Duration::from_secs(20);

/// A directory that others may look into, and that is real.
struct Place {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        run("chmod", &["755".as_ref(), path.as_os_str()]);
        Self { _dir: dir, path }
    }

    fn dir(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn files(&self, dir: &str, count: usize) {
        let dir = self.dir(dir);
        for number in 0..count {
            fs::write(dir.join(format!("{number:05}")), "").unwrap();
        }
    }

    /// A chain of directories `c`, in each of which so many files come after the next one.
    fn chain(&self, depth: usize, files: usize) -> Vec<PathBuf> {
        let mut path = "chain".to_owned();
        let mut levels = Vec::new();
        for _ in 0..depth {
            path.push_str("/c");
            let dir = self.dir(&path);
            for number in 0..files {
                fs::write(dir.join(format!("d{number}")), "").unwrap();
            }
            levels.push(dir);
        }
        levels
    }
}

fn run(program: &str, arguments: &[&OsStr]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

/// Another file system with a file in it, as long as this lives.
struct Mounted(PathBuf);

impl Mounted {
    /// `None` without root.
    fn at(path: PathBuf) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let arguments = ["-t", "tmpfs", "none"].map(OsStr::new);
        run("mount", &[&arguments[..], &[path.as_os_str()]].concat());
        let mounted = Self(path);
        fs::write(mounted.0.join("foreign"), "").unwrap();
        Some(mounted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &["-l".as_ref(), self.0.as_os_str()]);
    }
}

/// A walk to be.
struct Trial {
    options: SourceOptions,
    copies: Arc<Copies>,
    cancel: Cancel,
    fresh_for: Duration,
    threads: usize,
}

impl Trial {
    fn new(threads: usize) -> Self {
        Self {
            options: SourceOptions::default(),
            copies: Arc::default(),
            cancel: Cancel::default(),
            // However slow the machine is.
            fresh_for: Duration::MAX,
            threads,
        }
    }

    fn source(&self, path: &Path, detail: Detail) -> Source {
        let reporter = Arc::new(Reporter::new(Arc::new(()), self.cancel.clone()));
        let walk = WalkOptions {
            detail,
            copies: Arc::clone(&self.copies),
            threads: NonZero::new(self.threads),
        };
        let mut source = Source::new(&[path.to_owned()], &self.options, walk, reporter).unwrap();
        Arc::get_mut(&mut source.shared).unwrap().fresh_for = self.fresh_for;
        source
    }

    fn watched(&self, path: &Path, watch: impl Fn(Doing, &Path) + Send + Sync + 'static) -> Source {
        let mut source = self.source(path, Detail::Full);
        Arc::get_mut(&mut source.shared).unwrap().watch = Some(Box::new(watch));
        source
    }
}

/// All that a walk tells of something.
fn told(found: Result<Entry, Warning>) -> String {
    match found {
        Ok(entry) => {
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            let names = entry.meta.xattrs.iter();
            let names: Vec<_> = names
                .map(|one| String::from_utf8_lossy(&one.name))
                .collect();
            let what = (entry.kind, entry.open.is_some(), &names, &entry.meta);
            format!("{path:?} {what:?}")
        }
        Err(warning) => format!("{warning:?}"),
    }
}

/// What a walk tells of its root and what is below; above it other tests are at work.
fn all_told(source: &Source) -> Vec<String> {
    let root = source.roots[0].as_os_str().as_bytes();
    let is_above = |found: &Result<Entry, Warning>| {
        found
            .as_ref()
            .is_ok_and(|entry| !entry.path.starts_with(root))
    };
    let mut walk = source.walk();
    let all = walk.by_ref().filter(|found| !is_above(found));
    let all = all.map(told).collect();
    assert_eq!(walk.ahead.held(), 0);
    all
}

/// What of a tree is open.
fn open_below(path: &Path) -> usize {
    let open = fs::read_dir("/proc/self/fd").unwrap();
    let open = open.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
    open.filter(|target| target.starts_with(path)).count()
}

fn assert_same(expected: &[String], told: &[String]) {
    for (expected, told) in expected.iter().zip(told) {
        assert_eq!(expected, told);
    }
    assert_eq!(expected.len(), told.len());
}

/// Everything that the order and the warnings could depend on.
fn hard_tree(place: &Place) -> PathBuf {
    let made = place.dir("tree/made");
    let options = fidelity::TreeOptions {
        small_files: 100,
        big_file_bytes: 1 << 16,
        ..fidelity::TreeOptions::default()
    };
    fidelity::make_tree(&made, &options).unwrap();
    place.files("tree/large", 1500);
    place.files("tree/kept", 3);
    fs::write(place.path.join("tree/kept/.nobackup"), "").unwrap();
    for number in 0..150 {
        place.files(&format!("tree/many/{number}/sub"), number % 4);
        place.files(&format!("tree/many/{number}/cache/deep"), 2);
    }
    for name in ["a.db", "a.db-wal", "b.db", "b.db-wal", "ibdata1", "ibtmp1"] {
        fs::write(place.dir("tree/databases").join(name), "").unwrap();
    }
    let closed = place.dir("tree/many/77/closed");
    fs::write(closed.join("unseen"), "").unwrap();
    run("chmod", &["000".as_ref(), closed.as_os_str()]);
    let mut random = fidelity::Random::new(7);
    let mut path = "tree/wild".to_owned();
    for _ in 0..90 {
        let count = usize::try_from(random.below(6)).unwrap();
        place.files(&path, count);
        for name in ["~after", "!before"] {
            place.files(&format!("{path}/{name}"), count);
        }
        path.push_str("/c\u{1}");
    }
    for number in 0..40 {
        let file = place.dir("tree/sparse").join(number.to_string());
        fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
        setxattr(&file, "user.x", b"1", XattrFlags::empty()).unwrap();
    }
    place.path.join("tree")
}

#[test]
fn any_number_of_threads_gives_what_one_gives() {
    let place = Place::new();
    let tree = hard_tree(&place);
    let compare = |options: &SourceOptions| {
        let trial = |threads| {
            let mut trial = Trial::new(threads);
            trial.options = options.clone();
            trial
        };
        let expected = all_told(&trial(1).source(&tree, Detail::Full));
        let (fresh, stale) = (Duration::MAX, Duration::ZERO);
        for (threads, fresh_for) in [(2, fresh), (3, fresh), (4, fresh), (4, fresh), (4, stale)] {
            let calls = AtomicUsize::new(threads);
            let mut trial = trial(threads);
            trial.fresh_for = fresh_for;
            let source = trial.watched(&tree, move |_, _| {
                // Now these are slow and now those.
                let call = calls.fetch_add(1, Ordering::Relaxed);
                (0..call * 7919 % 13).for_each(|_| thread::yield_now());
            });
            assert_same(&expected, &all_told(&source));
        }
        expected
    };
    let everything = compare(&SourceOptions::default());
    let told_of = |told: &[String], what: &str| told.iter().any(|line| line.contains(what));
    for what in ["SQLite", "MariaDB", "backlane.holes", "large/01499"] {
        assert!(told_of(&everything, what), "{what}");
    }
    let patterns = ["cache/", "*7/sub", "!before", "/**/large/*3"];
    let some = SourceOptions {
        excludes: Excludes {
            patterns: patterns.map(str::to_owned).to_vec(),
            if_present: vec![".nobackup".into()],
            ..Excludes::default()
        },
        file_systems: FileSystems::One,
        access_times: AccessTimes::Kept,
        ..SourceOptions::default()
    };
    let some = compare(&some);
    assert!(some.len() < everything.len() && !told_of(&some, "kept/0"));
    if rustix::process::geteuid().is_root() {
        let nobody = rustix::thread::Uid::from_raw(65534);
        thread::scope(|scope| {
            scope.spawn(|| {
                // Of this thread alone, and of those that it starts.
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
                let seen = compare(&SourceOptions::default());
                assert!(
                    told_of(&seen, "closed\", kind: Incomplete")
                        || told_of(&seen, "can't be listed")
                );
            });
        });
    }
}

#[test]
fn each_name_is_looked_at_once_and_nothing_that_is_left_out() {
    let place = Place::new();
    let tree = hard_tree(&place);
    let database = place.path.join("tree/many/33/real.db");
    let connection = rusqlite::Connection::open(&database).unwrap();
    connection.execute_batch("CREATE TABLE t (x)").unwrap();
    drop(connection);
    let copies = Copies::make(
        std::slice::from_ref(&database),
        &place.path,
        &Cancel::default(),
    );
    for companion in ["real.db-wal", "real.db-shm"] {
        fs::write(database.with_file_name(companion), "").unwrap();
    }
    let mounted = Mounted::at(place.dir("tree/many/5/mounted"));
    let seen: Arc<Mutex<HashMap<(Doing, PathBuf), usize>>> = Arc::default();
    let mut trial = Trial::new(4);
    trial.copies = Arc::new(copies.unwrap());
    trial.options.file_systems = FileSystems::One;
    trial.options.excludes.patterns = vec!["cache/".to_owned(), "*.db-wal".to_owned()];
    trial.options.excludes.if_present = vec![".nobackup".into()];
    let note = Arc::clone(&seen);
    let source = trial.watched(&tree, move |doing, path| {
        let mut seen = note.lock().unwrap();
        *seen.entry((doing, path.to_owned())).or_default() += 1;
    });
    let entries: Vec<Entry> = source.walk().flatten().collect();
    let seen = seen.lock().unwrap();
    let times = |doing, path: &Path| seen.get(&(doing, path.to_owned())).copied().unwrap_or(0);
    for entry in &entries {
        let path = Path::new(OsStr::from_bytes(&entry.path));
        let is_below = path.starts_with(&tree) && path != tree;
        assert_eq!(times(Doing::Looks, path), usize::from(is_below), "{path:?}");
        let is_dir = entry.kind == backlane_repo::FileKind::Directory;
        let is_foreign = mounted.as_ref().is_some_and(|mounted| path == mounted.0);
        let lists = usize::from(is_dir && !is_foreign && path.starts_with(&tree));
        // One with many names is begun with ahead, and left to the walk.
        let again = usize::from(path == tree.join("large"));
        let listed = times(Doing::Lists, path);
        assert!(
            (lists..=lists + again).contains(&listed),
            "{path:?}: {listed}"
        );
    }
    let left_out: Vec<_> = seen
        .keys()
        .filter(|(_, path)| {
            !entries
                .iter()
                .any(|entry| entry.path == path.as_os_str().as_bytes())
        })
        .collect();
    // Those that patterns name are looked at, as a pattern may be for directories alone.
    assert_eq!(left_out.len(), 150 + 2);
    for (doing, path) in left_out {
        let is_named = path.ends_with("cache") || path.extension() == Some("db-wal".as_ref());
        assert!(*doing == Doing::Looks && is_named, "{path:?}");
    }
    assert!(entries.iter().any(|entry| entry.path.ends_with(b"real.db")));
}

#[test]
fn a_directory_that_was_moved_away_costs_what_it_costs_one_thread() {
    let place = Place::new();
    let levels = place.chain(100, 3);
    for level in &levels {
        fs::create_dir_all(level.join("e/sub")).unwrap();
    }
    let told = [1, 4].map(|threads| {
        let source = Trial::new(threads).source(&place.path, Detail::Full);
        let mut walk = source.walk();
        let bottom = levels.last().unwrap().as_os_str().as_bytes();
        let is_bottom = |found: Result<Entry, Warning>| found.unwrap().path == bottom;
        assert!(walk.by_ref().any(is_bottom));
        fs::rename(&levels[20], place.path.join("moved")).unwrap();
        let told: Vec<_> = walk.map(told_path).collect();
        fs::rename(place.path.join("moved"), &levels[20]).unwrap();
        told
    });
    assert_same(&told[0], &told[1]);
    assert!(told[0].iter().any(|line| line.contains("can't be reached")));
    assert!(told[0].len() < 500);
}

fn told_path(found: Result<Entry, Warning>) -> String {
    found.map_or_else(
        |warning| format!("{warning:?}"),
        |entry| String::from_utf8(entry.path).unwrap(),
    )
}

/// What was held ahead of a walk.
#[derive(Debug)]
struct Held {
    /// The most entries.
    entries: usize,
    /// The least, as long as not all were looked at.
    least: usize,
    /// The most of the tree that was open.
    open: usize,
}

/// Takes a part of a walk, lets its threads do what they will, and sees how much is held then; again and again. First
/// come some steps of one entry.
fn held(path: &Path, step: usize) -> Held {
    let looks = Arc::new(AtomicUsize::new(0));
    let note = Arc::clone(&looks);
    let source = Trial::new(4).watched(path, move |doing, _| {
        note.fetch_add(usize::from(doing == Doing::Looks), Ordering::Relaxed);
    });
    let mut walk = source.walk();
    let above = path.components().count() - 1;
    assert_eq!(walk.by_ref().take(above).count(), above);
    let steps = std::iter::repeat_n(1, 40).chain(std::iter::repeat(step));
    let (mut taken, mut open, mut ahead) = (0, 0, Vec::new());
    for step in steps {
        let some = walk.by_ref().take(step).count();
        taken += some;
        walk.ahead.settle();
        let looks = looks.load(Ordering::Relaxed);
        ahead.push((looks, looks - taken));
        open = open.max(open_below(path));
        if some < step {
            break;
        }
    }
    let before_all = ahead.iter().filter(|(looks, _)| *looks < taken);
    Held {
        entries: ahead.iter().map(|(_, ahead)| *ahead).max().unwrap(),
        least: before_all.map(|(_, ahead)| *ahead).min().unwrap(),
        open,
    }
}

#[test]
fn what_was_found_too_long_ago_is_looked_at_again() {
    let told = [Duration::MAX, Duration::ZERO].map(|fresh_for| {
        let place = Place::new();
        place.files("0", 100);
        place.files("1/sub", 3);
        let mut trial = Trial::new(4);
        trial.fresh_for = fresh_for;
        let source = trial.source(&place.path, Detail::Full);
        let mut walk = source.walk();
        let is_first = |found: Result<Entry, Warning>| found.unwrap().path.ends_with(b"/0/00000");
        assert!(walk.by_ref().any(is_first));
        walk.ahead.settle();
        fs::write(place.path.join("0/00099"), "grown").unwrap();
        fs::write(place.path.join("1/sub/new"), "").unwrap();
        fs::remove_file(place.path.join("1/sub/00002")).unwrap();
        let rest: Vec<Entry> = walk.flatten().collect();
        let bytes: u64 = rest.iter().map(|entry| entry.meta.size).sum();
        (
            rest.len(),
            bytes,
            rest.last().unwrap().path.ends_with(b"new"),
        )
    });
    assert_eq!(told, [(99 + 2 + 3, 0, false), (99 + 2 + 3, 5, true)]);
}

#[test]
fn what_is_held_is_bounded_whatever_the_shape_of_a_tree() {
    let threads = 4;
    // What threads have begun with when there was room.
    let near = limits::NEAR + threads * limits::BATCH;
    let all = limits::HELD + threads * 2 * limits::BATCH;

    let flat = Place::new();
    flat.files("flat", limits::HELD + 1500);
    let flat = held(&flat.path, 100);
    assert!(
        flat.least >= limits::NEAR && flat.entries < near,
        "{flat:?}"
    );
    assert!(flat.open < 8, "{flat:?}");

    let wide = Place::new();
    for number in 0..1500 {
        wide.files(&format!("wide/{number:04}"), 1);
    }
    let wide = held(&wide.path, 50);
    assert!(wide.least > 8 && wide.entries < near, "{wide:?}");
    // More than is near, as threads come back to names that were given back; half of what might be held.
    let directories = limits::HELD / limits::DIRECTORY / 2;
    assert!((8..directories).contains(&wide.open), "{wide:?}");

    // Each level of the way down leaves something behind that is held until the walk comes back.
    let deep = Place::new();
    deep.chain(30, 520);
    let deep = held(&deep.path, 200);
    assert!((limits::NEAR * 4..all).contains(&deep.entries), "{deep:?}");
    assert!(deep.least > 0 && deep.open < 100, "{deep:?}");
}

#[test]
fn a_directory_with_many_names_is_not_listed_ahead() {
    let place = Place::new();
    for number in 0..20 {
        place.files(&format!("large/{number:02}"), limits::LISTED + 1);
    }
    let held = held(&place.path, 500);
    assert!(
        held.entries < limits::NEAR + 4 * limits::BATCH + 20,
        "{held:?}"
    );
    assert!(held.open < 8, "{held:?}");
}

/// Walks a tree in which, whenever the walk looks at one of `names` for itself, a thread must look at a later one soon.
fn walk_with_company(path: &Path, names: std::ops::Range<PathBuf>) {
    let own = thread::current().id();
    let (furthest, changed) = (Mutex::new(PathBuf::new()), Condvar::new());
    let alone = Arc::new(AtomicUsize::new(0));
    let note = Arc::clone(&alone);
    let source = Trial::new(4).watched(path, move |_, path| {
        let is_there = names.start.parent() == path.parent();
        let mut furthest = furthest.lock().unwrap();
        if thread::current().id() != own {
            if is_there && *furthest < *path {
                path.clone_into(&mut furthest);
                changed.notify_all();
            }
        } else if is_there && *names.start <= *path && *path < *names.end {
            let behind = |furthest: &mut PathBuf| *furthest <= *path;
            let waited = changed.wait_timeout_while(furthest, SOON, behind);
            if waited.unwrap().1.timed_out() {
                note.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let mut walk = source.walk();
    while walk.next().is_some() && alone.load(Ordering::Relaxed) == 0 {
        walk.ahead.wait_for_idle();
    }
    assert_eq!(alone.load(Ordering::Relaxed), 0);
}

#[test]
fn threads_go_on_when_the_walk_has_taken_what_they_found() {
    let place = Place::new();
    place.files("flat", 3000);
    let flat = place.path.join("flat");
    walk_with_company(&place.path, flat.join("00000")..flat.join("02900"));

    // One that was closed on the way down, and is opened again.
    let levels = place.chain(100, 1);
    let file = |number| levels[2].join(format!("e{number:04}"));
    (0..2000).for_each(|number| fs::write(file(number), "").unwrap());
    walk_with_company(&place.path.join("chain"), file(0)..file(1900));
}

#[test]
fn several_threads_look_at_once_into_directories_that_the_walk_has_not_come_to() {
    let place = Place::new();
    for number in 0..200 {
        place.files(&format!("{number:03}"), 2);
    }
    let looking = Arc::new((Mutex::new(0), Condvar::new()));
    let far = Arc::new(Mutex::new(false));
    let (note, note_far) = (Arc::clone(&looking), Arc::clone(&far));
    let tree = place.path.clone();
    let source = Trial::new(4).watched(&place.path, move |doing, path| {
        if doing == Doing::Lists {
            return;
        }
        let is_below = path.parent() != Some(&tree);
        if is_below && !path.starts_with(tree.join("000")) {
            *note_far.lock().unwrap() = true;
        }
        let (count, changed) = &*note;
        let mut looking = count.lock().unwrap();
        *looking += 1;
        changed.notify_all();
        // Until three have met; those that come later go on at once.
        let alone = |count: &mut i32| *count < 3;
        let (_looking, waited) = changed.wait_timeout_while(looking, SOON, alone).unwrap();
        assert!(!waited.timed_out());
    });
    let mut walk = source.walk();
    let name = |found: Option<Result<Entry, Warning>>| found.unwrap().unwrap().path;
    while name(walk.next()) != place.path.join("000").as_os_str().as_bytes() {}
    walk.ahead.settle();
    assert!(*far.lock().unwrap());
    assert_eq!(walk.flatten().count(), 199 + 400);
}

#[test]
fn one_thread_and_a_count_start_no_other() {
    let place = Place::new();
    place.files("flat", 300);
    for (threads, detail) in [(1, Detail::Full), (4, Detail::Count)] {
        let mut source = Trial::new(threads).source(&place.path, detail);
        let own = thread::current().id();
        let watch = move |_, _: &Path| assert_eq!(thread::current().id(), own);
        Arc::get_mut(&mut source.shared).unwrap().watch = Some(Box::new(watch));
        let mut walk = source.walk();
        assert!(walk.by_ref().flatten().count() > 300);
        assert_eq!(Arc::strong_count(&source.shared), 3);
    }
}

#[test]
fn a_cancelled_walk_ends_in_the_middle_of_what_is_being_looked_at() {
    let place = Place::new();
    place.files("flat", 1000);
    let trial = Trial::new(4);
    let looks = Arc::new(AtomicUsize::new(0));
    let (note, cancel) = (Arc::clone(&looks), trial.cancel.clone());
    let source = trial.watched(&place.path, move |doing, _| {
        if doing == Doing::Looks && note.fetch_add(1, Ordering::SeqCst) == 100 {
            cancel.cancel();
        }
    });
    assert!(source.walk().count() < 200);
    // Each thread and the walk may have been about to look.
    let looks = looks.load(Ordering::SeqCst);
    assert!(looks <= 101 + 5, "{looks}");
}

#[test]
fn a_walk_that_is_dropped_takes_its_threads_along() {
    let place = Place::new();
    place.files("flat", 5000);
    let source = Trial::new(4).source(&place.path, Detail::Full);
    for step in [1, 20, 700] {
        let mut walk = source.walk();
        assert_eq!(walk.by_ref().take(step).count(), step);
        drop(walk);
        assert_eq!(Arc::strong_count(&source.shared), 1);
    }
}

#[test]
fn a_panic_of_a_thread_goes_on_in_the_walk() {
    let place = Place::new();
    place.files("flat", 1000);
    let flat = place.path.join("flat");
    let (own, begun) = (thread::current().id(), AtomicBool::new(false));
    let source = Trial::new(4).watched(&place.path, move |doing, path| {
        if thread::current().id() != own {
            begun.store(true, Ordering::Relaxed);
            panic!("on purpose");
        }
        let is_one_of_many = doing == Doing::Looks && path.parent() == Some(&flat);
        while is_one_of_many && !begun.load(Ordering::Relaxed) {
            thread::yield_now();
        }
    });
    let walked = catch_unwind(AssertUnwindSafe(|| source.walk().count()));
    let panic = walked.unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"));
    assert_eq!(Arc::strong_count(&source.shared), 1);
}
