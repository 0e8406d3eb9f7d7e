//! The API server as a source.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nftproxyd::model::{Event, Kind};
use nftproxyd::source::kube::{ConnectError, connect, connect_with, watch};
use nftproxyd::source::{Exchange, Following, State};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::JoinHandle;

use crate::api::{Ahead, Api, Gone, Lists, Request, Verb, Watches, synthetic};
use crate::support::{DEADLINE, NODE, Picture, converter};

fn service(name: &str, address: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
           "spec": {"clusterIP": address, "ports": [{"port": 80}]}})
}

fn slice(name: &str, endpoints: usize) -> Value {
    let endpoints: Vec<_> = (1..=endpoints).map(|number| json!({"addresses": [format!("10.1.0.{number}")]})).collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
           "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
           "ports": [{"port": 8080}], "endpoints": endpoints})
}

fn node(name: &str, zone: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node",
           "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}}})
}

fn service_cidr(name: &str) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name},
           "spec": {"cidrs": ["10.96.0.0/16"]}})
}

/// A source at work, and what it said.
struct Watched {
    picture: Picture,
    events: Receiver<Event>,
    following: Arc<Following>,
    task: JoinHandle<()>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watched {
    async fn start(api: &Api) -> Watched {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(api.kubeconfig().as_bytes()).expect("written");
        Watched::with(connect(file.path(), None).await.expect("a valid kubeconfig"))
    }

    fn with(client: ::kube::Client) -> Watched {
        let (sender, events) = channel(16);
        let following = Arc::new(Following::default());
        let task = tokio::spawn(watch(client, NODE, converter(), sender, Arc::clone(&following)));
        Watched { picture: Picture::default(), events, following, task }
    }

    async fn until(&mut self, what: &str, done: impl Fn(&Picture) -> bool) {
        self.picture.until(&mut self.events, what, done).await;
    }

    /// Waits until this is said of every kind.
    async fn until_all(&mut self, state: State) {
        let wait = async {
            while !self.following.kinds().values().all(|kind| kind.state == state) {
                tokio::select! {
                    event = self.events.recv() => self.picture.apply(event.expect("the source goes on")),
                    () = tokio::time::sleep(Duration::from_millis(5)) => {}
                }
            }
        };
        if tokio::time::timeout(DEADLINE, wait).await.is_err() {
            panic!("not {state:?}: {:#?}", self.following.kinds());
        }
    }

    async fn until_listed(&mut self) {
        self.until("every kind is listed", Picture::listed).await;
    }

    /// Waits until the server has answered all that is wanted, letting the source go on meanwhile.
    async fn until_requests(&mut self, api: &Api, what: &str, wanted: impl Fn(&[Request]) -> bool) {
        let wait = async {
            while !wanted(&api.requests()) {
                tokio::select! {
                    event = self.events.recv() => self.picture.apply(event.expect("the source goes on")),
                    () = tokio::time::sleep(Duration::from_millis(5)) => {}
                }
            }
        };
        if tokio::time::timeout(DEADLINE, wait).await.is_err() {
            panic!("no request: {what}: {:#?}", api.requests());
        }
    }

    async fn until_service(&mut self, name: &str, address: &str) {
        let what = format!("Service {name} has {address}");
        self.until(&what, |picture| picture.services.get(name).is_some_and(|found| found == address)).await;
    }
}

/// Waits for a request that the server has answered, letting the source go on meanwhile.
async fn until_request(watched: &mut Watched, api: &Api, what: &str, wanted: impl Fn(&Request) -> bool) {
    watched.until_requests(api, what, |requests| requests.iter().any(&wanted)).await;
}

#[tokio::test]
async fn follows_every_kind_with_its_selectors() {
    let api = Api::local();
    api.apply(service("web", "10.96.0.1"));
    api.apply(service("headless", "None"));
    let mut foreign = service("foreign", "10.96.0.2");
    foreign["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    api.apply(foreign);
    api.apply(slice("web-1", 3));
    let mut headless = slice("headless-1", 1);
    headless["metadata"]["labels"] = json!({"service.kubernetes.io/headless": ""});
    api.apply(headless);
    api.apply(node(NODE, "zone-a"));
    api.apply(node("worker-b", "zone-b"));
    api.apply(service_cidr("kubernetes"));

    let mut watched = Watched::start(&api).await;
    watched.until_listed().await;
    assert_eq!(watched.picture.services.keys().collect::<Vec<_>>(), ["shop/web"]);
    assert_eq!(watched.picture.slices.iter().collect::<Vec<_>>(), [(&"shop/web-1".to_owned(), &3)]);
    assert_eq!(watched.picture.node, Some(Some("zone-a".to_owned())));
    assert!(watched.picture.service_cidrs.contains("kubernetes"));

    api.apply(service("web", "10.96.0.9"));
    watched.until_service("shop/web", "10.96.0.9").await;
    api.apply(slice("web-1", 2));
    watched.until("the slice shrinks", |picture| picture.slices["shop/web-1"] == 2).await;
    let mut claimed = service("web", "10.96.0.9");
    claimed["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    api.apply(claimed);
    watched.until("a Service of another proxy is gone", |picture| picture.services.is_empty()).await;
    api.delete("EndpointSlice", "shop", "web-1");
    watched.until("the slice is gone", |picture| picture.slices.is_empty()).await;
    api.delete("ServiceCIDR", "", "kubernetes");
    watched.until("the ServiceCIDR is gone", |picture| picture.service_cidrs.is_empty()).await;
    api.delete("Node", "", NODE);
    watched.until("the Node is gone", |picture| picture.node.is_none()).await;
    assert!(watched.picture.lists.values().all(|&lists| lists == 1), "watched, not listed again");
}

#[tokio::test]
async fn lists_page_by_page() {
    let api = Api::local();
    for object in synthetic::cluster(1201, 2) {
        api.apply(object);
    }
    let mut watched = Watched::start(&api).await;
    watched.until_listed().await;
    assert_eq!(watched.picture.services.len(), 1201);
    assert_eq!(watched.picture.slices.len(), 1201);
    for plural in ["services", "endpointslices"] {
        let lists = api.requests_for(plural, Verb::List);
        assert!(lists.iter().all(|list| list.limit == Some(500)), "{lists:#?}");
        assert_eq!(lists.iter().map(|list| list.continued).collect::<Vec<_>>(), [false, true, true], "{plural}");
    }
}

#[tokio::test]
async fn a_dropped_connection_loses_nothing() {
    let api = Api::local();
    api.apply(service("web", "10.96.0.1"));
    api.apply(service("old", "10.96.0.2"));
    let mut watched = Watched::start(&api).await;
    watched.until_listed().await;
    for round in 0..5 {
        api.disconnect_all();
        // Some of these fall into the gap between two connections.
        let (name, address) = (format!("new-{round}"), format!("10.96.1.{round}"));
        api.apply(service(&name, &address));
        api.delete("Service", "shop", if round == 0 { "old" } else { "web" });
        watched.until_service(&format!("shop/{name}"), &address).await;
        watched
            .until("the deletion arrives", |picture| {
                !picture.services.contains_key(if round == 0 { "shop/old" } else { "shop/web" })
            })
            .await;
        api.apply(service("web", "10.96.0.1"));
        watched.until_service("shop/web", "10.96.0.1").await;
    }
    assert_eq!(watched.picture.lists[&Kind::Service], 1, "resumed, not listed again");
}

#[tokio::test]
async fn expired_versions_are_listed_again() {
    for gone in [Gone::InStream, Gone::AsStatus] {
        let api = Api::local();
        api.set_gone(gone);
        api.apply(service("web", "10.96.0.1"));
        api.apply(service("old", "10.96.0.2"));
        let mut watched = Watched::start(&api).await;
        watched.until_listed().await;
        until_request(&mut watched, &api, "a watch", |request| {
            request.resource == "services" && request.verb == Verb::Watch
        })
        .await;
        api.set_status(Some(503));
        api.disconnect_all();
        api.delete("Service", "shop", "old");
        api.apply(service("new", "10.96.0.3"));
        api.expire();
        api.set_status(None);
        watched.until_service("shop/new", "10.96.0.3").await;
        watched
            .until("what was deleted in the gap is gone", |picture| !picture.services.contains_key("shop/old"))
            .await;
        assert!(watched.picture.lists[&Kind::Service] >= 2, "{gone:?}");
        assert_eq!(watched.picture.services["shop/web"], "10.96.0.1");
    }
}

/// How the watches end after which it is to be seen that the server went back.
#[derive(Debug, Clone, Copy)]
enum Cut {
    Connections,
    Watches,
}

#[tokio::test]
async fn a_server_that_went_back_is_listed_again() {
    let one = |(cut, ahead): (Cut, Ahead)| async move {
        let api = Api::local();
        api.set_ahead(ahead);
        api.apply(service("web", "10.96.0.1"));
        let snapshot = api.snapshot();
        api.apply(service("lost", "10.96.0.2"));
        for _ in 0..50 {
            api.advance();
        }
        let mut watched = Watched::start(&api).await;
        watched.until_listed().await;
        watched.until_requests(&api, "watches", |requests| watches_of(requests, "services") > 0).await;
        api.restore(snapshot);
        api.apply(service("new", "10.96.0.3"));
        match cut {
            Cut::Connections => api.disconnect_all(),
            Cut::Watches => api.end_watches(),
        }
        watched.until_service("shop/new", "10.96.0.3").await;
        let gone = |picture: &Picture| !picture.services.contains_key("shop/lost");
        watched.until(&format!("{cut:?} {ahead:?}: what the snapshot lacks is gone"), gone).await;
        // It is followed from there.
        api.apply(service("newer", "10.96.0.4"));
        watched.until_service("shop/newer", "10.96.0.4").await;
        assert_eq!(watched.picture.lists[&Kind::Service], 2, "{cut:?} {ahead:?}: listed once more");
    };
    let cases = [Ahead::Silent, Ahead::AsStatus, Ahead::InStream].map(|ahead| (Cut::Connections, ahead));
    futures::future::join_all(cases.into_iter().chain([(Cut::Watches, Ahead::Silent)]).map(one)).await;
}

/// A store of which nobody can tell by its version that it is another one.
#[tokio::test]
async fn a_server_that_went_back_and_has_come_past_the_version_is_listed_again() {
    for deleted in [false, true] {
        let api = Api::local();
        api.apply(service("web", "10.96.0.1"));
        let snapshot = api.snapshot();
        api.apply(service("lost", "10.96.0.2"));
        let mut watched = Watched::start(&api).await;
        watched.until_listed().await;
        watched.until_requests(&api, "watches", |requests| watches_of(requests, "services") > 0).await;
        if deleted {
            // What changed last is that it went; the snapshot has it.
            api.delete("Service", "shop", "web");
            watched.until("it is gone", |picture| !picture.services.contains_key("shop/web")).await;
        }
        // So that nobody sees it before it has come past the version.
        api.set_status(Some(503));
        api.disconnect_all();
        api.restore(snapshot);
        for _ in 0..50 {
            api.advance();
        }
        api.apply(service("new", "10.96.0.3"));
        api.set_status(None);
        watched.until_service("shop/new", "10.96.0.3").await;
        let right = |picture: &Picture| picture.services.keys().eq(["shop/new", "shop/web"]);
        watched.until("what the snapshot lacks is gone, and what it has is there", right).await;
        assert_eq!(watched.picture.lists[&Kind::Service], 2, "listed once more");
    }
}

#[tokio::test]
async fn versions_that_go_back_in_a_watch_are_listed_again() {
    for watches in [Watches::OldBookmark, Watches::OldEvents] {
        let api = Api::local();
        api.apply(service("web", "10.96.0.1"));
        api.advance();
        api.set_watches(watches);
        let mut watched = Watched::start(&api).await;
        let again = |picture: &Picture| picture.lists.get(&Kind::Service).is_some_and(|lists| *lists >= 2);
        watched.until(&format!("{watches:?}: a second list"), again).await;
    }
}

#[tokio::test]
async fn only_a_watch_that_did_not_end_as_it_should_is_resumed_with_a_look_at_the_version() {
    let api = Api::local();
    api.apply(service("web", "10.96.0.1"));
    let mut watched = Watched::start(&api).await;
    watched.until_listed().await;
    for round in 1..=3 {
        watched.until_requests(&api, "watches", |requests| watches_of(requests, "services") >= round).await;
        let looks = api.requests_for("services", Verb::List).iter().filter(|list| list.limit == Some(1)).count();
        assert_eq!(looks, round - 1, "one for each cut");
        api.disconnect_all();
    }
}

#[tokio::test]
async fn watches_that_end_at_once_are_not_repeated_without_a_pause() {
    // As `pace` has it: all four kinds at most 4 requests a second, beside the first list and watch of each.
    const LOOKED_AT: Duration = Duration::from_secs(5);
    const ALLOWED: usize = 8 + 4 * 5;
    let modes = [
        Watches::Empty,
        Watches::EmptyAndClose,
        Watches::Cut,
        Watches::End,
        Watches::Redirect,
        Watches::Html(200),
        Watches::Html(404),
        Watches::Html(502),
        Watches::Bookmark,
        Watches::Gone(Gone::InStream),
        Watches::Gone(Gone::AsStatus),
        Watches::Replay,
        Watches::Garbage,
    ];
    let one = |watches: Watches| async move {
        let api = Api::local();
        api.set_watches(watches);
        api.apply(service("web", "10.96.0.1"));
        api.apply(node(NODE, "zone-a"));
        let mut watched = Watched::start(&api).await;
        watched.until_listed().await;
        // A watch that brought nothing is tried again: the test does reach its case.
        let what = format!("{watches:?}: another watch");
        watched.until_requests(&api, &what, |requests| watches_of(requests, "services") >= 2).await;
        let counted = async {
            while let Some(event) = watched.events.recv().await {
                watched.picture.apply(event);
            }
        };
        tokio::time::timeout(LOOKED_AT, counted).await.expect_err("it goes on");
        let requests = api.requests().len();
        println!("{watches:?}: {requests} requests");
        assert!(requests <= ALLOWED, "{watches:?}: {requests} requests in {LOOKED_AT:?}");
        assert_eq!(
            watched.picture.services.keys().collect::<Vec<_>>(),
            ["shop/web"],
            "{watches:?}: what is known stays"
        );
        assert!(watched.picture.node.is_some(), "{watches:?}: what is known stays");
        watched.until_all(State::Lost).await;

        api.apply(service("new", "10.96.0.2"));
        api.delete("Service", "shop", "web");
        api.set_watches(Watches::Follow);
        watched.until_service("shop/new", "10.96.0.2").await;
        let gone = |picture: &Picture| !picture.services.contains_key("shop/web");
        watched.until(&format!("{watches:?}: what was deleted meanwhile is gone"), gone).await;
        watched.until_all(State::Follows).await;
    };
    futures::future::join_all(modes.map(one)).await;
}

fn watches_of(requests: &[Request], plural: &str) -> usize {
    requests.iter().filter(|request| request.resource == plural && request.verb == Verb::Watch).count()
}

#[tokio::test]
async fn a_list_whose_token_expires_begins_again() {
    let api = Api::local();
    for index in 0..1001 {
        api.apply(synthetic::service(index));
    }
    api.set_list_delay(Duration::from_millis(30));
    let mut watched = Watched::start(&api).await;
    until_request(&mut watched, &api, "the first page", |request| {
        request.resource == "services" && request.verb == Verb::List
    })
    .await;
    api.expire();
    watched.until_listed().await;
    assert_eq!(watched.picture.services.len(), 1001);
    let lists = api.requests_for("services", Verb::List);
    assert!(lists.iter().any(|list| list.status == 410), "the test met its case: {lists:#?}");
}

#[tokio::test]
async fn bookmarks_move_the_version_that_a_watch_resumes_from() {
    let api = Api::local();
    api.apply(service("web", "10.96.0.1"));
    let mut watched = Watched::start(&api).await;
    watched.until_listed().await;
    let listed = api.advance();
    for _ in 0..50 {
        api.advance();
    }
    let resumed = |request: &Request| {
        let version = request.version.as_deref().and_then(|version| version.parse::<u64>().ok());
        request.resource == "nodes" && request.verb == Verb::Watch && version.is_some_and(|version| version > listed)
    };
    let watching = |request: &Request| request.resource == "nodes" && request.verb == Verb::Watch;
    let wait = async {
        while !api.requests().iter().any(watching) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The watch is asked for, but may not be there for the first.
        for _ in 0..10 {
            api.bookmark();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        api.disconnect_all();
        while !api.requests().iter().any(resumed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.expect("a watch resumes from a bookmark");
    api.apply(node(NODE, "zone-a"));
    watched.until("the Node arrives", |picture| picture.node.is_some()).await;
    assert!(watched.picture.lists.values().all(|&lists| lists == 1));
}

#[tokio::test]
async fn malformed_objects_do_not_stop_the_others() {
    let api = Api::local();
    let faulty = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "bad", "namespace": "shop"},
                        "spec": {"clusterIP": "10.96.0.5", "ports": [{"port": "eighty"}]}});
    api.apply(faulty.clone());
    api.apply(service("web", "10.96.0.1"));
    let mut watched = Watched::start(&api).await;
    watched.until_listed().await;
    assert_eq!(watched.picture.services.keys().collect::<Vec<_>>(), ["shop/web"]);
    let rejects = &watched.picture.rejects["Service shop/bad"];
    assert!(rejects[0].starts_with("spec.ports[0].port: invalid type: string \"eighty\""), "{rejects:?}");

    api.apply(service("bad", "10.96.0.5"));
    watched.until_service("shop/bad", "10.96.0.5").await;
    watched.until("the report is withdrawn", |picture| picture.rejects.is_empty()).await;

    api.apply(faulty);
    watched.until("it is reported again", |picture| !picture.rejects.is_empty()).await;
    assert!(watched.picture.services.contains_key("shop/bad"), "what it said before stays in force");
    api.apply(service("other", "10.96.0.7"));
    watched.until_service("shop/other", "10.96.0.7").await;
    api.delete("Service", "shop", "bad");
    watched.until("it is gone", |picture| !picture.services.contains_key("shop/bad")).await;
    watched.until("so is its report", |picture| picture.rejects.is_empty()).await;
}

#[tokio::test]
async fn events_that_cannot_be_read_lead_to_a_list() {
    // The event is lost for good; what it would have said is in the list.
    let one = |bytes: &'static [u8]| async move {
        let api = Api::local();
        api.set_watches(Watches::Raw(bytes));
        let mut watched = Watched::start(&api).await;
        watched.until_listed().await;
        let shown = String::from_utf8_lossy(bytes);
        watched.until_requests(&api, &shown, |requests| watches_of(requests, "services") > 0).await;
        api.apply(service("new", "10.96.0.2"));
        watched.until_service("shop/new", "10.96.0.2").await;
    };
    let cases: [&[u8]; 9] = [
        br#"{"type":"ADDED","object":{"metadata":{"name":"a","namespace":"b","resourceVersion":"9"},"spec":{"ports":[{"port":1e999}]}}}
"#,
        br#"{"type":"ADDED","object":{"metadata":{"name":"a","namespace":"b","resourceVersion":"9","labels":{"kubernetes.io/service-name":"\ud800"}}}}
"#,
        b"{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":\"a\xff\",\"namespace\":\"b\",\"resourceVersion\":\"9\"}}}\n",
        br#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9"}}}{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9"}}}
"#,
        br#"{"type":"PATCHED","object":{"metadata":{"name":"a","namespace":"b","resourceVersion":"9"}}}
"#,
        b"{\"type\":\"ADDED\",\"object\":{\"metadata\":\n",
        b"{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"resourceVersion\":\"9\"}}}\n",
        b"{\"type\":\"DELETED\",\"object\":null}\n",
        b"{\"type\":\"BOOKMARK\",\"object\":{\"metadata\":{\"resourceVersion\":\"\"}}}\n",
    ];
    futures::future::join_all(cases.map(one)).await;
}

#[tokio::test]
async fn what_cannot_be_read_of_a_list_is_named_and_the_rest_is_used() {
    let cases: [(&[u8], &str, &str); 9] = [
        (
            br#"{"metadata":{"name":"bad","namespace":"shop"},"spec":{"ports":[{"port":1e999}]}}"#,
            "Service shop/bad",
            "spec.ports[0].port: number out of range",
        ),
        (
            br#"{"metadata":{"name":"bad","namespace":"shop"},"spec":{"clusterIP":"\ud800"}}"#,
            "Service shop/bad",
            "spec.clusterIP: ",
        ),
        (
            b"{\"metadata\":{\"name\":\"bad\",\"namespace\":\"shop\"},\"spec\":{\"clusterIP\":\"\xff\"}}",
            "Service shop/bad",
            "spec.clusterIP: ",
        ),
        (
            b"{\"metadata\":{\"name\":\"b\xff\",\"namespace\":\"shop\"}}",
            "Service without a name",
            "items[1].metadata.name: ",
        ),
        (b"null", "Service without a name", "items[1]: null is no Service"),
        (b"5, [], {}, null", "Service without a name", "items[1]: 5 is no Service"),
        (b"{}", "Service without a name", "items[1].metadata.name: null in the namespace null is no name"),
        (
            br#"{"metadata":{"name":"","namespace":"shop"}}"#,
            "Service without a name",
            "items[1].metadata.name: \"\" in",
        ),
        (br#"{"metadata":{"name":5,"namespace":"shop"}}"#, "Service without a name", "items[1].metadata.name: 5 in"),
    ];
    let one = |(bytes, object, reason): (&'static [u8], &'static str, &'static str)| async move {
        let api = Api::local();
        api.apply(service("web", "10.96.0.1"));
        api.set_lists(Lists::With(bytes));
        let mut watched = Watched::start(&api).await;
        watched.until_listed().await;
        assert_eq!(watched.picture.services.keys().collect::<Vec<_>>(), ["shop/web"]);
        assert_eq!(watched.picture.rejects.keys().collect::<Vec<_>>(), [object]);
        let rejects = &watched.picture.rejects[object];
        assert!(rejects[0].starts_with(reason), "{rejects:?}");
        assert_eq!(rejects.len(), bytes.split(|byte| *byte == b' ').count(), "{rejects:?}");
        // Followed all the same; once a list is whole, the report is withdrawn.
        api.apply(service("new", "10.96.0.2"));
        watched.until_service("shop/new", "10.96.0.2").await;
        api.set_lists(Lists::Whole);
        api.expire();
        api.disconnect_all();
        watched.until("the report is withdrawn", |picture| picture.rejects.is_empty()).await;
    };
    futures::future::join_all(cases.map(one)).await;
}

#[tokio::test]
async fn a_list_of_another_kind_takes_nothing_away() {
    let api = Api::local();
    api.apply(service("web", "10.96.0.1"));
    let mut watched = Watched::start(&api).await;
    watched.until_listed().await;
    api.set_lists(Lists::OfKind("PodList"));
    api.expire();
    api.disconnect_all();
    let lists = |requests: &[Request]| {
        requests.iter().filter(|request| request.resource == "services" && request.verb == Verb::List).count()
    };
    watched.until_requests(&api, "lists in vain", |requests| lists(requests) >= 3).await;
    assert_eq!(watched.picture.services.len(), 1, "what is known stays");
    api.set_lists(Lists::Whole);
    api.apply(service("new", "10.96.0.2"));
    watched.until_service("shop/new", "10.96.0.2").await;
}

#[tokio::test]
async fn slow_lists_are_waited_for() {
    let api = Api::local();
    api.apply(service("web", "10.96.0.1"));
    api.set_list_delay(Duration::from_millis(700));
    let mut watched = Watched::start(&api).await;
    watched.until_listed().await;
    assert_eq!(watched.picture.services.len(), 1);
    assert_eq!(api.requests_for("services", Verb::List).len(), 1);
}

#[tokio::test]
async fn a_server_without_service_cidrs_is_like_one_that_has_none() {
    let api = Api::local();
    api.set_absent(&["servicecidrs"]);
    api.apply(service("web", "10.96.0.1"));
    let mut watched = Watched::start(&api).await;
    watched.until_listed().await;
    assert!(watched.picture.service_cidrs.is_empty());
    assert_eq!(watched.picture.services.len(), 1);
}

#[tokio::test]
async fn a_server_that_says_when_is_left_alone_until_then() {
    // Without it, each kind comes back after one to two seconds, and again after two to four.
    const LOOKED_AT: Duration = Duration::from_secs(5);
    let one = |(status, retry_after, obeyed): (u16, &'static str, bool)| async move {
        let api = Api::local();
        api.set_status(Some(status));
        api.set_retry_after(retry_after);
        let mut watched = Watched::start(&api).await;
        let heard = tokio::time::timeout(LOOKED_AT, watched.events.recv()).await;
        assert!(heard.is_err(), "{status} {retry_after:?}: {heard:?}");
        let requests = api.requests().len();
        println!("{status} {retry_after:?}: {requests} requests");
        assert_eq!(requests == 4, obeyed, "{status} {retry_after:?}: {requests} requests in {LOOKED_AT:?}");
    };
    let cases = [
        (429, "30", true),
        (503, "30", true),
        (503, "Mon, 06 Nov 2084 08:49:37 GMT", true),
        (503, "0", false),
        (503, "Sun, 06 Nov 1994 08:49:37 GMT", false),
        (429, "soon", false),
        (500, "30", false),
    ];
    futures::future::join_all(cases.map(one)).await;
}

#[tokio::test]
async fn service_cidrs_that_are_forbidden_at_first_are_asked_for_again() {
    let api = Api::local();
    api.apply(service_cidr("kubernetes"));
    api.set_forbidden(&["servicecidrs"]);
    let mut watched = Watched::start(&api).await;
    watched.until_listed().await;
    assert!(watched.picture.service_cidrs.is_empty(), "nobody waits for them");
    api.set_forbidden(&[]);
    watched.until("they are there", |picture| picture.service_cidrs.contains("kubernetes")).await;
}

#[tokio::test]
async fn failures_leave_what_is_known() {
    for status in [401, 403, 500] {
        let api = Api::local();
        api.set_status(Some(status));
        let mut watched = Watched::start(&api).await;
        until_request(&mut watched, &api, "a second attempt", |request| request.status == status).await;
        api.set_status(None);
        api.apply(service("web", "10.96.0.1"));
        api.apply(service_cidr("kubernetes"));
        watched.until("the Services are listed", |picture| !picture.services.is_empty()).await;

        api.set_status(Some(status));
        api.disconnect_all();
        let refused =
            |request: &Request| (request.verb == Verb::Watch || request.limit == Some(1)) && request.status == status;
        until_request(&mut watched, &api, "a watch, or the look before it, is refused", refused).await;
        assert_eq!(watched.picture.services.len(), 1, "{status}");
        api.apply(service("new", "10.96.0.2"));
        api.set_status(None);
        watched.until_service("shop/new", "10.96.0.2").await;
        assert_eq!(watched.picture.services.len(), 2, "{status}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_yet() {
    // Bound but not listening: connections are refused, and nobody else gets the port.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("bound");
    let address = socket.local_addr().expect("bound").as_socket().expect("an IP address");
    let client = connect(Path::new(""), Some(&format!("http://{address}"))).await.expect("a valid URL");
    let mut watched = Watched::with(client);
    let refused = tokio::time::timeout(Duration::from_millis(300), watched.events.recv()).await;
    assert!(refused.is_err(), "nothing is said before there is a server: {refused:?}");
    socket.listen(128).expect("it listens");
    let api = Api::start(socket.into());
    api.apply(service("web", "10.96.0.1"));
    watched.until_service("shop/web", "10.96.0.1").await;
    watched.until_listed().await;
}

#[tokio::test]
async fn a_server_that_comes_back_is_met_soon_by_all_kinds() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("bound");
    let address = socket.local_addr().expect("bound").as_socket().expect("an IP address");
    let (sender, exchanges) = std::sync::mpsc::channel();
    let listener = move |exchange: &Exchange| drop(sender.send(exchange.clone()));
    let client = connect_with(Path::new(""), Some(&format!("http://{address}")), None, Arc::new(listener)).await;
    let mut watched = Watched::with(client.expect("a valid URL"));
    // Long enough for pauses that grow to be long.
    let outage = Duration::from_secs(12);
    tokio::time::timeout(outage, watched.events.recv()).await.expect_err("nothing is said before there is a server");
    let attempts = exchanges.try_iter().count();
    // Four at the beginning, when nothing is known.
    assert!((5..=4 + 2 * 12).contains(&attempts), "{attempts} attempts in {outage:?}");
    socket.listen(128).expect("it listens");
    let back = std::time::Instant::now();
    let api = Api::start(socket.into());
    api.apply(service("web", "10.96.0.1"));
    watched.until_service("shop/web", "10.96.0.1").await;
    watched.until_listed().await;
    let took = back.elapsed();
    println!("{attempts} attempts in {outage:?}; every kind is listed after {took:?}");
    assert!(took < Duration::from_secs(4), "all kinds are listed after {took:?}");
}

#[tokio::test]
async fn ends_with_its_receiver() {
    let api = Api::local();
    let mut watched = Watched::start(&api).await;
    watched.until_listed().await;
    watched.events.close();
    tokio::time::timeout(DEADLINE, &mut watched.task).await.expect("it ends").expect("it does not panic");
}

#[tokio::test]
async fn unusable_kubeconfigs_are_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let no_context =
        r#"{"apiVersion": "v1", "kind": "Config", "clusters": [], "contexts": [], "current-context": "x"}"#;
    let cases = [
        folder.path().join("missing"),
        write("not-yaml", "clusters: [[["),
        write("no-context", no_context),
        write("empty", ""),
    ];
    for path in cases {
        let err = connect(&path, None).await.err().expect("it is unusable");
        assert!(matches!(err, ConnectError::Kubeconfig { .. }), "{err:?}");
        assert!(err.to_string().contains(&path.display().to_string()), "{err}");
        assert!(err.to_string().contains("clientConnection.kubeconfig"), "{err}");
    }
    let err = connect(Path::new(""), Some("not a url")).await.err().expect("no URL");
    assert!(matches!(err, ConnectError::Server { .. }), "{err:?}");
}

/// A kubeconfig in a file of its own.
fn kubeconfig(api: &Api, change: impl FnOnce(&mut Value)) -> tempfile::NamedTempFile {
    let mut config: Value = serde_json::from_str(&api.kubeconfig()).expect("JSON");
    change(&mut config);
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(config.to_string().as_bytes()).expect("written");
    file
}

#[tokio::test]
async fn servers_without_a_scheme_are_asked() {
    let api = Api::local();
    let (address, port) = (api.address().to_string(), api.address().port());
    let prefixed = format!("http://{address}/k8s/clusters/c-1/");
    let with_user = format!("http://me:secret@{address}");
    for (server, path) in [
        (&*address, "/version"),
        (&*format!("localhost:{port}"), "/version"),
        (&*format!("{address}/"), "/version"),
        (&*format!("HTTP://{address}"), "/version"),
        (&*with_user, "/version"),
        (&*prefixed, "/k8s/clusters/c-1/version"),
    ] {
        let of_file = kubeconfig(&api, |config| config["clusters"][0]["cluster"]["server"] = server.into());
        let elsewhere = kubeconfig(&api, |config| config["clusters"][0]["cluster"]["server"] = "tcp://".into());
        for (file, master) in [(of_file.path(), None), (elsewhere.path(), Some(server)), (Path::new(""), Some(server))]
        {
            let client = connect(file, master).await.unwrap_or_else(|err| panic!("{server}: {err}"));
            let before = api.requests().len();
            client.apiserver_version().await.expect_err("it has no /version");
            let requests: Vec<_> = api.requests()[before..].iter().map(|request| request.resource.clone()).collect();
            assert_eq!(requests, [path], "{server} {master:?}");
        }
    }
}

#[tokio::test]
async fn a_server_without_a_scheme_is_asked_with_tls_where_tls_is_configured() {
    let api = Api::local();
    let address = api.address().to_string();
    let insecure = kubeconfig(&api, |config| {
        config["clusters"][0]["cluster"] = json!({"server": address, "insecure-skip-tls-verify": true});
    });
    for (file, master) in [(insecure.path(), None), (insecure.path(), Some(&*address))] {
        let client = connect(file, master).await.expect("a valid kubeconfig");
        client.apiserver_version().await.expect_err("it does not speak TLS");
    }
    assert_eq!(api.requests(), [], "nothing without TLS");
}

#[tokio::test]
async fn servers_that_are_no_urls_are_named_with_their_place() {
    let api = Api::local();
    for server in
        ["", "http:10.0.0.1", "/k8s", "tcp://", "tcp://h", "h/k8s", "h:port", "2001:db8::1", "https://", "a b"]
    {
        let file = kubeconfig(&api, |config| config["clusters"][0]["cluster"]["server"] = server.into());
        let path = file.path().display().to_string();
        for (file, master, place) in [
            (file.path(), None, format!("kubeconfig {path}: server of cluster \"default\": {server:?}")),
            (file.path(), Some(server), format!("--master {server:?}")),
            (Path::new(""), Some(server), format!("--master {server:?}")),
        ] {
            let err = connect(file, master).await.err().unwrap_or_else(|| panic!("{server:?} is taken"));
            let text = err.to_string();
            assert!(matches!(err, ConnectError::Server { .. }), "{text}");
            assert!(
                text.starts_with(&place) && text.contains("https://192.0.2.1:6443") && !text.contains('\n'),
                "{text}"
            );
        }
    }
    let err = connect(Path::new(""), Some("ftp://me:secret@h")).await.err().expect("no API server");
    assert!(err.to_string().contains("me:***@h") && !err.to_string().contains("secret"), "{err}");
}

#[tokio::test]
async fn a_token_is_sent_without_the_end_of_its_line() {
    for text in ["the-token", "the-token\n"] {
        let api = Api::local();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (token, kubeconfig) = (folder.path().join("token"), folder.path().join("kubeconfig"));
        std::fs::write(&token, text).expect("written");
        let mut config: Value = serde_json::from_str(&api.kubeconfig()).expect("JSON");
        config["users"][0]["user"] = json!({"tokenFile": token});
        std::fs::write(&kubeconfig, config.to_string()).expect("written");
        let client = connect(&kubeconfig, None).await.expect("a valid kubeconfig");
        client.apiserver_version().await.expect_err("it has no /version");
        let sent: Vec<_> = api.requests().into_iter().map(|request| request.authorization).collect();
        assert_eq!(sent, [Some("Bearer the-token".to_owned())], "{text:?}");
    }
}

#[tokio::test]
async fn every_request_is_told() {
    let api = Api::local();
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(api.kubeconfig().as_bytes()).expect("written");
    let (sender, exchanges) = std::sync::mpsc::channel();
    let listener = move |exchange: &Exchange| sender.send(exchange.clone()).expect("the test listens");
    let client = connect_with(file.path(), None, None, Arc::new(listener)).await.expect("a valid kubeconfig");
    client.apiserver_version().await.expect_err("it has no /version");
    let exchange = exchanges.try_recv().expect("it was told");
    assert_eq!((&*exchange.method, exchange.code), ("GET", Some(404)));
    assert!(exchange.elapsed > Duration::ZERO);
    let host = api.address().to_string();
    assert_eq!(exchange.host, host);
    drop(api);
    client.apiserver_version().await.expect_err("the server is gone");
    let exchange = exchanges.try_recv().expect("it was told");
    assert_eq!((exchange.host, exchange.code), (host, None));
    assert!(exchanges.try_recv().is_err(), "nothing more");
}
