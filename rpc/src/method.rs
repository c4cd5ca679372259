//! The declaration of a method and the table of all methods.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::app::App;
use crate::decode::{Bad, Fault, Field, Params};
use crate::error::{INTERNAL_ERROR, INVALID_PARAMS, PARSE_ERROR, Reply, RpcError};
use crate::json::Json;

/// When a method may be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Before initialisation only.
    Startup,
    /// After initialisation only.
    Runtime,
    /// Always.
    Any,
}

/// How a method says that its parameters were not accepted. The modules of SPDK differ, and clients look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    code: i32,
    message: &'static str,
}

impl Refusal {
    /// nvmf, sock, `bdev_set_options` and the framework.
    pub const PARAMS: Refusal = Refusal { code: INVALID_PARAMS, message: "Invalid parameters" };
    /// The block devices and the log.
    pub const OBJECT: Refusal = Refusal { code: INTERNAL_ERROR, message: "spdk_json_decode_object failed" };
    /// `bdev_error_*`, `bdev_examine`, iobuf, fsdev.
    pub const PARAMS_OBJECT: Refusal = Refusal { code: INVALID_PARAMS, message: "spdk_json_decode_object failed" };
    /// accel and raid.
    pub const PARSE_OBJECT: Refusal = Refusal { code: PARSE_ERROR, message: "spdk_json_decode_object failed" };
    /// `bdev_crypto_create`.
    pub const CRYPTO: Refusal =
        Refusal { code: PARSE_ERROR, message: "Failed to decode crypto disk create parameters." };
    /// notify, hot plug, controller reset.
    pub const ARGUMENT: Refusal = Refusal { code: INVALID_PARAMS, message: "Invalid argument" };
    /// `framework_get_config`.
    pub const ARGUMENTS: Refusal = Refusal { code: INVALID_PARAMS, message: "Invalid arguments" };
}

type Running = Pin<Box<dyn Future<Output = Reply>>>;
type Handler = Box<dyn Fn(Arc<App>, Option<&Json>) -> Result<Running, Bad> + Send + Sync>;

/// One method: everything there is to know about it stands in its declaration.
pub struct Method {
    name: &'static str,
    when: When,
    doc: &'static str,
    fields: fn() -> Vec<Field>,
    relaxed: bool,
    refusal: Refusal,
    bare: Option<&'static str>,
    mutates: bool,
    result: &'static str,
    example: Option<(Value, Value)>,
    errors: Vec<(i32, &'static str)>,
    handler: Handler,
}

impl Method {
    /// A method with the parameters `P`.
    pub fn new<P, F>(
        name: &'static str,
        when: When,
        handler: impl Fn(Arc<App>, P) -> F + Send + Sync + 'static,
    ) -> Method
    where
        P: Params + 'static,
        F: Future<Output = Reply> + 'static,
    {
        Method {
            name,
            when,
            doc: "",
            fields: P::fields,
            relaxed: P::RELAXED,
            refusal: Refusal::OBJECT,
            bare: None,
            mutates: false,
            result: "true",
            example: None,
            errors: Vec::new(),
            handler: Box::new(move |app, json| {
                let params = P::from_json(json, None)?;
                Ok(Box::pin(handler(app, params)))
            }),
        }
    }

    /// A method without parameters; `complaint` is what it answers when it is given any, even an empty object.
    pub fn bare<F>(
        name: &'static str,
        when: When,
        complaint: &'static str,
        handler: impl Fn(Arc<App>) -> F + Send + Sync + 'static,
    ) -> Method
    where
        F: Future<Output = Reply> + 'static,
    {
        Method { bare: Some(complaint), ..Method::new(name, when, move |app, ()| handler(app)) }
    }

