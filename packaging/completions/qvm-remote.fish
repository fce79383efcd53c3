# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_qvm_remote_global_optspecs
    string join \n t/timeout= connect-timeout= i/stdin tty argv user= queue v1 q/quiet v/verbose h/help version
end

function __fish_qvm_remote_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_qvm_remote_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_qvm_remote_using_subcommand
    set -l cmd (__fish_qvm_remote_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -s t -l timeout -d 'end the command after so long, and exit 124 (300)' -r
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -l connect-timeout -d 'exit 255 when dom0 does not answer within so long (10)' -r
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -l user -d 'run as this user of dom0, where its policy names him' -r
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -s i -l stdin -d 'pass standard input on to the command'
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -l tty -d 'give the command a terminal'
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -l argv -d 'pass the words on as they are: policies can rely on them'
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -l queue -d 'wait for a daemon that is not up yet'
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -l v1 -d 'for the Python qvm-remote-dom0: nothing is authenticated but the id'
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -s q -l quiet -d 'no progress, no hints'
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -s v -l verbose -d 'say more'
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -s h -l help -d 'this'
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -l version -d 'its version'
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -f -a "get"
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -f -a "put"
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -f -a "key"
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -f -a "ping"
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -f -a "status"
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -f -a "queue"
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -f -a "log"
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -f -a "history"
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand key; and not __fish_seen_subcommand_from gen show import help" -f -a "gen"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand key; and not __fish_seen_subcommand_from gen show import help" -f -a "show"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand key; and not __fish_seen_subcommand_from gen show import help" -f -a "import"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand key; and not __fish_seen_subcommand_from gen show import help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand key; and __fish_seen_subcommand_from help" -f -a "gen"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand key; and __fish_seen_subcommand_from help" -f -a "show"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand key; and __fish_seen_subcommand_from help" -f -a "import"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand key; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand queue; and not __fish_seen_subcommand_from status clean debug help" -f -a "status"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand queue; and not __fish_seen_subcommand_from status clean debug help" -f -a "clean"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand queue; and not __fish_seen_subcommand_from status clean debug help" -f -a "debug"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand queue; and not __fish_seen_subcommand_from status clean debug help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand queue; and __fish_seen_subcommand_from help" -f -a "status"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand queue; and __fish_seen_subcommand_from help" -f -a "clean"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand queue; and __fish_seen_subcommand_from help" -f -a "debug"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand queue; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand help; and not __fish_seen_subcommand_from get put key ping status queue log history help" -f -a "get"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand help; and not __fish_seen_subcommand_from get put key ping status queue log history help" -f -a "put"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand help; and not __fish_seen_subcommand_from get put key ping status queue log history help" -f -a "key"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand help; and not __fish_seen_subcommand_from get put key ping status queue log history help" -f -a "ping"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand help; and not __fish_seen_subcommand_from get put key ping status queue log history help" -f -a "status"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand help; and not __fish_seen_subcommand_from get put key ping status queue log history help" -f -a "queue"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand help; and not __fish_seen_subcommand_from get put key ping status queue log history help" -f -a "log"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand help; and not __fish_seen_subcommand_from get put key ping status queue log history help" -f -a "history"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand help; and not __fish_seen_subcommand_from get put key ping status queue log history help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand help; and __fish_seen_subcommand_from key" -f -a "gen"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand help; and __fish_seen_subcommand_from key" -f -a "show"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand help; and __fish_seen_subcommand_from key" -f -a "import"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand help; and __fish_seen_subcommand_from queue" -f -a "status"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand help; and __fish_seen_subcommand_from queue" -f -a "clean"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand help; and __fish_seen_subcommand_from queue" -f -a "debug"
