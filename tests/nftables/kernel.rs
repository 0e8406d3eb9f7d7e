//! Commit and dump.

use std::collections::BTreeSet;
use std::env;
use std::process::Command;

use nftproxyd::diff::{Operation, Transaction};
use nftproxyd::model::Family;
use nftproxyd::nftables::{
    CommitError, Heard, Kernel, KernelError, LinuxClients, LinuxKernel, Monitor, ProbeError, ReadClients, table_flag,
};
use nftproxyd::ruleset::base;
use nftproxyd::ruleset::kept::Kept;
use nftproxyd::ruleset::names::{ChainName, SetName, TableName};
use nftproxyd::ruleset::read::Remembered;
use nftproxyd::ruleset::types::{Chain, Data, Element, Rule, Statement, Verdict};

use crate::frame;
use crate::netns::{has, in_namespace, try_nft as nft};

fn open() -> LinuxKernel {
    LinuxKernel::open().expect("a netlink socket")
}

fn read(kernel: &mut LinuxKernel, family: Family, name: SetName) -> Vec<Element> {
    let set = frame::sets().into_iter().find(|set| set.name == name).expect("a set of the frame");
    kernel.elements(family, &set).expect("the elements")
}

fn sorted(mut elements: Vec<Element>) -> Vec<Element> {
    elements.sort();
    elements
}

#[test]
fn what_is_committed_is_dumped() {
    in_namespace(|| {
        for family in Family::ALL {
            let mut kernel = open();
            let sets = frame::sets();
            let chains = frame::chains(family);
            let empty = kernel.dump(family, &sets, &chains, &|_| None).expect("a dump");
            assert!(!empty.table && empty.sets.is_empty());

            kernel.commit(&frame::whole(family)).expect("a commit");
            let snapshot = kernel.dump(family, &sets, &chains, &|_| None).expect("a dump");
            assert!(snapshot.table);
            assert_eq!(snapshot.other_sets, BTreeSet::new());
            assert_eq!(snapshot.other_chains, BTreeSet::new());
            assert_eq!(snapshot.other_rules, BTreeSet::new());
            assert_eq!(snapshot.foreign_chains, BTreeSet::new());
            assert_eq!(snapshot.foreign_sets, BTreeSet::new());
            assert_eq!(snapshot.foreign_other, BTreeSet::new());
            assert_eq!(snapshot.chains, chains.iter().map(|chain| chain.name).collect());
            assert_eq!(snapshot.sets.len(), SetName::ALL.len());
            for (set, elements) in frame::elements(family) {
                let def = sets.iter().find(|def| def.name == set).expect("it is made");
                // Each alone; what differs in anything is another.
                for element in &elements {
                    assert!(kernel.holds(family, def, element).expect("it can be asked for"), "{set} {element:?}");
                    let renamed = Element { comment: Some("other".into()), ..element.clone() };
                    assert!(!kernel.holds(family, def, &renamed).expect("it can be asked for"), "{set} {element:?}");
                }
                assert_eq!(sorted(read(&mut kernel, family, set)), sorted(elements), "{family} {set}");
            }
            let other_family = Family::ALL.into_iter().find(|other| *other != family).expect("there are two");
            let (set, element) = (base::set(SetName::ClusterIps), frame::address(family, 99, 1));
            let element =
                Element { key: [element].into_iter().collect(), key_end: None, data: Data::None, comment: None };
            assert!(!kernel.holds(family, &set, &element).expect("it can be asked for"));
            if family == Family::V4 {
                let missing = kernel.dump(other_family, &[], &[], &|_| None).expect("a dump");
                assert!(!missing.table);
            }
        }
    });
}

