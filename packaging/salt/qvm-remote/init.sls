# In a template: the client and the agent.
qvm-remote:
  pkg.installed: []
