//! `nftproxyd run`: the daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::CommandFactory;
use ipnet::IpNet;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};

use super::connections::Connections;
use super::daemon_status::{Start, count_followed, daemon_status};
use super::listen::listen_unless;
use super::look_around::look_around;
use super::observers::{self, Accounting, Checks, History, Known, Ledger, Localhost, Observers, Published, Standings};
use super::ownership::{LastSync, Ownership, given_up};
use super::ports::{self, BindPolicy};
use super::ready::{Awaited, Readiness};
use super::reload::{self, File, Live, follow};
use super::signals::Signals;
use super::take_over::{OnNode, TakeOver};
use super::{
    accounting, beside, converter, daemon_configuration, facts, flagz, frontend_counts, guard, instance, linger,
    one_shot, service_manager,
};
use crate::addresses;
use crate::cli::{Cli, RunArgs};
use crate::config::{Config, DetectLocal, Loaded, Source};
use crate::conntrack::Conntrack;
use crate::events::{self, Events, Notice};
use crate::health::{self, CheckServer, Health, Moment};
use crate::http::Budget;
use crate::metrics::services::{Node, Services, answer};
use crate::metrics::{Metrics, ZPages};
use crate::model::{Family, PerFamily};
use crate::nftables::{Heard, Kernel as _, LinuxClients, LinuxKernel, Monitor};
use crate::ruleset::base::OWN_PRIORITY;
use crate::ruleset::names::TableName;
use crate::ruleset::text;
use crate::source::kube::ConnectError;
use crate::source::{Bypass, Exchange, Following, file, kube};
use crate::sync::{self, Counter, Disturbance, Engine, Facts, Inputs, Knowledge, Question, Reader, Told};
use crate::{localhost, status, sysctl, threads};

/// Events on their way to the engine. A list that comes faster than it is taken in waits in its source.
const EVENTS_WAITING: usize = 4_096;

/// Questions of people that wait for the engine, until others are told to come again.
const QUESTIONS_WAITING: usize = 4;

/// So many of the last changes are on `/statusz`.
const NEWEST: usize = 10;

/// How many names of servers are looked up at the same time: one that is slow does not keep back the others.
const NAMES_AT_ONCE: usize = 2;

/// A hundred years.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// How long the process waits at its end for the API server to take the last Events.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// Runs the proxy until it is told to stop. The rules stay in place.
pub(super) fn run(args: RunArgs) -> anyhow::Result<()> {
    match args.version.as_deref() {
        Some("true") => return one_shot::version(false),
        Some("raw") => return one_shot::version(true),
        // A version to pretend to be: said below.
        None | Some(_) => {}
    }
    if args.cleanup {
        return one_shot::cleanup(args.node.service_proxy_name.as_deref());
    }
    let Loaded { config, text, .. } = daemon_configuration(&args.node, args.manifests.clone())?;
    if config.logging.verbosity >= 1 {
        args.given().iter().for_each(|flag| info!("FLAG: {flag}"));
    }
    if let Some(version) = args.version.as_deref().filter(|form| form.starts_with('v')) {
        warn!("--version={version} has no effect: this is nftproxyd {}", env!("CARGO_PKG_VERSION"));
    }
    if let Some(file) = &args.write_config_to {
        return one_shot::write_config(&config, file);
    }
    let table = super::table(config.service_proxy_name.as_deref());
    anyhow::ensure!(
        table == TableName::NODE || !args.take_over,
        "--take-over: not with a service proxy name: the kube-proxy that serves the other Services keeps its rules"
    );
    // In kubeadm's DaemonSet its file has another name: whoever looks for kube-proxy shall not find this.
    let _ = nix::sys::prctl::set_name(c"nftproxyd");
    info!(version = env!("CARGO_PKG_VERSION"), node = %config.node_name, "nftproxyd starts");
    let mut kernel = LinuxKernel::of(table)?;
    kernel.probe()?;
    let ownership = Ownership::new(args.table_owner, &mut kernel)?;
    if args.init_only {
        sysctl::tune(Path::new("/"), &config.conntrack);
        info!("connection tracking is set up, and the kernel can do what is needed (--init-only)");
        return Ok(());
    }
    if let Source::Api { kubeconfig, master } = &config.source
        && let Err(error) = kube::describe(kubeconfig, master.as_deref())
    {
        // Before anything on the node is changed, and before anything but that is looked for.
        if matches!(error, ConnectError::NotInCluster(_)) && std::env::args_os().len() == 1 {
            <Cli as CommandFactory>::command().print_help().context("cannot write")?;
        }
        return Err(error.into());
    }
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    // Threads are for the names of servers only. They stay, because later there may be none to be had.
    runtime.enable_all().max_blocking_threads(NAMES_AT_ONCE).thread_keep_alive(FOR_EVER);
    let runtime = runtime.build().context("cannot start")?;
    let command_line = (args.take_over, flagz::flags(&args));
    let overrides = args.node.overrides(args.manifests);
    let file = args.node.config.map(|path| File { path, text, overrides });
    let result = runtime.block_on(async {
        let (mut signals, hangups) = Signals::listen()?;
        // Before anything on the node is changed: another daemon may serve it.
        let instance = tokio::select! {
            instance = instance::acquire(table, &config.node_name) => instance?,
            () = signals.stop() => return Ok(()),
        };
        // Whoever serves the node beside has set up connection tracking.
        let beside = table != TableName::NODE;
        let unset = if beside { Vec::new() } else { sysctl::tune(Path::new("/"), &config.conntrack) };
        sysctl::set_oom_score(Path::new("/"), config.oom_score_adj);
        let mut first_words = vec![Notice::starting()];
        if !unset.is_empty() {
            first_words.push(Notice::start_failed("FailedToSetConntrack", sysctl::list(&unset)));
        }
        // The guard is there before the first sync, and ends with this. The right to serve is given up when nothing is
        // written any more.
        tokio::select! {
            biased;
            () = guard::stand(table, !ownership.own) => Ok(()),
            result = supervise(config, file, (kernel, ownership), first_words, command_line, signals, hangups) => result,
            () = instance.tell() => Ok(()),
        }
    });
    // Whoever still asks for a name, or reads a file that does not come, is not waited for.
    runtime.shutdown_background();
    result
}

