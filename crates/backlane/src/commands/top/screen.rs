//! The view as text of 80 columns.
//!
//! Invariant: no name or reason, whoever made it up, breaks a line or reaches the terminal as a command.

use super::{
    View,
    status::{self, ProcessDocument},
};
use crate::{
    commands::reasons::DownDocument,
    output::{bytes, table},
};
use status::{RouteDocument, SessionDocument};

const COLUMNS: usize = 80;
/// Changes that are shown of a session.
const CHANGES_SHOWN_MAX: usize = 3;

/// Draws a view; rates are what has changed since the one before.
pub(super) fn text(view: &View, before: Option<&View>) -> String {
    let mut page = Page::default();
    let sessions: usize = view.processes.iter().map(|it| it.sessions.len()).sum();
    page.line(
        0,
        &format!(
            "backlane top  {}  {}, {}",
            super::super::server::time(std::time::SystemTime::now()),
            counted(view.processes.len(), "process", "processes"),
            counted(sessions, "session", "sessions"),
        ),
    );
    for process in &view.processes {
        let before = before.and_then(|view| {
            let is_same =
                |it: &&ProcessDocument| it.pid == process.pid && it.since == process.since;
            view.processes.iter().find(is_same)
        });
        page.process(process, before);
    }
    if view.processes.is_empty() {
        let places: Vec<_> = view
            .looked_in
            .iter()
            .map(|it| it.display().to_string())
            .collect();
        page.line(0, "");
        page.line(
            0,
            &format!("no server and no job runs: looked in {}", places.join(", ")),
        );
    }
    for trouble in &view.troubles {
        let (path, what) = (trouble.path.display(), &trouble.what);
        page.line(0, "");
        page.line(
            0,
            &match trouble.pid {
                Some(pid) => format!("process {pid} can't be asked: {what} ({path})"),
                None => format!("processes may be missing here: {what} ({path})"),
            },
        );
    }
    page.0
}

/// A text that takes the place of the one before on a terminal, as far as there is room for it.
pub(super) fn redrawn(text: &str, is_first: bool) -> String {
    let rows = rustix::termios::tcgetwinsize(std::io::stdout())
        .map_or(usize::MAX, |size| usize::from(size.ws_row));
    fitted(text, if rows == 0 { usize::MAX } else { rows }, is_first)
}

fn fitted(text: &str, rows: usize, is_first: bool) -> String {
    // Lines are written over in place, which doesn't flicker; the first time what stood there is cleared.
    let mut out = String::from(if is_first { "\x1b[2J\x1b[H" } else { "\x1b[H" });
    // The cursor takes the last row.
    let (all, room) = (text.lines().count(), rows.saturating_sub(1));
    let kept = if all > room {
        room.saturating_sub(1)
    } else {
        all
    };
    for line in text.lines().take(kept) {
        out.push_str(line);
        out.push_str("\x1b[K\n");
    }
    if kept < all {
        out.push_str(&format!("… {} lines more\x1b[K\n", all - kept));
    }
    out.push_str("\x1b[J");
    out
}

#[derive(Default)]
struct Page(String);

impl Page {
    /// Adds a line, indented, on as many rows as it takes.
    fn line(&mut self, indent: usize, line: &str) {
        let mut row = " ".repeat(indent);
        let mut width = indent;
        for word in clean(line).split_inclusive(' ') {
            for piece in pieces(word, COLUMNS - indent - 2) {
                let count = piece.trim_end().chars().count();
                if width + count > COLUMNS && width > indent {
                    self.row(&row);
                    row = " ".repeat(indent + 2);
                    width = indent + 2;
                }
                row.push_str(piece);
                width += piece.chars().count();
            }
        }
        self.row(&row);
    }

    fn row(&mut self, row: &str) {
        self.0.push_str(row.trim_end());
        self.0.push('\n');
    }

    /// Adds a table, indented.
    fn table(&mut self, rows: &[Vec<String>]) {
        for row in table(rows).lines() {
            self.row(&format!("    {row}"));
        }
    }

    fn process(&mut self, process: &ProcessDocument, before: Option<&ProcessDocument>) {
        let ProcessDocument {
            role,
            pid,
            server,
            version,
            ..
        } = process;
        let direction = if role == "server" { "at" } else { "to" };
        self.line(0, "");
        self.line(
            0,
            &format!(
                "{role}  pid {pid}  {direction} {server}  since {}  {version}",
                process.since
            ),
        );
        if let Some(pool) = &process.pool {
            let slot = pool
                .slot
                .map_or_else(String::new, |slot| format!("  slot {slot}"));
            self.line(2, &format!("pool {}{slot}", pool.uuid));
            if let Some(down) = &pool.down {
                self.line(2, &format!("the pool can't be used: {}", down.text()));
            }
        }
        if process.sessions.is_empty() {
            self.line(2, "no sessions");
        }
        for session in &process.sessions {
            let before = before.and_then(|process| {
                let is_same = |it: &&SessionDocument| {
                    it.session == session.session
                        && it.host == session.host
                        && it.seconds < session.seconds
                };
                process.sessions.iter().find(is_same)
            });
            self.session(session, before);
        }
    }

