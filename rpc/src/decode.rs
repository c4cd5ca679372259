//! Strict decoding of parameters into declared structures.
//!
//! A structure declared with [`params!`](crate::params) is the one place where a parameter's name, type, default and meaning stand:
//! the decoder, the documentation and the configuration dump come from it.

use std::borrow::Cow;

use serde_json::{Map, Value};
use uuid::Uuid;

use crate::json::Json;

/// Why parameters were not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bad {
    /// Where: keys joined by dots, empty for the whole.
    pub path: String,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong with a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Missing, unknown, twice, wrong type or out of range.
    Invalid(String),
    /// It asks for a protection that is not built.
    NotBuilt,
}

impl Bad {
    /// An invalid value.
    pub fn invalid(reason: impl Into<String>) -> Bad {
        Bad { path: String::new(), fault: Fault::Invalid(reason.into()) }
    }

    fn within(mut self, key: &str) -> Bad {
        self.path = if self.path.is_empty() { key.to_string() } else { format!("{key}.{}", self.path) };
        self
    }
}

/// A type that a parameter can have.
pub trait Decode: Sized {
    /// Its name in the documentation.
    fn type_name() -> Cow<'static, str>;
    /// Takes the value, or says what is wrong with it.
    fn decode(json: &Json) -> Result<Self, Bad>;
    /// The value of a parameter that was not given, if it may be left out.
    fn missing() -> Option<Self> {
        None
    }
    /// The value as it is dumped; `None` leaves it out.
    fn encode(&self) -> Option<Value>;
    /// Its members, for the documentation.
    fn members() -> Vec<Field> {
        Vec::new()
    }
}

fn wrong_kind<T>(expected: &str, found: &Json) -> Result<T, Bad> {
    let shown = match found {
        Json::Number(text) => format!(" {}", text.chars().take(32).collect::<String>()),
        Json::String(text) => format!(" '{}'", text.chars().take(64).collect::<String>()),
        _ => String::new(),
    };
    Err(Bad::invalid(format!("expected {expected}, found {}{shown}", found.kind())))
}

macro_rules! integers {
    ($($ty:ty = $name:literal),*) => {$(
        impl Decode for $ty {
            fn type_name() -> Cow<'static, str> {
                $name.into()
            }
            fn decode(json: &Json) -> Result<$ty, Bad> {
                match json.as_integer().map(<$ty>::try_from) {
                    Some(Ok(n)) => Ok(n),
                    _ => wrong_kind(&format!("an integer from {} to {}", <$ty>::MIN, <$ty>::MAX), json),
                }
            }
            fn encode(&self) -> Option<Value> {
                Some(Value::from(*self))
            }
        }
    )*};
}
integers!(u8 = "uint8", u16 = "uint16", u32 = "uint32", u64 = "uint64", i32 = "int32", i64 = "int64");

impl Decode for bool {
    fn type_name() -> Cow<'static, str> {
        "boolean".into()
    }
    fn decode(json: &Json) -> Result<bool, Bad> {
        match json {
            Json::Bool(b) => Ok(*b),
            other => wrong_kind("true or false", other),
        }
    }
    fn encode(&self) -> Option<Value> {
        Some(Value::from(*self))
    }
}

impl Decode for String {
    fn type_name() -> Cow<'static, str> {
        "string".into()
    }
    fn decode(json: &Json) -> Result<String, Bad> {
        match json {
            Json::String(s) if s.contains('\0') => Err(Bad::invalid("a string may not contain a NUL character")),
            Json::String(s) => Ok(s.clone()),
            other => wrong_kind("a string", other),
        }
    }
    fn encode(&self) -> Option<Value> {
        Some(Value::from(self.as_str()))
    }
}

impl Decode for Uuid {
    fn type_name() -> Cow<'static, str> {
        "uuid".into()
    }
    fn decode(json: &Json) -> Result<Uuid, Bad> {
        match json.as_str().map(Uuid::parse_str) {
            Some(Ok(uuid)) => Ok(uuid),
            _ => wrong_kind("a UUID", json),
        }
    }
    fn encode(&self) -> Option<Value> {
        Some(Value::from(self.to_string()))
    }
}

/// Text that nobody is to see: wiped when it is dropped, never dumped, and no error repeats it.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(pub zeroize::Zeroizing<String>);

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretText")
    }
}

impl Decode for SecretText {
    fn type_name() -> Cow<'static, str> {
        "string".into()
    }
    fn decode(json: &Json) -> Result<SecretText, Bad> {
        match json {
            Json::String(s) => Ok(SecretText(s.clone().into())),
            other => Err(Bad::invalid(format!("expected a string, found {}", other.kind()))),
        }
    }
    fn encode(&self) -> Option<Value> {
        None
    }
}