#[test]
fn clients_are_counted_and_read_in_slices_beside_the_owner() {
    const CLIENTS: u16 = 3_000;
    in_namespace(|| {
        for family in Family::ALL {
            let mut kernel = open();
            let mut clients = LinuxClients::of(TableName::NODE);
            let read = |clients: &mut LinuxClients, most: usize| {
                let mut slices = Vec::new();
                let all = clients.read(family, &mut |slice| {
                    slices.push(slice.clients);
                    slices.len() < most
                });
                (slices, all.expect("it can be read"))
            };
            assert_eq!(clients.count(family).expect("an answer"), Some(0), "there is no map");
            assert_eq!(read(&mut clients, 9).0, Vec::<Vec<Remembered>>::new());

            kernel.commit(&frame::whole(family)).expect("a commit");
            let before = read(&mut clients, 9).1.count;
            let all: Vec<Kept> = (1..=CLIENTS).map(|nth| frame::client(family, nth)).collect();
            let operations = vec![Operation::Remember(all.clone())];
            kernel.commit(&Transaction { family, operations }).expect("there is room");
            let whole = before + usize::from(CLIENTS);
            // Linux 6.16 and later count.
            assert!(clients.count(family).expect("an answer").is_none_or(|count| count == whole));
            // The kernel enlarges its hash table behind the commit, which tears a look.
            let whole_look = |clients: &mut LinuxClients| {
                (0..100).map(|_| read(clients, usize::MAX)).find(|(_, found)| !found.torn).expect("it ends")
            };
            let (slices, found) = whole_look(&mut clients);
            assert_eq!(found.count, whole);
            assert!(slices.len() > 3, "{} slices", slices.len());
            let slices = slices.concat();
            assert!(all.iter().all(|kept| slices.contains(&kept.client)));
            // Who has seen enough stops, and the next look begins anew.
            let (slices, found) = read(&mut clients, 2);
            assert_eq!((slices.len(), found.torn), (2, true));
            assert_eq!(whole_look(&mut clients).1.count, whole);
        }
    });
}

#[test]
fn what_nft_lists_can_be_loaded_again() {
    in_namespace(|| {
        let mut kernel = open();
        for family in Family::ALL {
            kernel.commit(&frame::whole(family)).expect("a commit");
        }
        let listing = nft(&["list", "ruleset"], "").expect("a listing");
        // nft 1.0.6 leaves out the `meta l4proto` that `ct original proto-dst` needs before it, and does not take its own
        // text back; these rules are the only ones.
        let (dropped, kept): (Vec<&str>, Vec<&str>) = listing.lines().partition(|line| line.contains("proto-dst"));
        assert_eq!(dropped.len(), 2 * 3, "{dropped:#?}");
        let kept = kept.join("\n") + "\n";
        nft(&["-f", "-"], &format!("flush ruleset\n{kept}")).expect("loading the listing");
        assert_eq!(nft(&["list", "ruleset"], "").expect("a second listing"), kept);
    });
}

