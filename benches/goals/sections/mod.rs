pub(crate) mod deliver;
pub(crate) mod history;
pub(crate) mod publish;
pub(crate) mod resources;