/// Any value, kept as it is.
impl Decode for Json {
    fn type_name() -> Cow<'static, str> {
        "any".into()
    }
    fn decode(json: &Json) -> Result<Json, Bad> {
        Ok(json.clone())
    }
    fn encode(&self) -> Option<Value> {
        Some(self.to_value())
    }
}

impl<T: Decode> Decode for Option<T> {
    fn type_name() -> Cow<'static, str> {
        T::type_name()
    }
    fn decode(json: &Json) -> Result<Option<T>, Bad> {
        T::decode(json).map(Some)
    }
    fn missing() -> Option<Option<T>> {
        Some(None)
    }
    fn encode(&self) -> Option<Value> {
        self.as_ref().and_then(T::encode)
    }
    fn members() -> Vec<Field> {
        T::members()
    }
}

impl<T: Decode> Decode for Vec<T> {
    fn type_name() -> Cow<'static, str> {
        format!("array of {}", T::type_name()).into()
    }
    fn decode(json: &Json) -> Result<Vec<T>, Bad> {
        match json {
            Json::Array(items) => items
                .iter()
                .enumerate()
                .map(|(i, item)| T::decode(item).map_err(|bad| bad.within(&i.to_string())))
                .collect(),
            other => wrong_kind("an array", other),
        }
    }
    fn encode(&self) -> Option<Value> {
        Some(Value::Array(self.iter().filter_map(T::encode).collect()))
    }
    fn members() -> Vec<Field> {
        T::members()
    }
}

/// A parameter that asks for a protection which is not built: `false`, 0 and "" are accepted, anything else is refused with -95.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NotBuilt<T>(std::marker::PhantomData<T>);

impl<T: Decode> Decode for NotBuilt<T> {
    fn type_name() -> Cow<'static, str> {
        T::type_name()
    }
    fn decode(json: &Json) -> Result<NotBuilt<T>, Bad> {
        T::decode(json)?;
        let asks = match json {
            Json::Bool(on) => *on,
            Json::String(text) => !text.is_empty(),
            Json::Number(_) => json.as_integer() != Some(0),
            _ => true,
        };
        if asks {
            return Err(Bad { path: String::new(), fault: Fault::NotBuilt });
        }
        Ok(NotBuilt(std::marker::PhantomData))
    }
    fn missing() -> Option<NotBuilt<T>> {
        Some(NotBuilt(std::marker::PhantomData))
    }
    fn encode(&self) -> Option<Value> {
        None
    }
}

/// A key that clients still send and that has no effect: its type is checked, its value dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ignored<T>(std::marker::PhantomData<T>);

impl<T: Decode> Decode for Ignored<T> {
    fn type_name() -> Cow<'static, str> {
        T::type_name()
    }
    fn decode(json: &Json) -> Result<Ignored<T>, Bad> {
        T::decode(json).map(|_| Ignored(std::marker::PhantomData))
    }
    fn missing() -> Option<Ignored<T>> {
        Some(Ignored(std::marker::PhantomData))
    }
    fn encode(&self) -> Option<Value> {
        None
    }
}

/// What the documentation says about one parameter.
#[derive(Clone, Debug)]
pub struct Field {
    /// Key.
    pub name: &'static str,
    /// Type.
    pub type_name: Cow<'static, str>,
    /// Whether it must be given.
    pub required: bool,
    /// Value when it is not given, where there is one.
    pub default: Option<Value>,
    /// Meaning, with its unit.
    pub doc: &'static str,
    /// Members, where it is an object of its own.
    pub members: Vec<Field>,
}

/// The parameters of a method (or of an object within them).
pub trait Params: Sized {
    /// Whether unknown keys are passed over.
    const RELAXED: bool;
    /// Its parameters.
    fn fields() -> Vec<Field>;
    /// Decodes an object; what is not given comes from `base` where there is one, and else from the defaults.
    fn from_json(json: Option<&Json>, base: Option<&Self>) -> Result<Self, Bad>;
    /// All members, as they are dumped.
    fn to_value(&self) -> Value;
}

/// A method without parameters.
impl Params for () {
    const RELAXED: bool = false;
    fn fields() -> Vec<Field> {
        Vec::new()
    }
    fn from_json(_: Option<&Json>, _: Option<&()>) -> Result<(), Bad> {
        Ok(())
    }
    fn to_value(&self) -> Value {
        Value::Null
    }
}

/// The members of an object while they are taken out one by one. Used by the code that `params!` writes.
#[doc(hidden)]
pub struct Members<'a> {
    members: &'a [(String, Json)],
    taken: Vec<bool>,
}

