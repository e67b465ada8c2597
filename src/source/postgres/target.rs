//! Which server to connect to and how to log in: libpq's connection strings and environment, read by libpq's
//! rules. What is not supported is refused by name; no message shows a value that could be a secret.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sqlx::postgres::PgConnectOptions;
use url::Url;

use crate::base::error::{Error, Result};

/// A server and how to log in there, from a libpq connection string: a `postgresql://` URL or
/// `host=... dbname=...`. What the string leaves open comes from the `PG*` environment and `.pgpass`.
///
/// Without `sslrootcert`, `~/.postgresql/root.crt` is the authority to trust when there is such a file, as with
/// libpq: for verify-ca, for verify-full, and for require, which then means verify-ca. When there is none,
/// verify-full trusts the system's authorities, and verify-ca is refused.
#[derive(Clone)]
pub struct Target {
    /// With the TLS settings in sqlx's terms, which are no weaker than asked for.
    pub(crate) options: PgConnectOptions,
    pub(super) connect_timeout: Duration,
    /// Settings of the server for each transaction, by name.
    pub(super) settings: Vec<(String, String)>,
    /// `None` leaves TLS, without a check of the certificate, to sqlx.
    pub(super) verify: Option<Verify>,
}

/// What a server's certificate is checked against before anything is said to the server.
#[derive(Clone)]
pub(super) struct Verify {
    /// `None` is the system's certificate authorities.
    pub(super) roots: Option<PathBuf>,
    pub(super) host_name: bool,
    /// The client's certificate and key.
    pub(super) client: Option<(PathBuf, PathBuf)>,
}

impl Target {
    /// Reads a connection string in a given environment: the value of a variable by its name.
    pub fn parse(connection: &str, environment: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let url = ["postgresql://", "postgres://"]
            .iter()
            .find_map(|scheme| connection.strip_prefix(scheme));
        let mut given = match url {
            Some(rest) => url_parameters(rest)?,
            None if connection.split('=').next().is_some_and(|start| start.contains("://")) => {
                return Err(Error::configuration(
                    "a URL of a PostgreSQL database begins with postgresql://",
                ));
            }
            None => key_values(connection)?,
        };
        given.retain(|(_, value)| !value.is_empty());
        let from_environment: Parameters = ENVIRONMENT
            .iter()
            .filter(|(name, _)| given.iter().all(|(other, _)| other != name))
            .filter_map(|(name, variable)| Some(((*name).to_owned(), environment(variable)?)))
            .filter(|(_, value)| !value.is_empty())
            .collect();
        given.extend(from_environment);
        let verifies = |(name, value): &(String, String)| {
            name == "sslmode" && ["require", "verify-ca", "verify-full"].contains(&value.as_str())
        };
        if given.iter().any(verifies)
            && given.iter().all(|(name, _)| name != "sslrootcert")
            && let Some(root) = environment("HOME").map(|home| Path::new(&home).join(".postgresql/root.crt"))
            && root.is_file()
        {
            given.push(("sslrootcert".to_owned(), root.to_string_lossy().into_owned()));
        }
        build(given)
    }

    /// `postgresql://host:port/database`, without user and password.
    pub fn shown(&self) -> String {
        let database = self.options.get_database().unwrap_or(self.options.get_username());
        let host = self.socket().map_or_else(
            || bracketed(self.options.get_host()),
            |folder| utf8_percent_encode(&folder, NON_ALPHANUMERIC).to_string(),
        );
        format!("postgresql://{host}:{}/{database}", self.options.get_port())
    }

    /// `host:port`, or the unix socket.
    pub fn server(&self) -> String {
        let port = self.options.get_port();
        match self.socket() {
            Some(folder) => format!("{}/.s.PGSQL.{port}", folder.trim_end_matches('/')),
            None => format!("{}:{port}", bracketed(self.options.get_host())),
        }
    }

    pub fn user(&self) -> &str {
        self.options.get_username()
    }

