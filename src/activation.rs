//! Sockets that a service manager opened before it started the manager, and keeps open after its end (systemd's socket
//! activation, `sd_listen_fds(3)`). Whoever comes while no manager runs then waits for the next one, and is not refused.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;

use listenfd::ListenFd;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::paths::Paths;
use crate::shutdown::Shutdown;

/// The sockets that were given. Each is told by where it listens, whatever its place among them.
#[derive(Debug, Default)]
pub struct GivenSockets {
    /// Where commands come.
    pub control: Option<UnixListener>,
    /// Where helpers of the local transport come.
    pub connect: Option<UnixListener>,
    /// Where people come for shells.
    pub shell: Option<UnixListener>,
    /// Where ssh comes, at whatever address.
    pub gateway: Option<TcpListener>,
}

/// A socket that was given cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    /// It is none of the manager's.
    #[error(
        "the service manager has opened a socket at {place}, and a manager listens at {}",
        known.join(", ")
    )]
    Unknown {
        /// Where it listens.
        place: String,
        /// Where a manager could.
        known: Vec<String>,
    },
    /// There are two of a kind.
    #[error("the service manager has opened two sockets for {0}, and one is used")]
    Twice(&'static str),
    /// It is no stream socket that listens, or cannot be looked at.
    #[error("socket {0} of those that the service manager has opened cannot be used")]
    Unfit(usize, #[source] io::Error),
}

impl GivenSockets {
    /// Takes what this process was started with: mostly nothing.
    pub fn take(paths: &Paths) -> Result<Self, ActivationError> {
        let mut given = ListenFd::from_env();
        let mut sockets = Self::default();
        for number in 0..given.len() {
            let unfit = |error| ActivationError::Unfit(number, error);
            // What is no Unix socket stays where it is, and may be one for TCP.
            match given.take_unix_listener(number) {
                Ok(Some(socket)) => sockets.put_unix(number, socket, paths)?,
                Ok(None) => {}
                Err(_) => {
                    if let Some(socket) = given.take_tcp_listener(number).map_err(unfit)? {
                        put(&mut sockets.gateway, socket, "the gateway")?;
                    }
                }
            }
        }
        Ok(sockets)
    }

    fn put_unix(
        &mut self,
        number: usize,
        socket: UnixListener,
        paths: &Paths,
    ) -> Result<(), ActivationError> {
        let address = socket
            .local_addr()
            .map_err(|error| ActivationError::Unfit(number, error))?;
        let places = [
            (paths.control_socket(), &mut self.control, "commands"),
            (
                paths.connect_socket(),
                &mut self.connect,
                "the local transport",
            ),
            (paths.shell_socket(), &mut self.shell, "shells"),
        ];
        let known = places
            .each_ref()
            .map(|(path, ..)| format!("`{}`", path.display()));
        for (path, place, what) in places {
            if address
                .as_pathname()
                .is_some_and(|given| is_same(given, &path))
            {
                return put(place, socket, what);
            }
        }
        Err(ActivationError::Unknown {
            place: address.as_pathname().map_or_else(
                || format!("{address:?}"),
                |path| format!("`{}`", path.display()),
            ),
            known: known.to_vec(),
        })
    }

    /// Lets go of a socket for the gateway at another address than the one that is configured, which then counts. `None`
    /// where none is configured.
    #[must_use]
    pub fn at(mut self, configured: Option<SocketAddr>) -> Self {
        let given = self.gateway.as_ref();
        let given = given.and_then(|gateway| gateway.local_addr().ok());
        if let (Some(given), Some(configured)) = (given, configured)
            && given != configured
        {
            warn!(
                %given,
                %configured,
                "the service manager listens elsewhere than xpool.toml says, and xpool.toml counts: who comes there waits in \
                 vain; let `ListenStream` in the unit of the socket say the same, and restart that"
            );
            self.gateway = None;
        }
        self
    }

    /// Whether a manager's end cuts off nobody who comes later, be it Nix or a command.
    pub fn outlive_the_manager(&self) -> bool {
        self.connect.is_some() && self.gateway.is_some() && self.control.is_some()
    }
}

fn put<T>(place: &mut Option<T>, socket: T, what: &'static str) -> Result<(), ActivationError> {
    if place.is_some() {
        return Err(ActivationError::Twice(what));
    }
    *place = Some(socket);
    Ok(())
}

/// Whether two names are of one socket, by whatever way through links.
fn is_same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    one == other || real(one).is_some_and(|one| Some(one) == real(other))
}

