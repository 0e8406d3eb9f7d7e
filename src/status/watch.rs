//! One frame of `nftproxyd status --watch`: frontends by how many connections they get.

use std::cmp::Reverse;

use super::show::{at, cell_table, new_from_text, number, per_second, totals};
use super::{FrontendStatus, Picture, history_text};
use crate::metrics::history::Change;
use crate::printable::printable;

/// By what the frontends are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Those with the most new connections first.
    #[default]
    Rate,
    /// Those with the most connections first.
    Connections,
    /// By name.
    Name,
}

/// What a frame shows besides the picture.
#[derive(Debug, Clone)]
pub struct View<'a> {
    /// Above all else: how the daemon is.
    pub head: &'a str,
    /// By what frontends are sorted.
    pub order: Order,
    /// The last changes, the oldest first.
    pub changes: &'a [Change],
    /// Columns and lines; `None`: all is shown, as where there is no terminal.
    pub size: Option<(usize, usize)>,
}

/// The column that is left out where frontends do not count.
const CONNS: usize = 1;

/// So many of the last changes are shown, if there is room.
const CHANGES: usize = 5;

/// Lines of the frame, cut to the size, each with its end but the last.
pub fn frame_text(picture: &Picture, view: &View<'_>) -> String {
    let mut frontends: Vec<&FrontendStatus> = picture.frontends.iter().collect();
    match view.order {
        Order::Rate => frontends.sort_by_key(|it| Reverse((new(it), connections(it)))),
        Order::Connections => frontends.sort_by_key(|it| Reverse((connections(it), new(it)))),
        Order::Name => {}
    }
    let order = match view.order {
        Order::Rate => "new connections a second",
        Order::Connections => "connections",
        Order::Name => "name",
    };
    let mut above: Vec<String> = view.head.lines().map(str::to_owned).collect();
    above.push(format!("sorted by {order}; new connections are counted {}", new_from_text(picture)));
    above.push(totals(picture).trim_end().to_owned());
    above.push(String::new());
    let is_counted = frontends.iter().any(|frontend| frontend.counted.is_some());
    let rows = frontends.iter().map(|frontend| {
        let serving = frontend.endpoints.iter().filter(|endpoint| endpoint.slots > 0).count();
        let unanswered: usize = frontend.endpoints.iter().map(|endpoint| endpoint.unanswered).sum();
        let cells = [
            per_second(frontend.new_connections, picture.since),
            number(frontend.counted),
            connections(frontend).to_string(),
            unanswered.to_string(),
            serving.to_string(),
            printable(&frontend.service).into_owned(),
            at(frontend),
        ];
        cells.to_vec()
    });
    let headings = ["NEW/S", "CONNS", "CONNECTIONS", "UNANSWERED", "ENDPOINTS", "SERVICE", "FRONTEND"];
    let mut lines: Vec<Vec<String>> = std::iter::once(headings.map(str::to_owned).to_vec()).chain(rows).collect();
    if !is_counted {
        lines.iter_mut().for_each(|line| drop(line.remove(CONNS)));
    }
    let table = cell_table(&lines);
    let newest = &view.changes[view.changes.len().saturating_sub(CHANGES)..];
    let mut below: Vec<String> = Vec::new();
    if !newest.is_empty() {
        below.extend([String::new(), "last changes".to_owned()]);
        below.extend(history_text(newest).lines().map(str::to_owned));
    }
    let mut table: Vec<&str> = table.lines().collect();
    if let Some((_, height)) = view.size {
        let keys = "c connections  r rate  n name  q quit".to_owned();
        // The frontends give way last.
        if height < above.len() + below.len() + 6 {
            below.clear();
        }
        below.extend([String::new(), keys]);
        table.truncate(height.saturating_sub(above.len() + below.len()).max(1));
    }
    let lines = above.iter().map(String::as_str).chain(table).chain(below.iter().map(String::as_str));
    let (width, height) = view.size.unwrap_or((usize::MAX, usize::MAX));
    let cut = |line: &str| line.chars().take(width).collect::<String>();
    lines.take(height).map(cut).collect::<Vec<_>>().join("\n")
}

fn connections(frontend: &FrontendStatus) -> usize {
    frontend.endpoints.iter().map(|endpoint| endpoint.connections).sum()
}

fn new(frontend: &FrontendStatus) -> u64 {
    frontend.new_connections.unwrap_or(0)
}
