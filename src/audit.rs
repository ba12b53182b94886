//! The audit log: one line of a fixed schema for every removal, so that "what was removed and why" can be
//! answered later.

/// What was removed.
#[derive(Clone, Copy, Debug)]
pub struct Removed<'a> {
    /// `instance`, `node` or, by `lictor gc --dead`, `key`.
    pub kind: &'a str,
    /// Its key.
    pub key: &'a str,
    /// The object that it was for; empty for a node or a key.
    pub owner: &'a str,
    /// How it is known that nothing claims it.
    pub why: &'a str,
    /// Whether this process saw the claim go.
    pub seen: bool,
    /// The epoch that it was removed under.
    pub epoch: u64,
    /// The `ModifyIndex` of what was removed.
    pub index: u64,
}

/// Writes the line.
pub fn removed(removed: &Removed<'_>) {
    let Removed {
        kind,
        key,
        owner,
        why,
        seen,
        epoch,
        index,
    } = *removed;
    let time = jiff::Timestamp::now();
    tracing::info!(
        target: "audit", %time, kind, key, owner, why, seen, epoch, index, "removed"
    );
}
