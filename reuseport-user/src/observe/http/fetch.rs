//! The client of the agent's server.

use std::io;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::Endpoint;

/// For the whole exchange.
const LIMIT: Duration = Duration::from_secs(10);
/// Most bytes of an answer: thousands of listeners have some megabytes.
const LARGEST: usize = 64 << 20;

/// Why nothing was fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody listens there.
    #[error("connect to {endpoint}: {source}; is an agent running with `--metrics {endpoint}`?")]
    Connect {
        /// Where.
        endpoint: Endpoint,
        /// What the kernel said.
        source: io::Error,
    },
    /// It took too long.
    #[error("{0} does not answer")]
    Silent(Endpoint),
    /// What listens there is no agent.
    #[error("{endpoint} answers, but not as an agent does: {why}")]
    Stranger {
        /// Where.
        endpoint: Endpoint,
        /// What is wrong.
        why: String,
    },
}

/// What `endpoint` answers for `path`. Needs a tokio runtime with I/O and time.
pub async fn fetch(endpoint: &Endpoint, path: &str) -> Result<Bytes, FetchError> {
    let exchange = async {
        let connect = |source| FetchError::Connect { endpoint: endpoint.clone(), source };
        match endpoint {
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect(address).await.map_err(connect)?;
                exchange(stream, endpoint, path).await
            }
            Endpoint::Unix(file) => {
                let stream = UnixStream::connect(file).await.map_err(connect)?;
                exchange(stream, endpoint, path).await
            }
        }
    };
    let silent = |_elapsed| FetchError::Silent(endpoint.clone());
    timeout(LIMIT, exchange).await.map_err(silent)?
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    endpoint: &Endpoint,
    path: &str,
) -> Result<Bytes, FetchError> {
    let stranger = |why: String| FetchError::Stranger { endpoint: endpoint.clone(), why };
    let odd = |error: hyper::Error| stranger(error.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(odd)?;
    let request = Request::get(path).header(HOST, "localhost").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| stranger(error.to_string()))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(odd)?;
        if response.status() != StatusCode::OK {
            return Err(stranger(response.status().to_string()));
        }
        let body = Limited::new(response.into_body(), LARGEST).collect().await;
        Ok(body.map_err(|error| stranger(error.to_string()))?.to_bytes())
    };
    let (answer, _connection) = tokio::join!(answer, connection);
    answer
}
