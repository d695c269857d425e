//! What an agent tells over HTTP: `/metrics` for Prometheus, `/state` for `top`. Opt-in, and on this
//! machine only unless told otherwise: there is no encryption and no password.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

mod fetch;
mod serve;

pub use fetch::{FetchError, fetch};
pub use serve::{ServeError, Server};

/// Where to listen, or to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `127.0.0.1:9464`, `[::1]:9464`.
    Tcp(SocketAddr),
    /// `unix:/run/reuseport-steer.sock`.
    Unix(PathBuf),
}

/// Neither an address nor a path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is neither an address such as 127.0.0.1:9464 nor a socket such as unix:/run/steer.sock"
)]
pub struct EndpointError(String);

impl Endpoint {
    /// Whether only this machine can reach it.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let endpoint = match text.strip_prefix("unix:") {
            Some(path) => {
                Some(path).filter(|it| it.starts_with('/')).map(|it| Self::Unix(it.into()))
            }
            None => text.parse().ok().map(Self::Tcp),
        };
        endpoint.ok_or_else(|| EndpointError(text.to_owned()))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests;
