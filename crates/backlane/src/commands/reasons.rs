//! How a reason stands in documents, for programs and for people.

use backlane_net::RouteDown;
use backlane_proto::Reason;
use serde::{Deserialize, Serialize};

/// A reason.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ReasonDocument {
    /// Its name, for programs.
    pub(super) reason: String,
    /// Its number.
    pub(super) code: u32,
    /// The same in words.
    pub(super) what: String,
}

/// Why something can't be used.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct DownDocument {
    #[serde(flatten)]
    pub(super) reason: ReasonDocument,
    /// The facts; may be empty.
    pub(super) detail: String,
}

impl DownDocument {
    /// The reason and the facts in words.
    pub(super) fn text(&self) -> String {
        match (self.reason.what.as_str(), self.detail.as_str()) {
            (what, "") => what.to_owned(),
            (what, detail) => format!("{what} ({detail})"),
        }
    }
}

impl From<Reason> for ReasonDocument {
    fn from(reason: Reason) -> Self {
        Self {
            reason: reason.name().to_owned(),
            code: reason.code(),
            what: reason.to_string(),
        }
    }
}

impl From<&RouteDown> for DownDocument {
    fn from(down: &RouteDown) -> Self {
        Self {
            reason: down.reason.into(),
            detail: down.detail.clone(),
        }
    }
}
