//! What the view shows of documents that were made up, and that it fits and stays harmless.

use super::*;
use crate::commands::{
    reasons::ReasonDocument,
    status::{PoolDocument, StreamDocument},
    summary::Change,
    top::Trouble,
};
use backlane_proto::Reason;

const MIB: u64 = 1 << 20;

fn route(name: &str, bytes_sent: u64) -> RouteDocument {
    RouteDocument {
        route: name.to_owned(),
        up: true,
        down: None,
        seconds: 61.0,
        objects_sent: 3,
        bytes_sent,
        objects_received: 0,
        bytes_received: 10,
        chunks_queued: Some(2),
        stream: (name == "storage").then_some(StreamDocument {
            frames_outstanding: 31,
            credits: 1,
            frames_sent: 400,
            frames_received: 2,
            frames_resent: 5,
            resends_requested: 6,
        }),
    }
}

/// A backup that has lasted so long, and has sent so much by storage.
fn backup(seconds: f64, bytes_sent: u64) -> View {
    let session = SessionDocument {
        host: "db1".to_owned(),
        session: None,
        seconds,
        policy: "prefer-storage".to_owned(),
        control: Some("network".to_owned()),
        calls: 4,
        calls_waiting: Some(0),
        objects_repeated: Some(1),
        bytes_repeated: Some(16 * MIB),
        routes: vec![route("storage", bytes_sent), route("network", 1023)],
        changes: Vec::new(),
    };
    let mut process = ProcessDocument::new("backup", "store.example:4870".to_owned());
    process.since = "2026-01-31T12:00:00Z".to_owned();
    process.pid = 4242;
    process.pool = Some(PoolDocument {
        uuid: "2f7c1a55-0e3a-4c7e-9a57-0c1d2e3f4a5b".to_owned(),
        down: None,
        slot: Some(3),
    });
    process.sessions = vec![session];
    View {
        processes: vec![process],
        troubles: Vec::new(),
        looked_in: vec!["/var/lib/backlane/status".into()],
    }
}

/// The last so many rows that begin with this word.
fn rows<'a>(text: &'a str, word: &str) -> Vec<Vec<&'a str>> {
    text.lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words.first() == Some(&word))
        .collect()
}

fn fits(text: &str) {
    for line in text.lines() {
        assert!(line.chars().count() <= COLUMNS, "{line:?} in\n{text}");
    }
}

#[test]
fn rates_are_what_changed_between_two_views_in_the_time_of_the_process() {
    let (before, now) = (backup(10.0, 100 * MIB), backup(12.0, 104 * MIB));
    let text = text(&now, Some(&before));
    fits(&text);
    let storage = rows(&text, "storage");
    let traffic = "storage up 1m01s 104.0 MiB 2.0 MiB 10 B 0 B";
    assert_eq!(storage[0].join(" "), traffic, "{text}");
    assert_eq!(storage[1].join(" "), "storage 3 0 2 31 1 5 6", "{text}");
    let network = rows(&text, "network");
    assert_eq!(network[0].join(" "), "network up 1m01s 1023 B 0 B 10 B 0 B");
    assert_eq!(network[1].join(" "), "network 3 0 2 – – – –");
    assert!(text.contains("4 calls, 0 waiting"), "{text}");
    assert!(
        text.contains("\n    1 body begun once more, 16.0 MiB\n"),
        "{text}"
    );
}

#[test]
fn there_are_no_rates_of_one_view_nor_of_another_process_of_that_number() {
    let (mut before, now) = (backup(10.0, 100 * MIB), backup(12.0, 104 * MIB));
    let no_rates = |text: String| {
        let storage = rows(&text, "storage")[0].join(" ");
        assert_eq!(storage, "storage up 1m01s 104.0 MiB – 10 B –");
    };
    no_rates(text(&now, None));
    before.processes[0].since = "2026-01-31T11:00:00Z".to_owned();
    no_rates(text(&now, Some(&before)));
}

