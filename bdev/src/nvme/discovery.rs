//! Discovery services: what a discovery log lists is attached, and detached when it is not listed any more.
//!
//! Controllers are named after their service: `NAME0`, `NAME1`, ... in the order in which their subsystems were first seen. Of
//! several addresses of a subsystem one is used at a time. Referrals are not followed: they are tried in place of the service's own
//! address when that cannot be reached.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longshore_nvme::host::{Controller, ControllerEvent, DiscoveryLog, TransportId, within};
use longshore_nvme::wire::AsyncEvent;
use longshore_nvme::wire::discovery::{subtype, trtype};
use longshore_reactor::{Reactor, oneshot};

use super::controllers::{AttachError, Controllers, PathFilter};
use super::options::AttachOptions;

/// Between attempts to reach the discovery controller, or a subsystem that could not be attached or was lost.
const PAUSE: Duration = Duration::from_secs(1);
/// Subsystems and referrals of a log that are looked at: a bound against one that lists any number.
const MAX_LISTED: usize = 1024;

/// What is known of a discovery service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryInfo {
    /// Its name.
    pub name: String,
    /// Where it was started.
    pub id: TransportId,
    /// How it attaches what it finds.
    pub options: AttachOptions,
    /// Its start waited until everything was attached.
    pub wait_for_attach: bool,
    /// Discovery services that its log refers to.
    pub referrals: Vec<TransportId>,
}

/// A subsystem that was listed once.
struct Known {
    name: String,
    /// The path that is attached.
    at: Option<TransportId>,
    /// All paths that are listed.
    listed: Vec<TransportId>,
    /// It could not be attached, or was lost: it is tried again.
    retry: bool,
    /// That it cannot be attached was said.
    told: bool,
}

#[derive(Default)]
struct Seen {
    known: BTreeMap<String, Known>,
    /// How many were ever seen.
    count: u64,
    referrals: Vec<TransportId>,
}

pub(super) struct Service {
    name: String,
    id: TransportId,
    options: AttachOptions,
    wait_for_attach: bool,
    stopping: AtomicBool,
    /// The log changed.
    changed: AtomicBool,
    /// The discovery controller is lost.
    lost: AtomicBool,
    wake: Mutex<Option<oneshot::Sender<()>>>,
    seen: Mutex<Seen>,
    ended: Mutex<Option<oneshot::Receiver<()>>>,
}