impl<'a> Members<'a> {
    pub fn new(json: Option<&'a Json>) -> Result<Members<'a>, Bad> {
        let members: &[(String, Json)] = match json {
            None => &[],
            Some(Json::Object(members)) => members,
            Some(other) => return wrong_kind("an object", other),
        };
        Ok(Members { members, taken: vec![false; members.len()] })
    }

    pub fn take<T: Decode>(&mut self, key: &str) -> Result<Option<T>, Bad> {
        let mut found = None;
        for (i, (name, value)) in self.members.iter().enumerate() {
            if name == key {
                if found.is_some() {
                    return Err(Bad::invalid("given twice").within(key));
                }
                self.taken[i] = true;
                found = Some(T::decode(value).map_err(|bad| bad.within(key))?);
            }
        }
        Ok(found)
    }

    pub fn finish(self, relaxed: bool) -> Result<(), Bad> {
        match self.taken.iter().position(|taken| !taken) {
            Some(i) if !relaxed => {
                Err(Bad::invalid("no such parameter").within(&self.members[i].0.chars().take(64).collect::<String>()))
            }
            _ => Ok(()),
        }
    }
}

#[doc(hidden)]
pub fn or_missing<T: Decode>(key: &str) -> Result<T, Bad> {
    T::missing().ok_or_else(|| Bad::invalid("required, but not given").within(key))
}

#[doc(hidden)]
pub fn put(map: &mut Map<String, Value>, key: &str, value: Option<Value>) {
    if let Some(value) = value {
        map.insert(key.to_string(), value);
    }
}

#[doc(hidden)]
pub fn key(ident: &'static str) -> &'static str {
    ident.strip_prefix("r#").unwrap_or(ident)
}

/// Declares the parameters of a method: every field with its meaning, its type and, after `=`, its default.
///
/// A field without a default is required, unless its type is `Option`, [`NotBuilt`] or [`Ignored`]. The declaration can be used as
/// the type of a field of another one. `relaxed` before `struct` passes over unknown keys.
#[macro_export]
macro_rules! params {
    ($(#[$meta:meta])* relaxed struct $name:ident { $($body:tt)* }) => {
        $crate::params!(@make true, [$(#[$meta])*] $name { $($body)* });
    };
    ($(#[$meta:meta])* struct $name:ident { $($body:tt)* }) => {
        $crate::params!(@make false, [$(#[$meta])*] $name { $($body)* });
    };
    (@make $relaxed:literal, [$(#[$meta:meta])*] $name:ident {
        $( #[doc = $doc:literal] $(#[doc = $more:literal])* $field:ident : $ty:ty $(= $default:expr)? ),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        #[allow(dead_code, missing_docs, unreachable_pub)]
        pub struct $name { $( #[doc = $doc] $(#[doc = $more])* pub $field: $ty, )* }

        impl $crate::decode::Params for $name {
            const RELAXED: bool = $relaxed;
            fn fields() -> Vec<$crate::decode::Field> {
                vec![$( $crate::decode::Field {
                    name: $crate::decode::key(stringify!($field)),
                    type_name: <$ty as $crate::decode::Decode>::type_name(),
                    required: $crate::params!(@required $ty $(, $default)?),
                    default: $crate::params!(@shown $ty $(, $default)?),
                    doc: concat!($doc $(, $more)*),
                    members: <$ty as $crate::decode::Decode>::members(),
                } ),*]
            }
            fn from_json(json: Option<&$crate::json::Json>, base: Option<&$name>) -> Result<$name, $crate::decode::Bad> {
                let mut members = $crate::decode::Members::new(json)?;
                $( let $field = members.take::<$ty>($crate::decode::key(stringify!($field)))?; )*
                members.finish($relaxed)?;
                Ok($name { $( $field: match ($field, base) {
                    (Some(value), _) => value,
                    (None, Some(base)) => base.$field.clone(),
                    (None, None) => $crate::params!(@fallback $field, $ty $(, $default)?),
                } ),* })
            }
            fn to_value(&self) -> serde_json::Value {
                let mut map = serde_json::Map::new();
                $( $crate::decode::put(&mut map, $crate::decode::key(stringify!($field)), $crate::decode::Decode::encode(&self.$field)); )*
                serde_json::Value::Object(map)
            }
        }

        impl $crate::decode::Decode for $name {
            fn type_name() -> std::borrow::Cow<'static, str> {
                "object".into()
            }
            fn decode(json: &$crate::json::Json) -> Result<$name, $crate::decode::Bad> {
                <$name as $crate::decode::Params>::from_json(Some(json), None)
            }
            fn encode(&self) -> Option<serde_json::Value> {
                Some($crate::decode::Params::to_value(self))
            }
            fn members() -> Vec<$crate::decode::Field> {
                <$name as $crate::decode::Params>::fields()
            }
        }
    };
    (@required $ty:ty, $default:expr) => { false };
    (@required $ty:ty) => { <$ty as $crate::decode::Decode>::missing().is_none() };
    (@shown $ty:ty, $default:expr) => {{ let value: $ty = $default; $crate::decode::Decode::encode(&value) }};
    (@shown $ty:ty) => { None };
    (@fallback $field:ident, $ty:ty, $default:expr) => {{ let value: $ty = $default; value }};
    (@fallback $field:ident, $ty:ty) => { $crate::decode::or_missing::<$ty>($crate::decode::key(stringify!($field)))? };
}

/// Declares an enumeration that is a string on the wire.
#[macro_export]
macro_rules! choices {
    ($(#[$meta:meta])* enum $name:ident { $( $variant:ident = $text:literal $(| $alias:literal)* ),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, unreachable_pub)]
        pub enum $name { $( $variant ),* }

        #[allow(dead_code, unreachable_pub)]
        impl $name {
            /// The word on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $( $name::$variant => $text ),* }
            }
        }

        impl $crate::decode::Decode for $name {
            fn type_name() -> std::borrow::Cow<'static, str> {
                [$( $text ),*].join(" \\| ").into()
            }
            fn decode(json: &$crate::json::Json) -> Result<$name, $crate::decode::Bad> {
                match json.as_str() {
                    $( Some($text $(| $alias)*) => Ok($name::$variant), )*
                    _ => Err($crate::decode::Bad::invalid(concat!("expected one of" $(, " ", $text)*))),
                }
            }
            fn encode(&self) -> Option<serde_json::Value> {
                Some(self.as_str().into())
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::parse;
    use serde_json::json;

    choices! {
        /// Colours.
        enum Colour { Red = "red", Blue = "blue" | "azure" }
    }
    params! {
        /// Inner.
        struct Inner {
            /// Size.
            size: u32,
        }
    }
    params! {
        /// Outer.
        struct Outer {
            /// Name.
            name: String,
            /// Count.
            count: u8 = 3,
            /// Keyword.
            r#type: Option<Colour>,
            /// Inner.
            inner: Option<Inner>,
            /// Key.
            psk: NotBuilt<String>,
        }
    }

    fn decode(text: &str) -> Result<Outer, Bad> {
        Outer::from_json(Some(&parse(text.as_bytes()).unwrap()), None)
    }

    fn fault(text: &str) -> String {
        let bad = decode(text).unwrap_err();
        match bad.fault {
            Fault::Invalid(why) => format!("{}: {why}", bad.path),
            Fault::NotBuilt => format!("{}: not built", bad.path),
        }
    }

    #[test]
    fn defaults_fill_what_is_not_given() {
        let outer = decode(r#"{"name":"a","type":"azure","psk":""}"#).unwrap();
        assert_eq!((outer.count, outer.r#type), (3, Some(Colour::Blue)));
        assert_eq!(outer.to_value(), json!({"name": "a", "count": 3, "type": "blue"}));
        let again = Outer::from_json(Some(&parse(br#"{"count":4}"#).unwrap()), Some(&outer)).unwrap();
        assert_eq!((again.name.as_str(), again.count), ("a", 4));
    }

    #[test]
    fn every_fault_is_named_with_its_place() {
        assert_eq!(fault("{}"), "name: required, but not given");
        assert_eq!(fault(r#"{"name":1}"#), "name: expected a string, found a number 1");
        assert_eq!(fault(r#"{"name":"a","name":"b"}"#), "name: given twice");
        assert_eq!(
            fault(r#"{"name":"a","count":256}"#),
            "count: expected an integer from 0 to 255, found a number 256"
        );
        assert_eq!(
            fault(r#"{"name":"a","count":"1"}"#),
            "count: expected an integer from 0 to 255, found a string '1'"
        );
        assert_eq!(fault(r#"{"name":"a","count":null}"#), "count: expected an integer from 0 to 255, found null");
        assert_eq!(fault(r#"{"name":"a","more":1}"#), "more: no such parameter");
        assert_eq!(fault(r#"{"name":"a","type":"green"}"#), "type: expected one of red blue");
        assert_eq!(
            fault(r#"{"name":"a","inner":{"size":-1}}"#),
            "inner.size: expected an integer from 0 to 4294967295, found a number -1"
        );
        assert_eq!(fault(r#"{"name":"a","psk":"/k"}"#), "psk: not built");
        assert_eq!(fault(r#"{"name":"a\u0000"}"#), "name: a string may not contain a NUL character");
        assert_eq!(fault("[]"), ": expected an object, found an array");
    }

    #[test]
    fn the_declaration_documents_itself() {
        let fields = Outer::fields();
        assert!(fields[0].required && !fields[1].required && !fields[2].required && !fields[4].required);
        assert_eq!(fields[1].default, Some(json!(3)));
        assert_eq!((fields[2].name, fields[2].type_name.as_ref()), ("type", "red \\| blue"));
    }
}
