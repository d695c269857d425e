//! x
use super::super::record::{Record, RecordError};
/// x
pub fn to_html(_: &Record) -> Result<String, RecordError> {
    Ok(String::new())
}