/// Owns every task: one that ends unexpectedly ends the process with its reason.
async fn supervise(
    config: Config,
    file: Option<File>,
    (mut kernel, ownership): (LinuxKernel, Ownership),
    first_words: Vec<Notice>,
    (take_over, flags): (bool, BTreeMap<String, String>),
    mut signals: Signals,
    hangups: Signal,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let (event_sender, events) = mpsc::channel(EVENTS_WAITING);
    let mut following = addresses::Watch::new().context("cannot follow the node's addresses")?;
    // Without them there would be no node ports for a while.
    let local = tokio::select! {
        local = following.list() => local,
        () = signals.stop() => return Ok(()),
    };
    // In kube-proxy's words: scripts look for them.
    info!("Using nftables Proxier");
    let (address_sender, addresses) = watch::channel(local);
    let (reached, servers) = watch::channel(BTreeSet::new());
    let (disturbance_sender, disturbances) = mpsc::channel(16);
    let nudges = disturbance_sender.clone();
    let (attempted_sender, attempted) = oneshot::channel();
    let (owned, is_owned) = watch::channel(false);
    let table = kernel.table();
    let metrics = Arc::new(Metrics::new());
    if config.count_connections {
        frontend_counts::count(&mut kernel, &metrics)?;
    }
    let others = [
        take_over.then_some(Awaited::TakeOver),
        config.healthz_bind_address.map(Awaited::HealthPort),
        Some(Awaited::MetricsPort(config.metrics_bind_address)),
    ];
    let readiness = Readiness::new(table, others.into_iter().flatten());
    let (mut events_out, mut publisher) = (Events::nowhere(), None);
    let answered = Arc::new(AtomicBool::new(false));

    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    let event_sender = if table == TableName::NODE {
        event_sender
    } else {
        let (sender, from) = mpsc::channel(EVENTS_WAITING);
        tasks.spawn(async move {
            linger::pass_on(from, event_sender).await;
            std::future::pending().await
        });
        sender
    };
    let audience = kernel.audience();
    tasks.spawn(async move {
        following.follow(address_sender).await;
        std::future::pending().await
    });
    let foreign = Arc::clone(&metrics);
    tasks.spawn(async move {
        // Not before the cold start: what others do is looked at once afterwards.
        if attempted.await.is_ok() {
            let mut said = PerFamily::default();
            let told = |heard: &Heard| count_foreign(table, heard, &mut said, &foreign);
            let open = || Monitor::open(&audience)?.asynchronous();
            listen_unless(is_owned, open, disturbance_sender, told).await;
        }
        std::future::pending().await
    });
    let awaited = readiness.clone();
    tasks.spawn(async move {
        awaited.follow(service_manager::ready).await;
        std::future::pending().await
    });
    let (in_force, configz) = watch::channel(reload::configz(&config));
    let local_ports = localhost::Ports::new(reload::timeouts(&config));
    let (localhost, on_localhost) = watch::channel(config.localhost_node_ports);
    let (node_ports_sender, node_ports) = watch::channel(config.node_port_addresses.clone());
    match file {
        Some(file) => {
            let live = Live { in_force, ports: local_ports.clone(), localhost, node_ports: node_ports_sender };
            tasks.spawn(follow(file, config.clone(), live, hangups));
        }
        None => {
            drop((in_force, localhost, node_ports_sender));
            tasks.spawn(reload::without_a_file(hangups));
        }
    }
    let counted = Arc::clone(&metrics);
    let following = Following::with(Box::new(move |kind, followed| count_followed(&counted, kind, followed)));
    let following = Arc::new(following);
    let convert = converter(&config);
    let node_name = config.node_name.clone();
    match config.source.clone() {
        Source::Manifests(folder) => {
            tasks.spawn(async move { Ok(file::watch(folder, node_name, convert, event_sender).await?) });
        }
        Source::Api { kubeconfig, master } => {
            let (requests, answered) = (Arc::clone(&metrics), Arc::clone(&answered));
            let listener = move |exchange: &Exchange| {
                let Exchange { method, host, code, elapsed } = exchange;
                answered.fetch_or(code.is_some(), Ordering::Relaxed);
                requests.requested(method, host, *code, *elapsed);
            };
            threads::first_of_runtime().await?;
            let bypass = Bypass { priority: OWN_PRIORITY, reached };
            let client = kube::connect_with(&kubeconfig, master.as_deref(), Some(bypass), Arc::new(listener)).await?;
            let (sender, notices) = Events::channel();
            events_out = sender;
            first_words.into_iter().for_each(|notice| events_out.say(notice));
            publisher = Some(tokio::spawn(publish(client.clone(), node_name.clone(), notices)));
            let following = Arc::clone(&following);
            tasks.spawn(async move {
                kube::watch(client, &node_name, convert, event_sender, following).await;
                Ok(())
            });
        }
    }
    let clients = Reader::spawn(LinuxClients::of(table))?;
    let connections = Conntrack::open().context("cannot use connection tracking")?;
    let mut connections = Connections::new(connections);
    let connections = Counter::spawn(move |tracked| connections.count(tracked))?;
    let (asks, questions) = mpsc::channel(QUESTIONS_WAITING);
    let services = services(asks, &config);
    let inputs = Inputs { events, addresses, node_ports, servers, disturbances, clients, connections, questions };
    let health = Health::new(health::State::new(Family::ALL, config.sync_period, Moment::now()));
    let (checks_sender, checks) = watch::channel(Checks::default());
    let name = config.node_name.clone();
    let budget = Budget::of_process();
    let server = CheckServer::nowhere(health.clone(), budget.clone());
    let known = Known::default();
    let history = History::default();
    let (counted, said) = (Arc::clone(&metrics), events_out.clone());
    tasks.spawn(observers::serve_health_checks(checks, server, counted, name, said, known.clone()));
    let hard_fail = config.bind_address_hard_fail;
    let listening = BindPolicy { hard_fail, events: events_out.clone(), readiness: readiness.clone(), budget };
    if let Some(address) = config.healthz_bind_address {
        tasks.spawn(ports::serve_health(listening.clone(), address, health.clone(), Arc::clone(&metrics)));
    }
    let standings = Standings::default();
    let status = {
        let (metrics, health) = (Arc::clone(&metrics), health.clone());
        let (standings, readiness, known) = (standings.clone(), readiness.clone(), known.clone());
        let cluster_cidrs = cluster_cidrs(&config);
        let wanted_connections = sysctl::wanted_connections(Path::new("/"), &config.conntrack);
        move || {
            // In this order: what is ready is in line.
            let (awaited, ready) = (readiness.awaited(), readiness.held_up_by().is_empty());
            let start = Start { began, awaited, ready, cluster_cidrs: cluster_cidrs.clone(), wanted_connections };
            daemon_status(&metrics, &health, standings.get(), start, known.get(), &following)
        }
    };
    let zpages = {
        let status = status.clone();
        let newest = history.clone();
        let page = move || {
            let daemon = status();
            let changes = status::history_text(&newest.last(NEWEST));
            format!("{}{}\nlast changes\n{changes}", status::daemon_text(&daemon), status::unserved_text(&daemon))
        };
        let history = history.clone();
        ZPages { status: Box::new(page), flags, history: Box::new(move || history.last(usize::MAX)) }
    };
    // To one that serves beside another, the other's rules are no leftovers.
    if table == TableName::NODE {
        let looking = look_around(readiness.clone(), config.clone(), status.clone(), events_out.clone());
        tasks.spawn(async move {
            looking.await;
            std::future::pending().await
        });
    }
    let address = config.metrics_bind_address;
    tasks.spawn(ports::serve_metrics(listening, address, Arc::clone(&metrics), configz, status, zpages, services));
    let mark = 1 << config.masquerade_bit;
    let beside = move || beside::kube_proxy(address);
    let nudge = move || {
        // The loop may have ended.
        let _ = nudges.blocking_send(Disturbance::TakenOver);
    };
    let steps = OnNode { table, mark, beside };
    let take_over = take_over.then(|| TakeOver::spawn(steps, readiness.clone(), nudge)).transpose()?;
    let (ledger, (changes, changed)) = (Ledger::default(), watch::channel(()));
    accounting::account(ledger.clone(), changed, Arc::clone(&metrics))?;
    let (sockets, kept) = service_manager::Sockets::taken_over(localhost::is_name);
    let outside = localhost::Outside {
        metrics: Arc::clone(&metrics),
        events: events_out.clone(),
        keeper: Box::new(sockets),
        kept,
    };
    localhost::spawn(local_ports.clone(), outside)?;
    let published = Published {
        health,
        metrics,
        readiness,
        standings,
        known,
        accounting: Accounting::new(config.accounting, ledger, changes),
        localhost: Localhost::new(local_ports, on_localhost),
        history,
        owned,
        checks: checks_sender,
        events: events_out,
    };
    let observers = Observers::new(take_over, attempted_sender, config.clone(), published)?;
    let (pulse, heartbeat) = service_manager::heartbeat();
    tasks.spawn(async move {
        pulse.beat().await;
        Ok(())
    });
    let (engine, last_sync) = start_engine(config, (kernel, ownership), inputs, observers, heartbeat)?;
    let result = tokio::select! {
        () = signals.stop() => Ok(()),
        ended = tasks.join_next() => match ended {
            Some(Ok(Ok(()))) | None => Err(anyhow::anyhow!("the source of objects ended")),
            Some(Ok(Err(error))) => Err(error),
            Some(Err(panic)) => Err(panic.into()),
        },
    };
    service_manager::stopping();
    // Without sources the engine ends after the sync that is under way.
    tasks.shutdown().await;
    // Whom no server has ever answered, as where a plugin for credentials hangs, waits for none.
    if let Some(publisher) = publisher.filter(|_| answered.load(Ordering::Relaxed)) {
        // Nobody can say anything any more. What was said last may be the reason of the end.
        let _ = timeout(LAST_EVENTS, publisher).await;
    }
    if given_up(last_sync).await {
        // Nobody else needs this thread any more.
        engine.join().map_err(|_| anyhow::anyhow!("the sync loop panicked"))??;
    }
    if result.is_ok() {
        info!("nftproxyd stops; the rules stay");
    }
    result
}

