//! Parses the first message of a client of the gateway: the `connect` request (OpenClaw
//! `gateway/protocol/handshake`).

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::device::public_key_id;

/// The maximum length of a request's id, in bytes.
const MAX_REQUEST_ID: usize = 128;

/// A client's first message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParsedMessage {
    /// A `connect` request.
    Connect(ConnectRequest),
    /// A message that the gateway can't parse as a `connect` request.
    Other,
    /// A JSON object that two parsers could read differently, or a `connect` with malformed fields.
    Malformed,
}

/// The fields of a `connect` request that loopgate checks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectRequest {
    /// The request's id, which the response repeats.
    pub id: String,
    /// The requested scopes.
    pub scopes: Vec<String>,
    /// The id of the device that signed the request, if any.
    pub device: Option<String>,
    /// The device's public key, if the request has one: an ed25519 key in base64url or PEM.
    pub public_key: Option<String>,
}

impl ConnectRequest {
    /// Returns whether the device's id belongs to the public key. True if the request lacks one of
    /// them.
    pub fn has_matching_id(&self) -> bool {
        match (&self.device, &self.public_key) {
            (Some(device), Some(key)) => public_key_id(key).as_ref() == Some(device),
            _ => true,
        }
    }
}

impl ParsedMessage {
    /// Parses a whole message.
    pub fn parse(message: &[u8]) -> Self {
        // Only an object can be a request. These are all white space characters of JSON.
        let first = message.iter().find(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r'));
        if first.is_none_or(|first| *first != b'{') {
            return Self::Other;
        }
        let Ok(Unambiguous(Value::Object(request))) = serde_json::from_slice(message) else { return Self::Malformed };
        if request.get("method").and_then(Value::as_str) != Some("connect") {
            return Self::Other;
        }
        parse_connect(&request).map_or(Self::Malformed, Self::Connect)
    }
}

/// Parses `request` as a `connect`; `None` if a field that loopgate reads has the wrong type, or if
/// the request's id is too long or could be spelled in two ways.
fn parse_connect(request: &Map<String, Value>) -> Option<ConnectRequest> {
    // The response is recognized by the id, so the id must have only one spelling in JSON.
    let has_one_spelling = |id: &&str| {
        id.len() <= MAX_REQUEST_ID && id.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\')
    };
    let id = request.get("id")?.as_str().filter(has_one_spelling)?.to_owned();
    let params = request.get("params")?.as_object()?;
    let scopes = match params.get("scopes") {
        None => Vec::new(),
        Some(scopes) => {
            scopes.as_array()?.iter().map(|scope| scope.as_str().map(str::to_owned)).collect::<Option<_>>()?
        }
    };
    let (device, public_key) = match params.get("device") {
        None | Some(Value::Null) => (None, None),
        Some(device) => {
            let device = device.as_object()?;
            let key = device.get("publicKey").map(|key| key.as_str().map(str::to_owned));
            (Some(device.get("id")?.as_str()?.to_owned()), key.map_or(Some(None), |key| key.map(Some))?)
        }
    };
    Some(ConnectRequest { id, scopes, device, public_key })
}

/// A JSON value in which no object has a key twice.
struct Unambiguous(Value);

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UnambiguousVisitor).map(Self)
    }
}

struct UnambiguousVisitor;

impl<'de> Visitor<'de> for UnambiguousVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without duplicate keys")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Unambiguous(value)) = items.next_element()? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let Unambiguous(value) = entries.next_value()?;
            if map.insert(key, value).is_some() {
                return Err(A::Error::custom("duplicate key"));
            }
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect_for(scopes: &[&str], device: Option<&str>) -> ParsedMessage {
        let scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        ParsedMessage::Connect(ConnectRequest {
            id: "1".into(),
            scopes,
            device: device.map(str::to_owned),
            public_key: None,
        })
    }

    #[test]
    fn only_an_unambiguous_connect_is_read() {
        use ParsedMessage::{Malformed, Other};
        for (message, expected) in [
            (
                r#"{"type":"req","id":"1","method":"connect","params":{"scopes":["operator.read"]}}"#,
                connect_for(&["operator.read"], None),
            ),
            (
                r#"{"type":"req","id":"1","method":"connect","params":{"device":{"id":"d"}}}"#,
                connect_for(&[], Some("d")),
            ),
            (
                r#" {"id":"1","method":"conn\u0065ct","params":{"scop\u0065s":["a"],"device":null}}"#,
                connect_for(&["a"], None),
            ),
            (r#"{"id":"1","method":"connect","params":{"scopes":["a"],"scopes":["b"]}}"#, Malformed),
            (r#"{"id":"1","method":"connect","params":{"scopes":["a"],"scop\u0065s":["b"]}}"#, Malformed),
            (r#"{"id":"1","method":"connect","params":{"device":{"id":"a","id":"b"}}}"#, Malformed),
            (r#"{"id":"1","method":"health","method":"connect","params":{}}"#, Malformed),
            (r#"{"id":"1","method":"connect","params":{"scopes":"operator.admin"}}"#, Malformed),
            (r#"{"id":"1","method":"connect","params":{"scopes":[["operator.admin"]]}}"#, Malformed),
            (r#"{"id":"1","method":"connect","params":{"device":"d"}}"#, Malformed),
            (r#"{"id":"1","method":"connect","params":{"device":{"id":"d","publicKey":1}}}"#, Malformed),
            (r#"{"id":"1","method":"connect","params":[]}"#, Malformed),
            (r#"{"id":"1","method":"connect"}"#, Malformed),
            (r#"{"id":"a\"b","method":"connect","params":{}}"#, Malformed),
            (r#"{"id":"\u00e9","method":"connect","params":{}}"#, Malformed),
            (r#"{"id":"1","method":"connect","params":{"x":"\ud800"}}"#, Malformed),
            (r#"{"id":"1","method":"connect","params":{}} x"#, Malformed),
            (r#"{"id":"1","#, Malformed),
            (r#"{"id":"1","method":"health"}"#, Other),
            (r#"{"id":"1","method":["connect"]}"#, Other),
            ("{}", Other),
            ("[]", Other),
            ("RFB 003.008\n", Other),
            ("", Other),
        ] {
            assert_eq!(ParsedMessage::parse(message.as_bytes()), expected, "{message}");
        }
        assert_eq!(ParsedMessage::parse(b"{\"a\":\"\xff\"}"), Malformed);
        let deep =
            [r#"{"id":"1","method":"connect","params":{"x":"#, &"[".repeat(5_000), &"]".repeat(5_000), "}}"].concat();
        assert_eq!(ParsedMessage::parse(deep.as_bytes()), Malformed);
    }
}
