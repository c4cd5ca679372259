//! Configuration as a list of calls: dumped per subsystem, applied in two passes around the initialisation, saved durably.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::app::{App, Local, Phase};
use crate::error::RpcError;
use crate::json::{self, Json};
use crate::method::When;
use crate::secret::Secret;

/// One call of a dump.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Method.
    pub method: &'static str,
    /// Parameters, if it has any.
    pub params: Option<Value>,
}

impl Call {
    /// A call with parameters.
    pub fn new(method: &'static str, params: Value) -> Call {
        Call { method, params: Some(params) }
    }

    fn to_value(&self) -> Value {
        match &self.params {
            Some(params) => json!({"method": self.method, "params": params}),
            None => json!({"method": self.method}),
        }
    }
}

/// Calls that belong together, or one alone.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// One call.
    One(Call),
    /// Calls that a client may send as a batch.
    Batch(Vec<Call>),
}

impl Entry {
    /// One call with parameters.
    pub fn new(method: &'static str, params: Value) -> Entry {
        Entry::One(Call::new(method, params))
    }
}

/// A part of the daemon that has a configuration of its own.
pub struct Subsystem {
    /// Name in dumps.
    pub name: &'static str,
    /// Subsystems that it needs.
    pub depends_on: &'static [&'static str],
    /// The calls that bring it into its present state.
    pub dump: fn(Arc<App>) -> Local<Vec<Entry>>,
}

/// The dump of one subsystem, as `framework_get_config` answers it.
pub async fn dump_subsystem(app: &Arc<App>, subsystem: &Subsystem, with_batches: bool) -> Value {
    let mut out = Vec::new();
    for entry in (subsystem.dump)(app.clone()).await {
        match entry {
            Entry::One(call) => out.push(call.to_value()),
            Entry::Batch(calls) if with_batches => out.push(calls.iter().map(Call::to_value).collect()),
            Entry::Batch(calls) => out.extend(calls.iter().map(Call::to_value)),
        }
    }
    Value::Array(out)
}

/// The whole configuration as text, in the form that `save_config` of SPDK's client writes.
pub async fn dump(app: &Arc<App>) -> String {
    let mut subsystems = Vec::new();
    for subsystem in &app.subsystems {
        subsystems.push(json!({"subsystem": subsystem.name, "config": dump_subsystem(app, subsystem, false).await}));
    }
    let mut text = serde_json::to_string_pretty(&json!({"subsystems": subsystems})).unwrap_or_default();
    text.push('\n');
    text
}

/// Replaces a file so that a crash leaves the old or the new one: temporary file, fsync, rename, fsync of the directory.
pub fn write_durably(path: &Path, text: &[u8]) -> io::Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(text)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    std::fs::File::open(dir)?.sync_all()
}

/// Why a configuration was not applied.
#[derive(Debug)]
pub enum LoadError {
    /// The file cannot be read.
    Read(io::Error),
    /// It is not a configuration.
    Shape(String),
    /// One of its calls failed.
    Call {
        /// Subsystem under which it stands.
        subsystem: String,
        /// Method.
        method: String,
        /// What the method answered.
        error: Box<RpcError>,
    },
    /// The initialisation failed.
    Init(String),
}

impl std::fmt::Display for LoadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LoadError::Read(error) => write!(f, "cannot read it: {error}"),
            LoadError::Shape(why) => f.write_str(why),
            LoadError::Call { subsystem, method, error } => {
                write!(
                    f,
                    "{method} of subsystem {subsystem} failed: {error}; mend that entry, or pass --json-ignore-init-errors"
                )
            }
            LoadError::Init(why) => write!(f, "initialisation failed: {why}"),
        }
    }
}

impl std::error::Error for LoadError {}

struct Step {
    subsystem: String,
    method: String,
    params: Option<Json>,
}

/// A configuration file, read and checked for its shape.
pub struct Config {
    steps: Vec<Step>,
}

