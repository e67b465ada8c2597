//! Connections, transactions and what went wrong with them. Everything goes over the simple protocol, so
//! that it works through a pooler in transaction mode, which knows no named statements.

use std::time::Duration;

use sqlx::postgres::{PgConnection, PgDatabaseError, PgRow};
use sqlx::{ConnectOptions, Connection, Row};

use super::config::{PostgresOptions, Table};
use super::target::Target;
use super::tls;
use crate::error::{Error, Result};

/// How much longer than `statement_timeout` to wait for the server to say so.
const GRACE: Duration = Duration::from_secs(60);

/// Connects within the connection string's `connect_timeout` (10 seconds by default).
pub async fn connect(target: &Target) -> Result<PgConnection> {
    let options = target.options.clone().disable_statement_logging();
    let connecting = async {
        match &target.verify {
            Some(verify) => tls::connect(&options, verify).await,
            None => PgConnection::connect_with(&options).await,
        }
    };
    match tokio::time::timeout(target.connect_timeout, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(failed(target, CONNECTING, error)),
        Err(_) => Err(Error::Database {
            message: format!(
                "no answer from {} within {} seconds; check host, port and firewall",
                target.server(),
                target.connect_timeout.as_secs()
            ),
            sqlstate: None,
            retryable: true,
        }),
    }
}

/// What is being done while there is no connection yet.
const CONNECTING: &str = "connecting";

/// A read-only transaction in which every statement sees the same snapshot.
pub struct Snapshot<'a> {
    connection: PgConnection,
    options: &'a PostgresOptions,
}

impl<'a> Snapshot<'a> {
    /// A snapshot in which `table` is held as it is: no ALTER TABLE or TRUNCATE gets in between.
    ///
    /// The lock comes before the snapshot. A statement that waits for an ALTER TABLE with a snapshot from before
    /// it finds the rewritten table empty.
    pub async fn begin(options: &'a PostgresOptions, table: Option<&Table>) -> Result<Snapshot<'a>> {
        let connection = connect(&options.target).await?;
        let mut snapshot = Self { connection, options };
        let name = table.map_or_else(|| "NULL".to_owned(), Table::literal);
        // Only what can be locked by a user who may read it: a view or foreign table cannot, nor can a table of
        // which only some columns are granted.
        let sql = format!(
            "SELECT (current_setting('server_version_num')::int >= 140000 AND version() LIKE '%linux%')::text,
                    (current_setting('server_encoding') = 'SQL_ASCII')::text,
                    (SELECT relkind IN ('r', 'p') AND has_table_privilege(oid, 'SELECT')
                     FROM pg_class WHERE oid = to_regclass({name}))::text"
        );
        let rows = snapshot.query("looking at the server", &sql).await?;
        let is = |column| -> Result<bool> {
            let said = rows.first().map(|row| text(row, column)).transpose()?.flatten();
            Ok(said.as_deref() == Some("true"))
        };

        let milliseconds = |time: Duration| time.as_millis().min(i32::MAX as u128);
        let mut begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
             SET LOCAL statement_timeout = {};
             SET LOCAL lock_timeout = {};",
            milliseconds(options.statement_timeout),
            milliseconds(options.lock_timeout)
        );
        if is(0)? {
            // The server notices an export that has gone away.
            begin += "SET LOCAL client_connection_check_interval = 1000;";
        }
        if is(1)? {
            // Such a database holds any bytes; the decoder says in which row they are not UTF-8.
            begin += "SET LOCAL client_encoding = 'SQL_ASCII';";
        }
        snapshot.query("beginning a transaction", &begin).await?;
        if let Some(table) = table.filter(|_| is(2).unwrap_or_default()) {
            let lock = format!("LOCK TABLE {table} IN ACCESS SHARE MODE");
            snapshot.query("waiting for the table", &lock).await?;
        }
        Ok(snapshot)
    }

    /// Runs statements and gives their rows.
    pub async fn query(&mut self, doing: &str, sql: &str) -> Result<Vec<PgRow>> {
        let target = &self.options.target;
        let rows = sqlx::raw_sql(sql).fetch_all(&mut self.connection);
        in_time(self.options, doing, async {
            rows.await.map_err(|error| failed(target, doing, error))
        })
        .await
    }