/// A commit that has to be refused; returns the operation and the object in words.
fn refused(kernel: &mut LinuxKernel, family: Family, operations: Vec<Operation>) -> (usize, String, i32) {
    match kernel.commit(&Transaction { family, operations }) {
        Err(CommitError::Refused { operation, object, source }) => {
            (operation, object, source.raw_os_error().unwrap_or_default())
        }
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn what_is_refused_is_named() {
    use nix::libc::{EEXIST, ENOENT};
    in_namespace(|| {
        for family in Family::ALL {
            let mut kernel = open();
            kernel.commit(&frame::whole(family)).expect("a commit");
            let table = if family == Family::V4 { "ip" } else { "ip6" };
            let vip = |n| match frame::address(family, 96, n) {
                nftproxyd::ruleset::types::Value::Address(address) => address,
                other => panic!("{other:?}"),
            };
            let add = |set, element: Element| Operation::AddElements(set, vec![element]);
            let service = |n: u32| frame::service(family, n, Verdict::Drop);
            let cases: Vec<(Vec<Operation>, usize, String, i32)> = vec![
                (
                    vec![add(SetName::ServiceIps, frame::service(family, 1, Verdict::Drop))],
                    0,
                    format!("service-ips, element {} . tcp . 80", vip(1)),
                    EEXIST,
                ),
                (
                    vec![
                        add(SetName::ServiceIps, service(50)),
                        Operation::DeleteElements(SetName::ServiceIps, vec![service(51)]),
                    ],
                    1,
                    format!("service-ips, element {} . tcp . 80", vip(51)),
                    ENOENT,
                ),
                (
                    // Of many elements, the one that is wrong.
                    vec![Operation::AddElements(
                        SetName::ServiceIps,
                        (100..300)
                            .map(|n| match n {
                                222 => frame::service(family, n, Verdict::Goto(ChainName::Pick(frame::pick(77)))),
                                n => service(n),
                            })
                            .collect(),
                    )],
                    0,
                    format!("service-ips, element {} . tcp . 80", vip(222)),
                    ENOENT,
                ),
                (vec![Operation::AddSet(frame::sets().remove(0))], 0, "set service-ips".to_owned(), EEXIST),
                (vec![Operation::FlushChain(ChainName::Pick(frame::pick(9)))], 0, "chain pick-9".to_owned(), ENOENT),
                (
                    vec![
                        Operation::AddTable,
                        Operation::AddRules(Chain {
                            name: ChainName::RejectIt,
                            hook: None,
                            rules: vec![
                                Rule { statements: vec![Statement::Masquerade { keep_port: false }], comment: None },
                                Rule {
                                    statements: vec![Statement::Verdict(Verdict::Goto(ChainName::Pick(frame::pick(
                                        9,
                                    ))))],
                                    comment: None,
                                },
                            ],
                        }),
                    ],
                    1,
                    "chain reject-it, rule 2".to_owned(),
                    ENOENT,
                ),
                (
                    vec![Operation::DeleteForeignChain("no \"such\" chain".to_owned())],
                    0,
                    r#"chain "no \"such\" chain""#.to_owned(),
                    ENOENT,
                ),
            ];
            for (operations, operation, words, errno) in cases {
                let got = refused(&mut kernel, family, operations);
                assert_eq!(got, (operation, format!("table {table} nftproxyd, {words}"), errno));
            }
            // Nothing of all that was done.
            let snapshot = kernel.dump(family, &frame::sets(), &frame::chains(family), &|_| None).expect("a dump");
            assert_eq!(read(&mut kernel, family, SetName::ServiceIps).len(), 4);
            assert_eq!(snapshot.chains.len(), frame::chains(family).len());

            // What no kernel is asked about.
            let other = if family == Family::V4 { Family::V6 } else { Family::V4 };
            let (operation, words, _) =
                refused(&mut kernel, family, vec![add(SetName::ServiceIps, frame::service(other, 1, Verdict::Drop))]);
            assert!(operation == 0 && words.contains("service-ips, element"), "{words}");
        }
    });
}

#[test]
fn differences_are_found() {
    in_namespace(|| {
        let family = Family::V4;
        let mut kernel = open();
        kernel.commit(&frame::whole(family)).expect("a commit");
        let by_hand = "
            add rule ip nftproxyd services drop
            insert rule ip nftproxyd unserved counter
            add chain ip nftproxyd mine
            add set ip nftproxyd my-set { type ipv4_addr; }
            add counter ip nftproxyd my-counter
            add element ip nftproxyd service-ips { 10.96.0.9 . 47 . 80 : goto mine }
            add element ip nftproxyd service-ips { 10.96.0.9 . icmp . 80 : drop }
            delete map ip nftproxyd nodeport-local-policy
            add map ip nftproxyd nodeport-local-policy { typeof meta l4proto . th dport : verdict; }
            add set ip nftproxyd pick-sized { type ipv4_addr; }
        ";
        nft(&["-f", "-"], by_hand).expect("a change by hand");
        let mut chains = frame::chains(family);
        chains.iter_mut().filter(|chain| chain.name == ChainName::NatInput).for_each(|chain| {
            chain.hook = chain.hook.map(|hook| nftproxyd::ruleset::types::Hook { priority: 98, ..hook });
        });
        let snapshot = kernel.dump(family, &frame::sets(), &chains, &|_| None).expect("a dump");
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        assert_eq!(snapshot.other_rules, BTreeSet::from([ChainName::Services, ChainName::Unserved]));
        assert_eq!(snapshot.other_chains, BTreeSet::from([ChainName::NatInput]));
        assert_eq!(snapshot.other_sets, BTreeSet::from([SetName::NodeportLocalPolicy]));
        assert_eq!(snapshot.foreign_chains, names(&["mine"]));
        assert_eq!(snapshot.foreign_sets, names(&["my-set", "pick-sized"]));
        assert_eq!(snapshot.foreign_other, names(&["object my-counter"]));
        let service_ips =
            frame::sets().into_iter().find(|set| set.name == SetName::ServiceIps).expect("a set of the frame");
        let foreign = kernel.read_elements(family, &service_ips, &mut |_| {}).expect("the elements");
        let expected =
            ["service-ips, element 0x0a6000090100000000500000", "service-ips, element 0x0a6000092f00000000500000"];
        assert_eq!(foreign, names(&expected));
        assert_eq!(read(&mut kernel, family, SetName::ServiceIps).len(), 4);

        // A chain on demand is compared with what is made of its name.
        let (on_demand, fixed): (Vec<_>, Vec<_>) =
            frame::chains(family).into_iter().partition(|chain| matches!(chain.name, ChainName::Pick(_)));
        let make = |name| on_demand.iter().find(|chain| chain.name == name).cloned();
        let snapshot = kernel.dump(family, &frame::sets(), &fixed, &make).expect("a dump");
        assert!(on_demand.iter().all(|chain| snapshot.chains.contains(&chain.name)));
    });
}

#[test]
fn flags_of_the_table_are_read() {
    in_namespace(|| {
        for (family, table) in [(Family::V4, "ip nftproxyd"), (Family::V6, "ip6 nftproxyd")] {
            let mut kernel = open();
            kernel.commit(&frame::whole(family)).expect("a commit");
            let mut flags =
                || kernel.dump(family, &frame::sets(), &frame::chains(family), &|_| None).expect("a dump").table_flags;
            assert_eq!(flags(), 0);
            nft(&["-f", "-"], &format!("add table {table} {{ flags dormant; }}")).expect("a flag");
            assert_eq!(flags(), table_flag::DORMANT);
            let add = Transaction { family, operations: vec![Operation::AddTable] };
            open().commit(&add).expect("the table wakes");
            assert_eq!(flags(), 0);
        }
    });
}

#[test]
fn only_our_tables_are_deleted() {
    in_namespace(|| {
        let mut kernel = open();
        assert_eq!(kernel.tables().expect("a listing"), []);
        let foreign = "table ip mine {\n\tset nftproxyd {\n\t\ttype ipv4_addr\n\t}\n}\ntable inet nftproxyd {\n}\n";
        nft(&["-f", "-"], foreign).expect("a foreign table");
        assert_eq!(kernel.tables().expect("a listing"), []);
        for family in Family::ALL {
            kernel.commit(&frame::whole(family)).expect("a commit");
        }
        assert_eq!(kernel.tables().expect("a listing"), Family::ALL);
        for family in kernel.tables().expect("a listing") {
            kernel.commit(&Transaction { family, operations: vec![Operation::DeleteTable] }).expect("a deletion");
        }
        assert_eq!(kernel.tables().expect("a listing"), []);
        assert_eq!(nft(&["list", "ruleset"], "").expect("a listing"), foreign);
        let missing = refused(&mut kernel, Family::V4, vec![Operation::DeleteTable]);
        assert_eq!((missing.0, missing.1.as_str()), (0, "table ip nftproxyd"));
    });
}

#[test]
fn the_probe_leaves_no_trace() {
    in_namespace(|| {
        let mut kernel = open();
        let mut monitor = Monitor::open(&kernel.audience()).expect("a monitor");
        kernel.probe().expect("this kernel is new enough");
        assert_eq!(nft(&["list", "ruleset"], "").expect("a listing"), "");
        assert_eq!(monitor.read().expect("nothing"), None);
        // The socket still works.
        kernel.commit(&frame::whole(Family::V4)).expect("a commit");
    });
}

#[test]
fn the_monitor_hears_foreign_changes_only() {
    in_namespace(|| {
        let mut kernel = open();
        kernel.commit(&frame::whole(Family::V4)).expect("a commit");
        let mut monitor = Monitor::open(&kernel.audience()).expect("a monitor");
        let mut heard = || {
            let mut all = Vec::new();
            while let Some(heard) = monitor.read().expect("what was heard") {
                all.extend(heard);
            }
            all
        };
        let mut generations = BTreeSet::new();
        let mut families = |heard: Vec<Heard>| {
            heard
                .into_iter()
                .map(|heard| match heard {
                    Heard::Foreign { family, port, generation } => {
                        assert!(port != 0 && generations.insert((generation, family)));
                        family
                    }
                    Heard::Lost => panic!("messages were lost"),
                })
                .collect::<Vec<_>>()
        };
        kernel.commit(&frame::whole(Family::V6)).expect("our own change");
        assert_eq!(families(heard()), []);
        nft(&["add", "table", "inet", "nftproxyd"], "").expect("a foreign table");
        nft(&["add", "table", "ip", "other"], "").expect("a foreign table");
        assert_eq!(families(heard()), []);
        nft(&["add", "rule", "ip", "nftproxyd", "services", "drop"], "").expect("a foreign rule");
        assert_eq!(families(heard()), [Family::V4]);
        nft(&["delete", "element", "ip6", "nftproxyd", "cluster-ips", "{ fd00:96::1 }"], "").expect("an element");
        assert_eq!(families(heard()), [Family::V6]);
        for (family, table) in [(Family::V4, "ip nftproxyd"), (Family::V6, "ip6 nftproxyd")] {
            nft(&["-f", "-"], &format!("add table {table} {{ flags dormant; }}")).expect("a flag");
            assert_eq!(families(heard()), [family]);
            nft(&["-f", "-"], &format!("add table {table}")).expect("no flag");
            assert_eq!(families(heard()), [family]);
            nft(&["-f", "-"], &format!("add table {table}")).expect("no flag");
            assert_eq!(families(heard()), [], "that changes nothing");
        }
        nft(&["flush", "ruleset"], "").expect("a flush");
        assert_eq!(families(heard()), Family::ALL);
    });
}

/// A large transaction is described to nobody, so that it takes the kernel less; what others did meanwhile shows.
#[test]
fn nobody_listens_to_a_large_transaction_of_ours() {
    in_namespace(|| {
        let mut kernel = open();
        kernel.commit(&frame::whole(Family::V4)).expect("a commit");
        let mut stranger = open();
        let large = |kernel: &mut LinuxKernel, from: u32| {
            let elements =
                (from..from + 3_000).map(|n| frame::service(Family::V4, 70_000 + n, Verdict::Drop)).collect();
            let operations = vec![Operation::AddElements(SetName::ServiceIps, elements)];
            kernel.commit(&Transaction { family: Family::V4, operations }).expect("a commit").unheard
        };
        assert!(!large(&mut kernel, 0), "nobody listens at all");
        // Both hear the same, but for one of them the changes are those of another.
        let mut monitor = Monitor::open(&kernel.audience()).expect("a monitor");
        let mut other = Monitor::open(&stranger.audience()).expect("a monitor");
        let heard = |monitor: &mut Monitor| {
            let mut all = Vec::new();
            while let Some(heard) = monitor.read().expect("what was heard") {
                all.extend(heard);
            }
            all
        };
        assert!(large(&mut kernel, 10_000), "nothing is known of what was before");
        assert_eq!(heard(&mut other).len(), 1, "only the one that belongs to it looks away");
        assert!(!large(&mut kernel, 20_000));
        assert_eq!(heard(&mut monitor), []);
        drop(other);
        // Somebody else is as large, and is heard.
        assert!(!large(&mut stranger, 30_000));
        assert!(matches!(heard(&mut monitor)[..], [Heard::Foreign { family: Family::V4, .. }]));
        assert!(large(&mut kernel, 40_000), "there was another change, whether or not it was heard");
        assert!(!large(&mut kernel, 50_000));
        drop(monitor);
        nft(&["add", "table", "ip", "other"], "").expect("a foreign table");
        assert!(!large(&mut kernel, 60_000), "there is nobody who could have missed anything");
        // Who begins to listen again hears again.
        let mut monitor = Monitor::open(&kernel.audience()).expect("a monitor");
        nft(&["delete", "table", "ip", "nftproxyd"], "").expect("our table");
        assert!(matches!(heard(&mut monitor)[..], [Heard::Foreign { family: Family::V4, .. }]));
    });
}

#[test]
fn a_monitor_that_falls_behind_says_so() {
    in_namespace(|| {
        let mut kernel = open();
        kernel.commit(&frame::whole(Family::V4)).expect("a commit");
        // Of somebody for whom these are changes of others.
        let mut monitor = Monitor::open(&open().audience()).expect("a monitor");
        for chunk in 0..100 {
            let elements =
                (0..5000).map(|n| frame::service(Family::V4, 70_000 + chunk * 5000 + n, Verdict::Drop)).collect();
            let operations = vec![Operation::AddElements(SetName::ServiceIps, elements)];
            kernel.commit(&Transaction { family: Family::V4, operations }).expect("a commit");
        }
        let mut lost = false;
        while let Some(heard) = monitor.read().expect("what was heard") {
            lost |= heard.contains(&Heard::Lost);
        }
        assert!(lost);
    });
}

#[test]
fn a_lack_of_permission_is_told_apart() {
    if !has(&["setpriv"]) {
        return;
    }
    in_namespace(|| {
        // Another user cannot write; it is asked by running the next test as one, in this namespace.
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(env::current_exe().expect("this test"))
            .args(["--ignored", "--exact", "kernel::as_an_unprivileged_user"])
            .output()
            .expect("setpriv");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    });
}

#[test]
#[ignore = "run by a_lack_of_permission_is_told_apart"]
fn as_an_unprivileged_user() {
    if nix::unistd::geteuid().is_root() {
        return;
    }
    let mut kernel = open();
    let commit = kernel.commit(&frame::whole(Family::V4)).expect_err("a refusal");
    assert!(matches!(commit, CommitError::Permission), "{commit:?}");
    let dump = kernel.dump(Family::V4, &frame::sets(), &[], &|_| None).expect_err("a refusal");
    assert!(matches!(dump, KernelError::Permission), "{dump:?}");
    assert!(matches!(kernel.probe().expect_err("a refusal"), ProbeError::Commit(CommitError::Permission)));
}