    fn session(&mut self, session: &SessionDocument, before: Option<&SessionDocument>) {
        let mut head = vec![session.host.clone()];
        head.extend(session.session.as_ref().map(|id| {
            let begin: String = id.chars().take(8).collect();
            format!("#{begin}")
        }));
        head.push(format!("for {}", short(session.seconds)));
        head.push(session.policy.clone());
        head.push(match &session.control {
            Some(route) => format!("requests by {route}"),
            None => "no way for requests".to_owned(),
        });
        let waiting = session
            .calls_waiting
            .map_or_else(String::new, |it| format!(", {it} waiting"));
        head.push(format!(
            "{}{waiting}",
            counted(session.calls, "call", "calls")
        ));
        self.line(2, &head.join("  "));
        let head = [
            "route",
            "state",
            "for",
            "sent",
            "sent/s",
            "received",
            "received/s",
        ];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(session.routes.iter().map(|route| {
            traffic(
                route,
                before.map(|before| (before, session.seconds - before.seconds)),
            )
        }));
        self.table(&rows);
        let head = [
            "route",
            "bodies sent",
            "received",
            "queued",
            "in flight",
            "credits",
            "resent",
            "asked",
        ];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(session.routes.iter().map(queues));
        self.table(&rows);
        let repeated = session.objects_repeated.zip(session.bytes_repeated);
        if let Some((objects @ 1.., repeated)) = repeated {
            let bodies = if objects == 1 { "body" } else { "bodies" };
            let repeated = bytes(repeated);
            self.line(
                4,
                &format!("{objects} {bodies} begun once more, {repeated}"),
            );
        }
        let changes: Vec<_> = session.changes.iter().rev().collect();
        let changes = &changes[..changes.len().min(CHANGES_SHOWN_MAX)];
        for route in &session.routes {
            // What is told with its time is not told twice.
            let is_told = |what: &String| changes.iter().any(|it| it.what.as_ref() == Some(what));
            let down = route.down.as_ref().map(DownDocument::text);
            if let Some(down) = down.filter(|down| !is_told(down)) {
                self.line(4, &format!("{} is down: {down}", route.route));
            }
        }
        for change in changes {
            let ago = short(session.seconds - change.after_seconds);
            self.line(4, &format!("{ago} ago: {}", change.news()));
        }
    }
}

/// How a route stands, what it has carried, and how fast since `before`, so many seconds ago.
fn traffic(route: &RouteDocument, before: Option<(&SessionDocument, f64)>) -> Vec<String> {
    let before = before.and_then(|(session, seconds)| {
        let before = session.routes.iter().find(|it| it.route == route.route)?;
        Some((before, seconds))
    });
    let rate = |of: fn(&RouteDocument) -> u64| match before {
        Some((before, seconds)) => per_second(of(route).saturating_sub(of(before)), seconds),
        None => "–".to_owned(),
    };
    vec![
        clean(&route.route),
        if route.up { "up" } else { "down" }.to_owned(),
        short(route.seconds),
        bytes(route.bytes_sent),
        rate(|it| it.bytes_sent),
        bytes(route.bytes_received),
        rate(|it| it.bytes_received),
    ]
}

/// What waits on a route, and what was sent twice.
fn queues(route: &RouteDocument) -> Vec<String> {
    let stream = route.stream.as_ref();
    let known = |count: Option<u64>| count.map_or_else(|| "–".to_owned(), |it| it.to_string());
    vec![
        clean(&route.route),
        route.objects_sent.to_string(),
        route.objects_received.to_string(),
        known(route.chunks_queued.map(|it| it as u64)),
        known(stream.map(|it| it.frames_outstanding)),
        known(stream.map(|it| it.credits)),
        known(stream.map(|it| it.frames_resent)),
        known(stream.map(|it| it.resends_requested)),
    ]
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate for people has four digits, and the cast saturates"
)]
fn per_second(count: u64, seconds: f64) -> String {
    bytes((count as f64 / seconds) as u64)
}

/// A duration in two units at most: `7s`, `4m05s`, `1h02m`, `3d04h`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "whole seconds, and the cast saturates"
)]
fn short(seconds: f64) -> String {
    let seconds = seconds as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// What could play tricks on a terminal is escaped.
fn clean(text: &str) -> String {
    let escaped = |c: char| match c {
        '"' | '\'' | '\\' => c.to_string(),
        _ => c.escape_debug().to_string(),
    };
    text.chars().map(escaped).collect()
}

/// A word in pieces that fit a row.
fn pieces(word: &str, width: usize) -> impl Iterator<Item = &str> {
    let mut rest = word;
    std::iter::from_fn(move || {
        let end = rest
            .char_indices()
            .nth(width)
            .map_or(rest.len(), |(at, _)| at);
        let (piece, left) = rest.split_at(end);
        rest = left;
        Some(piece).filter(|piece| !piece.is_empty())
    })
}

#[cfg(test)]
mod tests;
