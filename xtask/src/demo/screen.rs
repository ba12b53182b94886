//! What is shown: steps, tables, times. Colours only on a terminal.

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use tokio::time::Instant;

const BOLD: &str = "1";
const DIM: &str = "2";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const RED: &str = "31";
const CYAN: &str = "36";

/// Standard output.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    colours: bool,
}

#[allow(
    clippy::unused_self,
    reason = "whoever shows something has a screen, coloured or not"
)]
impl Screen {
    /// As the terminal, if it is one, allows it.
    pub fn new() -> Self {
        let wanted = env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            colours: wanted && io::stdout().is_terminal(),
        }
    }

    /// Begins a step.
    pub fn step(self, number: usize, title: &str) {
        println!("\n{}", self.paint(BOLD, &format!("{number}. {title}")));
    }

    /// A line of text.
    pub fn say(self, text: &str) {
        println!("   {text}");
    }

    /// A command that does what was done, or shows what follows.
    pub fn command(self, command: &str) {
        println!("   {} {}", self.paint(DIM, "$"), self.paint(CYAN, command));
    }

    /// What a command printed.
    pub fn output(self, output: &str) {
        for line in output.trim_end().lines() {
            println!("     {line}");
        }
    }

    /// How long something took until Consul showed it.
    pub fn took(self, what: &str, took: Duration) {
        let arrow = self.paint(GREEN, "✓");
        println!("   {arrow} {what}: {}", self.paint(BOLD, &time(took)));
    }

    /// Shows that something is under way; [`Doing::done`] says how long it took.
    pub fn doing(self, what: &str) -> Doing {
        print!("   {what} ...");
        // A terminal that is gone is noticed by what is printed next.
        let _ = io::stdout().flush();
        Doing {
            screen: self,
            started: Instant::now(),
        }
    }

    /// A table; the columns are as wide as they need to be. A health is coloured.
    pub fn table<const N: usize>(self, head: [&str; N], rows: &[[String; N]]) {
        let mut widths = head.map(str::len);
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let line = |cells: [&str; N], heading: bool| {
            let mut line = String::from("     ");
            for (cell, width) in cells.into_iter().zip(widths) {
                let padded = format!("{cell:width$}   ");
                let code = match cell {
                    _ if heading => DIM,
                    "passing" => GREEN,
                    "warning" => YELLOW,
                    "critical" => RED,
                    _ => "",
                };
                line.push_str(&self.paint(code, &padded));
            }
            line.trim_end().to_owned()
        };
        println!("{}", line(head, true));
        for row in rows {
            println!("{}", line(row.each_ref().map(String::as_str), false));
        }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colours && !code.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Something under way.
#[must_use]
#[derive(Debug)]
pub struct Doing {
    screen: Screen,
    started: Instant,
}

impl Doing {
    /// It is done.
    pub fn done(self) {
        let took = time(self.started.elapsed());
        println!(" {}", self.screen.paint(DIM, &took));
    }
}

/// A time, as exact as it is of interest.
pub fn time(took: Duration) -> String {
    if took < Duration::from_millis(10) {
        format!("{:.1} ms", took.as_secs_f64() * 1e3)
    } else if took < Duration::from_secs(1) {
        format!("{} ms", took.as_millis())
    } else {
        format!("{:.1} s", took.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_as_exact_as_of_interest() {
        let shown = |micros| time(Duration::from_micros(micros));
        assert_eq!(shown(3_210), "3.2 ms");
        assert_eq!(shown(32_100), "32 ms");
        assert_eq!(shown(3_210_000), "3.2 s");
    }
}
