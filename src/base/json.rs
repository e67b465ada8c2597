//! Small objects in the store that are JSON. Whatever is not as it was written is damage, and said as what it is.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The key of the version of an object's form.
pub const FORMAT: &str = "format";

/// An object whose form has this version, without that.
///
/// # Errors
/// What is wrong, to be said of the object; also that a later version has written it.
pub fn object(bytes: &[u8], format: u64) -> Result<Map<String, Value>, String> {
    let Strict(whole) = serde_json::from_slice(bytes).map_err(|error| {
        let why = error.to_string();
        if why.starts_with(TWICE) {
            why
        } else {
            "it is no JSON".to_owned()
        }
    })?;
    let Value::Object(mut whole) = whole else {
        return Err("it is no JSON object".to_owned());
    };
    let found = whole.remove(FORMAT).ok_or("it has no format")?;
    match found.as_u64() {
        Some(found) if found == format => Ok(whole),
        Some(newer) => Err(format!(
            "it has format {newer}, and this version reads {format}; upgrade parquet-analytics"
        )),
        None => Err(wrong(FORMAT, "a number", &found)),
    }
}

/// Whether a later version has written an object than one that reads this form of it.
pub fn is_newer(bytes: &[u8], format: u64) -> bool {
    let whole = serde_json::from_slice::<Value>(bytes).ok();
    let found = whole.and_then(|whole| whole.get(FORMAT)?.as_u64());
    found.is_some_and(|found| found > format)
}

/// What is said of a value that is another than `wanted`.
pub fn wrong(key: &str, wanted: &str, found: &Value) -> String {
    let shown: String = found.to_string().chars().take(60).collect();
    format!("its {key} is {shown}, and has to be {wanted}")
}

const TWICE: &str = "the key ";

/// JSON in which no object has a key twice. (To most readers the last one would count.)
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Of;
        impl<'de> Visitor<'de> for Of {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Value, A::Error> {
                let mut all = Vec::new();
                while let Some(Strict(value)) = values.next_element()? {
                    all.push(value);
                }
                Ok(Value::Array(all))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Value, A::Error> {
                let mut all = Map::new();
                while let Some((key, Strict(value))) = pairs.next_entry::<String, Strict>()? {
                    if all.contains_key(&key) {
                        let shown: String = key.chars().take(60).collect();
                        return Err(serde::de::Error::custom(format!(
                            "{TWICE}{shown:?} stands twice in one object of it"
                        )));
                    }
                    all.insert(key, value);
                }
                Ok(Value::Object(all))
            }
        }
        from.deserialize_any(Of).map(Strict)
    }
}
