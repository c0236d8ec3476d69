//! What an entity is linked to.

use std::path::PathBuf;

use clap::ValueEnum;
use postbox::{EntityRef, IntegrationLink, LinkFilter, LinkType, LinkWalk, Page, Postbox, WalkOptions};
use serde_json::{Value, json};

use crate::context::{self, Context};
use crate::failure::Failure;
use crate::show::{self, Table};

/// So many links are read at once.
const PAGE: usize = 1_000;

/// List the links of an entity, both ways, or follow them
///
/// First those that start at it, then those that lead to it, each oldest first. With --walk, all that is linked to it within so
/// many links, the nearest first, each entity once; at most 1,000. Metadata is not shown.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox links app.db finance Invoice inv-1
  postbox links app.db finance Invoice inv-1 --inbound --module operations
  postbox links app.db finance Invoice inv-1 --outbound --type cascade --walk 5
  postbox links app.db finance Invoice inv-1 --json | jq '.[] | select(.direction == \"outbound\") | .target'

With --json, an array of objects:
  direction               outbound (starts at the entity) or inbound (leads to it)
  id                      the link's
  source, target          {module, entity_type, entity_id}
  link_type               reference, cascade or aggregate_root
  created_at, updated_at  times

With --json and --walk, one object:
  entities     an array: {entity, depth, link_id, link_type, direction (which way that link was gone along), reached_from
               (an index into it, or null: from where the walk began)}
  is_complete  false: there are more within this depth")]
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
    /// Links that start at it alone
    #[arg(long, conflicts_with = "inbound")]
    outbound: bool,
    /// Links that lead to it alone
    #[arg(long)]
    inbound: bool,
    /// Links of this type alone; given several times, of any of them
    #[arg(long = "type", value_enum, value_name = "LINK TYPE")]
    link_type: Vec<Type>,
    /// Links to and from entities of this module alone
    #[arg(long = "module", value_name = "MODULE", conflicts_with = "walk")]
    other_module: Option<String>,
    /// Follow the links, so many at the most
    #[arg(long, value_name = "DEPTH", value_parser = clap::value_parser!(u32).range(1..))]
    walk: Option<u32>,
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Type {
    Reference,
    Cascade,
    #[value(alias = "aggregate-root")]
    AggregateRoot,
}

impl From<Type> for LinkType {
    fn from(link_type: Type) -> Self {
        match link_type {
            Type::Reference => LinkType::Reference,
            Type::Cascade => LinkType::Cascade,
            Type::AggregateRoot => LinkType::AggregateRoot,
        }
    }
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let postbox = context::read(&args.file)?;
    let entity = EntityRef::new(&args.module, &args.entity_type, &args.entity_id);
    match args.walk {
        Some(depth) => {
            let walk =
                postbox.links().walk(&entity, &args.walk_options(depth)).map_err(Failure::of(&args.file))?;
            context.show(|| show::json_of(&walk), || table_of_walk(&walk))
        }
        None => list(args, &postbox, &entity, context),
    }
}

fn list(args: &Args, postbox: &Postbox, entity: &EntityRef, context: &Context) -> Result<(), Failure> {
    let filter = || args.link_type.iter().fold(LinkFilter::new(), |filter, t| filter.link_type((*t).into()));
    let (mut outbound, mut inbound) = (filter().from(entity), filter().to(entity));
    if let Some(module) = &args.other_module {
        (outbound, inbound) = (outbound.target_module(module), inbound.source_module(module));
    }
    let read = |is_wanted, filter| {
        let links = if is_wanted { all(postbox, &filter) } else { Ok(Vec::new()) };
        links.map_err(Failure::of(&args.file))
    };
    let (outbound, inbound) = (read(!args.inbound, outbound)?, read(!args.outbound, inbound)?);
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
            let is_all =
                !args.outbound && !args.inbound && args.link_type.is_empty() && args.other_module.is_none();
            table.render(if is_all { "It has no links." } else { "It has no such links." })
        },
    )
}

/// Page after page.
fn all(postbox: &Postbox, filter: &LinkFilter) -> postbox::Result<Vec<IntegrationLink>> {
    let mut page = postbox.links().find(filter, &Page::oldest(PAGE))?;
    let mut links = page.links;
    while let Some(next) = page.next {
        page = postbox.links().find(filter, &Page::oldest(PAGE).after(next))?;
        links.append(&mut page.links);
    }
    Ok(links)
}

impl Args {
    fn walk_options(&self, depth: u32) -> WalkOptions {
        let options = match (self.outbound, self.inbound) {
            (true, _) => WalkOptions::outbound(depth),
            (_, true) => WalkOptions::inbound(depth),
            _ => WalkOptions::both(depth),
        };
        self.link_type.iter().fold(options, |options, link_type| options.link_type((*link_type).into()))
    }
}

fn table_of_walk(walk: &LinkWalk) -> String {
    let mut table = Table::new(["depth", "direction", "module", "type", "id", "link type", "reached from"]);
    for found in &walk.entities {
        let from = found.reached_from.and_then(|index| walk.entities.get(index));
        table.row([
            found.depth.to_string(),
            found.direction.as_str().to_owned(),
            found.entity.module.clone(),
            found.entity.entity_type.clone(),
            found.entity.entity_id.clone(),
            found.link_type.to_string(),
            show::or_dash(from.map(|from| from.entity.to_string())),
        ]);
    }
    let mut text = table.render("Nothing is linked to it that way.");
    if !walk.is_complete {
        text.push_str("There is more than is shown.\n");
    }
    text
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