    /// The folder of the unix socket, where it is one.
    fn socket(&self) -> Option<String> {
        let host = self.options.get_host();
        match self.options.get_socket() {
            Some(folder) => Some(folder.to_string_lossy().into_owned()),
            None => host.starts_with('/').then(|| host.to_owned()),
        }
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({})", self.shown())
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(connection: &str) -> Result<Self> {
        Self::parse(connection, |name| std::env::var(name).ok())
    }
}

type Parameters = Vec<(String, String)>;

const ENVIRONMENT: [(&str, &str); 16] = [
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("dbname", "PGDATABASE"),
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("application_name", "PGAPPNAME"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("options", "PGOPTIONS"),
    ("channel_binding", "PGCHANNELBINDING"),
    // Refused: without it, another database than the one meant would be read.
    ("service", "PGSERVICE"),
];

fn unreadable(why: &str) -> Error {
    Error::configuration(format!("the PostgreSQL connection string cannot be read: {why}"))
}

/// `[user[:password]@][host][:port][/dbname][?name=value[&...]]`, each part percent-encoded.
fn url_parameters(rest: &str) -> Result<Parameters> {
    let decode = |text: &str| {
        percent_decode_str(text)
            .decode_utf8()
            .map(std::borrow::Cow::into_owned)
            .map_err(|_| unreadable("a percent-encoded part is not UTF-8"))
    };
    let mut given = Parameters::new();
    let mut add = |name: &str, value: &str| -> Result<()> {
        given.push((decode(name)?, decode(value)?));
        Ok(())
    };

    let slash = rest.find('/').unwrap_or(rest.len());
    let rest = match rest[..slash].find('@') {
        Some(at) => {
            let (user, password) = rest[..at].split_once(':').unwrap_or((&rest[..at], ""));
            add("user", user)?;
            add("password", password)?;
            &rest[at + 1..]
        }
        None => rest,
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (server, database) = rest.split_once('/').unwrap_or((rest, ""));
    // A password with an unencoded '/' or '@' would otherwise be taken, and shown, as a host or database.
    if rest.contains('@') {
        return Err(unreadable(
            "there is an '@' too many; percent-encode special characters in user and password",
        ));
    }
    if server.contains(',') {
        return Err(unreadable("several hosts are not supported; name the one to read from"));
    }
    let (host, port) = match server.strip_prefix('[') {
        Some(address) => {
            let (address, port) = address
                .split_once(']')
                .ok_or_else(|| unreadable("the host's '[' has no ']'"))?;
            (address, port.strip_prefix(':').unwrap_or(port))
        }
        None => server.split_once(':').unwrap_or((server, "")),
    };
    add("host", host)?;
    add("port", port)?;
    add("dbname", database)?;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair
            .split_once('=')
            .ok_or_else(|| unreadable("a parameter without '='"))?;
        add(name, value)?;
    }
    Ok(given)
}

/// `key = value` pairs; a value may stand in single quotes, and a backslash escapes the character after it.
fn key_values(connection: &str) -> Result<Parameters> {
    let mut given = Parameters::new();
    let mut rest = connection.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').ok_or_else(|| unreadable("a key without '='"))?;
        let key = key.trim();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return Err(unreadable("a key without '='"));
        }
        let after = after.trim_start();
        let quoted = after.starts_with('\'');
        let mut value = String::new();
        let mut chars = after.char_indices().skip(usize::from(quoted));
        let mut end = after.len();
        let mut closed = !quoted;
        while let Some((at, char)) = chars.next() {
            match char {
                '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
                '\'' if quoted => {
                    (end, closed) = (at + 1, true);
                    break;
                }
                char if !quoted && char.is_whitespace() => {
                    end = at;
                    break;
                }
                char => value.push(char),
            }
        }
        if !closed {
            return Err(unreadable("a quoted value has no end"));
        }
        given.push((key.to_owned(), value));
        rest = after.get(end..).unwrap_or_default().trim_start();
    }
    Ok(given)
}

