# In dom0: who is served and what each may do, of pillar qvm-remote. It breaks the security model of Qubes OS by design;
# keys are stored by hand (qvm-remote-dom0 authorize), and the service is enabled by nobody but its owner.
{%- set all = salt['pillar.get']('qvm-remote', {}) %}
{%- set qubes = all.get('qubes', {}) %}

qvm-remote-dom0:
  pkg.installed: []
{%- if all.get('running') %}
  service.running:
    - enable: false
    - require:
      - pkg: qvm-remote-dom0
      - file: /etc/qubes/remote.conf
{%- endif %}

/etc/qubes/remote.conf:
  file.managed:
    - mode: '0600'
    - contents: {{ ('QVM_REMOTE_VMS="' ~ (qubes | sort | join(' ')) ~ '"\n') | tojson }}
{%- for qube, rules in qubes | dictsort %}

{{ ('/etc/qubes/remote.d/' ~ qube ~ '.policy') | tojson }}:
  file.managed:
    - mode: '0600'
    - dir_mode: '0700'
    - makedirs: true
    - contents: {{ (rules | join('\n') ~ '\n') | tojson }}
{%- endfor %}
