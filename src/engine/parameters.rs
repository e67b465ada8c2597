//! Matches the caller's values with the placeholders of a prepared statement, and binds them.

use std::collections::BTreeMap;

use duckdb::ffi;

use super::instance::text;
use super::{Param, Params, refused};
use crate::base::error::Result;

pub(super) fn bind(statement: ffi::duckdb_prepared_statement, params: &Params) -> Result<()> {
    let names = names(statement);
    let values = match params {
        Params::Positional(values) => by_position(&names, values)?,
        Params::Named(values) => by_name(&names, values)?,
    };
    for (index, (name, value)) in names.iter().zip(values).enumerate() {
        bind_value(statement, index as u64 + 1, value)
            .map_err(|()| refused(format!("the value of ${name} was refused")))?;
    }
    Ok(())
}

/// Names of the placeholders, in DuckDB's order; `?` is named by its number.
fn names(statement: ffi::duckdb_prepared_statement) -> Vec<String> {
    // SAFETY: the statement is prepared; each name is allocated for us, copied and freed.
    unsafe {
        let count = ffi::duckdb_nparams(statement);
        let name = |index| {
            let raw = ffi::duckdb_parameter_name(statement, index);
            let name = text(raw);
            ffi::duckdb_free(raw.cast_mut().cast());
            name
        };
        (1..=count).map(name).collect()
    }
}

fn by_position<'a>(names: &[String], values: &'a [Param]) -> Result<Vec<&'a Param>> {
    let gap = || refused("the query's parameters have to be numbered from $1 without a gap");
    let mut wanted = Vec::with_capacity(names.len());
    for name in names {
        match name.parse::<usize>() {
            Ok(number) => wanted.push(number),
            // DuckDB names them by number, and knows no name when one is left out.
            Err(_) if name.is_empty() => {
                return Err(gap());
            }
            Err(_) => {
                return Err(refused(format!(
                    "the query has the parameter ${name}; give values by name, not in a list"
                )));
            }
        }
    }
    if wanted.len() != values.len() {
        let needed = wanted.len();
        return Err(refused(format!(
            "the query needs {needed} parameter values, but {} were given",
            values.len()
        )));
    }
    let value = |number: usize| number.checked_sub(1).and_then(|index| values.get(index));
    wanted.into_iter().map(|number| value(number).ok_or_else(gap)).collect()
}

fn by_name<'a>(names: &[String], values: &'a BTreeMap<String, Param>) -> Result<Vec<&'a Param>> {
    for given in values.keys() {
        if !names.iter().any(|name| name.eq_ignore_ascii_case(given)) {
            return Err(refused(format!("the query has no parameter ${given}{}", list(names))));
        }
    }
    let find = |name: &String| {
        let exact = values.get(name);
        let value = exact.or_else(|| {
            values
                .iter()
                .find(|(given, _)| given.eq_ignore_ascii_case(name))
                .map(|(_, v)| v)
        });
        value.ok_or_else(|| refused(format!("the query needs a value for the parameter ${name}")))
    };
    names.iter().map(find).collect()
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "; it has none".to_owned()
    } else {
        format!("; it has ${}", names.join(", $"))
    }
}

fn bind_value(statement: ffi::duckdb_prepared_statement, index: u64, value: &Param) -> Result<(), ()> {
    // SAFETY: the statement is prepared and the index in range; DuckDB copies text and bytes.
    let state = unsafe {
        match value {
            Param::Null => ffi::duckdb_bind_null(statement, index),
            Param::Bool(value) => ffi::duckdb_bind_boolean(statement, index, *value),
            Param::Int(value) => ffi::duckdb_bind_int64(statement, index, *value),
            Param::Float(value) => ffi::duckdb_bind_double(statement, index, *value),
            Param::Text(value) => {
                ffi::duckdb_bind_varchar_length(statement, index, value.as_ptr().cast(), value.len() as u64)
            }
            Param::Date(days) => ffi::duckdb_bind_date(statement, index, ffi::duckdb_date { days: *days }),
            Param::Blob(value) => ffi::duckdb_bind_blob(statement, index, value.as_ptr().cast(), value.len() as u64),
        }
    };
    if state == ffi::DuckDBSuccess { Ok(()) } else { Err(()) }
}
