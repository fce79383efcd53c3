complete --keep-order --exclusive --command pfwd --arguments "(COMPLETE=fish pfwd -- (commandline --current-process --tokenize --cut-at-cursor) (commandline --current-token))"
