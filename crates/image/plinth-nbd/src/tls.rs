//! Certificates and keys, in folders as QEMU and libnbd have them: `ca-cert.pem`, `server-cert.pem`,
//! `server-key.pem`, `client-cert.pem`, `client-key.pem`.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::{Error, ErrorKind};

fn failed(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Tls, format!("cannot use '{}' for TLS", path.display()), why)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let all = CertificateDer::pem_file_iter(path).map_err(|e| failed(path, e))?;
    all.collect::<Result<_, _>>().map_err(|e| failed(path, e))
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_file(path).map_err(|e| failed(path, e))
}

fn roots(path: &Path) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|e| failed(path, e))?;
    }
    Ok(Arc::new(roots))
}

/// What a server needs: its certificate and key. With `verify`, clients need certificates that the folder's
/// authority has signed.
///
/// # Errors
/// [`ErrorKind::Tls`].
pub fn server(folder: &Path, verify: bool) -> Result<Arc<ServerConfig>, Error> {
    let provider = Arc::new(default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().map_err(|e| failed(folder, e))?;
    let builder = if verify {
        let roots = roots(&folder.join("ca-cert.pem"))?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
        builder.with_client_cert_verifier(verifier.map_err(|e| failed(folder, e))?)
    } else {
        builder.with_no_client_auth()
    };
    let (cert, key_file) = (folder.join("server-cert.pem"), folder.join("server-key.pem"));
    let config = builder.with_single_cert(certificates(&cert)?, key(&key_file)?);
    Ok(Arc::new(config.map_err(|e| failed(&cert, e))?))
}

/// What a client needs: the authority that servers' certificates are signed by, and a certificate of its own if
/// the folder has one.
///
/// # Errors
/// [`ErrorKind::Tls`].
pub fn client(folder: &Path) -> Result<Arc<ClientConfig>, Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(|e| failed(folder, e))?;
    let builder = builder.with_root_certificates(roots(&folder.join("ca-cert.pem"))?);
    let (cert, key_file) = (folder.join("client-cert.pem"), folder.join("client-key.pem"));
    if !cert.exists() {
        return Ok(Arc::new(builder.with_no_client_auth()));
    }
    let config = builder.with_client_auth_cert(certificates(&cert)?, key(&key_file)?);
    Ok(Arc::new(config.map_err(|e| failed(&cert, e))?))
}
