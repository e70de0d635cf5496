//! Configuration, by serde.

use serde::de::DeserializeOwned;

use crate::Result;

/// Reads the configuration into a type of the filter's own. The error names line and column.
///
/// Where the collect list says nothing, it is as if `{}` stood there: a type whose fields all have
/// defaults needs no configuration.
///
/// ```
/// use serde::Deserialize;
/// use weir_guest::{Context, Filter, Output, Result, Verdict};
///
/// #[derive(Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct ShorterThan {
///     #[serde(default = "ShorterThan::default_bytes")]
///     bytes: usize,
/// }
///
/// impl ShorterThan {
///     fn default_bytes() -> usize { 4 }
/// }
///
/// impl Filter for ShorterThan {
///     fn init(_ctx: &Context, config: &[u8]) -> Result<Self> {
///         weir_guest::config(config)
///     }
///
///     fn line(&mut self, line: &[u8], _out: &mut Output) -> Verdict<'_> {
///         (line.len() < self.bytes).into()
///     }
/// }
///
/// use weir_guest::testing::{Fate, run};
/// assert_eq!(run::<ShorterThan>("", ["abc", "abcd"]).unwrap().fates, [Fate::Kept, Fate::Dropped]);
/// let error = run::<ShorterThan>(r#"{"byte": 7}"#, [""; 0]).unwrap_err();
/// assert_eq!(error, "config: unknown field `byte`, expected `bytes` at line 1 column 7");
/// ```
pub fn config<T: DeserializeOwned>(config: &[u8]) -> Result<T> {
    let config = if config.is_empty() { b"{}" } else { config };
    serde_json::from_slice(config).map_err(|error| format!("config: {error}").into())
}
