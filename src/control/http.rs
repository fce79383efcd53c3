//! Metrics over HTTP, for whoever scrapes them: only where systemd passes a socket called `metrics`. As little of HTTP
//! as that takes (RFC 9110, RFC 9112): one request a connection, its head bounded in size and time.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, UnixListener},
    task::JoinSet,
    time::timeout,
};

use super::{api::Format, ask::Subject, metrics};
use crate::{activation::Socket, sys::accept};

/// The fd name.
pub const NAME: &str = "metrics";
/// Where such a listener leads, as logs and tables have it.
pub const UPSTREAM: &str = "the metrics of this service";

/// Scrapers at once; one more waits in the backlog.
const CLIENTS: usize = 8;
/// The head of a request is not longer, in bytes.
const HEAD: usize = 8 << 10;
/// A request has no more header fields.
const HEADERS: usize = 64;
/// A scrape takes no longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Waits for no content that a request may have had, but lets a client that sent some read its answer.
const LINGER: Duration = Duration::from_secs(1);

enum ScrapeListener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

trait ScrapeStream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> ScrapeStream for T {}

impl ScrapeListener {
    async fn accept(&self) -> std::io::Result<Box<dyn ScrapeStream>> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

/// Answers scrapes, for ever. A socket that is not for streams is closed at once.
pub async fn serve(socket: Socket, subject: Subject) {
    let listener = match socket {
        Socket::Tcp(tcp) => TcpListener::from_std(tcp).map(ScrapeListener::Tcp),
        Socket::Unix(unix) => UnixListener::from_std(unix).map(ScrapeListener::Unix),
        Socket::Udp(_) => return,
    };
    let Ok(listener) = listener else { return };
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            stream = accept::next(|| listener.accept(), |_| {}), if clients.len() < CLIENTS => {
                let subject = subject.clone();
                clients.spawn(async move {
                    let _ = timeout(PATIENCE, answer(stream, &subject)).await;
                });
            }
            Some(_) = clients.join_next() => {}
        }
    }
}

async fn answer(mut stream: Box<dyn ScrapeStream>, subject: &Subject) -> std::io::Result<()> {
    let mut head = Vec::new();
    let request = loop {
        let mut chunk = [0; 1024];
        match stream.read(&mut chunk).await? {
            0 => return Ok(()),
            n => head.extend_from_slice(&chunk[..n]),
        }
        match ScrapeRequest::read(&head) {
            None if head.len() <= HEAD => {}
            request => break request,
        }
    };
    let reply = match request {
        Some(ScrapeRequest::Metrics(format, whole)) => {
            let kind = match format {
                Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
                Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            };
            let text = metrics::text(subject, format, None).await;
            response("200 OK", kind, &text, whole)
        }
        Some(ScrapeRequest::NotFound) => response("404 Not Found", "text/plain", "metrics are at /metrics\n", true),
        Some(ScrapeRequest::MethodNotAllowed) => {
            response("405 Method Not Allowed\r\nAllow: GET, HEAD", "text/plain", "GET /metrics\n", true)
        }
        Some(ScrapeRequest::BadRequest) => response("400 Bad Request", "text/plain", "this is not HTTP\n", true),
        None => response("431 Request Header Fields Too Large", "text/plain", "at most 8 KiB\n", true),
    };
    stream.write_all(reply.as_bytes()).await?;
    stream.shutdown().await?;
    // Closing while bytes of the client wait would be a reset, which takes the answer back.
    let _ = timeout(LINGER, tokio::io::copy(&mut (&mut stream).take(1 << 20), &mut tokio::io::sink())).await;
    Ok(())
}

/// What the head of a request asks for.
#[derive(Debug, PartialEq, Eq)]
enum ScrapeRequest {
    /// Metrics in a format; the text itself or only its head.
    Metrics(Format, bool),
    NotFound,
    MethodNotAllowed,
    /// No request of HTTP/1.0 or HTTP/1.1.
    BadRequest,
}

impl ScrapeRequest {
    /// Reads a head; `None` when it is not whole yet.
    fn read(head: &[u8]) -> Option<Self> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(head) {
            Ok(status) if status.is_partial() => return None,
            Ok(_) => {}
            Err(_) => return Some(Self::BadRequest),
        }
        let target = request.path.unwrap_or_default();
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        let format = if accepts_open_metrics(request.headers) { Format::OpenMetrics } else { Format::Prometheus };
        Some(match request.method {
            _ if path != "/metrics" => Self::NotFound,
            Some("GET") => Self::Metrics(format, true),
            Some("HEAD") => Self::Metrics(format, false),
            _ => Self::MethodNotAllowed,
        })
    }
}

/// Whether the scraper can read OpenMetrics: Prometheus names first the format that it prefers among those it can read.
fn accepts_open_metrics(headers: &[httparse::Header<'_>]) -> bool {
    let accepts = headers.iter().filter(|header| header.name.eq_ignore_ascii_case("accept"));
    accepts.flat_map(|header| header.value.split(|b| *b == b',')).any(|kind| {
        let kind = kind.split(|b| *b == b';').next().unwrap_or_default();
        kind.trim_ascii().eq_ignore_ascii_case(b"application/openmetrics-text")
    })
}

fn response(status: &str, kind: &str, text: &str, whole: bool) -> String {
    let length = text.len();
    let text = if whole { text } else { "" };
    format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(head: &str) -> Option<ScrapeRequest> {
        ScrapeRequest::read(format!("{head}\r\n\r\n").as_bytes())
    }

    #[test]
    fn the_format_is_what_the_scraper_says_it_can_read() {
        let get = |rest: &str| read(&format!("GET /metrics HTTP/1.1\r\nHost: x{rest}"));
        assert_eq!(get(""), Some(ScrapeRequest::Metrics(Format::Prometheus, true)));
        assert_eq!(get("\r\nAccept: */*"), Some(ScrapeRequest::Metrics(Format::Prometheus, true)));
        let prometheus = "\r\naccept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2,*/*;q=0.1";
        assert_eq!(get(prometheus), Some(ScrapeRequest::Metrics(Format::OpenMetrics, true)));
    }

    #[test]
    fn other_requests_are_told_apart() {
        assert_eq!(read("HEAD /metrics?x=1 HTTP/1.0"), Some(ScrapeRequest::Metrics(Format::Prometheus, false)));
        assert_eq!(read("GET / HTTP/1.1"), Some(ScrapeRequest::NotFound));
        assert_eq!(read("POST /metrics HTTP/1.1"), Some(ScrapeRequest::MethodNotAllowed));
        let many = format!("GET /metrics HTTP/1.1{}", "\r\na: b".repeat(HEADERS + 1));
        for nonsense in ["GET", "GET /metrics", "GET /metrics HTTP/2", "\u{16}\u{3}\u{1}", &many] {
            assert_eq!(read(nonsense), Some(ScrapeRequest::BadRequest), "{nonsense:?}");
        }
        for part in ["", "GET /met", "GET /metrics HTTP/1.1\r\nHost: x\r\n"] {
            assert_eq!(ScrapeRequest::read(part.as_bytes()), None, "{part:?}");
        }
    }
}
