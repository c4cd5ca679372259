//! The transport as the target core sees it: where it listens.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use longshore_nvmf::{Address, ListenError, Target, TrType, TransportKind, TransportOptions};
use longshore_reactor::{CoreHandle, oneshot};

use crate::acceptor::{self, Opening};
use crate::options::TcpOptions;

static INSTANCES: AtomicU64 = AtomicU64::new(0);

/// NVMe/TCP. Register it with [`Target::register_transport`]. It listens on the target's first core.
pub struct TcpTransport {
    instance: u64,
    options: Mutex<Arc<TcpOptions>>,
    /// The core that each address listens on.
    open: Mutex<HashMap<Address, CoreHandle>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|e| e.into_inner())
}

impl TcpTransport {
    /// A transport that listens nowhere yet.
    pub fn new(options: TcpOptions) -> Arc<TcpTransport> {
        Arc::new(TcpTransport {
            instance: INSTANCES.fetch_add(1, Ordering::Relaxed),
            options: Mutex::new(Arc::new(options)),
            open: Mutex::default(),
        })
    }

    /// The options that new listeners get.
    pub fn options(&self) -> TcpOptions {
        TcpOptions::clone(&lock(&self.options))
    }

    /// Changes them. Listeners that are open keep theirs.
    pub fn set_options(&self, options: TcpOptions) {
        *lock(&self.options) = Arc::new(options);
    }
}

fn refuse(errno: i32, why: String) -> oneshot::Receiver<Result<(), ListenError>> {
    let (tx, rx) = oneshot::channel();
    let _ = tx.send(Err(ListenError { errno, why }));
    rx
}

impl TransportKind for TcpTransport {
    fn trtype(&self) -> TrType {
        TrType::Tcp
    }

    fn check(&self, options: &TransportOptions) -> Result<(), String> {
        // A command's data lies in one buffer.
        let most = longshore_reactor::CHUNK as u32;
        if options.max_io_size > most {
            return Err(format!("max_io_size {} is larger than {most}", options.max_io_size));
        }
        if options.in_capsule_data_size > options.max_io_size.max(8192) {
            return Err(format!(
                "in_capsule_data_size {} is larger than max_io_size {}",
                options.in_capsule_data_size, options.max_io_size
            ));
        }
        Ok(())
    }

    fn listen(
        &self,
        target: &Arc<Target>,
        options: &Arc<TransportOptions>,
        address: &Address,
    ) -> oneshot::Receiver<Result<(), ListenError>> {
        let Some(socket) = address.socket() else {
            let why = format!(
                "'{}' port '{}' is no numeric {} address",
                address.traddr,
                address.trsvcid,
                address.adrfam.name()
            );
            return refuse(libc::EINVAL, why);
        };
        let Some(core) = target.cores().first().cloned() else {
            return refuse(0, "the target runs on no core".into());
        };
        let opening = Opening {
            instance: self.instance,
            target: target.clone(),
            transport: options.clone(),
            options: lock(&self.options).clone(),
            address: address.clone(),
            socket,
        };
        lock(&self.open).insert(address.clone(), core.clone());
        let (tx, rx) = oneshot::channel();
        core.send(move |r| acceptor::open(r, opening, tx));
        rx
    }

    fn unlisten(&self, address: &Address) -> oneshot::Receiver<()> {
        let core = lock(&self.open).remove(address);
        let (instance, address) = (self.instance, address.clone());
        match core {
            Some(c) => c.call(move |_| acceptor::close(instance, &address)),
            None => {
                let (tx, rx) = oneshot::channel();
                let _ = tx.send(());
                rx
            }
        }
    }
}
