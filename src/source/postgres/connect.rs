//! Connections and transactions. Everything goes over the simple protocol, so
//! that it works through a pooler in transaction mode, which knows no named statements.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{ConnectOptions, Connection, Row};

use super::config::{Identifier, PostgresOptions, Table};
use super::identity::{Rights, identified, identity};
use super::refusal::failed;
use super::target::Target;
use super::tls;
use crate::base::error::{Error, Result};
use crate::file::position::{Position, at_page_end, parse_lsn};

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

/// What is being done when rows are locked before they are deleted.
pub(super) const LOCKING: &str = "locking the rows";

/// What is being done while there is no connection yet.
pub(super) const CONNECTING: &str = "connecting";

/// A connection on which statements run one at a time.
pub struct Session<'a> {
    connection: PgConnection,
    options: &'a PostgresOptions,
}

/// A read-only transaction in which every statement sees the same snapshot.
pub struct Snapshot<'a> {
    session: Session<'a>,
    options: &'a PostgresOptions,
    standby: bool,
    /// The end of the log that a standby had replayed before the snapshot.
    replayed: String,
    /// A time up to which a standby is known to have replayed everything.
    replayed_until: Option<DateTime<Utc>>,
    rights: Rights,
}

/// When the last transaction that a standby has replayed was committed. What its receiver says of the primary is no help when
/// there was none for a while: it repeats what it was told before it lost touch, and a backlog's end that was merely sent.
const REPLAYED_UNTIL: &str = "(extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000000)::bigint::text";

/// The standby's end of the replayed log, the primary's end of the written one.
const END_OF_LOG: &str =
    "coalesce(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END, '0/0')";

