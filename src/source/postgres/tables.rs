//! What the tables are like: their columns' types, what the date column holds, and whether an index keeps ids apart.

use std::collections::HashMap;

use sqlx::postgres::PgRow;

use super::config::{Identifier, PostgresOptions, Table};
use super::connect::{Snapshot, is_true, text};
use crate::base::error::{Error, Result};
use crate::base::schema;

/// What the date column holds: days, or times that are cut into UTC days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dates {
    Days,
    Times,
}

pub const TIMESTAMP: &str = "timestamp with time zone";
pub const INTEGERS: &[&str] = &["smallint", "integer", "bigint"];
pub const TEXTS: &[&str] = &["text", "character varying", "citext"];

pub fn accepted(name: &str) -> &'static [&'static str] {
    match name {
        schema::PATH | schema::FULL_PATH => TEXTS,
        schema::DATE => &["date", TIMESTAMP],
        _ => INTEGERS,
    }
}

/// A query that tells whether the date column holds times. A domain stands for the type below it.
pub fn date_type(options: &PostgresOptions) -> String {
    format!(
        "WITH RECURSIVE base AS (
             SELECT t.oid, t.typtype, t.typbasetype FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
             WHERE a.attrelid = to_regclass({}) AND a.attname = {}
             UNION ALL
             SELECT t.oid, t.typtype, t.typbasetype FROM base JOIN pg_type t ON t.oid = base.typbasetype
         )
         SELECT (format_type(oid, NULL) = '{TIMESTAMP}')::text FROM base WHERE typtype <> 'd'",
        options.table.literal(),
        options.columns.date.literal()
    )
}

/// Names the table or the column that is missing or has a type that cannot be copied exactly.
/// Gives the columns' types.
pub async fn check_table(
    snapshot: &mut Snapshot<'_>,
    table: &Table,
    wanted: Vec<(&Identifier, &[&str])>,
) -> Result<HashMap<String, String>> {
    // A domain stands for the type below it; citext may live in any schema.
    let sql = format!(
        "SELECT a.attname::text, (
             WITH RECURSIVE base AS (
                 SELECT oid, typname, typtype, typbasetype FROM pg_type WHERE oid = a.atttypid
                 UNION ALL
                 SELECT t.oid, t.typname, t.typtype, t.typbasetype FROM base JOIN pg_type t ON t.oid = base.typbasetype
             )
             SELECT CASE typname WHEN 'citext' THEN 'citext' ELSE format_type(oid, NULL) END
             FROM base WHERE typtype <> 'd')
         FROM (SELECT to_regclass({}) AS oid) c
         LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
         WHERE c.oid IS NOT NULL",
        table.literal()
    );
    let rows = snapshot.query("looking at the table", &sql).await?;
    let shown = table.shown();
    if rows.is_empty() {
        return Err(Error::SourceSchema {
            column: None,
            message: format!("there is no table {shown}; check its name, its schema and the user's search_path"),
        });
    }
    let mut types = HashMap::new();
    for row in &rows {
        if let (Some(name), Some(kind)) = (text(row, 0)?, text(row, 1)?) {
            types.insert(name, kind);
        }
    }
    for (column, accepted) in wanted {
        let name = column.as_str();
        let Some(kind) = types.get(name) else {
            return Err(Error::SourceSchema {
                column: Some(name.to_owned()),
                message: format!("the table {shown} has no column {name}"),
            });
        };
        if !accepted.contains(&kind.as_str()) {
            let why = if kind == "timestamp without time zone" && accepted.contains(&TIMESTAMP) {
                " (without a time zone it cannot be told to which UTC day a row belongs)"
            } else {
                ""
            };
            return Err(Error::SourceSchema {
                column: Some(name.to_owned()),
                message: format!(
                    "the column {name} of {shown} is of type {kind}; it has to be {}{why}",
                    accepted.join(" or ")
                ),
            });
        }
    }
    Ok(types)
}

/// How far indexes make sure that no id repeats within a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unique {
    /// They do.
    Proved,
    /// Only per time of a day, or per table of several that inherit from one another.
    Almost,
    No,
}

impl Unique {
    /// A query whose answer [`Self::of`] reads: whether a unique index covers the id alone, whether one covers the id or the id
    /// and the date, and whether other tables inherit from this one, whose rows no index of it covers.
    pub fn sql(options: &PostgresOptions) -> String {
        let columns = &options.columns;
        format!(
            "SELECT coalesce(bool_or(keys.id_alone), false)::text, (count(*) > 0)::text,
                    EXISTS (SELECT 1 FROM pg_inherits JOIN pg_class c ON c.oid = inhparent
                            WHERE inhparent = to_regclass({table}) AND c.relkind <> 'p')::text
             FROM pg_index i
             CROSS JOIN LATERAL (
                 SELECT bool_and(coalesce(a.attname = {id}, false)) AS id_alone,
                        bool_and(coalesce(a.attname IN ({id}, {date}), false)) AND bool_or(a.attname = {id}) AS id_and_date
                 FROM unnest(i.indkey[0:i.indnkeyatts - 1]) k
                 LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k
             ) keys
             WHERE i.indrelid = to_regclass({table}) AND i.indisunique AND i.indimmediate AND i.indisvalid
               AND i.indpred IS NULL AND keys.id_and_date",
            table = options.table.literal(),
            id = columns.id.literal(),
            date = columns.date.literal()
        )
    }

    pub fn of(rows: &[PgRow], dates: Dates) -> Result<Self> {
        let (id_alone, any, inherited) = (is_true(rows, 0)?, is_true(rows, 1)?, is_true(rows, 2)?);
        Ok(match (any, (id_alone || dates == Dates::Days) && !inherited) {
            (true, true) => Self::Proved,
            (true, false) => Self::Almost,
            (false, _) => Self::No,
        })
    }
}
