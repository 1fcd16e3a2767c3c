//! TLS for [`Listener`](crate::Listener) and [`Client`](crate::Client): configurations from
//! PEM files.
//!
//! Anything that `rustls` can do can be had by making its configurations oneself; it is
//! re-exported here, so that the versions match. TLS hides what is sent and says who the
//! listener is; the key, shown inside of it, says that the client may connect.

use std::path::Path;
use std::sync::Arc;

pub use rustls;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::error::{Error, ErrorKind, Result};

fn invalid(what: String) -> impl FnOnce(rustls::Error) -> Error {
    |error| Error::because(ErrorKind::InvalidInput, what, error)
}

fn provider() -> Arc<CryptoProvider> {
    // Named here, so that it does not depend on what else is linked into the program.
    Arc::new(ring::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let failed = |error: rustls::pki_types::pem::Error| {
        let what = format!("read certificates from {}", path.display());
        Error::because(ErrorKind::InvalidInput, what, error)
    };
    CertificateDer::pem_file_iter(path)
        .map_err(failed)?
        .collect::<Result<_, _>>()
        .map_err(failed)
}

/// Reads what a [`Listener`](crate::Listener) needs: its certificate, with those that lead to
/// its authority, and its private key.
///
/// # Errors
/// `InvalidInput` if a file cannot be read, or they do not belong together.
///
/// # Examples
/// ```no_run
/// use bunshin::{Listener, tls};
///
/// let config = tls::server_config("server.pem", "server.key")?;
/// let listener = Listener::builder().authkey("secret").tls(config).bind("0.0.0.0:6000")?;
/// # Ok::<(), bunshin::Error>(())
/// ```
pub fn server_config(
    certificate: impl AsRef<Path>,
    private_key: impl AsRef<Path>,
) -> Result<Arc<ServerConfig>> {
    let (certificate, private_key) = (certificate.as_ref(), private_key.as_ref());
    let key = PrivateKeyDer::from_pem_file(private_key).map_err(|error| {
        let what = format!("read a private key from {}", private_key.display());
        Error::because(ErrorKind::InvalidInput, what, error)
    })?;
    let what = format!("use the certificate in {}", certificate.display());
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(invalid(what.clone()))?;
    let config = builder
        .with_no_client_auth()
        .with_single_cert(certificates(certificate)?, key)
        .map_err(invalid(what))?;
    Ok(Arc::new(config))
}

/// Reads what a [`Client`](crate::Client) needs: the certificates of the authorities that it
/// believes, or the listener's own.
///
/// # Errors
/// `InvalidInput` if the file cannot be read, or holds no certificate of an authority.
///
/// # Examples
/// ```no_run
/// use bunshin::{Client, StreamConnection, tls};
///
/// let config = tls::client_config("authority.pem")?;
/// let client = Client::builder().authkey("secret").tls("server.example", config)?;
/// let connection: StreamConnection<String> = client.connect("server.example:6000")?;
/// # Ok::<(), bunshin::Error>(())
/// ```
pub fn client_config(authorities: impl AsRef<Path>) -> Result<Arc<ClientConfig>> {
    let path = authorities.as_ref();
    let what = || format!("use the authorities in {}", path.display());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(invalid(what()))?;
    }
    if roots.is_empty() {
        let what = format!("{} holds no certificate", path.display());
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(invalid(what()))?;
    Ok(Arc::new(
        builder.with_root_certificates(roots).with_no_client_auth(),
    ))
}
