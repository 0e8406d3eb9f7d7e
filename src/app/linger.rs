//! A proxy that serves beside another goes on to serve a Service for a while after it has lost its label: the other takes
//! its time until it serves it, a second between two syncs at least, and nobody else has it meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::{Instant, sleep_until};

use crate::model::{Event, ObjectName};

/// How long it goes on. Ten times what kube-proxy waits between two syncs.
const LINGER: Duration = Duration::from_secs(10);

/// Passes events on, those that a Service is gone later. Ends with either end.
pub(super) async fn pass_on(mut from: Receiver<Event>, to: Sender<Event>) {
    let mut gone: BTreeMap<ObjectName, Instant> = BTreeMap::new();
    loop {
        let next = gone.iter().min_by_key(|(_, at)| **at).map(|(name, at)| (name.clone(), *at));
        let event = tokio::select! {
            event = from.recv() => match event {
                None => return,
                Some(Event::ServiceGone(name)) => {
                    gone.insert(name, Instant::now() + LINGER);
                    continue;
                }
                Some(event) => event,
            },
            name = async {
                match next {
                    Some((name, at)) => {
                        sleep_until(at).await;
                        name
                    }
                    None => std::future::pending().await,
                }
            } => {
                gone.remove(&name);
                Event::ServiceGone(name)
            }
        };
        if let Event::Service(service) = &event {
            gone.remove(&service.name);
        }
        if to.send(event).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;
    use tokio::time::sleep;

    use super::*;
    use crate::model::Kind;
    use crate::source::convert::{Converter, Options};

    #[test]
    fn a_service_is_gone_later_and_nothing_else_waits() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(async {
            let node_name = "n1".to_owned();
            let convert = Converter::new(Options { node_name, allow_external_ips: true, service_proxy_name: None });
            let (sender, from) = mpsc::channel(8);
            let (to, mut passed) = mpsc::channel(8);
            tokio::spawn(pass_on(from, to));
            let began = Instant::now();
            let name = |text| ObjectName::new("shop", text).expect("a name");
            sender.send(Event::ServiceGone(name("web"))).await.expect("it listens");
            sleep(LINGER / 2).await;
            sender.send(Event::ServiceGone(name("dns"))).await.expect("it listens");
            sender.send(Event::ListDone(Kind::Service)).await.expect("it listens");
            assert!(matches!(passed.recv().await, Some(Event::ListDone(_))));
            assert!(began.elapsed() < LINGER);
            let gone = passed.recv().await;
            assert!(matches!(&gone, Some(Event::ServiceGone(gone)) if *gone == name("web")), "{gone:?}");
            assert_eq!(began.elapsed().as_secs(), LINGER.as_secs());
            // The other comes back in time, and stays.
            let service = serde_json::json!({
                "metadata": {"namespace": "shop", "name": "dns"},
                "spec": {"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": [{"port": 53}]},
            });
            let service = convert.service(&serde_json::from_value(service).expect("a Service")).remove(0);
            sender.send(service).await.expect("it listens");
            assert!(matches!(passed.recv().await, Some(Event::Service(_))));
            sleep(2 * LINGER).await;
            drop(sender);
            assert!(passed.recv().await.is_none(), "nothing else came");
        });
    }
}
