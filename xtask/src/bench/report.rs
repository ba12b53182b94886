//! What was measured, as a table and as JSON.

use std::{
    fmt::{self, Display, Formatter},
    fs,
    path::Path,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// What a value must be to reach the goal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// Smaller than this.
    Below(f64),
    /// This or smaller.
    AtMost(f64),
    /// No goal: the value explains others.
    None,
}

impl Goal {
    fn met(self, value: f64) -> Option<bool> {
        match self {
            Self::Below(limit) => Some(value < limit),
            Self::AtMost(limit) => Some(value <= limit),
            Self::None => None,
        }
    }
}

#[derive(Debug)]
struct Measure {
    row: String,
    name: String,
    unit: &'static str,
    goal: Goal,
    values: Vec<f64>,
}

impl Measure {
    fn sorted(&self) -> Vec<f64> {
        let mut values = self.values.clone();
        values.sort_by(f64::total_cmp);
        values
    }

    fn median(&self) -> f64 {
        percentile(&self.sorted(), 50)
    }
}

/// All that was measured.
#[derive(Debug)]
pub struct Report {
    quick: bool,
    measures: Vec<Measure>,
}

impl Report {
    /// Nothing yet.
    pub fn new(quick: bool) -> Self {
        Self {
            quick,
            measures: Vec::new(),
        }
    }

    /// Adds a value; one of the same row and name joins those of earlier rounds.
    pub fn add(&mut self, row: &str, name: &str, value: f64, unit: &'static str, goal: Goal) {
        eprintln!("bench:   {row}: {name} {} {unit}", shown(value));
        let known = self
            .measures
            .iter_mut()
            .find(|measure| measure.row == row && measure.name == name);
        if let Some(measure) = known {
            measure.values.push(value);
            return;
        }
        self.measures.push(Measure {
            row: row.to_owned(),
            name: name.to_owned(),
            unit,
            goal,
            values: vec![value],
        });
    }

    /// How many goals the median misses.
    pub fn misses(&self) -> usize {
        let missed = |measure: &&Measure| measure.goal.met(measure.median()) == Some(false);
        self.measures.iter().filter(missed).count()
    }

    /// Writes it as JSON.
    pub fn write(&self, file: &Path) -> Result<()> {
        let text = format!("{:#}\n", self.json());
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    fn json(&self) -> Value {
        let measures: Vec<_> = self
            .measures
            .iter()
            .map(|measure| {
                let (below, at_most) = match measure.goal {
                    Goal::Below(limit) => (Some(limit), None),
                    Goal::AtMost(limit) => (None, Some(limit)),
                    Goal::None => (None, None),
                };
                json!({
                    "row": measure.row,
                    "measure": measure.name,
                    "unit": measure.unit,
                    "values": measure.values,
                    "median": measure.median(),
                    "goal_below": below,
                    "goal_at_most": at_most,
                    "met": measure.goal.met(measure.median()),
                })
            })
            .collect();
        json!({"machine": machine(), "quick": self.quick, "measures": measures})
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| row | measure | unit | min | median | max | goal | met |"
        )?;
        writeln!(f, "|---|---|---|--:|--:|--:|--:|---|")?;
        for measure in &self.measures {
            let values = measure.sorted();
            let goal = match measure.goal {
                Goal::Below(limit) => format!("< {}", shown(limit)),
                Goal::AtMost(limit) => format!("<= {}", shown(limit)),
                Goal::None => String::new(),
            };
            let met = match measure.goal.met(measure.median()) {
                Some(true) => "yes",
                Some(false) => "**no**",
                None => "",
            };
            writeln!(
                f,
                "| {} | {} | {} | {} | {} | {} | {goal} | {met} |",
                measure.row,
                measure.name,
                measure.unit,
                shown(percentile(&values, 0)),
                shown(percentile(&values, 50)),
                shown(percentile(&values, 100)),
            )?;
        }
        Ok(())
    }
}

/// The nearest-rank percentile of sorted values.
pub fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

fn shown(value: f64) -> String {
    if value.fract() == 0.0 {
        format!("{value:.0}")
    } else if value < 10.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.1}")
    }
}

/// What it was measured on, without anything that names the machine.
fn machine() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        text.lines()
            .find(|line| line.starts_with(name))
            .and_then(|line| line.split(':').nth(1))
            .map(|value| value.trim().to_owned())
    };
    json!({
        "cpus": std::thread::available_parallelism().map_or(0, std::num::NonZeroUsize::get),
        "cpu": field(&read("/proc/cpuinfo"), "model name"),
        "memory": field(&read("/proc/meminfo"), "MemTotal"),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "load": read("/proc/loadavg").trim(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        let at = |percent| percentile(&values, percent);
        let close = |a: f64, b: f64| (a - b).abs() < f64::EPSILON;
        assert!(close(at(0), 1.0) && close(at(50), 50.0) && close(at(99), 99.0));
        assert!(close(at(100), 100.0) && close(percentile(&[7.0], 50), 7.0));
    }

    #[test]
    fn a_goal_is_judged_by_the_median() {
        let mut report = Report::new(false);
        for value in [0.1, 0.2, 9.0] {
            report.add("cold", "exact", value, "s", Goal::Below(0.7));
        }
        assert_eq!(report.misses(), 0);
        report.add("warm", "writes", 1.0, "", Goal::AtMost(0.0));
        assert_eq!(report.misses(), 1);
        assert!(
            report
                .to_string()
                .contains("| warm | writes |  | 1 | 1 | 1 | <= 0 | **no** |")
        );
    }
}
