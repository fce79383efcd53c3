# In a template: the package.
qrexec-connect:
  pkg.installed: []
