//! The end of what objects held without claiming it.

use super::held_under;
use crate::desired::index::{Holding, Index, Touched};
use crate::model::key::Key;
use crate::observed::mirror::Mirror;

/// Takes what was seen of objects that held what they did not claim for the end of that, where nothing keeps
/// it now.
pub fn end_let_go(touched: &Touched, desired: &mut Index, observed: &Mirror) {
    for owner in &touched.entries_let_go {
        for key in observed.entries_held_by(owner) {
            desired.withdraw_entry(key);
        }
    }
    for let_go in &touched.let_go {
        let Holding { owner, node } = &let_go.holding;
        for key in observed.held_by(owner, node.as_ref()) {
            if let Key::Instance(key) = &key
                && let Some(held) = held_under(key, observed)
            {
                desired.withdraw(key, &held, let_go);
            }
        }
    }
}
