//! The settings by which a restored cluster recovers.

use super::Lsn;
use std::str::FromStr;

/// What the server says in the settings file that it keeps itself, and what a restore puts there instead.
const OURS: [&str; 3] = [
    "archive_cleanup_command",
    "recovery_end_command",
    "restore_command",
];

/// What begins the names of the other settings of an earlier recovery.
const OURS_BEGIN: &str = "recovery_target";

/// How far a cluster recovers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To the end of the WAL.
    Latest,
    /// Until the backup is consistent.
    Immediate,
    /// To a time, as PostgreSQL understands it.
    Time(String),
    /// To a position in the WAL.
    Lsn(Lsn),
    /// To a transaction.
    Transaction(u64),
    /// To a point that pg_create_restore_point named.
    Name(String),
}

/// Why a recovery target is none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is no recovery target: latest, immediate, time=…, lsn=…, xid=… and name=… are")]
pub struct SettingError {
    text: String,
}

impl FromStr for Target {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let target = match (text, text.split_once('=')) {
            ("latest", _) => Some(Self::Latest),
            ("immediate", _) => Some(Self::Immediate),
            (_, Some((_, ""))) => None,
            (_, Some(("time", time))) => Some(Self::Time(time.to_owned())),
            (_, Some(("lsn", lsn))) => lsn.parse().ok().map(Self::Lsn),
            (_, Some(("xid", number))) => number.parse().ok().map(Self::Transaction),
            (_, Some(("name", name))) => Some(Self::Name(name.to_owned())),
            _ => None,
        };
        target.ok_or_else(|| SettingError {
            text: text.to_owned(),
        })
    }
}

/// What a server does once it has reached its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetAction {
    /// Waits, and answers those who only read.
    Pause,
    /// Becomes a server that is written to.
    Promote,
    /// Ends.
    Shutdown,
}

/// How a restored cluster recovers.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Recovery {
    /// How far.
    pub target: Option<Target>,
    /// Whether the target itself is left out.
    pub is_exclusive: bool,
    /// Along which timeline: a number, `current` or `latest`; the server's default when `None`.
    pub timeline: Option<String>,
    /// What happens then; the server's default when `None`.
    pub action: Option<TargetAction>,
    /// Whether it goes on to follow another server.
    pub is_standby: bool,
    /// The command that fetches a segment of the WAL.
    pub restore_command: String,
}

impl Recovery {
    /// Whether nothing is said of how to recover.
    #[must_use]
    pub fn is_default(&self) -> bool {
        let command = &self.restore_command;
        let default = Self {
            restore_command: command.clone(),
            ..Self::default()
        };
        *self == default
    }

    /// The empty file that tells the server to recover by the settings.
    #[must_use]
    pub fn signal_file(&self) -> &'static str {
        match self.is_standby {
            true => "standby.signal",
            false => "recovery.signal",
        }
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![("restore_command", self.restore_command.clone())];
        lines.extend(match &self.target {
            None | Some(Target::Latest) => None,
            Some(Target::Immediate) => Some(("recovery_target", "immediate".to_owned())),
            Some(Target::Time(time)) => Some(("recovery_target_time", time.clone())),
            Some(Target::Lsn(lsn)) => Some(("recovery_target_lsn", lsn.to_string())),
            Some(Target::Transaction(number)) => Some(("recovery_target_xid", number.to_string())),
            Some(Target::Name(name)) => Some(("recovery_target_name", name.clone())),
        });
        if self.is_exclusive {
            lines.push(("recovery_target_inclusive", "off".to_owned()));
        }
        if let Some(timeline) = &self.timeline {
            lines.push(("recovery_target_timeline", timeline.clone()));
        }
        if let Some(action) = self.action {
            let action = match action {
                TargetAction::Pause => "pause",
                TargetAction::Promote => "promote",
                TargetAction::Shutdown => "shutdown",
            };
            lines.push(("recovery_target_action", action.to_owned()));
        }
        lines
    }
}

/// The content of `postgresql.auto.conf` with the settings of a recovery, if there is to be one, instead of those of an
/// earlier one.
#[must_use]
pub fn settings(before: &str, recovery: Option<&Recovery>) -> String {
    let is_ours = |line: &&str| {
        let name = line
            .trim_start()
            .split(|c: char| !(c.is_alphanumeric() || c == '_'));
        let name = name
            .into_iter()
            .next()
            .unwrap_or_default()
            .to_ascii_lowercase();
        OURS.contains(&name.as_str()) || name.starts_with(OURS_BEGIN)
    };
    let mut text: String = before
        .lines()
        .filter(|line| !is_ours(line))
        .map(|line| format!("{line}\n"))
        .collect();
    for (name, value) in recovery.into_iter().flat_map(Recovery::lines) {
        let quoted = value.replace('\\', "\\\\").replace('\'', "''");
        text.push_str(&format!("{name} = '{quoted}'\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_an_earlier_recovery_give_way() {
        let before = "# Do not edit\nwork_mem = '4MB'\nRestore_Command = 'old'\n  recovery_target_time='x'\n\
                      recovery_target = 'immediate'\nrecovery_min_apply_delay = '1h'\nprimary_conninfo = 'host=a'";
        let recovery = Recovery {
            target: Some(Target::Name("it's".to_owned())),
            is_exclusive: true,
            timeline: Some("latest".to_owned()),
            action: Some(TargetAction::Promote),
            is_standby: false,
            restore_command: r"fetch '\%f' %p".to_owned(),
        };
        let kept = "# Do not edit\nwork_mem = '4MB'\nrecovery_min_apply_delay = '1h'\nprimary_conninfo = 'host=a'\n";
        assert_eq!(settings(before, None), kept);
        assert!(!recovery.is_default());
        assert_eq!(
            settings(before, Some(&recovery)),
            "# Do not edit\nwork_mem = '4MB'\nrecovery_min_apply_delay = '1h'\nprimary_conninfo = 'host=a'\n\
             restore_command = 'fetch ''\\\\%f'' %p'\nrecovery_target_name = 'it''s'\n\
             recovery_target_inclusive = 'off'\nrecovery_target_timeline = 'latest'\n\
             recovery_target_action = 'promote'\n"
        );
    }

    #[test]
    fn targets_are_named_as_the_server_names_them() {
        for (text, target) in [
            ("latest", Target::Latest),
            ("immediate", Target::Immediate),
            (
                "time=2026-01-31 12:00:00+01",
                Target::Time("2026-01-31 12:00:00+01".to_owned()),
            ),
            ("lsn=0/3000028", Target::Lsn(Lsn(0x300_0028))),
            ("xid=4294967297", Target::Transaction(0x1_0000_0001)),
            ("name=before=after", Target::Name("before=after".to_owned())),
        ] {
            assert_eq!(text.parse(), Ok(target));
        }
        for bad in ["", "now", "time=", "lsn=3", "xid=x", "what=1"] {
            bad.parse::<Target>().unwrap_err();
        }
    }
}
