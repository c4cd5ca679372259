//! What a method answers when it fails.

use std::borrow::Cow;

use serde_json::{Value, json};

/// The text is not JSON.
pub const PARSE_ERROR: i32 = -32700;
/// JSON, but not a request.
pub const INVALID_REQUEST: i32 = -32600;
/// No such method.
pub const METHOD_NOT_FOUND: i32 = -32601;
/// Parameters that the method does not take.
pub const INVALID_PARAMS: i32 = -32602;
/// Anything else.
pub const INTERNAL_ERROR: i32 = -32603;
/// Right method, wrong time. (The same number as EPERM: clients tell them apart by the message.)
pub const INVALID_STATE: i32 = -1;

/// Code and message as clients expect them; what is beyond goes in `data`.
#[derive(Clone, Debug, PartialEq)]
pub struct RpcError {
    /// JSON-RPC code, or a negative errno.
    pub code: i32,
    /// Message; clients compare it.
    pub message: Cow<'static, str>,
    /// Detail for people: which parameter, which value, what to do.
    pub data: Option<Value>,
}

impl RpcError {
    /// An error of that code and message.
    pub fn new(code: i32, message: impl Into<Cow<'static, str>>) -> RpcError {
        RpcError { code, message: message.into(), data: None }
    }

    /// A negative errno with the C library's text for it.
    pub fn errno(errno: i32) -> RpcError {
        RpcError::new(-errno.abs(), strerror(errno.abs()))
    }

    /// `errno` with a detail.
    pub fn errno_because(errno: i32, detail: impl Into<String>) -> RpcError {
        RpcError::errno(errno).because(detail)
    }

    /// -32602 "Invalid parameters", with a detail.
    pub fn invalid_params(detail: impl Into<String>) -> RpcError {
        RpcError::new(INVALID_PARAMS, "Invalid parameters").because(detail)
    }

    /// A parameter asks for something that this build does not have.
    pub fn not_built(key: &str) -> RpcError {
        let reason = format!("'{key}' asks for something that this build does not have; leave it out to go without");
        RpcError::not_built_because(key, reason)
    }

    /// As [`not_built`](RpcError::not_built), where there is more to say about what is, and what to do.
    pub fn not_built_because(key: &str, reason: impl Into<String>) -> RpcError {
        let mut error = RpcError::errno(EOPNOTSUPP);
        error.data = Some(json!({"param": key, "reason": reason.into()}));
        error
    }

    /// Adds a detail under `data.reason`.
    pub fn because(mut self, detail: impl Into<String>) -> RpcError {
        self.data = Some(json!({"reason": detail.into()}));
        self
    }
}

impl std::fmt::Display for RpcError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (code {})", self.message, self.code)?;
        match &self.data {
            Some(data) => match data.get("reason").and_then(Value::as_str) {
                Some(reason) => write!(f, ": {reason}"),
                None => write!(f, ": {data}"),
            },
            None => Ok(()),
        }
    }
}

impl std::error::Error for RpcError {}

/// Operation not permitted.
pub const EPERM: i32 = 1;
/// No such file or directory.
pub const ENOENT: i32 = 2;
/// Input/output error.
pub const EIO: i32 = 5;
/// Out of memory.
pub const ENOMEM: i32 = 12;
/// Device or resource busy.
pub const EBUSY: i32 = 16;
/// File exists.
pub const EEXIST: i32 = 17;
/// No such device.
pub const ENODEV: i32 = 19;
/// Invalid argument.
pub const EINVAL: i32 = 22;
/// Operation not supported.
pub const EOPNOTSUPP: i32 = 95;
/// Operation already in progress.
pub const EALREADY: i32 = 114;

/// The C library's English text of an errno, without the number that `std` appends.
pub fn strerror(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    match text.rfind(" (os error") {
        Some(end) => text[..end].to_string(),
        None => text,
    }
}

/// Shorthand for what a method returns.
pub type Reply = Result<Value, RpcError>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_texts_are_the_c_librarys() {
        assert_eq!(RpcError::errno(ENODEV).message, "No such device");
        assert_eq!(RpcError::errno(-17), RpcError::new(-17, "File exists"));
        assert_eq!(RpcError::errno(EINVAL).message, "Invalid argument");
        assert_eq!(RpcError::errno(EOPNOTSUPP).message, "Operation not supported");
    }
}
