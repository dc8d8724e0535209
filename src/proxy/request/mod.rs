//! One request: `answer` is the entry point. `forward` checks it, builds its head for the gateway
//! and sends it; `response` or `upgrade` answer it; `record` follows it to its end.

mod access_log;
pub mod answer;
mod ca_page;
mod client_authorization;
mod connect_check;
mod error_response;
mod forward;
mod record;
pub mod report_refused_heads;
mod response;
mod response_body;
mod upgrade;
