//! What is published of a record, besides itself: a table of values, and a page.

mod csv;
mod html;
mod plots;

pub use csv::to_csv;
pub use html::to_html;
