# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_qvm_forward_global_optspecs
    string join \n h/help V/version
end

function __fish_qvm_forward_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_qvm_forward_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_qvm_forward_using_subcommand
    set -l cmd (__fish_qvm_forward_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c qvm-forward -n "__fish_qvm_forward_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c qvm-forward -n "__fish_qvm_forward_needs_command" -s V -l version -d 'Print version'
complete -c qvm-forward -n "__fish_qvm_forward_needs_command" -f -a "add" -d 'Declare a forward: policy, feature of the qube, end time'
complete -c qvm-forward -n "__fish_qvm_forward_needs_command" -f -a "remove" -d 'Remove a forward; its open connections end as the listening qube\'s service decides'
complete -c qvm-forward -n "__fish_qvm_forward_needs_command" -f -a "list" -d 'List the declared forwards, what dom0 allows, and what is served'
complete -c qvm-forward -n "__fish_qvm_forward_needs_command" -f -a "check" -d 'Show what is wrong with the declared forwards, and what to do'
complete -c qvm-forward -n "__fish_qvm_forward_needs_command" -f -a "expire" -d 'Remove the forwards whose time is over (run by systemd)'
complete -c qvm-forward -n "__fish_qvm_forward_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c qvm-forward -n "__fish_qvm_forward_using_subcommand add" -l from -d 'Accept connections from this address or network only (repeatable)' -r
complete -c qvm-forward -n "__fish_qvm_forward_using_subcommand add" -l for -d 'Remove the forward after this time: 8h, 2days 12h' -r
complete -c qvm-forward -n "__fish_qvm_forward_using_subcommand add" -l ask -d 'Let dom0 ask its user before each connection'
complete -c qvm-forward -n "__fish_qvm_forward_using_subcommand add" -l dry-run -d 'Print what would be written and run, and change nothing'
complete -c qvm-forward -n "__fish_qvm_forward_using_subcommand add" -s h -l help -d 'Print help'
complete -c qvm-forward -n "__fish_qvm_forward_using_subcommand remove" -l dry-run -d 'Print what would be written and run, and change nothing'
complete -c qvm-forward -n "__fish_qvm_forward_using_subcommand remove" -s h -l help -d 'Print help'
complete -c qvm-forward -n "__fish_qvm_forward_using_subcommand list" -l color -d 'Use colours; `auto`: on a terminal, unless NO_COLOR is set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c qvm-forward -n "__fish_qvm_forward_using_subcommand list" -l json -d 'As JSON'
complete -c qvm-forward -n "__fish_qvm_forward_using_subcommand list" -s w -l wide -d 'Show every column in full, also in a narrow terminal'
complete -c qvm-forward -n "__fish_qvm_forward_using_subcommand list" -s h -l help -d 'Print help'
complete -c qvm-forward -n "__fish_qvm_forward_using_subcommand check" -l json -d 'As JSON'
complete -c qvm-forward -n "__fish_qvm_forward_using_subcommand check" -s h -l help -d 'Print help'
complete -c qvm-forward -n "__fish_qvm_forward_using_subcommand expire" -s h -l help -d 'Print help'
complete -c qvm-forward -n "__fish_qvm_forward_using_subcommand help; and not __fish_seen_subcommand_from add remove list check expire help" -f -a "add" -d 'Declare a forward: policy, feature of the qube, end time'
complete -c qvm-forward -n "__fish_qvm_forward_using_subcommand help; and not __fish_seen_subcommand_from add remove list check expire help" -f -a "remove" -d 'Remove a forward; its open connections end as the listening qube\'s service decides'
complete -c qvm-forward -n "__fish_qvm_forward_using_subcommand help; and not __fish_seen_subcommand_from add remove list check expire help" -f -a "list" -d 'List the declared forwards, what dom0 allows, and what is served'
complete -c qvm-forward -n "__fish_qvm_forward_using_subcommand help; and not __fish_seen_subcommand_from add remove list check expire help" -f -a "check" -d 'Show what is wrong with the declared forwards, and what to do'
complete -c qvm-forward -n "__fish_qvm_forward_using_subcommand help; and not __fish_seen_subcommand_from add remove list check expire help" -f -a "expire" -d 'Remove the forwards whose time is over (run by systemd)'
complete -c qvm-forward -n "__fish_qvm_forward_using_subcommand help; and not __fish_seen_subcommand_from add remove list check expire help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
