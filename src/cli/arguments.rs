//! Arguments of a program whose options have a place: behind the command that they are for.

use clap::{
    Parser,
    error::{ContextKind, ErrorKind},
};

/// Reads the arguments of this process; ends it with a message where they are not valid.
///
/// A program without a command has options for its service. Such an option in front of a command belongs to neither,
/// so it is refused (`args_conflicts_with_subcommands`), and the message says where it goes.
pub(super) fn parse<P: Parser>(program: &str) -> P {
    P::try_parse().unwrap_or_else(|error| {
        let command = error.get(ContextKind::InvalidSubcommand).filter(|_| error.kind() == ErrorKind::ArgumentConflict);
        let known = P::command();
        let known = |name: &str| known.find_subcommand(name).is_some();
        if let Some(command) = command.map(ToString::to_string).filter(|command| known(command)) {
            let _ = error.print();
            eprintln!("\n  tip: options stand behind the command: {program} {command} OPTIONS");
            std::process::exit(error.exit_code());
        }
        error.exit()
    })
}
