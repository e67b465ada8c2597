//! Proves that the Thrift structures of a Parquet footer and of page headers have the shape the format
//! prescribes and lie within their bytes, before the parquet crate decodes them. The crate reserves memory for as many
//! list elements as the bytes claim to hold and recurses into the schema, so that a few damaged bytes
//! could otherwise end the process.

/// More columns than any page-view file has, few enough that nesting them is harmless.
const MAX_SCHEMA_ELEMENTS: usize = 64;
const MAX_DEPTH: usize = 16;

enum Kind {
    Bool,
    Byte,
    /// i16, i32, i64 and enums: all the same variable-length number.
    Int,
    Binary,
    List(&'static Kind),
    Schema,
    Struct(Fields),
    /// What the crate knows, and no page-view file has. The crate does not look at the wire type of what it knows:
    /// with another one it would take the next bytes for something else than this walk does.
    Never,
}

type Fields = &'static [(i16, Kind)];

use Kind::{Binary, Bool, Byte, Int, List, Never, Schema, Struct};

const EMPTY: Kind = Struct(&[]);
/// The logical types that page-view columns have: STRING, DATE, INTEGER.
const LOGICAL_TYPE: Kind = Struct(&[
    (1, EMPTY),
    (2, Never),
    (3, Never),
    (4, Never),
    (5, Never),
    (6, EMPTY),
    (7, Never),
    (8, Never),
    (9, Never),
    (10, Struct(&[(1, Byte), (2, Bool)])),
    (11, Never),
    (12, Never),
    (13, Never),
    (14, Never),
    (15, Never),
    (16, Never),
    (17, Never),
    (18, Never),
]);
const SCHEMA_ELEMENT: Kind = Struct(&[
    (1, Int),
    (2, Int),
    (3, Int),
    (4, Binary),
    (5, Int),
    (6, Int),
    (7, Int),
    (8, Int),
    (9, Int),
    (10, LOGICAL_TYPE),
]);
const KEY_VALUE: Kind = Struct(&[(1, Binary), (2, Binary)]);
const STATISTICS: Kind = Struct(&[
    (1, Binary),
    (2, Binary),
    (3, Int),
    (4, Int),
    (5, Binary),
    (6, Binary),
    (7, Bool),
    (8, Bool),
]);
const SIZE_STATISTICS: Kind = Struct(&[(1, Int), (2, List(&Int)), (3, List(&Int))]);
const ENCODING_STATISTICS: Kind = Struct(&[(1, Int), (2, Int), (3, Int)]);
const COLUMN_METADATA: Kind = Struct(&[
    (1, Int),
    (2, List(&Int)),
    (3, List(&Binary)),
    (4, Int),
    (5, Int),
    (6, Int),
    (7, Int),
    (8, List(&KEY_VALUE)),
    (9, Int),
    (10, Int),
    (11, Int),
    (12, STATISTICS),
    (13, List(&ENCODING_STATISTICS)),
    (14, Int),
    (15, Int),
    (16, SIZE_STATISTICS),
    // Of places on the earth.
    (17, Never),
]);
const COLUMN_CHUNK: Kind = Struct(&[
    (1, Binary),
    (2, Int),
    (3, COLUMN_METADATA),
    (4, Int),
    (5, Int),
    (6, Int),
    (7, Int),
    // Encryption, here and below.
    (8, Never),
    (9, Never),
]);
const SORTING_COLUMN: Kind = Struct(&[(1, Int), (2, Bool), (3, Bool)]);
const ROW_GROUP: Kind = Struct(&[
    (1, List(&COLUMN_CHUNK)),
    (2, Int),
    (3, Int),
    (4, List(&SORTING_COLUMN)),
    (5, Int),
    (6, Int),
    (7, Int),
]);
const COLUMN_ORDER: Kind = Struct(&[(1, EMPTY)]);
const FILE_METADATA: Fields = &[
    (1, Int),
    (2, Schema),
    (3, Int),
    (4, List(&ROW_GROUP)),
    (5, List(&KEY_VALUE)),
    (6, Binary),
    (7, List(&COLUMN_ORDER)),
    (8, Never),
    (9, Never),
];
const PAGE_LOCATION: Kind = Struct(&[(1, Int), (2, Int), (3, Int)]);
const OFFSET_INDEX: Fields = &[(1, List(&PAGE_LOCATION)), (2, List(&Int))];
const COLUMN_INDEX: Fields = &[
    (1, List(&Bool)),
    (2, List(&Binary)),
    (3, List(&Binary)),
    (4, Int),
    (5, List(&Int)),
    (6, List(&Int)),
    (7, List(&Int)),
];

const DATA_PAGE_HEADER: Kind = Struct(&[(1, Int), (2, Int), (3, Int), (4, Int), (5, STATISTICS)]);
const DICTIONARY_PAGE_HEADER: Kind = Struct(&[(1, Int), (2, Int), (3, Bool)]);
const DATA_PAGE_HEADER_V2: Kind = Struct(&[
    (1, Int),
    (2, Int),
    (3, Int),
    (4, Int),
    (5, Int),
    (6, Int),
    (7, Bool),
    (8, STATISTICS),
]);
const UNCOMPRESSED_SIZE: i16 = 2;
const COMPRESSED_SIZE: i16 = 3;
const PAGE_HEADER: Fields = &[
    (1, Int),
    (UNCOMPRESSED_SIZE, Int),
    (COMPRESSED_SIZE, Int),
    (4, Int),
    (5, DATA_PAGE_HEADER),
    (6, EMPTY),
    (7, DICTIONARY_PAGE_HEADER),
    (8, DATA_PAGE_HEADER_V2),
];

/// What a page's header says about its bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageSizes {
    /// Of the header itself.
    pub header: u64,
    /// Of what follows it.
    pub compressed: u64,
    pub uncompressed: u64,
}

