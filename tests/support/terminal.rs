//! Pictures of what a program has printed on a terminal, for the README: text as SVG.
//!
//! Columns stay where they are with whatever monospaced font the reader has, and the colours follow the reader's choice of a
//! light or dark page.

use std::fmt::Write as _;

use crate::broken::broken;

/// A character, in pixels. Text is fitted to it.
const CHARACTER: f64 = 7.7;
const LINE: f64 = 18.0;
const MARGIN: f64 = 20.0;

const STYLE: &str = "\
  text { font: 12.8px ui-monospace, SFMono-Regular, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace;
    fill: #1f2328 }
  .page { fill: #ffffff; stroke: #d1d9e0 }
  .typed { font-weight: 600 }
  .heading { fill: #59636e }
  .good { fill: #1a7f37; font-weight: 600 }
  .bad { fill: #cf222e; font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc }
    .page { fill: #0d1117; stroke: #3d444d }
    .heading { fill: #9198a1 }
    .good { fill: #3fb950 }
    .bad { fill: #f85149 }
  }
";

/// What stands out of a line of the program where something is wrong.
const WRONG: [&str; 2] = ["DROPS it", "REFUSES it"];

/// The text of an SVG file. `title` is for those who cannot see it.
pub(crate) fn svg(title: &str, shown: &str) -> String {
    let lines: Vec<(&str, &str)> = shown
        .trim_end()
        .lines()
        .flat_map(|line| broken(line).into_iter().map(move |part| (part, class(line))))
        .collect();
    let columns = lines.iter().map(|(line, _)| line.chars().count()).max().unwrap_or(0);
    let width = (columns as f64 * CHARACTER + 2.0 * MARGIN).ceil();
    let height = (lines.len() as f64 * LINE + 2.0 * MARGIN).ceil();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         role=\"img\" aria-labelledby=\"title\">\n<title id=\"title\">{}</title>\n<style>\n{STYLE}</style>\n\
         <rect class=\"page\" x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"8\"/>\n",
        escaped(title),
        width - 1.0,
        height - 1.0,
    );
    for ((line, class), number) in lines.iter().zip(1_u32..) {
        let y = MARGIN + LINE * f64::from(number) - 5.0;
        let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
        for (column, piece) in pieces(line) {
            let (x, length) = (MARGIN + column as f64 * CHARACTER, piece.chars().count() as f64 * CHARACTER);
            let piece = escaped(piece);
            writeln!(svg, "<text{class} x=\"{x:.1}\" y=\"{y}\" textLength=\"{length:.1}\">{piece}</text>")
                .expect("a String takes all");
        }
    }
    svg + "</svg>\n"
}

/// What a line is.
fn class(line: &str) -> &'static str {
    let is_heading = |line: &str| {
        line.split_whitespace().count() > 1 && line.chars().all(|c| c.is_ascii_uppercase() || matches!(c, ' ' | '/'))
    };
    match line {
        line if line.starts_with("# ") => "typed",
        "=> REACHED" => "good",
        line if line.starts_with("=> ") || WRONG.iter().any(|word| line.contains(word)) => "bad",
        line if is_heading(line) => "heading",
        _ => "",
    }
}

/// What stands between gaps of two blanks or more, each with its column.
fn pieces(line: &str) -> Vec<(usize, &str)> {
    let mut pieces = Vec::new();
    let mut column = 0;
    for part in line.split("  ") {
        let text = part.trim();
        if !text.is_empty() {
            pieces.push((column + part.chars().take_while(|c| *c == ' ').count(), text));
        }
        column += part.chars().count() + 2;
    }
    pieces
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
