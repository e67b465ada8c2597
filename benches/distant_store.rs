//! A store that is far away: passes HTTP on to a server nearby, later and slower than that answers, and counts requests,
//! waves and bytes. For benchmarks, and for tests that count.
//!
//!     distant_store --to 127.0.0.1:9000 --p50 30 --p99 100 --bandwidth 80
//!
//! Milliseconds to the first byte of an answer, log-normally distributed, and megabytes a second of each connection. It says
//! on standard output where it listens. `GET /distant-store/counters` tells what was counted and begins anew;
//! `GET /distant-store/bytes/N` answers N bytes as far away as all else: the floor.

#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep_until};

/// Bytes that are passed on at once, less than a millisecond's worth.
const PIECE: usize = 64 << 10;
/// Bytes of the head of a request or an answer.
const LONGEST_HEAD: usize = 1 << 20;
const COUNTERS: &str = "/distant-store/counters";
const BYTES: &str = "/distant-store/bytes/";

struct Distance {
    /// Seconds to the first byte of an answer.
    median: f64,
    sigma: f64,
    /// Bytes a second.
    bandwidth: f64,
}

#[derive(Default)]
struct Counted {
    methods: BTreeMap<String, u64>,
    statuses: BTreeMap<u16, u64>,
    received: u64,
    sent: u64,
    /// Requests of the longest chain in which each began after the one before had been answered.
    waves: u64,
    /// The longest chain among requests that were answered.
    answered: u64,
}

struct Shared {
    to: SocketAddr,
    distance: Distance,
    random: Mutex<ChaCha8Rng>,
    counted: Mutex<Counted>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn latency(&self) -> Duration {
        // Box and Muller.
        let (one, other): (f64, f64) = {
            let mut random = lock(&self.random);
            (1.0 - random.random::<f64>(), random.random())
        };
        let normal = (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * other).cos();
        Duration::from_secs_f64(self.distance.median * (self.distance.sigma * normal).exp())
    }

    /// When so many bytes have gone that began to go at some time.
    fn gone(&self, began: Instant, bytes: u64) -> Instant {
        began + Duration::from_secs_f64(bytes as f64 / self.distance.bandwidth)
    }

    fn begin(&self, method: &str) -> u64 {
        let mut counted = lock(&self.counted);
        *counted.methods.entry(method.to_owned()).or_default() += 1;
        let wave = counted.answered + 1;
        counted.waves = counted.waves.max(wave);
        wave
    }

    fn end(&self, wave: u64, status: u16, received: u64, sent: u64) {
        let mut counted = lock(&self.counted);
        *counted.statuses.entry(status).or_default() += 1;
        counted.answered = counted.answered.max(wave);
        counted.received += received;
        counted.sent += sent;
    }

    fn counters(&self) -> String {
        let counted = std::mem::take(&mut *lock(&self.counted));
        json!({
            "requests": counted.methods.values().sum::<u64>(),
            "methods": counted.methods,
            "statuses": counted.statuses,
            "waves": counted.waves,
            "received": counted.received,
            "sent": counted.sent,
        })
        .to_string()
    }
}

/// The head of a request or an answer, without what says how long its body is.
struct Head {
    bytes: Vec<u8>,
    first: String,
    length: Option<u64>,
    chunked: bool,
    close: bool,
    expects: bool,
}

