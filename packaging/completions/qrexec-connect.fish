complete --keep-order --exclusive --command qrexec-connect --arguments "(COMPLETE=fish qrexec-connect -- (commandline --current-process --tokenize --cut-at-cursor) (commandline --current-token))"
