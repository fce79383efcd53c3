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

complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -s t -l timeout -d 'end the command after this time and exit 124 (no limit; without a terminal 300)' -r
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -l connect-timeout -d 'exit 255 if dom0 does not answer within this time (10)' -r
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -l user -d 'run as this user of dom0, if the policy allows that user' -r
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -s i -l stdin -d 'pass standard input on to the command'
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -l tty -d 'give the command a terminal'
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -l argv -d 'no shell in dom0 reads the words: a policy can check each of them'
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -l queue -d 'wait for a daemon that does not run yet'
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -l v1 -d 'use the protocol of the Python qvm-remote-dom0: it authenticates the id only'
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -s q -l quiet -d 'no progress, no hints'
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -s v -l verbose -d 'print more'
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -s h -l help -d 'print this help'
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -l version -d 'print the version'
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -f -a "get" -d 'copy a file out of dom0, where its policy allows'
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -f -a "put" -d 'copy a file into dom0, where its policy allows'
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -f -a "key" -d 'make, print or import the key of this qube'
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -f -a "ping" -d 'ask whether dom0 answers and knows the key'
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -f -a "status" -d 'print the state of this side and of the connection'
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -f -a "queue" -d 'print or remove what waits in the queue of files'
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -f -a "log" -d 'print the last lines of this side\'s log'
complete -c qvm-remote -n "__fish_qvm_remote_needs_command" -f -a "history" -d 'print the last commands and how they ended'
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand key; and not __fish_seen_subcommand_from gen show import" -f -a "gen"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand key; and not __fish_seen_subcommand_from gen show import" -f -a "show"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand key; and not __fish_seen_subcommand_from gen show import" -f -a "import"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand queue; and not __fish_seen_subcommand_from status clean debug" -f -a "status"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand queue; and not __fish_seen_subcommand_from status clean debug" -f -a "clean"
complete -c qvm-remote -n "__fish_qvm_remote_using_subcommand queue; and not __fish_seen_subcommand_from status clean debug" -f -a "debug"
