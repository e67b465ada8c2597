//! The engine over relations in memory: answers, types, parameters, limits, and what comes back from failures.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{
    Array, ArrayRef, AsArray, Date32Array, Int16Array, Int32Array, Int64Array, RecordBatch, StringArray,
};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Decimal128Type, Int32Type, Int64Type, SchemaRef};
use parquet_analytics::base::error::{Error, Kind, Result};
use parquet_analytics::base::runtime::Cancel;
use parquet_analytics::base::schema;
use parquet_analytics::engine::{self, Batches, Limits, Param, Params, Relation, Unit};

/// What a unit does besides yielding its batches.
#[derive(Clone, Copy, PartialEq)]
pub enum Trouble {
    None,
    Fails,
    Panics,
    OpenFails,
    OpenPanics,
    WrongColumns,
}

/// Page views in memory: units of batches.
pub struct Memory {
    pub units: Vec<Vec<RecordBatch>>,
    pub trouble: Trouble,
    pub batches_read: Arc<AtomicUsize>,
    pub projections: std::sync::Mutex<Vec<Vec<usize>>>,
}

impl Memory {
    pub fn new(units: Vec<Vec<RecordBatch>>) -> Self {
        Self {
            units,
            trouble: Trouble::None,
            batches_read: Arc::default(),
            projections: Default::default(),
        }
    }
}

impl Relation for Memory {
    fn schema(&self) -> SchemaRef {
        schema::pageviews()
    }

    fn open(&self, projection: &[usize]) -> Result<Vec<Unit>> {
        self.projections.lock().unwrap().push(projection.to_vec());
        let trouble = self.trouble;
        match trouble {
            Trouble::OpenFails => return Err(denied()),
            Trouble::OpenPanics => panic!("open went wrong"),
            _ => {}
        }
        let projection = if trouble == Trouble::WrongColumns {
            vec![schema::pageviews().index_of(schema::STATUS).unwrap()]
        } else {
            projection.to_vec()
        };
        let units = self.units.iter().map(|batches| {
            let batches: Vec<_> = batches
                .iter()
                .map(|batch| batch.project(&projection).unwrap())
                .collect();
            let read = Arc::clone(&self.batches_read);
            Box::new(move || {
                let batches = batches.into_iter().enumerate().map(move |(index, batch)| {
                    read.fetch_add(1, Ordering::SeqCst);
                    match (trouble, index) {
                        (Trouble::Fails, 1) => Err(denied()),
                        (Trouble::Panics, 1) => panic!("decoding went wrong"),
                        _ => Ok(batch),
                    }
                });
                Ok(Box::new(batches) as Batches)
            }) as Unit
        });
        Ok(units.collect())
    }
}

fn denied() -> Error {
    Error::Permission {
        key: "2024/01/01/x".into(),
        message: "s3:GetObject is not allowed on 2024/01/01/x".into(),
    }
}

/// Rows `from..to`: every third version is null, strings are short, long, empty and not ASCII.
pub fn rows(from: i64, to: i64) -> RecordBatch {
    let ids: Vec<i64> = (from..to).collect();
    let text = |id: &i64| match id % 5 {
        0 => String::new(),
        1 => "exactly12byt".to_owned(),
        2 => format!("/en/latest/a-rather-long-path-{}.html", id % 97),
        3 => "/fr/stable/été/页面.html".to_owned(),
        _ => format!("/{}", id % 1000),
    };
    let version = |id: &i64| (id % 3 != 0).then_some(*id as i32);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(ids.iter().copied())),
        Arc::new(Int32Array::from_iter_values(ids.iter().map(|id| (id % 100) as i32))),
        Arc::new(StringArray::from_iter_values(
            ids.iter().map(|id| format!("project-{}", id % 100)),
        )),
        Arc::new(Int32Array::from_iter(ids.iter().map(version))),
        Arc::new(StringArray::from_iter(
            ids.iter().map(|id| version(id).map(|v| format!("v{}", v % 7))),
        )),
        Arc::new(StringArray::from_iter_values(ids.iter().map(text))),
        Arc::new(StringArray::from_iter(
            ids.iter().map(|id| (id % 70 < 64).then(|| text(id))),
        )),
        Arc::new(Int32Array::from_iter_values(ids.iter().map(|id| (id % 10) as i32))),
        Arc::new(Date32Array::from_iter_values(
            ids.iter().map(|id| 19_000 + (id % 30) as i32),
        )),
        Arc::new(Int16Array::from_iter_values(
            ids.iter().map(|id| if id % 11 == 0 { 404 } else { 200 }),
        )),
    ];
    RecordBatch::try_new(schema::pageviews(), columns).unwrap()
}

