//! What an event came from, and what came of it.

use std::fmt::Write as _;
use std::path::PathBuf;

use postbox::{CausationTree, Error, EventId};

use crate::context::{self, Context};
use crate::events;
use crate::failure::Failure;
use crate::show;

/// Show an event among all that came from the same first cause
///
/// Each event stands below the one whose handler published it; `>` marks the one that was asked for. At most 1,000.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox tree app.db 0198c0de-0000-7000-8000-000000000000
  postbox tree app.db 0198c0de-0000-7000-8000-000000000000 --json | jq '.nodes[].event.event_name'

With --json, one object:
  nodes        an array in order of publishing: {event (as of `list`), parent, children}, which are indexes into it
  root, asked  the first cause, and the event that was asked for: indexes into nodes
  is_cut       true: there is more")]
pub(crate) struct Args {
    /// The application's database, or a copy of it
    file: PathBuf,
    /// The event
    id: EventId,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let postbox = context::read(&args.file)?;
    let tree = postbox
        .outbox()
        .causation_tree(args.id)
        .and_then(|tree| tree.ok_or_else(|| Error::NotFound { what: "event", id: args.id.to_string() }));
    let tree = tree.map_err(Failure::of(&args.file))?;
    context.show(|| show::json_of(&tree), || text(&tree))
}

fn text(tree: &CausationTree) -> String {
    let asked = tree.nodes.get(tree.asked).map(|node| node.event.cursor());
    let mut text = String::new();
    for (depth, node) in tree.walk() {
        let mark = if Some(node.event.cursor()) == asked { ">" } else { " " };
        let indent = "  ".repeat(depth);
        let _ = writeln!(text, "{mark} {indent}{}", show::printable(&events::line(&node.event)));
    }
    if tree.is_cut {
        text.push_str("There is more than is shown.\n");
    }
    text
}
