//! One request: checked, given its lane's head, sent to the gateway, and answered.

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
