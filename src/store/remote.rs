//! Reading and writing through `object_store`: S3, Google Cloud, Azure and memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, GetOptions, GetRange, GetResult, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    UpdateVersion,
};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use super::clients::{Client, Target};
use super::error::{Context, Doing, Meaning, conflict};
use super::http::{Answer, Trace};
use super::options::Options;
use super::refusal::Refusal;
use super::{Counters, Fetched, Kind, NotPut, Part, Precondition, Response, Write, span};
use crate::base::error::{Error, Result};

/// Larger objects need a multipart upload, which has no conditions.
const LARGEST_PUT: usize = 5 << 30;
/// What an HTTP header cannot hold is percent-encoded.
const HEADER_VALUE: &AsciiSet = &CONTROLS.add(b'%');
/// How often a tail is read anew when the object changes between the two requests that Azure needs.
const AZURE_ATTEMPTS: usize = 3;

impl Target {
    fn context<'a>(&'a self, doing: Doing, key: &'a str, full_key: &'a str) -> Context<'a> {
        let (region, endpoint, environment) = match &self.options {
            Options::S3(options) => (
                Some(options.region.as_str()),
                options.endpoint.as_deref(),
                options.http.environment,
            ),
            _ => (None, None, true),
        };
        Context {
            location: &self.location,
            region,
            endpoint,
            environment,
            key,
            full_key,
            doing,
        }
    }

    /// What a failed reading means, for a folder too.
    pub fn explain_reading(&self, key: &str, error: &object_store::Error, answer: &Answer) -> Error {
        self.context(Doing::Reading, key, key).explain(error, answer)
    }

    pub async fn get(
        &self,
        key: &str,
        part: &Part,
        version: &Precondition,
        counters: Option<&Counters>,
    ) -> Result<Response> {
        let full_key = self.location.full_key(key)?;
        let path = parse(&full_key)?;
        let context = self.context(Doing::Reading, key, &full_key);
        let client = self.client()?;
        if self.location.kind == Kind::Azure
            && let Part::Tail(length) = part
        {
            return self
                .azure_tail(&client, &context, &path, *length, version, counters)
                .await;
        }
        let response = self
            .read(&client, &context, &path, part, version, false, counters)
            .await?;
        match response {
            Read::Answered(response) | Read::Ignored(response) => Ok(response),
            // An object without bytes has no last byte. Its ETag comes with a request for everything, which is nothing.
            Read::OutOfRange if matches!(part, Part::Tail(_)) => {
                match self
                    .read(&client, &context, &path, &Part::All, version, false, counters)
                    .await?
                {
                    Read::Answered(response) | Read::Ignored(response) => cut(key, part, response),
                    Read::OutOfRange => Err(context.broken("the store refuses to give the whole object", false)),
                }
            }
            Read::OutOfRange => match part {
                // A refusal has no ETag, and a store that ignores the condition gives it for another, shorter object.
                Part::Range(range) if matches!(version, Precondition::IfMatch(_)) => {
                    let first = Part::Range(0..1);
                    match self
                        .read(&client, &context, &path, &first, version, false, counters)
                        .await?
                    {
                        Read::Answered(Response::Found(_)) | Read::OutOfRange => {
                            Err(context.beyond_end(range.start, range.end))
                        }
                        Read::Answered(other) | Read::Ignored(other) => Ok(other),
                    }
                }
                Part::Range(range) => Err(context.beyond_end(range.start, range.end)),
                _ => Err(context.broken("the store refuses to give the whole object", false)),
            },
        }
    }

    /// Whether the store answers a read as its condition wants it.
    pub async fn heeds(&self, key: &str, version: &Precondition, counters: Option<&Counters>) -> Result<bool> {
        let full_key = self.location.full_key(key)?;
        let path = parse(&full_key)?;
        let context = self.context(Doing::Reading, key, &full_key);
        let client = self.client()?;
        let read = self.read(&client, &context, &path, &Part::All, version, false, counters);
        Ok(!matches!(read.await?, Read::Ignored(_)))
    }

    /// Azure refuses suffix ranges: the size first, then a range of that very version.
    async fn azure_tail(
        &self,
        client: &Client,
        context: &Context<'_>,
        path: &Path,
        length: u64,
        version: &Precondition,
        counters: Option<&Counters>,
    ) -> Result<Response> {
        for _ in 0..AZURE_ATTEMPTS {
            let head = match self
                .read(client, context, path, &Part::All, version, true, counters)
                .await?
            {
                Read::Answered(Response::Found(head)) => head,
                Read::Answered(other) | Read::Ignored(other) => return Ok(other),
                Read::OutOfRange => return Err(context.broken("the store refuses to tell the object's size", false)),
            };
            if head.size == 0 {
                return Ok(Response::Found(head));
            }
            let part = Part::Range(head.size.saturating_sub(length)..head.size);
            match self
                .read(
                    client,
                    context,
                    path,
                    &part,
                    &Precondition::IfMatch(head.etag),
                    false,
                    counters,
                )
                .await?
            {
                Read::Answered(Response::PreconditionFailed) | Read::Ignored(Response::PreconditionFailed)
                    if !matches!(version, Precondition::IfMatch(_)) => {}
                Read::Answered(response) | Read::Ignored(response) => return Ok(response),
                Read::OutOfRange => {}
            }
        }
        Err(context.broken("the object changes faster than it can be read", true))
    }

    #[allow(clippy::too_many_arguments)]
    async fn read(
        &self,
        client: &Client,
        context: &Context<'_>,
        path: &Path,
        part: &Part,
        version: &Precondition,
        head: bool,
        counters: Option<&Counters>,
    ) -> Result<Read> {
        let kind = self.location.kind;
        let (if_match, if_none_match) = match version {
            Precondition::None => (None, None),
            Precondition::IfMatch(etag) => (Some(http_etag(kind, etag)), None),
            Precondition::IfNoneMatch(etag) => (None, Some(http_etag(kind, etag))),
        };
        let range = match part {
            Part::All => None,
            Part::Range(range) => Some(GetRange::Bounded(range.clone())),
            Part::Tail(length) => Some(GetRange::Suffix(*length)),
        };
        let options = GetOptions {
            range,
            if_match,
            if_none_match,
            head,
            ..GetOptions::default()
        };
        let trace = Arc::new(Trace::default());
        let result = trace.follow(fetch(client, path, options)).await;
        let read = result.as_ref().map_or(0, |(bytes, _)| bytes.len() as u64);
        self.count(counters, &trace, read, 0);
        let answer = trace.answer();
        let (bytes, result) = match result {
            Ok(found) => found,
            Err(object_store::Error::NotModified { .. }) => return Ok(Read::Answered(Response::NotModified)),
            Err(object_store::Error::Precondition { .. }) => return Ok(Read::Answered(Response::PreconditionFailed)),
            Err(object_store::Error::NotFound { .. })
                if kind == Kind::Memory || answer.meaning() == Meaning::NoSuchKey =>
            {
                return Ok(Read::Answered(Response::NotFound));
            }
            Err(error) => {
                // Azure and memory leave it to object_store to notice, which has no variant of its own for it.
                let noticed = error.to_string().contains("Wanted range starting at");
                let empty = answer.status == Some(200) && answer.empty && *part != Part::All;
                let out_of_range = noticed || empty || answer.status == Some(416);
                return if out_of_range {
                    Ok(Read::OutOfRange)
                } else {
                    Err(context.explain(&error, &answer))
                };
            }
        };
        let size = result.meta.size;
        let Some(etag) = result.meta.e_tag.clone().filter(|etag| !etag.is_empty()) else {
            return Err(context.broken(
                "the store sent no ETag, so versions of the object cannot be told apart",
                false,
            ));
        };
        if etag.starts_with("W/") {
            return Err(context.broken(
                "the store sent a weak ETag; is there a proxy that changes bodies?",
                false,
            ));
        }
        let etag = our_etag(kind, etag, result.meta.version.as_deref());
        // Before the size is looked at, which is another object's then.
        if let Some(other) = version.other_than_asked(&etag) {
            return Ok(Read::Ignored(other));
        }
        if !head {
            let wanted = span(context.key, part, size)?;
            if result.range != wanted || bytes.len() as u64 != wanted.end - wanted.start {
                let message = format!(
                    "{} bytes came, {} were announced",
                    bytes.len(),
                    wanted.end - wanted.start
                );
                return Err(context.broken(&message, true));
            }
        }
        let metadata = metadata_of(kind, &result.attributes);
        Ok(Read::Answered(Response::Found(Fetched {
            bytes,
            offset: result.range.start,
            size,
            etag,
            metadata,
        })))
    }

    pub async fn put(
        &self,
        key: &str,
        bytes: Bytes,
        write: &Write,
        metadata: &[(&'static str, String)],
        counters: Option<&Counters>,
    ) -> Result<String, NotPut> {
        let full_key = self.location.full_key(key)?;
        let path = parse(&full_key)?;
        let context = self.context(Doing::Writing, key, &full_key);
        if bytes.len() > LARGEST_PUT {
            return Err(context
                .broken(
                    "the object is larger than 5 GiB, the most that can be written at once",
                    false,
                )
                .into());
        }
        let kind = self.location.kind;
        let mode = match write {
            Write::Create => PutMode::Create,
            Write::Overwrite => PutMode::Overwrite,
            Write::Replace(etag) => PutMode::Update(UpdateVersion {
                e_tag: Some(http_etag(kind, etag)),
                version: etag
                    .split_once('#')
                    .filter(|_| kind == Kind::GoogleCloud)
                    .map(|(_, generation)| generation.to_owned()),
            }),
        };
        let mut attributes = Attributes::new();
        for (name, value) in metadata {
            let value = utf8_percent_encode(value, HEADER_VALUE).to_string();
            attributes.insert(Attribute::Metadata(metadata_name(kind, name).into()), value.into());
        }
        let (client, length) = (self.client()?, bytes.len() as u64);
        let trace = Arc::new(Trace::default());
        let options = PutOptions {
            mode,
            attributes,
            ..PutOptions::default()
        };
        let result = trace
            .follow(client.put_opts(&path, PutPayload::from_bytes(bytes), options))
            .await;
        self.count(counters, &trace, 0, length);
        let answer = trace.answer();
        let conditional = !matches!(write, Write::Overwrite);
        let error = match result {
            Ok(put) => match put.e_tag.filter(|etag| !etag.is_empty()) {
                Some(etag) => return Ok(our_etag(kind, etag, put.version.as_deref())),
                // Success without an ETag is not how a store says it; a proxy's page, perhaps.
                None => {
                    return Err(NotPut {
                        error: context.broken("the store sent no ETag for what was written", true),
                        doubtful: true,
                        lost: false,
                    });
                }
            },
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. })
                if conditional && matches!(answer.meaning(), Meaning::Other | Meaning::NoSuchKey) =>
            {
                conflict(key, write)
            }
            // Two conditional writes at the same moment: S3 lets one of them through.
            Err(_)
                if conditional
                    && answer.status == Some(409)
                    && !matches!(answer.meaning(), Meaning::Refused(Refusal { retryable: false, .. })) =>
            {
                conflict(key, write)
            }
            Err(error) => context.explain(&error, &answer),
        };
        // A success that cannot be understood: an error in a body with status 200, or a proxy's page.
        let odd = answer.status.is_some_and(|status| status < 400);
        Err(NotPut {
            error: if odd {
                context.broken(
                    "the store answered with success, but not in the form that it should have",
                    true,
                )
            } else {
                error
            },
            doubtful: odd || trace.doubtful(),
            lost: answer.lost,
        })
    }

    pub async fn delete(&self, key: &str, counters: Option<&Counters>) -> Result<()> {
        let full_key = self.location.full_key(key)?;
        let path = parse(&full_key)?;
        let context = self.context(Doing::Deleting, key, &full_key);
        let client = self.client()?;
        let trace = Arc::new(Trace::default());
        let result = trace.follow(client.delete(&path)).await;
        self.count(counters, &trace, 0, 0);
        let mut answer = trace.answer();
        match result {
            Ok(()) => Ok(()),
            Err(object_store::Error::NotFound { .. }) if answer.meaning() != Meaning::NoSuchBucket => Ok(()),
            Err(error) => {
                // S3 deletes in bulk: the answer for a key is inside one with status 200.
                let text = error.to_string();
                if let Some((_, said)) = text.split_once("DeleteObjects request failed for key ")
                    && let Some((message, code)) = said.rsplit_once(" (code: ")
                {
                    answer.code = Some(code.trim_end_matches(')').to_owned());
                    answer.message = message.strip_prefix(&format!("{path}: ")).map(str::to_owned);
                }
                Err(context.explain(&error, &answer))
            }
        }
    }

    fn count(&self, counters: Option<&Counters>, trace: &Trace, read: u64, written: u64) {
        if let Some(counters) = counters {
            let requests = if self.location.kind == Kind::Memory {
                1
            } else {
                trace.requests()
            };
            counters.add(requests, read, written);
        }
    }
}