/// Units of several batches whose arrays are slices with odd offsets.
pub fn memory(units: i64, batches: i64, size: i64) -> Memory {
    let unit = |unit: i64| {
        let batch = |batch: i64| {
            let from = (unit * batches + batch) * size;
            rows((from - 13).max(0), from + size + 5).slice((13).min(from) as usize, size as usize)
        };
        (0..batches).map(batch).collect()
    };
    Memory::new((0..units).map(unit).collect())
}

pub fn ask(relation: &Arc<Memory>, sql: &str) -> Result<RecordBatch> {
    ask_with(relation, sql, &Params::none(), &Limits::default())
}

pub fn ask_with(relation: &Arc<Memory>, sql: &str, params: &Params, limits: &Limits) -> Result<RecordBatch> {
    let answer = engine::query(Arc::clone(relation) as _, sql, params, limits, &Cancel::new())?;
    let schema = Arc::clone(&answer.schema);
    let batches = answer.collect()?;
    assert!(
        batches
            .iter()
            .all(|batch| batch.schema() == schema && batch.num_rows() > 0)
    );
    Ok(concat_batches(&schema, &batches).unwrap())
}

/// The message of a query that has to be refused.
pub fn refusal(relation: &Arc<Memory>, sql: &str) -> String {
    match ask(relation, sql) {
        Err(Error::Query { message, .. }) => message,
        Err(other) => panic!("{sql}: not a query error: {other:?}"),
        Ok(batch) => panic!("{sql}: answered {batch:?}"),
    }
}

fn int(batch: &RecordBatch) -> i64 {
    batch.column(0).as_primitive::<Int64Type>().value(0)
}

#[test]
fn every_value_of_every_column_arrives_unchanged() {
    let relation = Arc::new(memory(3, 4, 5_000));
    let answer = ask(&relation, "SELECT * FROM pageviews ORDER BY id").unwrap();
    let expected = rows(0, 60_000);
    assert_eq!(answer.num_rows(), 60_000);
    for (column, field) in expected.columns().iter().zip(schema::pageviews().fields()) {
        assert_eq!(answer.column_by_name(field.name()).unwrap(), column, "{}", field.name());
    }
}

#[test]
fn only_named_columns_are_read_and_counting_reads_none() {
    let relation = Arc::new(memory(2, 3, 3_000));
    assert_eq!(int(&ask(&relation, "SELECT count(*) FROM pageviews").unwrap()), 18_000);
    assert_eq!(
        int(&ask(
            &relation,
            "SELECT count(*) FROM Pageviews WHERE status = 404 AND path <> ''"
        )
        .unwrap()),
        1_309
    );
    let projections = relation.projections.lock().unwrap();
    let names: Vec<Vec<String>> = projections
        .iter()
        .map(|columns| {
            columns
                .iter()
                .map(|column| schema::pageviews().field(*column).name().clone())
                .collect()
        })
        .collect();
    assert!(names[0].len() <= 1, "{names:?}");
    assert_eq!(names[1].len(), 2, "{names:?}");
    assert!(names[1].contains(&"path".to_owned()) && names[1].contains(&"status".to_owned()));
}

#[test]
fn joins_aliases_and_common_tables_work() {
    let relation = Arc::new(memory(2, 2, 1_000));
    let joined = "SELECT count(*) FROM pageviews a JOIN pageviews b USING (id) WHERE a.path = b.path";
    assert_eq!(int(&ask(&relation, joined).unwrap()), 4_000);
    let nested = "WITH t AS (FROM pageviews) SELECT count(*) FROM t WHERE id IN (SELECT id FROM pageviews LIMIT 7)";
    assert_eq!(int(&ask(&relation, nested).unwrap()), 7);
    assert_eq!(
        int(&ask(&relation, "SELECT max(pageviews.id) FROM main.pageviews;").unwrap()),
        3_999
    );
    let described = ask(&relation, "DESCRIBE pageviews").unwrap();
    assert_eq!(described.num_rows(), 10);
}