/// Reads the header that these bytes begin with.
pub(crate) fn page_sizes(bytes: &[u8]) -> Option<PageSizes> {
    let (mut compressed, mut uncompressed) = (None, None);
    let mut walk = Walk { rest: bytes };
    walk.fields_and(PAGE_HEADER, 0, &mut |id, number| match id {
        COMPRESSED_SIZE => compressed = u64::try_from(number).ok(),
        UNCOMPRESSED_SIZE => uncompressed = u64::try_from(number).ok(),
        _ => {}
    })?;
    Some(PageSizes {
        header: (bytes.len() - walk.rest.len()) as u64,
        compressed: compressed?,
        uncompressed: uncompressed?,
    })
}

pub(super) fn is_file_metadata(bytes: &[u8]) -> bool {
    Walk { rest: bytes }.fields(FILE_METADATA, 0).is_some()
}

pub(super) fn is_column_index(bytes: &[u8]) -> bool {
    Walk { rest: bytes }.fields(COLUMN_INDEX, 0).is_some()
}

pub(super) fn is_offset_index(bytes: &[u8]) -> bool {
    Walk { rest: bytes }.fields(OFFSET_INDEX, 0).is_some()
}

fn zigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Walks the compact protocol; `None` as soon as something is not as prescribed.
struct Walk<'a> {
    rest: &'a [u8],
}

impl Walk<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.rest = self.rest.get(count..)?;
        Some(())
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn fields(&mut self, known: Fields, depth: usize) -> Option<()> {
        self.fields_and(known, depth, &mut |_, _| {})
    }

    /// The same, and hands the structure's own numbers over with their fields' ids.
    fn fields_and(&mut self, known: Fields, depth: usize, number: &mut dyn FnMut(i16, i64)) -> Option<()> {
        if depth > MAX_DEPTH {
            return None;
        }
        let mut id = 0i16;
        loop {
            let header = self.byte()?;
            let wire = header & 0x0f;
            if wire == 0 {
                return Some(());
            }
            id = match header >> 4 {
                0 => i16::try_from(zigzag(self.varint()?)).ok()?,
                delta => id.checked_add(delta.into())?,
            };
            let kind = known.iter().find(|(known, _)| *known == id).map(|(_, kind)| kind);
            if let (4..=6, Some(Int)) = (wire, kind) {
                number(id, zigzag(self.varint()?));
            } else {
                self.value(wire, kind, false, depth)?;
            }
        }
    }

    /// One value of a wire type, which has to be of `kind` where the field is a known one.
    fn value(&mut self, wire: u8, kind: Option<&Kind>, in_list: bool, depth: usize) -> Option<()> {
        match (wire, kind) {
            // The value of a field is in its header; the crate does not skip unknown lists of them.
            (1 | 2, Some(Bool)) => self.skip(usize::from(in_list)),
            (1 | 2, None) if !in_list => Some(()),
            (3, Some(Byte) | None) => self.skip(1),
            (4..=6, Some(Int) | None) => self.varint().map(drop),
            (7, None) => self.skip(8),
            (8, Some(Binary) | None) => {
                let length = self.varint()?;
                self.skip(usize::try_from(length).ok()?)
            }
            (9, Some(List(element))) => self.list(Some(element), usize::MAX, depth),
            (9, Some(Schema)) => self.list(Some(&SCHEMA_ELEMENT), MAX_SCHEMA_ELEMENTS, depth),
            (9, None) => self.list(None, usize::MAX, depth),
            (12, Some(Struct(fields))) => self.fields(fields, depth + 1),
            (12, None) => self.fields(&[], depth + 1),
            _ => None,
        }
    }

    fn list(&mut self, element: Option<&Kind>, most: usize, depth: usize) -> Option<()> {
        if depth > MAX_DEPTH {
            return None;
        }
        let header = self.byte()?;
        let count = match header >> 4 {
            15 => usize::try_from(self.varint()?).ok()?,
            count => count.into(),
        };
        // Every element takes a byte at least, so a longer list than bytes is a lie.
        if count > self.rest.len() || count > most {
            return None;
        }
        for _ in 0..count {
            self.value(header & 0x0f, element, true, depth + 1)?;
        }
        Some(())
    }
}
