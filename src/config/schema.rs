//! Generates the JSON Schema of the configuration file from the table of options.

use serde_json::{Map, Value, json};

use super::key::KEYS;
use super::option::{Form, Key};

/// Returns a JSON Schema (draft 2020-12) of the file. It checks keys and types, not the meaning of
/// values.
pub fn schema() -> Value {
    let mut root = Map::new();
    for key in KEYS.iter() {
        let properties = match key.table() {
            "" => &mut root,
            table => {
                let table = root
                    .entry(table)
                    .or_insert_with(|| json!({ "type": "object", "additionalProperties": false, "properties": {} }));
                table["properties"].as_object_mut().expect("made above")
            }
        };
        properties.insert(key.name().into(), option_schema(key));
    }
    root["external"]["properties"]["paths"] = path_rules_schema();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "loopgate",
        "type": "object",
        "additionalProperties": false,
        "properties": root,
    })
}

/// Returns the JSON schema of the option `key`.
fn option_schema(key: &Key) -> Value {
    let mut schema = match key.form {
        Form::Switch => json!({ "type": "boolean" }),
        Form::Number => json!({ "type": "integer", "minimum": 0 }),
        Form::Duration => json!({ "type": ["string", "integer"], "minimum": 0 }),
        Form::Choice(words) => json!({ "type": "string", "enum": words }),
        Form::Text(_) => json!({ "type": "string" }),
        Form::List(_) => json!({ "type": ["array", "string"], "items": { "type": "string" } }),
    };
    schema["description"] = key.help.into();
    if let Some(default) = key.default {
        schema["default"] = match key.form {
            Form::Switch => (default == "true").into(),
            Form::Number => default.parse::<u64>().expect("a number's default is a number").into(),
            Form::List(_) => json!([default]),
            Form::Duration | Form::Choice(_) | Form::Text(_) => default.into(),
        };
    }
    schema
}

/// Returns the JSON schema of `external.paths`.
fn path_rules_schema() -> Value {
    json!({
        "description": "Rules for the paths of external requests, first match wins; all are open by default",
        "type": "array",
        "items": {
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "allow": { "type": "string", "pattern": "^/" },
                "deny": { "type": "string", "pattern": "^/" },
                "methods": { "type": "array", "items": { "type": "string" } },
                "upgrade": { "type": "boolean", "default": false },
                "port": { "type": "integer", "minimum": 1, "maximum": 65535 },
            },
            "oneOf": [{ "required": ["allow"] }, { "required": ["deny"] }],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_has_every_key_with_its_default() {
        let schema = schema();
        for key in KEYS.iter() {
            let path = match key.table() {
                "" => format!("/properties/{}", key.name()),
                table => format!("/properties/{table}/properties/{}", key.name()),
            };
            let option = schema.pointer(&path).unwrap_or_else(|| panic!("{path} is missing"));
            assert_eq!(option.get("default").is_some(), key.default.is_some(), "{path}");
        }
        assert_eq!(schema.pointer("/properties/listen/properties/on/default"), Some(&json!(["bridge:18443"])));
        assert!(schema.pointer("/properties/external/properties/paths/items").is_some());
    }
}