/// `None` at the end of a connection.
async fn read_head(from: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<Head>> {
    let mut head = Head {
        bytes: Vec::new(),
        first: String::new(),
        length: None,
        chunked: false,
        close: false,
        expects: false,
    };
    loop {
        let begins = head.bytes.len();
        if from.read_until(b'\n', &mut head.bytes).await? == 0 {
            return Ok(None);
        }
        if head.bytes.len() > LONGEST_HEAD {
            return Err(io::Error::other("a head without an end"));
        }
        let line = String::from_utf8_lossy(&head.bytes[begins..]).trim_end().to_owned();
        if begins == 0 {
            head.first = line;
            continue;
        }
        if line.is_empty() {
            return Ok(Some(head));
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        match (name.to_ascii_lowercase().as_str(), value.trim()) {
            ("content-length", value) => head.length = value.parse().ok(),
            ("transfer-encoding", value) => head.chunked = value.eq_ignore_ascii_case("chunked"),
            ("connection", value) => head.close = value.eq_ignore_ascii_case("close"),
            // Answered here: the body is on its way without it.
            ("expect", _) => {
                head.bytes.truncate(begins);
                head.expects = true;
            }
            _ => {}
        }
    }
}

/// One connection, and that to the server which belongs to it.
struct Connection {
    shared: Arc<Shared>,
    client: (BufReader<OwnedReadHalf>, OwnedWriteHalf),
    server: (BufReader<OwnedReadHalf>, OwnedWriteHalf),
}

impl Connection {
    async fn serve(shared: Arc<Shared>, client: TcpStream) -> io::Result<()> {
        let server = TcpStream::connect(shared.to).await?;
        let halves = |stream: TcpStream| -> io::Result<_> {
            stream.set_nodelay(true)?;
            let (read, write) = stream.into_split();
            Ok((BufReader::with_capacity(PIECE, read), write))
        };
        let mut connection = Self {
            shared,
            client: halves(client)?,
            server: halves(server)?,
        };
        while connection.pass().await? {}
        Ok(())
    }

    /// Passes a request and its answer on. Whether another may follow.
    async fn pass(&mut self) -> io::Result<bool> {
        let Some(request) = read_head(&mut self.client.0).await? else {
            return Ok(false);
        };
        let mut words = request.first.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if target == COUNTERS {
            let body = self.shared.counters();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            self.client.1.write_all((head + &body).as_bytes()).await?;
            return Ok(true);
        }
        let shared = Arc::clone(&self.shared);
        let wave = shared.begin(method);
        let due = Instant::now() + shared.latency();
        if let Some(length) = target.strip_prefix(BYTES).and_then(|length| length.parse().ok()) {
            sleep_until(due).await;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            self.client.1.write_all(head.as_bytes()).await?;
            pass_body(&shared, &mut tokio::io::repeat(0), &mut self.client.1, length).await?;
            shared.end(wave, 200, 0, length);
            return Ok(true);
        }
        if request.expects {
            self.client.1.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        self.server.1.write_all(&request.bytes).await?;
        let received = pass_body(
            &shared,
            &mut self.client.0,
            &mut self.server.1,
            request.length.unwrap_or(0),
        )
        .await?;
        let Some(answer) = read_head(&mut self.server.0).await? else {
            return Ok(false);
        };
        let status: u16 = answer
            .first
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .unwrap_or(0);
        sleep_until(due).await;
        self.client.1.write_all(&answer.bytes).await?;
        let empty = method == "HEAD" || status == 204 || status == 304;
        let (sent, ended) = match answer.length {
            _ if empty => (0, true),
            _ if answer.chunked => (self.pass_chunks().await?, true),
            Some(length) => (
                pass_body(&shared, &mut self.server.0, &mut self.client.1, length).await?,
                true,
            ),
            None => (
                pass_body(&shared, &mut self.server.0, &mut self.client.1, u64::MAX).await?,
                false,
            ),
        };
        shared.end(wave, status, received, sent);
        Ok(ended && !request.close && !answer.close)
    }

    async fn pass_chunks(&mut self) -> io::Result<u64> {
        let mut sent = 0;
        loop {
            let mut line = Vec::new();
            self.server.0.read_until(b'\n', &mut line).await?;
            self.client.1.write_all(&line).await?;
            let text = String::from_utf8_lossy(&line);
            let digits = text.trim().split(';').next().unwrap_or_default();
            let size = u64::from_str_radix(digits, 16).map_err(io::Error::other)?;
            // With the end of line that follows it.
            pass_body(&self.shared, &mut self.server.0, &mut self.client.1, size + 2).await?;
            sent += size;
            if size == 0 {
                return Ok(sent);
            }
        }
    }
}

/// Passes so many bytes on, or all there are, as fast as the distance allows.
async fn pass_body(
    shared: &Shared,
    from: &mut (impl AsyncRead + Unpin),
    to: &mut OwnedWriteHalf,
    length: u64,
) -> io::Result<u64> {
    let (began, mut passed) = (Instant::now(), 0);
    let mut piece = vec![0; PIECE.min(usize::try_from(length).unwrap_or(PIECE))];
    while passed < length {
        let most = piece.len().min(usize::try_from(length - passed).unwrap_or(usize::MAX));
        let read = from.read(&mut piece[..most]).await?;
        if read == 0 {
            break;
        }
        to.write_all(&piece[..read]).await?;
        passed += read as u64;
        sleep_until(shared.gone(began, passed)).await;
    }
    Ok(passed)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut given = BTreeMap::from(
        [
            ("--p50", "30"),
            ("--p99", "100"),
            ("--bandwidth", "80"),
            ("--seed", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    for pair in arguments.chunks(2) {
        let [name, value] = pair else {
            return Err(format!("{} has no value", pair.concat()).into());
        };
        given.insert(name.clone(), value.clone());
    }
    let number = |name: &str| -> Result<f64, Box<dyn Error>> {
        Ok(given.get(name).ok_or_else(|| format!("{name} is missing"))?.parse()?)
    };
    let (p50, p99) = (number("--p50")? / 1e3, number("--p99")? / 1e3);
    let shared = Arc::new(Shared {
        to: given.get("--to").ok_or("--to is missing")?.parse()?,
        distance: Distance {
            median: p50,
            // Of a normal distribution, 99 in a hundred lie below 2.326 standard deviations.
            sigma: if p50 > 0.0 { (p99 / p50).ln() / 2.326 } else { 0.0 },
            bandwidth: number("--bandwidth")? * 1e6,
        },
        random: Mutex::new(ChaCha8Rng::seed_from_u64(number("--seed")? as u64)),
        counted: Mutex::default(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        loop {
            let (client, _) = listener.accept().await?;
            let shared = Arc::clone(&shared);
            tokio::spawn(async move {
                // A client or server that hangs up ends its own connection.
                let _ = Connection::serve(shared, client).await;
            });
        }
    })
}
