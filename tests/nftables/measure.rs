//! How long large transactions take. Run in release mode, alone:
//! `cargo test --release --test nftables measure -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use nftproxyd::diff::{Operation, Transaction};
use nftproxyd::model::{Family, Protocol};
use nftproxyd::nftables::{Kernel, LinuxKernel};
use nftproxyd::ruleset::names::{ChainName, SetName};
use nftproxyd::ruleset::types::{Data, Element, Key, Value, Verdict};

use crate::frame;
use crate::netns::in_namespace;

const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 10;
const CHUNK: usize = 6_000;

#[test]
#[ignore = "a measurement"]
fn measure_a_cold_start() {
    in_namespace(|| {
        for family in Family::ALL {
            let mut kernel = LinuxKernel::open().expect("a netlink socket");
            let frame: Vec<_> = frame::whole(family)
                .operations
                .into_iter()
                .filter(|operation| !matches!(operation, Operation::AddElements(..)))
                .collect();
            kernel.commit(&Transaction { family, operations: frame }).expect("the frame");
            let tcp = Value::Protocol(Protocol::Tcp);
            let endpoints =
                (0..SERVICES).flat_map(|n| (0..ENDPOINTS).map(move |slot| (n, slot))).map(|(n, slot)| Element {
                    key: Key::from_slice(&[frame::address(family, 96, n), tcp, Value::Port(80), Value::Slot(slot)]),
                    key_end: None,
                    data: Data::Values(
                        [frame::address(family, 124, n * 10 + slot), Value::Port(8080)].as_slice().into(),
                    ),
                    comment: None,
                });
            let frontends = (0..SERVICES).map(|n| Element {
                comment: Some(format!("namespace-{n}/service-{n}:http").into()),
                ..frame::service(family, n, Verdict::Goto(ChainName::Pick(frame::pick(2))))
            });
            let (mut total, mut in_kernel, mut longest) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
            let (mut bytes, mut transactions) = (0, 0);
            let both = [
                (SetName::Endpoints, endpoints.collect::<Vec<_>>()),
                (SetName::ServiceIps, frontends.collect::<Vec<_>>()),
            ];
            for (set, elements) in both {
                for chunk in elements.chunks(CHUNK) {
                    let transaction =
                        Transaction { family, operations: vec![Operation::AddElements(set, chunk.to_vec())] };
                    let start = Instant::now();
                    let committed = kernel.commit(&transaction).expect("a commit");
                    total += start.elapsed();
                    in_kernel += committed.elapsed;
                    longest = longest.max(committed.elapsed);
                    bytes += committed.bytes;
                    transactions += 1;
                }
            }
            eprintln!(
                "{family}: {} elements, {bytes} bytes, {transactions} transactions: encode {:?}, kernel {in_kernel:?} \
                 (longest {longest:?})",
                SERVICES + SERVICES * ENDPOINTS,
                total - in_kernel
            );
            let start = Instant::now();
            let sets = frame::sets();
            kernel.dump(family, &sets, &frame::chains(family), &|_| None).expect("a dump");
            let endpoints = sets.iter().find(|set| set.name == SetName::Endpoints).expect("a set of the frame");
            let mut count = 0;
            kernel
                .read_elements(family, endpoints, &mut |element| count += usize::from(element.is_some()))
                .expect("them");
            eprintln!("{family}: dump of {count} endpoints: {:?}", start.elapsed());
            let one = frame::service(family, 20_000, Verdict::Goto(ChainName::Pick(frame::pick(2))));
            for (what, operation) in [
                ("one service-ips element added", Operation::AddElements(SetName::ServiceIps, vec![one.clone()])),
                ("one service-ips element deleted", Operation::DeleteElements(SetName::ServiceIps, vec![one])),
            ] {
                let committed = kernel.commit(&Transaction { family, operations: vec![operation] }).expect("a commit");
                eprintln!("{family}: {what}: {:?}", committed.elapsed);
            }
        }
    });
}
