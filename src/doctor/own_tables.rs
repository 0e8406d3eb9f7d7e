//! Whether our tables are there, and as they have to be.

use super::{Finding, Subject};
use crate::model::Family;
use crate::ruleset::names::TableName;
use crate::ruleset::text;
use crate::status::Shape;

/// What there is to say about a family's table; `daemon` is whether there is one.
pub(super) fn judge(family: Family, shape: Shape, daemon: bool) -> Finding {
    let table = format!("table {}", text::table(TableName::NODE, family));
    let fix = if daemon {
        "the daemon mends such things at once, unless its log says why it cannot; a restart looks at all of them: systemctl \
         restart nftproxyd, or delete its pod"
    } else {
        "start the daemon, which makes it anew or mends it: systemctl start nftproxyd, or look at its pod"
    };
    let Shape { there, damage, foreign } = shape;
    if !there {
        let what = format!("{table} is not there: no Service of {family} is served");
        return Finding::wrong(Subject::Tables, what, fix).proof(format!("nft list {table}: no such table"));
    }
    if !damage.is_empty() {
        let what = format!("{table} is not as it has to be: Services of {family} may fail");
        return damage.into_iter().fold(Finding::wrong(Subject::Tables, what, fix), Finding::proof);
    }
    if !foreign.is_empty() {
        let what = format!("{table} has parts that nftproxyd did not make: it removes them when it looks");
        let finding = Finding::check(Subject::Tables, what, "use a table of your own");
        return foreign.into_iter().fold(finding, Finding::proof);
    }
    Finding::ok(Subject::Tables, format!("{table} is there, with all chains, rules and maps that it has to have"))
}