enum Read {
    Answered(Response),
    /// What would have been right to answer: the store sent an object although the condition was not met.
    Ignored(Response),
    /// The store says that the range begins after the object's end.
    OutOfRange,
}

async fn fetch(client: &Client, path: &Path, options: GetOptions) -> object_store::Result<(Bytes, GetResult)> {
    let head = options.head;
    let mut result = client.get_opts(path, options).await?;
    if head {
        return Ok((Bytes::new(), result));
    }
    let empty = object_store::GetResultPayload::Stream(Box::pin(futures::stream::empty()));
    let payload = std::mem::replace(&mut result.payload, empty);
    let whole = GetResult {
        payload,
        meta: result.meta.clone(),
        range: result.range.clone(),
        attributes: Attributes::new(),
    };
    Ok((whole.bytes().await?, result))
}

fn cut(key: &str, part: &Part, response: Response) -> Result<Response> {
    let Response::Found(mut all) = response else {
        return Ok(response);
    };
    let range = span(key, part, all.size)?;
    let at = |byte: u64| usize::try_from(byte).map_err(|_| Error::internal("an object larger than memory"));
    all.bytes = all.bytes.slice(at(range.start)?..at(range.end)?);
    all.offset = range.start;
    Ok(Response::Found(all))
}

fn parse(full_key: &str) -> Result<Path> {
    // Unlike `Path::from`, this leaves every character of the key as it is.
    Path::parse(full_key).map_err(|error| Error::invalid(error.to_string()))
}

/// Google Cloud replaces on generations, not on ETags, so both are carried in one text there.
fn our_etag(kind: Kind, etag: String, version: Option<&str>) -> String {
    match version {
        Some(generation) if kind == Kind::GoogleCloud => format!("{etag}#{generation}"),
        _ => etag,
    }
}

fn http_etag(kind: Kind, etag: &str) -> String {
    match etag.split_once('#') {
        Some((etag, _)) if kind == Kind::GoogleCloud => etag.to_owned(),
        _ => etag.to_owned(),
    }
}

/// Azure takes identifiers only.
fn metadata_name(kind: Kind, name: &str) -> String {
    if kind == Kind::Azure {
        name.replace('.', "__")
    } else {
        name.to_owned()
    }
}

fn metadata_of(kind: Kind, attributes: &Attributes) -> BTreeMap<String, String> {
    let mut metadata = BTreeMap::new();
    for (name, value) in attributes {
        if let Attribute::Metadata(name) = name {
            let name = if kind == Kind::Azure {
                name.replace("__", ".")
            } else {
                name.to_string()
            };
            metadata.insert(name, percent_decode_str(value).decode_utf8_lossy().into_owned());
        }
    }
    metadata
}
