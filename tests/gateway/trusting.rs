//! A client of russh's.

use russh::keys::PublicKeyOrCertificate;

/// A russh client that trusts any server.
pub(crate) struct AnyServer;

impl russh::client::Handler for AnyServer {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        _key: &PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        Ok(true)
    }
}