#[test]
fn numbers_of_any_size_stay_in_their_columns() {
    let mut view = backup(9e9, u64::MAX);
    let routes = &mut view.processes[0].sessions[0].routes;
    routes[0].objects_sent = 99_999_999;
    routes[0].bytes_received = 1023 * 1024 * MIB + 950 * MIB;
    fits(&text(&view, Some(&backup(8e9, 0))));
}

#[test]
fn what_is_down_and_what_moved_stand_with_their_reasons_the_newest_first() {
    let mut view = backup(100.0, 0);
    let session = &mut view.processes[0].sessions[0];
    let detail = "/dev/disk/by-id/scsi-3600140512345678".to_owned();
    let what = format!("a device of the pool failed ({detail})");
    session.routes[0].up = false;
    session.routes[0].down = Some(DownDocument {
        reason: Reason::DeviceError.into(),
        detail,
    });
    session.routes[1].down = Some(DownDocument {
        reason: Reason::Policy.into(),
        detail: String::new(),
    });
    let lost = |after_seconds, what: Option<&String>| Change {
        after_seconds,
        what_moved: "bodies".to_owned(),
        route: "storage".to_owned(),
        up: what.is_none(),
        reason: None,
        code: None,
        what: what.cloned(),
    };
    session.changes = vec![
        lost(1.0, Some(&"too old".to_owned())),
        lost(20.0, Some(&what)),
        lost(30.0, None),
        lost(95.0, Some(&what)),
    ];
    let text = text(&view, None);
    fits(&text);
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let words = format!(
        "network is down: the route policy says so 5s ago: storage was lost: {what} 1m10s ago: storage was taken back 1m20s ago: \
         storage was lost: {what}"
    );
    assert!(flat.ends_with(&words), "{text}");
    assert!(flat.contains("storage down 1m01s"), "{text}");
}

#[test]
fn names_and_reasons_break_neither_lines_nor_the_terminal() {
    let evil = "a\x1b[2J\nb\r\u{9b}31m\u{202e}c";
    let mut view = backup(1.0, 0);
    let process = &mut view.processes[0];
    let session = &mut process.sessions[0];
    for name in [
        &mut process.role,
        &mut process.server,
        &mut process.version,
        &mut process.since,
        &mut session.host,
        &mut session.policy,
        &mut session.routes[0].route,
    ] {
        *name = evil.to_owned();
    }
    session.control = Some(evil.to_owned());
    session.session = Some(evil.to_owned());
    session.routes[1].down = Some(DownDocument {
        reason: ReasonDocument {
            reason: evil.to_owned(),
            code: 0,
            what: evil.repeat(50),
        },
        detail: evil.to_owned(),
    });
    view.troubles.push(Trouble {
        path: evil.into(),
        pid: Some(1),
        what: evil.to_owned(),
    });
    let text = text(&view, None);
    let tricks = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
    assert!(!text.contains(tricks), "{text:?}");
    assert!(!text.lines().any(|line| line.starts_with("b\\r")), "{text}");
    assert!(text.contains("a\\u{1b}[2J\\nb"), "{text}");
}

#[test]
fn nothing_found_is_said_with_where_it_was_looked_for() {
    let mut view = backup(1.0, 0);
    view.processes.clear();
    let directory = view.looked_in[0].clone();
    view.troubles.push(Trouble {
        path: directory,
        pid: None,
        what: "Permission denied (os error 13)".to_owned(),
    });
    let text = text(&view, None);
    for line in [
        "no server and no job runs: looked in /var/lib/backlane/status\n",
        "processes may be missing here: Permission denied",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn a_view_longer_than_the_terminal_is_cut_and_says_so() {
    let drawn = fitted("1\n2\n3\n4\n", 4, true);
    let want = "\x1b[2J\x1b[H1\x1b[K\n2\x1b[K\n… 2 lines more\x1b[K\n\x1b[J";
    assert_eq!(drawn, want);
    let whole = fitted("1\n2\n", 3, false);
    assert_eq!(whole, "\x1b[H1\x1b[K\n2\x1b[K\n\x1b[J");
}
