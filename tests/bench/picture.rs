//! The picture for the README: how long each kind of change takes to reach packets, with nftproxyd and with a kube-proxy.
//!
//! Times differ by four orders of magnitude, so the scale is logarithmic; the ratio is written beside it. The colours
//! follow the reader's choice of a light or dark page.

use std::fmt::Write as _;

/// What is drawn.
#[derive(Debug)]
pub(crate) struct Picture {
    /// How many Services there are.
    pub(crate) services: usize,
    /// How many endpoints each of them has.
    pub(crate) endpoints: usize,
    /// When, where and with what it was measured.
    pub(crate) circumstances: String,
    /// At least one.
    pub(crate) rows: Vec<Row>,
}

/// Medians of one kind of change.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) what: String,
    /// Milliseconds, more than 0.
    pub(crate) nftproxyd: f64,
    /// Milliseconds, more than 0.
    pub(crate) kube_proxy: f64,
}

const WIDTH: f64 = 840.0;
const MARGIN: f64 = 28.0;
/// Where the scale begins and ends.
const LEFT: f64 = 196.0;
const RIGHT: f64 = 704.0;
/// Of the first row.
const TOP: f64 = 138.0;
const ROW: f64 = 46.0;
/// No label of a time is wider.
const LABEL: f64 = 60.0;

