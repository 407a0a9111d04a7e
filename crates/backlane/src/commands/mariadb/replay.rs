//! `backlane mariadb replay`: brings a restored server to a later moment.

use crate::{
    Context,
    cli::MariadbReplayArgs,
    commands::{damage::Damage, session},
    output::{Outcome, bytes},
    progress::Bar,
};
use anyhow::Result;
use backlane_client::{
    Progress,
    mariadb::{ReplaySummary, Restored, read_runs, replay as run},
};
use serde::Serialize;
use std::sync::Arc;

#[derive(Serialize)]
struct ReplayDocument {
    snapshot: String,
    until: String,
    #[serde(flatten)]
    summary: ReplaySummary,
    /// Snapshots of which nothing is known: binary logs may be among them.
    damaged: Damage,
}

/// Has the restored server do what its archived binary logs say.
///
/// # Errors
/// When they don't come to the moment, or a statement fails.
pub(super) fn replay(args: &MariadbReplayArgs, context: &Context) -> Result<Outcome> {
    let access = args.access.access();
    let document = session::job("mariadb replay", context, &args.route, |client| {
        let repository = client.repository()?;
        let mut damaged = Damage::none(context);
        let snapshot = damaged.resolve(&repository, &args.snapshot)?;
        let restored = Restored::find(&access, &snapshot)?;
        let snapshots = damaged.snapshots(&repository)?;
        let reader = damaged.reader(&repository)?;
        let (runs, unread) = read_runs(&reader, &snapshots, &restored.backup().data_directory)?;
        for error in &unread {
            damaged.note(error, "the binary logs of that snapshot are not used");
        }
        let bar = Bar::new(context.output, client.carried());
        let progress: Arc<dyn Progress> = bar.clone();
        let cancel = context.cancel.token();
        let done = run(
            &reader,
            &restored,
            (&runs, &args.until),
            &access,
            &client.config.state,
            &progress,
            &cancel,
        );
        bar.finish();
        Ok(ReplayDocument {
            snapshot: snapshot.id.to_string(),
            until: args.until.to_string(),
            summary: done?,
            damaged,
        })
    })?;
    context.output.result(&document, ReplayDocument::text)?;
    Ok(document.damaged.outcome())
}

impl ReplayDocument {
    fn text(&self) -> String {
        let files = &self.summary.files;
        let (Some(first), Some(last)) = (files.first(), files.last()) else {
            return "nothing to replay\n".to_owned();
        };
        let files = match files.len() {
            1 => first.to_string(),
            files => format!("{files} binary logs, {first} to {last}"),
        };
        let bytes = bytes(self.summary.bytes);
        format!("replayed {files} ({bytes}) until {}\n", self.until)
    }
}
