//! Deletes rows from the page views' table, a batch in a transaction: the rows are locked, handed over for
//! comparison, and only those that the comparison names are deleted. Which rows those are is not decided here.

use std::collections::HashSet;
use std::time::Duration;

use arrow::array::RecordBatch;

use super::connect::{
    ALL_ROWS, KNOWS_TRANSACTION_TIMEOUT, LOCKING, NO_TRANSACTION_TIMEOUT, Session, hidden_rows, is_true, milliseconds,
};
use super::copy::Decoder;
use super::effects::{Effects, effects};
use super::identity::identify;
use super::tables::{Dates, Unique, date_type};
use super::{IDS_AT_ONCE, PostgresSource, list, number};
use crate::base::error::{Error, Kind, Result};
use crate::base::keys::Day;
use crate::base::steps::{Step, reached};
use crate::file::position::Identity;
use crate::source::BadRows;

/// A connection that may write.
pub struct Deleter<'a> {
    source: &'a PostgresSource,
    session: Session<'a>,
    /// The table that rows are deleted from.
    pub identity: Identity,
    begin: String,
    dates: Dates,
    unique: Unique,
}

/// How long a batch may hold its locks, and wait for others'.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For each statement of a batch, and for the client between two of them.
    pub statement: Duration,
    pub lock: Duration,
}

/// What became of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    pub deleted: u64,
}

impl<'a> Deleter<'a> {
    /// Connects and makes sure that rows can be deleted one by one here.
    ///
    /// # Errors
    /// [`Error::DeletionRefused`] for a standby, a read-only database, or a table in which an id can repeat.
    pub async fn connect(source: &'a PostgresSource, limits: &Limits) -> Result<Deleter<'a>> {
        let options = &source.options;
        let mut session = Session::connect(options).await?;
        let rows = session
            .query_as(
                options,
                "looking at the server",
                &format!(
                    "SELECT pg_is_in_recovery()::text, (current_setting('default_transaction_read_only') = 'on')::text,
                            coalesce(row_security_active(to_regclass({})), false)::text,
                            (current_setting('server_encoding') = 'SQL_ASCII')::text, {KNOWS_TRANSACTION_TIMEOUT}",
                    options.table.literal()
                ),
            )
            .await?;
        let server = options.target.server();
        if is_true(&rows, 0)? {
            return Err(Error::refused(format!(
                "{server} is a standby, from which nothing can be deleted; name the primary as the database to delete from"
            )));
        }
        if is_true(&rows, 1)? {
            return Err(Error::refused(format!(
                "{server} allows this user only to read (default_transaction_read_only); name a database that can be written"
            )));
        }
        if is_true(&rows, 2)? {
            return Err(hidden_rows(options, &options.table));
        }
        let mut begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
             {session}
             {ALL_ROWS}
             SET LOCAL statement_timeout = {0};
             SET LOCAL lock_timeout = {1};
             SET LOCAL idle_in_transaction_session_timeout = {0};",
            milliseconds(limits.statement),
            milliseconds(limits.lock),
            session = options.session(),
        );
        if is_true(&rows, 3)? {
            begin += "SET LOCAL client_encoding = 'SQL_ASCII';";
        }
        if is_true(&rows, 4)? {
            begin += NO_TRANSACTION_TIMEOUT;
        }
        let identity = identify(&mut session, options).await?;
        let of_date = date_type(options);
        let dates = session.query_as(options, "looking at the date", &of_date).await?;
        let dates = if is_true(&dates, 0)? { Dates::Times } else { Dates::Days };
        let unique = Unique::sql(options);
        let unique = session.query_as(options, "looking at the indexes", &unique).await?;
        let unique = Unique::of(&unique, dates)?;
        if unique == Unique::No {
            return Err(Error::refused(format!(
                "no unique index makes sure that a {} is there once in {}; rows are deleted by it, so create one first",
                options.columns.id.as_str(),
                options.table.shown()
            )));
        }
        Ok(Self {
            source,
            session,
            identity,
            begin,
            dates,
            unique,
        })
    }

    /// What goes with the rows.
    pub async fn effects(&mut self) -> Result<Effects> {
        effects(&mut self.session, self.source).await
    }

    /// Between two batches the server may have ended the connection, which has been idle. Another one has to lead to the same
    /// table.
    async fn begin_batch(&mut self) -> Result<()> {
        let Err(error) = self.session.query("beginning a transaction", &self.begin).await else {
            return Ok(());
        };
        if error.kind() != Kind::Retry {
            return Err(error);
        }
        let options = &self.source.options;
        log::info!("connecting again: {error}");
        let mut session = Session::connect(options).await?;
        let identity = identify(&mut session, options).await?;
        if identity != self.identity {
            return Err(Error::refused(format!(
                "{} is another server than it was when the deletion began ({identity}, not {}); run it again",
                options.target.server(),
                self.identity
            )));
        }
        self.session = session;
        self.session.query("beginning a transaction", &self.begin).await?;
        Ok(())
    }

    /// Whether the table has rows of a day at all.
    pub async fn has_rows(&mut self, day: Day) -> Result<bool> {
        let sql = format!("SELECT EXISTS (SELECT 1 {})::text", self.source.of_day(day, self.dates));
        self.begin_batch().await?;
        let found = is_true(&self.session.query("looking for rows", &sql).await?, 0);
        self.session.query("ending the transaction", "ROLLBACK").await?;
        found
    }

