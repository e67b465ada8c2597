//! TLS with a verified certificate, as libpq's verify-ca and verify-full mean it: only the named authorities
//! count, and verify-ca leaves the host's name aside.
//!
//! sqlx trusts the system's authorities beside the named one, with which verify-ca would let anybody in who has a
//! public certificate. It takes no stream of ours, but it does connect to a unix socket: so the verified stream
//! is joined to a socket in a folder that only this user can enter.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{ConnectOptions, Connection};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::{TcpStream, UnixListener};
use tokio_rustls::TlsConnector;

use super::target::Verify;
use crate::base::error::{Error, Result};

/// What a client sends to ask for TLS.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Bytes in flight between the two streams.
const BUFFER: usize = 256 << 10;

pub async fn connect(options: &PgConnectOptions, verify: &Verify) -> Result<PgConnection, sqlx::Error> {
    let tls = |why: String| sqlx::Error::Tls(why.into());
    let config = config(verify).map_err(|error| tls(error.to_string()))?;
    let name = ServerName::try_from(options.get_host().to_owned())
        .map_err(|_| tls("the host is not a name that a certificate can be for".to_owned()))?;

    let mut tcp = TcpStream::connect((options.get_host(), options.get_port())).await?;
    tcp.set_nodelay(true)?;
    tcp.write_all(&SSL_REQUEST).await?;
    if tcp.read_u8().await? != b'S' {
        return Err(tls("the server does not support TLS".to_owned()));
    }
    let mut verified = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;

    let no_relay = |error: std::io::Error| {
        tls(format!(
            "it is passed on through a socket in a temporary folder, which has to be writable and of a short name (TMPDIR): {error}"
        ))
    };
    let folder = tempfile::tempdir().map_err(no_relay)?;
    let socket = folder.path().join(format!(".s.PGSQL.{}", options.get_port()));
    let listener = UnixListener::bind(socket).map_err(no_relay)?;
    let options = options
        .clone()
        .socket(folder.path())
        .ssl_mode(PgSslMode::Disable)
        .disable_statement_logging();
    let accepted = async {
        let (local, _) = listener.accept().await?;
        Ok::<_, sqlx::Error>(tokio::spawn(async move {
            let mut local = local;
            // Either side's end is the end of the connection, which the other side reports.
            let _ = copy_bidirectional_with_sizes(&mut local, &mut verified, BUFFER, BUFFER).await;
        }))
    };
    let (connection, _) = tokio::try_join!(PgConnection::connect_with(&options), accepted)?;
    Ok(connection)
}

fn config(verify: &Verify) -> Result<ClientConfig> {
    let failed = |error: rustls::Error| Error::configuration(format!("the TLS settings are not usable: {error}"));
    let provider = Arc::new(ring::default_provider());
    let roots = Arc::new(roots(verify.roots.as_deref())?);
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(failed)?;
    let builder = if verify.host_name {
        builder.with_root_certificates(roots)
    } else {
        let chain = WebPkiServerVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(|error| Error::configuration(format!("the TLS settings are not usable: {error}")))?;
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyName(chain)))
    };
    match &verify.client {
        None => Ok(builder.with_no_client_auth()),
        Some((certificate, key)) => {
            let chain = certificates("sslcert", certificate)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|_| unusable("sslkey", key))?;
            builder.with_client_auth_cert(chain, key).map_err(failed)
        }
    }
}

fn unusable(name: &str, file: &Path) -> Error {
    Error::configuration(format!("{name}: {} is not a readable PEM file", file.display()))
}

fn certificates(name: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .ok()
        .filter(|found| !found.is_empty())
        .ok_or_else(|| unusable(name, file))
}

fn roots(file: Option<&Path>) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    match file {
        Some(file) => {
            for certificate in certificates("sslrootcert", file)? {
                store.add(certificate).map_err(|_| unusable("sslrootcert", file))?;
            }
        }
        None => _ = store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
    }
    if store.is_empty() {
        return Err(Error::configuration(
            "the system has no certificate authorities; name one with sslrootcert",
        ));
    }
    Ok(store)
}

/// Verifies who signed a certificate, not which host it is for.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self
            .0
            .verify_server_cert(certificate, intermediates, name, ocsp_response, now);
        match verified {
            // The name is compared last, so everything else is in order here.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