/// Whether clients are left to the next manager, and from when on.
#[derive(Clone, Debug, Default)]
pub struct Handover(Option<CancellationToken>);

impl Handover {
    /// What these sockets allow: from the moment in which the manager is to end, who comes is the next one's.
    pub fn of(sockets: &GivenSockets, shutdown: &Shutdown) -> Self {
        Self(
            sockets
                .outlive_the_manager()
                .then(|| shutdown.drain.clone()),
        )
    }

    /// Whether there will be a next manager for whoever comes.
    pub fn is_expected(&self) -> bool {
        self.0.is_some()
    }

    /// Whether clients are left to it by now.
    pub fn has_begun(&self) -> bool {
        self.0.as_ref().is_some_and(CancellationToken::is_cancelled)
    }

    /// Resolves when nobody is to be let in any more who is not served yet; never where there is no next manager.
    pub async fn begun(&self) {
        match &self.0 {
            Some(begun) => begun.cancelled().await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
impl Handover {
    /// One of a manager with sockets that outlive it, which is told to end in this way.
    pub(crate) fn expected(shutdown: &Shutdown) -> Self {
        Self(Some(shutdown.drain.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(dir: &Path) -> Paths {
        Paths::new(None, Some(dir.to_owned()), Some(dir.to_owned())).unwrap()
    }

    #[test]
    fn a_socket_is_told_by_where_it_listens() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let mut sockets = GivenSockets::default();
        let listen = || UnixListener::bind(paths.connect_socket()).unwrap();
        sockets.put_unix(0, listen(), &paths).unwrap();
        assert!(sockets.connect.is_some() && sockets.control.is_none());
        assert!(!sockets.outlive_the_manager());
        std::fs::remove_file(paths.connect_socket()).unwrap();
        let twice = sockets.put_unix(1, listen(), &paths).unwrap_err();
        assert_eq!(
            twice.to_string(),
            "the service manager has opened two sockets for the local transport, and one is used"
        );
    }

    #[test]
    fn a_socket_that_is_nobodys_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixListener::bind(dir.path().join("other.sock")).unwrap();
        let error = GivenSockets::default()
            .put_unix(0, socket, &paths(dir.path()))
            .unwrap_err()
            .to_string();
        assert!(error.contains("other.sock"), "{error}");
        assert!(error.contains("/connect.sock"), "{error}");
    }

    #[test]
    fn clients_are_left_to_the_next_manager_where_it_has_all_their_sockets() {
        let shutdown = Shutdown::default();
        let dir = tempfile::tempdir().unwrap();
        let sockets = GivenSockets {
            control: Some(UnixListener::bind(dir.path().join("control.sock")).unwrap()),
            connect: Some(UnixListener::bind(dir.path().join("connect.sock")).unwrap()),
            ..GivenSockets::default()
        };
        assert!(!Handover::of(&sockets, &shutdown).is_expected());
        let sockets = GivenSockets {
            gateway: Some(TcpListener::bind("127.0.0.1:0").unwrap()),
            ..sockets
        };
        let given = sockets.gateway.as_ref().unwrap().local_addr().unwrap();
        // Where nothing is configured, and where the same is, it is used.
        let sockets = sockets.at(None).at(Some(given));
        let handover = Handover::of(&sockets, &shutdown);
        assert!(handover.is_expected() && !handover.has_begun());
        shutdown.end_now();
        assert!(handover.has_begun());
        let elsewhere = "127.0.0.2:31022".parse().unwrap();
        assert!(sockets.at(Some(elsewhere)).gateway.is_none());
    }
}
