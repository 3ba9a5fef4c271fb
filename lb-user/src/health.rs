//! Active health checks: one question to one backend, answered or not within a time.

use std::{fmt, io, net::SocketAddr, str::FromStr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// The most that is read while looking for the end of an answer's header.
const HEADER_LIMIT: usize = 8 * 1024;
/// The most of an answer's body that is read to let the backend close the connection in peace.
const BODY_LIMIT: usize = 64 * 1024;
/// How long the backend may take to close it.
const CLOSE_LIMIT: Duration = Duration::from_millis(100);

/// What makes a backend healthy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthCheck {
    /// Every backend that runs is healthy.
    None,
    /// It accepts a connection.
    Tcp,
    /// It answers `GET path` with a status of 200 to 399.
    Http {
        /// The path, with its leading slash.
        path: String,
    },
}

/// Why a text is no health check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HealthCheckError {
    /// It is none of the known kinds.
    #[error("unknown health check {0:?}: use tcp, http:/PATH or none")]
    Unknown(String),
    /// A path in a request line begins with a slash and has no spaces or control characters.
    #[error("health check path {0:?} has to begin with / and to be printable ASCII without spaces")]
    Path(String),
}

impl FromStr for HealthCheck {
    type Err = HealthCheckError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "tcp" => Ok(Self::Tcp),
            None if text == "none" => Ok(Self::None),
            Some(("http", path)) if path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Ok(Self::Http { path: path.to_owned() })
            }
            Some(("http", path)) => Err(HealthCheckError::Path(path.to_owned())),
            Some(_) | None => Err(HealthCheckError::Unknown(text.to_owned())),
        }
    }
}

impl fmt::Display for HealthCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Tcp => f.write_str("tcp"),
            Self::Http { path } => write!(f, "http:{path}"),
        }
    }
}

/// Why a backend is not healthy.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No connection.
    #[error("connect to {backend}: {}", reason(source))]
    Connect {
        /// Who was asked.
        backend: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// The connection broke before there was an answer.
    #[error("GET {path}: {}", reason(source))]
    Broken {
        /// What was asked for.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The time was over.
    #[error("{attempt}: no answer within {} ms", limit.as_millis())]
    TimedOut {
        /// What was attempted.
        attempt: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The answer is a refusal.
    #[error("GET {path}: status {status}")]
    Status {
        /// What was asked for.
        path: String,
        /// The HTTP status.
        status: u16,
    },
    /// The answer is not HTTP.
    #[error("GET {path}: the answer is not HTTP: {start:?}")]
    NotHttp {
        /// What was asked for.
        path: String,
        /// How the answer begins.
        start: String,
    },
}

/// Asks a backend once. The limit is for all of it, from the connection to the status.
///
/// # Errors
/// Whatever makes the backend unhealthy.
pub async fn probe(check: &HealthCheck, backend: SocketAddr, limit: Duration) -> Result<(), ProbeError> {
    let (attempt, verdict) = match check {
        HealthCheck::None => return Ok(()),
        HealthCheck::Tcp => (format!("connect to {backend}"), timeout(limit, probe_tcp(backend)).await),
        HealthCheck::Http { path } => (format!("GET {path}"), timeout(limit, probe_http(backend, path)).await),
    };
    verdict.unwrap_or(Err(ProbeError::TimedOut { attempt, limit }))
}

async fn probe_tcp(backend: SocketAddr) -> Result<(), ProbeError> {
    connect(backend).await.map(drop)
}

async fn probe_http(backend: SocketAddr, path: &str) -> Result<(), ProbeError> {
    let broken = |source| ProbeError::Broken { path: path.to_owned(), source };
    let mut stream = connect(backend).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {backend}\r\nUser-Agent: lb-user\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(broken)?;

    let header = read_header(&mut stream).await.map_err(broken)?;
    let Some(status) = status_of(&header) else {
        let start = String::from_utf8_lossy(&header[..header.len().min(32)]).into_owned();
        return Err(ProbeError::NotHttp { path: path.to_owned(), start });
    };
    // The verdict stands. Closing with unread bytes would reset the connection, which some servers log as an error.
    let _ = timeout(CLOSE_LIMIT, drain(&mut stream)).await;
    match status {
        200..=399 => Ok(()),
        _ => Err(ProbeError::Status { path: path.to_owned(), status }),
    }
}

async fn connect(backend: SocketAddr) -> Result<TcpStream, ProbeError> {
    TcpStream::connect(backend).await.map_err(|source| ProbeError::Connect { backend, source })
}

/// Reads to the end of the header, of the stream, or of what is tolerated, whichever comes first.
async fn read_header(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut header = Vec::with_capacity(1024);
    while header.len() < HEADER_LIMIT && !header.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut rest = (&mut *stream).take((HEADER_LIMIT - header.len()) as u64);
        if rest.read_buf(&mut header).await? == 0 {
            break;
        }
    }
    if header.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "connection closed without an answer"));
    }
    Ok(header)
}

async fn drain(stream: &mut TcpStream) -> io::Result<u64> {
    tokio::io::copy(&mut stream.take(BODY_LIMIT as u64), &mut tokio::io::sink()).await
}