/// The settings that are understood; of repeated ones the last counts.
#[derive(Default)]
struct Settings {
    passed: Vec<(&'static str, String)>,
    host: Option<String>,
    address: Option<String>,
    mode: Option<String>,
    root: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
    application_name: Option<String>,
    connect_timeout: Option<Duration>,
    server: Vec<(String, String)>,
}

fn refuse<T>(name: &str, why: &str) -> Result<T> {
    Err(Error::configuration(format!("the PostgreSQL parameter {name}: {why}")))
}

/// What libpq knows, and this does not, or with some values only.
const OTHER_PARAMETERS: &[&str] = &[
    "channel_binding",
    "client_encoding",
    "gssencmode",
    "load_balance_hosts",
    "sslcompression",
    "sslnegotiation",
    "gssdelegation",
    "gsslib",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "krbsrvname",
    "max_protocol_version",
    "min_protocol_version",
    "oauth_client_id",
    "oauth_issuer",
    "oauth_scope",
    "replication",
    "require_auth",
    "requirepeer",
    "requiressl",
    "scram_client_key",
    "scram_server_key",
    "service",
    "servicefile",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcertmode",
    "sslcrl",
    "sslcrldir",
    "sslkeylogfile",
    "sslsni",
    "tcp_user_timeout",
];

/// A name, an address or a socket's folder.
fn is_host(text: &str) -> bool {
    let of_a_name = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%' | '[' | ']');
    text.starts_with(['/', '@']) || text.chars().all(of_a_name)
}

fn settle(given: Parameters) -> Result<Settings> {
    let mut settings = Settings::default();
    for (name, value) in given {
        if value.contains('\0') {
            let like_a_name = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            let shown = if like_a_name && name.len() < 12 {
                name.as_str()
            } else {
                "(not shown)"
            };
            return refuse(shown, "it holds a NUL character");
        }
        match name.as_str() {
            "host" | "hostaddr" | "port" if value.contains(',') => {
                return refuse(&name, "several hosts are not supported; name the one to read from");
            }
            "host" if !is_host(&value) => {
                return refuse(
                    "host",
                    "it holds a character that no host's name has; parameters are separated by spaces, in a URL by &",
                );
            }
            "host" => settings.host = Some(value),
            "hostaddr" if value.parse::<std::net::IpAddr>().is_err() => {
                return refuse("hostaddr", "it has to be an IP address");
            }
            "hostaddr" => settings.address = Some(value),
            "port" => match value.parse::<u16>() {
                Ok(port) if port > 0 => settings.passed.push(("port", value)),
                _ => return refuse("port", "it has to be a number from 1 to 65535"),
            },
            "user" if value.contains('=') => {
                return refuse(
                    "user",
                    "it holds a =; parameters are separated by spaces, in a URL by &",
                );
            }
            "user" => settings.passed.push(("user", value)),
            "password" => settings.passed.push(("password", value)),
            "dbname" if value.contains("://") || value.contains('=') => {
                return refuse("dbname", "it has to be a name, not a connection string");
            }
            "dbname" => settings.passed.push(("dbname", value)),
            "sslmode" if !MODES.contains(&value.as_str()) => {
                return refuse("sslmode", &format!("choose one of {}", MODES.join(", ")));
            }
            "sslmode" => settings.mode = Some(value),
            "sslrootcert" | "sslcert" | "sslkey"
                if (name != "sslrootcert" || value != "system") && !Path::new(&value).is_file() =>
            {
                // A key's content in the place of its file's name is not repeated.
                let content = value.contains("-----BEGIN") || value.contains('\n');
                let shown = if content {
                    "of that name; pass a file, not its content"
                } else {
                    value.as_str()
                };
                return refuse(&name, &format!("there is no file {shown}"));
            }
            "sslrootcert" => settings.root = Some(value),
            "sslcert" => settings.certificate = Some(value),
            "sslkey" => settings.key = Some(value),
            "application_name" => settings.application_name = Some(value),
            "fallback_application_name" => _ = settings.application_name.get_or_insert(value),
            "connect_timeout" => match value.parse::<u64>() {
                Ok(seconds @ 1..=86_400) => settings.connect_timeout = Some(Duration::from_secs(seconds)),
                _ => return refuse("connect_timeout", "it has to be whole seconds, from 1 to 86400"),
            },
            "target_session_attrs" if value == "any" => {}
            "target_session_attrs" => {
                return refuse(
                    "target_session_attrs",
                    "only 'any' is supported; name the server to read from itself",
                );
            }
            // What happens anyway.
            "gssencmode" | "channel_binding" if ["disable", "prefer"].contains(&value.as_str()) => {}
            "sslnegotiation" if value == "postgres" => {}
            "sslcompression" if value == "0" => {}
            "load_balance_hosts" if value == "disable" => {}
            "client_encoding" if ["utf8", "utf-8", "auto"].contains(&value.to_ascii_lowercase().as_str()) => {}
            "options" => settings.server = server_settings(&value)?,
            "passfile" => return refuse("passfile", "set the variable PGPASSFILE, or use ~/.pgpass"),
            _ => {
                // A password that was not quoted can end up in a name's place.
                let known = OTHER_PARAMETERS.contains(&name.as_str());
                let shown = if known { name.as_str() } else { "(not shown)" };
                return refuse(shown, "it is not supported; leave it out");
            }
        }
    }
    Ok(settings)
}

fn build(given: Parameters) -> Result<Target> {
    let mut settings = settle(given)?;
    let verify = verification(&settings)?;
    if verify.as_ref().is_some_and(|verify| verify.host_name) && settings.address.is_some() {
        return refuse(
            "hostaddr",
            "sslmode=verify-full checks the name of the host, so name that alone",
        );
    }
    // The address says where to connect to, whatever the host is called.
    if let Some(host) = settings.address.take().or(settings.host.take()) {
        settings.passed.push(("host", host));
    }
    if let (Some(certificate), Some(key)) = (settings.certificate, settings.key) {
        settings.passed.extend([("sslcert", certificate), ("sslkey", key)]);
    }
    if let Some(root) = settings.root.filter(|root| root != "system") {
        settings.passed.push(("sslrootcert", root));
    }
    let mode = match (&verify, settings.mode.as_deref()) {
        (Some(Verify { host_name: true, .. }), _) => "verify-full",
        (Some(_), _) => "verify-ca",
        // Plain text first and TLS only when that is refused is the weaker of the two orders.
        (None, None | Some("allow")) => "prefer",
        // Only a unix socket gets here with these.
        (None, Some("verify-ca" | "verify-full")) => "disable",
        (None, Some(mode)) => mode,
    };
    settings.passed.push(("sslmode", mode.to_owned()));

    let mut url = Url::parse("postgresql:///").map_err(|_| unreadable("it is no URL"))?;
    url.query_pairs_mut().extend_pairs(&settings.passed);
    let options: PgConnectOptions = url
        .as_str()
        .parse()
        .map_err(|_| unreadable("a value has the wrong form"))?;
    let name = settings.application_name.as_deref();
    Ok(Target {
        // A pooler knows neither named statements nor this startup option.
        options: options
            .statement_cache_capacity(0)
            .extra_float_digits(None)
            .application_name(name.unwrap_or("parquet-analytics")),
        connect_timeout: settings.connect_timeout.unwrap_or(Duration::from_secs(10)),
        settings: settings.server,
        verify,
    })
}

/// The settings in `options`, which go to the server with each transaction: a pooler would refuse them at the start.
fn server_settings(options: &str) -> Result<Vec<(String, String)>> {
    let unsupported = || {
        refuse(
            "options",
            "only settings (-c name=value) are supported in it, with plain names; ALTER ROLE ... SET does the same",
        )
    };
    let mut settings = Vec::new();
    let mut words = words(options).into_iter();
    while let Some(word) = words.next() {
        let setting = if word == "-c" {
            words.next()
        } else {
            word.strip_prefix("-c").or(word.strip_prefix("--")).map(str::to_owned)
        };
        let Some((name, value)) = setting.as_deref().and_then(|setting| setting.split_once('=')) else {
            return unsupported();
        };
        // As the server does with them.
        let name = name.replace('-', "_");
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        if name.is_empty() || !name.chars().all(plain) {
            return unsupported();
        }
        settings.push((name, value.to_owned()));
    }
    Ok(settings)
}

/// Words apart by white space that no backslash precedes.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), None::<String>);
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        if c.is_ascii_whitespace() {
            words.extend(word.take());
            continue;
        }
        let literal = if c == '\\' { characters.next() } else { Some(c) };
        word.get_or_insert_default().extend(literal);
    }
    words.extend(word);
    words
}

const MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// What libpq makes of sslmode and sslrootcert together.
fn verification(settings: &Settings) -> Result<Option<Verify>> {
    let client = match (&settings.certificate, &settings.key) {
        (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
        (None, None) => None,
        _ => return refuse("sslcert", "it needs sslkey, and the other way round"),
    };
    let root = settings.root.as_deref();
    let host_name = match (settings.mode.as_deref(), root) {
        (None | Some("verify-full"), Some("system")) | (Some("verify-full"), _) => true,
        (Some(_), Some("system")) => {
            return refuse(
                "sslrootcert",
                "'system' needs sslmode=verify-full: anybody can get a public certificate",
            );
        }
        (Some("verify-ca"), None) => {
            return refuse(
                "sslmode",
                "verify-ca needs sslrootcert, the file of the authority to trust",
            );
        }
        (Some("verify-ca" | "require"), Some(_)) => false,
        _ => return Ok(None),
    };
    // Nobody is in between on a unix socket, and PostgreSQL has no TLS there.
    if settings.address.is_none() && settings.host.as_deref().is_none_or(|host| host.starts_with('/')) {
        return match settings.host {
            Some(_) => Ok(None),
            None => refuse("host", "this sslmode needs the host that the certificate is for"),
        };
    }
    Ok(Some(Verify {
        roots: root.filter(|root| *root != "system").map(PathBuf::from),
        host_name,
        client,
    }))
}
