use std::cell::Cell;
use std::rc::Rc;

use tokio::time::sleep;

use super::*;
use crate::testing::log::captured;

const TABLES: [Awaited; 2] = [Awaited::Table(TableName::NODE, Family::V4), Awaited::Table(TableName::NODE, Family::V6)];

fn ports() -> [Awaited; 2] {
    let address = |text: &str| text.parse().expect("an address and a port");
    [Awaited::HealthPort(address("0.0.0.0:10256")), Awaited::MetricsPort(address("127.0.0.1:10249"))]
}

/// All that a start can wait for.
fn all() -> Vec<Awaited> {
    let lists = Kind::ALL.into_iter().map(Awaited::FirstList);
    lists.chain(TABLES).chain([Awaited::TakeOver]).chain(ports()).collect()
}

#[test]
fn what_is_awaited_has_names() {
    let readiness = Readiness::new(TableName::NODE, [Awaited::TakeOver].into_iter().chain(ports()));
    let expected = [
        "the first list of Services",
        "the first list of EndpointSlices",
        "the first list of Nodes",
        "the first list of ServiceCIDRs",
        "table ip nftproxyd",
        "table ip6 nftproxyd",
        "the take-over from kube-proxy",
        "the health port 0.0.0.0:10256",
        "the metrics port 127.0.0.1:10249",
    ];
    assert_eq!(readiness.awaited(), expected);
    assert_eq!(readiness.held_up_by(), expected[..7]);
    readiness.awaits(TABLES[1], Some("it has an owner"));
    assert_eq!(readiness.awaited()[5], "table ip6 nftproxyd (it has an owner)");
    let little = Readiness::new(TableName::NODE, []);
    assert_eq!(little.awaited(), expected[..6], "what is not to be done is not awaited");
}

/// Whichever comes last: without it nothing is ready, and with it all is. Ports are not asked for.
#[test]
fn the_last_one_makes_it_ready() {
    for last in all() {
        let mut waits = Waits::new(all());
        for other in all().into_iter().filter(|other| *other != last) {
            assert!(!waits.ready || ports().contains(&last), "{last} and {other} are awaited");
            assert!(waits.comes(other));
            assert!(!waits.comes(other), "that is no news");
        }
        assert_eq!(waits.named(|_| true), [last.to_string()]);
        assert_eq!(waits.ready, ports().contains(&last), "{last}");
        assert!(waits.comes(last) && waits.ready);
        assert_eq!(waits.named(|_| true), Vec::<String>::new());
    }
}

#[test]
fn what_is_lost_before_all_is_there_is_awaited_again_and_after_that_the_start_is_over() {
    let mut waits = Waits::new(TABLES);
    assert!(waits.comes(TABLES[0]));
    assert!(waits.awaits(TABLES[0], None));
    assert!(waits.comes(TABLES[1]) && !waits.ready, "never both at once");
    assert!(waits.awaits(TABLES[0], Some("why")) && !waits.awaits(TABLES[0], Some("why")));
    assert!(waits.awaits(TABLES[0], Some("another reason")) && waits.awaits(TABLES[0], None));
    assert!(waits.comes(TABLES[0]) && waits.ready);
    assert!(!waits.awaits(TABLES[0], Some("later")) && waits.awaited.is_empty() && waits.ready);
    // A port has nothing to do with that.
    assert!(waits.awaits(ports()[0], Some("busy")) && waits.ready);
}

/// One table comes in line in the same moment as the other falls out of it.
#[test]
fn tables_that_swap_make_nothing_ready() {
    for (first, second) in [(Family::V4, Family::V6), (Family::V6, Family::V4)] {
        let readiness = Readiness::new(TableName::NODE, []);
        Kind::ALL.into_iter().for_each(|kind| readiness.comes(Awaited::FirstList(kind)));
        let only =
            |in_line: Family| move |family| if family == in_line { Standing::InLine } else { Standing::Failing("why") };
        for (in_line, other) in [(first, second), (second, first), (first, second)] {
            readiness.tables(only(in_line));
            assert_eq!(readiness.held_up_by(), [format!("{} (why)", Awaited::Table(TableName::NODE, other))]);
        }
        readiness.tables(|family| if family == first { Standing::InLine } else { Standing::Behind });
        assert_eq!(readiness.held_up_by(), [Awaited::Table(TableName::NODE, second).to_string()]);
        readiness.tables(|_| Standing::InLine);
        assert_eq!(readiness.held_up_by(), Vec::<String>::new());
        readiness.tables(|_| Standing::Failing("later"));
        assert_eq!(readiness.awaited(), Vec::<String>::new(), "the start is over");
    }
}

