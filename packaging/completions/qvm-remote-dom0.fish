# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_qvm_remote_dom0_global_optspecs
    string join \n vm= once dry-run v/verbose h/help V/version
end

function __fish_qvm_remote_dom0_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_qvm_remote_dom0_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_qvm_remote_dom0_using_subcommand
    set -l cmd (__fish_qvm_remote_dom0_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_needs_command" -l vm -d 'Serve this qube instead of those in the configuration' -r
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_needs_command" -l once -d 'Run the commands that wait now, then exit'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_needs_command" -l dry-run -d 'Print what would be done, and change nothing'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_needs_command" -s v -l verbose -d 'Print more'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_needs_command" -s V -l version -d 'Print version'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_needs_command" -f -a "authorize" -d 'Store a qube\'s key, and a policy where it has none'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_needs_command" -f -a "revoke" -d 'Remove a qube\'s key'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_needs_command" -f -a "keys" -d 'List the authorised qubes'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_needs_command" -f -a "v1" -d 'Accept the tokens of the Python client from a qube, or stop accepting them'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_needs_command" -f -a "enable" -d 'Start the service now and at every boot'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_needs_command" -f -a "disable" -d 'Stop the service, now and at every boot'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_needs_command" -f -a "start" -d 'Start the service for some time, then stop it; a second `start` replaces the time'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_needs_command" -f -a "restart" -d 'Restart the service; first list the commands that the restart would end, and ask'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_needs_command" -f -a "approve" -d 'Show all of a command that waits for approval, and ask whether it may run; without an id, list those that wait'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_needs_command" -f -a "log" -d 'Show dom0\'s log, or check its chain'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_needs_command" -f -a "check" -d 'Show what is wrong with the configuration, the keys and the policies, and what to write instead'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_needs_command" -f -a "test" -d 'Show which rule decides about a command, and why; nothing runs'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_needs_command" -f -a "kill" -d 'End a command that runs or waits, or the processes that it left in the background'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_needs_command" -f -a "status" -d 'Show what the daemon does: qubes, commands, requests that wait'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_needs_command" -f -a "unit" -d 'Print the unit file, for installers'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_needs_command" -f -a "keep" -d 'Hold the control groups of commands and of their background processes (started by qvm-remote-dom0-commands.service)'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_needs_command" -f -a "parse" -d 'Read what a VM sends (started by the daemon)'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_needs_command" -f -a "parse-v1" -d 'Read the listing of a queue (started by the daemon)'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_needs_command" -f -a "supervise" -d 'Look after one command (started by the daemon)'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand authorize" -l policy -d 'Start with this policy' -r -F
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand authorize" -l deny -d 'Start with a policy that allows nothing'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand authorize" -l keep-old -d 'Accept the previous key as well, until the next `authorize`: to change keys without a gap'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand authorize" -s h -l help -d 'Print help'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand revoke" -l kill -d 'Also end its commands: those that run, those that wait, and background processes'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand revoke" -s h -l help -d 'Print help'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand keys" -l color -d 'Use colours; `auto`: on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand keys" -s w -l wide -d 'Show every column in full, also in a narrow terminal'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand keys" -s h -l help -d 'Print help'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand v1" -s h -l help -d 'Print help'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand enable" -s h -l help -d 'Print help'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand disable" -s h -l help -d 'Print help'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand start" -l for -d 'How long, as systemd.time(7) has it: 30min, 2h' -r
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand start" -s h -l help -d 'Print help'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand restart" -l when-idle -d 'Wait until no command runs or waits; new commands are accepted until then'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand restart" -l yes -d 'Do not ask'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand restart" -s h -l help -d 'Print help'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand approve" -l color -d 'Use colours; `auto`: on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand approve" -l deny -d 'Refuse it'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand approve" -l yes -d 'Show it and allow it without a question; needs the whole id'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand approve" -s w -l wide -d 'Show every column in full, also in a narrow terminal'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand approve" -s h -l help -d 'Print help'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand log" -l against -d 'Compare the log with a copy of a qube\'s ~/.qvm-remote/audit.log' -r -F
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand log" -l verify -d 'Check that no entry was changed, removed or added'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand log" -s h -l help -d 'Print help'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand check" -s h -l help -d 'Print help'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand test" -l policy -d 'This policy, instead of the qube\'s' -r -F
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand test" -l shell -d 'A text for bash, as qvm-remote without --argv sends it' -r
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand test" -l get -d 'A file to read' -r
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand test" -l put -d 'A file to write' -r
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand test" -l user -d 'As this user, as qvm-remote --user asks for' -r
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand test" -s i -l stdin -d 'With standard input, as qvm-remote -i asks for'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand test" -l tty -d 'With a terminal, as qvm-remote --tty asks for'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand test" -s h -l help -d 'Print help'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand kill" -l qube -d 'Its qube, if two qubes have a command with this id' -r
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand kill" -s h -l help -d 'Print help'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand status" -l color -d 'Use colours; `auto`: on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand status" -l json -d 'As JSON'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand status" -s w -l wide -d 'Show every column in full, also in a narrow terminal'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand status" -s h -l help -d 'Print help'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand unit" -l commands -d 'The one for commands'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand unit" -s h -l help -d 'Print help'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand keep" -s h -l help -d 'Print help'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand parse" -l uid -d 'The user id to take on' -r
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand parse" -s h -l help -d 'Print help'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand parse-v1" -l uid -d 'The user id to take on' -r
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand parse-v1" -s h -l help -d 'Print help'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand supervise" -s h -l help -d 'Print help'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand help; and not __fish_seen_subcommand_from authorize revoke keys v1 enable disable start restart approve log check test kill status unit keep parse parse-v1 supervise help" -f -a "authorize" -d 'Store a qube\'s key, and a policy where it has none'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand help; and not __fish_seen_subcommand_from authorize revoke keys v1 enable disable start restart approve log check test kill status unit keep parse parse-v1 supervise help" -f -a "revoke" -d 'Remove a qube\'s key'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand help; and not __fish_seen_subcommand_from authorize revoke keys v1 enable disable start restart approve log check test kill status unit keep parse parse-v1 supervise help" -f -a "keys" -d 'List the authorised qubes'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand help; and not __fish_seen_subcommand_from authorize revoke keys v1 enable disable start restart approve log check test kill status unit keep parse parse-v1 supervise help" -f -a "v1" -d 'Accept the tokens of the Python client from a qube, or stop accepting them'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand help; and not __fish_seen_subcommand_from authorize revoke keys v1 enable disable start restart approve log check test kill status unit keep parse parse-v1 supervise help" -f -a "enable" -d 'Start the service now and at every boot'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand help; and not __fish_seen_subcommand_from authorize revoke keys v1 enable disable start restart approve log check test kill status unit keep parse parse-v1 supervise help" -f -a "disable" -d 'Stop the service, now and at every boot'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand help; and not __fish_seen_subcommand_from authorize revoke keys v1 enable disable start restart approve log check test kill status unit keep parse parse-v1 supervise help" -f -a "start" -d 'Start the service for some time, then stop it; a second `start` replaces the time'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand help; and not __fish_seen_subcommand_from authorize revoke keys v1 enable disable start restart approve log check test kill status unit keep parse parse-v1 supervise help" -f -a "restart" -d 'Restart the service; first list the commands that the restart would end, and ask'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand help; and not __fish_seen_subcommand_from authorize revoke keys v1 enable disable start restart approve log check test kill status unit keep parse parse-v1 supervise help" -f -a "approve" -d 'Show all of a command that waits for approval, and ask whether it may run; without an id, list those that wait'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand help; and not __fish_seen_subcommand_from authorize revoke keys v1 enable disable start restart approve log check test kill status unit keep parse parse-v1 supervise help" -f -a "log" -d 'Show dom0\'s log, or check its chain'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand help; and not __fish_seen_subcommand_from authorize revoke keys v1 enable disable start restart approve log check test kill status unit keep parse parse-v1 supervise help" -f -a "check" -d 'Show what is wrong with the configuration, the keys and the policies, and what to write instead'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand help; and not __fish_seen_subcommand_from authorize revoke keys v1 enable disable start restart approve log check test kill status unit keep parse parse-v1 supervise help" -f -a "test" -d 'Show which rule decides about a command, and why; nothing runs'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand help; and not __fish_seen_subcommand_from authorize revoke keys v1 enable disable start restart approve log check test kill status unit keep parse parse-v1 supervise help" -f -a "kill" -d 'End a command that runs or waits, or the processes that it left in the background'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand help; and not __fish_seen_subcommand_from authorize revoke keys v1 enable disable start restart approve log check test kill status unit keep parse parse-v1 supervise help" -f -a "status" -d 'Show what the daemon does: qubes, commands, requests that wait'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand help; and not __fish_seen_subcommand_from authorize revoke keys v1 enable disable start restart approve log check test kill status unit keep parse parse-v1 supervise help" -f -a "unit" -d 'Print the unit file, for installers'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand help; and not __fish_seen_subcommand_from authorize revoke keys v1 enable disable start restart approve log check test kill status unit keep parse parse-v1 supervise help" -f -a "keep" -d 'Hold the control groups of commands and of their background processes (started by qvm-remote-dom0-commands.service)'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand help; and not __fish_seen_subcommand_from authorize revoke keys v1 enable disable start restart approve log check test kill status unit keep parse parse-v1 supervise help" -f -a "parse" -d 'Read what a VM sends (started by the daemon)'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand help; and not __fish_seen_subcommand_from authorize revoke keys v1 enable disable start restart approve log check test kill status unit keep parse parse-v1 supervise help" -f -a "parse-v1" -d 'Read the listing of a queue (started by the daemon)'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand help; and not __fish_seen_subcommand_from authorize revoke keys v1 enable disable start restart approve log check test kill status unit keep parse parse-v1 supervise help" -f -a "supervise" -d 'Look after one command (started by the daemon)'
complete -c qvm-remote-dom0 -n "__fish_qvm_remote_dom0_using_subcommand help; and not __fish_seen_subcommand_from authorize revoke keys v1 enable disable start restart approve log check test kill status unit keep parse parse-v1 supervise help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
