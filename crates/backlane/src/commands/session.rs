//! A command's way to this host's repository: configuration, session with the server, repository.
//!
//! Invariants: whatever happens in between, the session is closed before the command ends, so that its segments in the
//! pool are free; a storage route that could not be used is named, with its reason.

use super::{
    server,
    status::{self, ProcessDocument},
    store::{Memory, Remote},
    summary::Routes,
};
use crate::{
    Context,
    cli::RouteArgs,
    config::{self, ClientFile, StateFiles},
    failure::Advise,
    progress::Carried,
    signals::Cancel,
};
use anyhow::{Context as _, Result, bail};
use backlane_net::{Blocking, Identity, Session};
use backlane_proto::{ObjectId, ObjectKind, ObjectName, RoutePolicy, SessionFor};
use backlane_repo::{InitOptions, ObjectStore, RepoError, Repository, StoreError};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};
use zeroize::Zeroizing;

/// How long an interrupted job gets to end by itself, with the index of what it stored, before its session is closed
/// under it.
const JOB_GRACE: Duration = Duration::from_secs(15);

/// How long calls of a session for WAL wait for a route or a connection. Whoever archives tries again, and is to be told.
const WAL_ROUTE_WAIT: Duration = Duration::from_secs(30);

/// How often, and with what pause, a job looks whether the repository is there that another job is making.
const FOUNDING_LOOKS: u32 = 40;
const FOUNDING_PAUSE: Duration = Duration::from_millis(250);

/// An open session, and the repository behind it.
pub(crate) struct Client {
    /// The configuration that it was opened by.
    pub(crate) config: ClientFile,
    session: Blocking,
    store: Arc<dyn ObjectStore>,
    password: Zeroizing<String>,
}

impl Client {
    /// This host's name as the server knows it.
    pub(crate) fn host(&self) -> &str {
        self.session.session().host()
    }

    /// The session.
    pub(crate) fn session(&self) -> &Session {
        self.session.session()
    }

    /// The objects behind it.
    pub(crate) fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.store)
    }

    /// When the objects of a kind arrived at the server.
    ///
    /// # Errors
    /// When it doesn't say.
    pub(crate) fn arrivals(&self, kind: ObjectKind) -> Result<BTreeMap<ObjectId, SystemTime>> {
        let arrived = self.session.arrivals(kind)?.into_iter().map(|arrived| {
            let since = Duration::from_millis(u64::try_from(arrived.at_ms).unwrap_or(0));
            (arrived.id, SystemTime::UNIX_EPOCH + since)
        });
        Ok(arrived.collect())
    }

    /// Removes an object.
    ///
    /// # Errors
    /// When the server doesn't permit it.
    pub(crate) fn remove(&self, name: ObjectName) -> Result<(), StoreError> {
        self.store.remove(name)
    }

    /// Opens the repository.
    ///
    /// # Errors
    /// When there is none yet, or the key file is not its key.
    pub(crate) fn repository(&self) -> Result<Repository> {
        self.opened(Repository::open(Arc::clone(&self.store), &self.password))
    }

    /// Opens the repository, and makes it where there is none: for the first backup. A dry run makes one in memory.
    ///
    /// # Errors
    /// As [`Client::repository`].
    pub(crate) fn repository_or_new(&self, dry_run: bool) -> Result<Repository> {
        let opened = Repository::open(Arc::clone(&self.store), &self.password);
        if !matches!(opened, Err(RepoError::NotARepository { .. })) {
            return self.opened(opened);
        }
        let store: Arc<dyn ObjectStore> = match dry_run {
            true => Arc::new(Memory::default()),
            false => Arc::clone(&self.store),
        };
        let options = InitOptions {
            host: Some(self.host().to_owned()),
            ..InitOptions::default()
        };
        let init = || Repository::init(Arc::clone(&store), &self.password, &options);
        let made = match init() {
            // Or a connection was lost between the key and the config: the next is another session, which begins anew.
            Err(error) if is_made_by_another(&error) => init(),
            made => made,
        };
        match made {
            Err(error) if is_made_by_another(&error) => self.repository_of_another(error),
            made => made.context("cannot make this host's repository"),
        }
    }

    /// Waits for the repository that another job of this host is making.
    fn repository_of_another(&self, refused: RepoError) -> Result<Repository> {
        for _ in 0..FOUNDING_LOOKS {
            let opened = Repository::open(Arc::clone(&self.store), &self.password);
            if !matches!(opened, Err(RepoError::NotARepository { .. })) {
                return self.opened(opened);
            }
            std::thread::sleep(FOUNDING_PAUSE);
        }
        Err(refused).context("cannot make this host's repository")
    }

    fn opened(&self, opened: Result<Repository, RepoError>) -> Result<Repository> {
        let hint = match &opened {
            Err(RepoError::NotARepository { .. }) => "the first `backlane backup` makes it",
            Err(RepoError::WrongPassword { .. }) => {
                "the key file must be the one that this host's repository was made with"
            }
            _ => return opened.context("cannot open this host's repository"),
        };
        let key = self.config.repository_key();
        opened
            .with_context(|| {
                format!(
                    "cannot open this host's repository with the key file {}",
                    key.display()
                )
            })
            .advise(hint)
    }

    /// What each route carried so far, and why storage can't be used if it can't.
    pub(crate) fn routes(&self) -> Routes {
        let session = self.session.session();
        let mut routes = Routes::new(&self.session.report(), session.policy());
        if session.policy() != RoutePolicy::Network
            && let Err(down) = session.routes().storage
        {
            routes.storage_down = Some(down.to_string());
            routes.storage_down_reason = Some(down.reason.name().to_owned());
            routes.storage_down_code = Some(down.reason.code());
        }
        routes
    }

    /// The same, to be asked again and again.
    pub(crate) fn carried(&self) -> impl Fn() -> Carried + Send + Sync + 'static {
        let session = self.session.session().clone();
        move || {
            let report = session.report();
            Carried {
                storage: report.storage().bytes,
                network: report.network().bytes,
            }
        }
    }
}

