//! What to do about a reason: one line each, for `path`, for failures, and for the page of reasons.

use backlane_proto::Reason;

/// What a user can do about it; none where there is nothing to be done.
pub(crate) fn about(reason: Reason) -> Option<&'static str> {
    Some(match reason {
        Reason::NoBody | Reason::Small | Reason::Probe => return None,
        Reason::Policy => "another `--route`, or another `route` in the configuration, allows more",
        Reason::NoPool => {
            "join again with `--device PATH` for each device of the pool, if this host sees them"
        }
        Reason::ServerHasNoPool => {
            "on the server: `backlane pool create`, and a section [pool] in its configuration"
        }
        Reason::PoolNotFound => {
            "check that every device is attached, and named by a path that doesn't change (/dev/disk/by-id/…)"
        }
        Reason::OtherPool => {
            "name the devices of the server's pool; `backlane pool info DEVICE…` says whose they are"
        }
        Reason::SlotRefused => {
            "on the server: `backlane pool add-slots`; then join again, so that this host learns of them"
        }
        Reason::SlotsBusy => {
            "wait for another job of this host, or on the server: `backlane pool add-slots`"
        }
        Reason::ChallengeNotSeen => {
            "the two hosts don't see the same device: compare `backlane pool info DEVICE…` on both, and \
             how the storage is mapped"
        }
        Reason::NoAnswer | Reason::CoordinatorBusy => {
            "check that `backlane server run` runs and has the device: `backlane pool members DEVICE…` \
             says who is alive there"
        }
        Reason::NoFreeSegments => "wait for other jobs, or make a larger pool",
        Reason::DeviceError => "look for errors of that device in the kernel's logs of both hosts",
        Reason::LivenessLost => "check that the other host is up and still has the device",
        Reason::StreamReset => {
            "it is opened again by itself; if it happens again, the logs of both sides say why"
        }
        Reason::Pending => "look again in a moment",
        Reason::NetworkDown => {
            "let the server's data port through the firewall: `data-ports` in its configuration sets it"
        }
        Reason::Geometry => {
            "give the device the size and the logical blocks that it had; otherwise, when no job runs: \
             `backlane pool destroy`, and make the pool anew"
        }
        Reason::ControlLost => {
            "another is opened by itself; if it happens again, look at the network between the hosts"
        }
        Reason::Unreachable => {
            "check that `backlane server run` runs there, and that its port is let through"
        }
        Reason::Refused => {
            "what it says is why; a certificate that isn't accepted is got anew with `backlane join`"
        }
        // Also those of later versions.
        _ => "use the same version of Backlane on both hosts",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_of_reasons_says_what_the_code_says() {
        let page = include_str!("../../../docs/reasons.md");
        let rows: Vec<&str> = page
            .lines()
            .filter(|line| line.starts_with("| ") && line[2..].starts_with(char::is_numeric))
            .collect();
        assert_eq!(rows.len(), Reason::all().count(), "{rows:#?}");
        for (row, reason) in rows.into_iter().zip(Reason::all()) {
            let said = |by| {
                let (code, name) = (reason.code(), reason.name());
                let advice = about(reason).unwrap_or("nothing: nothing is wrong");
                format!("| {code} | `{name}` | {reason} | {by} | {advice} |")
            };
            assert!(
                ["client", "server", "both"]
                    .map(said)
                    .contains(&row.to_owned()),
                "the page has\n{row}\nand the code\n{}",
                said("client")
            );
        }
    }
}