/// Follows a start beside a script, in time that passes only while nobody has anything to do. Returns the log.
fn followed<F: Future<Output = ()>>(script: impl FnOnce(Readiness, Rc<Cell<u32>>) -> F) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let log = captured(|| {
        runtime.expect("a runtime").block_on(async {
            let told = Rc::new(Cell::new(0));
            let readiness = Readiness::new(TableName::NODE, ports());
            let count = Rc::clone(&told);
            let follow = readiness.clone().follow(move || count.set(count.get() + 1));
            tokio::select! {
                () = async { follow.await; std::future::pending().await } => {}
                () = script(readiness, told) => {}
            }
        });
    });
    log.lines().map(str::to_owned).collect()
}

async fn seconds(seconds: u64) {
    sleep(Duration::from_secs(seconds)).await;
}

#[test]
fn the_log_says_what_is_awaited_less_and_less_often() {
    let log = followed(|readiness, told| async move {
        Kind::ALL.into_iter().for_each(|kind| readiness.comes(Awaited::FirstList(kind)));
        ports().into_iter().for_each(|port| readiness.comes(port));
        readiness.comes(TABLES[0]);
        // A whole day of a table that fails, each time for another reason.
        for nth in 0..86_400 {
            readiness.awaits(TABLES[1], Some(&format!("reason {nth}")));
            seconds(1).await;
        }
        assert_eq!(told.get(), 0);
        readiness.comes(TABLES[1]);
        seconds(1).await;
        assert_eq!(told.get(), 1);
        seconds(86_400).await;
    });
    let awaited: Vec<&String> = log.iter().filter(|line| line.contains("waiting for: ")).collect();
    for (line, after) in awaited.iter().zip([5, 15, 35, 75, 155, 315, 635, 955]) {
        let reason = line.split_once("waiting for: table ip6 nftproxyd (reason ").expect("nothing else").1;
        let nth: i32 = reason.trim_end_matches(')').parse().expect("a number");
        assert!((after - 1..=after).contains(&nth), "{line} after {after} s");
    }
    assert!((270..280).contains(&awaited.len()), "{} lines in a day", awaited.len());
    assert_eq!(log.len(), awaited.len() + 1, "and one when it is ready");
    assert!(log.last().is_some_and(|line| line.ends_with(" ready")), "{log:?}");
}

#[test]
fn a_start_in_time_is_not_waited_for_aloud() {
    let log = followed(|readiness, told| async move {
        seconds(4).await;
        all().into_iter().for_each(|awaited| readiness.comes(awaited));
        seconds(600).await;
        assert_eq!(told.get(), 1);
    });
    assert!(matches!(&log[..], [line] if line.ends_with(" ready")), "{log:?}");
}

#[test]
fn a_port_is_named_and_holds_up_nothing() {
    let log = followed(|readiness, told| async move {
        let [health, metrics] = ports();
        readiness.awaits(metrics, Some("Address in use"));
        let others = all().into_iter().filter(|awaited| *awaited != metrics && *awaited != health);
        others.for_each(|awaited| readiness.comes(awaited));
        readiness.comes(health);
        seconds(1).await;
        assert_eq!((told.get(), readiness.held_up_by()), (1, Vec::new()));
        assert_eq!(readiness.awaited(), ["the metrics port 127.0.0.1:10249 (Address in use)"]);
        seconds(5).await;
        readiness.comes(metrics);
        seconds(600).await;
        assert_eq!((told.get(), readiness.awaited()), (1, Vec::new()));
    });
    assert_eq!(log.len(), 2, "{log:?}");
    assert!(log[0].ends_with(" ready"), "{log:?}");
    assert!(log[1].ends_with(" waiting for: the metrics port 127.0.0.1:10249 (Address in use)"), "{log:?}");
}

/// Who has to say that it has come may panic or be stopped.
#[test]
fn an_end_is_no_arrival() {
    let readiness = Readiness::new(TableName::NODE, [Awaited::TakeOver]);
    let mut before = all();
    before.retain(|awaited| *awaited != Awaited::TakeOver);
    before.into_iter().for_each(|awaited| readiness.comes(awaited));
    let other = readiness.clone();
    let panicked = std::thread::spawn(move || {
        let _other = other;
        std::panic::resume_unwind(Box::new(()));
    });
    panicked.join().expect_err("it panics");
    assert_eq!(readiness.held_up_by(), ["the take-over from kube-proxy"]);
}