impl Config {
    /// Reads a file. `//` and `/* */` comments are allowed.
    pub fn read(path: &Path) -> Result<Config, LoadError> {
        let mut text = Secret::default(); // it may hold keys
        std::fs::File::open(path).and_then(|file| text.read_to_end(file)).map_err(LoadError::Read)?;
        json::strip_comments(&mut text);
        Config::parse(&text)
    }

    /// Reads a text without comments.
    pub fn parse(text: &[u8]) -> Result<Config, LoadError> {
        let shape = |why: &str| LoadError::Shape(why.to_string());
        let root = json::parse(text).map_err(|error| LoadError::Shape(format!("not JSON: {error}")))?;
        let Some(Json::Array(subsystems)) = root.get("subsystems") else {
            return Err(shape("it has no array 'subsystems' at its top"));
        };
        let mut steps = Vec::new();
        for subsystem in subsystems {
            let Some(name) = subsystem.get("subsystem").and_then(Json::as_str) else {
                return Err(shape("an element of 'subsystems' has no name 'subsystem'"));
            };
            let entries = match subsystem.get("config") {
                None | Some(Json::Null) => continue,
                Some(Json::Array(entries)) => entries,
                Some(_) => return Err(LoadError::Shape(format!("'config' of subsystem '{name}' is not an array"))),
            };
            let flat = entries.iter().flat_map(|entry| match entry {
                Json::Array(batch) => batch.as_slice(),
                one => std::slice::from_ref(one),
            });
            for entry in flat {
                let Some(method) = entry.get("method").and_then(Json::as_str) else {
                    return Err(LoadError::Shape(format!("an entry of subsystem '{name}' has no 'method'")));
                };
                let params = entry.get("params").filter(|params| **params != Json::Null).cloned();
                steps.push(Step { subsystem: name.to_string(), method: method.to_string(), params });
            }
        }
        Ok(Config { steps })
    }

    /// Number of calls in it.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Keeps the calls of those subsystems that `wanted` says yes to.
    pub fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        self.steps.retain(|step| wanted(&step.subsystem));
    }

    /// Whether it has no calls.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Applies it: what may be called before the initialisation, the initialisation (unless it is over), the rest.
    ///
    /// Listeners are opened when everything else is in place, so that a host that is waiting for us never sees half a configuration;
    /// after an error they stay closed, unless errors are ignored.
    pub async fn apply(&self, app: &Arc<App>, ignore_errors: bool) -> Result<(), LoadError> {
        for step in &self.steps {
            if app.registry.get(&step.method).is_none() {
                step.run(app, ignore_errors).await?;
            }
        }
        if app.phase() == Phase::Startup {
            self.run(app, ignore_errors, |method, when| when != When::Runtime && method != "framework_start_init")
                .await?;
            app.init().await.map_err(LoadError::Init)?;
        }
        let target = app.target().map_err(|error| LoadError::Init(error.to_string()))?;
        target.defer_listeners();
        self.run_the_rest(app, ignore_errors).await?;
        for error in target.open_listeners().await {
            let error = Box::new(RpcError::invalid_params(error.to_string()));
            if ignore_errors {
                tracing::warn!("configuration: {error}; going on");
                continue;
            }
            return Err(LoadError::Call {
                subsystem: "nvmf".into(),
                method: "nvmf_subsystem_add_listener".into(),
                error,
            });
        }
        Ok(())
    }

    async fn run(
        &self,
        app: &Arc<App>,
        ignore_errors: bool,
        wanted: impl Fn(&str, When) -> bool,
    ) -> Result<(), LoadError> {
        for step in &self.steps {
            if app.registry.get(&step.method).is_some_and(|method| wanted(&step.method, method.when())) {
                step.run(app, ignore_errors).await?;
            }
        }
        Ok(())
    }

    /// The calls after the initialisation. A device that a later call builds a layer on, or serves, is left alone until then, and nobody gives up on
    /// devices that are missing before the last one was made.
    async fn run_the_rest(&self, app: &Arc<App>, ignore_errors: bool) -> Result<(), LoadError> {
        let last = self.steps.iter().rposition(|step| step.method.starts_with("bdev_"));
        let bases = self.steps.iter().filter_map(|step| step.base().map(str::to_owned)).collect();
        let mut loading = app.bdevs.load(bases);
        if last.is_none() {
            loading.all_made();
        }
        for (i, step) in self.steps.iter().enumerate() {
            if app.registry.get(&step.method).is_some_and(|method| method.when() == When::Runtime) {
                let outcome = step.run(app, ignore_errors).await;
                if outcome.is_err() {
                    loading.abandon();
                    return outcome;
                }
            }
            if let Some(base) = step.base() {
                loading.built(base);
            }
            if last == Some(i) {
                loading.all_made();
            }
        }
        Ok(())
    }
}

