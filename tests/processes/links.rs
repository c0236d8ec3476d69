//! Links of which there is one, made by several processes.

use std::env;
use std::path::PathBuf;

use postbox::{EntityRef, Error, LinkType, NewLink, Postbox};

use crate::children::{child, lines_of, next_said, say, tell};
use crate::support::{Process, integer, raw, unhurried};

const LINKS: u32 = 200;

fn link(n: u32, link_type: LinkType) -> NewLink {
    let hub = EntityRef::new("finance", "Invoice", "hub");
    NewLink::new(hub, EntityRef::new("operations", "Task", n.to_string()), link_type)
}

#[test]
fn two_processes_that_make_the_same_links_at_once_make_each_of_them_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    Postbox::open(&path).unwrap().close().unwrap();
    let mut processes = [(); 2].map(|()| Process::spawn(child("links::child_makes_links", &path)));
    let mut said = processes.each_mut().map(lines_of);
    for lines in &mut said {
        next_said(lines, "ready").unwrap();
    }
    for process in &mut processes {
        tell(process, "go");
    }
    let made: Vec<[u32; 2]> = said
        .iter_mut()
        .map(|lines| ["got:", "created:"].map(|mark| next_said(lines, mark).unwrap().parse().unwrap()))
        .collect();
    assert_eq!([made[0][0] + made[1][0], made[0][1] + made[1][1]], [LINKS, LINKS], "{made:?}");
    let rows = raw(&path);
    assert_eq!(integer(&rows, "SELECT count(*) FROM integration_link"), i64::from(2 * LINKS));
    let kinds = "SELECT count(*) FROM (SELECT DISTINCT target_entity_id, link_type FROM integration_link)";
    assert_eq!(integer(&rows, kinds), i64::from(2 * LINKS));
}

#[test]
#[ignore = "run by the test above"]
fn child_makes_links() {
    let bus = unhurried().open(PathBuf::from(env::var_os("FILE").unwrap())).unwrap();
    say("ready");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let mut made = [0_u32, 0];
    for n in 0..LINKS {
        made[0] += u32::from(bus.links().get_or_create(link(n, LinkType::Reference)).unwrap().is_new);
        match bus.links().create_unique(link(n, LinkType::Cascade)) {
            Ok(_) => made[1] += 1,
            Err(Error::LinkExists { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    say(&format!("got:{}", made[0]));
    say(&format!("created:{}", made[1]));
}
