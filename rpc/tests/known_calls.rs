//! Calls as clients make them, in the order of one session, and the form of the answers that they know: the type of every member of a
//! result, code and message of every error. (`data/known_calls.json` holds those facts; members beyond them are allowed.)

use std::sync::Arc;

use longshore_bdev::Registry;
use longshore_reactor::{Options, Runtime};
use longshore_rpc::app::{App, Parts};
use longshore_rpc::config::{self, Config};
use longshore_rpc::exec::block_on;
use longshore_rpc::json::Json;
use serde_json::{Value, json};

/// What differs on purpose: the method, the parameters it concerns, and why.
fn exempt(method: &str, params: &Value) -> Option<&'static str> {
    match method {
        // There it is refused, because the exported device has its UUID.
        "bdev_get_bdevs" if params["name"] == "Nvme0n1" => Some("a namespace of this very daemon becomes a device too"),
        "bdev_get_iostat" if params.get("name").is_some() => {
            Some("the old key is accepted, because clients still send it")
        }
        // There software does all of them; SPDK leaves out what no module does, too.
        "accel_get_opc_assignments" => Some("no module compresses or checks protection information"),
        _ => None,
    }
}

/// Where `ours` lacks what `known` has.
fn lacks(known: &Value, ours: &Value, path: &str) -> Option<String> {
    let wrong = |what: &str| Some(format!("{path}: {what} expected, found {ours}"));
    match known {
        Value::Object(members) => members.iter().find_map(|(key, known)| match ours.get(key) {
            Some(ours) => lacks(known, ours, &format!("{path}.{key}")),
            None => Some(format!("{path}.{key} is missing in {ours}")),
        }),
        Value::Array(elements) => match (elements.first(), ours.as_array()) {
            (_, None) => wrong("an array"),
            (Some(known), Some(ours)) if !ours.is_empty() => lacks(known, &ours[0], &format!("{path}[0]")),
            (Some(_), Some(_)) => wrong("at least one element"),
            (None, Some(_)) => None,
        },
        Value::String(kind) => match kind.as_str() {
            "s" if !ours.is_string() => wrong("a string"),
            "n" if !ours.is_number() => wrong("a number"),
            "b" if !ours.is_boolean() => wrong("a boolean"),
            _ => None,
        },
        _ => None,
    }
}

fn check(known: &Value, reply: &Result<Value, (i32, String)>) -> Option<String> {
    if let Some(error) = known.get("error") {
        return match reply {
            Err((code, message)) if json!([code, message]) == *error => None,
            other => Some(format!("error {error} expected, found {other:?}")),
        };
    }
    let ours = match reply {
        Ok(ours) => ours,
        Err(error) => return Some(format!("a result expected, found {error:?}")),
    };
    if let Some(config) = known.get("config") {
        // Each kind of call that a saved configuration holds is there, with the known parameters.
        return config.as_array()?.iter().find_map(|call| {
            let found = ours.as_array()?.iter().find(|ours| ours["method"] == call[0]);
            match found {
                Some(found) => lacks(&call[1], found.get("params").unwrap_or(&json!({})), call[0].as_str()?),
                None => Some(format!("{} is not in {ours}", call[0])),
            }
        });
    }
    if let Some(each) = known.get("each") {
        return each.as_object()?.iter().find_map(|(name, known)| {
            let found = ours.as_array()?.iter().find(|ours| ours["name"] == *name);
            match found {
                Some(found) => lacks(known, found, name),
                None => Some(format!("{name} is not listed")),
            }
        });
    }
    lacks(&known["shape"], ours, "result")
}

#[test]
fn known_calls_get_answers_of_the_known_form() {
    let dir = std::env::temp_dir().join(format!("longshore-known-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("disk");
    std::fs::File::create(&file).unwrap().set_len(16 << 20).unwrap();
    // Ports that are free now stand for those of the session.
    let ports: Vec<String> = {
        let held: Vec<_> = (0..2).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        held.iter().map(|port| port.local_addr().unwrap().port().to_string()).collect()
    };
    let text = include_str!("data/known_calls.json")
        .replace("FILE", file.to_str().unwrap())
        .replace("\"14420\"", &format!("\"{}\"", ports[0]))
        .replace("\"14499\"", &format!("\"{}\"", ports[1]));
    let calls: Vec<Value> = serde_json::from_str(&text).unwrap();

    let runtime = Runtime::start(Options { pin: false, ..Options::default() }).expect("a reactor");
    let app = App::new(Parts { cores: runtime.cores().to_vec(), bdevs: Registry::new(), ..Parts::default() });
    block_on(app.init()).unwrap();
    let mut wrong = Vec::new();
    for (number, known) in calls.iter().enumerate() {
        let method = known["method"].as_str().unwrap();
        let params = known.get("params");
        if exempt(method, params.unwrap_or(&Value::Null)).is_some() {
            continue;
        }
        let reply = call(&app, method, params);
        if let Some(what) = check(known, &reply) {
            wrong.push(format!("{number} {method} {}: {what}", params.unwrap_or(&Value::Null)));
        }
    }
    block_on(app.shutdown());
    runtime.stop();
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn call(app: &Arc<App>, method: &str, params: Option<&Value>) -> Result<Value, (i32, String)> {
    let params = params.map(Json::from_value);
    block_on(app.call(method, params.as_ref())).map_err(|error| (error.code, error.message.into_owned()))
}

#[test]
fn a_configuration_saved_by_spdk_loads_and_is_saved_again_the_same() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = include_str!("data/saved_by_spdk.json").replace("\"14420\"", &format!("\"{port}\""));
    let first = loaded(&text);
    assert_eq!(loaded(&first), first);
    let saved: Value = serde_json::from_str(&first).unwrap();
    let known: Value = serde_json::from_str(&text).unwrap();
    for part in known["subsystems"].as_array().unwrap() {
        let ours = saved["subsystems"].as_array().unwrap().iter().find(|ours| ours["subsystem"] == part["subsystem"]);
        for call in part["config"].as_array().into_iter().flatten() {
            let there = ours.is_some_and(|ours| ours["config"].as_array().unwrap().contains(call));
            assert!(there, "{call} was loaded, but is not saved again");
        }
    }
}

/// What is saved after `text` was loaded at a fresh start.
fn loaded(text: &str) -> String {
    let runtime = Runtime::start(Options { pin: false, ..Options::default() }).expect("a reactor");
    let app = App::new(Parts { cores: runtime.cores().to_vec(), bdevs: Registry::new(), ..Parts::default() });
    block_on(Config::parse(text.as_bytes()).unwrap().apply(&app, false)).unwrap();
    let saved = block_on(config::dump(&app));
    block_on(app.shutdown());
    runtime.stop();
    saved
}
