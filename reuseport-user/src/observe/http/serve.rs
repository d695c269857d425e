//! The server. It has a thread of its own, and whatever its clients do costs no more than that thread
//! may take: few connections, each short and for one request, and snapshots that are taken seldom
//! enough to use a tenth of a CPU at most. Locks of the agent are held as long as it takes to copy
//! its state.

use std::cell::RefCell;
use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};

use super::Endpoint;
use crate::observe::{Snapshot, metrics};

/// Connections at a time; more wait in the accept queue.
const CONNECTIONS: usize = 16;
/// For a request to arrive.
const REQUEST: Duration = Duration::from_secs(2);
/// For a whole connection.
const CONNECTION: Duration = Duration::from_secs(5);
/// Most bytes of a request's head.
const HEAD: usize = 16 * 1024;
/// Least age of a snapshot before another is taken.
const AGE: Duration = Duration::from_millis(500);
/// How many times as long as it took a snapshot has to serve.
const REST: u32 = 9;

/// What takes snapshots.
type Source = Box<dyn FnMut() -> Snapshot + Send>;

/// Serves snapshots until it is dropped.
#[derive(Debug)]
pub struct Server {
    /// Dropped to end the thread.
    stop: Option<oneshot::Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
    endpoint: Endpoint,
}

/// Why it cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Others than this machine could read it.
    #[error(
        "{0} can be reached from other machines, without encryption or password: choose 127.0.0.1, \
         [::1] or unix:PATH, or say --metrics-remote"
    )]
    Remote(Endpoint),
    /// Somebody else listens there.
    #[error("somebody else listens on {0}: choose another address")]
    Taken(Endpoint),
    /// The kernel refused.
    #[error("listen on {endpoint}: {source}")]
    Listen {
        /// Where.
        endpoint: Endpoint,
        /// What it said.
        source: io::Error,
    },
}

impl Server {
    /// Listens and starts to serve what `source` sees; `remote` permits addresses that other machines
    /// can reach.
    pub fn start(
        endpoint: Endpoint,
        remote: bool,
        source: impl FnMut() -> Snapshot + Send + 'static,
    ) -> Result<Self, ServeError> {
        if !remote && !endpoint.is_local() {
            return Err(ServeError::Remote(endpoint));
        }
        let (stop, stopped) = oneshot::channel();
        let thread = Listener::open(&endpoint).and_then(|listener| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let work = move || {
                let serving = serve(listener, Box::new(source));
                LocalSet::new().block_on(&runtime, async {
                    tokio::select! {
                        _dropped = stopped => {}
                        () = serving => {}
                    }
                });
            };
            std::thread::Builder::new().name("metrics".to_owned()).spawn(work)
        });
        match thread {
            Ok(thread) => Ok(Self { stop: Some(stop), thread: Some(thread), endpoint }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                Err(ServeError::Taken(endpoint))
            }
            Err(source) => Err(ServeError::Listen { endpoint, source }),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _panicked = self.thread.take().map(JoinHandle::join);
        if let Endpoint::Unix(path) = &self.endpoint {
            let _gone = fs::remove_file(path);
        }
    }
}

/// A listening socket.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn open(endpoint: &Endpoint) -> io::Result<Self> {
        Ok(match endpoint {
            Endpoint::Tcp(address) => {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Self::Tcp(listener)
            }
            Endpoint::Unix(path) => {
                let listener = bind(path)?;
                listener.set_nonblocking(true)?;
                Self::Unix(listener)
            }
        })
    }
}

/// Binds a socket file, in the place of one that nobody listens on any more. Owner and group may
/// connect.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path).or_else(|error| {
        let socket = fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_socket());
        let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        if error.kind() == io::ErrorKind::AddrInUse
            && socket
            && UnixStream::connect(path).is_err_and(refused)
        {
            fs::remove_file(path)?;
            UnixListener::bind(path)
        } else {
            Err(error)
        }
    })?;
    fs::set_permissions(path, Permissions::from_mode(0o660))?;
    Ok(listener)
}

async fn serve(listener: Listener, source: Source) {
    let view = Rc::new(RefCell::new(View { source, told: None }));
    match listener {
        Listener::Tcp(listener) => {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            accept(async || Ok(listener.accept().await?.0), view).await;
        }
        Listener::Unix(listener) => {
            let Ok(listener) = tokio::net::UnixListener::from_std(listener) else { return };
            accept(async || Ok(listener.accept().await?.0), view).await;
        }
    }
}

async fn accept<S, F>(next: impl Fn() -> F, view: Rc<RefCell<View>>)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    F: Future<Output = io::Result<S>>,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok(stream) = next().await else {
            // Out of descriptors, say: that passes, and must not be asked for without a pause.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let view = Rc::clone(&view);
        tokio::task::spawn_local(async move {
            let answer = service_fn(move |request: Request<Incoming>| {
                let answer = answer(request.method(), request.uri().path(), &view);
                async { Ok::<_, Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .keep_alive(false)
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST)
                .max_buf_size(HEAD)
                .serve_connection(TokioIo::new(stream), answer);
            // Whatever went wrong, it was the client's doing or it went away.
            let _client = timeout(CONNECTION, connection).await;
            drop(place);
        });
    }
}

fn answer(method: &Method, path: &str, view: &RefCell<View>) -> Response<Full<Bytes>> {
    let mut view = view.borrow_mut();
    let plain = |status, text: String| (status, "text/plain", Bytes::from(text));
    let (status, kind, body) = match path {
        "/metrics" | "/state" if method != Method::GET => {
            plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned())
        }
        "/metrics" | "/state" => match view.look() {
            Ok(told) if path == "/metrics" => {
                (StatusCode::OK, metrics::CONTENT_TYPE, told.metrics.clone())
            }
            Ok(told) => (StatusCode::OK, "application/json", told.state.clone()),
            Err(why) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")),
        },
        _ => plain(StatusCode::NOT_FOUND, "try /metrics or /state\n".to_owned()),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
    }
    response
}

/// The latest snapshot, taken anew when it is asked for and old enough.
struct View {
    source: Source,
    told: Option<Told>,
}

/// What is told of a snapshot, written down once however many ask.
struct Told {
    metrics: Bytes,
    state: Bytes,
    expires: Instant,
}

impl View {
    fn look(&mut self) -> Result<&Told, String> {
        let now = Instant::now();
        let told = match self.told.take().filter(|told| now < told.expires) {
            Some(told) => told,
            None => Told::of(&(self.source)(), now)?,
        };
        Ok(self.told.insert(told))
    }
}

impl Told {
    /// Of a snapshot that was begun at `began`.
    fn of(snapshot: &Snapshot, began: Instant) -> Result<Self, String> {
        let metrics = metrics::text(&metrics::collect(snapshot)).map_err(|error| error.to_string());
        let state = serde_json::to_vec(snapshot).map_err(|error| error.to_string());
        let (metrics, state) = (metrics?.into(), state?.into());
        let end = Instant::now();
        Ok(Self { metrics, state, expires: end + AGE.max((end - began) * REST) })
    }
}
