//! Stores, for `parquet_analytics.storage`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::archive::publish::probe;
use crate::base::error::Error;
use crate::base::keys::Prefix;
use crate::base::runtime::block_on;
use crate::store::{Credentials, Keys, Store};

use super::errors::{OrRaise, Secret};
use super::run::run_quietly;

/// A store by URL and options. Opening does no I/O. Without `environment`, variables such as `AWS_ENDPOINT_URL` and
/// `HTTPS_PROXY` do not count.
#[pyclass(frozen, name = "Store", module = "parquet_analytics._native")]
pub struct PyStore {
    pub inner: Store,
}

#[pymethods]
impl PyStore {
    #[new]
    #[pyo3(signature = (url, options, credentials = None, *, environment = true))]
    fn new(
        py: Python<'_>,
        url: Secret,
        options: BTreeMap<String, Secret>,
        credentials: Option<Bound<'_, PyAny>>,
        environment: bool,
    ) -> PyResult<Self> {
        let session = match credentials {
            None => None,
            Some(keys) => {
                let id = keys.getattr("id")?.extract()?;
                let keys = keys.unbind();
                Some(Arc::new(Session { keys, id }) as Arc<dyn Credentials>)
            }
        };
        let options = options.into_iter().map(|(name, value)| (name, value.0)).collect();
        let open = if environment {
            Store::open_for
        } else {
            Store::open_exactly
        };
        let inner = py.detach(|| open(&url.0, &options, session));
        Ok(Self {
            inner: inner.or_raise()?,
        })
    }

    /// The store's URL, without any secret.
    #[getter]
    fn url(&self) -> &str {
        self.inner.url()
    }

    /// The conditions that the store ignores, by name, found out anew. Writes and reads the probe object.
    fn probe(&self, py: Python<'_>, prefix: &str) -> PyResult<Vec<&'static str>> {
        let prefix: Prefix = prefix.parse().or_raise()?;
        run_quietly(py, |cancel| block_on(cancel, probe(&self.inner, &prefix)))
    }

    fn __repr__(&self) -> String {
        format!("Store({})", self.inner.url())
    }
}

/// A `parquet_analytics.storage.SessionCredentials`: a callable that gives the keys of now.
struct Session {
    keys: Py<PyAny>,
    id: String,
}

impl Credentials for Session {
    fn keys(&self) -> Result<Keys, String> {
        Python::attach(|py| {
            let keys = self.keys.bind(py).call0()?;
            let keys = keys.cast::<PyDict>()?;
            let text = |name: &str| -> PyResult<Option<String>> {
                keys.get_item(name)?
                    .filter(|value| !value.is_none())
                    .map(|value| value.extract())
                    .transpose()
            };
            let missing = || Error::configuration("the storage's session has no access keys");
            let expires: Option<f64> = keys
                .get_item("expires")?
                .filter(|value| !value.is_none())
                .map(|value| value.extract())
                .transpose()?;
            Ok(Keys {
                access_key_id: text("access_key_id")?.ok_or_else(missing).or_raise()?,
                secret_access_key: text("secret_access_key")?.ok_or_else(missing).or_raise()?,
                session_token: text("session_token")?,
                expires: expires
                    .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
                    .and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since)),
            })
        })
        // The exception's text could hold anything; its class says what to look for.
        .map_err(|error: PyErr| Python::attach(|py| error.get_type(py).to_string()))
    }

    fn id(&self) -> String {
        self.id.clone()
    }
}
