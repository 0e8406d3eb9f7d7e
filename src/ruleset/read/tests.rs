//! What is read is what was written, whatever it is.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use proptest::sample::Index;

use super::super::names::{By, Masquerade};
use super::super::ranges::merge;
use super::*;
use crate::ruleset::elements::elements;

fn address(family: Family) -> BoxedStrategy<IpAddr> {
    match family {
        Family::V4 => any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()).boxed(),
        Family::V6 => any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into()).boxed(),
    }
}

fn port() -> impl Strategy<Value = NonZeroU16> {
    any::<NonZeroU16>()
}

fn slots(family: Family, least: usize) -> impl Strategy<Value = Slots> {
    let backend = (address(family), port()).prop_map(|(address, port)| Backend { address, port });
    let by = prop_oneof![
        Just(By::Random),
        Just(By::Source),
        Just(By::SourceAndPort),
        Just(By::Destination),
        Just(By::Maglev),
        Just(By::MaglevAndPort),
        (0..By::COUNTERS).prop_map(By::Turn)
    ];
    // What has no slot has no kind that says how one is chosen.
    (by, prop::collection::vec(backend, least..6)).prop_map(|(by, list)| match list.is_empty() {
        true => Slots::default(),
        false => Slots { by, list: list.into() },
    })
}

fn action(family: Family) -> impl Strategy<Value = Action> {
    let masquerade = prop_oneof![Just(Masquerade::Never), Just(Masquerade::FromOutside), Just(Masquerade::Always)];
    let policy = prop_oneof![Just(TrafficPolicy::Cluster), Just(TrafficPolicy::Local)];
    let affinity = || prop::option::of(1_u32..=86_400);
    prop_oneof![
        Just(Action::Reject),
        Just(Action::Drop),
        (policy, masquerade, affinity(), slots(family, 1))
            .prop_map(|(policy, masquerade, affinity, slots)| Action::Forward { policy, masquerade, affinity, slots }),
        (affinity(), slots(family, 1), slots(family, 0)).prop_map(|(affinity, cluster, local)| Action::Split {
            affinity,
            cluster,
            local
        }),
    ]
}

/// Any key with any frontend that can be there. Names of up to 63 characters, as Kubernetes has them: together they can be
/// longer than a comment.
fn frontend() -> impl Strategy<Value = (FrontendKey, Frontend)> {
    const NAME: &str = "[a-z]([a-z0-9-]{0,61}[a-z0-9])?";
    let family = prop::sample::select(Family::ALL.to_vec());
    family.prop_flat_map(|family| {
        let at = prop_oneof![address(family).prop_map(FrontendAt::Address), Just(FrontendAt::NodePort(family))];
        let range = (address(family), address(family))
            .prop_map(|(one, other)| Range { first: one.min(other), last: one.max(other) });
        let ranges = prop::option::of(prop::collection::vec(range, 0..5));
        let key = (at, prop::sample::select(Protocol::ALL.to_vec()), port());
        let names = (NAME, NAME, prop_oneof![Just(String::new()), NAME]);
        (key, names, action(family), ranges).prop_map(
            |((at, protocol, port), (namespace, name, port_name), action, ranges)| {
                let frontend = Frontend {
                    service: ObjectName::new(&namespace, &name).expect("a name"),
                    port_name: port_name.into(),
                    action,
                    allowed_sources: ranges.map(|ranges| merge(ranges).into()),
                };
                (FrontendKey { at, protocol, port }, frontend)
            },
        )
    })
}

fn contents(family: Family, elements: &[(SetName, Element)]) -> Contents {
    let mut contents = Contents::new(family);
    elements.iter().cloned().for_each(|(set, element)| contents.element(set, element));
    contents
}

/// What these elements, all of one frontend, are read as.
fn read(key: &FrontendKey, elements: &[(SetName, Element)]) -> Result<Frontend, Damaged> {
    let mut contents = contents(key.family(), elements);
    assert_eq!((contents.frontends.len(), &contents.unknown), (usize::from(!elements.is_empty()), &vec![]));
    contents.frontends.remove(key).unwrap_or_default().read(key)
}

fn sorted(mut elements: Vec<(SetName, Element)>) -> Vec<(SetName, Element)> {
    elements.sort_unstable();
    elements.dedup();
    elements
}

