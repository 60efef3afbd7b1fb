//! What the manager knows, as Prometheus reads it. Pure; [`server`] serves it.
//!
//! Format: Prometheus text, version 0.0.4. Names follow <https://prometheus.io/docs/practices/naming/>.

pub mod server;

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeMetric, MetricEncoder, prometheus_text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::manager::counters::{BOUNDS_MS, Counters, Times};
use crate::manager::status::{BuildView, Status, SystemStatus, VmView};
use crate::pool::status::VmStage;

/// The type of what [`text`] makes, for who asks by HTTP.
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// A status as metrics. It has no names of people, derivations or paths.
///
/// `version` is the manager's. VMs whose memory was not measured count as taking none.
///
/// # Panics
///
/// Never: what is written into memory can be written.
pub fn text(version: &str, status: Status) -> String {
    let mut registry = Registry::with_prefix("xpool");
    let version = version.to_owned();
    registry.register_collector(Box::new(Snapshot { version, status }));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry).expect("text can be written into memory");
    text
}

/// What one text is made from.
#[derive(Debug)]
struct Snapshot {
    version: String,
    status: Status,
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut metrics = Metrics {
            encoder,
            status: &self.status,
        };
        let version = [("version", self.version.as_str())];
        metrics.info("manager", "The manager that serves", &version)?;
        metrics.pools()?;
        metrics.vms()?;
        metrics.sessions()?;
        metrics.builds()
    }
}

const SYSTEM: &str = "system";

/// The text as it grows.
struct Metrics<'a, 'e> {
    encoder: DescriptorEncoder<'e>,
    status: &'a Status,
}

impl Metrics<'_, '_> {
    fn pools(&mut self) -> fmt::Result {
        self.gauge("vms_max", "VMs that may run", |pool| pool.max_vms.into())?;
        self.gauge("vms_warm", "Unused VMs that are to be kept ready", |pool| {
            pool.warm.into()
        })?;
        let degraded = "Whether VMs fail to start, so that builds are refused";
        self.gauge("pool_degraded", degraded, |pool| pool.degraded.into())
    }

    fn vms(&mut self) -> fmt::Result {
        let vms = ("vms", "VMs that there are");
        self.labelled(vms, MetricType::Gauge, "state", |pool| {
            let number = |stage: VmStage| {
                let is_meant = |vm: &&VmView| vm.state == stage;
                let there = pool.vms.iter().filter(is_meant);
                (stage.name(), ConstGauge::new(count(there)))
            };
            VmStage::ALL.map(number)
        })?;
        let memory = "Memory of the host that VMs take, with their part of what they share";
        self.gauge("vms_memory_bytes", memory, |pool| {
            let mib = pool.vms.iter().filter_map(|vm| vm.memory_mib);
            i64::try_from(mib.sum::<u64>() << 20).unwrap_or(i64::MAX)
        })?;
        self.counter("vm_starts", "VMs that were started", |all| all.vm_starts)?;
        let failures =
            "VMs that ended otherwise than by being told to, before they could serve or after";
        self.counter("vm_failures", failures, |all| all.vm_failures)?;
        let starts = "How long VMs took until they could serve";
        self.times("vm_start_seconds", starts, |all| &all.starts)
    }

    fn sessions(&mut self) -> fmt::Result {
        let sessions = ("sessions", "Sessions that there are");
        self.labelled(sessions, MetricType::Gauge, "state", |pool| {
            let sessions = pool.sessions.iter();
            let (served, waiting): (Vec<_>, Vec<_>) =
                sessions.partition(|session| session.vm.is_some());
            [("served", served), ("waiting", waiting)]
                .map(|(state, sessions)| (state, ConstGauge::new(count(sessions))))
        })?;
        let came = "Sessions that wanted a VM";
        self.counter("session_opens", came, |all| all.sessions)?;
        let rejected = "Sessions that were told they get no VM";
        self.counter("session_rejections", rejected, |all| all.sessions_rejected)?;
        let waits = "How long sessions waited for their VM";
        self.times("session_wait_seconds", waits, |all| &all.waits)?;
        let asked = "Paths that sessions asked for as inputs";
        self.counter("inputs_asked", asked, |all| all.inputs_asked)?;
        let shared = "Inputs that VMs saw in this machine's store, so that nobody copied them";
        self.counter("inputs_shared", shared, |all| all.inputs_shared)
    }

