//! What an operator may change while the application runs.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use postbox::{Error, Postbox};
use serde_json::{Map, Value, json};

use crate::context::{self, Context};
use crate::failure::Failure;
use crate::show::Table;
use crate::when;

/// Look at the settings, or change one
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Get(Get),
    Set(Set),
}

/// Show the settings, or the value of one
///
/// A setting that the file does not hold has the application's default, which the file does not know: what is shown then is
/// postbox's own.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox settings get app.db
  postbox settings get app.db batch_size

With --json, an object of objects, by the setting's name:
  value   its value
  stored  true: the file holds it; false: it is postbox's default, and the application may have another")]
struct Get {
    /// The application's database, or a copy of it
    file: PathBuf,
    /// One setting
    key: Option<String>,
}

/// Change a setting
///
/// It is checked and stored in the file. A running application takes it over within a second. Settings that are milliseconds take
/// lengths of time as well: 500ms, 90s, 10m, 2h, 3d, 1w, or 1h30m.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox settings set app.db batch_size 50
  postbox settings set app.db processor_enabled false
  postbox settings set app.db unhandled_events hold
  postbox settings set app.db retention_ms 90d
  postbox settings set app.db retention_by_event '{\"invoice.created\": \"10d\"}'

With --json, an object as of `settings get`, of this one setting.")]
struct Set {
    /// The application's database
    file: PathBuf,
    /// The setting
    key: String,
    #[arg(allow_hyphen_values = true)]
    /// Its value: a number, a length of time, true or false, a word, or JSON
    value: String,
}

pub(crate) fn run(args: Args, context: &Context) -> Result<(), Failure> {
    match args.what {
        What::Get(Get { file, key }) => {
            let postbox = context::read(&file)?;
            let shown = of(&postbox, key.as_deref()).map_err(Failure::of(&file))?;
            context.show(|| json_of(&shown), || text_of(&shown, key.is_some()))
        }
        What::Set(Set { file, key, value }) => set(&file, &key, value, context),
    }
}

fn set(file: &Path, key: &str, value: String, context: &Context) -> Result<(), Failure> {
    let postbox = context::write(file)?;
    let value = value_of(key, value);
    postbox.set_setting(key, value).map_err(Failure::of(file))?;
    let shown = of(&postbox, Some(key)).map_err(Failure::of(file))?;
    postbox.close().map_err(Failure::of(file))?;
    context.show(|| json_of(&shown), || format!("{key} = {}", text_of(&shown, true)))
}

/// JSON or a word. What cannot be the setting's is for the library to refuse.
fn value_of(key: &str, text: String) -> Value {
    let value = postbox::serde_json::from_str(&text).unwrap_or(Value::String(text));
    match value {
        Value::Object(values) if key == RETENTION_BY_EVENT => {
            Value::Object(values.into_iter().map(|(name, value)| (name, in_ms(value))).collect())
        }
        value if key.ends_with("_ms") => in_ms(value),
        value => value,
    }
}

/// The one setting that holds lengths of time by name.
const RETENTION_BY_EVENT: &str = "retention_by_event";

fn in_ms(value: Value) -> Value {
    let length = value.as_str().and_then(|text| when::length(text).ok());
    length.and_then(|length| u64::try_from(length.as_millis()).ok()).map_or(value, Value::from)
}

struct Setting {
    name: String,
    value: Value,
    stored: bool,
}

/// All of them by name, or the one.
fn of(postbox: &Postbox, key: Option<&str>) -> Result<Vec<Setting>, Error> {
    let stored = postbox.stored_settings()?;
    let Value::Object(fields) = postbox::serde_json::to_value(postbox.settings())? else {
        return Ok(Vec::new()); // never: it is a struct
    };
    let is_stored = |name: &str| stored.iter().any(|(stored, _)| *stored == name);
    let all: Vec<Setting> =
        fields.into_iter().map(|(name, value)| Setting { stored: is_stored(&name), name, value }).collect();
    let Some(key) = key else { return Ok(all) };
    let names: Vec<String> = all.iter().map(|setting| setting.name.clone()).collect();
    let found = all.into_iter().find(|setting| setting.name == key);
    let unknown = || Error::Invalid { field: "key", reason: format!("must be one of {}", names.join(", ")) };
    Ok(vec![found.ok_or_else(unknown)?])
}

fn json_of(settings: &[Setting]) -> Value {
    let object = |setting: &Setting| {
        (setting.name.clone(), json!({ "value": setting.value, "stored": setting.stored }))
    };
    Value::Object(settings.iter().map(object).collect::<Map<_, _>>())
}

fn text_of(settings: &[Setting], bare: bool) -> String {
    if bare {
        return settings.iter().map(|setting| plain(&setting.value) + "\n").collect();
    }
    let mut table = Table::new(["setting", "value", "from"]);
    for setting in settings {
        let from = if setting.stored { "the file" } else { "the default" };
        table.row([setting.name.clone(), plain(&setting.value), from.to_owned()]);
    }
    table.render("")
}

/// A word without its quotation marks.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
