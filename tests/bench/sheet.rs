//! What was measured, as a Markdown table.

use std::fmt::Write as _;

use crate::picture::{self, Picture};
use crate::proxy::Kind;
use crate::size::Size;

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Milliseconds,
    Microseconds,
    MiB,
    /// Of one core.
    Percent,
    Count,
    Bytes,
}

/// A row of the table.
#[derive(Debug)]
struct Row {
    size: Size,
    what: String,
    unit: Unit,
    nftproxyd: Option<f64>,
    kube_proxy: Option<f64>,
    floor: Option<f64>,
    target: Option<f64>,
}

/// The rows, in the order in which they were first noted.
#[derive(Debug)]
pub(crate) struct Sheet {
    rows: Vec<Row>,
    compares: bool,
}

impl Sheet {
    /// `compares`: with columns for kube-proxy.
    pub(crate) fn new(compares: bool) -> Sheet {
        Sheet { rows: Vec::new(), compares }
    }

    /// Notes a number, and tells whoever waits for the table.
    pub(crate) fn note(&mut self, size: Size, kind: Kind, what: &str, unit: Unit, value: f64) {
        eprintln!("{size}: {kind}: {what}: {}", show(value, unit));
        let row = self.row(size, what, unit);
        match kind {
            Kind::Nftproxyd => row.nftproxyd = Some(value),
            Kind::KubeProxy => row.kube_proxy = Some(value),
        }
    }

    /// Notes what the kernel needs for it at least.
    pub(crate) fn note_floor(&mut self, size: Size, what: &str, unit: Unit, value: f64) {
        self.row(size, what, unit).floor = Some(value);
    }

    /// Notes what it should be at most.
    pub(crate) fn note_target(&mut self, size: Size, what: &str, unit: Unit, value: f64) {
        self.row(size, what, unit).target = Some(value);
    }

    fn row(&mut self, size: Size, what: &str, unit: Unit) -> &mut Row {
        let known = self.rows.iter().position(|row| row.size == size && row.what == what);
        let at = known.unwrap_or_else(|| {
            let (nftproxyd, kube_proxy, floor, target) = (None, None, None, None);
            self.rows.push(Row { size, what: what.to_owned(), unit, nftproxyd, kube_proxy, floor, target });
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }

    /// The picture of how long changes take to packets, of the last size at which both were measured.
    pub(crate) fn picture(&self, circumstances: String) -> Option<Picture> {
        let drawn = |row: &Row| {
            let what = row.what.strip_suffix(": p50 to packets")?.trim_end_matches(", the only one").to_owned();
            let (nftproxyd, kube_proxy) = row.nftproxyd.zip(row.kube_proxy)?;
            // An answer may come after the packets: that is 0, which has no place on the scale.
            let (nftproxyd, kube_proxy) = (nftproxyd.max(0.01), kube_proxy.max(0.01));
            Some((row.size, picture::Row { what, nftproxyd, kube_proxy }))
        };
        let all: Vec<_> = self.rows.iter().filter_map(drawn).collect();
        let size = all.last()?.0;
        let rows = all.into_iter().filter(|(of, _)| *of == size).map(|(_, row)| row).collect();
        Some(Picture { services: size.services, endpoints: size.endpoints, circumstances, rows })
    }

    /// The table. A ratio is that of nftproxyd's number to the one on its left, but the last is kube-proxy's to nftproxyd's.
    pub(crate) fn table(&self) -> String {
        let mut columns = vec!["Services", "what", "nftproxyd", "floor", "× floor", "target", "× target"];
        if self.compares {
            columns.extend(["kube-proxy", "× nftproxyd"]);
        }
        let mut table = String::new();
        let mut line = |cells: &[String]| writeln!(table, "| {} |", cells.join(" | ")).expect("a String takes all");
        line(&columns.iter().map(|&column| column.to_owned()).collect::<Vec<_>>());
        let rules = columns.iter().enumerate().map(|(column, _)| if column < 2 { "---" } else { "---:" }.to_owned());
        line(&rules.collect::<Vec<_>>());
        for row in &self.rows {
            let number = |value: Option<f64>| value.map_or_else(String::new, |value| show(value, row.unit));
            let times = |value: Option<f64>, of: Option<f64>| match value.zip(of) {
                Some((value, of)) if of > 0.0 => format!("{:.2}", value / of),
                _ => String::new(),
            };
            let Row { nftproxyd, kube_proxy, floor, target, .. } = *row;
            let mut cells = vec![
                row.size.to_string(),
                row.what.clone(),
                number(nftproxyd),
                number(floor),
                times(nftproxyd, floor),
                number(target),
                times(nftproxyd, target),
            ];
            if self.compares {
                cells.extend([number(kube_proxy), times(kube_proxy, nftproxyd)]);
            }
            line(&cells);
        }
        table
    }
}

fn show(value: f64, unit: Unit) -> String {
    let decimals =
        usize::from(value < 100.0 && value.fract() != 0.0) + usize::from(value < 10.0 && value.fract() != 0.0);
    match unit {
        Unit::Milliseconds if value >= 10_000.0 => format!("{:.1} s", value / 1e3),
        Unit::Milliseconds => format!("{value:.decimals$} ms"),
        Unit::Microseconds => format!("{value:.0} µs"),
        Unit::MiB => format!("{value:.1} MiB"),
        Unit::Percent => format!("{value:.1} %"),
        Unit::Count => format!("{value:.0}"),
        Unit::Bytes => format!("{value:.0} B"),
    }
}
