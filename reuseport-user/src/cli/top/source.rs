//! Where `top` looks: at the pins and the sockets by itself, or at what an agent tells.

use anyhow::{Context as _, Result};

use crate::discover::Target;
use crate::observe::Snapshot;
use crate::observe::http::{Endpoint, fetch};
use crate::steer::{Settings, status};

/// What takes snapshots.
pub(super) struct Source {
    /// Where it looks, in words.
    pub(super) name: String,
    take: Box<dyn FnMut() -> Result<Snapshot> + Send>,
}

impl Source {
    pub(super) fn new(
        name: String,
        take: impl FnMut() -> Result<Snapshot> + Send + 'static,
    ) -> Self {
        Self { name, take: Box::new(take) }
    }

    /// By itself.
    pub(super) fn pins(target: Option<Target>, settings: Settings) -> Self {
        Self::new("pins and sockets".to_owned(), move || {
            Ok(Snapshot::of(status(target.as_ref(), &settings)?))
        })
    }

    /// By an agent.
    pub(super) fn agent(endpoint: Endpoint) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self::new(format!("agent at {endpoint}"), move || {
            let state = runtime.block_on(fetch(&endpoint, "/state"))?;
            serde_json::from_slice(&state).with_context(|| {
                format!("read what {endpoint} tells: is its agent of another version?")
            })
        }))
    }

    /// Looks.
    pub(super) fn take(&mut self) -> Result<Snapshot> {
        (self.take)()
    }
}
