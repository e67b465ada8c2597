//! What it means that PostgreSQL, or whatever is in between, refuses something, and what to do then.

use sqlx::postgres::PgDatabaseError;

use super::connect::{CONNECTING, LOCKING};
use super::target::Target;
use crate::base::error::Error;

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
                    "25P03" | "40001" | "40P01" | "55P03" | "57P01" | "57P02" | "57P03" | "57P05" | "57014"
                ) || code.starts_with("53")
                    || code.starts_with("08"));
            let advice = match code {
                "57014" => "; raise statement_timeout, or find out what slows the database down",
                "25P04" => {
                    "; transaction_timeout has ended it: ALTER ROLE ... SET transaction_timeout = 0 for this user, or raise it"
                }
                "25P03" => {
                    "; idle_in_transaction_session_timeout has ended it, because this process was slow: try again later, and if it goes on, \
                     ALTER ROLE ... SET idle_in_transaction_session_timeout = 0 for this user, or raise statement_timeout"
                }
                "57P05" => {
                    "; idle_session_timeout has ended it in a pause: ALTER ROLE ... SET idle_session_timeout = 0 for this user, or make pauses \
                     shorter, and run it again"
                }
                "57P01" => "; the server is being stopped, or somebody used pg_terminate_backend; try again later",
                "55P03" => "; somebody holds a lock on the table, try again later",
                "28P01" | "28000" => "; check user, password and pg_hba.conf",
                "3D000" => "; check the database's name",
                "42501" if doing == LOCKING => {
                    "; grant SELECT, UPDATE (which locking a row needs) and DELETE on the table to this user"
                }
                "42501" => "; grant SELECT on the table, and USAGE on its schema, to this user",
                "23503" => {
                    "; a row of that table refers to one that was to be deleted: delete it first, or keep the day"
                }
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
            // In the middle of a COPY sqlx waits for more after the server's last words, and loses them.
            let advice = if certificate {
                "check sslmode, sslrootcert and the host's name"
            } else if doing == CONNECTING {
                "is the server running and reachable?"
            } else {
                "the log of the server, or of the pooler in between, says why: a restart, pg_terminate_backend, or a timeout of this user's \
                 (transaction_timeout, idle_in_transaction_session_timeout, idle_session_timeout); try again later"
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
        // sqlx gives up such a message with all that is in it, its SQLSTATE too.
        sqlx::Error::Protocol(why) if why.contains("non-UTF-8") => Error::Database {
            message: format!(
                "{server} refused {doing} as user {:?} in words that are not UTF-8, so that not even their code can be read; the server's log \
                 has them. While connecting it is mostly a wrong password, user or database, or pg_hba.conf. \
                 With lc_messages = 'C', or one in UTF-8, they can be read",
                target.user()
            ),
            sqlstate: None,
            retryable: false,
        },
        // What is said before a session begins is about logging in.
        error if doing == CONNECTING => Error::Database {
            message: format!(
                "{doing} to {server} failed: {error}; check host and port, user, password and pg_hba.conf"
            ),
            sqlstate: None,
            retryable: false,
        },
        error => Error::Database {
            message: format!("{doing} at {server} failed: {error}"),
            sqlstate: None,
            retryable: matches!(error, sqlx::Error::Protocol(_)),
        },
    }
}
