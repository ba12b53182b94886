//! `lictor gc --dead OLD --hand-to NEW`.

use super::Desk;
use crate::app;
use crate::cli::complain;
use crate::consul::Client;
use crate::gc::findings::{Deed, Findings};
use crate::gc::{dead, handover};
use crate::model::names::ClusterName;

/// What to do where something stayed.
const REMEDY: &str = "look at why, and try again; instances whose copies never come go without --hand-to, and so do \
                      intentions and queries that could not be handed over";

/// Shows what a cluster left that was renamed, and hands it over to its new name.
pub(super) async fn hand_over(
    consul: &Client,
    old: &ClusterName,
    to: &ClusterName,
    desk: Desk,
) -> anyhow::Result<()> {
    let handover = handover::find(consul, old, to).await?;
    let mut findings = Findings::of(old);
    findings.add_handover(old, &handover);
    let of = format!(" of {old}");
    if findings.is_empty() {
        desk.show(&findings, &format!("nothing is left{of}"), "")?;
        return desk.end(&findings);
    }
    let (handed, removed) = (handover.count(), handover.estate.count());
    let about = format!("to be handed over to {to}: {handed}; to be removed: {removed}{of}");
    desk.show(&findings, &about, "does both")?;
    if !desk.agrees("Do both?").await? {
        return desk.end(&findings);
    }
    handover.verify_runs(consul).await?;
    let epoch = dead::take_epoch(consul, old, app::holder(), complain).await?;
    let (handed, outcome, done) = handover.carry_out(consul, epoch, complain).await;
    let deed = Deed {
        handed: Some(handed),
        removed: Some(outcome.removed),
        stayed: outcome.stayed,
        ..Deed::default()
    };
    desk.end_done(findings, deed, (&of, done), REMEDY)
}