/// Checks that elements which differ from a frontend's are not taken for it, and that none of them is lost.
fn differs(key: &FrontendKey, frontend: &Frontend, changed: Vec<(SetName, Element)>) -> Result<(), TestCaseError> {
    match read(key, &changed) {
        // Other ranges, another affinity: elements that the proxy would write for another frontend.
        Ok(other) => {
            prop_assert_ne!(&other, frontend);
            prop_assert_eq!(sorted(elements(key, &other)), sorted(changed));
        }
        Err(damaged) => prop_assert_eq!(damaged.elements, sorted(changed)),
    }
    Ok(())
}

/// Something else than an element has, of the same shape.
fn torn(element: &Element, key: &FrontendKey, what: Index) -> Element {
    let mut torn = element.clone();
    let other = |address: IpAddr| -> IpAddr {
        match address {
            IpAddr::V4(address) => Ipv4Addr::from_bits(!address.to_bits()).into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(!address.to_bits()).into(),
        }
    };
    match &mut torn.data {
        Data::Verdict(verdict) => panic!("{element:?} leads to {verdict:?}"),
        Data::Values(values) if values.len() == 1 => {
            let Value::Class(class) = &mut values[0] else { panic!("{element:?} has no kind") };
            let kinds = [
                Kind::Drop,
                Kind::Reject,
                Kind::ExternalLocal,
                Kind::NodeportLocal,
                Kind::SourceRanges,
                Kind::SourceRangesLocal,
                Kind::RememberFor(77),
                Kind::Pick(Pick {
                    nodeport: matches!(key.at, FrontendAt::NodePort(_)),
                    masquerade: Masquerade::Always,
                    sticky: true,
                    local: false,
                    by: By::Turn(3),
                    slots: 7,
                }),
            ];
            let numbers = kinds.into_iter().map(Kind::class).chain([0, 0x6e66_7078, 0xf200_0001]);
            let others: Vec<u32> = numbers.filter(|other| other != class).collect();
            *class = *what.get(&others);
        }
        Data::Values(values) => {
            let Value::Address(address) = &mut values[0] else { panic!("{element:?} leads to no address") };
            *address = other(*address);
        }
        // All that it says is that it is there; it has no comment.
        Data::None if torn.key_end.is_none() => torn.comment = Some("shop/web".into()),
        Data::None => {
            let end = torn.key_end.as_mut().expect("only ranges have no data");
            let Some(Value::Address(last)) = end.last_mut() else { panic!("{element:?} ends nowhere") };
            *last = other(*last);
        }
    }
    torn
}

/// Every length of a name about where a comment ends.
#[test]
fn a_comment_that_is_cut_is_read_back() {
    let key = FrontendKey {
        at: FrontendAt::NodePort(Family::V4),
        protocol: Protocol::Tcp,
        port: NonZeroU16::new(30080).expect("a port"),
    };
    for length in 50..=63 {
        let written = Frontend {
            service: ObjectName::new(&"a".repeat(63), &"b".repeat(length)).expect("a name"),
            port_name: "http".into(),
            action: Action::Reject,
            allowed_sources: None,
        };
        let read = read(&key, &elements(&key, &written)).expect("it is what the proxy writes");
        assert_eq!(read.service, written.service);
        let left = 127_usize.saturating_sub(63 + 1 + length + 1).min(4);
        assert_eq!(*read.port_name, "http"[..left], "a Service of {length} letters");
    }
}