#[test]
fn empty_relations_and_empty_batches_are_answered() {
    for relation in [
        Memory::new(vec![]),
        Memory::new(vec![vec![]]),
        Memory::new(vec![vec![rows(0, 0), rows(0, 0)]]),
    ] {
        let relation = Arc::new(relation);
        let answer = ask(&relation, "SELECT path, view_count FROM pageviews").unwrap();
        assert_eq!((answer.num_rows(), answer.num_columns()), (0, 2));
        assert_eq!(int(&ask(&relation, "SELECT count(*) FROM pageviews").unwrap()), 0);
    }
    let gaps = Arc::new(Memory::new(vec![vec![
        rows(0, 0),
        rows(0, 3),
        rows(0, 0),
        rows(3, 5),
        rows(0, 0),
    ]]));
    assert_eq!(int(&ask(&gaps, "SELECT count(*) FROM pageviews").unwrap()), 5);
}

#[test]
fn result_types_are_plain_arrow() {
    let relation = Arc::new(memory(1, 1, 10));
    let answer = ask(
        &relation,
        "SELECT sum(view_count) s, any_value(path) p, max(date) d, now() n FROM pageviews",
    )
    .unwrap();
    let types: Vec<_> = answer
        .schema()
        .fields()
        .iter()
        .map(|field| field.data_type().clone())
        .collect();
    assert_eq!(
        types[..3],
        [DataType::Decimal128(38, 0), DataType::Utf8, DataType::Date32]
    );
    assert_eq!(answer.column(0).as_primitive::<Decimal128Type>().value(0), 45);
    assert!(
        matches!(&types[3], DataType::Timestamp(_, Some(zone)) if zone.as_ref() == "UTC"),
        "{types:?}"
    );
    let nested = ask(
        &relation,
        "SELECT [1, 2] l, {'a': 1} s, MAP {'k': 1} m, 1.5::DECIMAL(4, 1) d, NULL n, 'x'::BLOB b",
    );
    assert_eq!(nested.unwrap().num_rows(), 1);
    // The variant type has no form in Arrow: an error, not a crash.
    assert!(ask(&relation, "SELECT 1::VARIANT v").is_err());
    assert!(ask(&relation, "SELECT [1::VARIANT] v").is_err());
}

#[test]
fn values_bind_by_position_and_by_name() {
    let relation = Arc::new(memory(1, 1, 100));
    let all = vec![
        Param::Null,
        Param::Bool(true),
        Param::Int(i64::MIN),
        Param::Float(0.5),
        Param::Text("'; DROP TABLE pageviews; -- é".into()),
        Param::Date(19_001),
        Param::Blob(vec![0, 255]),
    ];
    let answer = ask_with(&relation, "SELECT ?, ?, ?, ?, ?, ?, ?", &all.into(), &Limits::default()).unwrap();
    assert!(answer.column(0).is_null(0) || answer.column(0).data_type() == &DataType::Null);
    assert!(answer.column(1).as_boolean().value(0));
    assert_eq!(answer.column(2).as_primitive::<Int64Type>().value(0), i64::MIN);
    assert_eq!(
        answer.column(4).as_string::<i32>().value(0),
        "'; DROP TABLE pageviews; -- é"
    );
    assert_eq!(answer.column(5).data_type(), &DataType::Date32);
    assert_eq!(answer.column(6).as_binary::<i32>().value(0), [0, 255]);

    let sql = "SELECT count(*) FROM pageviews WHERE date = $1 AND id < $2 AND id < $2 LIMIT 1";
    let values = Params::from(vec![Param::Date(19_001), Param::Int(50)]);
    assert_eq!(int(&ask_with(&relation, sql, &values, &Limits::default()).unwrap()), 2);

    let sql = "SELECT count(*) FROM pageviews WHERE project_slug = $slug AND id >= $First";
    let named = |pairs: &[(&str, Param)]| {
        Params::Named(
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect::<BTreeMap<_, _>>(),
        )
    };
    let values = named(&[("slug", Param::Text("project-7".into())), ("first", Param::Int(0))]);
    assert_eq!(int(&ask_with(&relation, sql, &values, &Limits::default()).unwrap()), 1);

    let wrong = [
        (
            "SELECT ?, ?",
            Params::from(vec![Param::Int(1)]),
            "needs 2 parameter values, but 1 were given",
        ),
        (
            "SELECT 1",
            vec![Param::Int(1)].into(),
            "needs 0 parameter values, but 1 were given",
        ),
        (
            "SELECT $1, $3",
            vec![Param::Int(1), Param::Int(2), Param::Int(3)].into(),
            "numbered from $1 without a gap",
        ),
        (
            "SELECT $a",
            vec![Param::Int(1)].into(),
            "parameter $a; give values by name",
        ),
        ("SELECT $a", named(&[]), "needs a value for the parameter $a"),
        (
            "SELECT $a",
            named(&[("a", Param::Int(1)), ("b", Param::Int(2))]),
            "no parameter $b; it has $a",
        ),
        (
            "SELECT 1",
            named(&[("b", Param::Int(2))]),
            "no parameter $b; it has none",
        ),
    ];
    for (sql, params, message) in wrong {
        let error = ask_with(&relation, sql, &params, &Limits::default()).unwrap_err();
        assert!(
            matches!(&error, Error::Query { .. }) && error.to_string().contains(message),
            "{sql}: {error}"
        );
    }
    assert_eq!(
        relation.projections.lock().unwrap().len(),
        2,
        "nothing was read for a wrong number of values"
    );
}