/// Returns the status in the first line of an answer.
///
/// # Source
/// RFC 9112, 4: `HTTP-version SP 3DIGIT SP [ reason-phrase ]`; the last space is missing from some servers.
fn status_of(header: &[u8]) -> Option<u16> {
    let line = header.split(|byte| *byte == b'\n').next()?;
    let rest = line.strip_prefix(b"HTTP/1.1 ").or_else(|| line.strip_prefix(b"HTTP/1.0 "))?;
    let (digits, after) = rest.split_at_checked(3)?;
    if !digits.iter().all(u8::is_ascii_digit) || !matches!(after.first(), None | Some(b' ' | b'\r')) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Returns an error's cause in the words of the manual pages, without the number.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[test]
    fn checks_are_read_as_they_are_written() {
        for text in ["tcp", "none", "http:/", "http:/healthz?deep=1", "http:/a:b"] {
            assert_eq!(text.parse::<HealthCheck>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn other_texts_are_refused_with_advice() {
        let error = |text: &str| text.parse::<HealthCheck>().unwrap_err().to_string();

        assert_eq!(error("ping"), "unknown health check \"ping\": use tcp, http:/PATH or none");
        assert_eq!(error(""), "unknown health check \"\": use tcp, http:/PATH or none");
        assert_eq!(error("tcp:80"), "unknown health check \"tcp:80\": use tcp, http:/PATH or none");
        for path in ["http:", "http:healthz", "http:/a b", "http:/a\r\nX: y", "http:/é"] {
            assert!(error(path).contains("has to begin with /"), "{path}");
        }
    }

    #[test]
    fn the_status_is_in_the_first_line() {
        assert_eq!(status_of(b"HTTP/1.1 200 OK\r\n\r\n"), Some(200));
        assert_eq!(status_of(b"HTTP/1.0 301\r\n\r\n"), Some(301));
        assert_eq!(status_of(b"HTTP/1.1 503 \r\n"), Some(503));
        assert_eq!(status_of(b"HTTP/1.1 204"), Some(204));
        assert_eq!(status_of(b"HTTP/1.1 20"), None);
        assert_eq!(status_of(b"HTTP/1.1 2000 OK\r\n"), None);
        assert_eq!(status_of(b"HTTP/2 200\r\n"), None);
        assert_eq!(status_of(b"SSH-2.0-OpenSSH_9.2\r\n"), None);
        assert_eq!(status_of(b""), None);
        assert_eq!(status_of(b"\xff\xfe\n"), None);
    }

    #[tokio::test]
    async fn no_check_asks_nobody() {
        probe(&HealthCheck::None, nobody().await, LIMIT).await.unwrap();
    }

    #[tokio::test]
    async fn a_backend_that_accepts_is_healthy() {
        let backend = answering(b"").await;

        probe(&HealthCheck::Tcp, backend, LIMIT).await.unwrap();
    }

    #[tokio::test]
    async fn a_closed_port_is_named() {
        let backend = nobody().await;

        for check in [HealthCheck::Tcp, http()] {
            let error = probe(&check, backend, LIMIT).await.unwrap_err();
            assert_eq!(error.to_string(), format!("connect to {backend}: connection refused"));
        }
    }

    #[tokio::test]
    async fn statuses_from_200_to_399_are_healthy() {
        for answer in [&b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"[..], b"HTTP/1.0 302 Found\r\n\r\n"] {
            probe(&http(), answering(answer).await, LIMIT).await.unwrap();
        }
    }

    #[tokio::test]
    async fn other_statuses_are_told() {
        for (answer, status) in [(&b"HTTP/1.1 503 Busy\r\n\r\n"[..], 503), (b"HTTP/1.1 404 No\r\n\r\n", 404)] {
            let error = probe(&http(), answering(answer).await, LIMIT).await.unwrap_err();
            assert_eq!(error.to_string(), format!("GET /healthz: status {status}"));
        }
    }

    #[tokio::test]
    async fn the_request_is_complete() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let backend = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            String::from_utf8(request[..length].to_vec()).unwrap()
        });

        probe(&http(), backend, LIMIT).await.unwrap();

        let request = server.await.unwrap();
        assert!(request.starts_with("GET /healthz HTTP/1.1\r\n"), "{request}");
        assert!(request.contains(&format!("\r\nHost: {backend}\r\n")), "{request}");
        assert!(request.contains("\r\nConnection: close\r\n"), "{request}");
        assert!(request.ends_with("\r\n\r\n"), "{request}");
    }

    #[tokio::test]
    async fn garbage_is_shown_in_part() {
        let error = probe(&http(), answering(b"220 mail ready\r\n\r\n").await, LIMIT).await.unwrap_err();

        assert_eq!(error.to_string(), r#"GET /healthz: the answer is not HTTP: "220 mail ready\r\n\r\n""#);
    }

    #[tokio::test]
    async fn an_endless_header_is_cut_off() {
        let mut answer = b"HTTP/1.1 200 OK\r\n".to_vec();
        answer.resize(4 * BODY_LIMIT, b'x');

        probe(&http(), answering(&answer).await, LIMIT).await.unwrap();
    }

    #[tokio::test]
    async fn silence_ends_with_the_limit() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let limit = Duration::from_millis(50);

        let error = probe(&http(), listener.local_addr().unwrap(), limit).await.unwrap_err();

        assert_eq!(error.to_string(), "GET /healthz: no answer within 50 ms");
    }

    #[tokio::test]
    async fn a_connection_closed_without_an_answer_is_told() {
        let error = probe(&http(), answering(b"").await, LIMIT).await.unwrap_err();

        assert_eq!(error.to_string(), "GET /healthz: connection closed without an answer");
    }

    #[tokio::test]
    async fn a_verdict_does_not_wait_for_a_connection_kept_open() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let backend = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            std::future::pending::<()>().await;
        });

        probe(&http(), backend, LIMIT).await.unwrap();

        server.abort();
    }

    fn http() -> HealthCheck {
        HealthCheck::Http { path: "/healthz".into() }
    }

    /// Returns the address of a backend that reads a request, answers and closes.
    async fn answering(answer: &[u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = answer.to_vec();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(&answer).await;
        });
        address
    }

    /// Returns an address where nobody listens.
    async fn nobody() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
    }
}