proptest! {
    #![proptest_config(crate::testing::replayed(ProptestConfig::with_cases(1_000), file!()))]

    #[test]
    fn what_is_read_is_what_was_written((key, frontend) in frontend(), turned in any::<Index>()) {
        let mut written = elements(&key, &frontend);
        // In any order, and one of them twice.
        let middle = turned.index(written.len());
        written.rotate_left(middle);
        written.push(written[0].clone());
        let read = read(&key, &written).expect("it is what the proxy writes");
        let mut expected = frontend.clone();
        if read.port_name != frontend.port_name {
            // It does not fit into a comment.
            prop_assert!(frontend.port_name.starts_with(&*read.port_name));
            prop_assert_eq!(read.comment(), frontend.comment());
            prop_assert!(frontend.service.as_str().len() + 1 + frontend.port_name.len() > 127);
            expected.port_name = read.port_name.clone();
        }
        prop_assert_eq!(read, expected);
    }

    #[test]
    fn a_missing_element_is_missed((key, frontend) in frontend(), which in any::<Index>()) {
        let mut written = elements(&key, &frontend);
        written.remove(which.index(written.len()));
        differs(&key, &frontend, written)?;
    }

    #[test]
    fn an_element_that_says_something_else_is_noticed((key, frontend) in frontend(), which in any::<Index>(), what in any::<Index>(), beside in any::<bool>()) {
        let mut written = elements(&key, &frontend);
        let which = which.index(written.len());
        let torn = torn(&written[which].1, &key, what);
        if beside {
            // The map was changed while it was read: the same key came with both.
            written.push((written[which].0, torn));
        } else {
            written[which].1 = torn;
        }
        differs(&key, &frontend, written)?;
    }

    #[test]
    fn an_element_too_many_is_noticed((key, frontend) in frontend(), (_, other) in frontend(), which in any::<Index>(), slot in any::<u32>()) {
        let mut written = elements(&key, &frontend);
        let backend = Backend { address: Ipv4Addr::LOCALHOST.into(), port: NonZeroU16::MIN };
        let mut more = vec![
            elements::slot_element(&key, slot, &backend),
            (SetName::ClusterPolicy, elements::kind_element(&key, Kind::Drop, None)),
            (SetName::AfterSourceRanges, elements::kind_element(&key, Kind::Reject, None)),
        ];
        if matches!(key.at, FrontendAt::NodePort(_)) {
            more.drain(1..);
            more.push((SetName::NodeportLocalPolicy, elements::kind_element(&key, Kind::Drop, None)));
        }
        // What another frontend would have in the same place.
        more.extend(elements(&key, &Frontend { allowed_sources: None, ..other }));
        more.retain(|element| !written.contains(element));
        prop_assume!(!more.is_empty());
        written.push(which.get(&more).clone());
        differs(&key, &frontend, written)?;
    }

    #[test]
    fn a_comment_is_part_of_the_entry((key, frontend) in frontend(), which in any::<Index>(), comment in prop::option::of("[a-z/:]{0,9}")) {
        let mut written = elements(&key, &frontend);
        let which = which.index(written.len());
        let comment = comment.map(ArcStr::from);
        prop_assume!(written[which].1.comment != comment);
        written[which].1.comment = comment;
        differs(&key, &frontend, written)?;
    }

    #[test]
    fn a_client_is_remembered_at_one_endpoint(family in prop::sample::select(Family::ALL.to_vec()), seed in any::<[u8; 16]>(), port in port()) {
        let address = |mask: u8| -> IpAddr {
            let bits = u128::from_be_bytes(seed.map(|byte| byte ^ mask));
            match family {
                Family::V4 => Ipv4Addr::from_bits(bits as u32).into(),
                Family::V6 => Ipv6Addr::from_bits(bits).into(),
            }
        };
        let backend = Backend { address: address(2), port };
        let (client, destination) = (address(0), address(1));
        let entry = Element {
            key: [Value::Address(client), Value::Address(destination), Value::Protocol(Protocol::Udp), Value::Port(port.get())]
                .into_iter()
                .collect(),
            key_end: None,
            data: Data::Values([Value::Address(backend.address), Value::Port(port.get())].into_iter().collect()),
            comment: None,
        };
        let read = Remembered::read(&entry).expect("an entry");
        prop_assert_eq!(read, Remembered { client, destination, protocol: Protocol::Udp, port, backend });
        prop_assert_eq!(read.by_address(), FrontendKey { at: FrontendAt::Address(destination), protocol: Protocol::Udp, port });
        prop_assert_eq!(read.by_node_port(), FrontendKey { at: FrontendAt::NodePort(family), protocol: Protocol::Udp, port });
        for broken in [
            Element { data: Data::None, ..entry.clone() },
            Element { key: entry.key[1..].iter().copied().collect(), ..entry.clone() },
        ] {
            prop_assert_eq!(Remembered::read(&broken), None);
        }
        // It is not the proxy's to write, so it is no part of any frontend.
        let contents = contents(family, &[(SetName::Affinity, entry)]);
        prop_assert!(contents.frontends.is_empty() && contents.unknown.is_empty());
    }
}
