//! What Lictor counts and measures, for Prometheus.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// Upper bounds in seconds, from below the time of one write to that of an outage.
const SECONDS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0,
];

/// A kind of entry in Consul.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    /// `node`, `instance`, or the name of a watched resource.
    pub kind: &'static str,
}

/// An operation on Consul.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OperationLabels {
    /// `node`, `instance`.
    pub kind: &'static str,
    /// `create`, `update`, `delete`.
    pub verb: &'static str,
    /// `ok`, or the class of the failure.
    pub outcome: &'static str,
}

/// A request to Consul.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// The path without names, e.g. `health/node`.
    pub endpoint: &'static str,
    /// HTTP status, 0 without an answer.
    pub code: u16,
}

/// All metrics. Cheap to clone: the parts are shared.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// `lictor_owned`: entries of ours that Consul holds.
    pub owned: Family<KindLabel, Gauge>,
    /// `lictor_operations_total`.
    pub operations: Family<OperationLabels, Counter>,
    /// `lictor_propagation_seconds`: from an event to Consul's acknowledgement of what it asked for.
    pub propagation: Histogram,
    /// `lictor_drift_total`: changes of another hand that were repaired, or told with `--drift report`.
    pub drift: Family<KindLabel, Counter>,
    /// `lictor_held_deletes`: removals that wait until they are safe.
    pub held_deletes: Gauge,
    /// `lictor_held_nodes`: nodes that are not Ready or missing and whose checks are held, because too many are.
    pub held_nodes: Gauge,
    /// `lictor_deregistered_critical`: instances that are not registered because they were critical for
    /// long.
    pub deregistered_critical: Gauge,
    /// `lictor_conflicts`: keys that someone else holds.
    pub conflicts: Gauge,
    /// `lictor_rejections`: objects and instances with invalid input, or that Consul refuses.
    pub rejections: Gauge,
    /// `lictor_consul_requests_total`; code 0 stands for no answer.
    pub requests: Family<RequestLabels, Counter>,
    /// `lictor_consul_request_seconds`; blocking queries apart.
    pub request_seconds: Histogram,
    /// `lictor_consul_last_contact_seconds`: how long ago Consul answered last.
    pub last_contact: Gauge<f64, AtomicU64>,
    /// `lictor_watch_restarts_total`: watches of Kubernetes that broke.
    pub watch_restarts: Family<KindLabel, Counter>,
    /// `lictor_leader`: whether this process may write.
    pub leader: Gauge,
    /// `lictor_pending_keys`: keys that are to be planned, being written or waiting.
    pub pending: Gauge,
    /// `lictor_audit_findings_total`: what a total pass found that incremental ones had missed.
    pub audit_findings: Counter,
    /// `lictor_events_dropped_total`: Kubernetes Events beyond the limit.
    pub events_dropped: Counter,
    /// `lictor_gates_waiting`: pods whose readiness gate `lictor.io/registered` is not open.
    pub gates_waiting: Gauge,
    /// `lictor_checks`: checks that this process runs.
    pub checks: Gauge,
    /// `lictor_checks_not_run_total`: runs of checks that this process could not make.
    pub checks_not_run: Counter,
    /// `lictor_check_lateness_seconds`: how long after its time the run of a check began.
    pub check_lateness: Histogram,
    /// `lictor_sessions`: sessions in Consul that are kept alive for checks that follow them.
    pub sessions: Gauge,
}