/// Whether the server refused a new repository because it has one, or is getting one from another job.
fn is_made_by_another(error: &RepoError) -> bool {
    let cause = match error {
        RepoError::AlreadyExists => return true,
        RepoError::Store(cause) => cause,
        RepoError::WriteFailed { cause } => cause,
        _ => return false,
    };
    matches!(cause, StoreError::Denied { .. })
}

/// Runs a command that only reads; an interruption ends its session at once.
///
/// # Errors
/// When the server can't be reached, or `work` fails.
pub(crate) fn with<T>(
    command: &str,
    context: &Context,
    route: &RouteArgs,
    work: impl FnOnce(&Client) -> Result<T>,
) -> Result<T> {
    let how = (SessionFor::Jobs, Duration::ZERO);
    run(command, context, route, how, work)
}

/// Runs a job; interrupted, it gets a while to end by itself.
///
/// # Errors
/// When the server can't be reached, or `work` fails.
pub(crate) fn job<T>(
    command: &str,
    context: &Context,
    route: &RouteArgs,
    work: impl FnOnce(&Client) -> Result<T>,
) -> Result<T> {
    run(command, context, route, (SessionFor::Jobs, JOB_GRACE), work)
}

/// Runs what removes objects, with the repository to itself. Interrupted, it gets a while to end by itself.
///
/// # Errors
/// When the server can't be reached or doesn't permit it, other sessions are open, or `work` fails.
pub(crate) fn maintenance<T>(
    command: &str,
    context: &Context,
    route: &RouteArgs,
    work: impl FnOnce(&Client) -> Result<T>,
) -> Result<T> {
    let how = (SessionFor::Maintenance, JOB_GRACE);
    run(command, context, route, how, work)
}

/// Runs what has to do with archived WAL, beside maintenance of the repository; an interruption ends its session at once.
///
/// # Errors
/// When the server can't be reached, or `work` fails.
pub(crate) fn wal<T>(
    command: &str,
    context: &Context,
    route: &RouteArgs,
    work: impl FnOnce(&Client) -> Result<T>,
) -> Result<T> {
    let how = (SessionFor::Wal, Duration::ZERO);
    run(command, context, route, how, work)
}

