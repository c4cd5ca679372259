//! `log_*`: levels and flags.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::app::App;
use crate::error::{INVALID_PARAMS, Reply, RpcError};
use crate::logging::Level;
use crate::method::{Method, Registry, When};
use crate::params;

params! {
    struct SetLevel {
        /// Level.
        level: Level,
    }
}

params! {
    struct Flag {
        /// Name of the flag, or `all`.
        flag: String,
    }
}

pub(super) fn declare(registry: &mut Registry) {
    registry.add(
        Method::new("log_set_print_level", When::Any, |app, p: SetLevel| async move {
            app.log.set_print_level(p.level);
            Ok(json!(true))
        })
        .doc("Sets the level of what is printed on standard error.")
        .example(json!({"level": "NOTICE"}), json!(true)),
    );
    registry.add(
        Method::bare(
            "log_get_print_level",
            When::Any,
            "log_get_print_level requires no parameters",
            |app| async move { Ok(json!(app.log.print_level().as_str())) },
        )
        .doc("The level of what is printed on standard error.")
        .result("the level"),
    );
    registry.add(
        Method::new("log_set_level", When::Any, |app, p: SetLevel| async move {
            app.log.set_level(p.level);
            Ok(json!(true))
        })
        .doc("Sets the level of the system log. It is kept for clients: all messages go to standard error."),
    );
    registry.add(
        Method::bare("log_get_level", When::Any, "log_get_level requires no parameters", |app| async move {
            Ok(json!(app.log.level().as_str()))
        })
        .doc("The level of the system log.")
        .result("the level"),
    );
    registry.add(
        Method::new("log_set_flag", When::Any, |app, p: Flag| set_flag(app, p, true))
            .doc("Turns on the debug messages of one module.")
            .example(json!({"flag": "nvmf"}), json!(true))
            .error(INVALID_PARAMS, "invalid log flag"),
    );
    registry.add(
        Method::new("log_clear_flag", When::Any, |app, p: Flag| set_flag(app, p, false))
            .doc("Turns off the debug messages of one module.")
            .error(INVALID_PARAMS, "invalid log flag"),
    );
    registry.add(
        Method::bare("log_get_flags", When::Any, "log_get_flags requires no parameters", |app| async move {
            Ok(Value::Object(
                app.log.flags().into_iter().map(|(k, v)| (k.to_string(), json!(v))).collect::<Map<_, _>>(),
            ))
        })
        .doc("All flags and whether they are on.")
        .result("object: name to boolean"),
    );
}

async fn set_flag(app: Arc<App>, p: Flag, on: bool) -> Reply {
    if app.log.set_flag(&p.flag, on) {
        return Ok(json!(true));
    }
    let known: Vec<_> = app.log.flags().into_iter().map(|(name, _)| name).collect();
    Err(RpcError::new(INVALID_PARAMS, "invalid log flag").because(format!(
        "'{}' is none of: all {}",
        p.flag,
        known.join(" ")
    )))
}
