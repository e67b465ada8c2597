//! Which table is read: of which cluster and database, in which history.

use sqlx::postgres::PgRow;

use super::config::{Identifier, PostgresOptions};
use super::connect::{Session, is_true, said, text};
use crate::base::error::{Error, Result};
use crate::file::position::{Identity, Relation};

/// Which functions that tell what identifies a server may be called: some providers do not let everybody ask.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rights {
    system: bool,
    checkpoint: bool,
    log_file: bool,
}

impl Rights {
    pub(super) const SQL: &str = "has_function_privilege('pg_control_system()', 'EXECUTE')::text,
         has_function_privilege('pg_control_checkpoint()', 'EXECUTE')::text,
         has_function_privilege('pg_walfile_name(pg_lsn)', 'EXECUTE')::text";

    /// From the columns of [`Self::SQL`], of which the first is this one.
    pub(super) fn of(rows: &[PgRow], column: usize) -> Result<Self> {
        Ok(Self {
            system: is_true(rows, column)?,
            checkpoint: is_true(rows, column + 1)?,
            log_file: is_true(rows, column + 2)?,
        })
    }
}

/// Columns that identify the table that is read: the cluster's system identifier, the database's oid, the timeline, the
/// table's oid and its name.
pub(super) fn identity(options: &PostgresOptions, rights: Rights) -> String {
    let system = if rights.system {
        "(SELECT system_identifier::text FROM pg_control_system())"
    } else {
        "NULL::text"
    };
    let checkpoint = if rights.checkpoint {
        "(SELECT timeline_id FROM pg_control_checkpoint())"
    } else {
        "NULL::int"
    };
    // What a checkpoint says is late after a promotion. A standby has no more to say than its receiver, if that may be seen.
    let primary = if rights.log_file {
        "('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int"
    } else {
        checkpoint
    };
    let table = format!("to_regclass({})", options.table.literal());
    format!(
        "{system}, (SELECT oid::text FROM pg_database WHERE datname = current_database()),
         (CASE WHEN pg_is_in_recovery() THEN greatest({checkpoint}, (SELECT received_tli FROM pg_stat_wal_receiver))
               ELSE {primary} END)::text,
         {table}::oid::text,
         (SELECT nspname || '.' || relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = {table}),
         current_user::text"
    )
}

/// What the table that these options name is.
pub async fn identify(session: &mut Session<'_>, options: &PostgresOptions) -> Result<Identity> {
    let rights = format!("SELECT {}", Rights::SQL);
    let rights = session.query_as(options, "looking at the server", &rights).await?;
    let sql = format!("SELECT {}", identity(options, Rights::of(&rights, 0)?));
    let found = session.query_as(options, "identifying the database", &sql).await?;
    identified(options, &found, 0)
}

/// From the columns of [`identity`], of which the first is this one.
///
/// # Errors
/// [`Error::Configuration`] when the server does not say which it is, and nothing stands for it.
pub(super) fn identified(options: &PostgresOptions, rows: &[PgRow], column: usize) -> Result<Identity> {
    let first = rows
        .first()
        .ok_or_else(|| Error::internal("the database left an answer out"))?;
    let given = |number: usize| text(first, column + number);
    let timeline = given(2)?.and_then(|timeline| timeline.parse().ok());
    let system = match (given(0)?, timeline, &options.database_id) {
        (Some(system), Some(_), _) => system,
        (_, _, Some(name)) => format!("name:{name}"),
        (system, ..) => return Err(unidentified(options, system.is_none())),
    };
    let relation = match (given(3)?.and_then(|oid| oid.parse().ok()), given(4)?) {
        (Some(oid), Some(name)) => Some(Relation { oid, name }),
        _ => None,
    };
    let oid = relation.as_ref().map(|relation| relation.oid);
    if options.relation.is_some() && options.relation != oid {
        return Err(Error::configuration(format!(
            "{} finds another table by the name {} than the site itself does (oid {}, not {}); is there a search_path, a role or a \
             temporary table that only one of the two connections has?",
            options.target.server(),
            options.table.shown(),
            oid.map_or_else(|| "none".to_owned(), |oid| oid.to_string()),
            options.relation.unwrap_or_default()
        )));
    }
    let user = said(rows, column + 5)?;
    if let Some(wanted) = options.user.as_ref().filter(|wanted| **wanted != user) {
        return Err(Error::configuration(format!(
            "{} takes this connection for user {user:?}, and the site's own for {wanted:?}, who may see other rows; do both log in as the \
             same user, or may this one SET ROLE to that one?",
            options.target.server()
        )));
    }
    Ok(Identity {
        database: format!("{system}/{}", said(rows, column + 1)?),
        timeline,
        relation,
    })
}

fn unidentified(options: &PostgresOptions, system: bool) -> Error {
    let function = if system {
        "pg_control_system()"
    } else {
        "pg_control_checkpoint()"
    };
    let user = options.role.as_ref().map_or(options.target.user(), Identifier::as_str);
    Error::configuration(format!(
        "{} does not tell user {user:?} which cluster it is, so its rows cannot be told from another's: GRANT EXECUTE ON FUNCTION {function} \
         TO {user}; where the provider does not allow that, name the database yourself (database_id, in Django DATABASE_ID)",
        options.target.server()
    ))
}
