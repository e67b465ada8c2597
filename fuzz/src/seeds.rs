//! What fuzzing begins with: valid COPY streams and page-view files of many layouts.

use std::fs;
use std::path::Path;

use crate::files::{Layout, write};
use crate::support::{Row, batch_of, random_rows};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterVersion};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Writes the seeds into the folder that `SEEDS` names and ends the process, if it names one.
pub fn write_on_demand(seeds: fn() -> Vec<Vec<u8>>) {
    let Some(folder) = std::env::var_os("SEEDS") else {
        return;
    };
    let folder = Path::new(&folder);
    fs::create_dir_all(folder).unwrap();
    for (number, seed) in seeds().iter().enumerate() {
        fs::write(folder.join(format!("seed-{number:02}")), seed).unwrap();
    }
    std::process::exit(0);
}

fn rows(seed: u64, count: usize) -> Vec<Row> {
    let mut rows = random_rows(&mut ChaCha8Rng::seed_from_u64(seed), count);
    rows.sort();
    rows
}

/// For every set of columns a stream, behind the byte that says which.
pub fn copy_streams() -> Vec<Vec<u8>> {
    (0..8_u8)
        .map(|columns| {
            let mut stream = vec![columns | 7 << 4];
            stream.extend(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
            for row in rows(columns.into(), 3 + usize::from(columns)) {
                let version = row.version_id.map(|id| id.to_be_bytes().to_vec());
                let fields = [
                    (true, Some(row.id.to_be_bytes().to_vec())),
                    (true, Some(row.project_id.to_be_bytes().to_vec())),
                    (columns & 1 != 0, version),
                    (true, Some(row.path.into_bytes())),
                    (columns & 2 != 0, row.full_path.map(String::into_bytes)),
                    (true, Some(row.view_count.to_be_bytes().to_vec())),
                    (columns & 4 != 0, Some(row.status.to_be_bytes().to_vec())),
                ];
                let fields: Vec<_> = fields
                    .into_iter()
                    .filter_map(|(there, field)| there.then_some(field))
                    .collect();
                stream.extend((fields.len() as i16).to_be_bytes());
                for field in fields {
                    let length = field.as_ref().map_or(-1, |field| field.len() as i32);
                    stream.extend(length.to_be_bytes());
                    stream.extend(field.unwrap_or_default());
                }
            }
            stream.extend((-1_i16).to_be_bytes());
            stream
        })
        .collect()
}

/// Small files in each compression, page version and set of indexes.
pub fn files() -> Vec<Vec<u8>> {
    let zstd = Compression::ZSTD(ZstdLevel::default());
    let mut files = Vec::new();
    for compression in [Compression::UNCOMPRESSED, zstd, Compression::SNAPPY] {
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            for (indexes, count) in [(false, 12), (true, 12), (true, 60)] {
                let layout = Layout {
                    group_rows: 40,
                    page_rows: 8,
                    statistics: if indexes {
                        EnabledStatistics::Chunk
                    } else {
                        EnabledStatistics::None
                    },
                    page_statistics: indexes,
                    offset_index: indexes,
                    ..Layout::default()
                };
                let properties = layout.properties().into_builder();
                let properties = properties
                    .set_compression(compression)
                    .set_writer_version(version)
                    .build();
                files.push(write([batch_of(&rows(count as u64, count))], properties).to_vec());
            }
        }
    }
    files
}
