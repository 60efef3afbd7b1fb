//! The API of every command: HTTP and JSON over a Unix socket that only its owner can reach.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /v1/info` | [`Info`] |
//! | `GET /v1/status` | [`Status`](crate::manager::status::Status) of this moment |
//! | `GET /metrics` | the same in numbers, as Prometheus reads them |
//! | `GET /v1/watch` | the status at each change, one JSON object a line, until the caller goes |
//! | `GET /v1/events` | a [`PoolEvent`](crate::manager::events::PoolEvent) a line from now on, until the caller goes |
//! | `POST /v1/up` with [`Up`] | when the wish is noted |
//! | `POST /v1/drain` with [`Drain`] | when the wish is noted |
//! | `POST /v1/down` with [`TakeDown`] | when the last VM is gone |

pub mod client;
mod owners;
pub mod server;

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::nix::System;
use crate::pool::Down;

/// What a manager says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Info {
    /// The version of xpool that it runs.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Where its gateway listens.
    pub gateway: SocketAddr,
    /// Whether a service manager starts it again when somebody comes.
    #[serde(default)]
    pub is_started_on_demand: bool,
}

/// A wish for VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Up {
    /// Of which system.
    pub system: System,
    /// How many, until the system is taken down.
    pub count: u32,
}

/// A wish that a VM takes no further sessions, and ends with those that it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Drain {
    /// Its name.
    pub vm: String,
}

/// A wish to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TakeDown {
    /// The one system, or all of them and the manager as well.
    pub system: Option<System>,
    /// How fast.
    pub how: Down,
}
