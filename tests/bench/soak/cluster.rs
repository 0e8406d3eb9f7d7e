//! The cluster: many Services that change all the time, and a few that clients use.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::{Api, synthetic};
use crate::network;
use crate::numbers::Random;
use crate::truth::Truth;

/// The port of every Service.
pub(crate) const PORT: u16 = 80;
/// Services that never change.
pub(crate) const STEADY: Range<usize> = 60_000..60_006;
/// Services of which one pod after the other is replaced.
pub(crate) const ROLLING: Range<usize> = 61_000..61_006;
/// A Service that remembers its clients.
pub(crate) const STICKY: usize = 62_000;
/// Changes last: it tells when all is whole.
pub(crate) const CANARY: usize = 63_000;

/// The first of the Services that nobody uses but at the end.
const FIRST: usize = 256;
/// How often one of [`ROLLING`] changes.
const ROLL_EVERY: Duration = Duration::from_millis(700);

/// What the API server holds, and what is done to it.
pub(crate) struct Cluster {
    api: Arc<Api>,
    truth: Arc<Truth>,
    /// The pods of each Service that nobody uses but at the end; `None` where it is deleted.
    others: Mutex<Vec<Option<Vec<Ipv4Addr>>>>,
    next_pod: AtomicU32,
}

/// The cluster IP of Service `index`.
pub(crate) fn cluster_ip(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, (index / 256) as u8, (index % 256) as u8)
}

/// Service `index`, TCP and UDP.
fn service(index: usize) -> Value {
    let mut service = synthetic::service(index);
    let udp = json!({"name": "echo", "port": PORT, "protocol": "UDP", "targetPort": 8080});
    service["spec"]["ports"].as_array_mut().expect("a list").push(udp);
    if index == STICKY {
        service["spec"]["sessionAffinity"] = json!("ClientIP");
        service["spec"]["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 10_800}});
    }
    service
}

fn slice(index: usize, pods: &[Ipv4Addr]) -> Value {
    let mut slice = synthetic::slice_of(index, pods);
    let udp = json!({"name": "echo", "port": 8080, "protocol": "UDP"});
    slice["ports"].as_array_mut().expect("a list").push(udp);
    slice
}

impl Cluster {
    pub(crate) fn new(api: Arc<Api>, truth: Arc<Truth>, services: usize) -> Cluster {
        api.apply(synthetic::node(network::NODE));
        let cidr = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
            "spec": {"cidrs": ["10.96.0.0/16"]}});
        api.apply(cidr);
        let cluster = Cluster { api, truth, others: Mutex::default(), next_pod: AtomicU32::new(0) };
        for index in STEADY.chain(ROLLING).chain([STICKY, CANARY]) {
            cluster.api.apply(service(index));
            let pods = cluster.new_pods(if index == CANARY { 1 } else { 3 });
            cluster.set(index, &pods);
        }
        let mut others = Vec::new();
        for number in 0..services {
            let pods = cluster.new_pods(3);
            cluster.api.apply(service(FIRST + number));
            cluster.api.apply(slice(FIRST + number, &pods));
            others.push(Some(pods));
        }
        *cluster.others() = others;
        cluster
    }

    /// The number of Services.
    pub(crate) fn len(&self) -> usize {
        self.others().len() + STEADY.len() + ROLLING.len() + 2
    }

    fn others(&self) -> MutexGuard<'_, Vec<Option<Vec<Ipv4Addr>>>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pods that nobody had before, for a long time.
    pub(crate) fn new_pods(&self, count: u32) -> Vec<Ipv4Addr> {
        let first = self.next_pod.fetch_add(count, Ordering::Relaxed);
        (first..first + count).map(|number| Ipv4Addr::from((10 << 24 | 1 << 23) + number % (1 << 23))).collect()
    }

    /// Gives a Service that clients use these pods.
    pub(crate) fn set(&self, index: usize, pods: &[Ipv4Addr]) {
        // First what may be, then what is.
        self.truth.is_now(index, pods);
        self.api.apply(slice(index, pods));
    }

    /// Changes some Service that nobody uses but at the end.
    fn change(&self, random: &mut Random) {
        let mut others = self.others();
        let number = random.index(others.len());
        let index = FIRST + number;
        let pods = &mut others[number];
        match (random.below(10), &mut *pods) {
            (0, Some(_)) => {
                *pods = None;
                let name = format!("service-{index}");
                self.api.delete("Service", "load", &name);
                self.api.delete("EndpointSlice", "load", &format!("{name}-slice"));
            }
            (_, None) => {
                let new = self.new_pods(1 + random.below(4) as u32);
                self.api.apply(service(index));
                self.api.apply(slice(index, &new));
                *pods = Some(new);
            }
            (1..=3, Some(pods)) => {
                *pods = self.new_pods(random.below(12) as u32);
                self.api.apply(slice(index, pods));
            }
            (_, Some(pods)) => {
                pods.truncate(pods.len().saturating_sub(1));
                pods.extend(self.new_pods(1));
                self.api.apply(slice(index, pods));
            }
        }
    }

    /// Some Services that nobody has used yet, with their pods: no pod where there are none or no Service.
    pub(crate) fn samples(&self) -> Vec<(usize, Vec<Ipv4Addr>)> {
        let others = self.others();
        let pods = others.iter().enumerate().map(|(number, pods)| (FIRST + number, pods.clone().unwrap_or_default()));
        pods.step_by((others.len() / 300).max(1)).collect()
    }
}

/// Whoever changes the cluster.
pub(crate) struct Churn {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Churn {
    pub(crate) fn begin(cluster: Arc<Cluster>, seed: u64, per_second: u32) -> Churn {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut random, mut changes) = (Random(seed ^ 0xc1u64.rotate_right(8)), 0);
            let mut rolling: Vec<Vec<Ipv4Addr>> = ROLLING.map(|_| cluster.new_pods(3)).collect();
            let (start, mut rolled, mut turn) = (Instant::now(), Instant::now(), 0);
            while !stopped.load(Ordering::Relaxed) {
                let due = start + Duration::from_secs(1) * changes / per_second;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                cluster.change(&mut random);
                changes += 1;
                if rolled.elapsed() >= ROLL_EVERY {
                    rolled = Instant::now();
                    let pods = &mut rolling[turn % ROLLING.len()];
                    pods.remove(0);
                    pods.extend(cluster.new_pods(1));
                    cluster.set(ROLLING.start + turn % ROLLING.len(), pods);
                    turn += 1;
                }
            }
            u64::from(changes) + turn as u64
        });
        Churn { stop, thread }
    }

    /// Returns how many changes there were.
    pub(crate) fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