    /// A method that sets some members of a block of options which lives in the app; the others keep their values.
    pub fn options<P>(name: &'static str, when: When, block: fn(&App) -> &std::sync::Mutex<P>) -> Method
    where
        P: Params + Send + 'static,
    {
        Method::checked_options(name, when, block, |_, _| Ok(()))
    }

    /// As [`options`](Method::options), where `check` may refuse the new values.
    pub fn checked_options<P>(
        name: &'static str,
        when: When,
        block: fn(&App) -> &std::sync::Mutex<P>,
        check: fn(&App, &P) -> Result<(), RpcError>,
    ) -> Method
    where
        P: Params + Send + 'static,
    {
        let mut method = Method::new(name, when, |_, _: P| async { Ok(json!(true)) });
        method.handler = Box::new(move |app, json| {
            let params = P::from_json(json, Some(&App::lock(block(&app))))?;
            Ok(Box::pin(async move {
                check(&app, &params)?;
                *App::lock(block(&app)) = params;
                Ok(json!(true))
            }))
        });
        method.changes()
    }

    /// What it does, in a sentence or two.
    pub fn doc(mut self, doc: &'static str) -> Method {
        self.doc = doc;
        self
    }

    /// What it answers to parameters that it does not take (default: [`Refusal::OBJECT`]).
    pub fn refusal(mut self, refusal: Refusal) -> Method {
        self.refusal = refusal;
        self
    }

    /// It changes the configuration: later requests of the connection wait for it, and an embedded daemon saves after it.
    pub fn changes(mut self) -> Method {
        self.mutates = true;
        self
    }

    /// What it answers (default: `true`).
    pub fn result(mut self, result: &'static str) -> Method {
        self.result = result;
        self
    }

    /// Parameters and result of one call; tests check that the parameters decode.
    pub fn example(mut self, params: Value, result: Value) -> Method {
        self.example = Some((params, result));
        self
    }

    /// An error that a client may want to tell from others.
    pub fn error(mut self, code: i32, meaning: &'static str) -> Method {
        self.errors.push((code, meaning));
        self
    }

    /// Name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// When it may be called.
    pub fn when(&self) -> When {
        self.when
    }

    /// Whether it changes the configuration.
    pub fn mutates(&self) -> bool {
        self.mutates
    }

    /// Decodes the parameters and starts the method.
    pub fn call(&self, app: Arc<App>, params: Option<&Json>) -> Result<Running, RpcError> {
        if let (Some(complaint), Some(_)) = (self.bare, params) {
            return Err(RpcError::new(INVALID_PARAMS, complaint));
        }
        (self.handler)(app, params).map_err(|bad| match bad.fault {
            Fault::NotBuilt => RpcError::not_built(&bad.path),
            Fault::Invalid(reason) => {
                let mut error = RpcError::new(self.refusal.code, self.refusal.message);
                error.data = Some(json!({"param": bad.path, "reason": reason}));
                error
            }
        })
    }

    /// Whether the parameters of the example are accepted.
    pub fn example_decodes(&self, app: Arc<App>) -> Result<(), RpcError> {
        match &self.example {
            Some((params, _)) => self.call(app, Some(&Json::from_value(params))).map(drop),
            None => Ok(()),
        }
    }

    pub(crate) fn documentation(&self) -> Documentation<'_> {
        Documentation { method: self, fields: (self.fields)() }
    }
}

/// What `docs.rs` prints.
pub(crate) struct Documentation<'a> {
    method: &'a Method,
    pub(crate) fields: Vec<Field>,
}

impl Documentation<'_> {
    pub(crate) fn doc(&self) -> &str {
        self.method.doc
    }
    pub(crate) fn relaxed(&self) -> bool {
        self.method.relaxed
    }
    pub(crate) fn result(&self) -> &str {
        self.method.result
    }
    pub(crate) fn example(&self) -> Option<&(Value, Value)> {
        self.method.example.as_ref()
    }
    /// Code and meaning of each error, the refusal of parameters first.
    pub(crate) fn errors(&self) -> Vec<(i32, &str)> {
        let refusal = match self.method.bare {
            Some(complaint) => (INVALID_PARAMS, complaint),
            None => (self.method.refusal.code, self.method.refusal.message),
        };
        std::iter::once(refusal).chain(self.method.errors.iter().copied()).collect()
    }
}

/// All methods, in the order of their declaration.
#[derive(Default)]
pub struct Registry {
    methods: Vec<Method>,
    by_name: HashMap<&'static str, usize>,
}

impl Registry {
    /// Adds a method. A name that is there already is a mistake in the program.
    pub fn add(&mut self, method: Method) {
        let earlier = self.by_name.insert(method.name, self.methods.len());
        assert!(earlier.is_none(), "method {} is declared twice", method.name);
        self.methods.push(method);
    }

    /// The method of that name.
    pub fn get(&self, name: &str) -> Option<&Method> {
        self.by_name.get(name).map(|i| &self.methods[*i])
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Method> {
        self.methods.iter()
    }
}
