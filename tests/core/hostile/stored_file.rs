use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{RecordBatch, new_empty_array};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use bytes::Bytes;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet_analytics::base::schema;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::alone;
use super::ask::Stored;
use super::forge::{Forged, Page, varint, zeros, zigzag};
use super::memory::peak_of;
use crate::files::{Layout, quiet_parquet_panics, store, write};
use crate::support::{batch_of, random_rows};

/// No damage to a file of a few kilobytes may cost more.
const MOST_MEMORY: usize = 16 << 20;
const MOST_TIME: Duration = Duration::from_secs(5);

const ROWS: usize = 60;
const SIZES: [i64; 12] = [
    -1,
    0,
    1,
    59,
    61,
    1 << 20,
    i32::MAX as i64,
    i32::MAX as i64 + 1,
    1 << 40,
    i64::MAX - 1,
    i64::MAX,
    i64::MIN,
];

fn stored() -> Stored {
    Stored { store: store() }
}

/// 60 rows in two row groups with pages of 8 rows, or in one without a page index.
fn small(page_index: bool, compression: Compression) -> Bytes {
    let layout = Layout {
        group_rows: if page_index { 40 } else { 1000 },
        page_rows: if page_index { 8 } else { 1000 },
        page_statistics: page_index,
        offset_index: page_index,
        ..Layout::default()
    };
    let mut rows = random_rows(&mut ChaCha8Rng::seed_from_u64(11), ROWS);
    rows.sort();
    let properties = layout.properties().into_builder().set_compression(compression).build();
    write([batch_of(&rows)], properties)
}

fn zstd() -> Compression {
    Compression::ZSTD(ZstdLevel::default())
}

/// What became of many files.
#[derive(Debug, Default)]
struct Tally {
    read: usize,
    refused: usize,
    memory: usize,
    time: Duration,
}

impl Tally {
    /// Asks a file everything; `what` says how it was damaged.
    fn ask(&mut self, stored: &Stored, bytes: &Bytes, what: impl std::fmt::Display) {
        let started = Instant::now();
        let (answer, memory) = peak_of(|| stored.ask(bytes));
        let time = started.elapsed();
        assert!(memory <= MOST_MEMORY, "{what}: {memory} bytes of memory, {answer:?}");
        assert!(time <= MOST_TIME, "{what}: {time:?}, {answer:?}");
        if answer.is_ok() {
            self.read += 1;
        } else {
            self.refused += 1;
        }
        (self.memory, self.time) = (self.memory.max(memory), self.time.max(time));
    }

    fn report(&self, what: &str) {
        println!("{what}: {self:?}");
    }
}

#[test]
fn a_file_that_is_cut_off_at_any_byte_is_refused() {
    let stored = stored();
    let file = small(true, zstd());
    assert_eq!(stored.ask(&file).unwrap(), ROWS as u64);
    for length in 0..file.len() {
        assert!(
            stored.ask(&file.slice(..length)).is_err(),
            "{length} of {} bytes",
            file.len()
        );
    }
}

/// Flips bits `bits` of every byte, in files with and without page index, compressed and not.
fn flip(bits: impl Fn(usize) -> std::ops::Range<usize>) -> Tally {
    let stored = stored();
    let mut tally = Tally::default();
    for (page_index, compression) in [(true, zstd()), (false, zstd()), (false, Compression::UNCOMPRESSED)] {
        let file = small(page_index, compression);
        for at in 0..file.len() {
            for bit in bits(at) {
                let mut bytes = file.to_vec();
                bytes[at] ^= 1 << bit;
                tally.ask(
                    &stored,
                    &bytes.into(),
                    format_args!("bit {bit} of byte {at}, {page_index} {compression}"),
                );
            }
        }
    }
    assert!(tally.read > 100 && tally.refused > 1000, "{tally:?}");
    tally
}

#[test]
fn a_file_with_one_bit_flipped_is_answered_or_refused_within_bounds() {
    if alone("stored_file::a_file_with_one_bit_flipped_is_answered_or_refused_within_bounds") {
        flip(|at| at * 5 % 8..at * 5 % 8 + 1).report("one bit of each byte flipped");
    }
}

#[test]
#[ignore = "takes long"]
fn a_file_with_any_bit_flipped_is_answered_or_refused_within_bounds() {
    if alone("stored_file::a_file_with_any_bit_flipped_is_answered_or_refused_within_bounds") {
        flip(|_| 0..8).report("each bit flipped");
    }
}

