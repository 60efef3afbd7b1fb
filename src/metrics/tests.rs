//! The text that Prometheus reads.

use std::time::Duration;

use insta::assert_snapshot;

use super::*;
use crate::manager::counters::BuildCounters;
use crate::manager::status::example;
use crate::nix::System;

fn status() -> Status {
    let mut waits = Times::default();
    waits.add(Duration::from_millis(700));
    waits.add(Duration::from_secs(90));
    let builds = BuildCounters {
        built: 3,
        failed: 1,
        cpu_ms: 1500,
        ..BuildCounters::default()
    };
    let vm = VmView {
        memory_mib: Some(117),
        ..example::vm("riscv64-1", VmStage::Ready)
    };
    let pool = SystemStatus {
        max_vms: 4,
        vms: vec![vm],
        counters: Counters {
            sessions: 5,
            waits,
            builds,
            ..Counters::default()
        },
        ..example::pool(System::Riscv64Linux)
    };
    Status {
        systems: vec![pool],
        builds: Vec::new(),
    }
}

#[test]
fn a_status_has_its_numbers() {
    let text = text("1.2.3", status());
    // The buckets of one of the histograms are enough.
    let is_shown = |line: &&str| {
        let is_bucket = line.contains("_bucket") && !line.contains("wait_seconds");
        !is_bucket && !line.starts_with('#')
    };
    let lines: Vec<&str> = text.lines().filter(is_shown).collect();
    assert_snapshot!(lines.join("\n"), @r#"
    xpool_manager_info{version="1.2.3"} 1
    xpool_vms_max{system="riscv64-linux"} 4
    xpool_vms_warm{system="riscv64-linux"} 0
    xpool_pool_degraded{system="riscv64-linux"} 0
    xpool_vms{system="riscv64-linux",state="booting"} 0
    xpool_vms{system="riscv64-linux",state="ready"} 1
    xpool_vms{system="riscv64-linux",state="leased"} 0
    xpool_vms{system="riscv64-linux",state="pinned"} 0
    xpool_vms{system="riscv64-linux",state="draining"} 0
    xpool_vms{system="riscv64-linux",state="stopping"} 0
    xpool_vms_memory_bytes{system="riscv64-linux"} 122683392
    xpool_vm_starts_total{system="riscv64-linux"} 0
    xpool_vm_failures_total{system="riscv64-linux"} 0
    xpool_vm_start_seconds_sum{system="riscv64-linux"} 0.0
    xpool_vm_start_seconds_count{system="riscv64-linux"} 0
    xpool_sessions{system="riscv64-linux",state="served"} 0
    xpool_sessions{system="riscv64-linux",state="waiting"} 0
    xpool_session_opens_total{system="riscv64-linux"} 5
    xpool_session_rejections_total{system="riscv64-linux"} 0
    xpool_session_wait_seconds_bucket{system="riscv64-linux",le="0.1"} 0
    xpool_session_wait_seconds_bucket{system="riscv64-linux",le="0.25"} 0
    xpool_session_wait_seconds_bucket{system="riscv64-linux",le="0.5"} 0
    xpool_session_wait_seconds_bucket{system="riscv64-linux",le="1"} 1
    xpool_session_wait_seconds_bucket{system="riscv64-linux",le="2.5"} 1
    xpool_session_wait_seconds_bucket{system="riscv64-linux",le="5"} 1
    xpool_session_wait_seconds_bucket{system="riscv64-linux",le="10"} 1
    xpool_session_wait_seconds_bucket{system="riscv64-linux",le="30"} 1
    xpool_session_wait_seconds_bucket{system="riscv64-linux",le="60"} 1
    xpool_session_wait_seconds_bucket{system="riscv64-linux",le="300"} 2
    xpool_session_wait_seconds_bucket{system="riscv64-linux",le="900"} 2
    xpool_session_wait_seconds_bucket{system="riscv64-linux",le="3600"} 2
    xpool_session_wait_seconds_bucket{system="riscv64-linux",le="14400"} 2
    xpool_session_wait_seconds_bucket{system="riscv64-linux",le="+Inf"} 2
    xpool_session_wait_seconds_sum{system="riscv64-linux"} 90.7
    xpool_session_wait_seconds_count{system="riscv64-linux"} 2
    xpool_inputs_asked_total{system="riscv64-linux"} 0
    xpool_inputs_shared_total{system="riscv64-linux"} 0
    xpool_builds_running{system="riscv64-linux"} 0
    xpool_builds_total{system="riscv64-linux",outcome="built"} 3
    xpool_builds_total{system="riscv64-linux",outcome="failed"} 1
    xpool_build_cpu_seconds_total{system="riscv64-linux"} 1.5
    xpool_build_seconds_sum{system="riscv64-linux"} 0.0
    xpool_build_seconds_count{system="riscv64-linux"} 0
    "#);
}

#[test]
fn every_metric_is_described_once_and_named_as_the_convention_has_it() {
    let text = text("1.2.3", status());
    let of = |start: &str| -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(start));
        let names = lines.map(|line| line.split(' ').next().unwrap().to_owned());
        names.collect()
    };
    let described = of("# HELP ");
    assert_eq!(described, of("# TYPE "));
    let mut once = described.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), described.len());
    assert!(once.iter().all(|name| name.starts_with("xpool_")));
}