    /// Runs a `COPY ... TO STDOUT`, handing over its bytes as they come.
    pub async fn copy_out(&mut self, sql: &str, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        use futures::TryStreamExt;

        let doing = "copying the rows";
        let failed = |error| failed(&self.options.target, doing, error);
        let copying = async {
            let mut stream = self.connection.copy_out_raw(sql).await.map_err(failed)?;
            while let Some(bytes) = stream.try_next().await.map_err(failed)? {
                take(&bytes)?;
            }
            Ok(())
        };
        in_time(self.options, doing, copying).await
    }

    pub async fn commit(mut self) -> Result<()> {
        self.query("ending the transaction", "COMMIT").await?;
        // The work is done; a connection that does not end politely changes nothing.
        let _ = self.connection.close().await;
        Ok(())
    }
}

/// The server ends a statement at `statement_timeout`; when nothing is heard of that either, it is gone.
async fn in_time<T>(options: &PostgresOptions, doing: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    if options.statement_timeout.is_zero() {
        return work.await;
    }
    let limit = options.statement_timeout + GRACE;
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        Err(Error::Database {
            message: format!(
                "{} did not answer while {doing}, not even at the end of its statement_timeout; try again later",
                options.target.server()
            ),
            sqlstate: None,
            retryable: true,
        })
    })
}

/// A column of a row, as text.
pub fn text(row: &PgRow, column: usize) -> Result<Option<String>> {
    row.try_get(column)
        .map_err(|error| Error::internal(format!("the database answered in another form: {error}")))
}

/// What a failure means and whether trying again can help. Never shows the password: the server does not
/// know it, and sqlx's messages about the connection string are not used.
pub fn failed(target: &Target, doing: &str, error: sqlx::Error) -> Error {
    let server = target.server();
    match error {
        sqlx::Error::Database(error) => {
            let sqlstate = error.code().map(std::borrow::Cow::into_owned);
            let code = sqlstate.as_deref().unwrap_or_default();
            let detail = error
                .try_downcast_ref::<PgDatabaseError>()
                .and_then(PgDatabaseError::detail)
                .map(|detail| format!(" ({detail})"))
                .unwrap_or_default();
            // A pooler answers a wrong password or database with this code; later it is one of its timeouts.
            let refused_by_pooler = code == "08P01" && doing == CONNECTING;
            let retryable = !refused_by_pooler
                && (matches!(
                    code,
                    "40001" | "40P01" | "55P03" | "57P01" | "57P02" | "57P03" | "57P05" | "57014"
                ) || code.starts_with("53")
                    || code.starts_with("08"));
            let advice = match code {
                "57014" => "; raise statement_timeout, or find out what slows the database down",
                "55P03" => "; somebody holds a lock on the table, try again later",
                "28P01" | "28000" => "; check user, password and pg_hba.conf",
                "3D000" => "; check the database's name",
                "42501" => "; grant SELECT on the table, and USAGE on its schema, to this user",
                "25P02" | "25P01" => {
                    "; is a pooler in statement mode in between? It has to be transaction or session mode"
                }
                _ if refused_by_pooler => "; check user, password and the database's name, here and in the pooler",
                _ if retryable => "; try again later",
                _ => "",
            };
            Error::Database {
                message: format!(
                    "{server} refused {doing} as user {:?}: {}{detail} [{code}]{advice}",
                    target.user(),
                    error.message()
                ),
                sqlstate,
                retryable,
            }
        }
        sqlx::Error::Tls(error) => Error::Database {
            message: format!("no TLS connection to {server}: {error}; check sslmode, sslrootcert and the host's name"),
            sqlstate: None,
            retryable: false,
        },
        sqlx::Error::Io(error) => {
            // rustls reports what it thinks of a certificate as an I/O error.
            let certificate = error.kind() == std::io::ErrorKind::InvalidData;
            let advice = if certificate {
                "check sslmode, sslrootcert and the host's name"
            } else {
                "is the server running and reachable?"
            };
            Error::Database {
                message: format!("{server} could not be reached or went away while {doing}: {error}; {advice}"),
                sqlstate: None,
                retryable: !certificate,
            }
        }
        sqlx::Error::Configuration(_) => Error::configuration(format!(
            "the connection settings for {server} are not usable; check the certificates' files"
        )),
        error => Error::Database {
            message: format!("{doing} at {server} failed: {error}"),
            sqlstate: None,
            retryable: matches!(error, sqlx::Error::Protocol(_)),
        },
    }
}
