//! `sock_*`: options of the socket layer. Connections here go through the reactor's ring whatever is chosen. Buffer sizes and quick
//! acknowledgement are heeded; the other options are kept because configurations and clients set and read them.

use std::sync::Arc;
use std::sync::Mutex;

use longshore_tcp::TcpOptions;
use serde_json::{Value, json};

use crate::app::{App, Local};
use crate::config::Entry;
use crate::decode::Params;
use crate::error::{Reply, RpcError};
use crate::json::Json;
use crate::method::{Method, Refusal, Registry, When};
use crate::params;

params! {
    struct Impl {
        /// Name: posix, ssl or uring.
        impl_name: String,
    }
}

params! {
    struct ImplOptions {
        /// Size of a socket's receive buffer, bytes.
        recv_buf_size: u32 = 2097152,
        /// Size of a socket's send buffer, bytes.
        send_buf_size: u32 = 2097152,
        /// Receive through an intermediate buffer.
        enable_recv_pipe: bool = true,
        /// Acknowledge at once.
        enable_quickack: bool = false,
        /// Placement of connections: 0 none, 1 by NAPI, 2 by CPU, 3 by mark.
        enable_placement_id: u32 = 0,
        /// Zero-copy send on sockets that were accepted.
        enable_zerocopy_send_server: bool = true,
        /// Zero-copy send on sockets that were connected.
        enable_zerocopy_send_client: bool = false,
        /// Bytes from which zero-copy send is used.
        zerocopy_threshold: u32 = 0,
        /// TLS version: 13, or 0 for any.
        tls_version: u32 = 0,
        /// TLS in the kernel.
        enable_ktls: bool = false,
    }
}

params! {
    struct SetImpl {
        /// Name: posix, ssl or uring.
        impl_name: String,
        /// Size of a socket's receive buffer, bytes.
        recv_buf_size: Option<u32>,
        /// Size of a socket's send buffer, bytes.
        send_buf_size: Option<u32>,
        /// Receive through an intermediate buffer.
        enable_recv_pipe: Option<bool>,
        /// Acknowledge at once.
        enable_quickack: Option<bool>,
        /// Placement of connections: 0 none, 1 by NAPI, 2 by CPU, 3 by mark.
        enable_placement_id: Option<u32>,
        /// Zero-copy send on sockets that were accepted.
        enable_zerocopy_send_server: Option<bool>,
        /// Zero-copy send on sockets that were connected.
        enable_zerocopy_send_client: Option<bool>,
        /// Bytes from which zero-copy send is used.
        zerocopy_threshold: Option<u32>,
        /// TLS version: 13, or 0 for any.
        tls_version: Option<u32>,
        /// TLS in the kernel.
        enable_ktls: Option<bool>,
    }
}

/// What the methods here have stored.
pub struct SockOptions {
    default: String,
    /// By name, in the order of the dump.
    impls: Vec<(&'static str, ImplOptions)>,
}

impl Default for SockOptions {
    fn default() -> SockOptions {
        let posix = ImplOptions::from_json(None, None).expect("every member has a default");
        let uring = ImplOptions { enable_zerocopy_send_server: false, ..posix.clone() };
        let ssl = ImplOptions { recv_buf_size: 4096, send_buf_size: 4096, ..posix.clone() };
        SockOptions { default: "posix".into(), impls: vec![("uring", uring), ("ssl", ssl), ("posix", posix)] }
    }
}

fn unknown(name: &str) -> RpcError {
    RpcError::invalid_params(format!("there is no socket implementation '{name}'; there are posix, ssl and uring"))
}

fn held(app: &App) -> &Mutex<SockOptions> {
    &app.options.sock
}

pub(super) fn declare(registry: &mut Registry) {
    registry.add(
        Method::new("sock_impl_get_options", When::Any, get)
            .doc("Options of one socket implementation.")
            .refusal(Refusal::PARAMS)
            .result("object of the options")
            .example(json!({"impl_name": "posix"}), json!({"recv_buf_size": 2097152, "send_buf_size": 2097152})),
    );
    registry.add(
        Method::new("sock_impl_set_options", When::Startup, set)
            .doc("Sets options of one socket implementation; those not given keep their values.")
            .refusal(Refusal::PARAMS)
            .changes()
            .example(json!({"impl_name": "posix", "recv_buf_size": 4096}), json!(true)),
    );
    registry.add(
        Method::bare(
            "sock_get_default_impl",
            When::Any,
            "sock_get_default_impl requires no parameters",
            |app| async move { Ok(json!({"impl_name": App::lock(held(&app)).default})) },
        )
        .doc("The socket implementation that is used where none is named.")
        .result("{impl_name}"),
    );
    registry.add(
        Method::new("sock_set_default_impl", When::Startup, |app, p: Impl| async move {
            let mut held = App::lock(held(&app));
            if !held.impls.iter().any(|(name, _)| *name == p.impl_name) {
                return Err(unknown(&p.impl_name));
            }
            held.default = p.impl_name;
            Ok(json!(true))
        })
        .doc("Chooses the socket implementation that is used where none is named.")
        .refusal(Refusal::PARAMS)
        .changes()
        .example(json!({"impl_name": "posix"}), json!(true)),
    );
}

async fn get(app: Arc<App>, p: Impl) -> Reply {
    let held = App::lock(held(&app));
    held.impls
        .iter()
        .find(|(name, _)| *name == p.impl_name)
        .map(|(_, options)| options.to_value())
        .ok_or_else(|| unknown(&p.impl_name))
}

async fn set(app: Arc<App>, p: SetImpl) -> Reply {
    let mut held = App::lock(held(&app));
    let Some((_, options)) = held.impls.iter_mut().find(|(name, _)| *name == p.impl_name) else {
        return Err(unknown(&p.impl_name));
    };
    let mut given = p.to_value();
    if let Value::Object(map) = &mut given {
        map.shift_remove("impl_name");
    }
    *options = ImplOptions::from_json(Some(&Json::from_value(&given)), Some(options))
        .map_err(|bad| RpcError::invalid_params(bad.path))?;
    Ok(json!(true))
}

/// What was set of the default implementation, for connections. Sizes that are those of the start are left to the kernel's tuning.
pub(crate) fn tcp_options(app: &App) -> TcpOptions {
    let (mut out, held, start) = (TcpOptions::default(), App::lock(held(app)), SockOptions::default());
    let of = |options: &SockOptions| {
        options.impls.iter().find(|(name, _)| *name == held.default).map(|(_, options)| options.clone())
    };
    if let (Some(set), Some(start)) = (of(&held), of(&start)) {
        let size = |set: u32, start: u32| if set == start { 0 } else { set as usize };
        out.recv_buffer = size(set.recv_buf_size, start.recv_buf_size);
        out.send_buffer = size(set.send_buf_size, start.send_buf_size);
        out.quickack = set.enable_quickack;
    }
    out
}

pub(super) fn dump(app: Arc<App>) -> Local<Vec<Entry>> {
    Box::pin(async move {
        let held = App::lock(held(&app));
        let mut out = vec![Entry::new("sock_set_default_impl", json!({"impl_name": held.default}))];
        for (name, options) in &held.impls {
            let mut params = serde_json::Map::from_iter([("impl_name".to_string(), json!(name))]);
            if let Value::Object(options) = options.to_value() {
                params.extend(options);
            }
            out.push(Entry::new("sock_impl_set_options", Value::Object(params)));
        }
        out
    })
}