    /// Those of these ids that rows of the table have, on whichever date.
    pub async fn present(&mut self, ids: &[i64]) -> Result<HashSet<i64>> {
        let (table, id) = (&self.source.options.table, &self.source.options.columns.id);
        let mut found = HashSet::new();
        self.begin_batch().await?;
        for some in ids.chunks(IDS_AT_ONCE) {
            let sql = format!(
                "SELECT {id}::text FROM {table} WHERE {id} = ANY('{{{}}}'::bigint[])",
                list(some)
            );
            for row in &self.session.query("looking for rows", &sql).await? {
                found.insert(number(row, 0)?);
            }
        }
        self.session.query("ending the transaction", "ROLLBACK").await?;
        Ok(found)
    }

    /// Locks those of the day's rows with these ids that nobody else has locked, lets `decide` name the ids of those that
    /// are to go, deletes and commits.
    pub async fn batch(
        &mut self,
        day: Day,
        ids: &[i64],
        decide: &mut (dyn FnMut(&RecordBatch) -> Result<Vec<i64>> + Send),
    ) -> Result<Batch> {
        reached(day, Step::DeleteLocking);
        let of_day = self.source.of_day(day, self.dates);
        let id = &self.source.options.columns.id;
        let among = |ids: &[i64]| format!("{of_day} AND {id} = ANY('{{{}}}'::bigint[])", list(ids));
        self.begin_batch().await?;
        let sql = format!(
            "COPY (SELECT {} {} FOR UPDATE SKIP LOCKED) TO STDOUT (FORMAT binary)",
            self.source.column_list(),
            among(ids)
        );
        // A row that cannot be exported is not as it was exported.
        let mut decoder = Decoder::new(self.source.layout(), BadRows::Leave);
        let mut to_go = Vec::new();
        let mut sink = |batch: RecordBatch| {
            to_go.extend(decide(&batch)?);
            Ok(())
        };
        self.session
            .copy_out(LOCKING, &sql, |bytes| decoder.push(bytes, &mut sink))
            .await?;
        decoder.finish(&mut sink)?;
        if to_go.is_empty() {
            self.session.query("ending the transaction", "ROLLBACK").await?;
            return Ok(Batch { deleted: 0 });
        }
        if self.unique != Unique::Proved {
            self.refuse_repeated(&among(&to_go)).await?;
        }
        reached(day, Step::DeleteDeleting);
        let sql = format!("DELETE {}", among(&to_go));
        let deleted = self.session.execute("deleting the rows", &sql).await?;
        if deleted != to_go.len() as u64 {
            // Dropping the connection would do the same; this is for the log.
            self.session.query("ending the transaction", "ROLLBACK").await?;
            return Err(Error::refused(format!(
                "{} locked rows were to be deleted, but the database deleted {deleted} (is there a trigger or a rule on the table?); \
                 this batch was rolled back",
                to_go.len()
            )));
        }
        reached(day, Step::DeleteCommitting);
        self.session.query("committing the deletion", "COMMIT").await?;
        reached(day, Step::DeleteCommitted);
        Ok(Batch { deleted })
    }

    /// Where no index says so, it is looked at for each batch: a second row with an id would go with the first.
    async fn refuse_repeated(&mut self, among: &str) -> Result<()> {
        let options = &self.source.options;
        let id = &options.columns.id;
        let sql = format!("SELECT {id}::text {among} GROUP BY {id} HAVING count(*) > 1 ORDER BY {id} LIMIT 1");
        let repeated = self.session.query("looking for ids that repeat", &sql).await?;
        if repeated.is_empty() {
            return Ok(());
        }
        let repeated: i64 = number(&repeated[0], 0)?;
        self.session.query("ending the transaction", "ROLLBACK").await?;
        Err(Error::refused(format!(
            "more than one row of {} has the {} {repeated} on this day, and the file has one of them; give them ids of their own, \
             or let a unique index on {1} alone see to it",
            options.table.shown(),
            id.as_str()
        )))
    }

    /// How far the slowest replica is behind.
    pub async fn replica_lag(&mut self) -> Result<Duration> {
        let sql = "SELECT coalesce(bool_or(state IS NULL), false)::text,
                          (coalesce(extract(epoch FROM max(replay_lag)), 0) * 1000)::bigint::text
                   FROM pg_stat_replication";
        let options = &self.source.options;
        let rows = self
            .session
            .query_as(options, "asking how far replicas are behind", sql)
            .await?;
        if is_true(&rows, 0)? {
            return Err(Error::configuration(format!(
                "user {:?} may not see how far replicas are behind; grant it the role pg_monitor, or leave max_replica_lag out",
                self.source.options.target.user()
            )));
        }
        let lag: u64 = rows.first().map_or(Ok(0), |row| number(row, 1))?;
        Ok(Duration::from_millis(lag))
    }

    pub async fn close(self) {
        self.session.close().await;
    }
}

impl std::fmt::Debug for Deleter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deleter").field("identity", &self.identity).finish()
    }
}