impl Step {
    /// The device that the call builds a layer on, or serves: what is on it is not this daemon's to find. On one that is served it may be another's that
    /// uses it from afar, as a member of an array, say.
    fn base(&self) -> Option<&str> {
        let params = self.params.as_ref()?;
        if self.method == "nvmf_subsystem_add_ns" {
            return params.get("namespace")?.get("bdev_name")?.as_str();
        }
        if !self.method.starts_with("bdev_") || !self.method.ends_with("_create") {
            return None;
        }
        params.get("base_bdev_name").or_else(|| params.get("base_name"))?.as_str()
    }

    async fn run(&self, app: &Arc<App>, ignore_errors: bool) -> Result<(), LoadError> {
        match app.call(&self.method, self.params.as_ref()).await {
            Ok(_) => Ok(()),
            Err(error) if ignore_errors => {
                tracing::warn!(
                    "configuration: {} of subsystem {} failed: {error}; going on",
                    self.method,
                    self.subsystem
                );
                Ok(())
            }
            Err(error) => Err(LoadError::Call {
                subsystem: self.subsystem.clone(),
                method: self.method.clone(),
                error: Box::new(error),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::watched;

    const KEY: &str = "00112233445566778899aabbccddeeff";

    /// How often the key was wiped when a configuration was read and dropped; what is wrong with it.
    fn wiped(text: &str) -> (usize, String) {
        let path = std::env::temp_dir().join(format!("longshore-config-{}", uuid::Uuid::new_v4()));
        std::fs::write(&path, text).unwrap();
        let mut why = String::new();
        let times = watched::times(KEY.as_bytes(), || {
            why = Config::read(&path).err().map_or_else(String::new, |e| e.to_string());
        });
        std::fs::remove_file(&path).unwrap();
        (times, why)
    }

    #[test]
    fn a_configuration_is_wiped_also_if_it_is_none() {
        let entry = format!("{{\"method\": \"m\", \"params\": {{\"key\": \"{KEY}\"}}}}");
        let of =
            |config: &str| format!("{{\"subsystems\": [{{\"subsystem\": \"accel\", \"config\": {config}}}]}} // all");
        assert_eq!(wiped(&of(&format!("[{entry}]"))), (3, String::new()), "the file, its value and the call");
        for (text, why) in [
            (format!("[{entry}]"), "it has no array 'subsystems' at its top"),
            (
                format!("{{\"subsystems\": [{{\"config\": [{entry}]}}]}}"),
                "an element of 'subsystems' has no name 'subsystem'",
            ),
            (of(&entry), "'config' of subsystem 'accel' is not an array"),
            (of(&format!("[{{\"params\": \"{KEY}\"}}]")), "an entry of subsystem 'accel' has no 'method'"),
        ] {
            assert_eq!(wiped(&text), (2, why.to_string()), "the file and its value");
        }
        let second = of(&format!("[{entry}, {{}}]"));
        assert_eq!(wiped(&second).0, 3, "a call was read before");
        let torn = format!("{entry} x");
        assert_eq!(wiped(&torn), (1, format!("not JSON: something follows the value near byte {}", entry.len() + 1)));
    }
}