fn run<T>(
    command: &str,
    context: &Context,
    route: &RouteArgs,
    (session_for, grace): (SessionFor, Duration),
    work: impl FnOnce(&Client) -> Result<T>,
) -> Result<T> {
    let client = open(context, route, session_for)?;
    let _status = status::of_client(
        context,
        &client.config.state,
        ProcessDocument::new(command, client.config.server.clone()),
        client.session.session().clone(),
    );
    let watcher = context.runtime.spawn(close_when_cancelled(
        context.cancel.clone(),
        client.session.session().clone(),
        grace,
    ));
    let done = work(&client);
    watcher.abort();
    let Client { session, store, .. } = client;
    drop(store);
    let closed = context
        .runtime
        .block_on(session.session().clone().close())
        .context("the session did not end in good order");
    match (done, closed) {
        (Ok(done), Ok(_)) => Ok(done),
        // What the job says of it is what closing the session under it looked like.
        (Err(_), _) if context.cancel.is_set() => bail!("interrupted"),
        (Err(error), _) => Err(error),
        (Ok(done), Err(error)) => {
            // The result stands: everything in it was confirmed before.
            context.output.warning(format!("{error:#}"));
            Ok(done)
        }
    }
}

/// Closing a session makes its calls fail, so that whoever waits for one comes back.
async fn close_when_cancelled(cancel: Cancel, session: Session, grace: Duration) {
    cancel.wait().await;
    tokio::time::sleep(grace).await;
    if let Err(error) = session.close().await {
        tracing::info!(%error, "closing the interrupted session");
    }
}

/// Gets another certificate for this host's key, and puts it in the place of the one that expires soon.
async fn renew(session: &Session, identity: &Identity, file: &Path) -> Result<()> {
    let pem = session.renew(identity.request()?).await?;
    let new = file.with_extension("pem.new");
    let replaced = async {
        tokio::fs::write(&new, pem).await?;
        tokio::fs::File::open(&new).await?.sync_all().await?;
        tokio::fs::rename(&new, file).await
    };
    let cannot = || format!("cannot replace {}", file.display());
    replaced.await.with_context(cannot)
}

/// Names the server, where what went wrong doesn't.
fn no_session(error: backlane_net::Error, server: &str) -> anyhow::Error {
    let context = match error.to_string().contains(server) {
        true => "no session".to_owned(),
        false => format!("no session with server {server}"),
    };
    anyhow::Error::new(error).context(context)
}

fn open(context: &Context, route: &RouteArgs, session_for: SessionFor) -> Result<Client> {
    let config = ClientFile::read(&config::path(context.config.as_deref()))?;
    let password = config::read_key(&config.repository_key())?;
    let mut how = config.session(context.pool_engine)?;
    how.session_for = session_for;
    if session_for == SessionFor::Wal {
        how.route_wait = WAL_ROUTE_WAIT;
    }
    if let Some(route) = route.route {
        how.policy = route.into();
    }
    if let Some(wait) = route.route_wait {
        how.route_wait = wait;
    }
    how.limits.network = route.limit_network.or(how.limits.network);
    how.limits.storage = route.limit_storage.or(how.limits.storage);
    let identity = how.identity.clone();
    let session = context.runtime.block_on(async {
        tokio::select! {
            session = Session::connect(how) => session.map_err(|error| no_session(error, &config.server)),
            () = context.cancel.wait() => bail!("interrupted while connecting to {}", config.server),
        }
    })?;
    if let Some(expires) = identity.expires_soon(SystemTime::now()) {
        let file = StateFiles::below(&config.state).certificate;
        let renewed = context.runtime.block_on(renew(&session, &identity, &file));
        if let Err(error) = renewed {
            context.output.warning(format!(
                "this host's certificate {} is good until {} and could not be renewed: {error:#}",
                file.display(),
                server::time(expires)
            ));
        }
    }
    let session = Blocking::new(session, context.runtime.handle().clone());
    Ok(Client {
        store: Arc::new(Remote(session.clone())),
        config,
        session,
        password,
    })
}