    fn builds(&mut self) -> fmt::Result {
        let running: Vec<&BuildView> = self.status.builds.iter().collect();
        self.gauge("builds_running", "Builds that run", |pool| {
            let is_meant =
                |build: &&&BuildView| build.system == pool.system && build.ended.is_none();
            count(running.iter().filter(is_meant))
        })?;
        let ended = ("builds", "Builds that have ended");
        self.labelled(ended, MetricType::Counter, "outcome", |pool| {
            let builds = &pool.counters.builds;
            [("built", builds.built), ("failed", builds.failed)]
                .map(|(outcome, builds)| (outcome, ConstCounter::new(builds)))
        })?;
        let cpu = "Processor time of builds in their guests";
        self.seconds("build_cpu_seconds", cpu, |all| all.builds.cpu_ms)?;
        let took = "How long builds took, known to a second, without inputs and outputs";
        self.times("build_seconds", took, |all| &all.builds.took)
    }

    fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) -> fmt::Result {
        // As an info is written in this format.
        let name = format!("{name}_info");
        let gauge = MetricType::Gauge;
        let mut metric = self.encoder.encode_descriptor(&name, help, None, gauge)?;
        let family = metric.encode_family(&labels)?;
        ConstGauge::new(1).encode(family)
    }

    /// A number of each pool.
    fn gauge(&mut self, name: &str, help: &str, of: impl Fn(&SystemStatus) -> i64) -> fmt::Result {
        self.each(name, help, MetricType::Gauge, |pool, metric| {
            ConstGauge::new(of(pool)).encode(metric)
        })
    }

    /// Some numbers of each pool, told apart by a further label.
    fn labelled<M: EncodeMetric, const N: usize>(
        &mut self,
        (name, help): (&str, &str),
        kind: MetricType,
        label: &str,
        of: impl Fn(&SystemStatus) -> [(&'static str, M); N],
    ) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, kind)?;
        for pool in &self.status.systems {
            for (value, number) in of(pool) {
                let labels = [(SYSTEM, pool.system.name()), (label, value)];
                number.encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn counter(&mut self, name: &str, help: &str, of: impl Fn(&Counters) -> u64) -> fmt::Result {
        self.each(name, help, MetricType::Counter, |pool, metric| {
            ConstCounter::new(of(&pool.counters)).encode(metric)
        })
    }

    /// A counter of milliseconds, in seconds.
    fn seconds(&mut self, name: &str, help: &str, of: impl Fn(&Counters) -> u64) -> fmt::Result {
        self.each(name, help, MetricType::Counter, |pool, metric| {
            ConstCounter::new(seconds(of(&pool.counters))).encode(metric)
        })
    }

    fn times(&mut self, name: &str, help: &str, of: impl Fn(&Counters) -> &Times) -> fmt::Result {
        self.each(name, help, MetricType::Histogram, |pool, mut metric| {
            let times = of(&pool.counters);
            let bounds = BOUNDS_MS
                .iter()
                .map(|ms| seconds(*ms))
                .chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(times.counts).collect();
            let all = times.counts.iter().sum();
            metric.encode_histogram::<[(&str, &str); 0]>(seconds(times.sum_ms), all, &buckets, None)
        })
    }

    /// One metric of each pool.
    fn each(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        encode: impl Fn(&SystemStatus, MetricEncoder<'_>) -> fmt::Result,
    ) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, kind)?;
        for pool in &self.status.systems {
            let labels = [(SYSTEM, pool.system.name())];
            encode(pool, metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn count<T>(all: impl IntoIterator<Item = T>) -> i64 {
    i64::try_from(all.into_iter().count()).unwrap_or(i64::MAX)
}

#[allow(
    clippy::cast_precision_loss,
    reason = "exact up to 285,000 years of milliseconds"
)]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

#[cfg(test)]
mod tests;