impl<'a> Snapshot<'a> {
    /// A snapshot in which `table` is held as it is: no ALTER TABLE or TRUNCATE gets in between.
    ///
    /// The lock comes before the snapshot. A statement that waits for an ALTER TABLE with a snapshot from before
    /// it finds the rewritten table empty.
    pub async fn begin(options: &'a PostgresOptions, table: Option<&Table>) -> Result<Snapshot<'a>> {
        let mut snapshot = Self {
            session: Session::connect(options).await?,
            options,
            standby: false,
            replayed: String::new(),
            replayed_until: None,
            rights: Rights::default(),
        };
        let name = table.map_or_else(|| "NULL".to_owned(), Table::literal);
        // Only what can be locked by a user who may read it: a view or foreign table cannot, nor can a table of
        // which only some columns are granted.
        let sql = format!(
            "SELECT (current_setting('server_version_num')::int >= 140000 AND version() LIKE '%linux%')::text,
                    (current_setting('server_encoding') = 'SQL_ASCII')::text,
                    (SELECT relkind IN ('r', 'p') AND has_table_privilege(oid, 'SELECT')
                     FROM pg_class WHERE oid = to_regclass({name}))::text,
                    coalesce(row_security_active(to_regclass({name})), false)::text, {}, {KNOWS_TRANSACTION_TIMEOUT}",
            Rights::SQL
        );
        let rows = snapshot
            .session
            .query_as(options, "looking at the server", &sql)
            .await?;
        let is = |column| is_true(&rows, column);
        if let Some(table) = table.filter(|_| is(3).unwrap_or_default()) {
            return Err(hidden_rows(options, table));
        }
        snapshot.rights = Rights::of(&rows, 4)?;

        // One message, so that a pooler lets all of it run on one server: how far its log was replayed has to be
        // known before the snapshot, and is of no use about another server.
        let mut begin = format!(
            "BEGIN READ ONLY;
             SELECT pg_is_in_recovery()::text, {END_OF_LOG}::text, {REPLAYED_UNTIL};
             COMMIT;
             BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
             {session}
             {ALL_ROWS}
             SET LOCAL statement_timeout = {0};
             SET LOCAL lock_timeout = {1};
             SET LOCAL idle_in_transaction_session_timeout = {2};",
            milliseconds(options.statement_timeout),
            milliseconds(options.lock_timeout),
            milliseconds(patience(options)),
            session = options.session(),
        );
        if is(7)? {
            begin += NO_TRANSACTION_TIMEOUT;
        }
        if is(0)? {
            // The server notices an export that has gone away.
            begin += "SET LOCAL client_connection_check_interval = 1000;";
        }
        if is(1)? {
            // Such a database holds any bytes; the decoder says in which row they are not UTF-8.
            begin += "SET LOCAL client_encoding = 'SQL_ASCII';";
        }
        let began = snapshot.query("beginning a transaction", &begin).await?;
        snapshot.standby = is_true(&began, 0)?;
        snapshot.replayed = said(&began, 1)?;
        let until = began.first().map(|row| text(row, 2)).transpose()?.flatten();
        snapshot.replayed_until = until.and_then(|micros| DateTime::from_timestamp_micros(micros.parse().ok()?));
        if let Some(table) = table.filter(|_| is(2).unwrap_or_default()) {
            let lock = format!("LOCK TABLE {table} IN ACCESS SHARE MODE");
            snapshot.query("waiting for the table", &lock).await?;
        }
        Ok(snapshot)
    }

    /// When the snapshot was taken, if this is the first query.
    pub async fn time(&mut self) -> Result<DateTime<Utc>> {
        let sql = "SELECT (extract(epoch FROM statement_timestamp()) * 1000000)::bigint::text";
        let rows = self.query("taking the snapshot", sql).await?;
        said(&rows, 0)?
            .parse()
            .ok()
            .and_then(DateTime::from_timestamp_micros)
            .ok_or_else(|| Error::internal("the database's clock is out of range"))
    }

    pub fn is_standby(&self) -> bool {
        self.standby
    }

    /// Whether a standby is known to have replayed everything until then.
    pub fn replayed_until(&self, time: DateTime<Utc>) -> bool {
        self.replayed_until.is_some_and(|until| until >= time)
    }

    /// For messages: how far a standby is known to have replayed.
    pub fn replayed_shown(&self) -> String {
        self.replayed_until.map_or_else(
            || "an unknown time".to_owned(),
            |until| until.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        )
    }

    /// The end of the log that a standby had replayed before the snapshot.
    pub fn replayed_lsn(&self) -> Result<u64> {
        lsn(&self.replayed)
    }

    /// The end of a primary's log, and its clock.
    pub async fn end_of_log(&mut self) -> Result<(u64, DateTime<Utc>)> {
        let sql = format!("SELECT {END_OF_LOG}::text, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint::text");
        let rows = self.query("asking for the end of the log", &sql).await?;
        let time = said(&rows, 1)?.parse().ok().and_then(DateTime::from_timestamp_micros);
        let time = time.ok_or_else(|| Error::internal("the database's clock is out of range"))?;
        Ok((at_page_end(lsn(&said(&rows, 0)?)?), time))
    }

    /// Where in the database's history the snapshot was taken.
    pub async fn position(&mut self) -> Result<Position> {
        let identity = identity(self.options, self.rights);
        let sql =
            format!("SELECT pg_is_in_recovery()::text, pg_current_snapshot()::text, {END_OF_LOG}::text, {identity}");
        let rows = self.query("asking for the snapshot's position", &sql).await?;
        if is_true(&rows, 0)? != self.standby {
            return Err(Error::Database {
                message: format!(
                    "{} was promoted while it was being read; try again",
                    self.options.target.server()
                ),
                sqlstate: None,
                retryable: true,
            });
        }
        let (before, after) = (lsn(&self.replayed)?, lsn(&said(&rows, 2)?)?);
        let identity = identified(self.options, &rows, 3)?;
        Position::new(identity, self.standby, &said(&rows, 1)?, before, after)
    }

    pub async fn query(&mut self, doing: &str, sql: &str) -> Result<Vec<PgRow>> {
        self.session.query(doing, sql).await
    }

    pub async fn copy_out(&mut self, sql: &str, take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.session.copy_out("copying the rows", sql, take).await
    }

    pub async fn commit(mut self) -> Result<()> {
        self.query("ending the transaction", "COMMIT").await?;
        self.session.close().await;
        Ok(())
    }
}

fn lsn(text: &str) -> Result<u64> {
    parse_lsn(text).ok_or_else(|| Error::internal("the end of the log is no place in it"))
}

impl<'a> Session<'a> {
    pub async fn connect(options: &'a PostgresOptions) -> Result<Session<'a>> {
        let connection = connect(&options.target).await?;
        Ok(Self { connection, options })
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

    /// Runs a query in a short transaction of its own, with the settings and the role of all transactions.
    pub async fn query_as(&mut self, options: &PostgresOptions, doing: &str, sql: &str) -> Result<Vec<PgRow>> {
        let session = options.session();
        if session.is_empty() {
            return self.query(doing, sql).await;
        }
        // Of the settings, ours win.
        let timeout = milliseconds(options.statement_timeout);
        let sql = format!("BEGIN READ ONLY; {session} SET LOCAL statement_timeout = {timeout}; {sql}; COMMIT");
        self.query(doing, &sql).await
    }

    /// Runs a statement and says how many rows it changed.
    pub async fn execute(&mut self, doing: &str, sql: &str) -> Result<u64> {
        let target = &self.options.target;
        let result = sqlx::raw_sql(sql).execute(&mut self.connection);
        let result = in_time(self.options, doing, async {
            result.await.map_err(|error| failed(target, doing, error))
        });
        Ok(result.await?.rows_affected())
    }

    /// Runs a `COPY ... TO STDOUT`, handing over its bytes as they come.
    pub async fn copy_out(&mut self, doing: &str, sql: &str, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        use futures::TryStreamExt;

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

    /// The work is done; a connection that does not end politely changes nothing.
    pub async fn close(self) {
        let _ = self.connection.close().await;
    }
}

/// How long server and client wait for each other at most; zero for ever.
fn patience(options: &PostgresOptions) -> Duration {
    match options.statement_timeout {
        Duration::ZERO => Duration::ZERO,
        timeout => timeout + GRACE,
    }
}

/// The server ends a statement at `statement_timeout`; when nothing is heard of that either, it is gone.
async fn in_time<T>(options: &PostgresOptions, doing: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let limit = patience(options);
    if limit.is_zero() {
        return work.await;
    }
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

/// From PostgreSQL 17 on.
pub const KNOWS_TRANSACTION_TIMEOUT: &str = "(current_setting('server_version_num')::int >= 170000)::text";

/// Each statement has a time limit of its own; a role's for the whole transaction is made for others.
pub const NO_TRANSACTION_TIMEOUT: &str = "SET LOCAL transaction_timeout = 0;";

/// A policy that would hide rows is an error of the server's, in whatever is asked after this.
pub const ALL_ROWS: &str = "SET LOCAL row_security = off;";

/// Rows that a policy hides would be missing in the file, and the count of the others would not show it.
pub fn hidden_rows(options: &PostgresOptions, table: &Table) -> Error {
    Error::configuration(format!(
        "row-level security hides rows of {} from user {:?} at {}, so a day could not be seen whole; connect as the table's owner or \
         as a role with BYPASSRLS",
        table.shown(),
        options.role.as_ref().map_or(options.target.user(), Identifier::as_str),
        options.target.server()
    ))
}

pub fn milliseconds(time: Duration) -> u128 {
    time.as_millis().min(i32::MAX as u128)
}

/// A column of the first row, which has to be there.
pub fn said(rows: &[PgRow], column: usize) -> Result<String> {
    let said = rows.first().map(|row| text(row, column)).transpose()?.flatten();
    said.ok_or_else(|| Error::internal("the database left an answer out"))
}

/// Whether a column of the first row is true.
pub fn is_true(rows: &[PgRow], column: usize) -> Result<bool> {
    let said = rows.first().map(|row| text(row, column)).transpose()?.flatten();
    Ok(said.as_deref() == Some("true"))
}

/// A column of a row, as text.
pub fn text(row: &PgRow, column: usize) -> Result<Option<String>> {
    row.try_get(column)
        .map_err(|error| Error::internal(format!("the database answered in another form: {error}")))
}
