//! The Python module `parquet_analytics._native`, and the only folder that knows Python: extract typed
//! values, call the core on a thread of its own, map the error. Arguments are checked and explained in the
//! Python package above it.

mod compact;
mod delete;
mod erase;
mod errors;
mod export;
mod querier;
mod restorer;
mod run;
mod sample;
mod sources;
mod store;

use pyo3::prelude::*;

use crate::base::keys::{Day, Prefix, Slug};

use errors::OrRaise;

/// The day as `YYYY-MM-DD`, or `InvalidInput`.
#[pyfunction]
fn check_day(text: &str) -> PyResult<String> {
    Ok(text.parse::<Day>().or_raise()?.to_string())
}

/// Refuses a slug that could not be part of an object key.
#[pyfunction]
fn check_slug(text: &str) -> PyResult<()> {
    text.parse::<Slug>().or_raise().map(drop)
}

/// The prefix without slashes at its ends, or `InvalidInput`.
#[pyfunction]
fn check_prefix(text: &str) -> PyResult<String> {
    Ok(text.parse::<Prefix>().or_raise()?.as_str().to_owned())
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    // Fails only when the process has a logger already, which then is the one to use.
    let _ = pyo3_log::Logger::new(module.py(), pyo3_log::Caching::Loggers)?
        .filter(log::LevelFilter::Off)
        .filter_target("parquet_analytics".to_owned(), log::LevelFilter::Debug)
        .install();
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_function(wrap_pyfunction!(check_day, module)?)?;
    module.add_function(wrap_pyfunction!(check_slug, module)?)?;
    module.add_function(wrap_pyfunction!(check_prefix, module)?)?;
    module.add_function(wrap_pyfunction!(export::parquet_path, module)?)?;
    module.add_function(wrap_pyfunction!(export::plan_export, module)?)?;
    module.add_function(wrap_pyfunction!(export::export_day, module)?)?;
    module.add_function(wrap_pyfunction!(export::verify_day, module)?)?;
    module.add_function(wrap_pyfunction!(delete::delete_day, module)?)?;
    module.add_function(wrap_pyfunction!(compact::compact_days, module)?)?;
    module.add_function(wrap_pyfunction!(restorer::read_for_restoration, module)?)?;
    module.add_function(wrap_pyfunction!(restorer::prepare_restoration, module)?)?;
    module.add_function(wrap_pyfunction!(restorer::finish_restoration, module)?)?;
    module.add_function(wrap_pyfunction!(erase::erase_projects, module)?)?;
    module.add_function(wrap_pyfunction!(erase::unerase_projects, module)?)?;
    module.add_function(wrap_pyfunction!(erase::check_erasure, module)?)?;
    module.add_function(wrap_pyfunction!(erase::erased_projects, module)?)?;
    module.add_function(wrap_pyfunction!(erase::erased_rows, module)?)?;
    module.add_function(wrap_pyfunction!(erase::stored_days, module)?)?;
    module.add_function(wrap_pyfunction!(erase::erase_from_day, module)?)?;
    module.add_function(wrap_pyfunction!(erase::days_with_erased_copies, module)?)?;
    module.add_class::<store::PyStore>()?;
    module.add_class::<sources::PyPostgresSource>()?;
    module.add_class::<sample::PySample>()?;
    module.add_class::<querier::PyQuerier>()?;
    module.add_class::<querier::Pageviews>()?;
    Ok(())
}