async fn publish(client: ::kube::Client, node_name: String, notices: mpsc::Receiver<Notice>) {
    let host_name = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    events::publish(client, &node_name, &host_name, notices).await;
}

/// Starts the thread that the engine runs on: what the kernel takes its time for keeps nobody else waiting.
fn start_engine(
    config: Config,
    (mut kernel, ownership): (LinuxKernel, Ownership),
    inputs: Inputs,
    mut observers: Observers,
    heartbeat: service_manager::Heartbeat,
) -> anyhow::Result<(thread::JoinHandle<anyhow::Result<()>>, LastSync)> {
    let (ended, last_sync) = oneshot::channel();
    let body = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().context("cannot start")?;
        let hashes = kernel.can_hash()?;
        let mut engine = Engine::new(kernel, Facts { hashes, ..facts(&config) });
        engine.own_tables(ownership.own);
        if observers.takes_over() {
            engine.serve_beside();
        }
        runtime.block_on(async {
            tokio::select! {
                () = sync::run(&mut engine, inputs, config.min_sync_period, &mut observers) => {}
                () = heartbeat.pass_on() => {}
            }
        });
        ownership.end(&mut engine, ended);
        Ok(())
    };
    Ok((threads::spawn("sync", body)?, last_sync))
}

/// How the engine is asked about Services.
fn services(asks: mpsc::Sender<Question>, config: &Config) -> Services {
    let scheduler = config.scheduler;
    Services(Box::new(move |ask, reply| {
        let answer = move |known: Knowledge<'_>| {
            let node = Node { zone: known.store.zone(), scheduler };
            // Whoever has asked may have gone.
            let _ = reply.send(answer(ask, known.store, known.claims, node));
        };
        asks.try_send(Question::new(answer)).is_ok()
    }))
}

/// `clusterCIDR`, where it tells pods from others.
fn cluster_cidrs(config: &Config) -> Vec<IpNet> {
    match &config.detect_local {
        DetectLocal::ClusterCidr(ranges) => Family::ALL.into_iter().filter_map(|family| ranges[family]).collect(),
        _ => Vec::new(),
    }
}

/// Counts foreign changes, and says of them what has not been said lately.
fn count_foreign(table: TableName, heard: &Heard, told: &mut PerFamily<Told>, metrics: &Metrics) {
    if let Heard::Foreign { family, port, .. } = heard {
        metrics.foreign_changes[*family].inc();
        if let Some(before) = told[*family].again(Instant::now()) {
            let table = text::table(table, *family);
            warn!("table {table} was changed by somebody else (netlink port {port}{before}); it is checked");
        }
    }
}
