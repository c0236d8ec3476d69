//! For the shell.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::Program;
use crate::context::Context;
use crate::failure::Failure;
use crate::show;

/// Print a script by which a shell completes this program's commands
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox completions bash > ~/.local/share/bash-completion/completions/postbox
  postbox completions zsh > ~/.zfunc/_postbox
  postbox completions fish > ~/.config/fish/completions/postbox.fish")]
pub(crate) struct Args {
    /// Which shell
    shell: Shell,
}

pub(crate) fn run(args: &Args, _: &Context) -> Result<(), Failure> {
    let mut script = Vec::new(); // written to a pipe that is closed, the generator would panic
    clap_complete::generate(args.shell, &mut Program::command(), "postbox", &mut script);
    show::print(&String::from_utf8_lossy(&script))
}
