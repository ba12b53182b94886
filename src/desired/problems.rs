//! Problems with an object, bounded: whoever can create a pod can write any number of them.

/// Most problems that are told of one object or instance.
const MOST: usize = 8;
/// Longest problem, in bytes.
const LONGEST: usize = 512;

/// What is wrong, for people.
#[derive(Debug, Default)]
pub(super) struct Problems {
    told: Vec<String>,
    more: usize,
}

impl Problems {
    /// Adds a problem.
    pub(super) fn push(&mut self, mut problem: String) {
        if self.told.len() == MOST {
            self.more += 1;
            return;
        }
        if problem.len() > LONGEST {
            problem.truncate(problem.floor_char_boundary(LONGEST));
            problem.push('…');
        }
        self.told.push(problem);
    }

    /// Whether nothing is wrong.
    pub(super) fn is_empty(&self) -> bool {
        self.told.is_empty()
    }

    /// The problems; the last one says how many there are beside them.
    pub(super) fn into_vec(mut self) -> Vec<String> {
        if self.more > 0 {
            self.told.push(format!("and {} more", self.more));
        }
        self.told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_bounded_in_number_and_length() {
        let mut problems = Problems::default();
        for _ in 0..100 {
            problems.push("ä".repeat(LONGEST));
        }
        let told = problems.into_vec();
        assert_eq!(told.len(), MOST + 1);
        assert_eq!(told[MOST], "and 92 more");
        assert!(told[0].len() <= LONGEST + '…'.len_utf8());
    }
}
