//! Proves that the Thrift structures of a Parquet footer have the shape the format prescribes and lie
//! within their bytes, before the parquet crate decodes them. The crate reserves memory for as many
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
}

type Fields = &'static [(i16, Kind)];

use Kind::{Binary, Bool, Byte, Int, List, Schema, Struct};

const EMPTY: Kind = Struct(&[]);
/// The logical types that page-view columns have: STRING, DATE, INTEGER.
const LOGICAL_TYPE: Kind = Struct(&[(1, EMPTY), (6, EMPTY), (10, Struct(&[(1, Byte), (2, Bool)]))]);
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
]);
const COLUMN_CHUNK: Kind = Struct(&[
    (1, Binary),
    (2, Int),
    (3, COLUMN_METADATA),
    (4, Int),
    (5, Int),
    (6, Int),
    (7, Int),
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

pub(super) fn is_file_metadata(bytes: &[u8]) -> bool {
    Walk { rest: bytes }.fields(FILE_METADATA, 0).is_some()
}

pub(super) fn is_column_index(bytes: &[u8]) -> bool {
    Walk { rest: bytes }.fields(COLUMN_INDEX, 0).is_some()
}

pub(super) fn is_offset_index(bytes: &[u8]) -> bool {
    Walk { rest: bytes }.fields(OFFSET_INDEX, 0).is_some()
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
                0 => {
                    let zigzag = self.varint()?;
                    i16::try_from((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64)).ok()?
                }
                delta => id.checked_add(delta.into())?,
            };
            let kind = known.iter().find(|(known, _)| *known == id).map(|(_, kind)| kind);
            self.value(wire, kind, false, depth)?;
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