#[test]
fn any_bytes_before_a_tail_are_refused() {
    quiet_parquet_panics();
    let stored = stored();
    let bytes = (prop::collection::vec(any::<u8>(), 0..400), prop::option::of(0_u32..500));
    let mut runner = TestRunner::new(Config::with_cases(2000));
    let result = runner.run(&bytes, |(mut bytes, length)| {
        let length = length.unwrap_or(bytes.len() as u32);
        bytes.extend(length.to_le_bytes());
        bytes.extend(b"PAR1");
        prop_assert!(stored.ask(&bytes.into()).is_err());
        Ok(())
    });
    result.unwrap();
}

#[test]
fn a_list_of_billions_that_takes_no_bytes_is_refused_at_once() {
    // A schema element whose logical type is a decimal: by its wire type a number of seven bytes, which read as
    // a decimal's fields are a list of 2^31 - 1 booleans.
    let decimal = [0xac, 0x55, 0xd9, 0xf1, 0xff, 0xff, 0xff, 0xff, 0x07, 0, 0];
    let footer = [&[0x15, 2, 0x19, 0x1c][..], &decimal, &[0]].concat();
    let file = [b"PAR1", &footer[..], &(footer.len() as u32).to_le_bytes(), b"PAR1"].concat();
    let started = Instant::now();
    assert!(stored().ask(&file.into()).is_err());
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[test]
fn any_other_schema_is_refused() {
    let types = prop::sample::select(vec![
        DataType::Boolean,
        DataType::Int32,
        DataType::Int64,
        DataType::UInt64,
        DataType::Float64,
        DataType::Utf8,
        DataType::Binary,
        DataType::Date32,
        DataType::Timestamp(TimeUnit::Microsecond, None),
        DataType::Decimal128(38, 10),
        DataType::FixedSizeBinary(1 << 20),
        DataType::new_list(DataType::new_list(DataType::Utf8, true), true),
        DataType::Struct(vec![Field::new(schema::ID, DataType::Int64, false)].into()),
    ]);
    let names: Vec<String> = schema::pageviews()
        .fields()
        .iter()
        .map(|field| field.name().clone())
        .collect();
    let other = (prop::sample::select(names), types, any::<bool>());
    let change = (0..10_usize, other, 0..3_u8);
    let stored = stored();
    let mut runner = TestRunner::new(Config::with_cases(500));
    let result = runner.run(&prop::collection::vec(change, 1..12), |changes| {
        let mut fields: Vec<Field> = schema::pageviews()
            .fields()
            .iter()
            .map(|f| f.as_ref().clone())
            .collect();
        for (at, (name, data_type, nullable), how) in changes {
            let field = Field::new(name, data_type, nullable);
            match how {
                _ if fields.is_empty() => fields.push(field),
                0 => fields.insert(at % fields.len(), field),
                1 => drop(fields.remove(at % fields.len())),
                _ => {
                    let at = at % fields.len();
                    fields[at] = field;
                }
            }
        }
        // Changes may undo each other, or leave only a column in which no value may be missing, which does no harm; and no
        // file can have no column.
        let ours = schema::pageviews();
        let harmless = fields.len() == ours.fields().len()
            && fields.iter().zip(ours.fields()).all(|(given, ours)| {
                (given.name(), given.data_type()) == (ours.name(), ours.data_type())
                    && (ours.is_nullable() || !given.is_nullable())
            });
        prop_assume!(!fields.is_empty() && !harmless);
        let columns = fields.iter().map(|field| new_empty_array(field.data_type())).collect();
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
        let answer = stored.ask(&write([batch], Layout::default().properties()));
        prop_assert!(answer.is_err(), "{:?}", answer);
        Ok(())
    });
    result.unwrap();
}

#[test]
fn absurd_numbers_in_a_footer_are_answered_or_refused_within_bounds() {
    if !alone("stored_file::absurd_numbers_in_a_footer_are_answered_or_refused_within_bounds") {
        return;
    }
    type Change = fn(ColumnChunkMetaData, i64) -> ColumnChunkMetaData;
    let changes: [(&str, Change); 9] = [
        ("values", |c, n| c.into_builder().set_num_values(n).build().unwrap()),
        ("compressed size", |c, n| {
            c.into_builder().set_total_compressed_size(n).build().unwrap()
        }),
        ("uncompressed size", |c, n| {
            c.into_builder().set_total_uncompressed_size(n).build().unwrap()
        }),
        ("data page", |c, n| {
            c.into_builder().set_data_page_offset(n).build().unwrap()
        }),
        ("dictionary", |c, n| {
            c.into_builder().set_dictionary_page_offset(Some(n)).build().unwrap()
        }),
        ("index page", |c, n| {
            c.into_builder().set_index_page_offset(Some(n)).build().unwrap()
        }),
        ("offset index", |c, n| {
            c.into_builder().set_offset_index_offset(Some(n)).build().unwrap()
        }),
        ("offset index length", |c, n| {
            c.into_builder()
                .set_offset_index_length(Some(n as i32))
                .build()
                .unwrap()
        }),
        ("column index length", |c, n| {
            c.into_builder()
                .set_column_index_length(Some(n as i32))
                .build()
                .unwrap()
        }),
    ];
    let (stored, mut tally) = (stored(), Tally::default());
    for page_index in [true, false] {
        let file = small(page_index, zstd());
        for number in SIZES {
            // What forges the file adds the row groups up.
            let rows = number.min(i64::MAX - 1_000);
            let forged = Forged::new(&file).group(0, |g| g.into_builder().set_num_rows(rows).build().unwrap());
            tally.ask(&stored, &forged.file(), format_args!("{number} rows"));
            for column in 0..10 {
                for (what, change) in changes {
                    let forged = Forged::new(&file).chunk(column, |chunk| change(chunk, number));
                    tally.ask(
                        &stored,
                        &forged.file(),
                        format_args!("{what} {number} in column {column}"),
                    );
                }
            }
        }
    }
    assert!(tally.read > 10 && tally.refused > 1000, "{tally:?}");
    tally.report("absurd footers");
}

/// The head of a DELTA_BINARY_PACKED run, and what follows.
fn delta(values: u64, rest: &[u8]) -> Vec<u8> {
    [varint(128), varint(4), varint(values), zigzag(0), rest.to_vec()].concat()
}

const PLAIN: i64 = 0;
const DELTA_BINARY_PACKED: i64 = 5;
const DELTA_LENGTH_BYTE_ARRAY: i64 = 6;
const DELTA_BYTE_ARRAY: i64 = 7;
const RLE_DICTIONARY: i64 = 8;

#[test]
fn absurd_numbers_in_pages_are_refused_within_bounds() {
    if !alone("stored_file::absurd_numbers_in_pages_are_refused_within_bounds") {
        return;
    }
    let (stored, mut tally) = (stored(), Tally::default());
    let plain = small(false, Compression::UNCOMPRESSED);
    let compressed = small(false, zstd());
    let [id, project_id, path] =
        [schema::ID, schema::PROJECT_ID, schema::PATH].map(|name| schema::pageviews().index_of(name).unwrap());
    let page = |encoding: i64, values: i64, body: &[u8]| {
        Page {
            dictionary: false,
            uncompressed: body.len() as i64,
            values,
            encoding,
            body,
        }
        .bytes()
    };
    for number in [61, 1 << 20, i32::MAX as u64, 1 << 33, 1 << 40, 1 << 62, u64::MAX] {
        // More values than the row group has rows, in the head of the encoding.
        for (column, encoding) in [
            (id, DELTA_BINARY_PACKED),
            (path, DELTA_BYTE_ARRAY),
            (path, DELTA_LENGTH_BYTE_ARRAY),
        ] {
            let data = page(encoding, ROWS as i64, &delta(number, &[0; 40]));
            let file = Forged::new(&plain).pages(column, None, &data).file();
            tally.ask(&stored, &file, format_args!("{number} values, encoding {encoding}"));
            // A block of so many values, so many miniblocks.
            for (block, parts) in [(number, 4), (128, number), (number, number)] {
                let head = [varint(block), varint(parts), varint(60), zigzag(0), vec![0; 40]].concat();
                let file = Forged::new(&plain)
                    .pages(column, None, &page(encoding, ROWS as i64, &head))
                    .file();
                tally.ask(&stored, &file, format_args!("a block of {block} in {parts} parts"));
            }
        }
        // The second run of lengths.
        let prefixes = delta(1, &[]);
        let data = page(
            DELTA_BYTE_ARRAY,
            ROWS as i64,
            &[prefixes, delta(number, &[0; 40])].concat(),
        );
        tally.ask(
            &stored,
            &Forged::new(&plain).pages(path, None, &data).file(),
            format_args!("{number} suffixes"),
        );
        // In the page's header.
        let values = number as i64;
        for encoding in [PLAIN, DELTA_BINARY_PACKED, DELTA_BYTE_ARRAY, RLE_DICTIONARY, 17, -1] {
            for column in [id, path] {
                let file = Forged::new(&plain)
                    .pages(column, None, &page(encoding, values, &[0; 64]))
                    .file();
                tally.ask(
                    &stored,
                    &file,
                    format_args!("a page of {values} values, encoding {encoding}"),
                );
            }
        }
        for column in [project_id, path] {
            let body = [0; 64];
            let dictionary = Page {
                dictionary: true,
                uncompressed: 64,
                values,
                encoding: PLAIN,
                body: &body,
            }
            .bytes();
            let data = page(RLE_DICTIONARY, ROWS as i64, &[8, 120, 0]);
            let file = Forged::new(&plain).pages(column, Some(&dictionary), &data).file();
            tally.ask(&stored, &file, format_args!("a dictionary of {values} values"));
        }
        // A size after decompression that nothing can have.
        let body = zeros(1000);
        for dictionary in [false, true] {
            let page = Page {
                dictionary,
                uncompressed: values,
                values: ROWS as i64,
                encoding: PLAIN,
                body: &body,
            };
            let file = Forged::new(&compressed).pages(path, None, &page.bytes()).file();
            tally.ask(&stored, &file, format_args!("a page of {values} bytes"));
        }
    }
    assert!(tally.refused > 100, "{tally:?}");
    tally.report("absurd pages");
}

/// DELTA_BYTE_ARRAY: `values` texts of `length` bytes each that take these bytes once.
fn repeated(values: u64, length: i32) -> Vec<u8> {
    assert!((34..=60).contains(&values), "two parts of a block");
    let part = |numbers: [i32; 32]| {
        numbers
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let (mut jump, mut stay) = ([0; 32], [length; 32]);
    jump[0] = length;
    let head = |first: i32| [varint(128), varint(4), varint(values), zigzag(first.into())].concat();
    // None shared, then all; all of its own, then none.
    let shared = [head(0), zigzag(0), vec![32, 0, 0, 0], part(jump)].concat();
    let after = part(stay);
    stay[0] = 0;
    let own = [
        head(length),
        zigzag(-i64::from(length)),
        vec![32, 32, 0, 0],
        part(stay),
        after,
    ]
    .concat();
    [shared, own, vec![b'/'; length as usize]].concat()
}

#[test]
fn a_few_bytes_never_become_very_many() {
    if !alone("stored_file::a_few_bytes_never_become_very_many") {
        return;
    }
    const MOST: usize = 256 << 20;
    let stored = stored();
    let path = schema::pageviews().index_of(schema::PATH).unwrap();
    let (plain, compressed) = (small(false, Compression::UNCOMPRESSED), small(false, zstd()));
    let values = ROWS as i64;
    let mut outcomes = Vec::new();
    let mut ask = |what: &str, file: Bytes| {
        let (answer, memory) = peak_of(|| stored.ask(&file));
        assert!(memory < MOST, "{what}: {memory} bytes of memory, {answer:?}");
        println!(
            "{what}: {:?}, {memory} bytes of memory for {}",
            answer.is_ok(),
            file.len()
        );
        outcomes.push(answer.is_ok());
    };
    let told = |forged: Forged, bytes: Option<i64>| {
        let chunk = |chunk: ColumnChunkMetaData| {
            chunk
                .into_builder()
                .set_unencoded_byte_array_data_bytes(bytes)
                .build()
                .unwrap()
        };
        forged.chunk(path, chunk).file()
    };

    for bytes in [1 << 20, 1 << 30, (1 << 31) - 1] {
        let body = zeros(bytes);
        let page = Page {
            dictionary: false,
            uncompressed: bytes as i64,
            values,
            encoding: PLAIN,
            body: &body,
        };
        ask(
            "zeros",
            Forged::new(&compressed).pages(path, None, &page.bytes()).file(),
        );
    }

    let length = 3 << 20;
    let body = repeated(ROWS as u64, length);
    let uncompressed = body.len() as i64;
    let page = Page {
        dictionary: false,
        uncompressed,
        values,
        encoding: DELTA_BYTE_ARRAY,
        body: &body,
    }
    .bytes();
    let forged = || Forged::new(&plain).pages(path, None, &page);
    ask(
        "texts that share all, as the footer says",
        told(forged(), Some(values * i64::from(length))),
    );
    ask(
        "texts that share all, and the footer says less",
        told(forged(), Some(1000)),
    );
    ask(
        "texts that share all, and the footer says nothing",
        told(forged(), None),
    );

    let text = vec![b'/'; length as usize];
    let body = [&length.to_le_bytes()[..], &text].concat();
    let uncompressed = body.len() as i64;
    let dictionary = Page {
        dictionary: true,
        uncompressed,
        values: 1,
        encoding: PLAIN,
        body: &body,
    }
    .bytes();
    // A run of the first entry.
    let body = [&[1][..], &varint(ROWS as u64 * 2), &[0]].concat();
    let page = Page {
        dictionary: false,
        uncompressed: 4,
        values,
        encoding: RLE_DICTIONARY,
        body: &body,
    }
    .bytes();
    ask(
        "a long text in a dictionary",
        Forged::new(&plain).pages(path, Some(&dictionary), &page).file(),
    );
    assert_eq!(outcomes, [true, false, false, true, false, false, false]);
}