#[test]
fn duckdb_says_which_column_is_wrong() {
    let relation = Arc::new(memory(1, 1, 10));
    let message = refusal(&relation, "SELECT pth FROM pageviews");
    assert!(message.contains("pth") && message.contains("path"), "{message}");
    assert!(!message.contains("Stack Trace"), "{message}");
    assert!(refusal(&relation, "SELECT FRM 1 2").contains("syntax error"));
    assert!(refusal(&relation, "SELECT 1\0").contains("NUL"));
    assert!(refusal(&relation, "SELECT 'x'::INT FROM pageviews").contains("Could not convert"));
}

#[test]
fn errors_of_the_relation_come_back_as_themselves() {
    let statements = [
        "SELECT * FROM pageviews",
        "SELECT path, sum(view_count) FROM pageviews GROUP BY ALL ORDER BY ALL",
    ];
    for sql in statements {
        for trouble in [Trouble::Fails, Trouble::OpenFails] {
            let relation = Arc::new(Memory {
                trouble,
                ..memory(3, 3, 3_000)
            });
            let error = ask(&relation, sql).unwrap_err();
            assert!(
                matches!(&error, Error::Permission { key, .. } if key == "2024/01/01/x"),
                "{error:?}"
            );
        }
        for trouble in [Trouble::Panics, Trouble::OpenPanics, Trouble::WrongColumns] {
            let relation = Arc::new(Memory {
                trouble,
                ..memory(3, 3, 3_000)
            });
            assert_eq!(ask(&relation, sql).unwrap_err().kind(), Kind::Bug);
        }
    }
    assert_eq!(
        int(&ask(&Arc::new(memory(1, 1, 10)), "SELECT count(*) FROM pageviews").unwrap()),
        10
    );
}

#[test]
fn rows_stream_and_dropping_them_stops_the_scan() {
    let relation = Arc::new(memory(4, 200, 2_048));
    let mut answer = engine::query(
        Arc::clone(&relation) as _,
        "SELECT * FROM pageviews",
        &Params::none(),
        &Limits::default(),
        &Cancel::new(),
    )
    .unwrap();
    assert!(answer.batches.next().unwrap().unwrap().num_rows() >= 2_048);
    drop(answer);
    let read = relation.batches_read.load(Ordering::SeqCst);
    assert!(read < 400, "{read} of 800 batches were read for the first one");
    assert_eq!(Arc::strong_count(&relation), 1, "the relation is released");
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(relation.batches_read.load(Ordering::SeqCst), read, "nothing reads on");
}

#[test]
fn everything_is_released_at_the_end() {
    let relation = Arc::new(memory(2, 2, 1_000));
    ask(&relation, "SELECT path, count(*) FROM pageviews GROUP BY ALL").unwrap();
    ask(&relation, "SELECT nonsense FROM pageviews").unwrap_err();
    assert_eq!(Arc::strong_count(&relation), 1);
}

const HEAVY: [&str; 3] = [
    "SELECT count(*) FROM pageviews a, pageviews b, pageviews c WHERE a.path || b.path || c.path = 'x'",
    "SELECT count(*) FROM range(1000000000000) t(i) WHERE hash(i) = 1",
    "SELECT a.id FROM pageviews a, pageviews b, pageviews c WHERE a.id + b.id = -c.id - 1 ORDER BY ALL",
];

#[test]
fn a_timeout_stops_heavy_work_within_a_second() {
    let relation = Arc::new(memory(4, 2, 5_000));
    let limits = Limits {
        timeout: Some(Duration::from_millis(300)),
        ..Limits::default()
    };
    for sql in HEAVY {
        let began = Instant::now();
        let error = ask_with(&relation, sql, &Params::none(), &limits).unwrap_err();
        assert!(
            matches!(&error, Error::Query { message, .. } if message.contains("timeout of 0.3 s")),
            "{error:?}"
        );
        assert!(
            began.elapsed() < Duration::from_millis(1_300),
            "{sql}: {:?}",
            began.elapsed()
        );
    }
    assert_eq!(int(&ask(&relation, "SELECT count(*) FROM pageviews").unwrap()), 40_000);
}

