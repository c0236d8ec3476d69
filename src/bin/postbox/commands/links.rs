//! What an entity is linked to.

use std::path::PathBuf;

use postbox::{EntityRef, IntegrationLink};
use serde_json::{Value, json};

use crate::context::{self, Context};
use crate::failure::Failure;
use crate::show::{self, Table};

/// List the links of an entity, both ways
///
/// First those that start at it, then those that lead to it, each oldest first. Their metadata is not shown.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox links app.db finance Invoice inv-1
  postbox links app.db finance Invoice inv-1 --json | jq '.[] | select(.direction == \"outbound\") | .target'

With --json, an array of objects:
  direction               outbound (starts at the entity) or inbound (leads to it)
  id                      the link's
  source, target          {module, entity_type, entity_id}
  link_type               reference, cascade or aggregate_root
  created_at, updated_at  times")]
pub(crate) struct Args {
    /// The application's database, or a copy of it
    file: PathBuf,
    /// The entity's module
    module: String,
    /// Its type
    #[arg(value_name = "TYPE")]
    entity_type: String,
    /// Its id
    #[arg(value_name = "ID")]
    entity_id: String,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let postbox = context::read(&args.file)?;
    let entity = EntityRef::new(&args.module, &args.entity_type, &args.entity_id);
    let outbound = postbox.links().find_outbound(&entity).map_err(Failure::of(&args.file))?;
    let inbound = postbox.links().find_inbound(&entity).map_err(Failure::of(&args.file))?;
    let both = || {
        let outbound = outbound.iter().map(|link| ("outbound", link, &link.target));
        outbound.chain(inbound.iter().map(|link| ("inbound", link, &link.source)))
    };
    context.show(
        || {
            let with_direction = |(direction, link, _)| {
                let mut object = object(link);
                object["direction"] = Value::from(direction);
                object
            };
            both().map(with_direction).collect()
        },
        || {
            let mut table = Table::new(["direction", "module", "type", "id", "link type", "created"]);
            for (direction, link, other) in both() {
                table.row([
                    direction.to_owned(),
                    other.module.clone(),
                    other.entity_type.clone(),
                    other.entity_id.clone(),
                    link.link_type.to_string(),
                    show::time(link.created_at),
                ]);
            }
            table.render("It has no links.")
        },
    )
}

pub(crate) fn object(link: &IntegrationLink) -> Value {
    json!({
        "id": link.id.to_string(),
        "source": entity_object(&link.source),
        "target": entity_object(&link.target),
        "link_type": link.link_type.as_str(),
        "created_at": show::time_json(link.created_at),
        "updated_at": show::time_json(link.updated_at),
    })
}

fn entity_object(entity: &EntityRef) -> Value {
    json!({
        "module": entity.module,
        "entity_type": entity.entity_type,
        "entity_id": entity.entity_id,
    })
}
