//! Sharing of texts that recur.

use std::collections::HashSet;
use std::sync::Arc;

use crate::model::text::Text;

/// Longer texts hardly recur, and hashing them costs more than they do.
const LONGEST: usize = 128;
/// Fewer texts than this are not worth a sweep.
const SWEEP_AT: usize = 4096;

/// Gives the same text the same memory: the labels of a thousand pods are mostly those of a few
/// templates.
#[derive(Debug, Default)]
pub struct Texts {
    known: HashSet<Text>,
    sweep_at: usize,
}

impl Texts {
    /// The shared form of `text`.
    pub fn share(&mut self, text: &str) -> Text {
        if text.len() > LONGEST {
            return Text::from(text);
        }
        if let Some(known) = self.known.get(text) {
            return known.clone();
        }
        if self.known.len() >= self.sweep_at.max(SWEEP_AT) {
            self.sweep();
        }
        let fresh = Text::from(text);
        self.known.insert(fresh.clone());
        fresh
    }

    /// Lets go of what nobody else holds any more; the next sweep is due at twice what is left.
    fn sweep(&mut self) {
        self.known.retain(|text| Arc::strong_count(text) > 1);
        self.sweep_at = self.known.len() * 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_share_memory() {
        let mut texts = Texts::default();
        let (a, b) = (texts.share("web"), texts.share("web"));
        assert!(Arc::ptr_eq(&a, &b));
        assert_eq!(&*texts.share("db"), "db");
    }

    #[test]
    fn what_nobody_holds_is_let_go() {
        let mut texts = Texts::default();
        let kept = texts.share("kept");
        for n in 0..10 * SWEEP_AT {
            texts.share(&format!("pod-{n}"));
        }
        assert!(
            texts.known.len() <= SWEEP_AT + 1,
            "{} texts",
            texts.known.len()
        );
        assert!(Arc::ptr_eq(&kept, &texts.share("kept")));
    }
}