#[test]
fn a_request_to_stop_ends_heavy_work_within_a_second() {
    let relation = Arc::new(memory(4, 2, 5_000));
    for sql in HEAVY {
        let cancel = Cancel::new();
        let request = cancel.clone();
        let stopper = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            request.cancel();
            Instant::now()
        });
        let outcome = engine::query(
            Arc::clone(&relation) as _,
            sql,
            &Params::none(),
            &Limits::default(),
            &cancel,
        )
        .and_then(engine::Answer::collect);
        let ended = Instant::now();
        assert!(matches!(outcome, Err(Error::Interrupted)), "{outcome:?}");
        assert!(ended - stopper.join().unwrap() < Duration::from_secs(1));
    }
    let cancelled = Cancel::new();
    cancelled.cancel();
    let outcome = engine::query(relation, "SELECT 1", &Params::none(), &Limits::default(), &cancelled);
    assert!(matches!(outcome.err(), Some(Error::Interrupted)));
}

#[test]
fn time_that_the_caller_takes_is_not_counted() {
    let relation = Arc::new(memory(4, 40, 2_048));
    let limits = Limits {
        timeout: Some(Duration::from_millis(400)),
        ..Limits::default()
    };
    let answer = engine::query(
        relation,
        "SELECT * FROM pageviews",
        &Params::none(),
        &limits,
        &Cancel::new(),
    )
    .unwrap();
    let mut total = 0;
    for batch in answer.batches {
        total += batch.unwrap().num_rows();
        std::thread::sleep(Duration::from_millis(150));
    }
    assert_eq!(total, 4 * 40 * 2_048);
}

#[test]
fn too_much_memory_is_an_error_that_says_what_to_do() {
    let relation = Arc::new(memory(4, 10, 20_000));
    let limits = Limits {
        memory_bytes: 16 << 20,
        ..Limits::default()
    };
    let sql = "SELECT a.id, a.path, b.id, b.path FROM pageviews a, pageviews b ORDER BY a.path || b.id LIMIT 30000000";
    let error = ask_with(&relation, sql, &Params::none(), &limits).unwrap_err();
    assert!(
        matches!(&error, Error::Query { message, .. } if message.contains("ask for fewer days")),
        "{error:?}"
    );
    let small = "SELECT count(*) FROM pageviews";
    assert_eq!(
        int(&ask_with(&relation, small, &Params::none(), &limits).unwrap()),
        800_000
    );
}

#[test]
fn statements_run_beside_each_other() {
    let workers: Vec<_> = (1..=6)
        .map(|n| {
            std::thread::spawn(move || {
                let relation = Arc::new(memory(2, 2, n * 1_000));
                for _ in 0..10 {
                    assert_eq!(
                        int(&ask(&relation, "SELECT count(path) FROM pageviews").unwrap()),
                        4 * n * 1_000
                    );
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
}

#[test]
fn views_count_as_the_rows_say() {
    let relation = Arc::new(memory(2, 3, 2_500));
    let sql = "SELECT path, sum(view_count)::BIGINT FROM pageviews WHERE status = 200 GROUP BY path ORDER BY path";
    let answer = ask(&relation, sql).unwrap();
    let mut expected: BTreeMap<String, i64> = BTreeMap::new();
    for batch in relation.units.iter().flatten() {
        let status = batch.column(9).as_primitive::<arrow::datatypes::Int16Type>();
        let (paths, views) = (
            batch.column(5).as_string::<i32>(),
            batch.column(7).as_primitive::<Int32Type>(),
        );
        for row in (0..batch.num_rows()).filter(|row| status.value(*row) == 200) {
            *expected.entry(paths.value(row).to_owned()).or_default() += i64::from(views.value(row));
        }
    }
    let counted = answer
        .column(0)
        .as_string::<i32>()
        .iter()
        .map(|path| path.unwrap().to_owned());
    let counted: BTreeMap<_, _> = counted
        .zip(answer.column(1).as_primitive::<Int64Type>().values().iter().copied())
        .collect();
    assert!(expected.len() > 100);
    assert_eq!(counted, expected);
}