fn locked<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Service {
    pub(super) fn info(&self) -> DiscoveryInfo {
        DiscoveryInfo {
            name: self.name.clone(),
            id: self.id.clone(),
            options: self.options.clone(),
            wait_for_attach: self.wait_for_attach,
            referrals: locked(&self.seen).referrals.clone(),
        }
    }

    fn wake(&self) {
        let wake = locked(&self.wake).take();
        drop(wake); // the other end finds out
    }

    fn raise(&self, flag: &AtomicBool) {
        flag.store(true, Ordering::Release);
        self.wake();
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Waits until something is to be done, for `PAUSE` at most.
    async fn pause(self: &Arc<Self>, r: &Reactor) {
        let (tx, rx) = oneshot::channel();
        *locked(&self.wake) = Some(tx);
        if [&self.stopping, &self.changed, &self.lost].iter().any(|f| f.load(Ordering::Acquire)) {
            return;
        }
        let me = self.clone();
        let _timer = r.timer(PAUSE, move |_| me.wake());
        let _ = rx.await;
    }

    /// A controller was lost for too long and removed.
    pub(super) fn controller_lost(&self, name: &str) {
        for k in locked(&self.seen).known.values_mut().filter(|k| k.name == name) {
            k.at = None;
            k.retry = true;
        }
    }

    async fn run(
        self: Arc<Self>,
        r: Reactor,
        all: Arc<Controllers>,
        mut first: Option<oneshot::Sender<Result<(), AttachError>>>,
    ) {
        let mut told = false;
        while !self.stopping() {
            let places: Vec<_> = [self.id.clone()].into_iter().chain(locked(&self.seen).referrals.clone()).collect();
            for id in places {
                self.lost.store(false, Ordering::Release);
                let me = self.clone();
                let mut host = all.options().host(&self.options);
                host.events = Some(Arc::new(move |e| match e {
                    ControllerEvent::Async(AsyncEvent::DISCOVERY_CHANGED) => me.raise(&me.changed),
                    ControllerEvent::Async(_) => {}
                    _ => me.raise(&me.lost),
                }));
                match Controller::connect(&r.handle(), id, host).await {
                    Ok(ctrl) => {
                        told = false;
                        self.serve(&r, &all, &ctrl, &mut first).await;
                        ctrl.disconnect(!self.lost.load(Ordering::Acquire)).await;
                        break;
                    }
                    Err(e) if !told => tracing::warn!("discovery service {}: {e}", self.name),
                    Err(_) => {}
                }
                told = true;
            }
            self.lost.store(false, Ordering::Release);
            self.pause(&r).await;
        }
    }

    /// Follows the log of a discovery controller until it is lost or the service is stopped.
    async fn serve(
        self: &Arc<Self>,
        r: &Reactor,
        all: &Arc<Controllers>,
        ctrl: &Arc<Controller>,
        first: &mut Option<oneshot::Sender<Result<(), AttachError>>>,
    ) {
        let mut fresh = true;
        while !self.stopping() && !self.lost.load(Ordering::Acquire) {
            if self.changed.swap(false, Ordering::AcqRel) || fresh {
                match ctrl.discovery_log().await {
                    Ok(log) => self.take(all, &log).await,
                    Err(e) => {
                        tracing::warn!("discovery service {}: its log cannot be read: {e}", self.name);
                        return;
                    }
                }
                fresh = false;
            }
            let end = self.attach(all).await;
            if let Some(tx) = first.take() {
                let _ = tx.send(end);
            }
            self.pause(r).await;
        }
    }

    /// Takes over a log: detaches what is not listed any more.
    async fn take(&self, all: &Controllers, log: &DiscoveryLog) {
        let (mut listed, mut referrals) = (BTreeMap::<String, Vec<TransportId>>::new(), Vec::new());
        for e in log.entries.iter().filter(|e| e.trtype == trtype::TCP).take(MAX_LISTED) {
            let (Ok(ip), Ok(port), Some(nqn)) = (e.traddr().parse(), e.trsvcid().parse(), e.subnqn.get()) else {
                tracing::warn!("discovery service {}: an entry names '{}' '{}'", self.name, e.traddr(), e.trsvcid());
                continue;
            };
            let id = TransportId::tcp(std::net::SocketAddr::new(ip, port), nqn);
            match e.subtype {
                subtype::NVM => listed.entry(nqn.to_owned()).or_default().push(id),
                subtype::REFERRAL if id.addr != self.id.addr => referrals.push(id),
                _ => {}
            }
        }
        let gone: Vec<(String, TransportId)> = {
            let mut seen = locked(&self.seen);
            seen.referrals = referrals;
            let mut gone = Vec::new();
            for (nqn, k) in &mut seen.known {
                k.listed = listed.remove(nqn).unwrap_or_default();
                k.retry = true;
                let away = k.at.take_if(|at| !k.listed.contains(at));
                gone.extend(away.map(|at| (k.name.clone(), at)));
            }
            for (nqn, ids) in listed {
                let name = format!("{}{}", self.name, seen.count);
                seen.count += 1;
                seen.known.insert(nqn, Known { name, at: None, listed: ids, retry: true, told: false });
            }
            // One that comes back gets its name back, as long as there are not too many to remember.
            if seen.known.len() > MAX_LISTED {
                seen.known.retain(|_, k| !k.listed.is_empty());
            }
            gone
        };
        for (name, at) in gone {
            let _ = all.detach(&name, &only(&at)).await;
        }
    }

    /// Attaches what is listed, not attached, and to be tried.
    async fn attach(&self, all: &Controllers) -> Result<(), AttachError> {
        let wanted: Vec<(String, String, Vec<TransportId>)> = {
            let mut seen = locked(&self.seen);
            let open = |k: &Known| k.at.as_ref().is_none_or(|at| all.id_of(&k.name).as_ref() != Some(at));
            let due = seen.known.iter_mut().filter_map(|(nqn, k)| {
                let due = std::mem::take(&mut k.retry) && open(k);
                due.then(|| (nqn.clone(), k.name.clone(), k.listed.clone()))
            });
            due.collect()
        };
        let mut end = Ok(());
        for (nqn, name, ids) in wanted {
            for id in ids {
                if self.stopping() {
                    return end;
                }
                let r = all.attach(&name, id.clone(), self.options.clone()).await;
                let mut seen = locked(&self.seen);
                let Some(k) = seen.known.get_mut(&nqn) else { break };
                match r {
                    Ok(_) => {
                        (k.at, k.retry, k.told) = (Some(id), false, false);
                        break;
                    }
                    Err(e) => {
                        if !std::mem::replace(&mut k.told, true) {
                            tracing::warn!("discovery service {}: {nqn} at {}: {e}", self.name, id.addr);
                        }
                        k.retry = true;
                        end = Err(e);
                    }
                }
            }
        }
        end
    }

    /// Stops the service and detaches what it attached.
    async fn stop(&self, all: &Controllers) {
        self.raise(&self.stopping);
        let ended = locked(&self.ended).take();
        if let Some(ended) = ended {
            let _ = ended.await;
        }
        let attached: Vec<_> = {
            let mut seen = locked(&self.seen);
            seen.known.values_mut().filter_map(|k| k.at.take().map(|at| (k.name.clone(), at))).collect()
        };
        for (name, at) in attached {
            let _ = all.detach(&name, &only(&at)).await;
        }
    }
}

fn only(id: &TransportId) -> PathFilter {
    PathFilter {
        traddr: Some(id.traddr().to_string()),
        trsvcid: Some(id.addr.port().to_string()),
        subnqn: Some(id.subnqn.clone()),
    }
}

impl Controllers {
    /// Starts to attach what the discovery service at `id` lists. `wait`: answers when that was done once, `limit` at the latest.
    ///
    /// # Errors
    /// The name is taken or another service is at `id`; with `wait` also: something could not be attached, or not in time. Nothing
    /// is left behind.
    pub async fn start_discovery(
        self: &Arc<Self>,
        name: &str,
        id: TransportId,
        options: AttachOptions,
        wait: bool,
        limit: Option<Duration>,
    ) -> Result<(), AttachError> {
        let service = Arc::new(Service {
            name: name.to_owned(),
            id,
            options: AttachOptions { discovered: true, ..options },
            wait_for_attach: wait,
            stopping: AtomicBool::new(false),
            changed: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            wake: Mutex::default(),
            seen: Mutex::default(),
            ended: Mutex::default(),
        });
        {
            let mut all = self.services();
            if name.is_empty() || all.values().any(|s| s.name == name || s.id == service.id) {
                return Err(AttachError::ServiceExists(format!(
                    "a discovery service needs a name and an address of its own, not '{name}' and {}",
                    service.id.addr
                )));
            }
            all.insert(name.to_owned(), service.clone());
        }
        let (tx, rx) = oneshot::channel();
        let (me, s, core) = (self.clone(), service.clone(), self.core_for(name.len() as u64));
        let run = core.clone().spawn(move |r| s.run(r, me, Some(tx)));
        *locked(&service.ended) = Some(run);
        if !wait {
            return Ok(());
        }
        let first = core.spawn(move |r| async move {
            let stopped = |_| Err(AttachError::NoService("it was stopped".into()));
            match limit {
                None => rx.await.unwrap_or_else(stopped),
                Some(limit) => match within(&r, limit, "attaching what the discovery service lists", rx).await {
                    Ok(end) => end.unwrap_or_else(stopped),
                    Err(e) => Err(AttachError::TimedOut(e.to_string())),
                },
            }
        });
        let end = first.await.unwrap_or(Err(AttachError::NoService("the reactor stopped".into())));
        if end.is_err() {
            let _ = self.stop_discovery(name).await;
        }
        end
    }

    /// Stops a discovery service and detaches what it attached.
    ///
    /// # Errors
    /// None has this name.
    pub async fn stop_discovery(&self, name: &str) -> Result<(), AttachError> {
        let service = self.services().remove(name);
        let service =
            service.ok_or_else(|| AttachError::NoService(format!("no discovery service is called {name}")))?;
        service.stop(self).await;
        Ok(())
    }

    /// The discovery services by name.
    pub fn discovery_services(&self) -> Vec<DiscoveryInfo> {
        self.services().values().map(|s| s.info()).collect()
    }
}
