//! Files that lie: a valid file whose footer says something else, or whose column chunk holds other pages.

use bytes::Bytes;
use parquet::file::metadata::{
    ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader, ParquetMetaDataWriter, RowGroupMetaData,
};

/// A file with `body` before its footer, and the metadata that the footer is made of.
pub struct Forged {
    body: Vec<u8>,
    metadata: ParquetMetaData,
}

impl Forged {
    pub fn new(file: &Bytes) -> Self {
        let metadata = ParquetMetaDataReader::new().parse_and_finish(file).unwrap();
        let length = u32::from_le_bytes(file[file.len() - 8..file.len() - 4].try_into().unwrap()) as usize;
        Self {
            body: file[..file.len() - 8 - length].to_vec(),
            metadata,
        }
    }

    /// The file with a row group changed.
    pub fn group(mut self, number: usize, change: impl FnOnce(RowGroupMetaData) -> RowGroupMetaData) -> Self {
        let mut groups = self.metadata.row_groups().to_vec();
        let group = groups.remove(number);
        groups.insert(number, change(group));
        self.metadata = self.metadata.into_builder().set_row_groups(groups).build();
        self
    }

    /// The file with a column chunk of its first row group changed.
    pub fn chunk(self, column: usize, change: impl FnOnce(ColumnChunkMetaData) -> ColumnChunkMetaData) -> Self {
        self.group(0, |group| {
            let mut chunks = group.columns().to_vec();
            let chunk = chunks.remove(column);
            chunks.insert(column, change(chunk));
            group.into_builder().set_column_metadata(chunks).build().unwrap()
        })
    }

    /// The file with other bytes as the pages of a column chunk of its first row group.
    pub fn pages(mut self, column: usize, dictionary: Option<&[u8]>, data: &[u8]) -> Self {
        let start = self.body.len() as i64;
        let dictionary = dictionary.unwrap_or_default();
        self.body.extend_from_slice(dictionary);
        self.body.extend_from_slice(data);
        self.chunk(column, |chunk| {
            let chunk = chunk.into_builder();
            chunk
                .set_dictionary_page_offset((!dictionary.is_empty()).then_some(start))
                .set_data_page_offset(start + dictionary.len() as i64)
                .set_total_compressed_size((dictionary.len() + data.len()) as i64)
                .set_total_uncompressed_size(i64::MAX)
                .build()
                .unwrap()
        })
    }

    pub fn file(self) -> Bytes {
        let mut file = self.body;
        let mut footer = Vec::new();
        ParquetMetaDataWriter::new(&mut footer, &self.metadata)
            .finish()
            .unwrap();
        // The writer believes that it began the file, magic and all.
        file.extend_from_slice(&footer);
        Bytes::from(file)
    }
}

/// A number as Thrift's compact protocol and the delta encodings write it.
pub fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

pub fn zigzag(value: i64) -> Vec<u8> {
    varint(((value << 1) ^ (value >> 63)) as u64)
}

/// A page: its header, then `body` as it is.
pub struct Page<'a> {
    pub dictionary: bool,
    pub uncompressed: i64,
    pub values: i64,
    pub encoding: i64,
    pub body: &'a [u8],
}

impl Page<'_> {
    pub fn bytes(&self) -> Vec<u8> {
        let int = |delta: u8, value: i64| [vec![delta << 4 | 5], zigzag(value)].concat();
        let page_type = if self.dictionary { 2 } else { 0 };
        let mut page = [
            int(1, page_type),
            int(1, self.uncompressed),
            int(1, self.body.len() as i64),
        ]
        .concat();
        // Field 7 is a dictionary's header and field 5 that of data; both begin with values and encoding.
        page.push(if self.dictionary { 4 << 4 } else { 2 << 4 } | 12);
        page.extend(int(1, self.values));
        page.extend(int(1, self.encoding));
        if !self.dictionary {
            // Levels as RLE.
            page.extend([int(1, 3), int(1, 3)].concat());
        }
        page.extend([0, 0]);
        page.extend_from_slice(self.body);
        page
    }
}

/// A zstd frame that decompresses to so many zeros: 4 bytes for each 128 KiB.
pub fn zeros(bytes: u64) -> Vec<u8> {
    // Magic; one segment whose size is in 8 bytes; blocks that repeat a byte.
    let mut frame = [&[0x28, 0xb5, 0x2f, 0xfd, 0xe0][..], &bytes.to_le_bytes()].concat();
    let mut left = bytes;
    loop {
        let block = left.min(128 << 10);
        left -= block;
        let head = u32::from(left == 0) | 1 << 1 | (block as u32) << 3;
        frame.extend_from_slice(&head.to_le_bytes()[..3]);
        frame.push(0);
        if left == 0 {
            return frame;
        }
    }
}
