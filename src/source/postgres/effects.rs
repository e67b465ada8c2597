//! What else goes when rows of the table are deleted: columns that no file holds, and what foreign keys, triggers and rules do to
//! other rows. Whether that is wanted is not decided here.

use sqlx::postgres::PgRow;

use super::PostgresSource;
use super::connect::{Session, text};
use crate::base::error::{Error, Result};
use crate::base::runtime::{Cancel, block_on};

/// More than these are not named one by one.
const NAMED: usize = 10;

/// What a deletion takes or changes, beside what the files have of the rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effects {
    /// Columns of the table that no file holds, in order.
    pub columns: Vec<String>,
    /// What happens to other rows, in words: `public.bookmark loses rows (constraint ..., ON DELETE CASCADE)`.
    pub others: Vec<String>,
    /// What keeps rows from being deleted, in words: `public.bookmark (constraint ...)`.
    pub holding: Vec<String>,
}

impl PostgresSource {
    /// What a deletion from this table would take or change beside the rows.
    pub fn effects(&self, cancel: &Cancel) -> Result<Effects> {
        block_on(cancel, async {
            let mut session = Session::connect(&self.options).await?;
            let effects = effects(&mut session, self).await?;
            session.close().await;
            Ok(effects)
        })
    }
}

pub(super) async fn effects(session: &mut Session<'_>, source: &PostgresSource) -> Result<Effects> {
    let sql = sql(source);
    let rows = session
        .query_as(&source.options, "looking at what goes with the rows", &sql)
        .await?;
    let mut effects = Effects::default();
    for row in &rows {
        let name = said(row, 2)?;
        match said(row, 0)?.as_str() {
            "column" => effects.columns.push(name),
            "a" | "r" => effects.holding.push(format!("{} (constraint {name})", said(row, 1)?)),
            kind => effects.others.push(in_words(kind, &said(row, 1)?, &name)),
        }
    }
    Ok(effects)
}

fn said(row: &PgRow, column: usize) -> Result<String> {
    text(row, column)?.ok_or_else(|| Error::internal("the database left an answer out"))
}

fn in_words(kind: &str, table: &str, name: &str) -> String {
    match kind {
        "c" => format!("{table} loses rows (constraint {name}, ON DELETE CASCADE)"),
        "n" => format!("{table} is changed (constraint {name}, ON DELETE SET NULL)"),
        "d" => format!("{table} is changed (constraint {name}, ON DELETE SET DEFAULT)"),
        "dangling" => format!("rows of {table} refer to nothing (constraint {name} is not enforced)"),
        "rule" => format!("the rule {name} on {table} is applied"),
        _ => format!("the trigger {name} on {table} runs"),
    }
}

/// The states of triggers and rules that fire in this session.
const FIRE: &str = "CASE current_setting('session_replication_role') WHEN 'replica' THEN 'RA' ELSE 'OA' END";

/// Partitions, and tables that inherit, are a part of the table. A foreign key's own triggers are internal ones; where they are
/// missing or do not fire, nothing looks after the rows that refer to a deleted one. A key to a partitioned table has one for each
/// partition below it. A generated column is made anew from others.
fn sql(source: &PostgresSource) -> String {
    let columns = &source.options.columns;
    let held = source.copied().into_iter().map(|(_, column)| column);
    let held: Vec<String> = held.chain([&columns.date]).map(|column| column.literal()).collect();
    format!(
        "WITH RECURSIVE tables AS (
             SELECT to_regclass({table})::oid AS oid
             UNION SELECT inhrelid FROM pg_inherits JOIN tables ON inhparent = tables.oid
         ), keys AS (
             SELECT c.oid, c.conname, c.conrelid, c.conparentid, CASE
                 WHEN (SELECT relkind FROM pg_class WHERE oid = c.confrelid) = 'r' AND NOT EXISTS (
                     SELECT 1 FROM pg_trigger t WHERE t.tgconstraint = c.oid AND t.tgrelid = c.confrelid
                     AND t.tgtype & 8 <> 0 AND strpos({FIRE}, t.tgenabled::text) > 0) THEN 'dangling'
                 ELSE c.confdeltype::text END AS kind
             FROM pg_constraint c JOIN tables ON c.confrelid = tables.oid WHERE c.contype = 'f'
         ), found AS (
             SELECT 'column' AS kind, NULL::oid AS relation, attname::text AS name, min(attnum) AS place
             FROM pg_attribute JOIN tables ON attrelid = tables.oid
             WHERE attnum > 0 AND NOT attisdropped AND attgenerated = '' AND attname::text <> ALL (ARRAY[{held}])
             GROUP BY attname
             UNION ALL
             SELECT DISTINCT kind, conrelid, coalesce((SELECT p.conname FROM keys p WHERE p.oid = keys.conparentid), conname)::text, 0
             FROM keys WHERE kind = 'dangling' OR conparentid NOT IN (SELECT oid FROM keys)
             UNION ALL
             SELECT 'trigger', min(tgrelid), tgname::text, 0 FROM pg_trigger JOIN tables ON tgrelid = tables.oid
             WHERE NOT tgisinternal AND tgtype & 8 <> 0 AND strpos({FIRE}, tgenabled::text) > 0 GROUP BY tgname
             UNION ALL
             SELECT 'rule', ev_class, rulename::text, 0 FROM pg_rewrite JOIN tables ON ev_class = tables.oid
             WHERE ev_type = '4' AND strpos({FIRE}, ev_enabled::text) > 0
         )
         SELECT kind, coalesce(nspname || '.' || relname, '')::text, name FROM found
         LEFT JOIN (pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace) ON c.oid = relation
         ORDER BY place, kind, 2, name",
        table = source.options.table.literal(),
        held = held.join(", ")
    )
}

impl Effects {
    /// Refuses what was not said to be wanted.
    ///
    /// # Errors
    /// [`Error::DeletionRefused`] that names the columns, or the constraints and tables.
    pub fn check(&self, table: &str, lose_columns: &[String], allow_cascades: bool) -> Result<()> {
        let lost: Vec<&str> = self
            .columns
            .iter()
            .filter(|name| !lose_columns.contains(name))
            .map(String::as_str)
            .collect();
        if !lost.is_empty() {
            let quoted: Vec<String> = lost.iter().map(|name| format!("{name:?}")).collect();
            return Err(Error::refused(format!(
                "{table} has columns that no file holds and that would be lost with the rows: {}; if they may be, pass \
                 lose_columns=[{}]",
                lost.join(", "),
                quoted.join(", ")
            )));
        }
        if !self.others.is_empty() && !allow_cascades {
            let more = self.others.len().saturating_sub(NAMED);
            let more = if more > 0 {
                format!("; and {more} more")
            } else {
                String::new()
            };
            let named: Vec<&str> = self.others.iter().take(NAMED).map(String::as_str).collect();
            return Err(Error::refused(format!(
                "deleting rows of {table} changes more than these rows: {}{more}; no file has that. If it is wanted, pass \
                 allow_cascades=True",
                named.join("; ")
            )));
        }
        Ok(())
    }
}
