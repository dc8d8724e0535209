//! Adds loopgate to an existing compose project. The input is what `docker compose config --format
//! json` prints, and the output an override file.
//!
//! [`parse`] reads the project, [`plan()`] decides what has to change, and [`render`] formats the
//! changes. None of them does I/O, and the same project always gives the same file.

mod changes;
mod command;
mod find;
pub mod model;
mod plan;
mod remarks;
pub mod render;
mod sign_in;
#[cfg(test)]
mod tests;
mod yaml;

pub use changes::{Namespace, Plan, Remark};
pub use model::Project;
pub use plan::{Options, openclaw_config, plan};
pub use sign_in::SignIn;

/// Parses the output of `docker compose config --format json`.
///
/// # Errors
/// If the text is not such output. The message contains no values, because some are secret.
pub fn parse(text: &str) -> Result<Project, String> {
    let value: serde_json::Value = serde_json::from_str(text).map_err(|error| {
        format!(
            "line {} column {}: is not JSON: give it what `docker compose config --format json` prints",
            error.line(),
            error.column()
        )
    })?;
    let Some(services) = value.get("services").and_then(serde_json::Value::as_object) else {
        return Err("has no services: give it what `docker compose config --format json` prints".into());
    };
    for (name, service) in services {
        if let Err(key) = check_readable(service) {
            return Err(format!("services.{name}{key} is not as `docker compose config --format json` prints it"));
        }
    }
    serde_json::from_value(value).map_err(|_| "is not as `docker compose config --format json` prints it".into())
}

/// Checks that each key of a service can be parsed. The error is the first key that can't be.
fn check_readable(service: &serde_json::Value) -> Result<(), String> {
    let Some(entries) = service.as_object() else { return Err(String::new()) };
    for (key, value) in entries {
        let one = serde_json::json!({ key: value });
        if serde_json::from_value::<model::Service>(one).is_err() {
            return Err(format!(".{key}"));
        }
    }
    Ok(())
}
