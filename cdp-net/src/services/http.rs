//! The place where Prometheus finds the metrics, and the way there: HTTP/1.1, one question a connection.

use super::facts::Board;
use super::metrics;
use super::scrape::{Sample, ScrapeError, parse};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HOST};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Handle};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Questions that are answered at once; more wait in the listener's queue.
const CONNECTIONS_MAX: usize = 16;
/// The most bytes of a question's head.
const HEAD_MAX: usize = 16 << 10;
/// A question is asked and answered within this.
const WITHIN: Duration = Duration::from_secs(10);
/// Where no connection can be accepted, it is tried again after this.
const PAUSE: Duration = Duration::from_millis(100);
/// The most bytes of an answer that is read.
const ANSWER_MAX: usize = 64 << 20;

/// Answers questions about the metrics until it is dropped.
#[derive(Debug)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Endpoint {
    /// Listens there, and answers with what is on the board then.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub fn start(address: SocketAddr, board: Board, runtime: &Handle) -> io::Result<Self> {
        let listener = runtime.block_on(TcpListener::bind(address))?;
        let address = listener.local_addr()?;
        Ok(Self { address, task: runtime.spawn(accept(listener, board)) })
    }
}

async fn accept(listener: TcpListener, board: Board) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((tcp, _)) => {
                let board = board.clone();
                tokio::spawn(async move {
                    // Whoever breaks off or dawdles has no answer.
                    let _ = timeout(WITHIN, serve(tcp, board)).await;
                    drop(place);
                });
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

async fn serve(tcp: TcpStream, board: Board) -> Result<(), hyper::Error> {
    let service = service_fn(move |request: Request<Incoming>| {
        let board = board.clone();
        async move { Ok::<_, Infallible>(answer(request.method(), request.uri().path(), &board)) }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server.keep_alive(false).max_buf_size(HEAD_MAX).timer(TokioTimer::new()).header_read_timeout(WITHIN);
    server.serve_connection(TokioIo::new(tcp), service).await
}

fn answer(method: &Method, path: &str, board: &Board) -> Response<Full<Bytes>> {
    let (status, kind, text) = match (method, path) {
        (_, path) if path != "/metrics" => {
            (StatusCode::NOT_FOUND, "text/plain", "the metrics are at /metrics\n".into())
        }
        (&Method::GET | &Method::HEAD, _) => (StatusCode::OK, metrics::CONTENT_TYPE, metrics::text(&board.get())),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "the metrics can only be read\n".into()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
    }
    response
}

/// Why there are no metrics.
#[derive(Debug, Error)]
pub enum FetchError {
    /// It is no place of metrics.
    #[error("{0:?} is no http://HOST:PORT/metrics")]
    Url(String),
    /// Nobody answers there.
    #[error("cannot reach {place}")]
    Connect {
        /// HOST:PORT.
        place: String,
        /// Why.
        source: io::Error,
    },
    /// The answer does not come.
    #[error("{place} gives no answer within {} s", WITHIN.as_secs())]
    Slow {
        /// HOST:PORT.
        place: String,
    },
    /// The answer broke off, is too long, or is no HTTP.
    #[error("{place} gives no whole answer: {why}")]
    Answer {
        /// HOST:PORT.
        place: String,
        /// What is wrong.
        why: String,
    },
    /// What is there is something else.
    #[error("{place} answers with {status}")]
    Status {
        /// HOST:PORT.
        place: String,
        /// The status.
        status: StatusCode,
    },
    /// The answer is no text of metrics.
    #[error("{place} answers with what is no text of metrics")]
    Text {
        /// HOST:PORT.
        place: String,
        /// What is wrong with it.
        source: ScrapeError,
    },
}

/// The metrics of a process, at `http://HOST:PORT/metrics`.
///
/// # Errors
/// Why there are none.
pub async fn fetch(url: &str) -> Result<Vec<Sample>, FetchError> {
    let wrong = || FetchError::Url(url.to_owned());
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(wrong)?;
    let place = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
    let text = match timeout(WITHIN, get(&uri, &place)).await {
        Ok(text) => text?,
        Err(_) => return Err(FetchError::Slow { place }),
    };
    parse(&text).map_err(|source| FetchError::Text { place, source })
}

/// Those of several processes, asked at once, in their order. For threads that are not of a runtime.
///
/// # Errors
/// When the system does not give what is needed to ask.
pub fn fetch_all(urls: &[String]) -> io::Result<Vec<Result<Vec<Sample>, FetchError>>> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(async {
        let asked: Vec<_> = urls.iter().cloned().map(|url| tokio::spawn(async move { fetch(&url).await })).collect();
        let mut answers = Vec::with_capacity(asked.len());
        for (asked, url) in asked.into_iter().zip(urls) {
            // A task that panicked has no answer.
            answers.push(asked.await.unwrap_or_else(|_| Err(FetchError::Url(url.clone()))));
        }
        answers
    }))
}

async fn get(uri: &Uri, place: &str) -> Result<String, FetchError> {
    let broken = |why: String| FetchError::Answer { place: place.to_owned(), why };
    let tcp = TcpStream::connect(place).await;
    let tcp = tcp.map_err(|source| FetchError::Connect { place: place.to_owned(), source })?;
    let hands = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await;
    let (mut sender, connection) = hands.map_err(|error| broken(error.to_string()))?;
    let connection = tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/metrics", |path| path.as_str());
    let request = Request::get(path).header(HOST, place).body(Full::<Bytes>::default());
    let request = request.map_err(|error| broken(error.to_string()))?;
    let answer = sender.send_request(request).await.map_err(|error| broken(error.to_string()))?;
    if answer.status() != StatusCode::OK {
        return Err(FetchError::Status { place: place.to_owned(), status: answer.status() });
    }
    let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
    connection.abort();
    let body = body.map_err(|error| broken(error.to_string()))?.to_bytes();
    String::from_utf8(body.into()).map_err(|error| broken(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::facts::{Facts, RoleFacts};
    use std::io::{Read, Write};
    use tokio::runtime::Runtime;

    fn endpoint() -> (Runtime, Board, Endpoint) {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let board = Board::default();
        let endpoint = Endpoint::start("127.0.0.1:0".parse().unwrap(), board.clone(), runtime.handle()).unwrap();
        (runtime, board, endpoint)
    }

    fn ask(address: SocketAddr, question: &str) -> String {
        let mut tcp = std::net::TcpStream::connect(address).unwrap();
        tcp.write_all(question.as_bytes()).unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn what_is_on_the_board_is_found() {
        let (runtime, board, endpoint) = endpoint();
        let url = format!("http://{}/metrics", endpoint.address);
        let names = |samples: Vec<Sample>| samples.into_iter().map(|sample| sample.name).collect::<Vec<_>>();
        let before = names(runtime.block_on(fetch(&url)).unwrap());
        assert!(!before.contains(&"cdp_role_up".to_owned()), "{before:?}");
        let role = RoleFacts { name: "gateway", ..RoleFacts::default() };
        board.set(Facts { roles: vec![role], ..Facts::default() });
        assert!(names(runtime.block_on(fetch(&url)).unwrap()).contains(&"cdp_role_up".to_owned()));
    }

    #[test]
    fn only_the_metrics_are_there_and_only_to_be_read() {
        let (_runtime, _, endpoint) = endpoint();
        let line = |question: &str| ask(endpoint.address, question).lines().next().unwrap().to_owned();
        assert_eq!(line("GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"), "HTTP/1.1 200 OK");
        assert_eq!(line("GET / HTTP/1.1\r\nhost: x\r\n\r\n"), "HTTP/1.1 404 Not Found");
        let posted = ask(endpoint.address, "POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
        assert!(posted.starts_with("HTTP/1.1 405 ") && posted.contains("allow: GET, HEAD\r\n"), "{posted}");
        let head = ask(endpoint.address, "HEAD /metrics HTTP/1.1\r\nhost: x\r\n\r\n");
        assert!(head.contains(metrics::CONTENT_TYPE) && head.ends_with("\r\n\r\n"), "{head}");
        let long = format!("GET /metrics HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(2 * HEAD_MAX));
        assert!(line(&long).starts_with("HTTP/1.1 4"));
    }

    #[test]
    fn who_dawdles_holds_up_nobody_else() {
        let (_runtime, _, endpoint) = endpoint();
        let dawdlers: Vec<_> = (1..CONNECTIONS_MAX)
            .map(|_| {
                let mut tcp = std::net::TcpStream::connect(endpoint.address).unwrap();
                tcp.write_all(b"GET /met").unwrap();
                tcp
            })
            .collect();
        assert!(ask(endpoint.address, "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").starts_with("HTTP/1.1 200 "));
        drop(dawdlers);
    }

    #[test]
    fn what_is_no_place_of_metrics_is_said() {
        let (runtime, _, endpoint) = endpoint();
        let fetch = |url: &str| runtime.block_on(fetch(url)).unwrap_err();
        for wrong in ["", "nonsense", "https://127.0.0.1:1/metrics", "http:///metrics"] {
            assert!(matches!(fetch(wrong), FetchError::Url(_)), "{wrong}");
        }
        assert!(matches!(fetch("http://127.0.0.1:1/metrics"), FetchError::Connect { .. }));
        let elsewhere = fetch(&format!("http://{}/other", endpoint.address));
        assert!(matches!(elsewhere, FetchError::Status { status: StatusCode::NOT_FOUND, .. }), "{elsewhere}");
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let place = other.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            for text in ["HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", "220 mail.example ESMTP\r\n"] {
                let (mut tcp, _) = other.accept().unwrap();
                let _ = tcp.read(&mut [0; 1024]).unwrap();
                tcp.write_all(text.as_bytes()).unwrap();
            }
        });
        assert!(matches!(fetch(&format!("http://{place}/metrics")), FetchError::Text { .. }));
        assert!(matches!(fetch(&format!("http://{place}/metrics")), FetchError::Answer { .. }));
        thread.join().unwrap();
    }
}