impl Metrics {
    /// New metrics, registered under their names.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let histogram = || Histogram::new(SECONDS);
        let metrics = Self {
            owned: Family::default(),
            operations: Family::default(),
            propagation: histogram(),
            drift: Family::default(),
            held_deletes: Gauge::default(),
            held_nodes: Gauge::default(),
            deregistered_critical: Gauge::default(),
            conflicts: Gauge::default(),
            rejections: Gauge::default(),
            requests: Family::default(),
            request_seconds: histogram(),
            last_contact: Gauge::default(),
            watch_restarts: Family::default(),
            leader: Gauge::default(),
            pending: Gauge::default(),
            audit_findings: Counter::default(),
            events_dropped: Counter::default(),
            gates_waiting: Gauge::default(),
            checks: Gauge::default(),
            checks_not_run: Counter::default(),
            check_lateness: histogram(),
            sessions: Gauge::default(),
        };
        metrics.register(registry.sub_registry_with_prefix("lictor"));
        registry.register_collector(Box::new(Process));
        metrics
    }

    fn register(&self, registry: &mut Registry) {
        // Taken apart without `..`, so that no metric is forgotten.
        let Self {
            owned,
            operations,
            propagation,
            drift,
            held_deletes,
            held_nodes,
            deregistered_critical,
            conflicts,
            rejections,
            requests,
            request_seconds,
            last_contact,
            watch_restarts,
            leader,
            pending,
            audit_findings,
            events_dropped,
            gates_waiting,
            checks,
            checks_not_run,
            check_lateness,
            sessions,
        } = self.clone();
        let help = "Pods whose readiness gate lictor.io/registered is not open";
        registry.register("gates_waiting", help, gates_waiting);
        registry.register("checks", "Checks that this process runs", checks);
        let help = "Runs of checks that this process could not make";
        registry.register("checks_not_run", help, checks_not_run);
        let help = "How long after its time the run of a check began";
        registry.register_with_unit("check_lateness", help, Unit::Seconds, check_lateness);
        let help = "Sessions in Consul that are kept alive for checks that follow them";
        registry.register("sessions", help, sessions);
        registry.register("owned", "Entries of ours that Consul holds", owned);
        registry.register("operations", "Operations on Consul", operations);
        let help = "From an event to Consul's acknowledgement of what it asked for";
        registry.register_with_unit("propagation", help, Unit::Seconds, propagation);
        registry.register(
            "drift",
            "Changes of another hand that were repaired, or told with --drift report",
            drift,
        );
        registry.register(
            "held_deletes",
            "Removals that wait until they are safe",
            held_deletes,
        );
        let help = "Nodes that are not Ready or missing and whose checks are held";
        registry.register("held_nodes", help, held_nodes);
        let help = "Instances that are not registered because they were critical for long";
        registry.register("deregistered_critical", help, deregistered_critical);
        registry.register("conflicts", "Keys that someone else holds", conflicts);
        let help = "Objects and instances with invalid input, or that Consul refuses";
        registry.register("rejections", help, rejections);
        let help = "Requests to Consul; code 0 is no answer";
        registry.register("consul_requests", help, requests);
        let help = "Duration of requests to Consul, blocking queries apart";
        registry.register_with_unit("consul_request", help, Unit::Seconds, request_seconds);
        let help = "How long ago Consul answered last";
        registry.register_with_unit("consul_last_contact", help, Unit::Seconds, last_contact);
        let help = "Watches of Kubernetes that broke";
        registry.register("watch_restarts", help, watch_restarts);
        registry.register("leader", "Whether this process may write", leader);
        let help = "Keys that are to be planned, being written or waiting";
        registry.register("pending_keys", help, pending);
        let help = "What a total pass found that incremental ones had missed";
        registry.register("audit_findings", help, audit_findings);
        let help = "Kubernetes Events beyond the limit";
        registry.register("events_dropped", help, events_dropped);
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The version that runs", version);
    }

    /// Brings up to date what is measured at the moment of a scrape: how long ago Consul answered
    /// last, or for how long it has not answered at all.
    pub fn refresh(&self, last_contact: Duration) {
        self.last_contact.set(last_contact.as_secs_f64());
    }
}

impl crate::consul::Observer for Metrics {
    fn observed(
        &self,
        endpoint: &'static str,
        code: Option<u16>,
        elapsed: Duration,
        blocking: bool,
    ) {
        let code = code.unwrap_or_default();
        self.requests
            .get_or_create(&RequestLabels { endpoint, code })
            .inc();
        if !blocking {
            self.request_seconds.observe(elapsed.as_secs_f64());
        }
    }
}

/// The process metrics that every Prometheus client has, read at a scrape.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    /// What cannot be read (there is no `/proc` outside of Linux) is left out.
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Ok(this) = procfs::process::Process::myself() else {
            return Ok(());
        };
        if let Ok(stat) = this.stat() {
            let ticks = procfs::ticks_per_second();
            #[expect(
                clippy::cast_precision_loss,
                reason = "a fraction of a second is wanted"
            )]
            let seconds = |of: u64| of as f64 / ticks as f64;
            let cpu = ConstCounter::new(seconds(stat.utime + stat.stime));
            let help = "CPU time, user and system";
            encode(&mut encoder, "process_cpu_seconds", help, &cpu)?;
            let resident = stat.rss.saturating_mul(procfs::page_size());
            let resident = ConstGauge::new(i64::try_from(resident).unwrap_or(i64::MAX));
            encode(
                &mut encoder,
                "process_resident_memory_bytes",
                "Resident memory",
                &resident,
            )?;
            if let Ok(boot) = procfs::boot_time_secs() {
                #[expect(
                    clippy::cast_precision_loss,
                    reason = "a fraction of a second is wanted"
                )]
                let started = ConstGauge::new(boot as f64 + seconds(stat.starttime));
                let help = "Start of the process since the epoch";
                encode(&mut encoder, "process_start_time_seconds", help, &started)?;
            }
        }
        if let Ok(count) = this.fd_count() {
            let count = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            encode(
                &mut encoder,
                "process_open_fds",
                "Open file descriptors",
                &count,
            )?;
        }
        Ok(())
    }
}

fn encode(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &impl EncodeMetric,
) -> Result<(), std::fmt::Error> {
    let encoder = encoder.encode_descriptor(name, help, None, metric.metric_type())?;
    metric.encode(encoder)
}