const STYLE: &str = "\
  text { font-family: -apple-system, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', Helvetica, Arial, sans-serif; fill: #1f2328 }
  .title { font-size: 19px; font-weight: 600 }
  .what { font-size: 14px }
  .small { font-size: 12px; fill: #59636e }
  .right { text-anchor: end }
  .value { font-size: 12.5px; font-weight: 600; text-anchor: middle }
  .ratio { font-size: 14px; font-weight: 600; text-anchor: end }
  .tick { font-size: 12px; fill: #59636e; text-anchor: middle }
  .page { fill: #ffffff; stroke: #d1d9e0 }
  .grid { stroke: #e4e8ec }
  .between { stroke: #c4ccd4; stroke-width: 2 }
  .ours { fill: #0969da }
  .theirs { fill: #bc4c00 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc }
    .small, .tick { fill: #9198a1 }
    .page { fill: #0d1117; stroke: #3d444d }
    .grid { stroke: #262c36 }
    .between { stroke: #4b535d }
    .ours { fill: #58a6ff }
    .theirs { fill: #f0883e }
  }
";

impl Picture {
    /// The text of an SVG file.
    pub(crate) fn svg(&self) -> String {
        let (first, last) = self.decades();
        let x = |ms: f64| LEFT + (RIGHT - LEFT) * (ms.log10() - f64::from(first)) / f64::from(last - first);
        let bottom = TOP + ROW * self.rows.len() as f64 - 12.0;
        let height = bottom + 70.0;
        let size = format!("{} Services with {} endpoints each", grouped(self.services), grouped(self.endpoints));
        let mut svg = String::new();
        let mut line = |text: std::fmt::Arguments<'_>| writeln!(svg, "{text}").expect("a String takes all");

        line(format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
             height=\"{height}\" role=\"img\" aria-labelledby=\"title description\">"
        ));
        line(format_args!("<title id=\"title\">From a change to packets: nftproxyd beside kube-proxy, {size}</title>"));
        line(format_args!("<desc id=\"description\">{}</desc>", escaped(&self.description())));
        line(format_args!("<style>\n{STYLE}</style>"));
        let (inner_width, inner_height) = (WIDTH - 1.0, height - 1.0);
        line(format_args!(
            "<rect class=\"page\" x=\"0.5\" y=\"0.5\" width=\"{inner_width}\" height=\"{inner_height}\" rx=\"8\"/>"
        ));
        line(format_args!("<text class=\"title\" x=\"{MARGIN}\" y=\"40\">From a change to packets</text>"));
        line(format_args!(
            "<text class=\"small\" x=\"{MARGIN}\" y=\"62\">{size}. Median time from the API server's answer to the first \
             connection that shows the change.</text>"
        ));
        for (at, class, name) in [(LEFT, "ours", "nftproxyd"), (LEFT + 110.0, "theirs", "kube-proxy")] {
            line(format_args!("<circle class=\"{class}\" cx=\"{}\" cy=\"91\" r=\"6\"/>", at + 6.0));
            line(format_args!("<text class=\"what\" x=\"{}\" y=\"96\">{name}</text>", at + 19.0));
        }
        let ratios = WIDTH - MARGIN;
        line(format_args!("<text class=\"small right\" x=\"{ratios}\" y=\"96\">kube-proxy / nftproxyd</text>"));
        line(format_args!("<text class=\"small\" x=\"{MARGIN}\" y=\"{}\">logarithmic scale</text>", bottom + 18.0));

        for decade in first..=last {
            let at = x(10_f64.powi(decade));
            let top = TOP - 24.0;
            line(format_args!("<line class=\"grid\" x1=\"{at:.1}\" y1=\"{top}\" x2=\"{at:.1}\" y2=\"{bottom}\"/>"));
            let label = tick(decade);
            line(format_args!("<text class=\"tick\" x=\"{at:.1}\" y=\"{}\">{label}</text>", bottom + 18.0));
        }
        for (row, y) in self.rows.iter().zip((0..).map(|number| TOP + ROW * f64::from(number))) {
            let (ours, theirs, text) = (x(row.nftproxyd), x(row.kube_proxy), y + 5.0);
            line(format_args!("<text class=\"what\" x=\"{MARGIN}\" y=\"{text}\">{}</text>", escaped(&row.what)));
            line(format_args!("<line class=\"between\" x1=\"{ours:.1}\" y1=\"{y}\" x2=\"{theirs:.1}\" y2=\"{y}\"/>"));
            // Where one would cover the other, kube-proxy's time is below.
            let below = if (ours - theirs).abs() < LABEL { y + 21.0 } else { y - 11.0 };
            for (class, at, label, ms) in
                [("theirs", theirs, below, row.kube_proxy), ("ours", ours, y - 11.0, row.nftproxyd)]
            {
                line(format_args!("<circle class=\"{class}\" cx=\"{at:.1}\" cy=\"{y}\" r=\"6\"/>"));
                let time = time(ms);
                line(format_args!("<text class=\"value\" x=\"{at:.1}\" y=\"{label}\">{time}</text>"));
            }
            let ratio = ratio(row.kube_proxy / row.nftproxyd);
            line(format_args!("<text class=\"ratio\" x=\"{ratios}\" y=\"{text}\">{ratio} ×</text>"));
        }
        line(format_args!(
            "<text class=\"small\" x=\"{MARGIN}\" y=\"{}\">{}</text>",
            height - 18.0,
            escaped(&self.circumstances)
        ));
        svg + "</svg>\n"
    }

    /// The powers of ten around all times, in milliseconds.
    fn decades(&self) -> (i32, i32) {
        let times = || self.rows.iter().flat_map(|row| [row.nftproxyd, row.kube_proxy]);
        let least = times().fold(f64::INFINITY, f64::min).log10().floor();
        let most = times().fold(0.0, f64::max).log10().ceil();
        (least as i32, (most as i32).max(least as i32 + 1))
    }

    /// The same for those who cannot see it.
    fn description(&self) -> String {
        let of = |row: &Row| format!("{}: {} and {}", row.what, time(row.nftproxyd), time(row.kube_proxy));
        let rows: Vec<String> = self.rows.iter().map(of).collect();
        format!("Medians with nftproxyd and with kube-proxy. {}. {}.", rows.join("; "), self.circumstances)
    }
}

/// A time with two significant digits.
fn time(ms: f64) -> String {
    match ms {
        ms if ms >= 10_000.0 => format!("{:.0} s", ms / 1e3),
        ms if ms >= 1_000.0 => format!("{:.1} s", ms / 1e3),
        ms if ms >= 10.0 => format!("{ms:.0} ms"),
        ms if ms >= 1.0 => format!("{ms:.1} ms"),
        ms => format!("{ms:.2} ms"),
    }
}

/// A power of ten in milliseconds.
fn tick(decade: i32) -> String {
    match decade {
        3.. => format!("{} s", 10_u64.pow(decade.unsigned_abs() - 3)),
        0..3 => format!("{} ms", 10_u64.pow(decade.unsigned_abs())),
        _ => format!("{:.*} ms", decade.unsigned_abs() as usize, 10_f64.powi(decade)),
    }
}

/// With two significant digits.
fn ratio(ratio: f64) -> String {
    if ratio < 10.0 {
        return format!("{ratio:.1}");
    }
    let unit = 10_f64.powf(ratio.log10().floor() - 1.0);
    grouped(((ratio / unit).round() * unit) as usize)
}

/// With commas between thousands.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let group = |(at, digit): (usize, char)| {
        let comma = at > 0 && (digits.len() - at).is_multiple_of(3);
        comma.then_some(',').into_iter().chain([digit])
    };
    digits.chars().enumerate().flat_map(group).collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
